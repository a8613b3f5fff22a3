//! The real Envoy and culvert-proxy on the same bootstrap: the same requests get the same answers, leave the same lines in
//! the access log, and keep or end their connections alike. What is meant to differ stands in docs/xds.md.

mod names;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::backend::{Backend, scripted};
use culvert_tests::client::{get, read_head};
use culvert_tests::gateway::{cluster, http_listener};
use culvert_tests::peer::Peer;
use culvert_tests::process::{Daemon, ours};
use culvert_tests::wait::{eventually, in_time};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Everything of a line that both can know alike: no times, no numbers of connections.
const FORMAT: &str = "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH):30% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% \
    %RESPONSE_FLAGS_LONG% %RESPONSE_CODE_DETAILS% rx=%BYTES_RECEIVED% tx=%BYTES_SENT% \
    tf=%UPSTREAM_TRANSPORT_FAILURE_REASON% cluster=%UPSTREAM_CLUSTER% attempts=%UPSTREAM_REQUEST_ATTEMPT_COUNT% \
    route=%ROUTE_NAME% host=%UPSTREAM_HOST% upstream=%UPSTREAM_PROTOCOL% \
    from=%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% type=%RESP(CONTENT-TYPE)% a=%REQ(X-A?HOST)% \
    sni=%REQUESTED_SERVER_NAME% grpc=%GRPC_STATUS% to=%RESP(LOCATION)%";

const RETRY: &str = "retry_back_off: {base_interval: 0.001s, max_interval: 0.002s}";

fn bootstrap(clusters: &str) -> String {
    let routes = format!(
        "[{{match: {{prefix: /direct}}, direct_response: {{status: 200, body: {{inline_string: hello}}}}}},
          {{match: {{prefix: /timeout}}, name: slow, route: {{cluster: mute, timeout: 0.2s}}}},
          {{match: {{prefix: /waits}}, route: {{cluster: mute}}}},
          {{match: {{prefix: /retry}}, route: {{cluster: closed, retry_policy: {{retry_on: connect-failure, num_retries: 2, {RETRY}}}}}}},
          {{match: {{prefix: /per-try}}, route: {{cluster: mute, timeout: 5s, retry_policy: {{retry_on: 5xx, num_retries: 1, per_try_timeout: 0.1s, {RETRY}}}}}}},
          {{match: {{prefix: /redirect}}, redirect: {{path_redirect: /x}}}},
          {{match: {{prefix: /header}}, route: {{cluster_header: x-cluster}}}},
          {{match: {{prefix: /empty}}, route: {{cluster: empty}}}},
          {{match: {{prefix: /closed}}, route: {{cluster: closed}}}},
          {{match: {{prefix: /garbage}}, route: {{cluster: garbage}}}},
          {{match: {{prefix: /hang-up}}, route: {{cluster: hang-up}}}},
          {{match: {{prefix: /cut}}, route: {{cluster: cut}}}},
          {{match: {{prefix: /chat}}, route: {{cluster: chat}}}},
          {{match: {{connect_matcher: {{}}}}, route: {{cluster: a, upgrade_configs: [{{upgrade_type: CONNECT, connect_config: {{}}}}]}}}},
          {{match: {{prefix: /old}}, route: {{cluster: a, prefix_rewrite: /new}}}},
          {{match: {{prefix: /x}}, name: plain, route: {{cluster: a}}}},
          {{match: {{path: /follow}}, route: {{cluster: a}}}}]"
    );
    let routes = routes.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let log = format!(
        "upgrade_configs: [{{upgrade_type: websocket}}]\naccess_log: [{{name: file, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: access.log, log_format: {{text_format_source: {{inline_string: \"{FORMAT}\\n\"}}}}}}}}]"
    );
    listener_and_clusters(&routes, &log, clusters)
}

/// A bootstrap with one listener: what its connection manager has beside the routes, and the clusters.
fn listener_and_clusters(routes: &str, more: &str, clusters: &str) -> String {
    let listener = http_listener("in", routes, more, "");
    format!(
        "node: {{id: test, cluster: test}}\nadmin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\nstatic_resources:\n  listeners:\n{listener}\n  clusters:\n{clusters}"
    )
}

/// A proxy on the bootstrap.
struct Side {
    name: &'static str,
    folder: TempDir,
    address: SocketAddr,
    _daemon: Daemon,
}

impl Side {
    async fn start(name: &'static str, program: &Path, bootstrap: &str, more: &[&str]) -> Result<Self> {
        let folder = TempDir::with_prefix("culvert-")?;
        std::fs::write(folder.path().join("bootstrap.yaml"), bootstrap)?;
        let args = ["-c", "bootstrap.yaml", "--concurrency", "1", "--admin-address-path", "admin", "-l", "info"];
        let mut daemon = Daemon::start(name, program, &[&args[..], more].concat(), folder.path())?;
        let admin = daemon.address(&folder.path().join("admin")).await.with_context(|| daemon.output())?;
        let address = eventually(&format!("{name} is ready"), async || {
            daemon.check_alive()?;
            ensure!(get(admin, "/ready").await?.status == 200, "not ready");
            let listeners = get(admin, "/listeners?format=json").await?.json()?;
            let socket = &listeners["listener_statuses"][0]["local_address"]["socket_address"];
            let port = socket["port_value"].as_u64().context("no port")?;
            Ok(SocketAddr::from(([127, 0, 0, 1], u16::try_from(port)?)))
        })
        .await
        .with_context(|| daemon.output())?;
        Ok(Self { name, folder, address, _daemon: daemon })
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("access.log")
    }

    /// The lines of all requests but those that only ask whether a connection lives.
    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        text.lines().filter(|line| !line.contains(" /follow ")).map(str::to_owned).collect()
    }

    /// Plays a case: the statuses that came, whether the connection was kept, and the line that was logged.
    async fn play(&self, case: &Case) -> Result<Seen> {
        let before = self.lines().len();
        let heard = HEARD.load(Ordering::SeqCst);
        let mut socket = TcpStream::connect(self.address).await?;
        let mut answer = Vec::new();
        for (bytes, until) in case.pieces {
            // Whoever refuses early may close before everything was sent.
            socket.write_all(&expand(bytes)).await.ok();
            if !until.is_empty() {
                read_until(&mut socket, &mut answer, until).await?;
            }
        }
        let mut kept = None;
        let mut socket = Some(socket);
        if case.hangs_up {
            if case.pieces.last().is_some_and(|(_, until)| until.is_empty()) {
                eventually("the host hears of the request", async || {
                    ensure!(HEARD.load(Ordering::SeqCst) > heard, "nothing came");
                    Ok(())
                })
                .await?;
            }
            drop(socket.take());
        }
        let line = eventually(&format!("{} logs", self.name), async || {
            self.lines().get(before).cloned().context("no line yet")
        })
        .await?;
        if let Some(mut socket) = socket {
            // Whatever came for the case is there before the line is; then one more request tells the rest.
            socket.write_all(b"GET /follow HTTP/1.1\r\nhost: h\r\n\r\n").await.ok();
            read_until(&mut socket, &mut answer, "x-backend: follows").await?;
            kept = Some(String::from_utf8_lossy(&answer).contains("x-backend: follows"));
        }
        let text = String::from_utf8_lossy(&answer).into_owned();
        let statuses = text.split("HTTP/1.1 ").skip(1).map(|rest| rest.chars().take(3).collect()).collect();
        Ok(Seen { statuses, kept, line })
    }
}

/// Reads until the text came or the other end closed.
async fn read_until(socket: &mut TcpStream, answer: &mut Vec<u8>, text: &str) -> Result {
    let from = answer.len();
    while !String::from_utf8_lossy(answer.get(from..).unwrap_or_default()).contains(text) {
        match in_time(text, socket.read_buf(answer)).await? {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    Ok(())
}

/// `{LONG}` and `{MANY}` stand for a field of 62 KiB and 101 fields.
fn expand(text: &str) -> Vec<u8> {
    let many: String = (0..101).map(|at| format!("x-{at}: y\r\n")).collect();
    let long = format!("long: {}\r\n", "b".repeat(62 * 1024));
    text.replace("{LONG}", &long).replace("{MANY}", &many).into_bytes()
}

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    statuses: Vec<String>,
    kept: Option<bool>,
    line: String,
}

struct Case {
    name: &'static str,
    /// What is sent, and the text that is read before the next piece; the last one is read to the end of its log line.
    pieces: &'static [(&'static str, &'static str)],
    /// The client closes after the last piece.
    hangs_up: bool,
}

const fn case(name: &'static str, pieces: &'static [(&'static str, &'static str)]) -> Case {
    Case { name, pieces, hangs_up: false }
}

const fn leaving(name: &'static str, pieces: &'static [(&'static str, &'static str)]) -> Case {
    Case { name, pieces, hangs_up: true }
}

const CASES: &[Case] = &[
    case("plain", &[("GET /x?q=1 HTTP/1.1\r\nhost: h\r\n\r\n", "")]),
    case("a header", &[("GET /x HTTP/1.1\r\nhost: h\r\nx-a: b\r\n\r\n", "")]),
    case("length", &[("POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello", "")]),
    case(
        "chunked",
        &[("POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "")],
    ),
    case("HEAD", &[("HEAD /x HTTP/1.1\r\nhost: h\r\n\r\n", "")]),
    case("close", &[("GET /x HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n", "")]),
    case("old close", &[("GET /x HTTP/1.1\r\nhost: h\r\nproxy-connection: close\r\n\r\n", "")]),
    case("direct", &[("GET /direct HTTP/1.1\r\nhost: h\r\n\r\n", "")]),
    case("redirect", &[("GET /redirect?a=b HTTP/1.1\r\nhost: h\r\n\r\n", "")]),
    case("rewritten", &[("GET /old/a HTTP/1.1\r\nhost: h\r\n\r\n", "")]),
    case("no route", &[("GET /nowhere HTTP/1.1\r\nhost: h\r\n\r\n", "")]),
    case("no cluster", &[("GET /header HTTP/1.1\r\nhost: h\r\nx-cluster: none\r\n\r\n", "")]),
    case("no host", &[("GET /empty HTTP/1.1\r\nhost: h\r\n\r\n", "")]),
    case("refused", &[("GET /closed HTTP/1.1\r\nhost: h\r\n\r\n", "")]),
    case("retried", &[("GET /retry HTTP/1.1\r\nhost: h\r\n\r\n", "")]),
    case("timeout", &[("GET /timeout HTTP/1.1\r\nhost: h\r\n\r\n", "")]),
    case("timeouts of attempts", &[("GET /per-try HTTP/1.1\r\nhost: h\r\n\r\n", "")]),
    case("no HTTP", &[("GET /garbage HTTP/1.1\r\nhost: h\r\n\r\n", "")]),
    case("no response", &[("GET /hang-up HTTP/1.1\r\nhost: h\r\n\r\n", "")]),
    case("half a response", &[("GET /cut HTTP/1.1\r\nhost: h\r\n\r\n", "")]),
    case(
        "gRPC without a host",
        &[("POST /empty HTTP/1.1\r\nhost: h\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n", "")],
    ),
    case(
        "gRPC without a route",
        &[("POST /nowhere HTTP/1.1\r\nhost: h\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n", "")],
    ),
    case(
        "an upgrade that is not configured",
        &[("GET /x HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: foo\r\n\r\n", "")],
    ),
    case(
        "a WebSocket without a host",
        &[("GET /empty HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", "")],
    ),
    leaving(
        "a WebSocket",
        &[
            ("GET /chat HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", "\r\n\r\n"),
            ("first", "FIRST"),
        ],
    ),
    leaving(
        "a CONNECT",
        &[
            ("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", "\r\n\r\n"),
            ("GET /inside HTTP/1.1\r\nhost: h\r\n\r\n", "x-backend: follows"),
        ],
    ),
    case("a length that is no number", &[("POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: z\r\n\r\n", "")]),
    case(
        "a chunk size that is none",
        &[("POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "")],
    ),
    case("an unknown coding", &[("POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: gzip\r\n\r\n", "")]),
    case("HTTP/1.0", &[("GET /x HTTP/1.0\r\nhost: h\r\n\r\n", "")]),
    case("a large head", &[("GET /x HTTP/1.1\r\nhost: h\r\n{LONG}\r\n", "")]),
    case("many fields", &[("GET /x HTTP/1.1\r\nhost: h\r\n{MANY}\r\n", "")]),
    leaving("gone while sending", &[("POST /waits HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\nhell", "")]),
    leaving("gone while waiting", &[("GET /waits HTTP/1.1\r\nhost: h\r\n\r\n", "")]),
];

/// What hosts that answer nothing have been sent, in pieces.
static HEARD: AtomicU64 = AtomicU64::new(0);

async fn mute(mut socket: TcpStream) -> Result {
    let mut buffer = [0; 1024];
    while socket.read(&mut buffer).await? > 0 {
        HEARD.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

async fn garbage(mut socket: TcpStream) -> Result {
    read_head(&mut socket).await?;
    Ok(socket.write_all(b"SSH-2.0-x\r\n").await?)
}

async fn hang_up(mut socket: TcpStream) -> Result {
    read_head(&mut socket).await?;
    Ok(())
}

async fn cut(mut socket: TcpStream) -> Result {
    read_head(&mut socket).await?;
    Ok(socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").await?)
}

async fn chat(mut socket: TcpStream) -> Result {
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

#[tokio::test]
async fn answers_and_log_lines_are_envoys() -> Result {
    let Some(envoy) = Peer::Envoy.find()? else { return Ok(()) };
    let backend = Backend::start("follows").await?;
    let closed = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let clusters = [
        cluster("a", &[backend.address], ""),
        cluster("mute", &[scripted(mute).await?], ""),
        cluster("garbage", &[scripted(garbage).await?], ""),
        cluster("hang-up", &[scripted(hang_up).await?], ""),
        cluster("cut", &[scripted(cut).await?], ""),
        cluster("chat", &[scripted(chat).await?], ""),
        cluster("closed", &[closed], ""),
        cluster("empty", &[], ""),
    ];
    let bootstrap = bootstrap(&clusters.concat());
    let flushing = ["--use-dynamic-base-id", "--file-flush-interval-msec", "20"];
    let theirs = Side::start("envoy", &envoy, &bootstrap, &flushing).await?;
    let ours = Side::start("culvert-proxy", &ours("culvert-proxy")?, &bootstrap, &[]).await?;
    let mut differences = Vec::new();
    for case in CASES {
        let play = async |side: &Side| side.play(case).await.with_context(|| format!("{}: {}", side.name, case.name));
        let (expected, seen) = if case.hangs_up {
            (play(&theirs).await?, play(&ours).await?)
        } else {
            tokio::try_join!(play(&theirs), play(&ours))?
        };
        if expected != seen {
            differences.push(format!("{}:\n  expected {expected:?}\n  seen     {seen:?}", case.name));
        }
    }
    ensure!(differences.is_empty(), "{} of {} differ\n{}", differences.len(), CASES.len(), differences.join("\n"));
    Ok(())
}

/// Envoy's default of 1024 requests holds for the process, not for each worker.
#[tokio::test]
async fn default_breakers_hold_across_workers() -> Result {
    use culvert_tests::gateway::Gateway;
    let listener = http_listener("in", "[{match: {prefix: /}, route: {cluster: mute, timeout: 0s}}]", "", "");
    let mute = scripted(mute).await?;
    // Connections have a breaker of their own, which is not the one in question.
    let clusters = cluster("mute", &[mute], "circuit_breakers: {thresholds: [{max_connections: 4096}]}");
    let gateway = Gateway::start_in(TempDir::with_prefix("culvert-")?, &listener, &clusters, "", 4).await?;
    let address = gateway.listener("in")?;
    let mut sockets = Vec::new();
    for _ in 0..1100 {
        let mut socket = TcpStream::connect(address).await?;
        socket.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await?;
        sockets.push(socket);
    }
    gateway.stat_reaches("cluster.mute.upstream_rq_pending_overflow", 1100 - 1024).await?;
    gateway.stat_reaches("http.in.downstream_rq_5xx", 1100 - 1024).await?;
    let active = gateway.stat("cluster.mute.upstream_rq_active").await?;
    let refused = gateway.stat("cluster.mute.upstream_rq_pending_overflow").await?;
    ensure!((active, refused) == (1024, 76), "expected 1024 under way and 76 refused, saw {active} and {refused}");
    let mut answered = 0;
    for socket in &mut sockets {
        let mut buffer = [0; 256];
        if let Ok(Ok(read @ 1..)) = tokio::time::timeout(Duration::from_millis(2), socket.read(&mut buffer)).await {
            let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
            ensure!(text.starts_with("HTTP/1.1 503 ") && text.contains("x-envoy-overloaded: true"), "{text}");
            answered += 1;
        }
    }
    ensure!(answered == 76, "expected 76 answers of 503, saw {answered}");
    drop(sockets);
    gateway.stop().await
}
