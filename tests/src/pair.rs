//! A cloud and an edge with a tunnel between them, whose routes and limits are the test's to say.

use std::net::SocketAddr;

use anyhow::ensure;
use tempfile::TempDir;

use crate::Result;
use crate::gateway::{Gateway, cluster, http_listener};
use crate::tunnel::{hosting, tunnel_listener};
use crate::wait::eventually;

/// A cloud: the listener `in` with `routes`, the listener `tunnel`, `more` listeners, and the cluster `edge` that has only
/// what joins it.
pub async fn cloud(routes: &str, manager: &str, fields: &str, more: &str, workers: usize) -> Result<Gateway> {
    let listeners = http_listener("in", routes, manager, "") + &tunnel_listener("tunnel", fields) + more;
    Gateway::start_in(TempDir::with_prefix("culvert-")?, &listeners, &cluster("edge", &[], ""), "", workers).await
}

/// An edge that dials `server` as `name` and serves `routes` over the tunnel; `fields` are further ones of its
/// TunnelAgent, in flow style and with a comma before them.
pub async fn edge(
    server: SocketAddr,
    name: &str,
    (routes, manager): (&str, &str),
    clusters: &str,
    fields: &str,
) -> Result<Gateway> {
    let hosted = hosting(&http_listener("hosted", routes, manager, ""));
    let agents = format!(
        "bootstrap_extensions:\n- name: culvert.tunnel_agents\n  typed_config:\n    \"@type\": type.googleapis.com/culvert.tunnel.v1.TunnelAgents\n    agents:\n    - {{name: agent, host_name: {name}, cluster: edge, hosting_listener: hosted, servers: [{{address: \"{server}\"}}]{fields}}}"
    );
    Gateway::start_in(TempDir::with_prefix("culvert-")?, &hosted, clusters, &agents, 1).await
}

/// Waits until so many connections are hosts of `edge`.
pub async fn joined(cloud: &Gateway, hosts: u64) -> Result {
    eventually("the agents have joined", async || {
        let seen = cloud.stat("cluster.edge.membership_total").await?;
        ensure!(seen == hosts, "{seen} of {hosts} have");
        Ok(())
    })
    .await
}
