//! The real Envoy as a client of culvert-control: it gets clusters, endpoints, listeners and routes, carries traffic,
//! and follows changes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::client::get;
use culvert_tests::load::Load;
use culvert_tests::peer::Peer;
use culvert_tests::process::Daemon;
use culvert_tests::site::{Port, Site};
use culvert_tests::wait::{PATIENCE, eventually};
use tokio::time::Instant;

fn start_envoy(site: &Site, envoy: &Path) -> Result<Daemon> {
    let args = ["-c", "envoy.yaml", "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"];
    Daemon::start("envoy", envoy, &args, site.folder())
}

/// Traffic flows; a route change moves it, an endpoint change moves it back; no request fails; nothing is NACKed.
async fn follows(site: &Site, name: &str) -> Result {
    site.answered_by(Port::EnvoyGateway, "backend-1").await?;
    let load = Load::new(site.address(Port::EnvoyGateway), "/").start();
    site.edit("envoy/routes.yaml", |text| text.replace("cluster: blue", "cluster: green"))?;
    site.answered_by(Port::EnvoyGateway, "backend-2").await?;
    let (one, two) = (site.address(Port::Backend1).port(), site.address(Port::Backend2).port());
    site.edit("envoy/endpoints.yaml", |text| text.replace(&two.to_string(), &one.to_string()))?;
    site.answered_by(Port::EnvoyGateway, "backend-1").await?;
    load.finish(20).await?;
    let nodes = get(site.address(Port::ControlAdmin), "/nodes").await?.text();
    ensure!(nodes.contains(name), "expected node {name} in /nodes, saw {nodes}");
    Ok(())
}

async fn on_envoy(edit: impl FnOnce(String) -> String, check: impl AsyncFnOnce(&Site) -> Result) -> Result {
    let Some(envoy) = Peer::Envoy.find()? else { return Ok(()) };
    let site = Site::lay_out()?;
    let bootstrap = site.folder().join("envoy.yaml");
    std::fs::write(&bootstrap, edit(std::fs::read_to_string(&bootstrap)?))?;
    let _backends = (site.start_backend(1).await?, site.start_backend(2).await?);
    let mut control = site.start_control()?;
    site.ready(&mut control, Port::ControlAdmin).await?;
    let envoy = start_envoy(&site, &envoy)?;
    check(&site).await.with_context(|| format!("control:\n{}\nenvoy:\n{}", control.output(), envoy.output()))?;
    control.terminate(PATIENCE).await
}

#[tokio::test]
async fn ads_delta() -> Result {
    on_envoy(|text| text, async |site| follows(site, "envoy-1").await).await
}

#[tokio::test]
async fn ads_state_of_the_world() -> Result {
    on_envoy(|text| text.replace("DELTA_GRPC", "GRPC"), async |site| follows(site, "envoy-1").await).await
}

/// What a file of the control plane's directory looks like in which the routes lead to a cluster that exists nowhere else.
fn only_cluster(number: usize, backend: u16) -> (String, String) {
    let cluster = format!("swapped-{number}");
    let resources = format!(
        "selector: {{cluster: envoy}}
resources:
- \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: {cluster}
  type: EDS
  connect_timeout: 2s
  eds_cluster_config: {{eds_config: {{ads: {{}}, resource_api_version: V3}}}}
- \"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: {cluster}
  endpoints:
  - lb_endpoints:
    - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {backend}}}}}}}
- \"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: gateway
  virtual_hosts:
  - {{name: all, domains: [\"*\"], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}
"
    );
    (cluster, resources)
}

async fn swaps(site: &Site) -> Result {
    swaps_with(site, 6, |resources| resources).await
}

/// So many times, under load, the routes move to a cluster that is new and the one before is gone: no request fails.
async fn swaps_with(site: &Site, count: usize, edit: impl Fn(String) -> String) -> Result {
    site.answered_by(Port::EnvoyGateway, "backend-1").await?;
    let load = Load::new(site.address(Port::EnvoyGateway), "/").start();
    let admin = site.address(Port::EnvoyAdmin);
    for number in 1..=count {
        let backend = if number % 2 == 0 { Port::Backend1 } else { Port::Backend2 };
        let (cluster, resources) = only_cluster(number, site.address(backend).port());
        site.edit("envoy/routes.yaml", |_| edit(resources))?;
        let answers = if number % 2 == 0 { "backend-1" } else { "backend-2" };
        site.answered_by(Port::EnvoyGateway, answers).await?;
        eventually("the cluster before is gone", async || {
            let clusters = get(admin, "/clusters").await?.text();
            let before = format!("swapped-{}::", number - 1);
            ensure!(clusters.contains(&format!("{cluster}::")), "expected {cluster}, saw {clusters}");
            ensure!(!clusters.contains(&before), "expected {before} to be gone, saw {clusters}");
            Ok(())
        })
        .await?;
    }
    load.finish(100).await?;
    Ok(())
}

#[tokio::test]
async fn six_swaps_of_cluster_and_routes_under_load_fail_nothing_on_ads_delta() -> Result {
    on_envoy(|text| text, swaps).await
}

#[tokio::test]
async fn six_swaps_of_cluster_and_routes_under_load_fail_nothing_on_ads_state_of_the_world() -> Result {
    on_envoy(|text| text.replace("DELTA_GRPC", "GRPC"), swaps).await
}

/// Envoy without ADS: a stream for clusters, one for listeners, and one for every assignment and route configuration.
async fn swaps_on_streams_of_their_own(api: &str) -> Result {
    let services = "{envoy_grpc: {cluster_name: control}}";
    let source = format!(
        "{{api_config_source: {{api_type: {api}, transport_api_version: V3, grpc_services: [{services}]}}, resource_api_version: V3}}"
    );
    let ads = "{ads: {}, resource_api_version: V3}";
    let edit = |text: String| text.replace(ads, &source);
    on_envoy(edit, async |site| {
        site.edit("envoy/gateway.yaml", |text| text.replace(ads, &source))?;
        swaps_with(site, 6, |resources| resources.replace(ads, &source)).await
    })
    .await
}

#[tokio::test]
async fn six_swaps_of_cluster_and_routes_under_load_fail_nothing_on_delta_streams_per_type() -> Result {
    swaps_on_streams_of_their_own("DELTA_GRPC").await
}

#[tokio::test]
async fn six_swaps_of_cluster_and_routes_under_load_fail_nothing_on_streams_per_type() -> Result {
    swaps_on_streams_of_their_own("GRPC").await
}

/// Envoy that polls, on the admin address: its polls say what it has accepted, and each step of a change takes its time.
#[tokio::test]
async fn swaps_of_cluster_and_routes_under_load_fail_nothing_at_an_envoy_that_polls() -> Result {
    let Some(envoy) = Peer::Envoy.find()? else { return Ok(()) };
    let site = Site::lay_out()?;
    let (ads, admin) = ("{ads: {}, resource_api_version: V3}", site.address(Port::ControlAdmin).port());
    let source = "{api_config_source: {api_type: REST, transport_api_version: V3, cluster_names: [control], \
        refresh_delay: 0.2s, request_timeout: 3s}, resource_api_version: V3}";
    let bootstrap = std::fs::read_to_string(site.folder().join("envoy.yaml"))?;
    let (head, rest) = bootstrap.split_once("  ads_config:").context("no ads_config")?;
    let (_, rest) = rest.split_once("first_message_only: true\n").context("no end of ads_config")?;
    let http2 = "explicit_http_config: {http2_protocol_options: {}}";
    let rest = rest.replace(http2, "explicit_http_config: {http_protocol_options: {}}").replace(ads, source);
    let rest = rest.replace(&site.address(Port::Control).port().to_string(), &admin.to_string());
    std::fs::write(site.folder().join("envoy.yaml"), format!("{head}{rest}"))?;
    site.edit("envoy/gateway.yaml", |text| text.replace(ads, source))?;
    let _backends = (site.start_backend(1).await?, site.start_backend(2).await?);
    let mut control = site.start_control_with(&["--rest-refresh", "2"])?;
    site.ready(&mut control, Port::ControlAdmin).await?;
    let envoy = start_envoy(&site, &envoy)?;
    let outcome = swaps_with(&site, 2, |resources| resources.replace(ads, source)).await;
    outcome.with_context(|| format!("control:\n{}\nenvoy:\n{}", control.output(), envoy.output()))?;
    control.terminate(PATIENCE).await
}

#[tokio::test]
async fn what_envoy_refuses_is_visible_and_is_not_sent_again() -> Result {
    on_envoy(
        |text| text.replace("DELTA_GRPC", "GRPC"),
        async |site| {
            site.answered_by(Port::EnvoyGateway, "backend-1").await?;
            // Valid by the API's rules, but this Envoy knows no such DNS resolver.
            site.edit("envoy/gateway.yaml", |text| {
                text.replace(
                    "name: green\n  type: EDS\n",
                    "name: green\n  type: EDS\n  transport_socket: {name: nope, typed_config: {\"@type\": type.googleapis.com/no.such.Socket, value: \"\"}}\n",
                )
            })?;
            let admin = site.address(Port::ControlAdmin);
            eventually("the NACK's text is in /nodes", async || {
                let text = get(admin, "/nodes").await?.text();
                ensure!(text.contains("no.such.Socket"), "saw {text}");
                Ok(())
            })
            .await?;
            // A later, unrelated change arrives; meanwhile the refused content was not repeated.
            site.edit("envoy/routes.yaml", |text| text.replace("cluster: blue", "cluster: green"))?;
            site.answered_by(Port::EnvoyGateway, "backend-2").await?;
            let filter = "/stats?filter=cluster_manager.cds.update_rejected";
            let rejected = get(site.address(Port::EnvoyAdmin), filter).await?.text();
            ensure!(rejected.trim().ends_with(": 1"), "expected one refused update, saw {rejected}");
            Ok(())
        },
    )
    .await
}

/// On delta it is said again without a body; Envoy takes what it does not hear of any more for gone.
#[tokio::test]
async fn a_cluster_with_a_ttl_lives_as_long_as_its_control_plane() -> Result {
    let Some(envoy) = Peer::Envoy.find()? else { return Ok(()) };
    let site = Site::lay_out()?;
    let _backends = (site.start_backend(1).await?, site.start_backend(2).await?);
    let mut control = site.start_control()?;
    site.ready(&mut control, Port::ControlAdmin).await?;
    let envoy = start_envoy(&site, &envoy)?;
    site.answered_by(Port::EnvoyGateway, "backend-1").await?;
    let brief = "resources:\n- \"@type\": type.googleapis.com/envoy.service.discovery.v3.Resource\n  name: brief\n  ttl: 3s\n  \
        resource: {\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: brief, type: STATIC}\n";
    site.edit("envoy/routes.yaml", |text| text.replacen("resources:\n", brief, 1))?;
    let (admin, control_admin) = (site.address(Port::EnvoyAdmin), site.address(Port::ControlAdmin));
    let has = async |wanted: bool| {
        let clusters = get(admin, "/clusters").await?.text();
        ensure!(clusters.contains("brief::") == wanted, "expected brief: {wanted}, saw {clusters}");
        Ok(())
    };
    let sent = async || {
        let text = get(control_admin, "/metrics").await?.text();
        let value = text.lines().find_map(|line| line.strip_prefix("culvert_control_responses_total "));
        value.context("no such metric")?.trim().parse::<u64>().context("no number")
    };
    eventually("the cluster is there", async || has(true).await).await?;
    let before = sent().await?;
    eventually("it is said again, for twice its TTL", async || {
        ensure!(sent().await? >= before + 6, "{before} and now {}", sent().await?);
        Ok(())
    })
    .await
    .with_context(|| control.output())?;
    has(true).await.with_context(|| envoy.output())?;
    control.kill().await?;
    eventually("its TTL is over", async || has(false).await).await.with_context(|| envoy.output())?;
    site.answered_by(Port::EnvoyGateway, "backend-1").await?;
    Ok(())
}

/// A cluster that changes is another one to Envoy, which takes its place once it has its assignment: in state of the world
/// the names that it asks for are the same as before.
#[tokio::test]
async fn a_cluster_that_changes_has_its_endpoints_at_once() -> Result {
    for api in ["DELTA_GRPC", "GRPC"] {
        on_envoy(
            |text| text.replace("DELTA_GRPC", api),
            async |site| {
                site.answered_by(Port::EnvoyGateway, "backend-1").await?;
                let load = Load::new(site.address(Port::EnvoyGateway), "/").start();
                for seconds in 3..6 {
                    let began = Instant::now();
                    site.edit("envoy/gateway.yaml", |text| {
                        text.replace(
                            &format!("connect_timeout: {}s", seconds - 1),
                            &format!("connect_timeout: {seconds}s"),
                        )
                    })?;
                    eventually("the changed clusters are in use", async || {
                        let dump = get(site.address(Port::EnvoyAdmin), "/config_dump?resource=dynamic_active_clusters");
                        let dump = dump.await?.text();
                        ensure!(dump.matches(&format!("\"{seconds}s\"")).count() == 2, "{api}: saw {dump}");
                        Ok(())
                    })
                    .await?;
                    ensure!(began.elapsed() < Duration::from_secs(10), "{api}: it took {:?}", began.elapsed());
                }
                load.finish(20).await?;
                Ok(())
            },
        )
        .await?;
    }
    Ok(())
}

/// A file of the control plane's directory in which a locality's endpoints are a collection of their own.
fn collected(backends: &[u16]) -> String {
    let endpoints: String = (backends.iter().enumerate())
        .map(|(index, port)| {
            format!(
                "- \"@type\": type.googleapis.com/envoy.service.discovery.v3.Resource
  name: {COLLECTION}{index}
  resource:
    \"@type\": type.googleapis.com/envoy.config.endpoint.v3.LbEndpoint
    endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}
"
            )
        })
        .collect();
    format!(
        "selector: {{cluster: envoy}}
resources:
- \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: collected
  type: EDS
  connect_timeout: 2s
  eds_cluster_config: {{eds_config: {{ads: {{}}, resource_api_version: V3}}}}
- \"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: collected
  endpoints:
  - locality: {{zone: a}}
    leds_cluster_locality_config:
      leds_config: {{ads: {{}}, resource_api_version: V3}}
      leds_collection_name: \"{COLLECTION}*\"
- \"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: gateway
  virtual_hosts:
  - {{name: all, domains: [\"*\"], routes: [{{match: {{prefix: /}}, route: {{cluster: collected}}}}]}}
{endpoints}"
    )
}

const COLLECTION: &str = "xdstp://control/envoy.config.endpoint.v3.LbEndpoint/collected/";

/// LEDS: endpoints come and go one by one, and the assignment that names their collection stays as it is.
#[tokio::test]
async fn endpoints_of_a_collection_come_and_go_one_by_one_at_the_real_envoy() -> Result {
    on_envoy(
        |text| text,
        async |site| {
            site.answered_by(Port::EnvoyGateway, "backend-1").await?;
            let (one, two) = (site.address(Port::Backend1).port(), site.address(Port::Backend2).port());
            let hosts = async |expected: &[u16]| {
                eventually("Envoy has the endpoints of the collection", async || {
                    let clusters = get(site.address(Port::EnvoyAdmin), "/clusters").await?.text();
                    for port in [one, two] {
                        let has = clusters.contains(&format!("collected::127.0.0.1:{port}::"));
                        ensure!(has == expected.contains(&port), "{port}: expected {expected:?}, saw {clusters}");
                    }
                    Ok(())
                })
                .await
            };
            site.edit("envoy/routes.yaml", |_| collected(&[two]))?;
            hosts(&[two]).await?;
            site.answered_by(Port::EnvoyGateway, "backend-2").await?;
            site.edit("envoy/routes.yaml", |_| collected(&[two, one]))?;
            hosts(&[two, one]).await?;
            site.edit("envoy/routes.yaml", |_| collected(&[one]))?;
            hosts(&[one]).await?;
            site.answered_by(Port::EnvoyGateway, "backend-1").await?;
            Ok(())
        },
    )
    .await
}
