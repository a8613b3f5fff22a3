//! GOAWAY as the word for "dial anew" in Envoy's dialect, with the real Envoy at either end.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::client::{get, post};
use culvert_tests::envoy::Envoy;
use culvert_tests::gateway::{Gateway, HTTP2, cluster, hosted_agent, http_listener};
use culvert_tests::load::{Load, Running};
use culvert_tests::peer::Peer;
use culvert_tests::wait::eventually;
use tempfile::TempDir;

const TYPES: &str = "type.googleapis.com/envoy.extensions";
const TO_AGENTS: &str = "[{match: {prefix: /}, route: {cluster: agents}}]";

/// Envoy's cluster of agents; `more` are further protocol options.
fn agents(more: &str) -> String {
    let options = HTTP2.replacen("}}}}", &format!("}}}}}}{more}}}"), 1);
    format!(
        "  - name: agents\n    lb_policy: CLUSTER_PROVIDED\n    connect_timeout: 2s\n    cluster_type:\n      name: envoy.clusters.reverse_connection\n      typed_config: {{\"@type\": {TYPES}.clusters.reverse_connection.v3.ReverseConnectionClusterConfig, host_id_format: edge-1}}\n    {options}\n"
    )
}

fn tunnel_listener(port: u16, filter: &str) -> String {
    format!(
        "  - name: tunnel\n    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}\n    filter_chains:\n    - filters:\n      - name: envoy.filters.network.reverse_tunnel\n        typed_config: {{\"@type\": {TYPES}.filters.network.reverse_tunnel.v3.ReverseTunnel, {filter}}}\n"
    )
}

/// Puts the tunnel listener into a file that a cloud follows.
fn publish(folder: &Path, version: u32, listener: &str) -> Result {
    let listener = listener.replacen(
        "  - name",
        "  - \"@type\": type.googleapis.com/envoy.config.listener.v3.Listener\n    name",
        1,
    );
    std::fs::write(folder.join("lds.new"), format!("version_info: \"{version}\"\nresources:\n{listener}"))?;
    Ok(std::fs::rename(folder.join("lds.new"), folder.join("lds.yaml"))?)
}

/// A real initiator with the drain-aware connection manager, that looks after its tunnels every ten seconds only.
async fn drain_aware(cloud: SocketAddr, backend: SocketAddr) -> Result<Option<Envoy>> {
    let Some(program) = Peer::Envoy.find()? else { return Ok(None) };
    let manager = format!(
        "{{\"@type\": {TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: edge, codec_type: HTTP2, route_config: {{virtual_hosts: [{{name: all, domains: [\"*\"], routes: [{{match: {{prefix: /}}, route: {{cluster: backend}}}}]}}]}}, http_filters: [{{name: envoy.filters.http.router, typed_config: {{\"@type\": {TYPES}.filters.http.router.v3.Router}}}}]}}"
    );
    let manager = manager.replacen(
        &format!("\"@type\": {TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager, "),
        "",
        1,
    );
    let listener = format!(
        "  - name: edge\n    address: {{socket_address: {{address: \"rc://edge-1:edge-cluster:tenant-a@cloud:1\", port_value: 0, resolver_name: envoy.resolvers.reverse_connection}}}}\n    listener_filters_timeout: 0s\n    filter_chains:\n    - filters:\n      - name: envoy.filters.network.reverse_tunnel_drain_aware_http_connection_manager\n        typed_config: {{\"@type\": {TYPES}.filters.network.reverse_tunnel.v3.DrainAwareHttpConnectionManager, enable_drain_with_goaway: true, hcm_config: {manager}}}\n"
    );
    let extension = format!(
        "bootstrap_extensions:\n- name: envoy.bootstrap.reverse_tunnel.downstream_socket_interface\n  typed_config: {{\"@type\": {TYPES}.bootstrap.reverse_tunnel.downstream_socket_interface.v3.DownstreamReverseConnectionSocketInterface, stat_prefix: edge}}\n"
    );
    let clusters = cluster("cloud", &[cloud], "") + &cluster("backend", &[backend], "");
    Envoy::start_in(TempDir::with_prefix("culvert-")?, &program, &listener, &clusters, &extension, 1).await.map(Some)
}

async fn more(load: &Running, count: u64) -> Result {
    let before = load.counts().ok();
    eventually(&format!("{count} more answers"), async || {
        let counts = load.counts();
        ensure!(counts.failed == 0, "failed: {counts:#?}");
        ensure!(counts.ok() >= before + count, "saw {counts:?}");
        Ok(())
    })
    .await
}

async fn serves(gateway: SocketAddr) -> Result {
    eventually("the agent serves", async || {
        let answer = get(gateway, "/").await?;
        ensure!(answer.status == 200, "saw {} {}", answer.status, answer.text());
        Ok(())
    })
    .await
}

/// The cloud's tunnel listener changes: its agents are told by GOAWAY, and the real Envoy has dialled anew before the old
/// tunnel takes nothing more.
#[tokio::test]
async fn a_real_initiator_dials_anew_when_our_listener_drains_and_no_request_fails() -> Result {
    let backend = Backend::start("behind").await?;
    let folder = TempDir::with_prefix("culvert-")?;
    let path = folder.path().to_owned();
    publish(&path, 1, &tunnel_listener(0, "ping_interval: 1s"))?;
    let lds = "dynamic_resources: {lds_config: {path_config_source: {path: lds.yaml}, resource_api_version: V3}}\n";
    let cloud = Gateway::start_in(folder, &http_listener("in", TO_AGENTS, "", ""), &agents(""), lds, 2).await?;
    let Some(edge) = drain_aware(cloud.listener("tunnel")?, backend.address).await? else { return Ok(()) };
    let context = || format!("ours:\n{}\nenvoy:\n{}", cloud.daemon.output(), edge.daemon.output());
    let gateway = cloud.listener("in")?;
    serves(gateway).await.with_context(context)?;
    let load = Load::new(gateway, "/delay/5").start();
    more(&load, 50).await?;
    for (turn, interval) in ["2s", "3s"].iter().enumerate() {
        publish(&path, 2 + u32::try_from(turn)?, &tunnel_listener(0, &format!("ping_interval: {interval}")))?;
        cloud.stat_reaches("tunnel_server.reverse_tunnel.accepted", turn as u64 + 2).await.with_context(context)?;
        eventually("the old tunnel has gone", async || {
            let active = cloud.stat("tunnel_server.reverse_tunnel.active").await?;
            ensure!(active == 1, "{active} are there");
            Ok(())
        })
        .await
        .with_context(context)?;
        more(&load, 50).await.with_context(context)?;
    }
    load.finish(150).await.with_context(context)?;
    drop(edge);
    cloud.stop().await
}

/// A real responder drains its tunnels: our agent dials anew at its GOAWAY, and not when the tunnel ends. (Requests that come
/// to the responder in the millisecond in between find no tunnel there: it lets nobody wait.)
#[tokio::test]
async fn our_agent_dials_anew_when_a_real_responder_drains() -> Result {
    let Some(program) = Peer::Envoy.find()? else { return Ok(()) };
    let backend = Backend::start("behind").await?;
    let options = format!(
        ", envoy.extensions.upstreams.http.reverse_tunnel.v3.ReverseTunnelUpstreamCodecOptions: {{\"@type\": {TYPES}.upstreams.http.reverse_tunnel.v3.ReverseTunnelUpstreamCodecOptions, enable_drain_with_goaway: true}}"
    );
    let listeners = http_listener("in", TO_AGENTS, "", "") + &tunnel_listener(0, "ping_interval: 2s");
    let extension = format!(
        "bootstrap_extensions:\n- name: envoy.bootstrap.reverse_tunnel.upstream_socket_interface\n  typed_config: {{\"@type\": {TYPES}.bootstrap.reverse_tunnel.upstream_socket_interface.v3.UpstreamReverseConnectionSocketInterface, stat_prefix: cloud}}\n"
    );
    let folder = TempDir::with_prefix("culvert-")?;
    let cloud = Envoy::start_in(folder, &program, &listeners, &agents(&options), &extension, 1).await?;
    let tunnel = cloud.listener("tunnel")?;
    let edge = hosted_agent(tunnel, backend.address, "envoy: {tenant_id: a}").await?;
    let context = || format!("ours:\n{}\nenvoy:\n{}", edge.daemon.output(), cloud.daemon.output());
    let gateway = cloud.listener("in")?;
    serves(gateway).await.with_context(context)?;
    for turn in 1..=3 {
        // In flight when the GOAWAY comes, after a second.
        let slow = tokio::spawn(async move { get(gateway, "/delay/2000").await });
        let answer = post(cloud.admin, "/reverse_tunnel/drain_clusters?cluster=agents&drain_time_ms=1000", "").await?;
        ensure!(answer.status == 200, "saw {} {}", answer.status, answer.text());
        edge.stat_reaches("tunnel_agent.agent.replaced", turn).await.with_context(context)?;
        let answer = slow.await??;
        ensure!(answer.status == 200, "saw {} {}: {}", answer.status, answer.text(), context());
        serves(gateway).await.with_context(context)?;
    }
    edge.stop().await
}
