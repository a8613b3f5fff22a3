//! Who gets in, and what the others are told.

use super::*;

fn response(status: u8) -> Vec<u8> {
    let mut bytes = b"\x20\x88\x01\x02\x02\x00\x00\x0c{\"status\":0}".to_vec();
    bytes[18] = b'0' + status;
    bytes
}

/// Status 0, and when to come back.
fn later() -> Vec<u8> {
    b"\x20\x88\x01\x02\x02\x00\x00\x21{\"status\":0,\"retry_after_ms\":500}".to_vec()
}

/// What the agent sees, and what is counted.
struct Case {
    name: &'static str,
    input: Vec<u8>,
    answer: Vec<u8>,
    counted: ServerMetric,
}

fn case(name: &'static str, input: impl AsRef<[u8]>, answer: Vec<u8>, counted: ServerMetric) -> Case {
    Case { name, input: input.as_ref().to_vec(), answer, counted }
}

fn init_frame(payload: &str) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0x20, 0x88, 1, 1, 1, 0, length[0], length[1]], payload.as_bytes()].concat()
}

/// What is no tunnel, whatever the listener demands.
fn malformed() -> Vec<Case> {
    let none = Vec::new;
    vec![
        case("http", "GET / HTTP/1.1\r\n\r\n", crate::envoy::wire::Answer::NotFound.encode(), ServerMetric::Malformed),
        case("tls", b"\x16\x03\x01\x02\x00\x01", none(), ServerMetric::Malformed),
        case("one wrong byte", b"\x21", none(), ServerMetric::Malformed),
        case("second byte wrong", b"\x20\x89", none(), ServerMetric::Malformed),
        case("unknown flag", b"\x20\x88\x01\x07\x01\x00\x00\x02{}", none(), ServerMetric::Malformed),
        case("ack flag", b"\x20\x88\x01\x04\x01\x00\x00\x02{}", none(), ServerMetric::Malformed),
        case("response flag", b"\x20\x88\x01\x02\x01\x00\x00\x02{}", none(), ServerMetric::Malformed),
        case("zero length", b"\x20\x88\x01\x01\x01\x00\x00\x00", none(), ServerMetric::Malformed),
        case("oversize", b"\x20\x88\x01\x01\x01\x00\x40\x01", none(), ServerMetric::Malformed),
        case("bad JSON", init_frame("{\"cluster_name\""), response(0), ServerMetric::Malformed),
        case(
            "wrong type",
            init_frame(r#"{"cluster_name":"edge","weight":"10"}"#),
            response(0),
            ServerMetric::Malformed,
        ),
        case("no object", init_frame("[]"), response(0), ServerMetric::Malformed),
        case(
            "no UTF-8",
            [&b"\x20\x88\x01\x01\x01\x00\x00\x01"[..], b"\xff"].concat(),
            response(0),
            ServerMetric::Malformed,
        ),
        case("a close that is none", b"\x20\x88\x01\x03\x01\x00\x00\x01{", none(), ServerMetric::Malformed),
        case("deep JSON", init_frame(&"[".repeat(16_000)), response(0), ServerMetric::Malformed),
        case("silence", b"", none(), ServerMetric::Timeout),
        case("half a header", b"\x20\x88\x01\x01", none(), ServerMetric::Timeout),
        case("header alone", b"\x20\x88\x01\x01\x01\x00\x00\x66", none(), ServerMetric::Timeout),
    ]
}

/// What the policy `token` refuses.
fn forbidden() -> Vec<Case> {
    let encoded = |init| Frame::Init(init).encode().unwrap();
    vec![
        case("no policy named", encoded(init("edge")), response(2), ServerMetric::RefusedAuth),
        case("{}", init_frame("{}"), response(2), ServerMetric::RefusedAuth),
        case(
            "unknown policy",
            encoded(with_credential("edge", "other", "s3cret")),
            response(3),
            ServerMetric::RefusedPolicy,
        ),
        case(
            "wrong credential",
            encoded(with_credential("edge", "token", "s3creT")),
            response(2),
            ServerMetric::RefusedAuth,
        ),
        case("prefix", encoded(with_credential("edge", "token", "s3cre")), response(2), ServerMetric::RefusedAuth),
        case("no credential", encoded(with_credential("edge", "token", "")), response(2), ServerMetric::RefusedAuth),
        case(
            "long credential",
            encoded(with_credential("edge", "token", &"x".repeat(16_000))),
            response(2),
            ServerMetric::RefusedAuth,
        ),
        case(
            "other cluster",
            encoded(with_credential("core", "token", "s3cret")),
            response(2),
            ServerMetric::RefusedCluster,
        ),
    ]
}

/// Closed within the deadline, with the answer that the table of MOSN's server has, or none; nothing is registered.
#[tokio::test(start_paused = true)]
async fn what_is_no_tunnel_is_answered_and_closed() {
    let policies = || TunnelServer { policies: vec![policy("token", &["edge"])], ..config() };
    LocalSet::new()
        .run_until(async {
            for case in malformed().into_iter().chain(forbidden()) {
                let fixture = Fixture::new(policies(), vec![vec![token("s3cret\n"), token("")]]);
                let mut connected = fixture.connect(AGENT);
                let started = Instant::now();
                connected.agent.write_all(&case.input).await.unwrap();
                assert_eq!(connected.rest().await, case.answer, "{}: the answer", case.name);
                let waited = started.elapsed();
                let timed_out = case.counted == ServerMetric::Timeout;
                assert_eq!(waited >= Duration::from_secs(5), timed_out, "{}: closed after {waited:?}", case.name);
                assert!(waited < Duration::from_millis(5100), "{}: closed after {waited:?}", case.name);
                assert_eq!(connected.ended().await, Ended::Refused, "{}", case.name);
                assert_eq!(fixture.count(case.counted), 1, "{}: {:?} counted once", case.name, case.counted);
                assert_eq!(fixture.count(ServerMetric::Accepted), 0, "{}: accepted", case.name);
                assert_eq!(fixture.count(ServerMetric::Pending), 0, "{}: still pending", case.name);
                assert_eq!(fixture.diary(), [], "{}: the registry's diary", case.name);
                assert!(fixture.tunnels.is_empty(), "{}: something is left", case.name);
            }
        })
        .await;
}

/// The published bytes of a stock agent, whole and in pieces, and the published answer.
#[tokio::test(start_paused = true)]
async fn a_stock_agent_is_accepted_and_gets_the_published_reply_alone() {
    LocalSet::new()
        .run_until(async {
            let bytes = Frame::Init(init("edge")).encode().unwrap();
            assert_eq!(bytes.len(), 110, "the published init frame");
            for split in 0..=bytes.len() {
                let fixture = Fixture::new(config(), Vec::new());
                let mut connected = fixture.connect(AGENT);
                connected.agent.write_all(&bytes[..split]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
                connected.agent.write_all(&bytes[split..]).await.unwrap();
                connected.agent.write_all(b"HTTP/1.1 200 OK").await.unwrap();
                let mut reply = vec![0; 20];
                connected.agent.read_exact(&mut reply).await.unwrap();
                assert_eq!(reply, response(1), "split at {split}");
                assert_eq!(connected.ended().await, Ended::Tunnel, "split at {split}");
                let received = fixture.registry.0.received.borrow().clone();
                assert_eq!(received, b"HTTP/1.1 200 OK", "split at {split}: what came behind the init frame");
            }
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_drip_is_cut_at_the_deadline_of_the_whole() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            let mut connected = fixture.connect(AGENT);
            let started = Instant::now();
            for byte in Frame::Init(init("edge")).encode().unwrap() {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if connected.agent.write_all(&[byte]).await.is_err() {
                    break;
                }
            }
            assert!(started.elapsed() <= Duration::from_secs(6), "cut after {:?}", started.elapsed());
            assert_eq!(connected.ended().await, Ended::Refused);
            assert_eq!(fixture.count(ServerMetric::Timeout), 1);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn handshakes_over_the_limit_are_closed_at_once() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(TunnelServer { max_pending_handshakes: 2, ..config() }, Vec::new());
            let (first, second) = (fixture.connect(AGENT), fixture.connect("192.0.2.2:1"));
            tokio::task::yield_now().await;
            let mut third = fixture.connect("192.0.2.3:1");
            let started = Instant::now();
            assert_eq!(third.rest().await, b"", "closed without an answer");
            assert_eq!(started.elapsed(), Duration::ZERO, "at once");
            assert_eq!(fixture.count(ServerMetric::PendingOverflow), 1);
            assert_eq!([first.ended().await, second.ended().await], [Ended::Refused; 2]);
            let (_connected, response) = fixture.join(AGENT, init("edge")).await;
            assert_eq!(response.status, Status::Success, "room again");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn credentials_rotate_without_a_gap() {
    LocalSet::new()
        .run_until(async {
            let config = TunnelServer { policies: vec![policy("token", &[]), policy("spare", &[])], ..config() };
            let fixture = Fixture::new(config, vec![vec![token("old")], vec![token("spare\r\n")]]);
            let status = async |policy: &str, credential: &str| {
                let init = with_credential("edge", policy, credential);
                let (connected, response) = fixture.join(AGENT, init).await;
                connected.ended().await;
                response.status
            };
            assert_eq!(status("token", "old").await, Status::Success);
            assert_eq!(status("token", "spare").await, Status::AuthFailed, "another policy's credential");
            assert_eq!(status("spare", "spare").await, Status::Success, "a line break at the end does not count");
            fixture.acceptor.replace_tokens(vec![vec![token("old"), token("new")], Vec::new()]);
            assert_eq!(status("token", "old").await, Status::Success, "while both are valid");
            assert_eq!(status("token", "new").await, Status::Success, "while both are valid");
            assert_eq!(
                status("spare", "spare").await,
                Status::AuthFailed,
                "a policy without credentials admits nobody"
            );
            fixture.acceptor.replace_tokens(vec![vec![token("new")]]);
            assert_eq!(status("token", "old").await, Status::AuthFailed, "rotated out");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn clusters_that_may_be_joined() {
    LocalSet::new()
        .run_until(async {
            let open = || TunnelServer { allowed_clusters: [NamePattern::Prefix("edge-".into())].into(), ..config() };
            let policies = vec![policy("any", &[]), policy("one", &["core"])];
            let closed = || TunnelServer { policies: policies.clone(), ..open() };
            let tokens = || vec![vec![token("a")], vec![token("b")]];
            for (config, init, expected) in vec![
                (config(), init("whatever"), Status::Success),
                (config(), init(""), Status::Success),
                (config(), with_credential("edge", "none-here", "x"), Status::PolicyNotFound),
                (open(), init("edge-1"), Status::Success),
                (open(), init("core"), Status::AuthFailed),
                (closed(), with_credential("edge-1", "any", "a"), Status::Success),
                (closed(), with_credential("core", "any", "a"), Status::AuthFailed),
                (closed(), with_credential("core", "one", "b"), Status::Success),
                (closed(), with_credential("edge-1", "one", "b"), Status::AuthFailed),
            ] {
                let fixture = Fixture::new(config, tokens());
                let (_connected, response) = fixture.join(AGENT, init.clone()).await;
                assert_eq!(response.status, expected, "{init:?}");
            }
        })
        .await;
}

/// What the registry refuses: MOSN has a status for an unknown cluster only; its agents survive a plain close.
#[tokio::test(start_paused = true)]
async fn refusals_of_the_registry() {
    LocalSet::new()
        .run_until(async {
            for (refusal, init, answer, counted) in [
                (Refusal::ClusterUnknown, init("edge"), response(4), ServerMetric::RefusedCluster),
                (Refusal::ClusterUnknown, capable("edge"), response(4), ServerMetric::RefusedCluster),
                (Refusal::Unavailable, init("edge"), Vec::new(), ServerMetric::RefusedDraining),
                (Refusal::Unavailable, capable("edge"), later(), ServerMetric::RefusedDraining),
                (Refusal::TooManyConnections, init("edge"), Vec::new(), ServerMetric::RefusedLimit),
                (Refusal::TooManyConnections, capable("edge"), response(0), ServerMetric::RefusedLimit),
            ] {
                let fixture = Fixture::new(config(), Vec::new());
                fixture.registry.0.refusal.set(Some(refusal));
                let mut connected = fixture.connect(AGENT);
                connected.send(Frame::Init(init)).await;
                assert_eq!(connected.rest().await, answer, "{refusal:?}");
                assert_eq!(connected.ended().await, Ended::Refused, "{refusal:?}");
                assert_eq!(fixture.count(counted), 1, "{refusal:?}: {counted:?}");
                assert!(fixture.tunnels.is_empty(), "{refusal:?}: something is left");
            }
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_has_so_many_connections_and_no_more() {
    let named = |host_name: &str| Init { host_name: host_name.into(), ..capable("edge") };
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(TunnelServer { max_connections_per_agent: 2, ..config() }, Vec::new());
            let (first, response) = fixture.join("192.0.2.1:1", named("edge-7")).await;
            assert_eq!(response.status, Status::Success);
            let (_second, response) = fixture.join("192.0.2.1:2", named("edge-7")).await;
            assert_eq!(response.status, Status::Success);
            let (_third, response) = fixture.join("192.0.2.9:3", named("edge-7")).await;
            assert_eq!(response.status, Status::Unknown, "the third, from whatever address");
            assert_eq!(fixture.count(ServerMetric::RefusedLimit), 1);
            let (_other, response) = fixture.join("192.0.2.1:4", named("edge-8")).await;
            assert_eq!(response.status, Status::Success, "another agent at the same address");
            assert_eq!(first.ended().await, Ended::Tunnel);
            let (_again, response) = fixture.join("192.0.2.1:5", named("edge-7")).await;
            assert_eq!(response.status, Status::Success, "in the place of one that ended");
        })
        .await;
}

/// A host name is only claimed: whoever claims it elsewhere takes nothing from the agent that is called so.
#[tokio::test(start_paused = true)]
async fn a_name_claimed_elsewhere_leaves_its_owner_room() {
    let named = |cluster, policy, secret| Init {
        host_name: "edge-7".into(),
        caps: vec![crate::wire::CAPABILITY.into()],
        ..with_credential(cluster, policy, secret)
    };
    LocalSet::new()
        .run_until(async {
            let policies = vec![policy("ours", &["edge"]), policy("theirs", &["other", "edge"])];
            let config = TunnelServer { policies, max_connections_per_agent: 1, ..config() };
            let fixture = Fixture::new(config, vec![vec![token("s")], vec![token("t")]]);
            let (_stranger, response) = fixture.join("192.0.2.9:1", named("other", "theirs", "t")).await;
            assert_eq!(response.status, Status::Success, "of another cluster");
            let (_rival, response) = fixture.join("192.0.2.9:2", named("edge", "theirs", "t")).await;
            assert_eq!(response.status, Status::Success, "under another policy");
            let (_owner, response) = fixture.join("192.0.2.1:1", named("edge", "ours", "s")).await;
            assert_eq!(response.status, Status::Success, "the owner of the name has room");
            let (_second, response) = fixture.join("192.0.2.1:2", named("edge", "ours", "s")).await;
            assert_eq!(response.status, Status::Unknown, "and no more than its own");
        })
        .await;
}

/// A name that operators see must not write their log for them.
#[tokio::test(start_paused = true)]
async fn host_names_are_names() {
    LocalSet::new()
        .run_until(async {
            for (host_name, expected) in [
                ("", Status::Success),
                ("edge-7.example", Status::Success),
                ("\u{4e2d}", Status::Success),
                ("edge\n7", Status::Unknown),
                ("\u{1b}[2J", Status::Unknown),
                ("edge\0", Status::Unknown),
                (&*"x".repeat(253), Status::Success),
                (&*"x".repeat(254), Status::Unknown),
            ] {
                let fixture = Fixture::new(config(), Vec::new());
                let init = Init { host_name: host_name.into(), ..capable("edge") };
                let (_connected, response) = fixture.join(AGENT, init).await;
                assert_eq!(response.status, expected, "{host_name:?}");
                let refused = u64::from(expected != Status::Success);
                assert_eq!(fixture.count(ServerMetric::Malformed), refused, "{host_name:?}");
            }
        })
        .await;
}

/// What the registry learns of an agent.
#[tokio::test(start_paused = true)]
async fn claims_carry_what_the_agent_said() {
    LocalSet::new()
        .run_until(async {
            for (weight, expected) in [(-1, 1), (0, 1), (77, 77), (4_294_967_306, 128), (i64::MIN, 1)] {
                let config = TunnelServer { policies: vec![policy("token", &[])], ..config() };
                let fixture = Fixture::new(config, vec![vec![token("s")]]);
                let init = Init { weight, host_name: "edge-7".into(), ..with_credential("edge", "token", "s") };
                let (_connected, response) = fixture.join(AGENT, init).await;
                assert_eq!(response, Response { status: Status::Success, ..Response::default() });
                let claim = fixture.registry.0.claims.borrow()[0].clone();
                assert_eq!(claim.weight, expected, "weight {weight}");
                assert_eq!(&*claim.cluster, "edge");
                assert_eq!(&*claim.host_name, "edge-7");
                assert_eq!(claim.policy.as_deref(), Some("token"));
                assert_eq!(claim.peer.address, Some(AGENT.parse().unwrap()));
                let status = fixture.tunnels.status();
                assert_eq!(status.len(), 1, "{status:?}");
                assert_eq!(status[0].id, claim.id.to_string());
                assert_eq!(status[0].weight, expected);
            }
        })
        .await;
}
