//! What one proxy does beyond plain requests: TLS, switches of protocol, gRPC, names, dying peers, large bodies, tunnels.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, ensure};
use bytes::Bytes;
use culvert_tests::Result;
use culvert_tests::backend::{Backend, scripted};
use culvert_tests::ca::{Authority, Leaf};
use culvert_tests::client::{Answer, get, read_head, send, whole};
use culvert_tests::gateway::{Gateway, HTTP2, cluster, http_listener};
use culvert_tests::grpc;
use culvert_tests::wait::{PATIENCE, eventually, in_time};
use http::Request;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TO_A: &str = "[{match: {prefix: /}, route: {cluster: a}}]";
const WEBSOCKET: &str = "upgrade_configs: [{upgrade_type: websocket}]";
const SWITCH: &[u8] = b"GET /chat HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";

fn says(answer: &Answer, status: u16, body: &str) -> Result {
    let seen = (answer.status.as_u16(), answer.text());
    ensure!(seen == (status, body.to_owned()), "expected {status} {body:?}, saw {seen:?}");
    Ok(())
}

/// Sends bytes over a new connection and reads until the other end closes.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> Result<String> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(bytes).await?;
    let mut answer = Vec::new();
    in_time("the connection is closed", socket.read_to_end(&mut answer)).await??;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Agrees to a WebSocket and gives every byte back in capitals.
async fn capitals(mut socket: TcpStream) -> Result {
    read_head(&mut socket).await?;
    socket.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await?;
    let mut buffer = [0; 1024];
    loop {
        match socket.read(&mut buffer).await? {
            0 => return Ok(()),
            read => socket.write_all(&buffer[..read].to_ascii_uppercase()).await?,
        }
    }
}

async fn talk(address: SocketAddr) -> Result {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(SWITCH).await?;
    let switched = read_head(&mut socket).await?;
    ensure!(switched.starts_with("HTTP/1.1 101 "), "expected 101, saw {switched:?}");
    for word in ["first", "second"] {
        socket.write_all(word.as_bytes()).await?;
        let mut seen = vec![0; word.len()];
        in_time("an echo", socket.read_exact(&mut seen)).await??;
        ensure!(seen == word.to_uppercase().as_bytes(), "expected {word} in capitals, saw {seen:?}");
    }
    Ok(())
}

/// One request over TLS; the answer and the certificate that the proxy presented.
async fn get_tls(
    address: SocketAddr,
    name: &str,
    folder: &TempDir,
    own: Option<&Leaf>,
) -> Result<(Answer, CertificateDer<'static>)> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.path().join("ca.pem"))?)?;
    let config = rustls::ClientConfig::builder().with_root_certificates(roots);
    let config = match own {
        None => config.with_no_client_auth(),
        Some(leaf) => config.with_client_auth_cert(
            vec![CertificateDer::from_pem_file(&leaf.certificate)?],
            PrivateKeyDer::from_pem_file(&leaf.key)?,
        )?,
    };
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let socket = TcpStream::connect(address).await?;
    let stream = connector.connect(ServerName::try_from(name.to_owned())?, socket).await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).context("no certificate")?;
    let certificate = certificate.clone().into_owned();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::get("/").header("host", name).body(Full::<Bytes>::default())?;
    let answer = whole(in_time("an answer", sender.send_request(request)).await??).await;
    driver.abort();
    Ok((answer?, certificate))
}

fn tls_chain(name: &str, mutual: bool) -> String {
    let validation = if mutual { ", validation_context: {trusted_ca: {filename: ca.pem}}" } else { "" };
    format!(
        "filter_chain_match: {{server_names: [{name}.test]}}\ntransport_socket: {{name: tls, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, require_client_certificate: {mutual}, common_tls_context: {{tls_certificates: [{{certificate_chain: {{filename: {name}.pem}}, private_key: {{filename: {name}-key.pem}}}}]{validation}}}}}}}"
    )
}

#[tokio::test]
async fn the_server_name_picks_the_chain_and_certificates_rotate() -> Result {
    let folder = TempDir::with_prefix("culvert-")?;
    let (ca, stranger) = (Authority::new("root")?, Authority::new("stranger")?);
    ca.write(folder.path())?;
    for name in ["a", "b"] {
        ca.issue(folder.path(), name, &[&format!("{name}.test")])?;
    }
    let client = ca.issue(folder.path(), "client", &["client.test"])?;
    let unknown = stranger.issue(folder.path(), "unknown", &["client.test"])?;
    let direct = |text: &str| {
        format!("[{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {text}}}}}}}]")
    };
    let second = http_listener("in", &direct("b"), "", &tls_chain("b", true));
    let (_, second) = second.split_once("filter_chains:\n").context("no chain")?;
    let listener = http_listener("in", &direct("a"), "", &tls_chain("a", false)) + second;
    let files = TempDir::with_prefix("culvert-")?;
    ca.write(files.path())?;
    let gateway = Gateway::start_in(folder, &listener, "    []", "", 2).await?;
    let address = gateway.listener("in")?;

    let (answer, before) = get_tls(address, "a.test", &files, None).await?;
    says(&answer, 200, "a")?;
    says(&get_tls(address, "b.test", &files, Some(&client)).await?.0, 200, "b")?;
    for (name, own) in [("b.test", None), ("b.test", Some(&unknown)), ("c.test", None)] {
        let refused = get_tls(address, name, &files, own).await;
        ensure!(refused.is_err(), "expected {name} with {own:?} to be refused, saw {refused:?}");
    }
    let prefix = format!("listener.{}_{}", address.ip(), address.port());
    for (name, value) in [
        ("ssl.handshake", 2),
        ("ssl.fail_verify_no_cert", 1),
        ("ssl.fail_verify_error", 1),
        ("no_filter_chain_match", 1),
    ] {
        gateway.stat_reaches(&format!("{prefix}.{name}"), value).await?;
        let seen = gateway.stat(&format!("{prefix}.{name}")).await?;
        ensure!(seen == value, "expected {prefix}.{name} to be {value}, saw {seen}");
    }
    ca.issue(gateway.folder(), "a", &["a.test"])?;
    eventually("the new certificate is presented", async || {
        let (answer, now) = get_tls(address, "a.test", &files, None).await?;
        says(&answer, 200, "a")?;
        ensure!(now != before, "still the old certificate");
        Ok(())
    })
    .await?;
    let dump = get(gateway.admin, "/config_dump").await?.text();
    ensure!(!dump.contains("PRIVATE KEY"), "a private key in /config_dump:\n{dump}");
    gateway.stop().await
}

#[tokio::test]
async fn bytes_after_a_refused_switch_are_no_requests() -> Result {
    let backend = Backend::start("a").await?;
    let gateway = Gateway::start(&http_listener("in", TO_A, "", ""), &cluster("a", &[backend.address], "")).await?;
    let hidden = b"GET /hidden HTTP/1.1\r\nhost: a\r\n\r\n";
    let connect: &[u8] = b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n";
    for (switch, status) in [(SWITCH, "403"), (connect, "404")] {
        let text = exchange(gateway.listener("in")?, &[switch, hidden].concat()).await?;
        ensure!(text.starts_with(&format!("HTTP/1.1 {status} ")), "expected {status}, saw {text:?}");
        ensure!(text.contains("connection: close\r\n"), "expected connection: close, saw {text:?}");
        ensure!(text.matches("HTTP/1.1").count() == 1, "expected one answer, saw {text:?}");
    }
    ensure!(backend.requests() == 0, "the backend saw {} requests", backend.requests());
    gateway.stop().await
}

#[tokio::test]
async fn a_websocket_passes() -> Result {
    let echo = scripted(capitals).await?;
    let gateway = Gateway::start(&http_listener("in", TO_A, WEBSOCKET, ""), &cluster("a", &[echo], "")).await?;
    talk(gateway.listener("in")?).await?;
    gateway.stop().await
}

#[tokio::test]
async fn grpc_keeps_its_trailers() -> Result {
    let server = scripted(grpc::serve).await?;
    let gateway = Gateway::start(&http_listener("in", TO_A, "", ""), &cluster("a", &[server], HTTP2)).await?;
    grpc::check(gateway.listener("in")?).await?;
    gateway.stop().await
}

/// Promises 100 bytes and dies after four.
async fn half(mut socket: TcpStream) -> Result {
    read_head(&mut socket).await?;
    Ok(socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await?)
}

#[tokio::test]
async fn a_body_that_ends_early_is_seen_to_and_names_fail_over() -> Result {
    let (dying, backend) = (scripted(half).await?, Backend::start("b").await?);
    let log = "access_log:\n- name: file\n  typed_config:\n    \"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog\n    path: access.log\n    log_format: {json_format: {code: \"%RESPONSE_CODE%\", flags: \"%RESPONSE_FLAGS%\", none: \"%REQ(X-NONE)%\", deep: {text: \"<%PROTOCOL%>\"}}}";
    let routes = "[{match: {prefix: /half}, route: {cluster: a}}, {match: {prefix: /strict}, route: {cluster: strict}}, {match: {prefix: /logical}, route: {cluster: logical}}, {match: {prefix: /over}, route: {cluster: over}}]";
    let port = backend.address.port();
    let named = |name: &str, kind: &str| {
        format!(
            "  - name: {name}\n    type: {kind}\n    dns_lookup_family: V4_ONLY\n    load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: localhost, port_value: {port}}}}}}}}}]}}]}}\n"
        )
    };
    let host = |address: SocketAddr, health: &str| {
        format!(
            "[{{health_status: {health}, endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]",
            address.port()
        )
    };
    let over = format!(
        "  - name: over\n    type: STATIC\n    load_assignment: {{cluster_name: over, endpoints: [{{priority: 0, lb_endpoints: {}}}, {{priority: 1, lb_endpoints: {}}}]}}\n",
        host(dying, "UNHEALTHY"),
        host(backend.address, "HEALTHY")
    );
    let clusters =
        cluster("a", &[dying], "") + &named("strict", "STRICT_DNS") + &named("logical", "LOGICAL_DNS") + &over;
    let gateway = Gateway::start(&http_listener("in", routes, log, ""), &clusters).await?;
    let address = gateway.listener("in")?;
    let text = exchange(address, b"GET /half HTTP/1.1\r\nhost: a\r\n\r\n").await?;
    ensure!(text.contains("content-length: 100\r\n") && text.ends_with("\r\n\r\nhalf"), "saw {text:?}");
    for path in ["/strict", "/logical", "/over"] {
        says(&get(address, path).await?, 200, "b\n").context(path)?;
    }
    let lines = |flags: &str| {
        format!("{{\"code\":200,\"deep\":{{\"text\":\"<HTTP/1.1>\"}},\"flags\":\"{flags}\",\"none\":null}}")
    };
    eventually("four lines in the access log", async || {
        let text = std::fs::read_to_string(gateway.folder().join("access.log"))?;
        let count = |flags: &str| text.lines().filter(|line| *line == lines(flags)).count();
        ensure!(
            (count("UPE"), count("-")) == (1, 3),
            "expected one {} and three {}, saw\n{text}",
            lines("UPE"),
            lines("-")
        );
        Ok(())
    })
    .await?;
    gateway.stop().await
}

#[tokio::test]
async fn sigterm_finishes_the_streams_of_http2() -> Result {
    let backend = Backend::start("a").await?;
    let mut gateway = Gateway::start(&http_listener("in", TO_A, "", ""), &cluster("a", &[backend.address], "")).await?;
    let (client, connection) = h2::client::handshake(TcpStream::connect(gateway.listener("in")?).await?).await?;
    let driver = tokio::spawn(connection);
    let mut streams = Vec::new();
    for _ in 0..20 {
        let request = Request::get("http://culvert.test/delay/1500").body(())?;
        let mut ready = client.clone().ready().await?;
        streams.push(ready.send_request(request, true)?.0);
    }
    eventually("all are in flight", async || {
        ensure!(backend.requests() == 20, "{} are", backend.requests());
        Ok(())
    })
    .await?;
    gateway.daemon.signal(rustix::process::Signal::TERM)?;
    for stream in streams {
        let mut response = in_time("a response", stream).await??;
        let body = in_time("a body", response.body_mut().data()).await?.context("no body")??;
        ensure!(response.status() == 200 && &*body == b"a\n", "saw {} {body:?}", response.status());
    }
    drop(client);
    in_time("GOAWAY, then the end", driver).await???;
    let status = gateway.daemon.exit(PATIENCE).await?;
    ensure!(status.success(), "expected exit code 0, saw {status}");
    Ok(())
}

const LARGE: usize = 100 << 20;

/// Takes a body of [`LARGE`] bytes and gives one.
async fn large(mut socket: TcpStream) -> Result {
    read_head(&mut socket).await?;
    let mut buffer = vec![0; 1 << 16];
    let mut left = LARGE;
    while left > 0 {
        let read = socket.read(&mut buffer).await?;
        ensure!(read > 0, "the request ended {left} bytes early");
        left -= read;
    }
    socket.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n").as_bytes()).await?;
    for _ in 0..LARGE / buffer.len() {
        socket.write_all(&buffer).await?;
    }
    Ok(())
}

#[tokio::test]
async fn bodies_of_100_mib_do_not_stay_in_memory() -> Result {
    let server = scripted(large).await?;
    let gateway = Gateway::start(&http_listener("in", TO_A, "", ""), &cluster("a", &[server], "")).await?;
    let before = gateway.daemon.peak()?;
    let mut socket = TcpStream::connect(gateway.listener("in")?).await?;
    socket.write_all(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {LARGE}\r\n\r\n").as_bytes()).await?;
    let mut buffer = vec![b'x'; 1 << 16];
    for _ in 0..LARGE / buffer.len() {
        in_time("the request is taken", socket.write_all(&buffer)).await??;
    }
    read_head(&mut socket).await?;
    let mut left = LARGE;
    while left > 0 {
        let read = in_time("the response comes", socket.read(&mut buffer)).await??;
        ensure!(read > 0, "the response ended {left} bytes early");
        left -= read;
    }
    let grown = gateway.daemon.peak()?.saturating_sub(before);
    ensure!(grown < 16 << 10, "expected the process to grow by less than 16 MiB, it grew by {grown} KiB");
    gateway.stop().await
}

/// A cloud that sends `/` to any agent, `/header` to the one that a header names and `/label` to that of the host.
async fn cloud(protocol: &str) -> Result<Gateway> {
    let select = |path: &str, what: &str| {
        format!(
            "{{match: {{prefix: {path}}}, route: {{cluster: edge, metadata_match: {{filter_metadata: {{culvert.tunnel: {{{what}}}}}}}}}}}"
        )
    };
    let routes = format!(
        "[{}, {}, {{match: {{prefix: /}}, route: {{cluster: edge}}}}]",
        select("/header", "agent_header: x-agent"),
        select("/label", "agent_host_label: true")
    );
    let tunnel = format!(
        "  - name: tunnel\n    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\n    filter_chains:\n    - filters:\n      - name: t\n        typed_config: {{\"@type\": type.googleapis.com/culvert.tunnel.v1.TunnelServer, stat_prefix: t, protocol: {protocol}}}\n"
    );
    let listeners = http_listener("in", &routes, WEBSOCKET, "") + &tunnel;
    Gateway::start_in(TempDir::with_prefix("culvert-")?, &listeners, &cluster("edge", &[], ""), "", 4).await
}

async fn edge(cloud: &Gateway, name: &str, backend: SocketAddr) -> Result<Gateway> {
    let hosted = http_listener("hosted", TO_A, WEBSOCKET, "")
        .replace("    filter_chains:", "    bind_to_port: false\n    filter_chains:");
    let agents = format!(
        "bootstrap_extensions:\n- name: culvert.tunnel_agents\n  typed_config:\n    \"@type\": type.googleapis.com/culvert.tunnel.v1.TunnelAgents\n    agents:\n    - {{name: agent, host_name: {name}, cluster: edge, hosting_listener: hosted, servers: [{{address: \"{}\"}}], reconnect_base_interval: 0.05s}}",
        cloud.listener("tunnel")?
    );
    Gateway::start_in(TempDir::with_prefix("culvert-")?, &hosted, &cluster("a", &[backend], ""), &agents, 1).await
}

async fn joined(cloud: &Gateway, hosts: u64) -> Result {
    eventually("the agents have joined", async || {
        let seen = cloud.stat("cluster.edge.membership_total").await?;
        ensure!(seen == hosts, "{seen} of {hosts} have");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_agent_is_selected_by_header_or_host_and_unknown_differs_from_offline() -> Result {
    let (one, two) = (Backend::start("one").await?, Backend::start("two").await?);
    let cloud = cloud("HTTP1").await?;
    let first = edge(&cloud, "site-1", one.address).await?;
    let second = edge(&cloud, "site-2", two.address).await?;
    joined(&cloud, 2).await?;
    let address = cloud.listener("in")?;
    let ask = async |path: &str, host: &str, agent: &str| {
        send(address, Request::get(path).header("host", host).header("x-agent", agent).body(Full::default())?).await
    };
    // Every request is a connection of its own, so that all four workers are asked.
    for _ in 0..8 {
        for (agent, body) in [("site-1", "one\n"), ("site-2", "two\n")] {
            says(&ask("/header", "any", agent).await?, 200, body)?;
            says(&ask("/label", &format!("{agent}.culvert.test:80"), "").await?, 200, body)?;
        }
    }
    second.stop().await?;
    joined(&cloud, 1).await?;
    for agent in ["site-3", ""] {
        says(&ask("/header", "any", agent).await?, 404, "unknown tunnel agent")?;
        says(&ask("/label", &format!("{agent}.test"), "").await?, 404, "unknown tunnel agent")?;
    }
    for (path, host, agent) in [("/header", "any", "site-2"), ("/label", "site-2.test", "")] {
        let answer = ask(path, host, agent).await?;
        let after: u64 = answer.header("retry-after").parse().context("no retry-after")?;
        ensure!(answer.status == 503 && after <= 30, "expected 503 and a time to come back: {answer:?}");
        ensure!(answer.text().starts_with("tunnel agent offline for "), "saw {}", answer.text());
    }
    says(&ask("/header", "any", "site-1").await?, 200, "one\n")?;
    first.stop().await?;
    cloud.stop().await
}

#[tokio::test]
async fn a_websocket_and_http2_pass_one_tunnel() -> Result {
    let echo = scripted(capitals).await?;
    let plain = cloud("HTTP1").await?;
    let site = edge(&plain, "site", echo).await?;
    joined(&plain, 1).await?;
    talk(plain.listener("in")?).await?;
    site.stop().await?;
    plain.stop().await?;
    let backend = Backend::start("behind").await?;
    let shared = cloud("HTTP2").await?;
    let site = edge(&shared, "site", backend.address).await?;
    joined(&shared, 1).await?;
    let address = shared.listener("in")?;
    // On one plain connection they would take turns: the backend would never see two at one moment.
    let requests = (0..8).map(|_| tokio::spawn(async move { get(address, "/gather/2").await }));
    for request in requests.collect::<Vec<_>>() {
        says(&request.await??, 200, "behind\n")?;
    }
    ensure!(backend.peak() > 1, "expected requests to share the tunnel, saw {} at once", backend.peak());
    site.stop().await?;
    shared.stop().await
}
