//! What an Envoy 1.40 trips over when bytes of the handshake and of what follows it reach it together: we do not, and do not
//! have it do so.

use std::time::Duration;

use anyhow::{bail, ensure};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::client::{get, read_head};
use culvert_tests::gateway::{Gateway, hosted_agent};
use culvert_tests::tunnel::cloud;
use culvert_tests::wait::in_time;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// A scripted responder that does what trips a real initiator: everything in one segment.
#[tokio::test]
async fn our_agent_takes_pings_and_http2_beside_the_answer() -> Result {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    /// The client's preface with empty SETTINGS (RFC 9113 §3.4).
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let backend = Backend::start("behind").await?;
    let server = TcpListener::bind("127.0.0.1:0").await?;
    let edge = hosted_agent(server.local_addr()?, backend.address, "envoy: {tenant_id: a}").await?;
    for (first, echoes) in [(&b""[..], 0), (b"RPING", 1), (b"RPINGRPING", 2)] {
        let (mut socket, _) = in_time("a dial", server.accept()).await??;
        let head = in_time("a request", read_head(&mut socket)).await??;
        ensure!(head.starts_with("GET /reverse_connections/request HTTP/1.1\r\nhost: "), "saw {head:?}");
        ensure!(head.contains("x-envoy-reverse-tunnel-node-id: edge-1\r\n"), "saw {head:?}");
        socket.write_all(&[OK, first].concat()).await?;
        let mut echoed = vec![0; 5 * echoes];
        in_time("echoes", socket.read_exact(&mut echoed)).await??;
        ensure!(echoed == b"RPING".repeat(echoes), "saw {echoed:?}");
        if echoes == 0 {
            // Nothing was said before: the first request's bytes alone.
            socket.write_all(PREFACE).await?;
        } else {
            socket.write_all(b"RPI").await?;
            socket.write_all(b"NG").await?;
            let mut echoed = [0; 5];
            in_time("an echo of a ping in pieces", socket.read_exact(&mut echoed)).await??;
            socket.write_all(PREFACE).await?;
        }
        let mut frame = [0; 9];
        in_time("SETTINGS", socket.read_exact(&mut frame)).await??;
        ensure!(frame[3] == 4, "expected a SETTINGS frame, saw {frame:?}");
    }
    let (mut socket, _) = in_time("a dial", server.accept()).await??;
    in_time("a request", read_head(&mut socket)).await??;
    socket.write_all(&[OK, PREFACE].concat()).await?;
    let mut frame = [0; 9];
    in_time("SETTINGS", socket.read_exact(&mut frame)).await??;
    ensure!(frame[3] == 4, "expected a SETTINGS frame to what came with the answer, saw {frame:?}");
    drop(socket);
    edge.stop().await
}

/// An Envoy that reads a request in one segment with the answer holds it until more comes. So something does: a PING 15 ms behind
/// it, where its own first one is due after half a second. (The quickest of ten: on a busy machine some are late.)
#[tokio::test]
async fn the_first_request_is_followed_by_bytes_that_free_an_initiator_which_holds_it() -> Result {
    const OWN_PING: Duration = Duration::from_millis(500);
    let cloud = cloud("ping_interval: 60s, reconnect_window: 0s", 1).await?;
    let mut quickest = Duration::MAX;
    for _ in 0..10 {
        quickest = quickest.min(in_time("a PING behind a request", ping_behind_request(&cloud)).await??);
        if quickest < OWN_PING / 2 {
            return cloud.stop().await;
        }
    }
    bail!("expected a PING soon behind the first request, the quickest came after {quickest:?}")
}

/// As an initiator; how long after the request the PING came.
async fn ping_behind_request(cloud: &Gateway) -> Result<Duration> {
    const JOIN: &[u8] = b"GET /reverse_connections/request HTTP/1.1\r\nhost: h\r\nx-envoy-reverse-tunnel-node-id: edge-1\r\nx-envoy-reverse-tunnel-cluster-id: edge\r\nx-envoy-reverse-tunnel-tenant-id: t\r\ncontent-length: 0\r\n\r\n";
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const HEADERS: u8 = 1;
    const PING: u8 = 6;
    let mut agent = TcpStream::connect(cloud.listener("tunnel")?).await?;
    agent.write_all(JOIN).await?;
    let mut answer = [0; 38];
    agent.read_exact(&mut answer).await?;
    ensure!(answer.starts_with(b"HTTP/1.1 200 OK"), "saw {:?}", String::from_utf8_lossy(&answer));
    let gateway = cloud.listener("in")?;
    let asker = tokio::spawn(async move { get(gateway, "/").await });
    let mut preface = [0; PREFACE.len()];
    agent.read_exact(&mut preface).await?;
    ensure!(preface == PREFACE, "saw {:?}", String::from_utf8_lossy(&preface));
    while frame(&mut agent).await? != HEADERS {}
    let asked = Instant::now();
    while frame(&mut agent).await? != PING {}
    asker.abort();
    Ok(asked.elapsed())
}

/// Reads one HTTP/2 frame; its type.
async fn frame(socket: &mut TcpStream) -> Result<u8> {
    let mut head = [0; 9];
    socket.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(length)?];
    socket.read_exact(&mut payload).await?;
    Ok(head[3])
}
