//! Listeners that change while connections are opened all through, and addresses that somebody else holds.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::client::get;
use culvert_tests::load::Load;
use culvert_tests::process::{Daemon, ours};
use culvert_tests::wait::{PATIENCE, eventually};
use serde_json::json;
use tempfile::TempDir;

const TYPE: &str = "type.googleapis.com/envoy";

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A listener that answers every request with `body`.
fn listener(name: &str, address: SocketAddr, body: &str) -> serde_json::Value {
    json!({
        "name": name,
        "address": { "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } },
        "filter_chains": [{ "filters": [{ "name": "http", "typed_config": {
            "@type": format!("{TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": name,
            "route_config": { "name": name, "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [
                { "match": { "prefix": "/" },
                  "direct_response": { "status": 200, "body": { "inline_string": body } } },
            ]}]},
            "http_filters": [{ "name": "router", "typed_config": {
                "@type": format!("{TYPE}.extensions.filters.http.router.v3.Router") } }],
        }}]}],
    })
}

/// Publishes listeners in the file that a proxy of [`start`] watches.
fn publish(folder: &Path, mut listener: serde_json::Value, version: u32) -> Result {
    listener["@type"] = format!("{TYPE}.config.listener.v3.Listener").into();
    let response = json!({ "version_info": version.to_string(), "resources": [listener] });
    std::fs::write(folder.join("lds.new"), response.to_string())?;
    Ok(std::fs::rename(folder.join("lds.new"), folder.join("lds.json"))?)
}

/// A proxy that takes its listeners from `folder/lds.json`.
fn start(name: &str, folder: &Path) -> Result<Daemon> {
    let bootstrap = json!({
        "node": { "id": name, "cluster": "test" },
        "dynamic_resources": { "lds_config": {
            "path_config_source": { "path": "lds.json" }, "resource_api_version": "V3" } },
    });
    std::fs::write(folder.join("bootstrap.json"), bootstrap.to_string())?;
    Daemon::start(name, &ours("culvert-proxy")?, &["-c", "bootstrap.json", "--concurrency", "2"], folder)
}

async fn answers(address: SocketAddr, body: &str, daemon: &Daemon) -> Result {
    eventually(&format!("{address} answers {body}"), async || {
        let answer = get(address, "/").await?;
        ensure!(answer.text() == body, "saw {} {:?}", answer.status, answer.text());
        Ok(())
    })
    .await
    .with_context(|| daemon.output())
}

/// As Envoy: without `ipv4_compat` IPv6's wildcard is not IPv4's, with it a client of IPv4 is known by its own address.
#[tokio::test]
async fn the_wildcard_of_ipv6_takes_ipv4_where_it_says_so() -> Result {
    if TcpListener::bind("[::1]:0").is_err() {
        eprintln!("skipped: this machine has no IPv6");
        return Ok(());
    }
    let (folder, address) = (TempDir::with_prefix("culvert-")?, free_address()?);
    let (six, four) = (SocketAddr::new("::1".parse()?, address.port()), address);
    let any = SocketAddr::new("::".parse()?, address.port());
    let mut all = listener("six", any, "six");
    publish(folder.path(), all.clone(), 1)?;
    let proxy = start("proxy", folder.path())?;
    answers(six, "six", &proxy).await?;
    ensure!(get(four, "/").await.is_err(), "an IPv4 client found a listener of IPv6\n{}", proxy.output());
    all["name"] = "both".into();
    // Another port: the address of the first one is let go of only when it has drained.
    let (four, six) = (free_address()?, six);
    all["address"]["socket_address"]["port_value"] = four.port().into();
    all["address"]["socket_address"]["ipv4_compat"] = true.into();
    all["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]["response_headers_to_add"] = json!([{
        "header": { "key": "x-from", "value": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%" } }]);
    publish(folder.path(), all, 2)?;
    for at in [four, SocketAddr::new(six.ip(), four.port())] {
        answers(at, "six", &proxy).await?;
        let seen = get(at, "/").await?.header("x-from");
        ensure!(seen == at.ip().to_string(), "{at}: the client is {seen:?}");
    }
    Ok(())
}

#[tokio::test]
async fn new_connections_see_no_gap_while_a_listener_changes_and_hands_its_address_over() -> Result {
    let (folder, address) = (TempDir::with_prefix("culvert-")?, free_address()?);
    publish(folder.path(), listener("one", address, "0"), 0)?;
    let mut proxy = start("proxy", folder.path())?;
    answers(address, "0", &proxy).await?;
    let load = Load { reconnect: true, pause: Duration::ZERO, ..Load::new(address, "/") }.start();
    for version in 1..=12 {
        // Every third version another listener has the address.
        let name = if version % 6 < 3 { "one" } else { "two" };
        publish(folder.path(), listener(name, address, &version.to_string()), version)?;
        answers(address, &version.to_string(), &proxy).await?;
    }
    let counts = load.finish(100).await.with_context(|| proxy.output())?;
    ensure!(counts.answers.len() > 6, "the load was expected to meet most versions, met {:?}", counts.answers);
    proxy.terminate(PATIENCE).await
}

#[tokio::test]
async fn an_address_of_another_process_is_refused_and_taken_once_it_is_free() -> Result {
    let (first, second) = (TempDir::with_prefix("culvert-")?, TempDir::with_prefix("culvert-")?);
    let address = free_address()?;
    publish(first.path(), listener("one", address, "first"), 1)?;
    publish(second.path(), listener("one", address, "second"), 1)?;
    let mut holder = start("holder", first.path())?;
    answers(address, "first", &holder).await?;

    let mut waiter = start("waiter", second.path())?;
    eventually("the second process says that the address is in use", async || {
        waiter.check_alive()?;
        let log = waiter.output();
        ensure!(log.contains(&format!("address {address} is in use")), "its log says {log}");
        Ok(())
    })
    .await?;
    for _ in 0..50 {
        let answer = get(address, "/").await?;
        ensure!(answer.text() == "first", "the holder was expected to answer, saw {:?}", answer.text());
    }
    holder.terminate(PATIENCE).await?;
    answers(address, "second", &waiter).await?;

    let fixed = json!({
        "node": { "id": "static", "cluster": "test" },
        "static_resources": { "listeners": [listener("one", address, "third")] },
    });
    std::fs::write(first.path().join("static.json"), fixed.to_string())?;
    let mut refused = Daemon::start("static", &ours("culvert-proxy")?, &["-c", "static.json"], first.path())?;
    let status = refused.exit(PATIENCE).await?;
    ensure!(
        status.code() == Some(1) && refused.output().contains(&address.to_string()),
        "a static listener in use ends the start with 1 and its address; saw {status}: {}",
        refused.output()
    );
    waiter.terminate(PATIENCE).await
}
