//! The real grpcurl against culvert-control, and against culvert-proxy: what an operator types to inspect state.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::peer::Peer;
use culvert_tests::plane::{Plane, Way, envoy, listener};
use culvert_tests::process::{Daemon, run};
use culvert_tests::site::{Port, Running, Site};
use culvert_tests::wait::{PATIENCE, eventually};
use serde_json::json;

struct Bench {
    grpcurl: PathBuf,
    site: Site,
    control: Daemon,
}

impl Bench {
    async fn start() -> Result<Option<Self>> {
        let Some(grpcurl) = Peer::Grpcurl.find()? else { return Ok(None) };
        let site = Site::lay_out()?;
        let mut control = site.start_control()?;
        site.ready(&mut control, Port::ControlAdmin).await?;
        Ok(Some(Self { grpcurl, site, control }))
    }

    async fn call(&self, flags: &[&str], words: &[&str], stdin: &str) -> Result<String> {
        let address = self.site.address(Port::Control).to_string();
        let args = [&["-plaintext", "-max-time", "20"], flags, &[&address], words].concat();
        run(&self.grpcurl, &args, stdin, Duration::from_secs(30)).await.with_context(|| self.control.output())
    }
}

fn contains(text: &str, wanted: &[&str]) -> Result {
    for word in wanted {
        ensure!(text.contains(word), "expected {word:?} in:\n{text}");
    }
    Ok(())
}

#[tokio::test]
async fn list_and_describe() -> Result {
    let Some(bench) = Bench::start().await? else { return Ok(()) };
    let services = bench.call(&[], &["list"], "").await?;
    contains(
        &services,
        &[
            "envoy.service.discovery.v3.AggregatedDiscoveryService",
            "envoy.service.cluster.v3.ClusterDiscoveryService",
            "envoy.service.endpoint.v3.EndpointDiscoveryService",
            "envoy.service.listener.v3.ListenerDiscoveryService",
            "envoy.service.route.v3.RouteDiscoveryService",
            "envoy.service.secret.v3.SecretDiscoveryService",
            "envoy.service.status.v3.ClientStatusDiscoveryService",
            "grpc.health.v1.Health",
        ],
    )?;
    let service = "envoy.service.status.v3.ClientStatusDiscoveryService";
    contains(&bench.call(&[], &["describe", service], "").await?, &["FetchClientStatus", "StreamClientStatus"])?;
    let agent = bench.call(&[], &["describe", "culvert.tunnel.v1.TunnelAgent"], "").await?;
    contains(&agent, &["hosting_listener", "connection_num"])
}

#[tokio::test]
async fn health() -> Result {
    let Some(bench) = Bench::start().await? else { return Ok(()) };
    contains(&bench.call(&[], &["grpc.health.v1.Health/Check"], "").await?, &["SERVING"])
}

#[tokio::test]
async fn fetch_clusters_of_a_node() -> Result {
    let Some(bench) = Bench::start().await? else { return Ok(()) };
    let method = "envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters";
    let text = bench.call(&["-d", r#"{"node":{"id":"edge-7","cluster":"edge"}}"#], &[method], "").await?;
    contains(&text, &["backend-1", "backend-2", "versionInfo"])?;
    ensure!(!text.contains("\"name\": \"edge\""), "an edge node got a resource of the cloud:\n{text}");
    Ok(())
}

#[tokio::test]
async fn a_delta_stream_shows_resources_and_what_does_not_exist() -> Result {
    let Some(bench) = Bench::start().await? else { return Ok(()) };
    let method = "envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
    let request = r#"{"node":{"id":"edge-7","cluster":"edge"},
        "type_url":"type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        "resource_names_subscribe":["from-cloud","no-such-routes"]}"#;
    let text = bench.call(&["-d", "@"], &[method], request).await?;
    contains(&text, &["from-cloud", "removedResources", "no-such-routes", "backend-1"])
}

#[tokio::test]
async fn client_status_tells_what_every_node_has() -> Result {
    let Some(grpcurl) = Peer::Grpcurl.find()? else { return Ok(()) };
    let running = Running::start().await?;
    let address = running.site.address(Port::Control).to_string();
    let method = "envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus";
    let text = run(&grpcurl, &["-plaintext", "-d", "{}", &address, method], "", Duration::from_secs(30)).await?;
    contains(&text, &["cloud-1", "edge-1", "gateway", "from-cloud", "SYNCED"])?;
    running.stop().await
}

#[tokio::test]
async fn an_operator_asks_for_contents_pushes_and_the_past() -> Result {
    let Some(grpcurl) = Peer::Grpcurl.find()? else { return Ok(()) };
    let running = Running::start().await?;
    let address = running.site.address(Port::Control).to_string();
    let call = async |method: &str, request: &str| {
        let method = format!("culvert.control.v1.ControlService/{method}");
        let args = ["-plaintext", "-max-time", "30", "-d", request, &address, &method];
        run(&grpcurl, &args, "", Duration::from_secs(40)).await
    };
    let described = run(
        &grpcurl,
        &["-plaintext", &address, "describe", "culvert.control.v1.ControlService"],
        "",
        Duration::from_secs(30),
    )
    .await?;
    contains(
        &described,
        &["GetResources", "Validate", "Diff", "GetHistory", "RollBack", "WatchPush", "ExportSnapshot"],
    )?;
    contains(&call("WatchPush", "{}").await?, &["cloud-1", "edge-1", "SETTLED", "\"generation\": \"1\""])?;
    let resources = call("GetResources", r#"{"filter": {"types": ["Cluster"]}}"#).await?;
    contains(&resources, &["backend-1", "connect_timeout", "\"nodes\""])?;
    let bad = r#"{"files": [{"path": "a.yaml", "content": "bm9uc2Vuc2UK"}]}"#;
    contains(&call("Validate", bad).await?, &["errors", "a.yaml", "\"line\": 1"])?;
    contains(&call("Diff", r#"{"nodes": [{"id": "edge-1"}]}"#).await?, &["edge-1", "\"connected\": true"])?;
    contains(&call("GetHistory", "{}").await?, &["\"generation\": \"1\""])?;
    let refused = call("RollBack", r#"{"to": 99}"#).await;
    ensure!(format!("{refused:?}").contains("NotFound"), "expected NotFound, saw {refused:?}");
    running.stop().await
}

#[tokio::test]
async fn the_inventory_tells_where_every_agent_is() -> Result {
    let Some(grpcurl) = Peer::Grpcurl.find()? else { return Ok(()) };
    let mut running = Running::start().await?;
    let address = running.site.address(Port::Control).to_string();
    let ask = async |request: &str, method: &str| {
        let method = format!("culvert.tunnel.v1.TunnelInventory/{method}");
        run(&grpcurl, &["-plaintext", "-d", request, &address, &method], "", Duration::from_secs(30)).await
    };
    // The cloud's proxy reports over the connection of its discovery stream, once a second.
    eventually("the agent is listed", async || {
        let text = ask("{\"agent\": \"edge-1\"}", "ListTunnels").await?;
        contains(
            &text,
            &[
                "\"server\": \"cloud-1\"",
                "\"agent\": \"edge-1\"",
                "\"kind\": \"handshake\"",
                "\"detail\": \"culvert\"",
                "\"kind\": \"established\"",
                "\"kind\": \"first_ping\"",
                "\"peer\": \"127.0.0.1:",
            ],
        )
    })
    .await
    .with_context(|| running.logs())?;
    let text = ask("{}", "ListEndpoints").await?;
    contains(
        &text,
        &["\"clusterName\"", "\"hostname\": \"edge-1\"", "\"healthStatus\": \"HEALTHY\"", "culvert.tunnel"],
    )?;
    running.edge.terminate(PATIENCE).await?;
    eventually("its end is told with the reason", async || {
        let text = ask("{\"agent\": \"edge-1\"}", "ListEndedTunnels").await?;
        contains(&text, &["\"server\": \"cloud-1\"", "\"endedAt\"", "\"endReason\"", "\"kind\": \"ended\""])
    })
    .await
    .with_context(|| running.logs())?;
    running.cloud.terminate(PATIENCE).await?;
    running.control.terminate(PATIENCE).await
}

#[tokio::test]
async fn what_a_proxy_was_given_accepted_and_refused() -> Result {
    let Some(grpcurl) = Peer::Grpcurl.find()? else { return Ok(()) };
    let mut plane = Plane::start(&[]).await?;
    let at = |name: &str, more| listener(name, ([127, 0, 0, 1], 0).into(), name, more);
    let sds = json!({ "transport_socket": { "name": "tls", "typed_config": {
        "@type": envoy("extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
        "common_tls_context": { "tls_certificate_sds_secret_configs": [
            { "name": "edge-cert", "sds_config": { "ads": {}, "resource_api_version": "V3" } } ] } } } });
    let key = json!({ "transport_socket": { "name": "tls", "typed_config": {
        "@type": envoy("extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
        "common_tls_context": { "tls_certificates": [
            { "certificate_chain": { "inline_string": "chain" }, "private_key": { "inline_string": "a private key" } } ] } } } });
    plane.put("listeners.json", &[at("good", json!({})), at("warming", sds), at("bad", key)])?;
    plane.start_proxy(Way::default()).await?;
    let address = plane.admin.to_string();
    let method = "envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus";
    let call = async |flags: &[&str], words: &[&str]| {
        let args = [&["-plaintext", "-max-time", "20"], flags, &[&address], words].concat();
        run(&grpcurl, &args, "", Duration::from_secs(30)).await.with_context(|| plane.proxy_log())
    };
    contains(&call(&[], &["list"]).await?, &["envoy.service.status.v3.ClientStatusDiscoveryService"])?;
    eventually("every state is told", async || {
        let text = call(&[], &[method]).await?;
        let status: serde_json::Value = serde_json::from_str(&text)?;
        let all = status["config"][0]["genericXdsConfigs"].as_array().context("no resources")?;
        let of = |name: &str| {
            let found = all.iter().find(|one| one["name"] == name);
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            found
                .map(|one| (text(&one["clientStatus"]), text(&one["errorState"]["details"]), text(&one["versionInfo"])))
        };
        let (good, warming, bad) = (of("good"), of("warming"), of("bad"));
        let is = |seen: &Option<(String, String, String)>, state: &str, details: &str| {
            seen.as_ref().is_some_and(|seen| seen.0 == state && seen.1.contains(details))
        };
        let expected = is(&good, "ACKED", "") && is(&warming, "REQUESTED", "it waits for Secret edge-cert");
        ensure!(expected && is(&bad, "NACKED", "certificate"), "saw {good:?}, {warming:?}, {bad:?}");
        ensure!(good.is_some_and(|good| !good.2.is_empty()), "without its version: {text}");
        ensure!(!text.contains("a private key"), "a secret in {text}");
        Ok(())
    })
    .await
    .with_context(|| plane.proxy_log())?;
    let without = call(&["-d", r#"{"exclude_resource_contents": true}"#], &[method]).await?;
    ensure!(without.contains("\"good\"") && !without.contains("xdsConfig"), "contents in {without}");
    let foreign = call(&["-d", r#"{"node_matchers": [{}]}"#], &[method]).await;
    ensure!(foreign.is_err(), "asked for other nodes: {foreign:?}");
    let named = call(&["-authority", "evil.example"], &["list"]).await;
    ensure!(named.is_err(), "asked for by a name of somebody else's: {named:?}");
    plane.stop_proxy().await
}
