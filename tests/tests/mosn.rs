//! A scripted MOSN peer in both roles, with the published vectors, against the real binary.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::client::get;
use culvert_tests::gateway::{Gateway, cluster, http_listener};
use culvert_tests::tunnel::{joined, sharing, tunnel_listener};
use culvert_tests::wait::{PATIENCE, eventually, in_time};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// What MOSN's own encoder writes for cluster "edge" and weight 10.
const INIT: &[u8] = b"\x20\x88\x01\x01\x01\x00\x00\x66{\"cluster_name\":\"edge\",\"weight\":10,\"host_name\":\"\",\"credential_policy\":\"\",\"credential\":\"\",\"extra\":null}";

fn response(status: u8) -> Vec<u8> {
    [b"\x20\x88\x01\x02\x02\x00\x00\x0c{\"status\":".as_slice(), &[b'0' + status], b"}"].concat()
}

fn init(cluster: &str, policy: &str, credential: &str) -> Vec<u8> {
    let json = format!(
        "{{\"cluster_name\":\"{cluster}\",\"weight\":10,\"host_name\":\"\",\"credential_policy\":\"{policy}\",\"credential\":\"{credential}\",\"extra\":null}}"
    );
    let length = u16::try_from(json.len()).unwrap_or(u16::MAX).to_be_bytes();
    [b"\x20\x88\x01\x01\x01\x00".as_slice(), &length, json.as_bytes()].concat()
}

/// A cloud whose cluster `edge` has only what joins it; `policies` is a flow sequence.
async fn cloud(policies: &str) -> Result<Gateway> {
    let tunnel = format!(
        "  - name: tunnel\n    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\n    filter_chains:\n    - filters:\n      - name: culvert.filters.network.tunnel_server\n        typed_config: {{\"@type\": type.googleapis.com/culvert.tunnel.v1.TunnelServer, stat_prefix: t, handshake_timeout: 2s, credential_policies: {policies}}}\n"
    );
    let gateway = http_listener("in", "[{match: {prefix: /}, route: {cluster: edge}}]", "", "");
    Gateway::start(&(gateway + &tunnel), &cluster("edge", &[], "")).await
}

async fn read_exactly(socket: &mut TcpStream, expected: &[u8]) -> Result {
    let mut seen = vec![0; expected.len()];
    tokio::time::timeout(PATIENCE, socket.read_exact(&mut seen)).await.context("no answer")??;
    ensure!(
        seen == expected,
        "expected {:?}, saw {:?}",
        String::from_utf8_lossy(expected),
        String::from_utf8_lossy(&seen)
    );
    Ok(())
}

async fn closed(socket: &mut TcpStream) -> Result {
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, socket.read_to_end(&mut rest)).await.context("still open")??;
    ensure!(rest.is_empty(), "expected the end, saw {:?}", String::from_utf8_lossy(&rest));
    Ok(())
}

/// Joins as a stock MOSN agent does, one byte at a time.
async fn join(address: SocketAddr) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    for byte in INIT {
        socket.write_all(&[*byte]).await?;
    }
    read_exactly(&mut socket, &response(1)).await?;
    Ok(socket)
}

async fn request_head(socket: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = tokio::time::timeout(PATIENCE, socket.read_u8()).await.context("no request came")??;
        head.push(byte);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

#[tokio::test]
async fn a_mosn_agent_joins_and_serves() -> Result {
    let cloud = cloud("[]").await?;
    let gateway = cloud.listener("in")?;
    ensure!(get(gateway, "/").await?.status == 503, "nobody has joined");
    let mut agent = join(cloud.listener("tunnel")?).await?;
    for turn in 0..3 {
        // Success means routable: no waiting here.
        let answer = tokio::spawn(async move { get(gateway, "/through").await });
        let head = request_head(&mut agent).await?;
        ensure!(head.starts_with("GET /through HTTP/1.1\r\n"), "turn {turn}: saw {head:?}");
        agent.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nedge").await?;
        let answer = answer.await??;
        ensure!(answer.status == 200 && answer.text() == "edge", "saw {} {:?}", answer.status, answer.text());
    }
    drop(agent);
    eventually("a closed tunnel takes its host along", async || {
        let answer = get(gateway, "/").await?;
        ensure!(answer.status == 503, "saw {}", answer.status);
        Ok(())
    })
    .await?;
    cloud.stop().await
}

/// One registration, one plain connection, and two clusters that share it: a request of each at a time takes its turn.
#[tokio::test]
async fn a_mosn_agent_that_has_joined_once_serves_the_clusters_that_share_it() -> Result {
    let routes = "[{match: {prefix: /reports}, route: {cluster: reports}}, {match: {prefix: /orders}, route: {cluster: orders}}]";
    let listeners = http_listener("in", routes, "", "") + &tunnel_listener("tunnel", "reconnect_window: 0s");
    let clusters = sharing("reports", "{registered_as: edge}", "")
        + &cluster("edge", &[], "")
        + &sharing("orders", "{registered_as: edge}", "");
    let cloud = Gateway::start(&listeners, &clusters).await?;
    let gateway = cloud.listener("in")?;
    let mut agent = join(cloud.listener("tunnel")?).await?;
    let shown = joined(&cloud, 1).await?;
    ensure!(shown[0]["further_clusters"] == serde_json::json!(["orders", "reports"]), "/tunnels shows {shown:#?}");
    for turn in 0..5 {
        let asking = ["/reports", "/orders"].map(|path| tokio::spawn(get(gateway, path)));
        for _ in 0..asking.len() {
            let head = request_head(&mut agent).await.with_context(|| format!("turn {turn}"))?;
            let path = head.split(' ').nth(1).context("no path")?;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len());
            agent.write_all(answer.as_bytes()).await?;
        }
        for (path, asked) in ["/reports", "/orders"].into_iter().zip(asking) {
            let answer = asked.await??;
            ensure!(answer.status == 200 && answer.text() == path, "{path}, turn {turn}: saw {answer:?}");
        }
    }
    for name in ["reports", "orders"] {
        let served = cloud.stat(&format!("cluster.{name}.upstream_rq_200")).await?;
        ensure!(served == 5, "expected five answers of {name}, saw {served}");
    }
    let registered = cloud.stat("tunnel_server.t.accepted").await?;
    ensure!(registered == 1, "expected one registration, saw {registered}");
    drop(agent);
    for path in ["/reports", "/orders"] {
        eventually("a closed tunnel leaves every cluster", async || {
            let answer = get(gateway, path).await?;
            ensure!(answer.status == 503, "{path}: saw {}", answer.status);
            Ok(())
        })
        .await?;
    }
    cloud.stop().await
}

#[tokio::test]
async fn refusals_are_answered_and_closed() -> Result {
    let open = cloud("[]").await?;
    let mut stranger = TcpStream::connect(open.listener("tunnel")?).await?;
    stranger.write_all(&init("nowhere", "", "")).await?;
    read_exactly(&mut stranger, &response(4)).await?;
    closed(&mut stranger).await?;
    open.stop().await?;

    let guarded = cloud("[{name: token, tokens: [{inline_string: sesame}]}]").await?;
    for (policy, credential, status) in [("", "", 2), ("nope", "sesame", 3), ("token", "wrong", 2)] {
        let mut agent = TcpStream::connect(guarded.listener("tunnel")?).await?;
        agent.write_all(&init("edge", policy, credential)).await?;
        read_exactly(&mut agent, &response(status)).await.with_context(|| format!("{policy:?} {credential:?}"))?;
        closed(&mut agent).await?;
    }
    let mut agent = TcpStream::connect(guarded.listener("tunnel")?).await?;
    agent.write_all(&init("edge", "token", "sesame")).await?;
    read_exactly(&mut agent, &response(1)).await?;
    guarded.stop().await
}

#[tokio::test]
async fn garbage_and_silence_are_closed_in_time_and_harm_no_other_tunnel() -> Result {
    let cloud = cloud("[]").await?;
    let tunnel = cloud.listener("tunnel")?;
    // A silent stranger; from the address of an agent that joined, a silent connection may be its aside connection.
    closed(&mut TcpStream::connect(tunnel).await?).await.context("silence")?;
    let mut good = join(tunnel).await?;
    let garbage: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\n",
        b"\x20\x88\x01\x01\x01\x00\x00\x00",
        b"\x20\x88\x01\x07\x01\x00\x00\x02{}",
        b"\x20\x88\x01\x01\x01\x00\xff\xff",
        b"\x20\x88\x01\x01",
    ];
    for bytes in garbage {
        let mut socket = TcpStream::connect(tunnel).await?;
        socket.write_all(bytes).await?;
        closed(&mut socket).await.with_context(|| format!("{bytes:?}"))?;
    }
    let gateway = cloud.listener("in")?;
    let answer = tokio::spawn(async move { get(gateway, "/").await });
    request_head(&mut good).await?;
    good.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?;
    ensure!(answer.await??.status == 200, "the good tunnel was expected to serve");
    cloud.stop().await
}

/// An edge that dials `server`.
async fn edge(server: SocketAddr, backend: SocketAddr) -> Result<Gateway> {
    let hosted = http_listener("hosted", "[{match: {prefix: /}, route: {cluster: a}}]", "", "")
        .replace("    filter_chains:", "    bind_to_port: false\n    filter_chains:");
    let agents = format!(
        "bootstrap_extensions:\n- name: culvert.tunnel_agents\n  typed_config:\n    \"@type\": type.googleapis.com/culvert.tunnel.v1.TunnelAgents\n    agents:\n    - {{name: agent, cluster: edge, hosting_listener: hosted, servers: [{{address: \"{server}\"}}], reconnect_base_interval: 0.05s, connect_timeout: 2s}}"
    );
    Gateway::start_in(TempDir::with_prefix("culvert-")?, &hosted, &cluster("a", &[backend], ""), &agents, 1).await
}

/// A server's socket; of its connections those are of interest that say something, as the aside connection does not.
struct Server {
    address: SocketAddr,
    spoken: mpsc::Receiver<TcpStream>,
}

impl Server {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, (speak, spoken)) = (listener.local_addr()?, mpsc::channel(16));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let speak = speak.clone();
                tokio::spawn(async move {
                    if matches!(socket.peek(&mut [0]).await, Ok(1..)) {
                        // Nobody may be interested any more.
                        let _ended = speak.send(socket).await;
                    }
                });
            }
        });
        Ok(Self { address, spoken })
    }

    /// The next connection, and what its init frame says.
    async fn accept_init(&mut self) -> Result<(TcpStream, serde_json::Value)> {
        let mut socket = in_time("a dial", self.spoken.recv()).await?.context("the server is gone")?;
        let mut header = [0; 8];
        in_time("an init frame", socket.read_exact(&mut header)).await??;
        ensure!(header[..6] == INIT[..6], "expected an init frame, saw {header:?}");
        let mut payload = vec![0; usize::from(u16::from_be_bytes([header[6], header[7]]))];
        in_time("its payload", socket.read_exact(&mut payload)).await??;
        Ok((socket, serde_json::from_slice(&payload)?))
    }
}

#[tokio::test]
async fn a_mosn_server_accepts_our_agent_and_sends_requests_with_the_reply() -> Result {
    let backend = Backend::start("behind").await?;
    let mut server = Server::start().await?;
    let edge = edge(server.address, backend.address).await?;
    let (mut socket, claim) = server.accept_init().await?;
    ensure!(claim["cluster_name"] == "edge" && claim["weight"] == 10, "saw {claim}");
    // What ours would like; a stranger's answer has no such key, and HTTP/1 it is.
    let (caps, protocol) = (&claim["extra"]["caps"], &claim["extra"]["protocol"]);
    ensure!(*caps == serde_json::json!(["culvert/1", "h2"]) && protocol == "h2", "saw {claim}");
    // As MOSN does under load: the first request in the segment of the reply, which is cut in the middle.
    let bytes = [response(1).as_slice(), b"GET /first HTTP/1.1\r\nhost: a\r\n\r\n"].concat();
    socket.write_all(&bytes[..13]).await?;
    socket.flush().await?;
    socket.write_all(&bytes[13..]).await?;
    let head = request_head(&mut socket).await?;
    ensure!(head.starts_with("HTTP/1.1 200"), "saw {head:?}");
    let mut body = [0; 7];
    socket.read_exact(&mut body).await?;
    ensure!(&body == b"behind\n", "saw {body:?}");
    edge.stop().await
}

#[tokio::test]
async fn our_agent_survives_refusals_and_odd_bytes_and_comes_back() -> Result {
    let backend = Backend::start("behind").await?;
    let mut server = Server::start().await?;
    let edge = edge(server.address, backend.address).await?;
    let answers: [&[u8]; 5] =
        [&response(4), &response(0), b"\x20\x88\x01\x03\x01\x00\x00\x02{}", b"HTTP/1.1 400 Bad Request\r\n\r\n", b""];
    for answer in answers {
        let (mut socket, _) = server.accept_init().await.with_context(|| format!("before {answer:?}"))?;
        socket.write_all(answer).await?;
    }
    let (mut socket, _) = server.accept_init().await?;
    socket.write_all(&response(1)).await?;
    socket.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await?;
    let head = request_head(&mut socket).await?;
    ensure!(head.starts_with("HTTP/1.1 200"), "saw {head:?}");
    edge.stop().await
}
