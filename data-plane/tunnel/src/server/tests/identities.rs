//! Listeners with an identity policy: who is let in as whom, and what becomes of tunnels that stand.

use rustls_pki_types::CertificateDer;

use culvert_model::tunnel::policy::{DuplicateAgents, Principal, StaticToken, TunnelPolicy, TunnelRule};

use super::*;
use crate::wire::Instance;

const POLICY: &str = "who";

fn rule(principal: Principal) -> TunnelRule {
    TunnelRule {
        name: "sites".into(),
        principals: vec![principal],
        clusters: [NamePattern::Exact("edge".into())].into(),
        host_names: Vec::new(),
        max_connections: 2,
        weights: (1, 128),
        sources: Vec::new(),
        expires: None,
        duplicates: DuplicateAgents::Replicas,
    }
}

/// Certificates of `site-*`, and a static token.
fn sites() -> TunnelPolicy {
    TunnelPolicy {
        name: POLICY.into(),
        providers: Vec::new(),
        tokens: vec![StaticToken {
            name: "old".into(),
            tokens: vec![DataSource::Inline(Arc::from(&b"unused"[..]))],
            bound: false,
        }],
        rules: vec![
            rule(Principal::Dns(NamePattern::Prefix("site-".into()))),
            rule(Principal::StaticToken("old".into())),
        ],
        tokens_without_tls: true,
        max_connections_per_source: None,
    }
}

impl Fixture {
    fn with_policy() -> Self {
        Self::new(TunnelServer { policy: Some(POLICY.into()), ..config() }, Vec::new())
    }

    fn publish(&self, config: TunnelPolicy, tokens: &[&str]) {
        let material =
            PolicyMaterial { keys: Vec::new(), tokens: vec![tokens.iter().map(|text| token(text)).collect()] };
        self.tunnels.policies().publish(&POLICY.into(), Some(Arc::new(Policy::new(Arc::new(config), material))));
    }

    /// An agent whose certificate has that name.
    async fn certified(&self, name: &str, address: &str, init: Init) -> (Connected, Response) {
        let names = PeerNames { dns: vec![name.to_owned()], ..PeerNames::default() };
        let address = Some(address.parse().unwrap());
        let mut connected =
            self.connect_as(Peer { address, identity: Some(name.into()), names: Some(Arc::new(names)), arrival: None });
        connected.send(Frame::Init(init)).await;
        let response = connected.response().await;
        (connected, response)
    }
}

fn of_instance(epoch: u64) -> Init {
    Init { instance: Some(Instance { epoch, nonce: 0 }), ..capable("edge") }
}

/// A3.6, 133 to 136: whatever is claimed, the policy decides.
#[tokio::test(start_paused = true)]
async fn the_identity_overrides_what_is_claimed() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::with_policy();
            let named = |init: Init, name: &str| Init { host_name: name.into(), ..init };
            let (_, absent) = fixture.certified("site-1", AGENT, capable("edge")).await;
            assert_eq!(absent.status, Status::Unknown, "no policy: nobody is let in, and it may come");
            fixture.publish(sites(), &["sesame"]);
            for (name, init, expected) in [
                ("site-1", named(capable("edge"), "somebody-else"), Ok("site-1")),
                ("other-1", capable("edge"), Err(Status::AuthFailed)),
                ("site-1", capable("cloud"), Err(Status::AuthFailed)),
                ("other-1", with_credential("edge", "old", "sesame"), Ok("old")),
                ("other-1", with_credential("edge", "old", "wrong"), Err(Status::AuthFailed)),
                ("site-1", with_credential("edge", "old", "wrong"), Err(Status::AuthFailed)),
                ("site-1", with_credential("edge", "new", "sesame"), Err(Status::PolicyNotFound)),
                ("site-1", with_credential("edge", "", "sesame"), Err(Status::PolicyNotFound)),
            ] {
                let shown = format!("{name} with {init:?}");
                let before = fixture.registry.0.claims.borrow().len();
                let (connected, response) = fixture.certified(name, AGENT, init).await;
                let claims = fixture.registry.0.claims.borrow()[before..].to_vec();
                let seen = match response.status {
                    Status::Success => Ok(claims[0].host_name.to_string()),
                    status => Err(status),
                };
                assert_eq!(seen.as_deref().map_err(|status| *status), expected, "{shown}");
                connected.ended().await;
            }
            assert!(fixture.tunnels.is_empty(), "something is left");
        })
        .await;
}

/// Something that is done to the policy.
type Change = Box<dyn Fn(&Fixture)>;

/// A policy that changes is in force for tunnels that stand.
#[tokio::test(start_paused = true)]
async fn tunnels_are_judged_again_when_the_policy_changes() {
    LocalSet::new()
        .run_until(async {
            let changes: [(&str, Change); 3] = [
                (
                    "the policy is taken away",
                    Box::new(|fixture| fixture.tunnels.policies().publish(&POLICY.into(), None)),
                ),
                (
                    "its rule is gone",
                    Box::new(|fixture| {
                        let mut policy = sites();
                        policy.rules.remove(0);
                        fixture.publish(policy, &["sesame"]);
                    }),
                ),
                (
                    "the cluster is not its own any more",
                    Box::new(|fixture| {
                        let mut policy = sites();
                        policy.rules[0].clusters = [NamePattern::Exact("cloud".into())].into();
                        fixture.publish(policy, &["sesame"]);
                    }),
                ),
            ];
            for (what, change) in changes {
                let fixture = Fixture::with_policy();
                fixture.publish(sites(), &["sesame"]);
                let (mut certified, response) = fixture.certified("site-1", AGENT, capable("edge")).await;
                assert_eq!(response.status, Status::Success, "{what}");
                let (mut bearer, response) = fixture.join(AGENT, with_credential("edge", "old", "sesame")).await;
                assert_eq!(response.status, Status::Success, "{what}");
                change(&fixture);
                assert_eq!(certified.rest().await, b"", "{what}");
                assert!(fixture.diary().iter().any(|event| matches!(event, Event::Drained(_))), "{what}");
                let whole = what.contains("taken away");
                let other = tokio::time::timeout(Duration::from_secs(5), bearer.agent.read_u8()).await;
                assert_eq!(other.is_ok(), whole, "{what}: the other agent");
                assert_eq!(fixture.count(ServerMetric::Withdrawn), 1 + u64::from(whole), "{what}");
            }
        })
        .await;
}

/// The clock on the wall decides, which cannot be paused.
#[tokio::test]
async fn a_rule_that_expires_ends_its_tunnels() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::with_policy();
            let mut policy = sites();
            policy.rules[0].expires = Some(SystemTime::now() + Duration::from_millis(300));
            fixture.publish(policy, &[]);
            let (mut certified, response) = fixture.certified("site-1", AGENT, capable("edge")).await;
            assert_eq!(response.status, Status::Success);
            assert_eq!(certified.rest().await, b"");
            assert_eq!(fixture.count(ServerMetric::Withdrawn), 1);
            let (_, response) = fixture.certified("site-1", AGENT, capable("edge")).await;
            assert_eq!(response.status, Status::AuthFailed, "as if the rule were not there");
        })
        .await;
}

/// A static token that is not accepted any more; what is in flight has 5 s.
#[tokio::test(start_paused = true)]
async fn a_token_that_is_taken_away_ends_its_tunnels() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::with_policy();
            fixture.registry.0.busy.set(true);
            fixture.publish(sites(), &["sesame", "next"]);
            let (mut old, _) = fixture.join(AGENT, with_credential("edge", "old", "sesame")).await;
            let (mut new, _) = fixture.join(AGENT, with_credential("edge", "old", "next")).await;
            let changed = Instant::now();
            fixture.publish(sites(), &["next"]);
            assert_eq!(old.rest().await, b"");
            assert_eq!(changed.elapsed().as_secs(), 5, "what was in flight had its time");
            let lives = tokio::time::timeout(Duration::from_secs(60), new.agent.read_u8()).await;
            assert!(lives.is_err(), "the other token's tunnel has ended: {lives:?}");
        })
        .await;
}

/// One cluster of several is taken away: what is in flight there has 5 s, and all else goes on. A connection that is lent
/// whole to that cluster is cut then.
#[tokio::test(start_paused = true)]
async fn a_cluster_that_is_taken_away_ends_what_it_has_in_flight_alone() {
    LocalSet::new()
        .run_until(async {
            for whole in [false, true] {
                let fixture = Fixture::with_policy();
                fixture.registry.0.shared.set(true);
                fixture.registry.0.busy.set(whole);
                let granting = |clusters: &[&str]| {
                    let mut policy = sites();
                    policy.rules[0].clusters = clusters.iter().map(|name| NamePattern::Exact((*name).into())).collect();
                    fixture.publish(policy, &[]);
                };
                granting(&["edge", "shared", "other"]);
                let (mut certified, response) = fixture.certified("site-1", AGENT, capable("edge")).await;
                assert_eq!(response.status, Status::Success, "whole: {whole}");
                let changed = Instant::now();
                let lapsed = || fixture.diary().iter().filter(|event| matches!(event, Event::Lapsed(_))).count();
                granting(&["edge", "shared"]);
                let early = tokio::time::timeout(Duration::from_secs(3), certified.agent.read_u8()).await;
                assert!(
                    early.is_err() && lapsed() == 0,
                    "whole: {whole}: what is in flight has its time, saw {early:?}"
                );
                // Another one in between does not put it off.
                granting(&["edge"]);
                let end = tokio::time::timeout(Duration::from_secs(60), certified.agent.read_u8()).await;
                assert_eq!(lapsed(), 1, "whole: {whole}: how often it was ended");
                assert_eq!(end.is_ok(), whole, "whether the connection has ended, saw {end:?}");
                if whole {
                    assert_eq!(changed.elapsed().as_secs(), 5, "when it was cut");
                }
                assert_eq!(fixture.count(ServerMetric::Withdrawn), 0, "whole: {whole}: the tunnel is allowed");
                let drained = fixture.diary().iter().any(|event| matches!(event, Event::Drained(_)));
                assert!(!drained, "whole: {whole}: the tunnel was drained");
            }
        })
        .await;
}

/// A3.6, 145.
#[tokio::test(start_paused = true)]
async fn a_second_agent_with_the_identity_joins_replaces_or_is_refused() {
    LocalSet::new()
        .run_until(async {
            for (duplicates, later, earlier) in [
                (DuplicateAgents::Replicas, Status::Success, Status::Success),
                (DuplicateAgents::Replace, Status::Success, Status::Unknown),
                (DuplicateAgents::Reject, Status::Unknown, Status::Unknown),
            ] {
                let fixture = Fixture::with_policy();
                let mut policy = sites();
                (policy.rules[0].duplicates, policy.rules[0].max_connections) = (duplicates, 3);
                fixture.publish(policy, &[]);
                let join = async |epoch| fixture.certified("site-1", AGENT, of_instance(epoch)).await;
                let (mut first, response) = join(5).await;
                assert_eq!(response.status, Status::Success, "{duplicates:?}");
                let (_same, response) = join(5).await;
                assert_eq!(response.status, Status::Success, "{duplicates:?}: another connection of the same process");
                let (_later, response) = join(6).await;
                assert_eq!(response.status, later, "{duplicates:?}: a later process");
                let replaced = duplicates == DuplicateAgents::Replace;
                let ended = tokio::time::timeout(Duration::from_secs(1), first.agent.read_u8()).await;
                assert_eq!(ended.is_ok(), replaced, "{duplicates:?}: whether the first one was drained");
                let (_earlier, response) = join(4).await;
                // Replicas: three of three are there.
                let expected = if duplicates == DuplicateAgents::Replicas { Status::Unknown } else { earlier };
                assert_eq!(response.status, expected, "{duplicates:?}: an earlier process");
                assert_eq!(fixture.count(ServerMetric::Superseded), if replaced { 2 } else { 0 }, "{duplicates:?}");
                let refused = if duplicates == DuplicateAgents::Reject { 2 } else { u64::from(replaced) };
                assert_eq!(fixture.count(ServerMetric::RefusedDuplicate), refused, "{duplicates:?}");
            }
        })
        .await;
}

/// Trust changes under tunnels that stand: with an identity policy and without one, whoever is trusted no more gets nothing new,
/// and what is in flight has its time.
#[tokio::test(start_paused = true)]
async fn tunnels_whose_certificate_is_trusted_no_more_have_five_seconds() {
    LocalSet::new()
        .run_until(async {
            for fixture in [Fixture::with_policy(), Fixture::new(config(), Vec::new())] {
                fixture.publish(sites(), &[]);
                fixture.registry.0.busy.set(true);
                let mut joined = Vec::new();
                for name in ["site-1", "site-2"] {
                    let chain = Arc::from(vec![CertificateDer::from(name.as_bytes().to_vec())]);
                    let names = PeerNames { dns: vec![name.to_owned()], chain, ..PeerNames::default() };
                    let (identity, names) = (Some(name.into()), Some(Arc::new(names)));
                    let mut connected = fixture.connect_as(Peer { identity, names, ..Peer::default() });
                    connected.send(Frame::Init(capable("edge"))).await;
                    assert_eq!(connected.response().await.status, Status::Success);
                    joined.push(connected);
                }
                // Without a certificate, where that will do.
                let (_plain, _) = fixture.join("192.0.2.3:1", capable("edge")).await;
                let judge = |chain: &[CertificateDer<'_>]| match &**chain.first().expect("an empty chain is judged") {
                    b"site-1" => Err("revoked"),
                    _ => Ok(()),
                };
                assert_eq!(fixture.tunnels.judge_certificates("others", judge), 0, "another listener's are not asked");
                assert_eq!(fixture.tunnels.judge_certificates("tunnels", judge), 1);
                let (distrusted, other) = (joined.remove(0), joined.remove(0));
                let began = Instant::now();
                assert_eq!(finished(distrusted.served).await, Ended::Tunnel);
                assert_eq!(began.elapsed().as_secs(), 5, "what is in flight has its time, and no more");
                assert_eq!(fixture.count(ServerMetric::Withdrawn), 1);
                let ended = fixture.tunnels.ended();
                let reasons: Vec<_> = ended.iter().map(|ended| ended.reason.as_deref()).collect();
                assert_eq!(reasons, [Some("its agent's certificate is trusted no more")]);
                let events = &ended[0].tunnel.events;
                let why = events.iter().find(|event| event.kind == crate::history::EventKind::Distrusted);
                assert_eq!(why.and_then(|event| event.detail.as_deref()), Some("revoked"), "saw {events:?}");
                assert!(!other.served.is_finished(), "one that is trusted goes on");
            }
        })
        .await;
}

/// A3.6, 146: limits of an identity and of a source.
#[tokio::test(start_paused = true)]
async fn an_identity_and_a_source_have_so_many_connections() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::with_policy();
            let mut policy = sites();
            policy.max_connections_per_source = std::num::NonZeroUsize::new(3);
            fixture.publish(policy, &[]);
            let mut held = Vec::new();
            for (name, address, expected) in [
                ("site-1", "192.0.2.1:1", Status::Success),
                ("site-1", "192.0.2.1:2", Status::Success),
                // Two of two for the identity, wherever it comes from.
                ("site-1", "192.0.2.9:3", Status::Unknown),
                ("site-2", "192.0.2.1:4", Status::Success),
                // Three of three for the source, whoever comes from it.
                ("site-3", "192.0.2.1:5", Status::Unknown),
                ("site-3", "192.0.2.2:6", Status::Success),
            ] {
                let (connected, response) = fixture.certified(name, address, capable("edge")).await;
                assert_eq!(response.status, expected, "{name} from {address}");
                held.push(connected);
            }
            assert_eq!(fixture.count(ServerMetric::RefusedLimit), 2);
            for connected in held {
                connected.ended().await;
            }
            assert!(fixture.tunnels.is_empty(), "something is left");
        })
        .await;
}
