//! The main job: the site of configs/ under load while parts of it change, die and come back.

use std::time::Duration;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::client::get;
use culvert_tests::load::Load;
use culvert_tests::process::Daemon;
use culvert_tests::site::{Port, Running, Site};
use culvert_tests::wait::{PATIENCE, eventually, within};
use tokio::time::Instant;

/// Runs a scenario on a site; a failure comes with the logs of all daemons.
async fn on_site(scenario: impl AsyncFnOnce(&mut Running) -> Result) -> Result {
    let mut running = Running::start().await?;
    match scenario(&mut running).await {
        Ok(()) => running.stop().await,
        Err(error) => Err(error.context(running.logs())),
    }
}

async fn load_reaches(load: &culvert_tests::load::Running, backend: &str, more: u64) -> Result {
    let before = load.by(backend);
    eventually(&format!("{more} more answers from {backend}"), async || {
        ensure!(load.by(backend) >= before + more, "saw {:?}", load.counts());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_route_pushed_under_load_moves_traffic_without_a_failed_request() -> Result {
    on_site(async |running| {
        let load = Load::new(running.site.address(Port::Gateway), "/").start();
        load_reaches(&load, "backend-1", 50).await?;
        for backend in ["backend-2", "backend-1", "backend-2"] {
            running.site.route_to(backend)?;
            load_reaches(&load, backend, 50).await?;
        }
        load.finish(200).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_refused_directory_changes_nothing_and_is_visible() -> Result {
    on_site(async |running| {
        let routes = running.site.folder().join("control/edge/routes.yaml");
        let good = std::fs::read_to_string(&routes)?;
        std::fs::write(&routes, good.replace("domains: [\"*\"]", "domanis: [\"*\"]"))?;
        let admin = running.site.address(Port::ControlAdmin);
        eventually("the refusal is visible in /config", async || {
            let text = get(admin, "/config").await?.text();
            ensure!(text.contains("domanis") && text.contains("routes.yaml"), "saw {text}");
            Ok(())
        })
        .await?;
        running.site.answered_by(Port::Gateway, "backend-1").await?;
        std::fs::write(&routes, good.replace("backend-1", "backend-2"))?;
        running.site.answered_by(Port::Gateway, "backend-2").await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn losing_the_control_plane_fails_no_request_and_its_return_is_used() -> Result {
    on_site(async |running| {
        let load = Load::new(running.site.address(Port::Gateway), "/").start();
        load_reaches(&load, "backend-1", 50).await?;
        running.control.kill().await?;
        load_reaches(&load, "backend-1", 200).await?;
        running.control = running.site.start_control()?;
        running.site.ready(&mut running.control, Port::ControlAdmin).await?;
        running.site.route_to("backend-2")?;
        load_reaches(&load, "backend-2", 50).await?;
        load.finish(300).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_cold_start_without_control_plane_serves_the_last_accepted_configuration() -> Result {
    on_site(async |running| {
        running.control.kill().await?;
        running.edge.terminate(PATIENCE).await?;
        running.cloud.terminate(PATIENCE).await?;
        running.cloud = running.site.start_proxy("cloud")?;
        running.edge = running.site.start_proxy("edge")?;
        running.site.answered_by(Port::Gateway, "backend-1").await?;
        running.control = running.site.start_control()?;
        running.site.route_to("backend-2")?;
        running.site.answered_by(Port::Gateway, "backend-2").await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_killed_edge_is_noticed_at_once_and_serves_again_after_its_restart() -> Result {
    on_site(async |running| {
        let gateway = running.site.address(Port::Gateway);
        let load = Load::new(gateway, "/").start();
        load_reaches(&load, "backend-1", 50).await?;
        running.edge.kill().await?;
        eventually("requests are answered with 503 while the edge is away", async || {
            let answer = get(gateway, "/").await?;
            ensure!(answer.status == 503, "saw {}", answer.status);
            Ok(())
        })
        .await?;
        running.edge = running.site.start_proxy("edge")?;
        load_reaches(&load, "backend-1", 50).await?;
        load.stop().await;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_killed_cloud_is_dialled_again_when_it_is_back() -> Result {
    on_site(async |running| {
        let load = Load::new(running.site.address(Port::Gateway), "/").start();
        load_reaches(&load, "backend-1", 50).await?;
        running.cloud.kill().await?;
        running.cloud = running.site.start_proxy("cloud")?;
        load_reaches(&load, "backend-1", 50).await?;
        load.stop().await;
        Ok(())
    })
    .await
}

/// Starts slow requests, gives the daemon SIGTERM while they are in flight, and expects every one to be answered and
/// the daemon to exit with 0.
async fn in_flight_survive(name: &str) -> Result {
    on_site(async |running| {
        let gateway = running.site.address(Port::Gateway);
        // A plain tunnel connection serves one request at a time, and configs/ gives the edge four of them.
        let seen = running.backends[0].requests();
        let requests: Vec<_> = (0..4).map(|_| tokio::spawn(get(gateway, "/delay/1500"))).collect();
        eventually("all requests are in flight", async || {
            let more = running.backends[0].requests() - seen;
            ensure!(more >= 4, "saw {more}");
            Ok(())
        })
        .await?;
        let daemon: &mut Daemon = if name == "edge" { &mut running.edge } else { &mut running.cloud };
        daemon.terminate(PATIENCE).await?;
        for request in requests {
            let answer = request.await?.context("a request in flight was lost")?;
            ensure!(answer.status == 200, "expected 200, saw {} {}", answer.status, answer.text());
        }
        *daemon = running.site.start_proxy(name)?;
        running.site.answered_by(Port::Gateway, "backend-1").await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn sigterm_of_the_edge_loses_no_request_in_flight() -> Result {
    in_flight_survive("edge").await
}

#[tokio::test]
async fn sigterm_of_the_cloud_loses_no_request_in_flight() -> Result {
    in_flight_survive("cloud").await
}

/// A static listener and cluster, to be put where `clusters:` of cloud.yaml begins.
fn fallback(gateway: u16, backend: u16) -> String {
    format!(
        r#"  listeners:
  - name: fallback
    address: {{socket_address: {{address: 127.0.0.1, port_value: {gateway}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: fallback
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{match: {{prefix: /}}, route: {{cluster: fallback}}}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: fallback
    type: STATIC
    load_assignment:
      cluster_name: fallback
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {backend}}}}}}}}}]}}]
"#
    )
}

#[tokio::test]
async fn without_a_control_plane_at_start_the_static_resources_serve_at_once() -> Result {
    let site = Site::lay_out()?;
    let backend = site.start_backend(1).await?;
    let path = site.folder().join("cloud.yaml");
    let with_fallback = fallback(site.address(Port::Gateway).port(), backend.address.port());
    std::fs::write(&path, std::fs::read_to_string(&path)?.replace("  clusters:\n", &with_fallback))?;
    let began = Instant::now();
    let mut cloud = site.start_proxy("cloud")?;
    site.answered_by(Port::Gateway, "backend-1").await.with_context(|| cloud.output())?;
    site.ready(&mut cloud, Port::CloudAdmin).await?;
    let after = began.elapsed();
    ensure!(after < INITIAL_FETCH, "what can serve is not held back: expected /ready sooner, saw it after {after:?}");
    cloud.terminate(PATIENCE).await
}

/// For so long a control plane is waited for by who has nothing to serve.
const INITIAL_FETCH: Duration = Duration::from_secs(15);

#[tokio::test]
async fn without_a_control_plane_and_without_a_listener_the_proxy_says_what_it_waits_for_until_it_waited_long_enough()
-> Result {
    let site = Site::lay_out()?;
    let began = Instant::now();
    let mut cloud = site.start_proxy("cloud")?;
    eventually("it is not ready", async || {
        let answer = get(site.address(Port::CloudAdmin), "/ready").await?;
        let text = answer.text();
        ensure!(answer.status == 503 && text.contains("waits for dynamic configuration"), "{} {text}", answer.status);
        Ok(())
    })
    .await
    .with_context(|| cloud.output())?;
    within(2 * INITIAL_FETCH, "it is ready", async || {
        let answer = get(site.address(Port::CloudAdmin), "/ready").await?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        Ok(())
    })
    .await?;
    let after = began.elapsed();
    ensure!(
        after >= INITIAL_FETCH,
        "nothing could serve: expected /ready after {INITIAL_FETCH:?}, saw it after {after:?}"
    );
    cloud.terminate(PATIENCE).await
}
