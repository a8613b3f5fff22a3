//! Foreign control planes over culvert-proxy: go-control-plane, and a plain server on grpcio without any xDS library.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use base64::Engine as _;
use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use culvert_api::type_url::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, ROUTE_CONFIGURATION, RUNTIME};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::client::get;
use culvert_tests::load::Load;
use culvert_tests::peer::{Peer, Running, find_program};
use culvert_tests::plane::{Plane, Way, assignment, by_rds, eds_cluster, envoy, listener, routes_to};
use culvert_tests::process::repository;
use culvert_tests::scripted::resource;
use culvert_tests::wait::{eventually, within};
use prost::Message;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

async fn answers(plane: &Plane, server: &Running, address: SocketAddr, body: &str) -> Result {
    eventually(&format!("{address} answers {body}"), async || {
        let answer = get(address, "/").await?;
        ensure!(answer.text() == body, "saw {} {:?}", answer.status, answer.text());
        Ok(())
    })
    .await
    .with_context(|| format!("{}\n{}", plane.proxy_log(), server.log()))
}

/// Without `@type`: the program knows what stands where.
fn bare(mut resource: Value) -> Value {
    if let Some(fields) = resource.as_object_mut() {
        fields.remove("@type");
    }
    resource
}

async fn go_program() -> Result<Option<(PathBuf, TempDir)>> {
    let Some(go) = find_program("go")? else { return Ok(None) };
    let folder = TempDir::with_prefix("culvert-")?;
    let program = folder.path().join("go-control-plane");
    let source = repository().join("tests/peers/go-control-plane");
    let mut build = Command::new(go);
    build.args(["build", "-mod=readonly", "-o"]).arg(&program).arg(".").current_dir(source);
    let built =
        tokio::time::timeout(Duration::from_secs(570), build.output()).await.context("go build takes too long")??;
    ensure!(built.status.success(), "go build: {}", String::from_utf8_lossy(&built.stderr));
    Ok(Some((program, folder)))
}

#[tokio::test]
async fn go_control_plane_swaps_clusters_under_load_and_hears_what_is_refused() -> Result {
    let Some((program, _folder)) = go_program().await? else { return Ok(()) };
    for sotw in [true, false] {
        let (one, two) = (Backend::start("one").await?, Backend::start("two").await?);
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut server = Running::start(Command::new(&program).args(["-address-file", "address"]))?;
        let snapshot = |version: u32, cluster: &str, backend: &Backend, more: &[Value]| {
            let clusters: Vec<Value> = more.iter().cloned().chain([eds_cluster(cluster)]).map(bare).collect();
            json!({ "version": version.to_string(), "resources": {
                "clusters": clusters,
                "endpoints": [bare(assignment(cluster, &[backend.address]))],
                "listeners": [bare(by_rds("in", address, "r"))],
                "routes": [bare(routes_to("r", cluster))],
            }})
            .to_string()
        };
        server.tell(&snapshot(1, "c1", &one, &[])).await?;
        let mut plane = Plane::under(server.address().await?)?;
        plane.start_proxy(Way { sotw, ..Way::default() }).await?;
        answers(&plane, &server, address, "one\n").await?;
        // It sends everything at once, clusters and routes in no order that would suit us.
        let load = Load::new(address, "/").start();
        for version in 2..=7 {
            let (cluster, backend) = if version % 2 == 0 { ("c2", &two) } else { ("c1", &one) };
            server.tell(&snapshot(version, cluster, backend, &[])).await?;
            answers(&plane, &server, address, if version % 2 == 0 { "two\n" } else { "one\n" }).await?;
            let before = load.counts().ok();
            eventually("requests go through between two swaps", async || {
                ensure!(load.counts().ok() >= before + 10, "{:?}", load.counts());
                Ok(())
            })
            .await?;
        }
        load.finish(50).await.with_context(|| format!("{}\n{}", plane.proxy_log(), server.log()))?;
        let bad = json!({ "name": "bad", "type": "STATIC", "connect_timeout": "1s", "lb_policy": "MAGLEV" });
        server.tell(&snapshot(8, "c2", &two, &[bad])).await?;
        server.says("NACK", "Cluster/bad: lb_policy").await?;
        answers(&plane, &server, address, "two\n").await.context("the good ones of a refused response apply")?;
        plane.stop_proxy().await?;
    }
    Ok(())
}

/// A filter whose configuration comes by its name: the connection manager of [`listener`], answering `body`.
fn filter(body: &str) -> Value {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
    listener("x", nowhere, body, json!({}))["filter_chains"][0]["filters"][0]["typed_config"].clone()
}

#[tokio::test]
async fn go_control_plane_configures_filters_by_name() -> Result {
    let Some((program, _folder)) = go_program().await? else { return Ok(()) };
    for sotw in [true, false] {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut server = Running::start(Command::new(&program).args(["-address-file", "address"]))?;
        let snapshot = |version: u32, filters: &[(&str, Value)]| {
            let source = json!({ "config_source": { "ads": {}, "resource_api_version": "V3" },
                "type_urls": [filter("")["@type"]] });
            let chain = json!({ "filters": [{ "name": "http", "config_discovery": source }] });
            let named = |(name, config): &(&str, Value)| json!({ "name": name, "typed_config": config });
            json!({ "version": version.to_string(), "resources": {
                "listeners": [bare(listener("in", address, "", chain))],
                "extensions": filters.iter().map(named).collect::<Vec<_>>(),
            }})
            .to_string()
        };
        server.tell(&snapshot(1, &[])).await?;
        let mut plane = Plane::under(server.address().await?)?;
        plane.start_proxy(Way { sotw, ..Way::default() }).await?;
        eventually("the listener warms, and what it lacks is named", async || {
            let waits = plane.page("/init_dump").await?.to_string();
            ensure!(waits.contains("Listener in") && waits.contains("TypedExtensionConfig http"), "{waits}");
            Ok(())
        })
        .await
        .with_context(|| plane.proxy_log())?;
        server.tell(&snapshot(2, &[("http", filter("one"))])).await?;
        answers(&plane, &server, address, "one").await?;
        server.tell(&snapshot(3, &[("http", filter("two"))])).await?;
        answers(&plane, &server, address, "two").await?;
        let mut bad = filter("three");
        bad["codec_type"] = "HTTP3".into();
        server.tell(&snapshot(4, &[("http", bad)])).await?;
        server.says("NACK", "TypedExtensionConfig/http: typed_config.codec_type").await?;
        answers(&plane, &server, address, "two").await.context("the last good one keeps serving")?;
        plane.stop_proxy().await?;
    }
    Ok(())
}

#[tokio::test]
async fn go_control_plane_changes_runtime_keys() -> Result {
    let Some((program, _folder)) = go_program().await? else { return Ok(()) };
    for sotw in [true, false] {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut server = Running::start(Command::new(&program).args(["-address-file", "address"]))?;
        let answer = |body: &str| json!({ "status": 200, "body": { "inline_string": body } });
        let fraction = json!({ "default_value": { "numerator": 0 }, "runtime_key": "share" });
        let mut shared = listener("in", address, "", json!({}));
        shared["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]["virtual_hosts"][0]["routes"] = json!([
            { "match": { "prefix": "/", "runtime_fraction": fraction }, "direct_response": answer("canary") },
            { "match": { "prefix": "/" }, "direct_response": answer("stable") },
        ]);
        let shared = bare(shared);
        let snapshot = |version: u32, layer: Value| {
            json!({ "version": version.to_string(), "resources": {
                "listeners": [shared], "runtimes": [{ "name": "dynamic", "layer": layer }],
            }})
            .to_string()
        };
        server.tell(&snapshot(1, json!({ "share": 0 }))).await?;
        let mut plane = Plane::under(server.address().await?)?;
        let more = "layered_runtime: {layers: [{name: control, \
                    rtds_layer: {name: dynamic, rtds_config: {ads: {}, resource_api_version: V3}}}]}\n";
        plane.start_proxy(Way { sotw, more, ..Way::default() }).await?;
        answers(&plane, &server, address, "stable").await?;
        server.tell(&snapshot(2, json!({ "share": 100 }))).await?;
        answers(&plane, &server, address, "canary").await?;
        server.tell(&snapshot(3, json!({ "share": null }))).await?;
        server.says("NACK", "Runtime/dynamic: layer").await?;
        answers(&plane, &server, address, "canary").await.context("the last good values hold")?;
        plane.stop_proxy().await?;
    }
    Ok(())
}

#[tokio::test]
async fn go_control_plane_serves_scopes() -> Result {
    let Some((program, _folder)) = go_program().await? else { return Ok(()) };
    for sotw in [true, false] {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut server = Running::start(Command::new(&program).args(["-address-file", "address"]))?;
        let ads = json!({ "ads": {}, "resource_api_version": "V3" });
        let mut scoped = by_rds("in", address, "r");
        let manager = &mut scoped["filter_chains"][0]["filters"][0]["typed_config"];
        if let Some(manager) = manager.as_object_mut() {
            manager.remove("rds");
        }
        manager["scoped_routes"] = json!({ "name": "scopes", "rds_config_source": ads,
            "scope_key_builder": { "fragments": [{ "header_value_extractor": { "name": ":path", "index": 0 } }] },
            "scoped_rds": { "scoped_rds_config_source": ads } });
        let answer = |body: &str| {
            let mut routes = routes_to(body, "none");
            routes["virtual_hosts"][0]["routes"][0] = json!({ "match": { "prefix": "/" },
                "direct_response": { "status": 200, "body": { "inline_string": body } } });
            bare(routes)
        };
        let scope = |name: &str, key: &str, routes: &str| json!({ "name": name, "route_configuration_name": routes, "key": { "fragments": [{ "string_key": key }] } });
        // Its snapshots hold the routes that scopes name, and no others.
        let snapshot = |version: u32, scopes: &[Value]| {
            let routes: Vec<Value> =
                scopes.iter().filter_map(|scope| Some(answer(scope["route_configuration_name"].as_str()?))).collect();
            json!({ "version": version.to_string(), "resources": { "listeners": [bare(scoped.clone())],
                "scopes": scopes, "routes": routes }})
            .to_string()
        };
        server.tell(&snapshot(1, &[scope("a", "/", "one"), scope("b", "/b", "two")])).await?;
        let mut plane = Plane::under(server.address().await?)?;
        plane.start_proxy(Way { sotw, ..Way::default() }).await?;
        answers(&plane, &server, address, "one").await?;
        ensure!(get(address, "/b").await?.text() == "two", "the other scope: {}", plane.proxy_log());
        ensure!(get(address, "/c").await?.status == 404, "no scope");
        server.tell(&snapshot(2, &[scope("b", "/", "two")])).await?;
        answers(&plane, &server, address, "two").await?;
        ensure!(get(address, "/b").await?.status == 404, "what a scope was before");
        plane.stop_proxy().await?;
    }
    Ok(())
}

/// Virtual hosts (VHDS) and the clusters that requests need (ODCDS). What does not exist it leaves unanswered, so that a request
/// waits for as long as the filter says.
#[tokio::test]
async fn go_control_plane_serves_virtual_hosts_and_clusters_on_demand() -> Result {
    let Some((program, _folder)) = go_program().await? else { return Ok(()) };
    let backend = Backend::start("backend").await?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut server = Running::start(Command::new(&program).args(["-address-file", "address"]))?;
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    let mut listener = by_rds("in", address, "r");
    let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
    if let Some(filters) = manager["http_filters"].as_array_mut() {
        let odcds = json!({ "source": ads, "timeout": "1s" });
        let config = json!({ "@type": envoy("extensions.filters.http.on_demand.v3.OnDemand"), "odcds": odcds });
        filters.insert(0, json!({ "name": "envoy.filters.http.on_demand", "typed_config": config }));
    }
    let cluster = json!({ "name": "c", "type": "STATIC", "connect_timeout": "5s", "load_assignment": { "cluster_name": "c",
        "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": { "socket_address": {
            "address": "127.0.0.1", "port_value": backend.address.port() } } } }] }] } });
    let host = |name: &str, cluster: &str| {
        json!({ "name": format!("r/{name}"), "domains": [name], "routes": [
            { "match": { "prefix": "/" }, "route": { "cluster": cluster } }] })
    };
    let snapshot = |version: u32, hosts: &[Value]| {
        json!({ "version": version.to_string(), "resources": { "listeners": [bare(listener.clone())], "clusters": [cluster],
            "routes": [{ "name": "r", "vhds": { "config_source": ads } }], "hosts": hosts } })
        .to_string()
    };
    let ask = async |host: &str| -> Result<(u16, String)> {
        let request = http::Request::get("/").header("host", host).body(http_body_util::Full::default())?;
        let answer = culvert_tests::client::send(address, request).await?;
        Ok((answer.status.as_u16(), answer.text()))
    };
    server.tell(&snapshot(1, &[host("a.test", "c"), host("lost.test", "nowhere")])).await?;
    let mut plane = Plane::under(server.address().await?)?;
    plane.start_proxy(Way { no_cds: true, ..Way::default() }).await?;
    let is_answered = async |host: &str, expected: u16| {
        eventually("the host answers", async || {
            let seen = ask(host).await?;
            ensure!(seen.0 == expected, "{host}: expected {expected}, saw {seen:?}");
            Ok(())
        })
        .await
        .with_context(|| plane.proxy_log())
    };
    is_answered("a.test", 200).await?;
    ensure!(ask("a.test").await?.1 == "backend\n", "by the cluster that came on demand");
    is_answered("lost.test", 503).await.context("a cluster that does not exist")?;
    server.tell(&snapshot(2, &[host("b.test", "c")])).await?;
    is_answered("b.test", 200).await.context("a new one")?;
    plane.stop_proxy().await
}

/// The line that has the plain server send a delta response.
fn delta(type_url: &str, nonce: &str, resources: &[(&str, Value, Option<i64>)], removed: &[&str]) -> Result<String> {
    let mut response = DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryResponse::default()
    };
    for (name, value, ttl) in resources {
        let ttl = ttl.map(|seconds| prost_types::Duration { seconds, nanos: 0 });
        response.resources.push(Resource { ttl, ..resource(name, nonce, value)? });
    }
    let bytes = base64::engine::general_purpose::STANDARD.encode(response.encode_to_vec());
    Ok(format!("{type_url} {bytes}"))
}

/// A cluster that gets a TTL serves until that is over, and no longer.
async fn lives_as_long_as_its_ttl(plane: &Plane, server: &mut Running, backend: &Backend) -> Result {
    let brief_at = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let brief = json!({ "@type": envoy("config.cluster.v3.Cluster"), "name": "brief", "type": "STATIC",
        "connect_timeout": "5s", "load_assignment": bare(assignment("brief", &[backend.address])) });
    let mut to_brief = listener("brief", brief_at, "", json!({}));
    let manager = &mut to_brief["filter_chains"][0]["filters"][0]["typed_config"];
    manager["route_config"]["virtual_hosts"][0]["routes"] =
        json!([{ "match": { "prefix": "/" }, "route": { "cluster": "brief" } }]);
    server.tell(&delta(CLUSTER, "n8", &[("brief", brief.clone(), None)], &[])?).await?;
    server.tell(&delta(LISTENER, "n8l", &[("brief", to_brief, None)], &[])?).await?;
    answers(plane, server, brief_at, "backend\n").await?;
    server.tell(&delta(CLUSTER, "n9", &[("brief", brief, Some(1))], &[])?).await?;
    server.says("REQUEST", &format!("{CLUSTER} n9")).await?;
    eventually("its TTL is over", async || {
        let answer = get(brief_at, "/").await?;
        ensure!(answer.status == 503, "saw {} {:?}", answer.status, answer.text());
        let dump = plane.page("/config_dump?resource=dynamic_active_clusters").await?.to_string();
        ensure!(!dump.contains("\"brief\""), "it is still shown: {dump}");
        Ok(())
    })
    .await
    .with_context(|| plane.proxy_log())
}

#[tokio::test]
async fn a_plain_python_server_is_enough_and_what_it_takes_away_is_not_believed_at_once() -> Result {
    let Some(python) = Peer::Grpcio.find()? else { return Ok(()) };
    let script = repository().join("tests/peers/ads_server.py");
    let mut server = Running::start(Command::new(python).arg(script).arg("address"))?;
    let backend = Backend::start("backend").await?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut plane = Plane::under(server.address().await?)?;
    plane.start_proxy(Way { flags: &["--deletion-guard-s", "3"], ..Way::default() }).await?;
    server.says("REQUEST", CLUSTER).await?;
    server.tell(&delta(CLUSTER, "n1", &[("c", eds_cluster("c"), None)], &[])?).await?;
    server.says("REQUEST", CLUSTER_LOAD_ASSIGNMENT).await?;
    server.says("REQUEST", &format!("{CLUSTER} n1")).await?;
    let hosts = assignment("c", &[backend.address]);
    server.tell(&delta(CLUSTER_LOAD_ASSIGNMENT, "n2", &[("c-hosts", hosts, None)], &[])?).await?;
    server.tell(&delta(LISTENER, "n3", &[("in", by_rds("in", address, "r"), None)], &[])?).await?;
    server.says("REQUEST", ROUTE_CONFIGURATION).await?;
    server.tell(&delta(ROUTE_CONFIGURATION, "n4", &[("r", routes_to("r", "c"), None)], &[])?).await?;
    answers(&plane, &server, address, "backend\n").await?;

    // Nobody asked for it, or nobody knows it: ignored and refused once, and the stream goes on.
    for (of, nonce) in [(RUNTIME, "n5"), ("type.googleapis.com/nobody.knows.Me", "n5u")] {
        server.tell(&delta(of, nonce, &[], &["x"])?).await?;
        server.says(&format!("REQUEST {of} {nonce}"), "was never asked for on this stream").await?;
    }
    // An assignment that is removed keeps its hosts.
    server.tell(&delta(CLUSTER_LOAD_ASSIGNMENT, "n6", &[], &["c-hosts"])?).await?;
    server.says("REQUEST", &format!("{CLUSTER_LOAD_ASSIGNMENT} n6")).await?;
    // A name that occurs twice is refused by name; the first one counts.
    let twice = [("d", eds_cluster("d"), None), ("d", eds_cluster("d"), None)];
    server.tell(&delta(CLUSTER, "n7", &twice, &[])?).await?;
    server.says(&format!("REQUEST {CLUSTER} n7"), "Cluster/d: occurs more than once").await?;
    lives_as_long_as_its_ttl(&plane, &mut server, &backend).await?;
    for _ in 0..20 {
        let answer = get(address, "/").await?;
        ensure!(answer.text() == "backend\n", "saw {} {:?}\n{}", answer.status, answer.text(), server.log());
    }
    ensure!(server.log().matches("OPEN").count() == 1, "one stream all the time:\n{}", server.log());
    ensure!(plane.stat("control_plane.unrequested_responses").await? == 2, "the ignored responses are counted");

    // It comes back and says that there is nothing.
    server.tell("HANGUP").await?;
    eventually("a second stream is open", async || {
        let log = server.log();
        ensure!(log.matches("OPEN").count() == 2, "{log}");
        let (_, second) = log.rsplit_once("OPEN").unwrap_or_default();
        ensure!(second.contains(LISTENER), "{log}");
        Ok(())
    })
    .await?;
    server.tell(&delta(LISTENER, "m1", &[], &["in", "brief"])?).await?;
    server.says("REQUEST", &format!("{LISTENER} m1")).await?;
    answers(&plane, &server, address, "backend\n").await.context("it is held back")?;
    ensure!(plane.stat("control_plane.deletions_held_back").await? == 2, "and alarmed");
    within(Duration::from_secs(20), "after the time it is believed", async || {
        ensure!(get(address, "/").await.is_err(), "the listener still answers");
        Ok(())
    })
    .await?;
    plane.stop_proxy().await
}
