//! A cloud and an edge with a tunnel between them, each a culvert-proxy with a bootstrap of its own.

use std::net::SocketAddr;

use anyhow::ensure;
use serde_json::Value;
use tempfile::TempDir;

use crate::Result;
use crate::client::get;
use crate::gateway::{Gateway, cluster, http_listener};
use crate::wait::eventually;

/// A cloud whose cluster `edge` has only what joins it: listeners `in` (HTTP), `tcp` (raw) and `tunnel`. `server` are
/// further fields of the `TunnelServer`, as the inside of a flow mapping.
pub async fn cloud(server: &str, workers: usize) -> Result<Gateway> {
    let listeners = http_listener("in", "[{match: {prefix: /}, route: {cluster: edge}}]", "", "")
        + &tcp_listener("tcp", "edge")
        + &tunnel_listener("tunnel", server);
    Gateway::start_in(TempDir::with_prefix("culvert-")?, &listeners, &cluster("edge", &[], ""), "", workers).await
}

/// YAML of a listener on a free port that proxies TCP to a cluster.
#[must_use]
pub fn tcp_listener(name: &str, cluster: &str) -> String {
    filter_listener(
        name,
        "envoy.filters.network.tcp_proxy",
        &format!(
            "\"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: {name}, cluster: {cluster}"
        ),
    )
}

/// YAML of a listener on a free port that accepts agents.
#[must_use]
pub fn tunnel_listener(name: &str, server: &str) -> String {
    filter_listener(
        name,
        "culvert.filters.network.tunnel_server",
        &format!("\"@type\": type.googleapis.com/culvert.tunnel.v1.TunnelServer, stat_prefix: t, {server}"),
    )
}

fn filter_listener(name: &str, filter: &str, config: &str) -> String {
    format!(
        "  - name: {name}\n    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\n    filter_chains:\n    - filters:\n      - name: {filter}\n        typed_config: {{{config}}}\n"
    )
}

/// The same listener, bound to no port: it serves what tunnels bring.
#[must_use]
pub fn hosting(listener: &str) -> String {
    listener.replacen("    filter_chains:", "    bind_to_port: false\n    filter_chains:", 1)
}

/// YAML of the bootstrap extension with one agent of cluster `edge`, hosted on the listener `hosted`. `more` are further
/// fields, as the inside of a flow mapping.
#[must_use]
pub fn agent(servers: &[SocketAddr], more: &str) -> String {
    let mut list = String::new();
    for server in servers {
        list += &format!("{{address: \"{server}\"}}, ");
    }
    format!(
        "bootstrap_extensions:\n- name: culvert.tunnel_agents\n  typed_config:\n    \"@type\": type.googleapis.com/culvert.tunnel.v1.TunnelAgents\n    agents:\n    - {{name: agent, cluster: edge, hosting_listener: hosted, servers: [{list}], reconnect_base_interval: 0.05s, connect_timeout: 5s, {more}}}"
    )
}

/// An edge whose listener `hosted` serves HTTP from `backend`.
pub async fn edge(servers: &[SocketAddr], backend: SocketAddr, more: &str) -> Result<Gateway> {
    let hosted = hosting(&http_listener("hosted", "[{match: {prefix: /}, route: {cluster: a}}]", "", ""));
    start_edge(&hosted, servers, backend, more).await
}

/// An edge whose listener `hosted` passes bytes to `backend`.
pub async fn tcp_edge(servers: &[SocketAddr], backend: SocketAddr, more: &str) -> Result<Gateway> {
    start_edge(&hosting(&tcp_listener("hosted", "a")), servers, backend, more).await
}

async fn start_edge(hosted: &str, servers: &[SocketAddr], backend: SocketAddr, more: &str) -> Result<Gateway> {
    let folder = TempDir::with_prefix("culvert-")?;
    Gateway::start_in(folder, hosted, &cluster("a", &[backend], ""), &agent(servers, more), 2).await
}

/// The `connections` of `/tunnels`: what has joined a cloud.
pub async fn connections(cloud: &Gateway) -> Result<Vec<Value>> {
    let json = get(cloud.admin, "/tunnels").await?.json()?;
    Ok(json["connections"].as_array().cloned().unwrap_or_default())
}

/// Waits until exactly so many connections have joined, and serve; gives them.
pub async fn joined(cloud: &Gateway, count: usize) -> Result<Vec<Value>> {
    eventually(&format!("{count} tunnels"), async || {
        let json = get(cloud.admin, "/tunnels").await?.json()?;
        let connections = json["connections"].as_array().cloned().unwrap_or_default();
        let envoys = connections.iter().all(|connection| connection["dialect"] == "envoy");
        // In Envoy's dialect a tunnel rests until it is used.
        let states = if envoys { &["pending", "open"][..] } else { &["idle", "borrowed", "open"] };
        let serves = |host: &&Value| states.iter().any(|state| host["state"] == *state);
        let serving = json["hosts"].as_array().into_iter().flatten().filter(serves).count();
        let stands = |connection: &&Value| {
            connection["events"].as_array().into_iter().flatten().any(|event| event["kind"] == "established")
        };
        let stand = connections.iter().filter(stands).count();
        ensure!((connections.len(), stand, serving) == (count, count, count), "{serving} serve, saw {connections:#?}");
        Ok(connections)
    })
    .await
}

/// YAML of a cluster whose hosts are the agents that registered as others: `sources` are those of a `TunnelCluster`, as the
/// inside of a flow sequence, and `more` further fields, each on a line of its own without indentation.
#[must_use]
pub fn sharing(name: &str, sources: &str, more: &str) -> String {
    let more: String = more.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "  - name: {name}\n    cluster_type: {{name: culvert.clusters.tunnel, typed_config: {{\"@type\": type.googleapis.com/culvert.tunnel.v1.TunnelCluster, sources: [{sources}]}}}}\n{more}"
    )
}

/// A load balancer in front of several clouds, which tries the next one where it cannot connect.
pub async fn front(clouds: &[&Gateway]) -> Result<Gateway> {
    let addresses = clouds.iter().map(|cloud| cloud.listener("in")).collect::<Result<Vec<_>>>()?;
    let routes = "[{match: {prefix: /}, route: {cluster: clouds, retry_policy: {retry_on: \"connect-failure,refused-stream\", num_retries: 3, retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}], host_selection_retry_max_attempts: 20}}}]";
    let breakers = "circuit_breakers: {thresholds: [{max_retries: 1000}]}";
    Gateway::start(&http_listener("in", routes, "", ""), &cluster("clouds", &addresses, breakers)).await
}
