//! One port takes whatever an agent speaks: TLS or plaintext, MOSN's frames, as which ours begin, and Envoy's request in both
//! modes; and agents of several tenants. Real Envoys are among those who dial.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use bytes::Bytes;
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::client::{get, send};
use culvert_tests::envoy::Envoy;
use culvert_tests::gateway::{Gateway, cluster, http_listener};
use culvert_tests::peer::Peer;
use culvert_tests::reverse::{self, BY_NODE, Tls, initiator, initiator_extension, our_cloud, responder_extension};
use culvert_tests::scale::join_over;
use culvert_tests::tunnel::{self, connections, tunnel_listener};
use culvert_tests::wait::eventually;
use http_body_util::Full;
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Agents, each named by what it speaks.
const OURS: [&str; 2] = ["ours-plaintext", "ours-tls"];
const MOSN: [&str; 2] = ["mosn-plaintext", "mosn-tls"];
const ENVOY: [&str; 3] = ["envoy-200", "envoy-101", "envoy-tls"];

/// A cloud with one port for all of them: two filter chains that differ in TLS. Who asks names an agent by the path.
async fn cloud(tls: &Tls) -> Result<Gateway> {
    let named = |name: &str| {
        format!(
            "{{match: {{path: /{name}}}, route: {{cluster: edge, metadata_match: {{filter_metadata: {{culvert.tunnel: {{agent: {name}}}}}}}}}}}"
        )
    };
    let routes: Vec<_> = [&OURS[..], &MOSN, &ENVOY].concat().into_iter().map(named).collect();
    let listener = tunnel_listener("tunnel", "allow_envoy_to_leave_tls: true");
    let (head, filters) = listener.split_once("    - filters:\n").context("no filters")?;
    let chain = |protocol: &str, socket: &str| {
        format!("    - filter_chain_match: {{transport_protocol: {protocol}}}\n      filters:\n{filters}{socket}")
    };
    let inspector = "    listener_filters: [{name: tls, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}]\n";
    let head = head.replace("    filter_chains:\n", &format!("{inspector}    filter_chains:\n"));
    let port = head
        + &chain("tls", &tls.chain.replace("require_client_certificate: true", "require_client_certificate: false"))
        + &chain("raw_buffer", "");
    let listeners = http_listener("in", &format!("[{}]", routes.join(", ")), "", "") + &port;
    Gateway::start_in(TempDir::with_prefix("culvert-")?, &listeners, &cluster("edge", &[], ""), "", 2).await
}

/// A stock agent, written by hand: it answers each request with its name.
async fn stock(mut socket: impl AsyncRead + AsyncWrite + Unpin, name: &str) -> Result {
    join_over(&mut socket, name, "").await?;
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
    let mut head = Vec::new();
    while let Ok(byte) = socket.read_u8().await {
        head.push(byte);
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            socket.write_all(answer.as_bytes()).await?;
            socket.flush().await?;
        }
    }
    Ok(())
}

/// A real Envoy, whose cluster is the one that the others join.
async fn envoy(name: &str, port: SocketAddr, tls: &Tls, backend: &Backend) -> Result<Option<Envoy>> {
    let Some(program) = Peer::Envoy.find()? else { return Ok(None) };
    let socket = if name == "envoy-tls" { tls.cluster.as_str() } else { "" };
    let clusters = cluster("cloud", &[port], socket) + &cluster("backend", &[backend.address], "");
    let listener = initiator(name, 1).replace(":edge-cluster:", ":edge:");
    let upgrade = format!("http_handshake: {{use_http_upgrade: {}}}", name == "envoy-101");
    let (folder, extension) = (TempDir::with_prefix("culvert-")?, initiator_extension(&upgrade));
    Envoy::start_in(folder, &program, &listener, &clusters, &extension, 1).await.map(Some)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_port_takes_tls_and_plaintext_and_every_dialect() -> Result {
    let tls = reverse::tls("cloud", "agent")?;
    let cloud = cloud(&tls).await?;
    let (port, backend) = (cloud.listener("tunnel")?, Backend::start("behind").await?);
    let mut edges = Vec::new();
    for (name, socket) in OURS.into_iter().zip(["", &tls.cluster]) {
        edges.push(tunnel::edge(&[port], backend.address, &format!("host_name: {name}, {socket}")).await?);
    }
    let mut agents = JoinSet::new();
    agents.spawn(stock(TcpStream::connect(port).await?, MOSN[0]));
    let (client, server) = (culvert_tests::tls::client(tls.folder.path())?, ServerName::try_from("cloud")?);
    agents.spawn(stock(client.connect(server, TcpStream::connect(port).await?).await?, MOSN[1]));
    let mut envoys = Vec::new();
    for name in ENVOY {
        envoys.extend(envoy(name, port, &tls, &backend).await?);
    }
    let served: Vec<_> = [&OURS[..], &MOSN, if envoys.is_empty() { &[] } else { &ENVOY }].concat();
    for name in &served {
        eventually(&format!("{name} serves"), async || {
            let answer = get(cloud.listener("in")?, &format!("/{name}")).await?;
            ensure!(answer.status == 200, "saw {} {}\n{}", answer.status, answer.text(), cloud.daemon.output());
            Ok(())
        })
        .await?;
    }
    let connections = connections(&cloud).await?;
    for name in &served {
        let one = connections.iter().find(|one| one["host_name"] == **name).with_context(|| format!("no {name}"))?;
        let dialect = name.split('-').next().unwrap_or_default().replace("ours", "culvert");
        ensure!(one["dialect"] == dialect, "{name}: expected the dialect {dialect}, saw {one:#}");
    }
    ensure!(connections.len() == served.len(), "expected one tunnel of each, saw {connections:#?}");
    drop(envoys);
    agents.shutdown().await;
    for edge in edges {
        edge.stop().await?;
    }
    cloud.stop().await
}

/// Two real initiators of one name, each in a tenant of its own: who asks within a tenant reaches its agent and no other.
#[tokio::test]
async fn a_real_initiator_is_reached_within_its_tenant_alone() -> Result {
    let Some(program) = Peer::Envoy.find()? else { return Ok(()) };
    let formats = format!("{BY_NODE}, tenant_id_format: \"%REQ(x-tenant)%\"");
    let isolated = responder_extension("enable_tenant_isolation: true");
    let cloud = our_cloud("ping_interval: 1s", &formats, &isolated).await?;
    let (gateway, mut edges) = (cloud.listener("in")?, Vec::new());
    let ask = async |tenant: &str| {
        let request = http::Request::get("/").header("host", "test").header("x-node-id", "edge-1");
        send(gateway, request.header("x-tenant", tenant).body(Full::new(Bytes::new()))?).await
    };
    for tenant in ["tenant-a", "tenant-b"] {
        let before = ask(tenant).await?;
        ensure!(before.status == 503, "{tenant} has no agent yet, saw {} {}", before.status, before.text());
        let backend = Backend::start(tenant).await?;
        let clusters = cluster("cloud", &[cloud.listener("tunnel")?], "") + &cluster("backend", &[backend.address], "");
        let listener = initiator("edge-1", 1).replace("tenant-a", tenant);
        let (folder, extension) = (TempDir::with_prefix("culvert-")?, initiator_extension(""));
        let edge = Envoy::start_in(folder, &program, &listener, &clusters, &extension, 1).await?;
        eventually(&format!("the agent of {tenant} answers"), async || {
            let answer = ask(tenant).await?;
            ensure!(answer.status == 200, "saw {} {}\n{}", answer.status, answer.text(), cloud.daemon.output());
            Ok(())
        })
        .await?;
        edges.push((edge, backend));
    }
    for _ in 0..20 {
        for tenant in ["tenant-a", "tenant-b"] {
            let answer = ask(tenant).await?;
            ensure!(answer.text() == format!("{tenant}\n"), "{tenant}: saw {} {}", answer.status, answer.text());
        }
        for stranger in ["tenant-c", ""] {
            let answer = ask(stranger).await?;
            ensure!(answer.status == 503, "{stranger:?}: saw {} {}", answer.status, answer.text());
        }
    }
    cloud.stop().await
}
