//! Scopes, and what a proxy asks for only when a request needs it: routes of scopes, virtual hosts, clusters.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, ensure};
use base64::Engine as _;
use bytes::Bytes;
use culvert_api::document::{self, Syntax};
use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use culvert_api::type_url::{CLUSTER, LISTENER, ROUTE_CONFIGURATION, VIRTUAL_HOST};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::client::{Answer, send};
use culvert_tests::peer::{Peer, Running};
use culvert_tests::plane::{Plane, Way, by_rds, envoy, listener};
use culvert_tests::process::repository;
use culvert_tests::wait::eventually;
use http::Request;
use http_body_util::Full;
use prost::Message;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::Instant;

const ON_DEMAND: &str = "extensions.filters.http.on_demand.v3.OnDemand";

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A request with one more field.
async fn ask(address: SocketAddr, (name, value): (&str, &str)) -> Result<Answer> {
    let host = if name == "host" { value.to_owned() } else { address.to_string() };
    let mut request = Request::get("/").header("host", host);
    if name != "host" {
        request = request.header(name, value);
    }
    send(address, request.body(Full::<Bytes>::default())?).await
}

async fn answers(plane: &Plane, address: SocketAddr, field: (&str, &str), expected: (u16, &str)) -> Result {
    eventually(&format!("{field:?} is answered {expected:?}"), async || {
        let answer = ask(address, field).await?;
        let seen = (answer.status.as_u16(), answer.text());
        ensure!((seen.0, &*seen.1) == expected, "saw {seen:?}");
        Ok(())
    })
    .await
    .with_context(|| plane.proxy_log())
}

fn manager(listener: &mut Value) -> &mut Value {
    &mut listener["filter_chains"][0]["filters"][0]["typed_config"]
}

/// A listener that logs status and flags.
fn logged(mut listener: Value, plane: &Plane) -> Value {
    let log = json!([{ "name": "file", "typed_config": {
        "@type": envoy("extensions.access_loggers.file.v3.FileAccessLog"), "path": plane.path("access.log"),
        "log_format": { "text_format_source": { "inline_string": "%RESPONSE_CODE% %RESPONSE_FLAGS%\n" } } } }]);
    manager(&mut listener)["access_log"] = log;
    listener
}

async fn logs(plane: &Plane, line: &str) -> Result {
    eventually(&format!("the access log says {line:?}"), async || {
        let log = std::fs::read_to_string(plane.path("access.log"))?;
        ensure!(log.lines().any(|seen| seen == line), "it says {log:?}");
        Ok(())
    })
    .await
}

/// A listener with the filter that asks for what requests need.
fn on_demand(mut listener: Value, odcds: Value) -> Value {
    let mut config = json!({ "@type": envoy(ON_DEMAND) });
    if !odcds.is_null() {
        config["odcds"] = odcds;
    }
    let filters = &mut manager(&mut listener)["http_filters"];
    if let Some(filters) = filters.as_array_mut() {
        filters.insert(0, json!({ "name": "envoy.filters.http.on_demand", "typed_config": config }));
    }
    listener
}

/// A listener whose scopes come by SRDS: the key is the value of `vip` in the field `x-scope`.
fn by_srds(name: &str, address: SocketAddr) -> Value {
    let mut scoped = listener(name, address, "", json!({}));
    let manager = manager(&mut scoped);
    if let Some(manager) = manager.as_object_mut() {
        manager.remove("route_config");
    }
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    let element = json!({ "key": "vip", "separator": "=" });
    manager["scoped_routes"] = json!({
        "name": "scopes",
        "scope_key_builder": { "fragments": [{ "header_value_extractor": {
            "name": "x-scope", "element_separator": ";", "element": element } }] },
        "rds_config_source": ads,
        "scoped_rds": { "scoped_rds_config_source": ads },
    });
    scoped
}

fn scope(name: &str, key: &str, more: Value) -> Value {
    let mut scope = json!({ "@type": envoy("config.route.v3.ScopedRouteConfiguration"), "name": name,
        "key": { "fragments": [{ "string_key": key }] } });
    if let (Some(scope), Value::Object(more)) = (scope.as_object_mut(), more) {
        scope.extend(more);
    }
    scope
}

fn host(name: &str, domain: &str, body: &str) -> Value {
    json!({ "name": name, "domains": [domain], "routes": [{ "match": { "prefix": "/" },
        "direct_response": { "status": 200, "body": { "inline_string": body } } }] })
}

fn routes(name: &str, hosts: &[Value]) -> Value {
    json!({ "@type": envoy("config.route.v3.RouteConfiguration"), "name": name, "virtual_hosts": hosts })
}

#[tokio::test]
async fn a_request_goes_by_the_routes_of_its_scope() -> Result {
    for sotw in [false, true] {
        let mut plane = Plane::start(&[]).await?;
        let address = free_address()?;
        let named =
            |name: &str, key: &str, routes: &str| scope(name, key, json!({ "route_configuration_name": routes }));
        let inline = |key: &str, body: &str| {
            let routes = json!({ "name": "within", "virtual_hosts": [host("all", "*", body)] });
            scope("inline", key, json!({ "route_configuration": routes }))
        };
        plane.put("listeners.json", &[logged(by_srds("in", address), &plane)])?;
        plane.put("scopes.json", &[named("a", "one", "r1"), named("b", "two", "r2"), inline("three", "three")])?;
        plane.put("routes.json", &[routes("r1", &[host("all", "*", "1")]), routes("r2", &[host("all", "*", "2")])])?;
        plane.start_proxy(Way { sotw, ..Way::default() }).await?;
        answers(&plane, address, ("x-scope", "vip=one"), (200, "1")).await?;
        // It did not serve before it had all of them.
        for (value, body) in [("a=b;vip=two;vip=one", "2"), ("vip=three", "three")] {
            let answer = ask(address, ("x-scope", value)).await?;
            ensure!(answer.text() == body, "{value}: saw {} {:?}", answer.status, answer.text());
        }
        for field in [("x-scope", "vip=four"), ("x-scope", "other=one"), ("x-other", "vip=one")] {
            let answer = ask(address, field).await?;
            ensure!((answer.status.as_u16(), &*answer.text()) == (404, ""), "{field:?}: {}", answer.status);
        }
        logs(&plane, "404 NR").await?;

        // Keys change places, a scope goes to other routes, one goes.
        plane.put("scopes.json", &[named("a", "two", "r1"), named("b", "one", "r2")])?;
        answers(&plane, address, ("x-scope", "vip=two"), (200, "1")).await?;
        answers(&plane, address, ("x-scope", "vip=one"), (200, "2")).await?;
        answers(&plane, address, ("x-scope", "vip=three"), (404, "")).await?;
        plane
            .put("routes.json", &[routes("r1", &[host("all", "*", "new")]), routes("r2", &[host("all", "*", "2")])])?;
        answers(&plane, address, ("x-scope", "vip=two"), (200, "new")).await?;

        plane.put("scopes.json", &[named("a", "two", "r1"), named("b", "two", "r2")])?;
        eventually("of two scopes with one key the second is refused", async || {
            let (state, words) = plane.status("ScopedRouteConfiguration", "b").await?;
            ensure!(state == "ERROR" && words.contains("key: is that of scope \"a\""), "{state} {words}");
            Ok(())
        })
        .await
        .with_context(|| plane.proxy_log())?;
        answers(&plane, address, ("x-scope", "vip=one"), (200, "2")).await.context("it stays as it was")?;
        plane.stop_proxy().await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_routes_of_a_scope_on_demand_are_asked_for_by_the_first_request() -> Result {
    let mut plane = Plane::start(&[]).await?;
    let (address, without) = (free_address()?, free_address()?);
    let lazy = |name: &str, key: &str, routes: &str| {
        scope(name, key, json!({ "route_configuration_name": routes, "on_demand": true }))
    };
    plane.put("listeners.json", &[on_demand(by_srds("in", address), Value::Null), by_srds("without", without)])?;
    plane.put("scopes.json", &[lazy("a", "one", "r1"), lazy("b", "two", "absent")])?;
    plane.put("routes.json", &[routes("r1", &[host("all", "*", "1")])])?;
    plane.start_proxy(Way::default()).await?;
    answers(&plane, without, ("x-scope", "vip=one"), (404, "")).await?;
    let (state, _) = plane.status("RouteConfiguration", "r1").await?;
    ensure!(state == "NOT_SENT", "nobody has asked for its routes: {state}");
    answers(&plane, address, ("x-scope", "vip=three"), (404, "")).await?;
    let answer = ask(address, ("x-scope", "vip=one")).await?;
    ensure!((answer.status.as_u16(), &*answer.text()) == (200, "1"), "{}\n{}", answer.status, plane.proxy_log());
    answers(&plane, without, ("x-scope", "vip=one"), (200, "1")).await.context("they are there for all by now")?;
    let began = Instant::now();
    let answer = ask(address, ("x-scope", "vip=two")).await?;
    ensure!(answer.status == 404, "routes that do not exist: {}", answer.status);
    ensure!(began.elapsed() < Duration::from_secs(5), "it was said that they do not: {:?}", began.elapsed());
    plane.stop_proxy().await
}

/// `ads: {}` as a source.
fn ads() -> Value {
    json!({ "ads": {}, "resource_api_version": "V3" })
}

/// Routes that have hosts of their own, and more by VHDS.
fn with_vhds(name: &str, hosts: &[Value]) -> Value {
    let mut routes = routes(name, hosts);
    routes["vhds"] = json!({ "config_source": ads() });
    routes
}

/// A virtual host as a resource, with further names.
fn virtual_host(host: Value, aliases: &[&str]) -> Value {
    let (name, mut body) = (host["name"].clone(), host);
    body["@type"] = json!(VIRTUAL_HOST);
    json!({ "@type": envoy("service.discovery.v3.Resource"), "name": name, "aliases": aliases, "resource": body })
}

#[tokio::test]
async fn virtual_hosts_come_by_vhds_and_one_that_does_not_exist_is_answered_at_once() -> Result {
    let mut plane = Plane::start(&[]).await?;
    let address = free_address()?;
    plane.put("listeners.json", &[logged(on_demand(by_rds("in", address, "r"), Value::Null), &plane)])?;
    plane.put("routes.json", &[with_vhds("r", &[host("own", "own.test", "own")])])?;
    plane.put("hosts.json", &[virtual_host(host("r/a", "a.test", "a"), &["r/also.test"])])?;
    plane.start_proxy(Way::default()).await?;
    answers(&plane, address, ("host", "own.test"), (200, "own")).await?;
    answers(&plane, address, ("host", "A.test"), (200, "a")).await?;
    for unknown in ["nowhere.test", "also.test", "nowhere.test"] {
        let began = Instant::now();
        let answer = ask(address, ("host", unknown)).await?;
        ensure!(answer.status == 404, "{unknown}: {}", answer.status);
        ensure!(began.elapsed() < Duration::from_secs(5), "{unknown}: {:?}", began.elapsed());
    }
    logs(&plane, "404 NR").await?;
    plane.put(
        "hosts.json",
        &[virtual_host(host("r/a", "a.test", "new"), &[]), virtual_host(host("r/b", "own.test", "other"), &[])],
    )?;
    answers(&plane, address, ("host", "a.test"), (200, "new")).await.context("the good one of a response applies")?;
    eventually("a domain that another one has is refused", async || {
        let (state, words) = plane.status("VirtualHost", "r/b").await?;
        ensure!(state == "ERROR" && words.contains("\"own.test\" stands in virtual host \"own\""), "{state} {words}");
        Ok(())
    })
    .await?;
    plane.put("hosts.json", &[virtual_host(host("r/n", "nowhere.test", "here"), &[])])?;
    answers(&plane, address, ("host", "nowhere.test"), (200, "here")).await?;
    answers(&plane, address, ("host", "a.test"), (404, "")).await.context("it was taken away")?;
    plane.stop_proxy().await
}

/// The line that has the plain server send a delta response.
fn delta(type_url: &str, nonce: &str, resources: &[(&str, &[&str], Value)]) -> Result<String> {
    let mut response =
        DeltaDiscoveryResponse { type_url: type_url.to_owned(), nonce: nonce.to_owned(), ..Default::default() };
    for (name, aliases, value) in resources {
        let tree = document::parse(value.to_string().as_bytes(), Syntax::Json, &document::Limits::default());
        let tree = tree.ok().and_then(|mut trees| trees.pop()).context("no JSON")?;
        let any = (!value.is_null()).then(|| document::load_any(&tree)).transpose();
        let resource = any.map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
        let aliases = aliases.iter().map(ToString::to_string).collect();
        let (name, version) = ((*name).to_owned(), nonce.to_owned());
        response.resources.push(Resource { name, version, aliases, resource, ..Resource::default() });
    }
    let bytes = base64::engine::general_purpose::STANDARD.encode(response.encode_to_vec());
    Ok(format!("{type_url} {bytes}"))
}

#[tokio::test]
async fn a_request_is_parked_until_its_virtual_host_has_come() -> Result {
    let Some(python) = Peer::Grpcio.find()? else { return Ok(()) };
    let script = repository().join("tests/peers/ads_server.py");
    let mut server = Running::start(Command::new(python).arg(script).arg("address"))?;
    let address = free_address()?;
    let mut plane = Plane::under(server.address().await?)?;
    plane.start_proxy(Way { no_cds: true, ..Way::default() }).await?;
    server.says("REQUEST", LISTENER).await?;
    let listener = on_demand(by_rds("in", address, "r"), Value::Null);
    server.tell(&delta(LISTENER, "n1", &[("in", &[], listener)])?).await?;
    server.says("ASKS", &format!("{ROUTE_CONFIGURATION} r")).await?;
    server.tell(&delta(ROUTE_CONFIGURATION, "n2", &[("r", &[], with_vhds("r", &[]))])?).await?;
    server.says("REQUEST", VIRTUAL_HOST).await?;
    server.tell(&delta(VIRTUAL_HOST, "n3", &[])?).await?;
    eventually("the listener serves", async || Ok(TcpStream::connect(address).await?)).await?;

    // Ten requests for one host are one question.
    let asked: Vec<_> =
        (0..10).map(|_| tokio::spawn(async move { ask(address, ("host", "late.test")).await })).collect();
    server.says("ASKS", &format!("{VIRTUAL_HOST} r/late.test")).await?;
    let mut late = host("r/late", "late.test", "late");
    late["@type"] = json!(VIRTUAL_HOST);
    server.tell(&delta(VIRTUAL_HOST, "n4", &[("r/late", &["r/late.test"], late)])?).await?;
    for answer in asked {
        let answer = answer.await??;
        ensure!((answer.status.as_u16(), &*answer.text()) == (200, "late"), "{}\n{}", answer.status, server.log());
    }
    let asks = server.log().matches(&format!("ASKS {VIRTUAL_HOST} r/late.test")).count();
    ensure!(asks == 1, "asked {asks} times:\n{}", server.log());

    // One that does not exist: its name, without a body.
    let asked = tokio::spawn(async move { ask(address, ("host", "none.test")).await });
    server.says("ASKS", &format!("{VIRTUAL_HOST} r/none.test")).await?;
    server.tell(&delta(VIRTUAL_HOST, "n5", &[("r/none.test", &["r/none.test"], Value::Null)])?).await?;
    let answer = asked.await??;
    ensure!(answer.status == 404, "{}", answer.status);
    plane.stop_proxy().await
}

/// A cluster of one host.
fn cluster(name: &str, backend: &Backend) -> Value {
    json!({ "@type": CLUSTER, "name": name, "type": "STATIC", "connect_timeout": "5s", "load_assignment": {
        "cluster_name": name, "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": { "socket_address": {
            "address": backend.address.ip().to_string(), "port_value": backend.address.port() } } } }] }] } })
}

#[tokio::test]
async fn clusters_are_asked_for_by_the_requests_that_go_to_them() -> Result {
    let mut plane = Plane::start(&[]).await?;
    let (address, backend) = (free_address()?, Backend::start("backend").await?);
    let odcds = json!({ "source": ads(), "timeout": "3s" });
    let mut listener = on_demand(listener("in", address, "", json!({})), odcds);
    let to = |matches: Value, action: Value| json!({ "match": matches, "route": action });
    let off = json!({ "envoy.filters.http.on_demand": {
        "@type": envoy("extensions.filters.http.on_demand.v3.PerRouteConfig") } });
    let mut plain = to(
        json!({ "prefix": "/", "headers": [{ "name": "x-off", "present_match": true }] }),
        json!({ "cluster": "off" }),
    );
    plain["typed_per_filter_config"] = off;
    manager(&mut listener)["route_config"] = json!({ "name": "r", "validate_clusters": false, "virtual_hosts": [{
        "name": "all", "domains": ["*"], "routes": [
            plain,
            to(json!({ "prefix": "/", "headers": [{ "name": "x-cluster", "present_match": true }] }),
                json!({ "cluster_header": "x-cluster" })),
            to(json!({ "prefix": "/" }), json!({ "cluster": "fixed" })),
        ] }] });
    plane.put("listeners.json", &[logged(listener, &plane)])?;
    plane.put("clusters.json", &[cluster("fixed", &backend), cluster("named", &backend), cluster("off", &backend)])?;
    plane.start_proxy(Way { no_cds: true, ..Way::default() }).await?;
    answers(&plane, address, ("x-cluster", "none"), (503, "")).await?;
    let (state, _) = plane.status("Cluster", "named").await?;
    ensure!(state == "NOT_SENT", "nobody has asked for it: {state}");
    for field in [("x-cluster", "named"), ("x-any", "y")] {
        let answer = ask(address, field).await?;
        ensure!(answer.text() == "backend\n", "{field:?}: {}\n{}", answer.status, plane.proxy_log());
    }
    for field in [("x-cluster", "other"), ("x-cluster", "other"), ("x-off", "y")] {
        let began = Instant::now();
        let answer = ask(address, field).await?;
        ensure!(answer.status == 503, "{field:?}: {}", answer.status);
        ensure!(began.elapsed() < Duration::from_secs(2), "{field:?}: {:?}", began.elapsed());
    }
    logs(&plane, "503 NC").await?;
    // What one may ask for comes as soon as there is such a thing, and goes with it.
    plane.put("clusters.json", &[cluster("other", &backend), cluster("fixed", &backend)])?;
    answers(&plane, address, ("x-cluster", "other"), (200, "backend\n")).await?;
    answers(&plane, address, ("x-cluster", "named"), (503, "")).await?;
    // A control plane that says nothing: the time of the filter.
    plane.kill_control().await?;
    let began = Instant::now();
    let answer = ask(address, ("x-cluster", "late")).await?;
    let took = began.elapsed();
    ensure!(answer.status == 503, "{}", answer.status);
    ensure!((Duration::from_secs(3)..Duration::from_secs(8)).contains(&took), "it waited {took:?}");
    plane.stop_proxy().await
}
