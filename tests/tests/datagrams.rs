//! UDP from a client in the cloud through a tunnel of ours to a host at the edge, within CONNECT-UDP.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::ca::Authority;
use culvert_tests::datagrams::{Asker, Echo, TUNNELING, listener, terminating};
use culvert_tests::gateway::{Gateway, HTTP2, cluster, http_listener};
use culvert_tests::pair;
use culvert_tests::wait::{PATIENCE, eventually, in_time};
use rustix::process::Signal;
use tempfile::TempDir;

const OURS: &str = ", connection_num: 1, reconnect_base_interval: 0.05s";

async fn cloud(fields: &str) -> Result<Gateway> {
    let udp = listener("dns", "edge", fields);
    pair::cloud("[{match: {prefix: /}, route: {cluster: edge}}]", "", "", &udp, 2).await
}

async fn edge(cloud: &Gateway, host: SocketAddr, fields: &str) -> Result<Gateway> {
    let (routes, manager) = terminating("host");
    let server = cloud.listener("tunnel")?;
    pair::edge(server, "edge-1", (&routes, manager), &cluster("host", &[host], ""), &format!("{OURS}{fields}")).await
}

/// A hundred clients at a time, each with an address of its own, and each of them gets its own answers.
async fn hundred(cloud: &Gateway) -> Result {
    let address = cloud.listener("dns")?;
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..100_u32 {
        asking.spawn(async move {
            let asker = Asker::new(address).await?;
            for round in 0..10_u32 {
                let datagram = format!("client {number} round {round}").repeat(1 + (number as usize) % 50);
                asker.ask_again(datagram.as_bytes()).await.with_context(|| format!("client {number}"))?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(asked) = in_time("all are answered", asking.join_next()).await? {
        asked??;
    }
    Ok(())
}

#[tokio::test]
async fn a_hundred_sessions_through_one_tunnel() -> Result {
    let host = Echo::start().await?;
    let cloud = cloud(TUNNELING).await?;
    let edge = edge(&cloud, host.address, "").await?;
    pair::joined(&cloud, 1).await?;
    hundred(&cloud).await.with_context(|| format!("{}\n{}", cloud.daemon.output(), edge.daemon.output()))?;
    let sessions = cloud.stat("udp.dns.downstream_sess_total").await?;
    ensure!(sessions == 100, "expected a session for each client, saw {sessions}");
    let streams = cloud.stat("cluster.edge.udp.sess_tunnel_success").await?;
    ensure!(streams == 100, "expected a stream for each session, saw {streams}");
    let sent = edge.stat("cluster.host.udp.sess_tx_datagrams").await?;
    ensure!(sent >= 1000, "expected 1000 datagrams to the host, saw {sent}");
    Ok(())
}

/// Envoy: a session ends with its stream, and the next datagram begins another.
#[tokio::test]
async fn sessions_come_back_with_the_tunnel() -> Result {
    let host = Echo::start().await?;
    let cloud = cloud(TUNNELING).await?;
    let asker = Asker::new(cloud.listener("dns")?).await?;
    for round in 0..3 {
        let edge = edge(&cloud, host.address, "").await?;
        pair::joined(&cloud, 1).await?;
        asker.ask_again(b"there?").await.with_context(|| format!("round {round}: {}", cloud.daemon.output()))?;
        drop(edge);
        eventually("the session ends with its tunnel", async || {
            let active = cloud.stat("udp.dns.downstream_sess_active").await?;
            ensure!(active == 0, "{active} sessions");
            Ok(())
        })
        .await?;
        ensure!(asker.ask(b"nobody").await.is_err(), "without a tunnel nobody answers");
    }
    Ok(())
}

/// The agent's list of destinations holds for datagrams too.
#[tokio::test]
async fn an_agent_sends_datagrams_only_where_it_may() -> Result {
    let host = Echo::start().await?;
    let cloud = cloud(TUNNELING).await?;
    let range = ", destinations: {allowed: [{address_prefix: 10.0.0.0, prefix_len: 8}]}";
    let edge = edge(&cloud, host.address, range).await?;
    pair::joined(&cloud, 1).await?;
    let asker = Asker::new(cloud.listener("dns")?).await?;
    ensure!(asker.ask(b"let me in").await.is_err(), "127.0.0.1 is not among the destinations");
    edge.stat_reaches("cluster.host.tunnel.destination_denied", 1).await?;
    cloud.stat_reaches("cluster.edge.udp.sess_tunnel_failure", 2).await
}

/// A cluster whose hosts are HTTP/2 servers, within TLS, and no tunnels.
#[tokio::test]
async fn an_edge_that_is_dialled_over_tls() -> Result {
    let host = Echo::start().await?;
    let folder = TempDir::with_prefix("culvert-")?;
    Authority::new("root")?.issue(folder.path(), "edge", &["edge.test"])?;
    let (routes, manager) = terminating("host");
    let chain = "transport_socket: {name: tls, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: {alpn_protocols: [h2], tls_certificates: [{certificate_chain: {filename: edge.pem}, private_key: {filename: edge-key.pem}}]}}}";
    let listeners = http_listener("in", &routes, manager, chain);
    let edge = Gateway::start_in(folder, &listeners, &cluster("host", &[host.address], ""), "", 1).await?;
    let tls = format!(
        "{HTTP2}\ntransport_socket: {{name: tls, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: localhost, common_tls_context: {{}}}}}}"
    );
    let clusters = cluster("edge", &[edge.listener("in")?], &tls);
    let cloud = Gateway::start(&listener("dns", "edge", TUNNELING), &clusters).await?;
    hundred(&cloud).await.with_context(|| format!("{}\n{}", cloud.daemon.output(), edge.daemon.output()))?;
    Ok(())
}

/// SIGTERM: what is in use goes on until it is idle, and then the process ends.
#[tokio::test]
async fn a_process_that_stops_waits_for_its_sessions() -> Result {
    let host = Echo::start().await?;
    let fields = "idle_timeout: 1s";
    let mut gateway = Gateway::start(&listener("dns", "host", fields), &cluster("host", &[host.address], "")).await?;
    let asker = Asker::new(gateway.listener("dns")?).await?;
    asker.ask_again(b"before").await?;
    gateway.daemon.signal(Signal::TERM)?;
    eventually("it drains", async || {
        asker.ask(b"still served").await?;
        let new = Asker::new(gateway.listener("dns")?).await?;
        ensure!(new.ask(b"new").await.is_err(), "new clients are not served any more");
        Ok(())
    })
    .await?;
    let status = gateway.daemon.exit(PATIENCE).await?;
    ensure!(status.success(), "expected exit code 0, saw {status}: {}", gateway.daemon.output());
    Ok(())
}
