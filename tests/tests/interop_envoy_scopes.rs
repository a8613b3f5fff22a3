//! The real Envoy takes the scopes of its routes (SRDS) from culvert-control: they come, change and go under load.

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

async fn on_envoy(api: &str) -> Result {
    let Some(envoy) = Peer::Envoy.find()? else { return Ok(()) };
    let site = Site::lay_out()?;
    let bootstrap = site.folder().join("envoy.yaml");
    std::fs::write(&bootstrap, std::fs::read_to_string(&bootstrap)?.replace("DELTA_GRPC", api))?;
    site.edit("envoy/gateway.yaml", |text| text.replace(BY_NAME, BY_SCOPE))?;
    site.edit("envoy/routes.yaml", |_| scopes(&[("a", "culvert.test", "blue")]))?;
    let _backends = (site.start_backend(1).await?, site.start_backend(2).await?);
    let mut control = site.start_control()?;
    site.ready(&mut control, Port::ControlAdmin).await?;
    let args = ["-c", "envoy.yaml", "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"];
    let envoy = Daemon::start("envoy", &envoy, &args, site.folder())?;
    let outcome = scopes_come_change_and_go(&site).await;
    outcome.with_context(|| format!("control:\n{}\nenvoy:\n{}", control.output(), envoy.output()))?;
    control.terminate(PATIENCE).await
}

#[tokio::test]
async fn scopes_come_change_and_go_under_load_and_nothing_fails_on_delta() -> Result {
    on_envoy("DELTA_GRPC").await
}

#[tokio::test]
async fn scopes_come_change_and_go_under_load_and_nothing_fails_on_state_of_the_world() -> Result {
    on_envoy("GRPC").await
}
