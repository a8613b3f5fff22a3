//! One tunnel connection and what goes through it: requests that are given up, TCP with half-close, gRPC.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::backend::{Backend, scripted, web_socket};
use culvert_tests::client::{Answer, get, read_head};
use culvert_tests::gateway::{HTTP2, cluster};
use culvert_tests::grpc;
use culvert_tests::pair::{cloud, edge, joined};
use culvert_tests::tunnel::{tcp_edge, tcp_listener};
use culvert_tests::wait::{eventually, in_time};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TO_EDGE: &str = "[{match: {prefix: /}, route: {cluster: edge}}]";
const TO_A: &str = "[{match: {prefix: /}, route: {cluster: a}}]";
const WEBSOCKET: &str = "upgrade_configs: [{upgrade_type: websocket}]";
const CONNECT: &str = "[{match: {connect_matcher: {}}, route: {cluster: edge, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}}]";

fn says(answer: &Answer, status: u16, body: &str) -> Result {
    let seen = (answer.status.as_u16(), answer.text());
    ensure!(seen == (status, body.to_owned()), "expected {status} {body:?}, saw {seen:?}");
    Ok(())
}

/// Sends a request and leaves after the first bytes of the answer.
async fn leave_early(address: SocketAddr, path: &str) -> Result {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await?;
    in_time("the answer begins", socket.read_u8()).await??;
    Ok(())
}

/// Sends the first half of a body at once and the second one a little later.
async fn in_two_halves(mut socket: TcpStream) -> Result {
    let head = read_head(&mut socket).await?;
    let long = head.starts_with("GET /long ");
    let body = if long { 1 << 20 } else { 1000 };
    socket.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {body}\r\n\r\n").as_bytes()).await?;
    socket.write_all(&vec![b'x'; body / 2]).await?;
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    Ok(socket.write_all(&vec![b'x'; body / 2]).await?)
}

#[tokio::test]
async fn clients_that_leave_cost_nobody_a_request_on_the_one_plain_tunnel() -> Result {
    let halves = scripted(in_two_halves).await?;
    let backend = Backend::start("behind").await?;
    let cloud = cloud(TO_EDGE, "", "protocol: HTTP1", "", 2).await?;
    let routes = "[{match: {prefix: /short}, route: {cluster: halves}}, {match: {prefix: /long}, route: {cluster: halves}}, {match: {prefix: /}, route: {cluster: a}}]";
    let clusters = cluster("a", &[backend.address], "") + &cluster("halves", &[halves], "");
    let site = edge(cloud.listener("tunnel")?, "site", (routes, ""), &clusters, "").await?;
    joined(&cloud, 1).await?;
    let address = cloud.listener("in")?;
    for turn in 0..5 {
        leave_early(address, "/short").await?;
        says(&get(address, "/").await?, 200, "behind\n").with_context(|| format!("after short answer {turn}"))?;
    }
    let accepted = cloud.stat("tunnel_server.t.accepted").await?;
    ensure!(accepted == 1, "expected the rest of a short answer to be read, the tunnel was opened {accepted} times");
    for turn in 0..5 {
        leave_early(address, "/long").await?;
        let waiting: Vec<_> = (0..4).map(|_| tokio::spawn(async move { get(address, "/").await })).collect();
        for request in waiting {
            says(&request.await??, 200, "behind\n").with_context(|| format!("after long answer {turn}"))?;
        }
    }
    let accepted = cloud.stat("tunnel_server.t.accepted").await?;
    ensure!(accepted > 1, "expected a long answer that nobody wants to cost its connection");
    site.stop().await?;
    cloud.stop().await
}

#[tokio::test]
async fn requests_wait_while_a_websocket_has_the_one_plain_tunnel_and_for_the_next_one() -> Result {
    let (chat, backend) = (scripted(web_socket).await?, Backend::start("behind").await?);
    let cloud = cloud(TO_EDGE, WEBSOCKET, "protocol: HTTP1", "", 2).await?;
    let routes = "[{match: {prefix: /chat}, route: {cluster: chat}}, {match: {prefix: /}, route: {cluster: a}}]";
    let clusters = cluster("a", &[backend.address], "") + &cluster("chat", &[chat], "");
    let site = edge(cloud.listener("tunnel")?, "site", (routes, WEBSOCKET), &clusters, "").await?;
    joined(&cloud, 1).await?;
    let address = cloud.listener("in")?;
    for turn in 0..5 {
        let mut socket = TcpStream::connect(address).await?;
        // Longer than what a peer sends to open HTTP/2, as any chat is.
        let switch = format!(
            "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\nx-long: {:0>200}\r\n\r\n",
            0
        );
        socket.write_all(switch.as_bytes()).await?;
        let switched = read_head(&mut socket).await.with_context(|| format!("WebSocket {turn}"))?;
        ensure!(switched.starts_with("HTTP/1.1 101 "), "expected 101, saw {switched:?}");
        socket.write_all(b"word").await?;
        let mut word = [0; 4];
        in_time("the echo", socket.read_exact(&mut word)).await??;
        let queued = cloud.stat("cluster.edge.tunnel.queued").await?;
        let waiting: Vec<_> = (0..4).map(|_| tokio::spawn(async move { get(address, "/").await })).collect();
        cloud.stat_reaches("cluster.edge.tunnel.queued", queued + 4).await?;
        drop(socket);
        for request in waiting {
            says(&request.await??, 200, "behind\n").with_context(|| format!("after WebSocket {turn}"))?;
        }
    }
    site.stop().await?;
    cloud.stop().await
}

/// Says hello, reads to the end, answers in capitals, and closes: half-closed in the one direction, then in the other.
async fn polite(mut socket: TcpStream) -> Result {
    socket.write_all(b"hello ").await?;
    let mut text = Vec::new();
    socket.read_to_end(&mut text).await?;
    socket.write_all(&text.to_ascii_uppercase()).await?;
    Ok(socket.shutdown().await?)
}

/// Speaks and closes its direction first; then gives back, on a connection of its own to be counted, what it was told.
async fn hasty(mut socket: TcpStream) -> Result {
    socket.write_all(b"goodbye").await?;
    socket.shutdown().await?;
    let mut text = String::new();
    socket.read_to_string(&mut text).await?;
    let mut report = TcpStream::connect(text.parse::<SocketAddr>()?).await?;
    Ok(report.write_all(b"heard").await?)
}

/// A connection whose client closes its direction first.
async fn client_first(mut socket: TcpStream, number: usize) -> Result {
    let mut hello = [0; 6];
    in_time("a greeting", socket.read_exact(&mut hello)).await??;
    let text = format!("connection {number}");
    socket.write_all(text.as_bytes()).await?;
    socket.shutdown().await?;
    let mut answer = String::new();
    in_time("the answer", socket.read_to_string(&mut answer)).await??;
    ensure!(&hello == b"hello " && answer == text.to_uppercase(), "saw {hello:?} {answer:?}");
    Ok(())
}

/// A connection whose server closes its direction first.
async fn server_first(mut socket: TcpStream) -> Result {
    let mut goodbye = String::new();
    in_time("the server's end", socket.read_to_string(&mut goodbye)).await??;
    ensure!(goodbye == "goodbye", "saw {goodbye:?}");
    let report = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    socket.write_all(report.local_addr()?.to_string().as_bytes()).await?;
    socket.shutdown().await?;
    let (mut reporter, _) = in_time("the server heard the client after its own end", report.accept()).await??;
    let mut heard = String::new();
    reporter.read_to_string(&mut heard).await?;
    ensure!(heard == "heard", "saw {heard:?}");
    Ok(())
}

#[tokio::test]
async fn a_thousand_tcp_connections_pass_one_http2_tunnel_with_half_close_both_ways() -> Result {
    let servers = [scripted(polite).await?, scripted(hasty).await?];
    for (server, count) in servers.into_iter().zip([1000, 20]) {
        let cloud = cloud(TO_EDGE, "", "protocol: HTTP2", &tcp_listener("tcp", "edge"), 2).await?;
        let site = tcp_edge(&[cloud.listener("tunnel")?], server, "").await?;
        joined(&cloud, 1).await?;
        let address = cloud.listener("tcp")?;
        for number in 0..count {
            let socket = TcpStream::connect(address).await?;
            let passed = if count == 1000 { client_first(socket, number).await } else { server_first(socket).await };
            passed.with_context(|| format!("connection {number}"))?;
        }
        let accepted = cloud.stat("tunnel_server.t.accepted").await?;
        ensure!(accepted == 1, "expected one tunnel for all of them, saw {accepted}");
        eventually("no stream is left", async || {
            let active = cloud.stat("cluster.edge.upstream_rq_active").await?;
            ensure!(active == 0, "{active} are");
            Ok(())
        })
        .await?;
        site.stop().await?;
        cloud.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn connect_ends_at_the_far_side_of_a_tunnel_of_either_protocol() -> Result {
    let servers = [scripted(polite).await?, scripted(hasty).await?];
    for server in servers.iter().copied() {
        let cloud = cloud(CONNECT, "", "protocol: HTTP2", "", 2).await?;
        let site = tcp_edge(&[cloud.listener("tunnel")?], server, "").await?;
        joined(&cloud, 1).await?;
        for number in 0..20 {
            let mut socket = TcpStream::connect(cloud.listener("in")?).await?;
            socket.write_all(b"CONNECT somewhere:80 HTTP/1.1\r\nhost: somewhere:80\r\n\r\n").await?;
            let head = read_head(&mut socket).await?;
            ensure!(head.starts_with("HTTP/1.1 200 "), "connection {number}: saw {head:?}");
            let passed =
                if server == servers[0] { client_first(socket, number).await } else { server_first(socket).await };
            passed.with_context(|| format!("connection {number}"))?;
        }
        site.stop().await?;
        cloud.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn grpc_keeps_its_trailers_through_a_tunnel() -> Result {
    let server = scripted(grpc::serve).await?;
    let cloud = cloud(TO_EDGE, "", "protocol: HTTP2", "", 2).await?;
    let site = edge(cloud.listener("tunnel")?, "site", (TO_A, ""), &cluster("a", &[server], HTTP2), "").await?;
    joined(&cloud, 1).await?;
    for _ in 0..4 {
        grpc::check(cloud.listener("in")?).await?;
    }
    site.stop().await?;
    cloud.stop().await
}
