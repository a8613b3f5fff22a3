//! Requests through a worker, from a client in memory to hosts on loopback.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::access_log::{AccessLog, Format, LogFormat, Operator, Part, Sink};
use culvert_model::http::{HttpConnectionManager, UpgradeConfig};
use culvert_model::route::{
    Action, AppendAction, Body, ClusterChoice, ClusterRef, DirectResponse, HeaderAdd, HeaderMutations, HostRewrite,
    PathMatch, PathRewrite, RetryOn, RetryPolicy, RouteAction, VirtualHost, WeightedCluster,
};
use culvert_model::source::DataSource;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::stats::HttpMetric;
use crate::testing::{Gateway, backend, cluster, forward, manager_of, ok, on_worker, route, to, virtual_host};

/// What the hosts were asked, each request as text.
type Asked = Rc<RefCell<Vec<String>>>;

/// A host that records what it is asked and answers `reply`.
async fn recording(reply: &'static str) -> (std::net::SocketAddr, Asked) {
    let asked = Asked::default();
    let log = Rc::clone(&asked);
    let address = backend(move |request| {
        log.borrow_mut().push(request.to_owned());
        reply.to_owned()
    })
    .await;
    (address, asked)
}

fn status(response: &str) -> &str {
    response.split(' ').nth(1).unwrap_or(response)
}

fn body(response: &str) -> &str {
    response.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

fn retrying(on: RetryOn) -> RouteAction {
    let policy = RetryPolicy {
        on,
        statuses: Vec::new(),
        num_retries: 2,
        per_try_timeout: None,
        per_try_idle_timeout: None,
        base_interval: Duration::from_millis(1),
        max_interval: Duration::from_millis(2),
        retriable_headers: Vec::new(),
        retriable_request_headers: Vec::new(),
        fresh_host_picks: None,
    };
    RouteAction { retry: Some(Arc::new(policy)), ..to("a") }
}

fn any_5xx() -> RetryOn {
    RetryOn { any_5xx: true, ..RetryOn::default() }
}

#[test]
fn a_request_is_forwarded_with_envoys_headers() {
    on_worker(async {
        let (address, asked) = recording("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-up: 1\r\n\r\nhi").await;
        let manager = HttpConnectionManager {
            use_remote_address: true,
            via: "culvert".into(),
            ..manager_of(vec![virtual_host(vec![route("/", forward(to("a")))])])
        };
        let gateway = Gateway::http(vec![cluster("a", &[address])], manager);
        let response = gateway.get("/x?q=1").await;
        assert_eq!((status(&response), body(&response)), ("200", "hi"), "{response}");
        for field in
            ["x-up: 1\r\n", "server: envoy\r\n", "via: culvert\r\n", "x-envoy-upstream-service-time: ", "date: "]
        {
            assert!(response.contains(field), "{field:?} in {response}");
        }
        let asked = asked.borrow()[0].clone();
        assert!(asked.starts_with("GET /x?q=1 HTTP/1.1\r\nhost: a.example\r\n"), "{asked}");
        for field in [
            "x-forwarded-for: 192.0.2.1\r\n",
            "x-forwarded-proto: http\r\n",
            "x-request-id: ",
            "x-envoy-expected-rq-timeout-ms: 15000\r\n",
            "via: culvert\r\n",
        ] {
            assert!(asked.contains(field), "{field:?} in {asked}");
        }
        assert!(!asked.contains("connection: close"), "the client's connection is not the host's: {asked}");
        for (metric, expected) in [(HttpMetric::RqTotal, 1), (HttpMetric::Rq2xx, 1), (HttpMetric::RqActive, 0)] {
            assert_eq!(gateway.http_stat(metric), expected, "{metric:?}");
        }
    });
}

#[test]
fn requests_on_one_connection_reuse_one_host_connection() {
    on_worker(async {
        let (address, asked) = recording("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
        let gateway = Gateway::http(
            vec![cluster("a", &[address])],
            manager_of(vec![virtual_host(vec![route("/", forward(to("a")))])]),
        );
        let one = "GET /n HTTP/1.1\r\nhost: a\r\n\r\n";
        let last = "GET /n HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        let response = gateway.exchange(&format!("{one}{one}{last}")).await;
        assert_eq!(response.matches("HTTP/1.1 200").count(), 3, "three pipelined answers: {response}");
        assert_eq!(asked.borrow().len(), 3, "three requests at the host");
        let slot = gateway.worker.process.clusters.slot("a");
        let connections = slot.stats().read(culvert_upstream::ClusterMetric::CxTotal);
        assert_eq!(connections, 1, "over one connection");
    });
}

#[test]
fn bodies_stream_both_ways() {
    on_worker(async {
        let address = backend(|request| ok(body(request))).await;
        let gateway = Gateway::http(
            vec![cluster("a", &[address])],
            manager_of(vec![virtual_host(vec![route("/", forward(to("a")))])]),
        );
        let text = "x".repeat(100_000);
        let request =
            format!("POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        let response = gateway.exchange(&request).await;
        assert_eq!(body(&response).len(), text.len(), "the body comes back");
    });
}

#[test]
fn local_answers() {
    on_worker(async {
        let source = DataSource::Inline(b"short and stout".as_slice().into());
        let direct = DirectResponse { status: 418, body: Body::Source(source) };
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let manager = manager_of(vec![virtual_host(vec![
            route("/direct", Action::Direct(Arc::new(direct))),
            route("/empty", forward(to("empty"))),
            route("/refused", forward(to("refused"))),
            route("/gone", forward(RouteAction { cluster_not_found: 404, ..to("gone") })),
            route("/named", forward(RouteAction { clusters: ClusterChoice::Header("x-cluster".into()), ..to("a") })),
        ])]);
        let clusters = vec![cluster("empty", &[]), cluster("refused", &[closed])];
        let gateway = Gateway::http(clusters, manager);
        for (path, expected, text) in [
            ("/direct", "418", "short and stout"),
            ("/nowhere", "404", ""),
            ("/empty", "503", "no healthy upstream"),
            (
                "/refused",
                "503",
                "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
            ),
            ("/gone", "404", ""),
            ("/named", "503", ""),
        ] {
            let response = gateway.get(path).await;
            assert_eq!((status(&response), body(&response)), (expected, text), "{path}");
        }
        assert_eq!(gateway.http_stat(HttpMetric::NoRoute), 1, "one request had no route");
        let grpc = "POST /empty HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let response = gateway.exchange(grpc).await;
        assert_eq!(status(&response), "200", "gRPC's status stands in its own field");
        assert!(response.contains("grpc-status: 14\r\ngrpc-message: no healthy upstream\r\n"), "{response}");
    });
}

#[test]
fn retries_take_another_host_and_then_give_up() {
    on_worker(async {
        let tries = Rc::new(Cell::new(0));
        let count = Rc::clone(&tries);
        let address = backend(move |request| {
            count.set(count.get() + 1);
            if count.get() % 3 != 0 || request.starts_with("GET /never") {
                "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_owned()
            } else {
                ok(body(request))
            }
        })
        .await;
        let host = VirtualHost {
            include_attempt_count_in_response: true,
            ..virtual_host(vec![route("/", forward(retrying(any_5xx())))])
        };
        let gateway = Gateway::http(vec![cluster("a", &[address])], manager_of(vec![host]));
        let response = gateway.get("/").await;
        assert_eq!(status(&response), "200", "the third attempt succeeds: {response}");
        assert!(response.contains("x-envoy-attempt-count: 3\r\n"), "{response}");
        let request = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 5\r\n\r\nagain";
        assert_eq!(body(&gateway.exchange(request).await), "again", "the body is sent again");
        assert_eq!(status(&gateway.get("/never").await), "503", "the last answer is passed on");
        assert_eq!(tries.get(), 9, "three attempts each");
        let slot = gateway.worker.process.clusters.slot("a");
        let stats = slot.stats();
        assert_eq!(stats.read(culvert_upstream::ClusterMetric::RqRetry), 6, "two retries each");
        assert_eq!(stats.read(culvert_upstream::ClusterMetric::RqRetryLimitExceeded), 1, "one ran out of them");
    });
}

#[test]
fn nothing_is_retried_without_a_policy_or_with_too_long_a_body() {
    on_worker(async {
        let (address, asked) = recording("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        let manager = manager_of(vec![virtual_host(vec![
            route("/with", forward(retrying(any_5xx()))),
            route("/", forward(to("a"))),
        ])]);
        let gateway = Gateway::http(vec![cluster("a", &[address])], manager);
        assert_eq!(status(&gateway.get("/").await), "503", "passed on");
        assert_eq!(asked.borrow().len(), 1, "one attempt without a policy");
        let text = "x".repeat(70_000);
        let request = format!(
            "POST /with HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        );
        assert_eq!(status(&gateway.exchange(&request).await), "503", "passed on");
        assert_eq!(asked.borrow().len(), 2, "one attempt with a body that cannot be kept");
    });
}

#[test]
fn a_connection_that_the_host_had_closed_costs_no_request() {
    on_worker(async {
        // Answers one request per connection and hangs up without saying so.
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            loop {
                let (mut stream, _) = socket.accept().await.unwrap();
                let mut request = [0; 1024];
                assert!(stream.read(&mut request).await.unwrap() > 0, "a request");
                stream.write_all(ok("once").as_bytes()).await.unwrap();
            }
        });
        let gateway = Gateway::http(
            vec![cluster("a", &[address])],
            manager_of(vec![virtual_host(vec![route("/", forward(to("a")))])]),
        );
        for n in 0..20 {
            assert_eq!(body(&gateway.get("/").await), "once", "request {n}");
        }
    });
}

#[test]
fn timeouts_answer_504() {
    on_worker(async {
        // Takes requests and never answers.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap();
        let short = RouteAction { timeout: Duration::from_millis(30), ..to("a") };
        let mut each = retrying(any_5xx());
        if let Some(policy) = &mut each.retry {
            Arc::make_mut(policy).per_try_timeout = Some(Duration::from_millis(10));
        }
        let idle = RouteAction { timeout: Duration::ZERO, idle_timeout: Some(Duration::from_millis(30)), ..to("a") };
        let manager = manager_of(vec![virtual_host(vec![
            route("/short", forward(short)),
            route("/each", forward(each)),
            route("/idle", forward(idle)),
        ])]);
        let gateway = Gateway::http(vec![cluster("a", &[address])], manager);
        for (path, text) in
            [("/short", "upstream request timeout"), ("/each", "upstream request timeout"), ("/idle", "stream timeout")]
        {
            let response = gateway.get(path).await;
            assert_eq!((status(&response), body(&response)), ("504", text), "{path}");
        }
        let slot = gateway.worker.process.clusters.slot("a");
        let stats = slot.stats();
        assert_eq!(stats.read(culvert_upstream::ClusterMetric::RqTimeout), 1, "one ran into the route's timeout");
        assert_eq!(stats.read(culvert_upstream::ClusterMetric::RqPerTryTimeout), 3, "three attempts ran into theirs");
    });
}

fn add(name: &str, value: Part, append: AppendAction) -> HeaderAdd {
    let value = Format { parts: vec![value], omit_empty: false };
    HeaderAdd { name: name.into(), value, append, keep_empty: false }
}

#[test]
fn heads_are_rewritten_in_envoys_order() {
    on_worker(async {
        let (address, asked) = recording("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-up: 1\r\nx-gone: 1\r\n\r\n").await;
        let literal = |text: &str| Part::Literal(text.into());
        let mut changed = route(
            "/v1/",
            forward(RouteAction {
                path_rewrite: Some(PathRewrite::Prefix("/v2/".into())),
                host_rewrite: Some(HostRewrite::Auto),
                append_x_forwarded_host: true,
                ..to("a")
            }),
        );
        let remote = Part::Operator { operator: Operator::DownstreamRemoteAddressWithoutPort, max_length: None };
        changed.headers = HeaderMutations {
            request_add: vec![
                add("x-level", literal("route"), AppendAction::AppendIfExistsOrAdd),
                add("x-client", remote, AppendAction::OverwriteIfExistsOrAdd),
                add("x-absent", literal("new"), AppendAction::OverwriteIfExists),
            ],
            request_remove: vec!["x-secret".into()],
            response_add: vec![add("x-up", literal("2"), AppendAction::AppendIfExistsOrAdd)],
            response_remove: vec!["x-gone".into()],
        };
        let mut host = virtual_host(vec![changed]);
        host.headers.request_add = vec![add("x-level", literal("host"), AppendAction::AppendIfExistsOrAdd)];
        let gateway = Gateway::http(vec![cluster("a", &[address])], manager_of(vec![host]));
        let response = gateway
            .exchange("GET /v1/x?q HTTP/1.1\r\nhost: a.example\r\nx-secret: 1\r\nconnection: close\r\n\r\n")
            .await;
        let asked = asked.borrow()[0].clone();
        assert!(asked.starts_with("GET /v2/x?q HTTP/1.1\r\nhost: host.internal\r\n"), "{asked}");
        for field in [
            "x-level: route\r\nx-client: 192.0.2.1\r\nx-level: host\r\n",
            "x-envoy-original-path: /v1/x?q\r\n",
            "x-forwarded-host: a.example\r\n",
        ] {
            assert!(asked.contains(field), "{field:?} in {asked}");
        }
        assert!(!asked.contains("x-secret") && !asked.contains("x-absent"), "{asked}");
        assert!(response.contains("x-up: 1\r\n") && response.contains("x-up: 2\r\n"), "{response}");
        assert!(!response.contains("x-gone"), "{response}");
    });
}

#[test]
fn weights_are_kept() {
    on_worker(async {
        let (one, asked) = recording("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1").await;
        let (two, _) = recording("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n2").await;
        let weighted = |cluster: &str, weight| WeightedCluster {
            target: ClusterRef { cluster: cluster.into(), agent: None },
            weight,
            headers: HeaderMutations::default(),
            host_rewrite: None,
        };
        let clusters = vec![weighted("one", 1), weighted("two", 3)];
        let action = RouteAction { clusters: ClusterChoice::Weighted { clusters, total: 4 }, ..to("one") };
        let manager = manager_of(vec![virtual_host(vec![route("/", forward(action))])]);
        let gateway = Gateway::http(vec![cluster("one", &[one]), cluster("two", &[two])], manager);
        fastrand::seed(7);
        for _ in 0..400 {
            assert_eq!(status(&gateway.get("/").await), "200", "both answer");
        }
        let first = asked.borrow().len();
        assert!((70..130).contains(&first), "about a quarter of 400 goes to the first, saw {first}");
    });
}

#[test]
fn websockets_pass_where_they_are_configured() {
    on_worker(async {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            let (mut stream, _) = socket.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let count = stream.read(&mut request).await.unwrap();
            let text = String::from_utf8_lossy(&request[..count]).to_lowercase();
            assert!(text.contains("upgrade: websocket\r\n"), "{text}");
            stream
                .write_all(
                    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello",
                )
                .await
                .unwrap();
            let mut frame = [0; 4];
            stream.read_exact(&mut frame).await.unwrap();
            stream.write_all(&frame).await.unwrap();
        });
        let websocket = RouteAction {
            upgrades: vec![UpgradeConfig { kind: "websocket".into(), enabled: true, terminate_connect: false }],
            ..to("a")
        };
        let manager =
            manager_of(vec![virtual_host(vec![route("/ws", forward(websocket)), route("/", forward(to("a")))])]);
        let gateway = Gateway::http(vec![cluster("a", &[address])], manager);
        let upgrade = |path: &str| {
            format!(
                "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
        };
        let mut client = gateway.connect();
        client.write_all(upgrade("/ws").as_bytes()).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"hello") {
            assert!(client.read_buf(&mut seen).await.unwrap() > 0, "{}", String::from_utf8_lossy(&seen));
        }
        assert!(seen.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&seen));
        client.write_all(b"ping").await.unwrap();
        let mut echo = Vec::new();
        client.read_to_end(&mut echo).await.unwrap();
        assert_eq!(echo, b"ping", "bytes come back, then the host hangs up");
        let mut refused = gateway.connect();
        refused.write_all(upgrade("/").as_bytes()).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            assert!(refused.read_buf(&mut seen).await.unwrap() > 0, "an answer");
        }
        assert!(seen.starts_with(b"HTTP/1.1 403 "), "{}", String::from_utf8_lossy(&seen));
    });
}

#[test]
fn a_connect_ends_here_where_it_is_configured() {
    on_worker(async {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            let (mut stream, _) = socket.accept().await.unwrap();
            let mut seen = [0; 4];
            stream.read_exact(&mut seen).await.unwrap();
            stream.write_all(&seen).await.unwrap();
        });
        let connect = UpgradeConfig { kind: "connect".into(), enabled: true, terminate_connect: true };
        let mut only = route("/", forward(RouteAction { upgrades: vec![connect], ..to("a") }));
        only.matches.path = PathMatch::Connect;
        let gateway = Gateway::http(vec![cluster("a", &[address])], manager_of(vec![virtual_host(vec![only])]));
        let mut client = gateway.connect();
        client.write_all(b"CONNECT a.example:443 HTTP/1.1\r\nhost: a.example:443\r\n\r\n").await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            assert!(client.read_buf(&mut seen).await.unwrap() > 0, "an answer");
        }
        assert!(seen.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&seen));
        client.write_all(b"ping").await.unwrap();
        let mut echo = Vec::new();
        client.read_to_end(&mut echo).await.unwrap();
        assert_eq!(echo, b"ping", "the host sees the bytes and no CONNECT");
        assert_eq!(status(&gateway.get("/").await), "404", "other methods do not match");
    });
}

#[test]
fn every_request_is_logged() {
    on_worker(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let (address, _) = recording("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
        let op = |operator| Part::Operator { operator, max_length: None };
        let space = || Part::Literal(" ".into());
        let parts = vec![
            op(Operator::RequestHeader { name: ":path".into(), alternative: None }),
            space(),
            op(Operator::ResponseCode),
            space(),
            op(Operator::ResponseFlags),
            space(),
            op(Operator::ResponseCodeDetails),
            space(),
            op(Operator::UpstreamCluster),
            space(),
            op(Operator::BytesSent),
            space(),
            op(Operator::UpstreamHost),
            Part::Literal("\n".into()),
        ];
        let format = LogFormat::Text(Format { parts, omit_empty: false });
        let log = AccessLog { sink: Sink::File(path.clone()), format, filter: None };
        let manager = HttpConnectionManager {
            access_log: vec![Arc::new(log)],
            ..manager_of(vec![virtual_host(vec![route("/a", forward(to("a"))), route("/b", forward(to("b")))])])
        };
        let gateway = Gateway::http(vec![cluster("a", &[address]), cluster("b", &[])], manager);
        for path in ["/a", "/b", "/c"] {
            gateway.get(path).await;
        }
        gateway.exchange("garbage\r\n\r\n").await;
        gateway.worker.process.logs.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..3],
            [
                &*format!("/a 200 - via_upstream a 2 {address}"),
                "/b 503 UH no_healthy_upstream b 19 -",
                "/c 404 NR route_not_found - 0 -",
            ],
            "{text}"
        );
        assert!(lines[3].starts_with("- 400 DPE "), "{text}");
    });
}
