//! Envoy's dialect on the server.

use std::fmt::Write as _;

use culvert_model::tunnel::id_format::IdFormat;
use culvert_model::tunnel::reverse::{HandshakeMode, ReverseTunnel};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::server::PeerNames;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// What Envoy sends, with its ids and further fields.
fn request(node: &str, cluster: &str, tenant: &str, more: &[(&str, &str)]) -> String {
    let mut head = format!(
        "GET /reverse_connections/request HTTP/1.1\r\nhost: a\r\nx-envoy-reverse-tunnel-node-id: {node}\r\n\
         x-envoy-reverse-tunnel-cluster-id: {cluster}\r\nx-envoy-reverse-tunnel-tenant-id: {tenant}\r\n"
    );
    for (name, value) in more {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head + "content-length: 0\r\n\r\n"
}

fn plain() -> String {
    request("edge-1", "edge", "a", &[])
}

fn listener(reverse: ReverseTunnel) -> TunnelServer {
    TunnelServer { reverse: Box::new(reverse), ..config() }
}

impl Connected {
    async fn say(&mut self, text: &str) {
        self.agent.write_all(text.as_bytes()).await.unwrap();
    }

    async fn hears(&mut self, expected: &str) {
        let mut bytes = vec![0; expected.len()];
        let reading = tokio::time::timeout(Duration::from_secs(300), self.agent.read_exact(&mut bytes)).await;
        let read =
            reading.unwrap_or_else(|_| panic!("{expected:?} did not come: {:?}", String::from_utf8_lossy(&bytes)));
        assert!(read.is_ok(), "expected {expected:?}, saw the end after {:?}", String::from_utf8_lossy(&bytes));
        assert_eq!(String::from_utf8_lossy(&bytes), expected);
    }
}

/// The status line of the answer to `text`, after which the connection is closed.
async fn refused(fixture: &Fixture, peer: Peer, text: &str) -> String {
    let mut connected = fixture.connect_as(peer);
    connected.say(text).await;
    let answer = String::from_utf8_lossy(&connected.rest().await).into_owned();
    assert_eq!(connected.ended().await, Ended::Refused, "{text:?}: {answer:?}");
    answer.lines().next().unwrap_or_default().to_owned()
}

fn peer() -> Peer {
    Peer { address: Some(AGENT.parse().unwrap()), ..Peer::default() }
}

#[tokio::test(start_paused = true)]
async fn an_initiator_joins_and_is_pinged_until_it_is_used() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            fixture.registry.0.resting.set(true);
            let mut agent = fixture.connect(AGENT);
            for byte in plain().as_bytes() {
                agent.agent.write_all(&[*byte]).await.unwrap();
            }
            agent.hears(OK).await;
            let claim = fixture.registry.0.claims.borrow()[0].clone();
            assert_eq!((&*claim.host_name, &*claim.cluster, claim.dialect), ("edge-1", "edge", Dialect::Envoy));
            let reverse = claim.reverse.expect("what only Envoy says");
            assert_eq!((&*reverse.tenant, reverse.isolated, reverse.joins_named_cluster), ("a", false, true));
            for _ in 0..4 {
                agent.hears("RPING").await;
                agent.say("RPING").await;
            }
            assert!(!fixture.diary().iter().any(|event| matches!(event, Event::Attached(_))), "nobody wants it yet");
            fixture.registry.0.greeting.borrow_mut().extend_from_slice(b"PRI * HTTP/2.0");
            fixture.registry.0.open.notify_one();
            agent.hears("PRI * HTTP/2.0").await;
            assert_eq!(fixture.count(ServerMetric::Active), 1);
            assert_eq!(agent.ended().await, Ended::Tunnel);
            assert!(fixture.tunnels.is_empty(), "something is left");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_initiator_that_does_not_echo_is_gone_after_the_threshold() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            fixture.registry.0.resting.set(true);
            let mut agent = fixture.connect(AGENT);
            agent.say(&plain()).await;
            agent.hears(OK).await;
            assert_eq!(agent.rest().await, b"RPINGRPINGRPING", "three pings, then the end");
            assert!(matches!(fixture.diary().last(), Some(Event::Dropped(_))), "still a host");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn modes_are_as_the_listener_says() {
    let upgrade = request("n", "c", "t", &[("connection", "upgrade"), ("upgrade", "reverse-tunnel")]);
    let switched = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: reverse-tunnel\r\n\r\n";
    for (mode, request, expected) in [
        (HandshakeMode::Either, &plain(), OK),
        (HandshakeMode::Either, &upgrade, switched),
        (HandshakeMode::Plain, &upgrade, OK),
        (HandshakeMode::Upgrade, &upgrade, switched),
        (HandshakeMode::Upgrade, &plain(), "HTTP/1.1 426 Upgrade Required\r\nupgrade: reverse-tunnel\r\n"),
    ] {
        LocalSet::new()
            .run_until(async {
                let fixture = Fixture::new(listener(ReverseTunnel { mode, ..ReverseTunnel::default() }), Vec::new());
                let mut agent = fixture.connect(AGENT);
                agent.say(request).await;
                agent.hears(expected).await;
            })
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_are_answered_as_envoy_does_and_closed() {
    let fixed = |name: &str| ReverseTunnel { required_cluster: Some(name.into()), ..ReverseTunnel::default() };
    let named = request("n", "c", "t", &[("x-envoy-reverse-tunnel-upstream-cluster-name", "cloud")]);
    let default = ReverseTunnel::default;
    let cases = [
        (default(), "GET / HTTP/1.1\r\n\r\n".to_owned(), "404 Not Found", ServerMetric::Malformed),
        (default(), plain().replace("GET", "PUT"), "404 Not Found", ServerMetric::Malformed),
        (default(), request("", "c", "t", &[]), "400 Bad Request", ServerMetric::Malformed),
        (default(), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), "400 Bad Request", ServerMetric::Malformed),
        (fixed("cloud"), plain(), "400 Bad Request", ServerMetric::Malformed),
        (fixed("other"), named, "400 Bad Request", ServerMetric::RefusedCluster),
    ];
    for (reverse, text, expected, metric) in cases {
        LocalSet::new()
            .run_until(async {
                let fixture = Fixture::new(listener(reverse), Vec::new());
                let answer = refused(&fixture, peer(), &text).await;
                assert_eq!(answer, format!("HTTP/1.1 {expected}"), "{text:?}");
                assert_eq!(fixture.count(metric), 1, "{text:?}");
                assert!(fixture.diary().is_empty() && fixture.tunnels.is_empty(), "{text:?}: something is left");
            })
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_partial_request_is_closed_without_an_answer_at_the_deadline() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            let mut agent = fixture.connect(AGENT);
            agent.say(&plain()[..100]).await;
            assert_eq!(agent.rest().await, b"");
            assert_eq!(agent.ended().await, Ended::Refused);
            assert_eq!(fixture.count(ServerMetric::Timeout), 1);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn the_registrys_refusals_have_answers() {
    for (refusal, expected) in [
        (Refusal::ClusterUnknown, "HTTP/1.1 403 Forbidden"),
        (Refusal::TooManyConnections, "HTTP/1.1 429 Too Many Requests"),
        (Refusal::Unavailable, "HTTP/1.1 503 Service Unavailable"),
    ] {
        LocalSet::new()
            .run_until(async {
                let fixture = Fixture::new(config(), Vec::new());
                fixture.registry.0.refusal.set(Some(refusal));
                assert_eq!(refused(&fixture, peer(), &plain()).await, expected, "{refusal}");
                assert!(fixture.tunnels.is_empty(), "{refusal}: something is left");
            })
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_bearer_token_must_be_that_of_a_policy() {
    LocalSet::new()
        .run_until(async {
            let server = TunnelServer { policies: vec![policy("token", &["edge"])], ..config() };
            let fixture = Fixture::new(server, vec![vec![token("sesame")]]);
            for (authorization, cluster, expected) in [
                (None, "edge", "HTTP/1.1 401 Unauthorized"),
                (Some("Bearer wrong"), "edge", "HTTP/1.1 401 Unauthorized"),
                (Some("Bearer sesame"), "other", "HTTP/1.1 403 Forbidden"),
            ] {
                let fields: Vec<_> = authorization.map(|value| ("authorization", value)).into_iter().collect();
                let answer = refused(&fixture, peer(), &request("n", cluster, "t", &fields)).await;
                assert_eq!(answer, expected, "{authorization:?} {cluster}");
            }
            let mut agent = fixture.connect(AGENT);
            agent.say(&request("n", "edge", "t", &[("authorization", "Bearer sesame")])).await;
            agent.hears(OK).await;
            assert_eq!(fixture.registry.0.claims.borrow()[0].policy.as_deref(), Some("token"));
        })
        .await;
}

/// A node's certificate says who it is, where the listener demands that.
#[tokio::test(start_paused = true)]
async fn validation_binds_the_ids_to_the_certificate() {
    let format = IdFormat::of_handshake("%DOWNSTREAM_PEER_DNS_SAN%").unwrap();
    let reverse = ReverseTunnel { node_format: Some(format), ..ReverseTunnel::default() };
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(listener(reverse), Vec::new());
            let named = |dns: &str| {
                let names = PeerNames { dns: dns.split(',').map(str::to_owned).collect(), ..PeerNames::default() };
                Peer { names: Some(Arc::new(names)), ..peer() }
            };
            for who in [peer(), named(""), named("edge-2"), named("edge-1,edge-2")] {
                let shown = format!("{who:?}");
                assert_eq!(refused(&fixture, who, &plain()).await, "HTTP/1.1 403 Forbidden", "{shown}");
            }
            let mut agent = fixture.connect_as(named("edge-1"));
            agent.say(&plain()).await;
            agent.hears(OK).await;
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn tenants_are_kept_apart_by_ids_without_colons() {
    LocalSet::new()
        .run_until(async {
            let limits =
                ReverseLimits { tenant_isolation: true, max_connections_per_node: 1, ..ReverseLimits::default() };
            let reverse = ReverseTunnel { limited: true, ..ReverseTunnel::default() };
            let fixture = Fixture::with_limits(listener(reverse), Vec::new(), limits);
            for (node, cluster, tenant) in [("a:b", "c", "t"), ("n", "a:b", "t"), ("n", "c", "a:b")] {
                let answer = refused(&fixture, peer(), &request(node, cluster, tenant, &[])).await;
                assert_eq!(answer, "HTTP/1.1 400 Bad Request", "{node} {cluster} {tenant}");
            }
            let mut first = fixture.connect(AGENT);
            first.say(&plain()).await;
            first.hears(OK).await;
            assert!(fixture.registry.0.claims.borrow()[0].reverse.as_ref().is_some_and(|claim| claim.isolated));
            assert_eq!(refused(&fixture, peer(), &plain()).await, "HTTP/1.1 429 Too Many Requests", "the limit is one");
            let mut other = fixture.connect(AGENT);
            other.say(&request("edge-1", "edge", "b", &[])).await;
            other.hears(OK).await;
        })
        .await;
}

/// A listener of Envoy's own filter takes no frames.
#[tokio::test(start_paused = true)]
async fn a_listener_without_mosns_dialect_closes_on_frames() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(TunnelServer { mosn: false, ..config() }, Vec::new());
            let mut agent = fixture.connect(AGENT);
            agent.send(Frame::Init(init("edge"))).await;
            assert_eq!(agent.rest().await, b"");
            assert_eq!(fixture.count(ServerMetric::Malformed), 1);
        })
        .await;
}

/// Over real sockets: the answer is a segment of its own, and nothing follows before the initiator has read it.
#[tokio::test]
async fn nothing_follows_the_answer_before_it_is_acknowledged() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            fixture.registry.0.greeting.borrow_mut().extend_from_slice(b"PRI");
            let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut agent = TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
            let (server, address) = socket.accept().await.unwrap();
            let served = fixture.serve(Io::tcp(server), Peer { address: Some(address), ..Peer::default() });
            agent.write_all(plain().as_bytes()).await.unwrap();
            let mut read = vec![0; 4096];
            let length = agent.read(&mut read).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&read[..length]), OK, "in one read");
            let answered = Instant::now();
            agent.read_exact(&mut read[..3]).await.unwrap();
            assert!(answered.elapsed() >= Duration::from_millis(10), "the first bytes followed at once");
            drop(agent);
            finished(served).await;
        })
        .await;
}
