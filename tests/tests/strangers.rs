//! What strangers may send, from outside and over real sockets: the foreign h2spec against HTTP/2, requests that are to
//! cost memory, and gRPC that is none against the control plane.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::gateway::{Gateway, cluster, http_listener};
use culvert_tests::peer::Peer;
use culvert_tests::plane::Plane;
use culvert_tests::process::run;
use culvert_tests::wait::{eventually, in_time};
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const HELLO: &str =
    "[{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: \"hello, whoever you are\"}}}]";

/// All of its cases, those beyond the standard's musts too: none fails.
#[tokio::test]
async fn h2spec_finds_nothing() -> Result {
    let Some(h2spec) = Peer::H2spec.find()? else { return Ok(()) };
    // An answer before the request's end would make what comes behind it a matter of time.
    let backend = Backend::start("hello, whoever you are").await?;
    let listener = http_listener("in", "[{match: {prefix: /}, route: {cluster: a}}]", "codec_type: HTTP2", "");
    let gateway = Gateway::start(&listener, &cluster("a", &[backend.address], "")).await?;
    let port = gateway.listener("in")?.port().to_string();
    // Some cases pass when nothing comes within this time: it only has to be longer than a busy machine dawdles.
    let args = ["--strict", "--host", "127.0.0.1", "--port", &port, "--path", "/whole", "--timeout", "5"];
    let text = match run(&h2spec, &args, "", Duration::from_secs(300)).await {
        Ok(text) => text,
        Err(error) => format!("{error:#}"),
    };
    ensure!(text.contains("146 tests, "), "expected 146 cases, saw {text}");
    let failures = text.split_once("Failures:").map_or("", |(_, failures)| failures);
    ensure!(!failures.contains('×') && text.contains(" 0 failed"), "{text}");
    gateway.stop().await
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<Vec<u8>> {
    let length = u32::try_from(payload.len())?.to_be_bytes();
    Ok([&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat())
}

const CONNECTIONS: u32 = 10;
const STREAMS: u32 = 100;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// For each stream, with all that belongs to one.
const MOST: u64 = 16 * 1024;

/// A connection's beginning: the client reads nothing of the answers. Then a head with a field that stands in the table
/// from then on (RFC 7541, 6.2.1), and has `length` bytes.
fn prelude(length: u16, flags: u8) -> Result<Vec<u8>> {
    let no_window = [0, 4, 0, 0, 0, 0];
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &no_window)?);
    let mut block = vec![0x82, 0x86, 0x84, 0x41, 1, b'h', 0x40, 1, b'a'];
    // A length with a prefix of seven bits: 127, then the rest in two bytes of seven bits each.
    let rest = length - 127;
    block.extend([127, 0x80 | u8::try_from(rest % 128)?, u8::try_from(rest / 128)?]);
    block.resize(block.len() + usize::from(length), b'x');
    bytes.extend(frame(1, END_HEADERS | flags, 1, &block)?);
    Ok(bytes)
}

/// The authority and the field of the prelude are in the table now: a byte each.
const AGAIN: &[u8] = &[0x82, 0x86, 0x84, 0xbf];
const FIELD: u8 = 0xbe;

/// As few bytes as can be for as many and as large fields as are allowed.
fn heads() -> Result<Vec<u8>> {
    let mut bytes = prelude(580, END_STREAM)?;
    for stream in 1..STREAMS {
        let block = [AGAIN, &[FIELD; 89]].concat();
        bytes.extend(frame(1, END_HEADERS | END_STREAM, stream * 2 + 1, &block)?);
    }
    Ok(bytes)
}

/// The same behind a body that nobody reads.
fn trailers(fields: usize) -> Result<Vec<u8>> {
    let mut bytes = prelude(127, 0)?;
    for stream in 1..STREAMS {
        bytes.extend(frame(1, END_HEADERS, stream * 2 + 1, AGAIN)?);
    }
    for stream in 0..STREAMS {
        bytes.extend(frame(0, 0, stream * 2 + 1, b"x")?);
        bytes.extend(frame(1, END_HEADERS | END_STREAM, stream * 2 + 1, &vec![FIELD; fields])?);
    }
    Ok(bytes)
}

/// The HTTP/2 bomb (CVE-2026-47774 and its family): what a connection can make us hold has an end.
#[tokio::test]
async fn large_heads_from_small_references_are_not_held() -> Result {
    // What streams cost of which nothing is held.
    let plain = grown_by("plain", &trailers(0)?).await?;
    for (name, bomb) in [("heads", heads()?), ("trailers", trailers(100)?), ("many trailers", trailers(1700)?)] {
        let grown = grown_by(name, &bomb).await?;
        // Streams that have a body still to come cost more.
        let most = if name == "heads" { MOST } else { plain + MOST };
        ensure!(grown <= most, "{name}: expected at most {most} bytes for each stream, saw {grown}, without {plain}");
    }
    Ok(())
}

/// By how much a proxy grows for each stream.
async fn grown_by(name: &str, bomb: &[u8]) -> Result<u64> {
    let gateway = Gateway::start(&http_listener("in", HELLO, "", ""), "").await?;
    let address = gateway.listener("in")?;
    let resident = || -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.daemon.id()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    };
    let before = resident()?;
    let mut sockets = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut socket = TcpStream::connect(address).await?;
        // Who is refused may be gone before all is sent.
        socket.write_all(bomb).await.ok();
        sockets.push(socket);
    }
    eventually("all streams are open, refused, or cut off", async || {
        let seen = gateway.stat("http.in.downstream_rq_total").await?;
        let cut_off = gateway.stat("http.in.downstream_cx_protocol_error").await?;
        let all = u64::from(CONNECTIONS * STREAMS);
        ensure!(seen >= all || cut_off >= u64::from(CONNECTIONS), "{seen} streams, {cut_off} cut off");
        Ok(())
    })
    .await?;
    let grown = resident()?.saturating_sub(before) / u64::from(CONNECTIONS * STREAMS);
    eprintln!("{name}: {grown} bytes a stream");
    drop(sockets);
    eventually("nothing is held any more", async || {
        let active = gateway.stat("http.in.downstream_rq_active").await?;
        ensure!(active == 0, "{active} requests are active");
        Ok(())
    })
    .await?;
    gateway.stop().await?;
    Ok(grown)
}

/// The status of a gRPC call whose body is `body`, with the timeout that it names.
async fn grpc_status(address: SocketAddr, body: &'static [u8], timeout: &str) -> Result<String> {
    let (client, connection) = h2::client::handshake(TcpStream::connect(address).await?).await?;
    let driver = tokio::spawn(connection);
    let path = "/envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters";
    let request = Request::post(format!("http://culvert.test{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout)
        .body(())?;
    let (response, mut sending) = client.ready().await?.send_request(request, false)?;
    sending.send_data(Bytes::from_static(body), true)?;
    let (head, mut body) = in_time("a response", response).await??.into_parts();
    while let Some(data) = in_time("the response's end", body.data()).await? {
        body.flow_control().release_capacity(data?.len())?;
    }
    let trailers = in_time("trailers", body.trailers()).await??;
    driver.abort();
    let status = trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
    let status = status.or_else(|| head.headers.get("grpc-status")).context("no status")?;
    Ok(status.to_str()?.to_owned())
}

/// Bad framing ends its call and nothing else.
#[tokio::test]
async fn grpc_that_is_none_is_answered_with_a_status() -> Result {
    const GOOD: &[u8] = b"\0\0\0\0\x05\x12\x03\x0a\x01n";
    let plane = Plane::start(&[]).await?;
    for (what, body, timeout, expected) in [
        ("a good call", GOOD, "10S", "0"),
        ("a length of 4 GiB", b"\0\xff\xff\xff\xff", "10S", "11"),
        ("compressed without an encoding", b"\x01\0\0\0\x01\0", "10S", "13"),
        ("a flag that does not exist", b"\x07\0\0\0\x01\0", "10S", "13"),
        ("half a message", b"\0\0\0\0\x09\x12", "10S", "13"),
        ("half a prefix", b"\0\0\0", "10S", "13"),
        ("no message", b"", "10S", "13"),
        ("what is no message", b"\0\0\0\0\x02\xff\xff", "10S", "13"),
        ("a timeout that is none", GOOD, "soon", "0"),
        ("a timeout of too many digits", GOOD, "123456789S", "0"),
        ("a good call after all", GOOD, "10S", "0"),
    ] {
        let seen = grpc_status(plane.xds, body, timeout).await.with_context(|| what)?;
        ensure!(seen == expected, "{what}: expected status {expected}, saw {seen}");
    }
    // And what is not even HTTP/2 is closed.
    let mut socket = TcpStream::connect(plane.xds).await?;
    socket.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await?;
    let mut answer = Vec::new();
    in_time("the end of a connection that is not HTTP/2", socket.read_to_end(&mut answer)).await?.ok();
    Ok(())
}
