//! The life of a tunnel, as it is seen: in lifecycle access logs with the words of Envoy's, and in the events of `/tunnels`.

use std::path::Path;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::client::get;
use culvert_tests::envoy::Envoy;
use culvert_tests::gateway::{Gateway, cluster, http_listener};
use culvert_tests::peer::Peer;
use culvert_tests::reverse::{
    BY_NODE, agents, initiator, initiator_extension, responder_extension, served, tls, tunnel_listener,
};
use culvert_tests::tunnel;
use culvert_tests::wait::eventually;
use serde_json::Value;
use tempfile::TempDir;

/// A field of a bootstrap extension: a log of whole events, a line each.
fn log(path: &Path, namespace: &str) -> String {
    format!(
        "access_log: [{{name: life, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: \"{}\", log_format: {{text_format_source: {{inline_string: \"%DYNAMIC_METADATA({namespace})%\\n\"}}}}}}}}]",
        path.display()
    )
}

fn events(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// Waits until every one of these events was logged; gives the first of each.
async fn logged(path: &Path, wanted: &[&str]) -> Result<Vec<Value>> {
    eventually(&format!("{wanted:?} in {}", path.display()), async || {
        let events = events(path)?;
        let first = |name: &&str| events.iter().find(|event| event["event"] == **name).cloned();
        let found: Vec<Value> = wanted.iter().filter_map(first).collect();
        ensure!(found.len() == wanted.len(), "saw {events:#?}");
        Ok(found)
    })
    .await
}

fn keys(event: &Value) -> Vec<&str> {
    event.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect()
}

const CLOUD: &str = "envoy.reverse_tunnel.lifecycle";
const EDGE: &str = "envoy.reverse_tunnel.initiator";
const ALL: &str = "[{match: {prefix: /}, route: {cluster: agents}}]";

/// The same two configurations at real Envoys and at ours: each field that Envoy's events have is in ours, with the same value
/// where the value is not of a process.
#[tokio::test]
async fn lifecycle_logs_have_envoys_fields() -> Result {
    let Some(program) = Peer::Envoy.find()? else { return Ok(()) };
    let folder = TempDir::with_prefix("culvert-")?;
    let backend = Backend::start("behind").await?;
    let listeners = http_listener("in", ALL, "", "") + &tunnel_listener("ping_interval: 1s", "");
    let mut told = Vec::new();
    for envoy in [true, false] {
        let path = |name: &str| folder.path().join(format!("{name}-{envoy}.log"));
        let (cloud_log, edge_log) = (path("cloud"), path("edge"));
        let of_cloud = responder_extension(&log(&cloud_log, CLOUD));
        let of_edge = initiator_extension(&log(&edge_log, EDGE));
        let clusters = agents("agents", BY_NODE);
        let start = async |listeners: &str, clusters: &str, more: &str| {
            let folder = TempDir::with_prefix("culvert-")?;
            Ok::<_, anyhow::Error>(if envoy {
                let daemon = Envoy::start_in(folder, &program, listeners, clusters, more, 1).await?;
                (daemon.listener("in").ok(), daemon.listener("tunnel").ok(), Running::Envoy(daemon))
            } else {
                let daemon = Gateway::start_in(folder, listeners, clusters, more, 1).await?;
                (daemon.listener("in").ok(), daemon.listener("tunnel").ok(), Running::Ours(daemon))
            })
        };
        let (gateway, tunnel, cloud) = start(&listeners, &clusters, &of_cloud).await?;
        let (gateway, tunnel) = (gateway.context("a gateway")?, tunnel.context("a tunnel listener")?);
        let clusters = cluster("cloud", &[tunnel], "") + &cluster("backend", &[backend.address], "");
        let (_, _, edge) = start(&initiator("edge-1", 1), &clusters, &of_edge).await?;
        logged(&cloud_log, &["tunnel_setup", "idle_ping_sent", "idle_ping_ack"]).await?;
        served(gateway, "edge-1", "behind").await?;
        logged(&cloud_log, &["socket_handoff"]).await?;
        // The agent's connection fails, and so does its next dial.
        cloud.stop().await?;
        let edge_events = logged(&edge_log, &["handshake_success", "connection_closed", "handshake_failure"]).await?;
        let cloud_events =
            logged(&cloud_log, &["tunnel_setup", "idle_ping_sent", "idle_ping_ack", "socket_handoff", "tunnel_closed"])
                .await?;
        edge.stop().await?;
        told.push([cloud_events, edge_events].concat());
    }
    let [theirs, ours] = told.as_slice() else { anyhow::bail!("two stories") };
    for (theirs, ours) in theirs.iter().zip(ours) {
        for name in keys(theirs).into_iter().filter(|name| *name != "fd") {
            let (theirs_says, ours_says) = (&theirs[name], &ours[name]);
            ensure!(!ours_says.is_null(), "{name} is missing: Envoy {theirs:#}, ours {ours:#}");
            if ["event", "node_id", "cluster_id", "tenant_id", "socket_state", "handoff_kind", "upstream_cluster"]
                .contains(&name)
            {
                ensure!(theirs_says == ours_says, "{name}: Envoy {theirs:#}, ours {ours:#}");
            }
        }
    }
    Ok(())
}

enum Running {
    Envoy(Envoy),
    Ours(Gateway),
}

impl Running {
    async fn stop(self) -> Result {
        match self {
            Self::Envoy(mut daemon) => daemon.daemon.terminate(culvert_tests::wait::PATIENCE).await,
            Self::Ours(daemon) => daemon.stop().await,
        }
    }
}

/// An idle peer that goes, one that stops answering, and one that is refused, each under its own word.
#[tokio::test]
async fn lifecycle_logs_say_why_a_tunnel_ended() -> Result {
    let folder = TempDir::with_prefix("culvert-")?;
    let path = folder.path().join("cloud.log");
    let listeners = http_listener("in", ALL, "", "") + &tunnel_listener("ping_interval: 0.2s", "");
    let more = responder_extension(&log(&path, CLOUD));
    let own = TempDir::with_prefix("culvert-")?;
    let cloud = Gateway::start_in(own, &listeners, &agents("agents", BY_NODE), &more, 1).await?;
    let tunnel = cloud.listener("tunnel")?;
    let join = async |node: &str| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut socket = tokio::net::TcpStream::connect(tunnel).await?;
        let request = format!(
            "GET /reverse_connections/request HTTP/1.1\r\nhost: h\r\nx-envoy-reverse-tunnel-node-id: {node}\r\nx-envoy-reverse-tunnel-cluster-id: c\r\nx-envoy-reverse-tunnel-tenant-id: t\r\ncontent-length: 0\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).await?;
        // All of it: a socket with bytes unread says RST when it is closed.
        let mut answer = [0; 38];
        socket.read_exact(&mut answer).await?;
        ensure!(answer.starts_with(b"HTTP/1.1 200 OK"), "saw {:?}", String::from_utf8_lossy(&answer));
        Ok::<_, anyhow::Error>(socket)
    };
    drop(join("leaves").await?);
    let silent = join("silent").await?;
    for (node, reason) in [("leaves", "idle_peer_close"), ("silent", "idle_ping_timeout")] {
        eventually(&format!("{node} is told of"), async || {
            let events = events(&path)?;
            let closed = events.iter().find(|event| event["event"] == "tunnel_closed" && event["node_id"] == node);
            ensure!(closed.is_some_and(|event| event["close_reason"] == reason), "expected {reason}, saw {events:#?}");
            Ok(())
        })
        .await?;
    }
    drop(silent);
    let missed = logged(&path, &["idle_ping_miss", "idle_ping_timeout"]).await?;
    ensure!(missed[0]["miss_count"] == "1" && missed[1]["miss_count"] == "3", "saw {missed:#?}");
    cloud.stop().await
}

/// `/tunnels` at both ends: TCP, TLS with what was agreed on, the handshake, the first byte, the first PING, and why it ended.
#[tokio::test]
async fn events_tell_how_a_tunnel_came_to_stand_and_why_it_ended() -> Result {
    let (tls, backend) = (tls("cloud", "edge-1")?, Backend::start("behind").await?);
    let listeners = http_listener("in", "[{match: {prefix: /}, route: {cluster: edge}}]", "", "")
        + &tunnel::tunnel_listener("tunnel", "")
        + &tls.chain;
    let own = TempDir::with_prefix("culvert-")?;
    let cloud = Gateway::start_in(own, &listeners, &cluster("edge", &[], ""), "", 1).await?;
    let edge = tunnel::edge(&[cloud.listener("tunnel")?], backend.address, &tls.cluster).await?;
    tunnel::joined(&cloud, 1).await?;
    let answer = get(cloud.listener("in")?, "/").await?;
    ensure!(answer.status == 200, "saw {}", answer.status);
    let find = async |admin, pointer: &str, wanted: &[&str]| {
        eventually(&format!("{wanted:?}"), async || {
            let json = get(admin, "/tunnels").await?.json()?;
            let events = json.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
            let kinds: Vec<&str> = events.iter().filter_map(|event| event["kind"].as_str()).collect();
            let mut from = kinds.iter();
            ensure!(wanted.iter().all(|kind| from.any(|seen| seen == kind)), "expected {wanted:?}, saw {events:#?}");
            let agreed = events.iter().find(|event| event["kind"] == "tls").map(|event| event["detail"].to_string());
            ensure!(agreed.is_some_and(|agreed| agreed.contains("TLSv1.3 TLS_")), "what was agreed on: {events:#?}");
            Ok(())
        })
        .await
    };
    let serving = ["tls", "handshake", "established", "first_byte", "first_ping"];
    find(cloud.admin, "/connections/0/events", &serving).await?;
    let at_the_edge = "/agents/0/peers/0/connections/0/events";
    let dialled = ["dialing", "connected", "tls", "established", "first_byte"];
    find(edge.admin, at_the_edge, &[&dialled[..], &["first_ping"]].concat()).await?;
    let page = get(edge.admin, "/tunnels").await?.json()?;
    let standing = &page["agents"][0]["peers"][0]["connections"][0];
    ensure!(standing["dialect"] == "culvert" && standing["protocol"] == "http2", "saw {standing:#}");
    edge.stop().await?;
    find(cloud.admin, "/ended/0/events", &["tls", "handshake", "established", "first_byte", "ended"]).await?;
    let page = get(cloud.admin, "/tunnels").await?.json()?;
    ensure!(page["ended"][0]["requests"] == 1, "expected what it has carried, saw {:#}", page["ended"][0]);
    let edge = tunnel::edge(&[cloud.listener("tunnel")?], backend.address, &tls.cluster).await?;
    tunnel::joined(&cloud, 1).await?;
    cloud.stop().await?;
    find(edge.admin, at_the_edge, &[&dialled[..], &["ended"]].concat()).await?;
    edge.stop().await
}

/// What dashboards and alarms need: a series for each agent on the server, and for each server on the agent.
#[tokio::test]
async fn each_agent_and_each_server_has_its_series() -> Result {
    let backend = Backend::start("behind").await?;
    let cloud = tunnel::cloud("", 2).await?;
    let server = cloud.listener("tunnel")?;
    let edge = tunnel::edge(&[server], backend.address, "host_name: edge-7, connection_num: 2").await?;
    tunnel::joined(&cloud, 2).await?;
    let answer = get(cloud.listener("in")?, "/").await?;
    ensure!(answer.status == 200, "saw {}", answer.status);
    let labels = "{culvert_tunnel_cluster=\"edge\",culvert_tunnel_agent_name=\"edge-7\"}";
    let server = server.to_string().replace(':', "_");
    let dialled = format!("{{culvert_tunnel_agent=\"agent\",culvert_tunnel_server=\"{server}\"}}");
    for (admin, wanted) in [
        (cloud.admin, format!("envoy_tunnel_cluster_agent_connections{labels} 2")),
        (cloud.admin, format!("envoy_tunnel_cluster_agent_requests{labels} ")),
        (cloud.admin, "envoy_tunnel_server_agents{} 1".to_owned()),
        (edge.admin, format!("envoy_tunnel_agent_server_connections{dialled} 2")),
        (edge.admin, format!("envoy_tunnel_agent_server_connections_wanted{dialled} 2")),
        (edge.admin, format!("envoy_tunnel_agent_server_reconnects{dialled} 0")),
    ] {
        let text = get(admin, "/stats/prometheus?filter=tunnel").await?.text();
        ensure!(text.contains(&wanted), "expected {wanted}, saw\n{text}");
    }
    edge.stop().await?;
    eventually("its series are gone", async || {
        let text = get(cloud.admin, "/stats/prometheus?filter=tunnel").await?.text();
        ensure!(!text.contains("edge-7") && text.contains("envoy_tunnel_server_agents{} 0"), "saw {text}");
        Ok(())
    })
    .await?;
    cloud.stop().await
}
