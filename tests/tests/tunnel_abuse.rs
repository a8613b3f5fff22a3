//! Tunnels with ends that do not keep to what was agreed on, and backends behind them that fail: what becomes of each, and that
//! nobody else has the loss.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::client::get;
use culvert_tests::gateway::{Gateway, cluster, http_listener};
use culvert_tests::namespace;
use culvert_tests::pair::{self, joined};
use culvert_tests::reverse::tls;
use culvert_tests::tunnel::{self, tunnel_listener};
use culvert_tests::wait::{PATIENCE, eventually, in_time, within};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::Instant;

const TO_EDGE: &str = "[{match: {prefix: /}, route: {cluster: edge}}]";
const TO_A: &str = "[{match: {prefix: /}, route: {cluster: a}}]";
/// Three ping intervals, and what a busy machine may add.
const NOTICED: Duration = Duration::from_secs(6 + 10);
/// One base of the back-off, and what a busy machine may add.
const BACK: Duration = Duration::from_millis(500 + 10_000);

/// An agent's first frame; `extra` is JSON.
fn init(extra: &str) -> Vec<u8> {
    let json = format!("{{\"cluster_name\":\"edge\",\"weight\":10,\"host_name\":\"h\",\"extra\":{extra}}}");
    let length = u16::try_from(json.len()).unwrap_or(u16::MAX).to_be_bytes();
    [b"\x20\x88\x01\x01\x01\x00".as_slice(), &length, json.as_bytes()].concat()
}

const PLAIN: &str = "null";
const HTTP2: &str = r#"{"caps":["culvert/1","h2"],"protocol":"h2"}"#;

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// `GET http://h/` (RFC 7541): a request's head that is complete.
const GET: &[u8] = &[0x82, 0x86, 0x84, 0x41, 1, b'h'];

fn settings() -> Vec<u8> {
    frame(4, 0, 0, &[])
}

/// Joins by hand, and has read the reply.
async fn join(address: SocketAddr, extra: &str) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    socket.write_all(&init(extra)).await?;
    let mut head = [0; 8];
    in_time("a reply", socket.read_exact(&mut head)).await??;
    let mut body = vec![0; usize::from(u16::from_be_bytes([head[6], head[7]]))];
    in_time("a reply", socket.read_exact(&mut body)).await??;
    let body = String::from_utf8_lossy(&body);
    ensure!(body.contains("\"status\":1"), "expected to be accepted, saw {body}");
    Ok(socket)
}

/// Sends all of it, or as much as the other end takes, and waits until that closes.
async fn closes(mut socket: TcpStream, bytes: &[u8]) -> Result {
    let ended = async {
        let (mut read, mut write) = socket.split();
        let mut sink = tokio::io::sink();
        let (written, read) = tokio::join!(write.write_all(bytes), tokio::io::copy(&mut read, &mut sink));
        // Whatever came of either: the connection has ended.
        (written.is_ok(), read.is_ok())
    };
    tokio::time::timeout(PATIENCE, ended).await.map(drop).context("still open")
}

async fn nobody_left(cloud: &Gateway, what: &str) -> Result {
    eventually(&format!("{what}: the registration is gone"), async || {
        let active = cloud.stat("tunnel_server.t.active").await?;
        ensure!(active == 0, "{active} are there");
        Ok(())
    })
    .await
}

/// A second init frame, and requests of the agent's own: after the reply it is the server who asks.
#[tokio::test]
async fn what_an_agent_sends_unasked_ends_its_tunnel() -> Result {
    let cloud = tunnel::cloud("", 2).await?;
    let address = cloud.listener("tunnel")?;
    let upside_down = [PREFACE, &settings(), &frame(1, 5, 1, GET)].concat();
    let request = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n".to_vec();
    for extra in [PLAIN, HTTP2] {
        for (what, bytes) in [
            ("a second init", init(extra)),
            ("a request", request.clone()),
            ("HTTP/2 as a client", upside_down.clone()),
        ] {
            let what = format!("{what} on {extra}");
            let socket = join(address, extra).await.with_context(|| what.clone())?;
            cloud.stat_reaches("tunnel_server.t.active", 1).await?;
            closes(socket, &bytes).await.with_context(|| what.clone())?;
            nobody_left(&cloud, &what).await?;
        }
    }
    ensure!(cloud.stat("http.in.downstream_rq_total").await? == 0, "nobody's request was served");
    cloud.stop().await
}

/// An agent whose HTTP/2 is none: the connection ends, with its registration.
#[tokio::test]
async fn an_agent_that_breaks_http2_loses_its_tunnel() -> Result {
    let cloud = tunnel::cloud("", 2).await?;
    let address = cloud.listener("tunnel")?;
    let pings = frame(6, 0, 0, &[0; 8]).repeat(200_000);
    for (what, bytes) in [
        ("a frame of 16 MiB", vec![0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]),
        ("a stream that nobody opened", frame(1, 5, 1, &[0x88])),
        ("a stream of the server's own", frame(1, 5, 2, &[0x88])),
        ("data on a stream that nobody opened", frame(0, 1, 7, b"x")),
        ("a window that overflows", frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ("a window of nothing", frame(8, 0, 0, &[0; 4])),
        ("SETTINGS of half a pair", frame(4, 0, 0, &[0; 5])),
        ("a pushed stream", frame(5, 4, 1, &[0, 0, 0, 2, 0x82])),
        ("a flood of PINGs", pings),
    ] {
        let socket = join(address, HTTP2).await.with_context(|| what.to_owned())?;
        cloud.stat_reaches("tunnel_server.t.active", 1).await?;
        closes(socket, &[settings(), bytes].concat()).await.with_context(|| what.to_owned())?;
        nobody_left(&cloud, what).await?;
    }
    cloud.stop().await
}

/// A server whose HTTP/2 is none: our agent ends the connection and dials again.
#[tokio::test]
async fn a_server_that_breaks_http2_is_dialled_again() -> Result {
    let backend = Backend::start("behind").await?;
    let server = TcpListener::bind("127.0.0.1:0").await?;
    let soon = "reconnect_max_interval: 0.1s, protocol: HTTP2";
    let edge = tunnel::edge(&[server.local_addr()?], backend.address, soon).await?;
    let reply =
        br#"{"status":1,"caps":["culvert/1"],"connection_id":"00000000000000000000000000000001","protocol":"h2"}"#;
    let length = u16::try_from(reply.len())?.to_be_bytes();
    let reply = [b"\x20\x88\x01\x02\x02\x00".as_slice(), &length, reply].concat();
    let opened = frame(1, 5, 1, GET);
    for (what, bytes) in [
        ("no HTTP/2", b"GET / HTTP/1.1\r\nhost: h\r\n\r\n".to_vec()),
        ("a stream's number twice", [PREFACE, &settings(), &opened, &opened].concat()),
        ("a lower number", [PREFACE, &settings(), &frame(1, 5, 3, GET), &opened].concat()),
        ("an even number", [PREFACE, &settings(), &frame(1, 5, 2, GET)].concat()),
        ("a frame of 16 MiB", [PREFACE, &settings(), &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1][..]].concat()),
        ("a window that overflows", [PREFACE, &settings(), &frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff])].concat()),
        ("a flood of PINGs", [PREFACE, &settings(), &frame(6, 0, 0, &[0; 8]).repeat(200_000)].concat()),
    ] {
        let (mut socket, _) = in_time("a dial", server.accept()).await?.with_context(|| what.to_owned())?;
        let mut head = [0; 8];
        in_time("an init frame", socket.read_exact(&mut head)).await??;
        let mut body = vec![0; usize::from(u16::from_be_bytes([head[6], head[7]]))];
        in_time("an init frame", socket.read_exact(&mut body)).await??;
        socket.write_all(&reply).await?;
        closes(socket, &bytes).await.with_context(|| what.to_owned())?;
    }
    in_time("another dial", server.accept()).await??;
    edge.stop().await
}

/// Connections that begin a handshake of TLS and do not go on with it take the places of one source, and no more; with them a
/// listener does no signature for who has no place.
#[tokio::test]
async fn stalled_tls_handshakes_take_the_places_of_their_source_alone() -> Result {
    const PLACES: u64 = 4;
    let (tls, backend) = (tls("cloud", "edge-1")?, Backend::start("behind").await?);
    let server = format!("max_pending_handshakes_per_source: {PLACES}");
    let listeners = http_listener("in", TO_EDGE, "", "") + &tunnel_listener("tunnel", &server) + &tls.chain;
    let folder = TempDir::with_prefix("culvert-")?;
    let cloud = Gateway::start_in(folder, &listeners, &cluster("edge", &[], ""), "", 2).await?;
    let address = cloud.listener("tunnel")?;
    let mut stalled = Vec::new();
    for _ in 0..PLACES {
        stalled.push(TcpStream::connect(address).await?);
    }
    cloud.stat_reaches("tunnel_server.t.pending", PLACES).await?;
    for _ in 0..3 {
        closes(TcpStream::connect(address).await?, b"").await?;
    }
    let refused = cloud.stat("tunnel_server.t.source_overflow").await?;
    ensure!(refused == 3, "expected the three behind them to be closed, {refused} were");
    let edge = tunnel::edge(&[address], backend.address, &tls.cluster).await?;
    edge.stat_reaches("tunnel_agent.agent.dial_failures", 1).await?;
    ensure!(cloud.stat("tunnel_server.t.accepted").await? == 0, "one more than there are places was let in");
    drop(stalled);
    joined(&cloud, 1).await.with_context(|| cloud.daemon.output())?;
    let pending = cloud.stat("tunnel_server.t.pending").await?;
    ensure!(pending == 0, "expected no handshake to be under way behind the agent's, {pending} are");
    edge.stop().await?;
    cloud.stop().await
}

/// The two do not meet: an agent without TLS at a listener with it, and the other way round. Both ends say so.
#[tokio::test]
async fn tls_and_plaintext_do_not_meet() -> Result {
    let (tls, backend) = (tls("cloud", "edge-1")?, Backend::start("behind").await?);
    for (listener, agent) in [(tls.chain.as_str(), ""), ("", tls.cluster.as_str())] {
        let listeners = http_listener("in", TO_EDGE, "", "") + &tunnel_listener("tunnel", "") + listener;
        let folder = TempDir::with_prefix("culvert-")?;
        let cloud = Gateway::start_in(folder, &listeners, &cluster("edge", &[], ""), "", 1).await?;
        let edge = tunnel::edge(&[cloud.listener("tunnel")?], backend.address, agent).await?;
        let context = || format!("cloud:\n{}\nedge:\n{}", cloud.daemon.output(), edge.daemon.output());
        let (at_cloud, at_edge, says) = if agent.is_empty() {
            ("ssl.connection_error", "tunnel_agent.agent.handshake_failures", "no tunnel")
        } else {
            ("tunnel_server.t.malformed", "tunnel_agent.agent.dial_failures", "TLS: ")
        };
        edge.stat_reaches(at_edge, 1).await.with_context(context)?;
        eventually(at_cloud, async || {
            let stats = get(cloud.admin, "/stats").await?.text();
            let counted = stats.lines().filter_map(|line| line.split_once(": "));
            let counted = counted.filter(|(name, _)| name.ends_with(at_cloud)).any(|(_, value)| value.trim() != "0");
            ensure!(counted, "not counted:\n{stats}");
            Ok(())
        })
        .await
        .with_context(context)?;
        ensure!(edge.daemon.output().contains(says), "expected {says:?}: {}", context());
        ensure!(edge.stat("tunnel_agent.agent.established").await? == 0, "{}", context());
        ensure!(cloud.stat("tunnel_server.t.accepted").await? == 0, "{}", context());
        edge.stop().await?;
        cloud.stop().await?;
    }
    Ok(())
}

/// A backend that takes requests and does `what` with their connections.
async fn broken(what: Broken) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut buffer = [0; 1024];
            if socket.read(&mut buffer).await.is_err() {
                continue;
            }
            match what {
                Broken::Stalls => held.push(socket),
                Broken::Resets => drop(socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO))),
            }
        }
    });
    Ok(address)
}

#[derive(Clone, Copy)]
enum Broken {
    Stalls,
    Resets,
}

/// An agent's backend that refuses, resets or says nothing costs its own requests and not the tunnel.
#[tokio::test]
async fn a_backend_that_fails_does_not_cost_the_tunnel() -> Result {
    let backend = Backend::start("behind").await?;
    // Bound and not listening: refused.
    let refusing = TcpSocket::new_v4()?;
    refusing.bind("127.0.0.1:0".parse()?)?;
    let clusters = cluster("a", &[backend.address], "")
        + &cluster("refuses", &[refusing.local_addr()?], "")
        + &cluster("resets", &[broken(Broken::Resets).await?], "")
        + &cluster("stalls", &[broken(Broken::Stalls).await?], "");
    let routes = "[{match: {prefix: /refuses}, route: {cluster: refuses}}, {match: {prefix: /resets}, route: {cluster: resets}}, {match: {prefix: /stalls}, route: {cluster: stalls, timeout: 0.3s}}, {match: {prefix: /}, route: {cluster: a}}]";
    for protocol in ["HTTP1", "HTTP2"] {
        let log = TempDir::with_prefix("culvert-")?;
        let path = log.path().join("access.log");
        let manager = format!(
            "access_log: [{{name: f, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: \"{}\", log_format: {{text_format_source: {{inline_string: \"%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS%\\n\"}}}}}}}}]",
            path.display()
        );
        let cloud = pair::cloud(TO_EDGE, "", &format!("protocol: {protocol}"), "", 2).await?;
        let site = pair::edge(cloud.listener("tunnel")?, "site", (routes, &manager), &clusters, "").await?;
        joined(&cloud, 1).await?;
        let gateway = cloud.listener("in")?;
        for (asked, status, flag) in
            [("/refuses", 503, "UF"), ("/resets", 503, "UC"), ("/stalls", 504, "UT"), ("/fine", 200, "-")]
        {
            let answer = get(gateway, asked).await?;
            ensure!(answer.status == status, "{protocol} {asked}: expected {status}, saw {answer:?}");
            let line = format!("{asked} {status} {flag}");
            eventually(&line, async || {
                let text = std::fs::read_to_string(&path)?;
                ensure!(text.lines().any(|seen| seen == line), "saw {text}");
                Ok(())
            })
            .await?;
        }
        let accepted = cloud.stat("tunnel_server.t.accepted").await?;
        ensure!(accepted == 1, "{protocol}: expected one tunnel for all, saw {accepted}");
        site.stop().await?;
        cloud.stop().await?;
    }
    Ok(())
}

/// One client of a hundred reads nothing of its answer: the tunnel brings no more of it than fits into its window and what lies
/// between here and there, and the others have theirs.
#[tokio::test]
async fn a_reader_that_stalls_costs_its_own_stream_alone() -> Result {
    const LARGE: u64 = 500_000_000;
    const SMALL: u64 = 100_000;
    /// The largest window of a stream, and the sockets and buffers of both ends.
    const MOST: u64 = 8 * 1024 * 1024 + 32 * 1024 * 1024;
    let backend = Backend::start("behind").await?;
    let cloud = pair::cloud(TO_EDGE, "", "protocol: HTTP2", "", 2).await?;
    let site =
        pair::edge(cloud.listener("tunnel")?, "site", (TO_A, ""), &cluster("a", &[backend.address], ""), "").await?;
    joined(&cloud, 1).await?;
    let gateway = cloud.listener("in")?;
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let mut stalled = socket.connect(gateway).await?;
    stalled.write_all(format!("GET /bytes/{LARGE} HTTP/1.1\r\nhost: h\r\n\r\n").as_bytes()).await?;
    let received = async || {
        let connections = tunnel::connections(&cloud).await?;
        connections.first().and_then(|first| first["received_bytes"].as_u64()).context("a tunnel")
    };
    eventually("the answer has begun", async || {
        let received = received().await?;
        ensure!(received > 100_000, "{received} bytes came");
        Ok(())
    })
    .await?;
    let others: Vec<_> =
        (0..99).map(|_| tokio::spawn(async move { get(gateway, &format!("/bytes/{SMALL}")).await })).collect();
    for other in others {
        let answer = in_time("an answer beside the one that stalls", other).await???;
        ensure!(answer.status == 200 && answer.body.len() as u64 == SMALL, "saw {} bytes", answer.body.len());
    }
    let received = received().await?;
    ensure!(
        received <= 100 * SMALL + MOST,
        "expected {MOST} bytes for the one that stalls at most, saw {received} in all"
    );
    drop(stalled);
    site.stop().await?;
    cloud.stop().await
}

/// A machine that sleeps: its server has given it up, and it is back at its first dial after it wakes.
#[tokio::test]
async fn an_agent_that_was_suspended_is_back_within_one_back_off() -> Result {
    let backend = Backend::start("behind").await?;
    let cloud = pair::cloud(TO_EDGE, "", "protocol: HTTP2", "", 2).await?;
    let site =
        pair::edge(cloud.listener("tunnel")?, "site", (TO_A, ""), &cluster("a", &[backend.address], ""), "").await?;
    joined(&cloud, 1).await?;
    // It is a host before it is counted.
    cloud.stat_reaches("tunnel_server.t.active", 1).await?;
    let slept = Instant::now();
    site.daemon.signal(Signal::STOP)?;
    let gone = within(NOTICED, "the server has given it up", async || {
        let active = cloud.stat("tunnel_server.t.active").await?;
        ensure!(active == 0, "{active} are there");
        Ok(())
    })
    .await;
    let (given_up, woke) = (slept.elapsed(), Instant::now());
    site.daemon.signal(Signal::CONT)?;
    gone?;
    within(BACK, "it is back", async || {
        let active = cloud.stat("tunnel_server.t.active").await?;
        ensure!(active == 1, "{active} are there");
        Ok(())
    })
    .await?;
    eprintln!("given up after {given_up:?}, back {:?} after it woke", woke.elapsed());
    joined(&cloud, 1).await?;
    ensure!(get(cloud.listener("in")?, "/").await?.status == 200, "it serves again");
    let stat = async |name: &str| site.stat(&format!("tunnel_agent.agent.{name}")).await;
    let (dials, failed) = (stat("dials").await?, stat("dial_failures").await? + stat("handshake_failures").await?);
    ensure!(
        (dials, failed) == (2, 0),
        "expected one dial more, saw {dials}, {failed} failed: {}",
        site.daemon.output()
    );
    site.stop().await?;
    cloud.stop().await
}

/// A path that swallows large packets and says nothing: small ones pass, so that the handshake does; the first long body does not.
#[test]
fn a_path_that_swallows_large_packets_is_noticed_and_counted() -> Result {
    if !namespace::entered("a_path_that_swallows_large_packets_is_noticed_and_counted")? {
        return Ok(());
    }
    system("ip", &["link", "set", "lo", "up"])?;
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(swallowed())
}

fn system(program: &str, words: &[&str]) -> Result {
    let output = Command::new(program).args(words).output().with_context(|| format!("{program} is missing"))?;
    ensure!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

async fn swallowed() -> Result {
    // The edge answers by itself: what comes from a backend would be swallowed before it reaches the tunnel.
    let large = "x".repeat(4000);
    let routes = format!(
        "[{{match: {{prefix: /large}}, direct_response: {{status: 200, body: {{inline_string: {large}}}}}}}, {{match: {{prefix: /}}, direct_response: {{status: 200}}}}]"
    );
    for protocol in ["HTTP1", "HTTP2"] {
        let cloud = pair::cloud(TO_EDGE, "", &format!("protocol: {protocol}"), "", 2).await?;
        let site = pair::edge(cloud.listener("tunnel")?, "site", (&routes, ""), &cluster("a", &[], ""), "").await?;
        joined(&cloud, 1).await?;
        let gateway = cloud.listener("in")?;
        ensure!(get(gateway, "/").await?.status == 200, "small packets pass");
        // Larger ones than the bucket never fit into it.
        system(
            "tc",
            &["qdisc", "add", "dev", "lo", "root", "tbf", "rate", "1gbit", "burst", "1400", "limit", "1000000"],
        )?;
        let (asked, began) = (tokio::spawn(async move { get(gateway, "/large").await }), Instant::now());
        // Its log comes by a pipe: what is asked over the network would be swallowed too.
        // With a lost response goes what it acknowledged, so that either end may be the first to notice.
        let seen = within(NOTICED, "the tunnel is given up", async || {
            let (edge, cloud) = (site.daemon.output(), cloud.daemon.output());
            let noticed = [&edge, &cloud].iter().any(|output| output.contains("are not acknowledged"));
            ensure!(noticed, "not noticed: {edge}");
            ensure!(edge.contains("tunnel ended"), "not ended: {edge}");
            Ok(())
        })
        .await;
        system("tc", &["qdisc", "del", "dev", "lo", "root"])?;
        eprintln!("{protocol}: given up after {:?}", began.elapsed());
        seen.with_context(|| format!("{protocol}\ncloud:\n{}", cloud.daemon.output()))?;
        asked.abort();
        let edge = site.stat("tunnel_agent.agent.stalled_writes").await?;
        let server = cloud.stat("tunnel_server.t.stalled_writes").await?;
        ensure!(edge + server >= 1, "{protocol}: counted at neither end");
        eventually("it serves again", async || {
            let answer = get(gateway, "/").await?;
            ensure!(answer.status == 200, "saw {}", answer.status);
            Ok(())
        })
        .await?;
        site.stop().await?;
        cloud.stop().await?;
    }
    Ok(())
}
