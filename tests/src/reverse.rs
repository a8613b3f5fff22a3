//! Envoy's reverse tunnels, with Envoy's own configuration: ours or a real Envoy at either end.

use std::net::SocketAddr;

use anyhow::ensure;
use bytes::Bytes;
use http_body_util::Full;
use tempfile::TempDir;

use crate::Result;
use crate::ca::{Authority, Leaf};
use crate::client::{Answer, send};
use crate::envoy::Envoy;
use crate::gateway::{Gateway, HTTP2, cluster, http_listener};
use crate::peer::Peer;
use crate::wait::eventually;

/// A listener for agents with Envoy's own filter.
#[must_use]
pub fn tunnel_listener(filter: &str, chain: &str) -> String {
    format!(
        "  - name: tunnel\n    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\n    filter_chains:\n    - filters:\n      - name: envoy.filters.network.reverse_tunnel\n        typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.reverse_tunnel.v3.ReverseTunnel, {filter}}}\n{chain}"
    )
}

/// Envoy's cluster of agents.
#[must_use]
pub fn agents(name: &str, formats: &str) -> String {
    format!(
        "  - name: {name}\n    lb_policy: CLUSTER_PROVIDED\n    connect_timeout: 2s\n    cluster_type:\n      name: envoy.clusters.reverse_connection\n      typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.clusters.reverse_connection.v3.ReverseConnectionClusterConfig, {formats}}}\n    {HTTP2}\n"
    )
}

/// The initiator's listener, with its backend.
#[must_use]
pub fn initiator(node: &str, count: u32) -> String {
    initiator_with(node, count, "")
}

/// The same with further fields of its filter chain.
#[must_use]
pub fn initiator_with(node: &str, count: u32, chain: &str) -> String {
    let listener = http_listener("edge", "[{match: {prefix: /}, route: {cluster: backend}}]", "", chain);
    listener.replace(
        "{socket_address: {address: 127.0.0.1, port_value: 0}}",
        &format!(
            "{{socket_address: {{address: \"rc://{node}:edge-cluster:tenant-a@cloud:{count}\", port_value: 0, resolver_name: envoy.resolvers.reverse_connection}}}}\n    listener_filters_timeout: 0s"
        ),
    )
}

/// The bootstrap extension that initiators need; `fields` are further ones.
#[must_use]
pub fn initiator_extension(fields: &str) -> String {
    format!(
        "bootstrap_extensions:\n- name: envoy.bootstrap.reverse_tunnel.downstream_socket_interface\n  typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.bootstrap.reverse_tunnel.downstream_socket_interface.v3.DownstreamReverseConnectionSocketInterface, stat_prefix: edge, maintain_interval: 0.1s, {fields}}}\n"
    )
}

/// The bootstrap extension that responders need; `fields` are further ones.
#[must_use]
pub fn responder_extension(fields: &str) -> String {
    format!(
        "bootstrap_extensions:\n- name: envoy.bootstrap.reverse_tunnel.upstream_socket_interface\n  typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.bootstrap.reverse_tunnel.upstream_socket_interface.v3.UpstreamReverseConnectionSocketInterface, stat_prefix: cloud, {fields}}}\n"
    )
}

/// A request for an agent.
pub async fn ask(gateway: SocketAddr, node: &str) -> Result<Answer> {
    let request = http::Request::get("/").header("host", "test").header("x-node-id", node);
    send(gateway, request.body(Full::new(Bytes::new()))?).await
}

/// Waits until the agent answers, with the words of its backend.
pub async fn served(gateway: SocketAddr, node: &str, by: &str) -> Result {
    eventually(&format!("{node} serves"), async || {
        let answer = ask(gateway, node).await?;
        ensure!(answer.status == 200 && answer.text().contains(by), "saw {} {}", answer.status, answer.text());
        Ok(())
    })
    .await
}

/// The agent is read from a header.
pub const BY_NODE: &str = "host_id_format: \"%REQ(x-node-id)%\"";

/// Our server: a gateway whose route leads to the agents.
pub async fn our_cloud(filter: &str, formats: &str, more: &str) -> Result<Gateway> {
    let gateway = http_listener("in", "[{match: {prefix: /}, route: {cluster: agents}}]", "", "");
    let listeners = gateway + &tunnel_listener(filter, "");
    Gateway::start_in(TempDir::with_prefix("culvert-")?, &listeners, &agents("agents", formats), more, 2).await
}

/// A real edge with one tunnel; `None`: there is no Envoy here.
pub async fn real_edge(node: &str, cloud: SocketAddr, backend: SocketAddr, fields: &str) -> Result<Option<Envoy>> {
    let Some(program) = Peer::Envoy.find()? else { return Ok(None) };
    let clusters = cluster("cloud", &[cloud], "") + &cluster("backend", &[backend], "");
    let folder = TempDir::with_prefix("culvert-")?;
    let extension = initiator_extension(fields);
    Envoy::start_in(folder, &program, &initiator(node, 1), &clusters, &extension, 1).await.map(Some)
}

/// A real cloud: one worker, whose route leads to the agents.
pub async fn real_cloud(folder: TempDir, filter: &str, chain: &str) -> Result<Option<Envoy>> {
    let Some(program) = Peer::Envoy.find()? else { return Ok(None) };
    let gateway = http_listener("in", "[{match: {prefix: /}, route: {cluster: agents}}]", "", "");
    let listeners = gateway + &tunnel_listener(filter, chain);
    Envoy::start_in(folder, &program, &listeners, &agents("agents", BY_NODE), &responder_extension(""), 1)
        .await
        .map(Some)
}

/// Our edge with Envoy's own configuration.
pub async fn our_edge(node: &str, cloud: SocketAddr, tls: &str, backend: SocketAddr, fields: &str) -> Result<Gateway> {
    let clusters = cluster("cloud", &[cloud], tls) + &cluster("backend", &[backend], "");
    let (folder, extension) = (TempDir::with_prefix("culvert-")?, initiator_extension(fields));
    Gateway::start_in(folder, &initiator(node, 1), &clusters, &extension, 2).await
}

/// Certificates of both ends, and a chain and a cluster that demand them.
#[derive(Debug)]
pub struct Tls {
    /// Where they are.
    pub folder: TempDir,
    pub chain: String,
    pub cluster: String,
}

/// The certificates of a tunnel server and of its agent.
pub fn tls(server: &str, client: &str) -> Result<Tls> {
    let folder = TempDir::with_prefix("culvert-")?;
    let authority = Authority::new("tunnel CA")?;
    let trusted = authority.write(folder.path())?;
    let common = |leaf: &Leaf| {
        format!(
            "common_tls_context: {{tls_certificates: [{{certificate_chain: {{filename: \"{}\"}}, private_key: {{filename: \"{}\"}}}}], validation_context: {{trusted_ca: {{filename: \"{}\"}}}}}}",
            leaf.certificate.display(),
            leaf.key.display(),
            trusted.display()
        )
    };
    let server_leaf = authority.issue(folder.path(), "server", &[server])?;
    let client_leaf = authority.issue(folder.path(), "client", &[client])?;
    let kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
    let chain = format!(
        "      transport_socket: {{name: envoy.transport_sockets.tls, typed_config: {{\"@type\": {kind}.DownstreamTlsContext, require_client_certificate: true, {}}}}}\n",
        common(&server_leaf)
    );
    let cluster = format!(
        "transport_socket: {{name: envoy.transport_sockets.tls, typed_config: {{\"@type\": {kind}.UpstreamTlsContext, sni: {server}, {}}}}}",
        common(&client_leaf)
    );
    Ok(Tls { folder, chain, cluster })
}
