//! TLS inside of Envoy's reverse tunnels: the cluster of agents has a `transport_socket`, and the agent's listener terminates
//! it. With the real Envoy at either end.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::client::send;
use culvert_tests::envoy::Envoy;
use culvert_tests::gateway::{Gateway, cluster, http_listener};
use culvert_tests::peer::Peer;
use culvert_tests::reverse::{
    BY_NODE, Tls, agents, ask, initiator_extension, initiator_with, responder_extension, served, tls, tunnel_listener,
};
use culvert_tests::wait::eventually;
use http_body_util::Full;
use tempfile::TempDir;
use tokio::time::Instant;

const PINGS: &str = "ping_interval: 1s";

/// The cluster of agents, with TLS inside of their tunnels.
fn secured(name: &str, tls: &Tls) -> String {
    format!("{}    {}\n", agents(name, BY_NODE), tls.cluster)
}

fn listeners(routes: &str) -> String {
    http_listener("in", routes, "", "") + &tunnel_listener(PINGS, "")
}

const ALL: &str = "[{match: {prefix: /}, route: {cluster: agents}}]";

async fn our_cloud(routes: &str, clusters: &str) -> Result<Gateway> {
    Gateway::start_in(TempDir::with_prefix("culvert-")?, &listeners(routes), clusters, "", 2).await
}

/// Listeners, clusters and the extension of an edge whose listener demands TLS and a certificate.
fn edge_parts(cloud: SocketAddr, backend: SocketAddr, tls: &Tls) -> (String, String, String) {
    let listener = initiator_with("edge-1", 1, tls.chain.trim_start());
    let clusters = cluster("cloud", &[cloud], "") + &cluster("backend", &[backend], "");
    (listener, clusters, initiator_extension(""))
}

async fn our_edge(cloud: SocketAddr, backend: SocketAddr, tls: &Tls) -> Result<Gateway> {
    let (listener, clusters, extension) = edge_parts(cloud, backend, tls);
    Gateway::start_in(TempDir::with_prefix("culvert-")?, &listener, &clusters, &extension, 2).await
}

#[tokio::test]
async fn a_real_initiator_serves_over_tls_inside_its_tunnel() -> Result {
    let Some(program) = Peer::Envoy.find()? else { return Ok(()) };
    let (tls, backend) = (tls("edge-1", "cloud")?, Backend::start("behind").await?);
    let cloud = our_cloud(ALL, &secured("agents", &tls)).await?;
    let (gateway, tunnel) = (cloud.listener("in")?, cloud.listener("tunnel")?);
    let (listener, clusters, extension) = edge_parts(tunnel, backend.address, &tls);
    let folder = TempDir::with_prefix("culvert-")?;
    let edge = Envoy::start_in(folder, &program, &listener, &clusters, &extension, 1).await?;
    let context = || format!("ours:\n{}\nenvoy:\n{}", cloud.daemon.output(), edge.daemon.output());
    served(gateway, "edge-1", "behind").await.with_context(context)?;
    for _ in 0..50 {
        let answer = ask(gateway, "edge-1").await?;
        ensure!(answer.status == 200, "saw {} {}\n{}", answer.status, answer.text(), context());
    }
    let accepted = cloud.stat("tunnel_server.reverse_tunnel.accepted").await?;
    ensure!(accepted == 1, "expected one tunnel, saw {accepted}: {}", context());
    let handshakes = edge.stat("ssl.handshake").await?;
    ensure!(handshakes >= 1, "expected the edge to have terminated TLS: {}", context());
    cloud.stop().await
}

#[tokio::test]
async fn our_agent_serves_over_tls_inside_its_tunnel_from_a_real_responder() -> Result {
    let Some(program) = Peer::Envoy.find()? else { return Ok(()) };
    let (tls, backend) = (tls("edge-1", "cloud")?, Backend::start("behind").await?);
    let folder = TempDir::with_prefix("culvert-")?;
    let clusters = secured("agents", &tls);
    let cloud = Envoy::start_in(folder, &program, &listeners(ALL), &clusters, &responder_extension(""), 1).await?;
    let edge = our_edge(cloud.listener("tunnel")?, backend.address, &tls).await?;
    let context = || format!("ours:\n{}\nenvoy:\n{}", edge.daemon.output(), cloud.daemon.output());
    edge.stat_reaches("tunnel_agent.edge.active", 1).await.with_context(context)?;
    let gateway = cloud.listener("in")?;
    served(gateway, "edge-1", "behind").await.with_context(context)?;
    for _ in 0..50 {
        let answer = ask(gateway, "edge-1").await?;
        ensure!(answer.status == 200, "saw {} {}\n{}", answer.status, answer.text(), context());
    }
    let established = edge.stat("tunnel_agent.edge.established").await?;
    ensure!(established == 1, "expected one tunnel, saw {established}: {}", context());
    edge.stat_reaches("listener.edge.ssl.handshake", 1).await.with_context(context)?;
    edge.stop().await
}

/// Clusters with the same transport socket share a tunnel; one with another, or with none, is not let into it.
#[tokio::test]
async fn a_tunnel_with_tls_inside_serves_no_cluster_with_another_transport_socket() -> Result {
    let (tls, backend) = (tls("edge-1", "cloud")?, Backend::start("behind").await?);
    let routes = "[{match: {prefix: /a}, route: {cluster: agents}}, {match: {prefix: /b}, route: {cluster: same}}, {match: {prefix: /c}, route: {cluster: plain}}]";
    let clusters = secured("agents", &tls) + &secured("same", &tls) + &agents("plain", BY_NODE);
    let cloud = our_cloud(routes, &clusters).await?;
    let gateway = cloud.listener("in")?;
    let edge = our_edge(cloud.listener("tunnel")?, backend.address, &tls).await?;
    let context = || format!("cloud:\n{}\nedge:\n{}", cloud.daemon.output(), edge.daemon.output());
    let at = async |path: &str| {
        let request = http::Request::get(path).header("host", "test").header("x-node-id", "edge-1");
        send(gateway, request.body(Full::new(bytes::Bytes::new()))?).await
    };
    for path in ["/a", "/b"] {
        eventually(&format!("{path} is served"), async || {
            let answer = at(path).await?;
            ensure!(answer.status == 200, "saw {} {}", answer.status, answer.text());
            Ok(())
        })
        .await
        .with_context(context)?;
    }
    let refused = at("/c").await?;
    ensure!(refused.status == 503, "expected 503, saw {} {}", refused.status, refused.text());
    ensure!(cloud.stat("cluster.plain.tunnel.other_transport").await? == 1, "counted: {}", context());
    let accepted = cloud.stat("tunnel_server.reverse_tunnel.accepted").await?;
    ensure!(accepted == 1, "expected one tunnel for both, saw {accepted}: {}", context());
    edge.stop().await?;
    cloud.stop().await
}

/// An agent whose certificate is another's, and one that speaks no TLS, get no request.
#[tokio::test]
async fn an_agent_that_tls_inside_does_not_verify_gets_no_request() -> Result {
    let backend = Backend::start("behind").await?;
    let (ours, strangers) = (tls("edge-1", "cloud")?, tls("edge-1", "cloud")?);
    let plain = Tls { folder: TempDir::with_prefix("culvert-")?, chain: String::new(), cluster: String::new() };
    for (what, theirs) in [("another authority", &strangers), ("no TLS", &plain)] {
        let cloud = our_cloud(ALL, &secured("agents", &ours)).await?;
        let edge = our_edge(cloud.listener("tunnel")?, backend.address, theirs).await?;
        let context = || format!("{what}\ncloud:\n{}\nedge:\n{}", cloud.daemon.output(), edge.daemon.output());
        cloud.stat_reaches("tunnel_server.reverse_tunnel.accepted", 1).await.with_context(context)?;
        let asked = Instant::now();
        let answer = ask(cloud.listener("in")?, "edge-1").await?;
        ensure!(answer.status == 503, "saw {} {}\n{}", answer.status, answer.text(), context());
        // Whoever waited for it hears of it at once, and not at the end of `queue_timeout` (5 s).
        ensure!(asked.elapsed() < Duration::from_secs(3), "answered after {:?}\n{}", asked.elapsed(), context());
        cloud.stat_reaches("tunnel_server.reverse_tunnel.tls_failures", 1).await.with_context(context)?;
        edge.stop().await?;
        cloud.stop().await?;
    }
    ensure!(backend.requests() == 0, "a request reached the backend");
    Ok(())
}
