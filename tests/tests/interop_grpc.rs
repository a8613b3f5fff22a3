//! gRPC's own xDS clients, in Python and in JavaScript, under culvert-control: calls go on while what they lead to is
//! replaced.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::client::get;
use culvert_tests::grpc::Named;
use culvert_tests::peer::{Peer, Running, find_program};
use culvert_tests::plane::{Plane, assignment, eds_cluster, envoy, routes_to};
use culvert_tests::process::repository;
use culvert_tests::wait::eventually;
use serde_json::{Value, json};
use tokio::process::Command;

/// What a client prints.
#[derive(Debug, serde::Deserialize)]
struct Counts {
    answers: BTreeMap<String, u64>,
    failed: u64,
    failures: Vec<String>,
}

impl Counts {
    /// As printed last.
    fn of(client: &Running) -> Result<Self> {
        let log = client.log();
        // The last line may not be whole yet.
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        let line = whole.lines().rev().find(|line| line.starts_with('{'));
        serde_json::from_str(line.with_context(|| format!("no counts: {log}"))?).with_context(|| log.clone())
    }

    fn by(&self, name: &str) -> u64 {
        self.answers.get(name).copied().unwrap_or_default()
    }
}

fn script(path: &str) -> PathBuf {
    repository().join("tests/peers").join(path)
}

/// `python`, a script of ours and its target.
fn python(python: PathBuf, target: &str) -> Command {
    let mut command = Command::new(python);
    command.arg(script("grpc_client.py")).arg(target);
    command
}

/// Where the client finds the control plane, and as which node.
fn bootstrap(plane: &Plane) -> String {
    json!({
        "xds_servers": [{
            "server_uri": plane.xds.to_string(),
            "channel_creds": [{ "type": "insecure" }],
            "server_features": ["xds_v3"],
        }],
        // grpc-js insists on a locality.
        "node": { "id": "proxy", "cluster": "grpc", "locality": {} },
    })
    .to_string()
}

/// What a target of gRPC's clients is.
fn target(name: &str, routes: &str) -> Value {
    json!({ "@type": envoy("config.listener.v3.Listener"), "name": name, "api_listener": { "api_listener": {
        "@type": envoy("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "rds": { "route_config_name": routes, "config_source": { "ads": {}, "resource_api_version": "V3" } },
        "http_filters": [{ "name": "router",
            "typed_config": { "@type": envoy("extensions.filters.http.router.v3.Router") } }],
    } } })
}

/// The assignment of a cluster as gRPC wants it: a locality has a name and a weight.
fn located(cluster: &str, server: &Named) -> Value {
    let mut assignment = assignment(cluster, &[server.address]);
    assignment["endpoints"][0]["locality"] = json!({ "region": "here" });
    assignment["endpoints"][0]["load_balancing_weight"] = json!(1);
    assignment
}

/// Six times, under load, the routes move to a cluster that is new and the one before is gone: no call fails.
async fn swaps(mut client: Command) -> Result {
    let servers = [Named::start("one").await?, Named::start("two").await?];
    let plane = Plane::start(&[]).await?;
    let put = |number: usize| {
        let cluster = format!("c{number}");
        let server = &servers[number % 2];
        plane.put("swapped.json", &[eds_cluster(&cluster), located(&cluster, server), routes_to("r", &cluster)])
    };
    put(0)?;
    plane.put("target.json", &[target("names", "r")])?;
    eventually("the target is served", async || {
        let config = get(plane.control_admin, "/config").await?.json()?;
        ensure!(config["resources"] == 4, "expected cluster, assignment, routes and target, saw {config}");
        Ok(())
    })
    .await?;
    let mut client = Running::start(client.env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap(&plane)))?;
    for number in 0..=6 {
        if number > 0 {
            put(number)?;
        }
        let (name, cluster) = (["one", "two"][number % 2], format!("c{number}"));
        let before = Counts::of(&client).map_or(0, |counts| counts.by(name));
        eventually(&format!("swap {number} is over and calls go on"), async || {
            let counts = Counts::of(&client)?;
            ensure!(counts.by(name) >= before + 20, "expected more calls to {name}, saw {counts:?}");
            let push = get(plane.control_admin, "/push").await?.json()?;
            ensure!(push["pending"] == 0, "saw {push}");
            let (state, error) = plane.status("Cluster", &cluster).await?;
            ensure!(state == "SYNCED", "{cluster} is {state} {error}");
            Ok(())
        })
        .await
        .with_context(|| plane.control_log())?;
    }
    client.hang_up();
    client.says("ended", "").await?;
    let counts = Counts::of(&client)?;
    ensure!(counts.failed == 0, "expected no failed call, saw {counts:?}\n{}", plane.control_log());
    let calls: u64 = counts.answers.values().sum();
    ensure!(calls >= 140, "expected calls all the time, saw {counts:?}");
    eprintln!("{calls} calls, {} failed", counts.failed);
    Ok(())
}

#[tokio::test]
async fn six_swaps_of_cluster_and_routes_under_load_fail_no_call_of_grpcio() -> Result {
    let Some(program) = Peer::Grpcio.find()? else { return Ok(()) };
    swaps(python(program, "xds:///names")).await
}

#[tokio::test]
async fn six_swaps_of_cluster_and_routes_under_load_fail_no_call_of_grpc_js() -> Result {
    let Some(node) = find_program("node")? else { return Ok(()) };
    let Some(modules) = Peer::GrpcJs.find()? else { return Ok(()) };
    let mut command = Command::new(node);
    command.env("NODE_PATH", modules).arg(script("grpc-js/client.js")).arg("xds:///names");
    swaps(command).await
}

/// Without the error its first call would wait for 15 s.
#[tokio::test]
async fn a_target_that_does_not_exist_fails_at_once_at_grpcio() -> Result {
    let Some(program) = Peer::Grpcio.find()? else { return Ok(()) };
    let plane = Plane::start(&[]).await?;
    let mut client = python(program, "xds:///nothing");
    client.env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap(&plane));
    let began = tokio::time::Instant::now();
    let client = Running::start(client.env("GRPC_EXPERIMENTAL_XDS_DATA_ERROR_HANDLING", "true"))?;
    let counts = eventually("a call fails", async || {
        let counts = Counts::of(&client)?;
        ensure!(counts.failed > 0, "saw {counts:?}");
        Ok(counts)
    })
    .await?;
    let after = began.elapsed();
    ensure!(after.as_secs() < 10, "expected the failure before gRPC's own 15 s, saw {counts:?} after {after:?}");
    ensure!(counts.failures[0].contains("nothing"), "expected the target's name, saw {counts:?}");
    Ok(())
}
