//! The real Envoy takes the scopes of its routes (SRDS) from culvert-control: they come, change and go under load. So do
//! virtual hosts and clusters that requests ask for (VHDS, on-demand CDS), filters, runtime keys and secrets (ECDS, RTDS, SDS).

use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use culvert_tests::Result;
use culvert_tests::client::{get, send};
use culvert_tests::load::Load;
use culvert_tests::peer::Peer;
use culvert_tests::process::Daemon;
use culvert_tests::site::{Port, Site};
use culvert_tests::wait::{PATIENCE, eventually};
use http::Request;
use http_body_util::Full;
use tokio::time::Instant;

/// In the place of the gateway's routes by name; the scope is that of the authority, `culvert.test` for the load's.
const BY_SCOPE: &str = "scoped_routes:
          name: scopes
          scope_key_builder: {fragments: [{header_value_extractor: {name: \":authority\", index: 0}}]}
          rds_config_source: {ads: {}, resource_api_version: V3}
          scoped_rds: {scoped_rds_config_source: {ads: {}, resource_api_version: V3}}
";

const BY_NAME: &str = "rds:
          route_config_name: gateway
          config_source: {ads: {}, resource_api_version: V3}
";

/// A scope: its name, its key, and what its routes lead to.
type Scope<'a> = (&'a str, &'a str, &'a str);

fn scopes(scopes: &[Scope<'_>]) -> String {
    let scope = |(name, key, routes): &Scope<'_>| {
        format!(
            "- {{\"@type\": type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration, name: {name}, \
             route_configuration_name: to-{routes}, key: {{fragments: [{{string_key: {key}}}]}}}}\n"
        )
    };
    let routes = |cluster: &str| {
        format!(
            "- {{\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: to-{cluster}, virtual_hosts: \
             [{{name: all, domains: [\"*\"], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}]}}\n"
        )
    };
    let all: String = scopes.iter().map(scope).collect();
    format!("selector: {{cluster: envoy}}\nresources:\n{all}{}{}", routes("blue"), routes("green"))
}

/// Waits until a request of this authority is answered so; "" is no routes.
async fn answers(site: &Site, authority: &str, backend: &str) -> Result {
    eventually(&format!("{authority} is answered by {backend:?}"), async || {
        let request = Request::get("/").header("host", authority).body(Full::<Bytes>::default())?;
        let answer = send(site.address(Port::EnvoyGateway), request).await?;
        let expected = if backend.is_empty() { 404 } else { 200 };
        let seen = (answer.status.as_u16(), answer.text().trim().to_owned());
        ensure!(seen == (expected, backend.to_owned()), "saw {seen:?}");
        Ok(())
    })
    .await
}

async fn scopes_come_change_and_go(site: &Site) -> Result {
    let own = "culvert.test";
    answers(site, own, "backend-1").await?;
    let load = Load::new(site.address(Port::EnvoyGateway), "/").start();
    for (what, now, expected) in [
        (
            "one comes",
            &[("a", own, "blue"), ("b", "other.test", "green")][..],
            [(own, "backend-1"), ("other.test", "backend-2")],
        ),
        (
            "one has other routes",
            &[("a", own, "blue"), ("b", "other.test", "blue")],
            [(own, "backend-1"), ("other.test", "backend-1")],
        ),
        (
            "one has another key",
            &[("a", own, "blue"), ("b", "third.test", "green")],
            [("other.test", ""), ("third.test", "backend-2")],
        ),
        (
            "the one under load has other routes",
            &[("a", own, "green"), ("b", "third.test", "blue")],
            [(own, "backend-2"), ("third.test", "backend-1")],
        ),
        ("one goes", &[("a", own, "green")], [(own, "backend-2"), ("third.test", "")]),
        (
            "one comes and one goes",
            &[("a", own, "green"), ("c", "fourth.test", "blue")],
            [(own, "backend-2"), ("fourth.test", "backend-1")],
        ),
    ] {
        site.edit("envoy/routes.yaml", |_| scopes(now))?;
        for (authority, backend) in expected {
            answers(site, authority, backend).await.context(what)?;
        }
        let failed = load.counts().failures;
        ensure!(failed.is_empty(), "{what}: {failed:?}");
    }
    load.finish(100).await?;
    let stats = get(site.address(Port::EnvoyAdmin), "/stats?filter=scoped_rds.*update_rejected").await?.text();
    ensure!(stats.trim().ends_with(": 0"), "expected that nothing was refused, saw {stats}");
    Ok(())
}

/// With the control plane's directory and the bootstrap (which `edit` changes) as `prepare` leaves them.
async fn on_envoy(
    edit: impl FnOnce(String) -> String,
    prepare: impl FnOnce(&Site) -> Result,
    check: impl AsyncFnOnce(&Site) -> Result,
) -> Result {
    let Some(envoy) = Peer::Envoy.find()? else { return Ok(()) };
    let site = Site::lay_out()?;
    let bootstrap = site.folder().join("envoy.yaml");
    std::fs::write(&bootstrap, edit(std::fs::read_to_string(&bootstrap)?))?;
    prepare(&site)?;
    let _backends = (site.start_backend(1).await?, site.start_backend(2).await?);
    let mut control = site.start_control()?;
    site.ready(&mut control, Port::ControlAdmin).await?;
    let args = ["-c", "envoy.yaml", "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"];
    let envoy = Daemon::start("envoy", &envoy, &args, site.folder())?;
    let outcome = check(&site).await;
    outcome.with_context(|| format!("control:\n{}\nenvoy:\n{}", control.output(), envoy.output()))?;
    control.terminate(PATIENCE).await
}

async fn scopes_on_envoy(api: &str) -> Result {
    let prepare = |site: &Site| {
        site.edit("envoy/gateway.yaml", |text| text.replace(BY_NAME, BY_SCOPE))?;
        site.edit("envoy/routes.yaml", |_| scopes(&[("a", "culvert.test", "blue")]))
    };
    on_envoy(|text| text.replace("DELTA_GRPC", api), prepare, scopes_come_change_and_go).await
}

#[tokio::test]
async fn scopes_come_change_and_go_under_load_and_nothing_fails_on_delta() -> Result {
    scopes_on_envoy("DELTA_GRPC").await
}

#[tokio::test]
async fn scopes_come_change_and_go_under_load_and_nothing_fails_on_state_of_the_world() -> Result {
    scopes_on_envoy("GRPC").await
}

const ROUTER: &str = "        - name: envoy.filters.http.router\n";

/// The status of the answer to a request with a field, and its text.
async fn ask(site: &Site, (name, value): (&str, &str)) -> Result<(u16, String)> {
    let request = Request::get("/").header("host", "own.test").body(Full::<Bytes>::default())?;
    let (mut parts, body) = request.into_parts();
    parts.headers.insert(http::HeaderName::try_from(name)?, value.parse()?);
    let answer = send(site.address(Port::EnvoyGateway), Request::from_parts(parts, body)).await?;
    Ok((answer.status.as_u16(), answer.text().trim().to_owned()))
}

/// Routes of their own, and more by VHDS; without clusters but those that requests name.
const ASKED_FOR: &str = "selector: {cluster: envoy}
resources:
- \"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: gateway
  validate_clusters: false
  virtual_hosts:
  - {name: own, domains: [own.test], routes: [{match: {prefix: /}, route: {cluster_header: x-cluster}}]}
  vhds:
    config_source:
      api_config_source: {api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: control}}]}
      resource_api_version: V3
- \"@type\": type.googleapis.com/envoy.config.route.v3.VirtualHost
  name: gateway/more.test
  domains: [more.test]
  routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: more}}}]
";

/// What does not exist is said at once: the request that asked does not wait for a timeout.
#[tokio::test]
async fn virtual_hosts_and_clusters_that_requests_ask_for_come_or_are_said_not_to_exist() -> Result {
    let filter = format!(
        "        - name: envoy.filters.http.on_demand
          typed_config:
            \"@type\": type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.OnDemand
            odcds: {{source: {{ads: {{}}, resource_api_version: V3}}, timeout: 30s}}
{ROUTER}"
    );
    let prepare = |site: &Site| {
        site.edit("envoy/gateway.yaml", |text| text.replace(ROUTER, &filter))?;
        site.edit("envoy/routes.yaml", |_| ASKED_FOR.to_owned())
    };
    let without_clusters = |text: String| text.replace("  cds_config: {ads: {}, resource_api_version: V3}\n", "");
    on_envoy(without_clusters, prepare, async |site| {
        eventually("the listener serves", async || {
            let seen = ask(site, ("x-cluster", "blue")).await?;
            ensure!(seen == (200, "backend-1".to_owned()), "saw {seen:?}");
            Ok(())
        })
        .await?;
        for (field, expected) in [
            (("x-cluster", "green"), (200, "backend-2")),
            (("x-cluster", "nothing"), (503, "")),
            (("host", "more.test"), (200, "more")),
            (("host", "nowhere.test"), (404, "")),
        ] {
            let began = Instant::now();
            let seen = ask(site, field).await?;
            ensure!(seen == (expected.0, expected.1.to_owned()), "{field:?}: expected {expected:?}, saw {seen:?}");
            ensure!(began.elapsed() < Duration::from_secs(10), "{field:?} took {:?}", began.elapsed());
        }
        let host = ASKED_FOR.find("- \"@type\": type.googleapis.com/envoy.config.route.v3.VirtualHost");
        let without_host = ASKED_FOR.get(..host.unwrap_or_default()).unwrap_or_default();
        site.edit("envoy/routes.yaml", |_| without_host.to_owned())?;
        eventually("a virtual host that is taken away is gone", async || {
            let seen = ask(site, ("host", "more.test")).await?;
            ensure!(seen == (404, String::new()), "saw {seen:?}");
            Ok(())
        })
        .await
    })
    .await
}

/// A filter by its name; what it names answers every request itself.
const BY_ECDS: &str = "        - name: named
          config_discovery:
            config_source: {ads: {}, resource_api_version: V3}
            type_urls: [type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault]
";

/// What is asked for by name: a filter, runtime keys, and the secret of a listener.
fn named(site: &Site, status: u16) -> Result<String> {
    let pem = |name: &str| {
        let text = std::fs::read_to_string(site.folder().join("certs").join(name))?;
        Ok::<_, anyhow::Error>(serde_json::Value::from(text).to_string())
    };
    let (certificate, key) = (pem("edge.pem")?, pem("edge-key.pem")?);
    Ok(format!(
        "selector: {{cluster: envoy}}
resources:
- \"@type\": type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig
  name: named
  typed_config:
    \"@type\": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
    abort: {{http_status: {status}, percentage: {{numerator: 100}}}}
- {{\"@type\": type.googleapis.com/envoy.service.runtime.v3.Runtime, name: keys, layer: {{the.key: {status}}}}}
- \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
  name: edge
  tls_certificate: {{certificate_chain: {{inline_string: {certificate}}}, private_key: {{inline_string: {key}}}}}
- \"@type\": type.googleapis.com/envoy.config.listener.v3.Listener
  name: tls
  address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
  filter_chains:
  - filters:
    - name: tcp
      typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: blue}}
    transport_socket:
      name: tls
      typed_config:
        \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
        common_tls_context:
          tls_certificate_sds_secret_configs: [{{name: edge, sds_config: {{ads: {{}}, resource_api_version: V3}}}}]
"
    ))
}

async fn filters_keys_and_secrets_come_by_name(api: &str) -> Result {
    let edit = |text: String| {
        let layers = "layered_runtime: {layers: [{name: keys, rtds_layer: {name: keys, rtds_config: \
            {ads: {}, resource_api_version: V3}}}]}\nstatic_resources:";
        text.replace("DELTA_GRPC", api).replace("static_resources:", layers)
    };
    let prepare = |site: &Site| {
        site.edit("envoy/gateway.yaml", |text| text.replace(ROUTER, &format!("{BY_ECDS}{ROUTER}")))?;
        Ok(std::fs::write(site.folder().join("control/envoy/named.yaml"), named(site, 418)?)?)
    };
    on_envoy(edit, prepare, async |site| {
        let admin = site.address(Port::EnvoyAdmin);
        for status in [418, 421] {
            let resources = named(site, status)?;
            site.edit("envoy/named.yaml", |_| resources)?;
            eventually(&format!("all of {status} is in use"), async || {
                let seen = ask(site, ("x-any", "y")).await?;
                ensure!(seen.0 == status, "expected the filter's {status}, saw {seen:?}");
                let keys = get(admin, "/runtime").await?.text();
                ensure!(keys.contains(&format!("\"{status}\"")), "expected the key {status}, saw {keys}");
                let certificates = get(admin, "/certs").await?.text();
                ensure!(certificates.contains("spiffe://culvert.test/agent/site/edge-1"), "saw {certificates}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn filters_runtime_keys_and_secrets_come_by_name_on_delta() -> Result {
    filters_keys_and_secrets_come_by_name("DELTA_GRPC").await
}

#[tokio::test]
async fn filters_runtime_keys_and_secrets_come_by_name_in_state_of_the_world() -> Result {
    filters_keys_and_secrets_come_by_name("GRPC").await
}
