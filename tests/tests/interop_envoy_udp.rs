//! CONNECT-UDP between the real Envoy and us, both ways.

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::datagrams::{Asker, Echo, TUNNELING, listener, terminating};
use culvert_tests::envoy::Envoy;
use culvert_tests::gateway::{Gateway, HTTP2, cluster, http_listener};
use culvert_tests::peer::Peer;
use culvert_tests::wait::{eventually, in_time};
use tempfile::TempDir;

/// Twenty clients with datagrams of all sizes that both take.
async fn asked(address: std::net::SocketAddr) -> Result {
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..20_u8 {
        asking.spawn(async move {
            let asker = Asker::new(address).await?;
            for length in [1, 61, 62, 63, 64, 500, 1200, 1400] {
                asker.ask_again(&vec![number; length]).await.with_context(|| format!("{length} bytes"))?;
            }
            Ok::<_, anyhow::Error>(asker)
        });
    }
    // They stay until all have asked: one that came later could have the port, and with it the session, of one that went.
    let mut askers = Vec::new();
    while let Some(asked) = in_time("all are answered", asking.join_next()).await? {
        askers.push(asked??);
    }
    Ok(())
}

#[tokio::test]
async fn envoy_brings_datagrams_to_our_edge() -> Result {
    let Some(program) = Peer::Envoy.find()? else { return Ok(()) };
    let host = Echo::start().await?;
    let (routes, manager) = terminating("host");
    let listeners = http_listener("in", &routes, manager, "");
    let edge = Gateway::start(&listeners, &cluster("host", &[host.address], "")).await?;
    let clusters = cluster("edge", &[edge.listener("in")?], HTTP2);
    let folder = TempDir::with_prefix("culvert-")?;
    let envoy = Envoy::start_in(folder, &program, &listener("dns", "edge", TUNNELING), &clusters, "", 1).await?;
    asked(envoy.listener("dns")?)
        .await
        .with_context(|| format!("{}\n{}", envoy.daemon.output(), edge.daemon.output()))?;
    let streams = envoy.stat("cluster.edge.udp.sess_tunnel_success").await?;
    ensure!(streams == 20, "expected a stream for each client, saw {streams}");
    let sent = edge.stat("cluster.host.udp.sess_tx_datagrams").await?;
    ensure!(sent >= 160, "expected 160 datagrams to the host, saw {sent}");
    Ok(())
}

#[tokio::test]
async fn we_bring_datagrams_to_an_envoy() -> Result {
    let Some(program) = Peer::Envoy.find()? else { return Ok(()) };
    let host = Echo::start().await?;
    let (routes, manager) = terminating("host");
    let listeners = http_listener("in", &routes, manager, "");
    let folder = TempDir::with_prefix("culvert-")?;
    let envoy = Envoy::start_in(folder, &program, &listeners, &cluster("host", &[host.address], ""), "", 1).await?;
    let clusters = cluster("edge", &[envoy.listener("in")?], HTTP2);
    let cloud = Gateway::start(&listener("dns", "edge", TUNNELING), &clusters).await?;
    asked(cloud.listener("dns")?)
        .await
        .with_context(|| format!("{}\n{}", envoy.daemon.output(), cloud.daemon.output()))?;
    let streams = cloud.stat("cluster.edge.udp.sess_tunnel_success").await?;
    ensure!(streams == 20, "expected a stream for each client, saw {streams}");
    Ok(())
}

/// Both count a session and its end alike, under the same names.
#[tokio::test]
async fn both_count_under_the_same_names() -> Result {
    let Some(program) = Peer::Envoy.find()? else { return Ok(()) };
    let host = Echo::start().await?;
    let (listeners, clusters) = (listener("dns", "host", "idle_timeout: 0.5s"), cluster("host", &[host.address], ""));
    let ours = Gateway::start(&listeners, &clusters).await?;
    let envoy = Envoy::start_in(TempDir::with_prefix("culvert-")?, &program, &listeners, &clusters, "", 1).await?;
    for address in [ours.listener("dns")?, envoy.listener("dns")?] {
        let asker = Asker::new(address).await?;
        for _ in 0..3 {
            asker.ask(b"four").await?;
        }
    }
    let expected = [
        ("udp.dns.downstream_sess_total", 1),
        ("udp.dns.downstream_sess_active", 0),
        ("udp.dns.downstream_sess_rx_datagrams", 3),
        ("udp.dns.downstream_sess_rx_bytes", 12),
        ("udp.dns.downstream_sess_tx_datagrams", 3),
        ("udp.dns.downstream_sess_tx_bytes", 12),
        ("udp.dns.idle_timeout", 1),
        ("cluster.host.udp.sess_tx_datagrams", 3),
        ("cluster.host.udp.sess_rx_datagrams", 3),
        ("cluster.host.upstream_cx_tx_bytes_total", 12),
        ("cluster.host.upstream_cx_rx_bytes_total", 12),
    ];
    for (name, value) in expected {
        eventually(&format!("{name} is {value}"), async || {
            let seen = (ours.stat(name).await?, envoy.stat(name).await?);
            ensure!(seen == (value, value), "ours and Envoy's are {seen:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
