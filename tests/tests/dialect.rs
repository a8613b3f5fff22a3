//! Our own dialect, between two real processes: what the handshake agrees on, and what one tunnel carries.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use culvert_tests::Result;
use culvert_tests::backend::{Backend, scripted};
use culvert_tests::client::{get, post, read_head, send_h2};
use culvert_tests::gateway::{Gateway, cluster, http_listener};
use culvert_tests::relay::{BOTH, Relay, Shape, Strike, Way};
use culvert_tests::reverse::tls;
use culvert_tests::tunnel::{agent, cloud, connections, edge, hosting, joined, tcp_edge};
use culvert_tests::wait::{PATIENCE, eventually, in_time};
use http::Request;
use http_body_util::Full;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Ends its direction first when the first byte is `m`; else says how much came until the other end ended its own.
async fn ends(mut socket: TcpStream) -> Result {
    match socket.read_u8().await? {
        b'm' => {
            socket.write_all(b"mine").await?;
            socket.shutdown().await?;
            let mut rest = Vec::new();
            socket.read_to_end(&mut rest).await?;
            ensure!(rest == b"afterwards", "read {rest:?} after our own end");
        }
        // It is a web server as well.
        b'G' => {
            let mut head = vec![b'G'];
            while !head.ends_with(b"\r\n\r\n") {
                head.push(socket.read_u8().await?);
            }
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nplain").await?;
        }
        _ => {
            let mut rest = Vec::new();
            socket.read_to_end(&mut rest).await?;
            socket.write_all(format!("{}", rest.len() + 1).as_bytes()).await?;
        }
    }
    Ok(())
}

async fn counted(address: SocketAddr, bytes: usize) -> Result {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(&vec![b'x'; bytes]).await?;
    socket.shutdown().await?;
    let mut answer = String::new();
    in_time("the count", socket.read_to_string(&mut answer)).await??;
    ensure!(answer == bytes.to_string(), "expected {bytes} to have passed, saw {answer:?}");
    Ok(())
}

#[tokio::test]
async fn one_tunnel_carries_requests_of_every_kind_and_shows_its_round_trip() -> Result {
    let backend = Backend::start("behind").await?;
    let cloud = cloud("", 2).await?;
    let edge = edge(&[cloud.listener("tunnel")?], backend.address, "").await?;
    let seen = joined(&cloud, 1).await?;
    ensure!(seen[0]["dialect"] == "culvert" && seen[0]["protocol"] == "http2", "saw {seen:#?}");
    let gateway = cloud.listener("in")?;
    let mut requests = JoinSet::new();
    for _ in 0..32 {
        requests.spawn(get(gateway, "/gather/32"));
    }
    while let Some(answer) = requests.join_next().await {
        let answer = answer??;
        ensure!(answer.status == 200 && answer.text() == "behind\n", "saw {} {:?}", answer.status, answer.text());
    }
    ensure!(backend.peak() == 32, "expected 32 requests at once through one tunnel, saw {}", backend.peak());
    let body = Bytes::from(vec![7; 3 << 20]);
    let echoed = post(gateway, "/echo", body.clone()).await?;
    ensure!(echoed.body == body, "expected 3 MiB back, saw {} bytes", echoed.body.len());
    let request = Request::post("http://culvert.test/echo").body(Full::new(body.clone()))?;
    let echoed = send_h2(gateway, request).await?;
    ensure!(echoed.body == body, "expected 3 MiB back over HTTP/2, saw {} bytes", echoed.body.len());
    eventually("both ends show the round trip", async || {
        let seen = connections(&cloud).await?;
        ensure!(seen[0]["round_trip_us"].is_u64(), "the cloud: {seen:#?}");
        let agents = get(edge.admin, "/tunnels").await?.json()?;
        let connection = &agents["agents"][0]["peers"][0]["connections"][0];
        ensure!(connection["protocol"] == "http2" && connection["round_trip_us"].is_u64(), "the edge: {agents:#}");
        for (gateway, metric) in
            [(&cloud, "culvert_tunnel_server_round_trip_ms_count"), (&edge, "culvert_tunnel_agent_round_trip_ms_count")]
        {
            let text = get(gateway.admin, "/stats/prometheus").await?.text();
            let line = text.lines().find(|line| line.contains("round_trip_ms_count"));
            ensure!(line.is_some_and(|line| !line.ends_with(" 0")), "{metric}: saw {line:?}");
        }
        Ok(())
    })
    .await?;
    edge.stop().await?;
    cloud.stop().await
}

#[tokio::test]
async fn tcp_connections_are_streams_with_half_close_both_ways() -> Result {
    let backend = scripted(ends).await?;
    let cloud = cloud("", 2).await?;
    let edge = tcp_edge(&[cloud.listener("tunnel")?], backend, "").await?;
    joined(&cloud, 1).await?;
    let tcp = cloud.listener("tcp")?;
    for turn in 0..200 {
        counted(tcp, 1000).await.with_context(|| format!("connection {turn}, one after the other"))?;
    }
    let mut all = JoinSet::new();
    for _ in 0..20 {
        all.spawn(counted(tcp, 1 << 20));
    }
    while let Some(outcome) = all.join_next().await {
        outcome?.context("twenty at once")?;
    }
    let mut socket = TcpStream::connect(tcp).await?;
    socket.write_all(b"m").await?;
    let mut answer = String::new();
    in_time("the other end's end", socket.read_to_string(&mut answer)).await??;
    ensure!(answer == "mine", "saw {answer:?}");
    socket.write_all(b"afterwards").await?;
    drop(socket);
    // HTTP reaches a listener that serves none, as over a plain tunnel.
    let answer = get(cloud.listener("in")?, "/").await?;
    ensure!(answer.status == 200 && answer.text() == "plain", "saw {} {:?}", answer.status, answer.text());
    ensure!(connections(&cloud).await?.len() == 1, "expected the tunnel to be the same one still");
    edge.stop().await?;
    cloud.stop().await
}

#[tokio::test]
async fn more_connections_are_kept_for_http1_and_the_operators_word_counts() -> Result {
    let backend = Backend::start("behind").await?;
    for (server, agent, expected) in [
        ("", "connection_num: 3", [1, 2]),
        ("protocol: HTTP1", "connection_num: 2", [0, 2]),
        ("protocol: HTTP2", "connection_num: 2", [2, 0]),
        ("", "connection_num: 2, protocol: HTTP1", [0, 2]),
        ("", "connection_num: 2, protocol: HTTP2", [2, 0]),
        ("protocol: HTTP2", "connection_num: 1, protocol: HTTP1", [1, 0]),
    ] {
        let cloud = cloud(server, 1).await?;
        let edge = edge(&[cloud.listener("tunnel")?], backend.address, agent).await?;
        let seen = joined(&cloud, expected.iter().sum()).await?;
        let count = |protocol: &str| seen.iter().filter(|connection| connection["protocol"] == protocol).count();
        ensure!([count("http2"), count("http1")] == expected, "{server:?} and {agent:?}: saw {seen:#?}");
        let gateway = cloud.listener("in")?;
        for path in ["/", "/bytes/1000"] {
            ensure!(get(gateway, path).await?.status == 200, "{server:?} and {agent:?}: {path}");
        }
        edge.stop().await?;
        cloud.stop().await?;
    }
    Ok(())
}

/// The plain ones while they suffice, so that HTTP/1 costs what it did; nothing waits when they do not.
#[tokio::test]
async fn http1_takes_the_plain_connections_first_and_never_waits_for_one() -> Result {
    let backend = Backend::start("behind").await?;
    let cloud = cloud("queue_timeout: 0.1s", 1).await?;
    let edge = edge(&[cloud.listener("tunnel")?], backend.address, "connection_num: 3").await?;
    joined(&cloud, 3).await?;
    // A tunnel is listed before it can be used.
    eventually("all three are attached", async || {
        let json = get(cloud.admin, "/tunnels").await?.json()?;
        let attached = |host: &Value| host["state"] != "pending";
        let hosts = json["hosts"].as_array().is_some_and(|hosts| hosts.len() == 3 && hosts.iter().all(attached));
        ensure!(hosts, "saw {json:#}");
        Ok(())
    })
    .await?;
    let gateway = cloud.listener("in")?;
    let requests = async || {
        let json = get(cloud.admin, "/tunnels").await?.json()?;
        let of = |protocol: &str| {
            let hosts = json["hosts"].as_array().into_iter().flatten();
            hosts.filter(|host| host["protocol"] == protocol).filter_map(|host| host["requests"].as_u64()).sum::<u64>()
        };
        anyhow::Ok((of("http1"), of("http2")))
    };
    for _ in 0..30 {
        ensure!(get(gateway, "/").await?.status == 200);
    }
    let seen = requests().await?;
    ensure!(seen == (30, 0), "expected all on plain connections, saw {seen:?}");
    let mut all = JoinSet::new();
    for _ in 0..10 {
        all.spawn(get(gateway, "/gather/10"));
    }
    while let Some(answer) = all.join_next().await {
        let status = answer??.status;
        ensure!(status == 200, "one of ten at once: saw {status}");
    }
    let seen = requests().await?;
    ensure!(seen == (32, 8), "expected two on plain connections and eight as streams, saw {seen:?}");
    edge.stop().await?;
    cloud.stop().await?;
    Ok(())
}

/// What marks a TCP connection is between the two ends: a client that sends it gets a request's answer.
#[tokio::test]
async fn a_clients_connect_is_a_request() -> Result {
    let backend = scripted(ends).await?;
    let cloud = cloud("", 1).await?;
    let edge = tcp_edge(&[cloud.listener("tunnel")?], backend, "").await?;
    joined(&cloud, 1).await?;
    let mut socket = TcpStream::connect(cloud.listener("in")?).await?;
    socket.write_all(b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\nculvert-connection: 1\r\n\r\n").await?;
    let mut answer = [0; 12];
    tokio::time::timeout(PATIENCE, socket.read_exact(&mut answer)).await??;
    ensure!(!answer.ends_with(b"200"), "expected a refusal, saw {}", String::from_utf8_lossy(&answer));
    edge.stop().await?;
    cloud.stop().await
}

/// A chain that demands a client's certificate: a request that comes as a stream has none to show.
#[tokio::test]
async fn a_hosting_listener_with_tls_serves_no_stream_without_it() -> Result {
    let (backend, tls) = (Backend::start("behind").await?, tls("edge", "cloud")?);
    let cloud = cloud("", 1).await?;
    let routes = "[{match: {prefix: /}, route: {cluster: backend}}]";
    let hosted = hosting(&http_listener("hosted", routes, "", "")) + &tls.chain;
    let clusters = cluster("backend", &[backend.address], "");
    let agent = agent(&[cloud.listener("tunnel")?], "host_name: edge-1");
    let edge = Gateway::start_in(TempDir::with_prefix("culvert-")?, &hosted, &clusters, &agent, 1).await?;
    joined(&cloud, 1).await?;
    let answer = get(cloud.listener("in")?, "/").await?;
    ensure!(answer.status == 503, "expected 503 of a chain that wants TLS, saw {}: {}", answer.status, answer.text());
    let unmatched = edge.stat("listener.hosted.no_filter_chain_match").await?;
    ensure!(unmatched >= 1, "the edge counts the request as one without a chain, saw {unmatched}");
    edge.stop().await?;
    cloud.stop().await
}

/// Behind a path of 60 ms a stream has the window of that path, and not the one that it began with (256 KiB): so much of a body
/// passes while nothing that the reader says comes back.
#[tokio::test]
async fn a_streams_window_is_sized_to_the_path() -> Result {
    const BODY: usize = 16 << 20;
    const GROWN: usize = 1 << 20;
    let backend = TcpListener::bind("127.0.0.1:0").await?;
    let cloud = cloud("protocol: HTTP2, reconnect_window: 0s", 1).await?;
    let relay = Relay::start(cloud.listener("tunnel")?).await?;
    let delay = Shape { delay: Duration::from_millis(30), ..Shape::default() };
    BOTH.iter().for_each(|way| relay.shape(*way, delay));
    let edge = edge(&[relay.address], backend.local_addr()?, "").await?;
    joined(&cloud, 1).await?;
    eventually("the round trip is that of the path", async || {
        let tunnels = connections(&cloud).await?;
        let measured = tunnels.first().and_then(|tunnel| tunnel["round_trip_us"].as_u64());
        ensure!(measured >= Some(60_000), "saw {measured:?}");
        Ok(())
    })
    .await?;
    let mut client = TcpStream::connect(cloud.listener("in")?).await?;
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await?;
    let (mut behind, _) = in_time("the request", backend.accept()).await??;
    read_head(&mut behind).await?;
    // From here on the agent hears nothing more of what is read.
    relay.shape(Way::Up, Shape::default());
    relay.strike(Way::Down, Strike::Stall);
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n");
    let body = tokio::spawn(async move {
        behind.write_all(head.as_bytes()).await?;
        behind.write_all(&vec![b'x'; BODY]).await
    });
    let (mut buffer, mut came) = (vec![0; 64 << 10], 0);
    while came < GROWN {
        let read = in_time("more of the body", client.read(&mut buffer)).await??;
        ensure!(read > 0, "expected {GROWN} bytes to pass at least, the tunnel ended after {came}");
        came += read;
    }
    body.abort();
    drop((client, relay));
    edge.stop().await?;
    cloud.stop().await
}
