//! UDP from a client in the cloud through a tunnel of ours to a host at the edge, within CONNECT-UDP.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::ca::Authority;
use culvert_tests::datagrams::{Asker, Echo, TUNNELING, listener, terminating};
use culvert_tests::gateway::{Gateway, HTTP2, cluster, http_listener};
use culvert_tests::pair;
use culvert_tests::plane::{Plane, Way, envoy};
use culvert_tests::reverse;
use culvert_tests::tunnel::{connections, sharing, tunnel_listener};
use culvert_tests::wait::{PATIENCE, eventually, in_time};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

const OURS: &str = ", connection_num: 1, reconnect_base_interval: 0.05s";

async fn cloud(fields: &str) -> Result<Gateway> {
    let udp = listener("dns", "edge", fields);
    pair::cloud("[{match: {prefix: /}, route: {cluster: edge}}]", "", "", &udp, 2).await
}

async fn edge(cloud: &Gateway, host: SocketAddr, fields: &str) -> Result<Gateway> {
    named(cloud.listener("tunnel")?, "edge-1", host, fields).await
}

async fn named(server: SocketAddr, name: &str, host: SocketAddr, fields: &str) -> Result<Gateway> {
    let (routes, manager) = terminating("host");
    pair::edge(server, name, (&routes, manager), &cluster("host", &[host], ""), &format!("{OURS}{fields}")).await
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

/// The agent is who its certificate says, within TLS that both ends verify; who shows none brings no datagram anywhere.
#[tokio::test]
async fn sessions_through_a_tunnel_within_mutual_tls() -> Result {
    let host = Echo::start().await?;
    let tls = reverse::tls("cloud.test", "spiffe://test/site-1")?;
    let listeners = listener("dns", "edge", TUNNELING)
        + &tunnel_listener("tunnel", "policy: who, handshake_timeout: 1s")
        + &tls.chain;
    let policy = "bootstrap_extensions:\n- name: culvert.tunnel_policies\n  typed_config: {\"@type\": type.googleapis.com/culvert.tunnel.v1.TunnelPolicies, policies: [{name: who, rules: [{name: sites, principals: [{uri: \"spiffe://test/*\"}], clusters: [edge]}]}]}";
    let folder = TempDir::with_prefix("culvert-")?;
    let cloud = Gateway::start_in(folder, &listeners, &cluster("edge", &[], ""), policy, 2).await?;
    let stranger = edge(&cloud, host.address, "").await?;
    stranger.stat_reaches("tunnel_agent.agent.dials", 2).await?;
    let asker = Asker::new(cloud.listener("dns")?).await?;
    ensure!(asker.ask(b"anybody?").await.is_err(), "an agent without a certificate serves");
    stranger.stop().await?;
    let edge = edge(&cloud, host.address, &format!(", {}", tls.cluster)).await?;
    pair::joined(&cloud, 1).await?;
    hundred(&cloud).await.with_context(|| format!("{}\n{}", cloud.daemon.output(), edge.daemon.output()))?;
    let tunnels = connections(&cloud).await?;
    ensure!(
        tunnels.len() == 1 && tunnels[0]["host_name"] == "site-1",
        "expected the tunnel of site-1, saw {tunnels:#?}"
    );
    let events = tunnels[0]["events"].to_string();
    ensure!(events.contains("TLSv1"), "expected the tunnel within TLS, saw {events}");
    let streams = cloud.stat("cluster.edge.udp.sess_tunnel_success").await?;
    ensure!(streams == 100, "expected a stream for each client, saw {streams}");
    asker.ask_again(b"anybody?").await
}

/// A cluster for each agent, which shares those of the one that they have joined, picks an agent by its name.
#[tokio::test]
async fn clusters_that_share_agents_carry_datagrams_and_pick_an_agent_by_name() -> Result {
    let (one, two) = (Echo::start().await?, Echo::start().await?);
    let listeners = ["one", "two", "any"].map(|name| listener(name, name, TUNNELING)).concat();
    let clusters = sharing("one", "{registered_as: edge, host_names: [edge-1]}", "")
        + &sharing("two", "{registered_as: edge, host_names: [edge-2]}", "")
        + &sharing("any", "{registered_as: edge}", "circuit_breakers: {thresholds: [{max_connections: 2}]}")
        + &cluster("edge", &[], "");
    let listeners = listeners + &tunnel_listener("tunnel", "reconnect_window: 0s");
    let cloud = Gateway::start_in(TempDir::with_prefix("culvert-")?, &listeners, &clusters, "", 2).await?;
    let server = cloud.listener("tunnel")?;
    let first = named(server, "edge-1", one.address, "").await?;
    let second = named(server, "edge-2", two.address, "").await?;
    pair::joined(&cloud, 2).await?;
    let sent = async |edge: &Gateway| edge.stat("cluster.host.udp.sess_tx_datagrams").await;
    for (name, picked, other) in [("one", &first, &second), ("two", &second, &first)] {
        let (before, idle) = (sent(picked).await?, sent(other).await?);
        // See [`hundred`].
        let mut askers = Vec::new();
        for number in 0..10 {
            let asker = Asker::new(cloud.listener(name)?).await?;
            asker.ask_again(b"hello").await.with_context(|| format!("{name}, client {number}"))?;
            askers.push(asker);
        }
        let (after, still) = (sent(picked).await?, sent(other).await?);
        ensure!(after >= before + 10, "{name}: expected ten datagrams at its agent, saw {}", after - before);
        ensure!(still == idle, "{name}: expected none at the other agent, saw {}", still - idle);
        let streams = cloud.stat(&format!("cluster.{name}.udp.sess_tunnel_success")).await?;
        ensure!(streams == 10, "{name}: expected ten streams of the sharing cluster, saw {streams}");
    }
    let streams = cloud.stat("cluster.edge.udp.sess_tunnel_success").await?;
    ensure!(streams == 0, "expected no stream of the cluster that they share, saw {streams}");
    // Limits are each cluster's own.
    let askers = [Asker::new(cloud.listener("any")?).await?, Asker::new(cloud.listener("any")?).await?];
    for asker in &askers {
        asker.ask_again(b"hello").await?;
    }
    let third = Asker::new(cloud.listener("any")?).await?;
    ensure!(third.ask(b"hello").await.is_err(), "expected two sessions of the cluster, and there is a third");
    let overflow =
        (cloud.stat("cluster.any.upstream_cx_overflow").await?, cloud.stat("cluster.edge.upstream_cx_overflow").await?);
    ensure!(overflow == (1, 0), "expected one datagram too many of the sharing cluster alone, saw {overflow:?}");
    // An agent that leaves takes its own sessions along, and nobody else's.
    let (kept, lost) = (Asker::new(cloud.listener("one")?).await?, Asker::new(cloud.listener("two")?).await?);
    kept.ask_again(b"before").await?;
    lost.ask_again(b"before").await?;
    drop(second);
    pair::joined(&cloud, 1).await?;
    kept.ask(b"after").await.context("the session of the other agent")?;
    ensure!(lost.ask(b"after").await.is_err(), "the agent is gone, and another one serves");
    let _second = named(server, "edge-2", two.address, "").await?;
    lost.ask_again(b"again").await.context("when the agent is back")
}

/// Agents in Envoy's dialect, with Envoy's cluster: the name is that of the `proxy_host`, or of a header that is added, which
/// may tell clients apart.
#[tokio::test]
async fn agents_in_envoys_dialect_are_picked_by_what_the_stream_says() -> Result {
    let (one, two) = (Echo::start().await?, Echo::start().await?);
    let host = |name: &str| TUNNELING.replace("proxy_host: edge", &format!("proxy_host: {name}"));
    let header = |value: &str| {
        let added =
            format!("tunneling_config: {{headers_to_add: [{{header: {{key: x-node-id, value: \"{value}\"}}}}], ");
        TUNNELING.replace("tunneling_config: {", &added)
    };
    let by_client = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%";
    let listeners = listener("host-1", "by-host", &host("edge-1"))
        + &listener("header-2", "by-header", &header("edge-2"))
        + &listener("client", "by-header", &header(&format!("edge-{by_client}")))
        + &reverse::tunnel_listener("ping_interval: 1s", "");
    let clusters = reverse::agents("by-host", "host_id_format: \"%REQ(:AUTHORITY)%\"")
        + &reverse::agents("by-header", reverse::BY_NODE);
    let extension = reverse::responder_extension("");
    let cloud = Gateway::start_in(TempDir::with_prefix("culvert-")?, &listeners, &clusters, &extension, 2).await?;
    let server = cloud.listener("tunnel")?;
    let first = named(server, "edge-1", one.address, ", envoy: {tenant_id: t}").await?;
    let second = named(server, "edge-2", two.address, ", envoy: {tenant_id: t}").await?;
    let third = named(server, "edge-127.0.0.1", two.address, ", envoy: {tenant_id: t}").await?;
    for (name, picked) in [("host-1", &first), ("header-2", &second), ("client", &third)] {
        let asker = Asker::new(cloud.listener(name)?).await?;
        asker.ask_again(b"hello").await.with_context(|| format!("{name}: {}", cloud.daemon.output()))?;
        let sent = picked.stat("cluster.host.udp.sess_tx_datagrams").await?;
        ensure!(sent >= 1, "{name}: expected its agent to be picked, which saw no datagram");
    }
    Ok(())
}

/// A listener of datagrams as a control plane gives it, whose sessions go into the cluster `edge`.
fn pushed(stat_prefix: &str) -> Value {
    const TYPES: &str = "extensions.filters.udp.udp_proxy.v3";
    let route = json!({ "@type": envoy(&format!("{TYPES}.Route")), "cluster": "edge" });
    json!({ "@type": envoy("config.listener.v3.Listener"), "name": "dns",
        "address": { "socket_address": { "protocol": "UDP", "address": "127.0.0.1", "port_value": 0 } },
        "listener_filters": [{ "name": "udp", "typed_config": {
            "@type": envoy(&format!("{TYPES}.UdpProxyConfig")), "stat_prefix": stat_prefix,
            "matcher": { "on_no_match": { "action": { "name": "route", "typed_config": route } } },
            "session_filters": [{ "name": "http_capsule", "typed_config": {
                "@type": envoy("extensions.filters.udp.udp_proxy.session.http_capsule.v3.FilterConfig") } }],
            "tunneling_config": { "proxy_host": "edge", "target_host": "10.0.0.53", "default_target_port": 53,
                "buffer_options": {} } } }] })
}

/// Where the listener of [`pushed`] is bound.
async fn bound(plane: &Plane) -> Result<SocketAddr> {
    let listeners = plane.page("/listeners?format=json").await?;
    let all = listeners["listener_statuses"].as_array().into_iter().flatten();
    let found = all.into_iter().find(|listener| listener["name"] == "dns").context("no such listener")?;
    Ok(format!("127.0.0.1:{}", found["local_address"]["socket_address"]["port_value"]).parse()?)
}

/// From the control plane to the host at the edge: a changed listener keeps its socket, and sessions what they began with;
/// one that goes takes no new clients.
#[tokio::test]
async fn a_listener_of_datagrams_comes_changes_and_goes_over_xds() -> Result {
    let host = Echo::start().await?;
    let mut plane = Plane::start(&[]).await?;
    let tunnels = format!("  listeners:\n{}", tunnel_listener("tunnel", ""));
    plane.put(
        "clusters.json",
        &[json!({ "@type": envoy("config.cluster.v3.Cluster"), "name": "edge", "type": "STATIC" })],
    )?;
    plane.start_proxy(Way { more: &tunnels, ..Way::default() }).await?;
    plane.ready().await?;
    let all = plane.page("/listeners?format=json").await?;
    let port = &all["listener_statuses"][0]["local_address"]["socket_address"]["port_value"];
    let edge = named(format!("127.0.0.1:{port}").parse()?, "edge-1", host.address, "").await?;
    let active = async |prefix: &str| plane.stat(&format!("udp.{prefix}.downstream_sess_active")).await;

    plane.put("listeners.json", &[pushed("first")])?;
    let address = eventually("the listener is there", async || bound(&plane).await).await?;
    let old = Asker::new(address).await?;
    old.ask_again(b"it came").await.with_context(|| plane.proxy_log())?;

    plane.put("listeners.json", &[pushed("second")])?;
    eventually("the change counts for new clients", async || {
        Asker::new(address).await?.ask(b"it changed").await?;
        ensure!(active("second").await? > 0, "no session of the second configuration");
        Ok(())
    })
    .await?;
    ensure!(bound(&plane).await? == address, "expected the address that it had");
    let new = Asker::new(address).await?;
    new.ask(b"it changed").await?;
    let sessions = plane.stat("udp.first.downstream_sess_total").await?;
    old.ask(b"still with the first").await?;
    let after = (
        plane.stat("udp.first.downstream_sess_total").await?,
        plane.stat("udp.first.downstream_sess_rx_datagrams").await?,
    );
    ensure!(
        after.0 == sessions && after.1 >= 2,
        "expected the session of before to go on, saw {after:?} after {sessions}"
    );

    plane.put("listeners.json", &[])?;
    eventually("new clients find nobody", async || {
        let late = Asker::new(address).await?;
        ensure!(late.ask(b"too late").await.is_err(), "it is still served");
        Ok(())
    })
    .await?;
    for asker in [&old, &new] {
        asker.ask(b"it went").await.context("a session outlives its listener")?;
    }
    // Until its stream ends.
    drop(edge);
    eventually("no session is left", async || {
        let left = (active("first").await?, active("second").await?);
        ensure!(left == (0, 0), "{left:?} sessions");
        Ok(())
    })
    .await?;
    plane.put("listeners.json", &[pushed("third")])?;
    eventually("the listener is there again", async || bound(&plane).await).await?;
    plane.stop_proxy().await
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
    // Longer than a busy machine may keep the client from asking again.
    let fields = "idle_timeout: 5s";
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
