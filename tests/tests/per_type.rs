//! The proxy on streams of their own for each type, as Envoy's `api_config_source` has it, where most tests have one for all.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::client::get;
use culvert_tests::load::Load;
use culvert_tests::plane::{Plane, Way, assignment, by_rds, eds_cluster, routes_to};
use culvert_tests::wait::eventually;
use serde_json::{Value, json};

const SWAPS: usize = 6;

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// The resource, with a stream of its own in place of each reference to the one for all.
fn apart(mut resource: Value, sotw: bool) -> Value {
    fn walk(value: &mut Value, source: &Value) {
        match value {
            Value::Object(fields) => {
                if fields.remove("ads").is_some() {
                    fields.insert("api_config_source".to_owned(), source.clone());
                }
                fields.values_mut().for_each(|value| walk(value, source));
            }
            Value::Array(items) => items.iter_mut().for_each(|value| walk(value, source)),
            _ => {}
        }
    }
    let api = if sotw { "GRPC" } else { "DELTA_GRPC" };
    let source = json!({ "api_type": api, "transport_api_version": "V3",
        "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds" } }] });
    walk(&mut resource, &source);
    resource
}

/// Cluster, assignment and routes, all of which are others in each turn.
fn turn(number: usize, backend: &Backend, sotw: bool) -> Vec<Value> {
    let name = format!("c{number}");
    let all = [eds_cluster(&name), assignment(&name, &[backend.address]), routes_to("routes", &name)];
    all.into_iter().map(|one| apart(one, sotw)).collect()
}

async fn answers(plane: &Plane, address: SocketAddr, name: &str) -> Result {
    eventually(&format!("{name} answers"), async || {
        let answer = get(address, "/").await?;
        ensure!(answer.text().contains(name), "saw {} {:?}", answer.status, answer.text());
        Ok(())
    })
    .await
    .with_context(|| format!("{}\n{}", plane.control_log(), plane.proxy_log()))
}

#[tokio::test]
async fn six_swaps_of_cluster_and_routes_under_load_fail_nothing_at_a_proxy_with_streams_per_type() -> Result {
    let backends = [Backend::start("even").await?, Backend::start("odd").await?];
    for sotw in [false, true] {
        let mut plane = Plane::start(&[]).await?;
        let address = free_address()?;
        plane.put("listener.json", &[apart(by_rds("in", address, "routes"), sotw)])?;
        plane.put("all.json", &turn(0, &backends[0], sotw))?;
        plane.start_proxy(Way { sotw, per_type: true, ..Way::default() }).await?;
        answers(&plane, address, "even").await?;
        // Listeners, clusters, assignments and routes.
        let metrics = get(plane.control_admin, "/metrics").await?.text();
        let streams = metrics.lines().find_map(|line| line.strip_prefix("culvert_control_streams_active "));
        ensure!(streams == Some("4"), "expected a stream for each of four types, saw {streams:?}:\n{metrics}");
        let load = Load::new(address, "/").start();
        for number in 1..=SWAPS {
            load.more(20).await?;
            let (backend, name) = (&backends[number % 2], ["even", "odd"][number % 2]);
            plane.put("all.json", &turn(number, backend, sotw))?;
            answers(&plane, address, name).await?;
            let before = format!("c{}", number - 1);
            eventually(&format!("{before} is gone"), async || {
                let dump = plane.page("/config_dump").await?.to_string();
                ensure!(!dump.contains(&format!("\"{before}\"")), "still in {dump}");
                Ok(())
            })
            .await?;
        }
        load.finish(100).await.with_context(|| format!("state of the world: {sotw}\n{}", plane.proxy_log()))?;
        plane.stop_proxy().await?;
    }
    Ok(())
}
