use std::time::Duration;

use culvert_model::listener::Cidr;
use culvert_model::source::DataSource;
use culvert_model::tunnel::jwks::Jwks;
use culvert_model::tunnel::policy::{JwtProvider, StaticToken, TokenRules};
use serde_json::json;

use super::*;
use crate::envoy::jwt::tests::{Issuer, validator};

/// When everything happens; tokens are good for 300 s.
fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

fn exact(text: &str) -> NamePattern {
    NamePattern::Exact(text.into())
}

fn rule(name: &str, principal: Principal) -> TunnelRule {
    TunnelRule {
        name: name.into(),
        principals: vec![principal],
        clusters: [exact("edge"), NamePattern::Prefix("site-".into())].into(),
        host_names: Vec::new(),
        max_connections: 4,
        weights: (2, 20),
        sources: Vec::new(),
        expires: None,
        duplicates: DuplicateAgents::Replicas,
    }
}

fn config() -> TunnelPolicy {
    let source = || DataSource::Environment("unused: it is read outside".to_owned());
    let subject = NamePattern::Prefix("edge-".into());
    TunnelPolicy {
        name: "p".into(),
        providers: vec![JwtProvider {
            name: "idp".into(),
            expected: TokenRules { ..validator() },
            jwks: Jwks::Local(source()),
            subject_claim: "sub".into(),
            one_time_tokens: false,
        }],
        tokens: vec![StaticToken { name: "old-site".into(), tokens: vec![source()], bound: false }],
        rules: vec![
            rule("uri", Principal::Uri(NamePattern::Prefix("spiffe://example/site/".into()))),
            rule("dns", Principal::Dns(NamePattern::Suffix(".edge.example".into()))),
            rule("jwt", Principal::Jwt { provider: "idp".into(), subject }),
            rule("token", Principal::StaticToken("old-site".into())),
        ],
        tokens_without_tls: false,
        max_connections_per_source: None,
    }
}

fn policy(issuer: &Issuer, change: impl FnOnce(&mut TunnelPolicy)) -> Policy {
    let mut config = config();
    change(&mut config);
    let tokens = vec![vec![Arc::from(&b"sesame"[..]), Arc::from(&b"next"[..])]];
    Policy::new(Arc::new(config), PolicyMaterial { keys: vec![Arc::new(issuer.keys())], tokens })
}

fn proof(uris: &[&str], dns: &[&str]) -> Proof {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let names = PeerNames { uris: owned(uris), dns: owned(dns), expires: Some(at(1000)), chain: Arc::default() };
    Proof { names: Some(Arc::new(names)), source: Some([10, 1, 2, 3].into()), tls: true, credential: None }
}

fn with(way: Option<&str>, secret: &str) -> Proof {
    let credential = Credential { way: way.map(Arc::from), shown: Shown::Secret(Secret(secret.to_owned())) };
    Proof { names: None, credential: Some(credential), ..proof(&[], &[]) }
}

const WISH: Wish<'static> = Wish { cluster: "edge", host_name: "claimed", weight: 10 };

fn token(issuer: &Issuer, subject: &str) -> String {
    let claims = json!({"iss": "https://issuer", "aud": "cloud", "exp": 1_800_000_300, "sub": subject});
    issuer.token("EdDSA", &json!({"alg": "EdDSA"}), &claims)
}

/// Identity, rule and host name; or why not.
fn judged(policy: &Policy, proof: &Proof) -> Result<(String, String, String), Denial> {
    policy
        .judge(proof, WISH, at(0))
        .map(|grant| (grant.identity.to_string(), grant.rule.to_string(), grant.host_name.to_string()))
}

#[test]
fn who_an_agent_is() {
    let issuer = Issuer::new();
    let policy = policy(&issuer, |_| {});
    let good = token(&issuer, "edge-1");
    let ok = |identity: &str, rule: &str, name: &str| Ok((identity.to_owned(), rule.to_owned(), name.to_owned()));
    for (proof, expected) in [
        (proof(&["spiffe://example/site/7"], &[]), ok("spiffe://example/site/7", "uri", "7")),
        // The second name counts as well, and the rule that stands first decides.
        (
            proof(&["urn:x", "spiffe://example/site/7/"], &["a.edge.example"]),
            ok("spiffe://example/site/7/", "uri", "7"),
        ),
        (proof(&[], &["A.Edge.example"]), ok("dns:a.edge.example", "dns", "a.edge.example")),
        (proof(&["spiffe://other/site/7"], &["*.edge.example"]), Err(Denial::NoRule)),
        (proof(&[], &[]), Err(Denial::NoRule)),
        (Proof { names: None, ..proof(&[], &[]) }, Err(Denial::NoRule)),
        (with(Some("idp"), &good), ok("jwt:idp/edge-1", "jwt", "edge-1")),
        (with(None, &good), ok("jwt:idp/edge-1", "jwt", "edge-1")),
        (with(Some("idp"), &token(&issuer, "cloud-1")), Err(Denial::NoRule)),
        (with(Some("idp"), &token(&issuer, "")), Err(Denial::Nobody)),
        (with(Some("idp"), "nonsense"), Err(Denial::Token(JwtError::Malformed))),
        (with(Some("idp"), ""), Err(Denial::Token(JwtError::Malformed))),
        (with(Some("idp"), &token(&Issuer::new(), "edge-1")), Err(Denial::Token(JwtError::Signature))),
        (with(Some("other"), &good), Err(Denial::WayUnknown)),
        (with(Some(""), &good), Err(Denial::WayUnknown)),
        (with(Some("old-site"), "sesame"), ok("token:old-site", "token", "old-site")),
        (with(Some("old-site"), "next"), ok("token:old-site", "token", "old-site")),
        (with(None, "sesame"), ok("token:old-site", "token", "old-site")),
        (with(Some("old-site"), "sesam"), Err(Denial::StaticToken)),
        (with(Some("old-site"), ""), Err(Denial::StaticToken)),
        (with(Some("old-site"), &good), Err(Denial::StaticToken)),
        (Proof { tls: false, ..with(Some("old-site"), "sesame") }, Err(Denial::TokenWithoutTls)),
        // A bad token is refused whatever the certificate says.
        (
            Proof {
                credential: with(Some("old-site"), "wrong").credential,
                ..proof(&["spiffe://example/site/7"], &[])
            },
            Err(Denial::StaticToken),
        ),
    ] {
        assert_eq!(judged(&policy, &proof), expected, "{proof:?}");
    }
}

/// A proof of a token, which is good on the connection that it came on.
#[test]
fn a_static_token_may_be_proved_in_place_of_being_sent() {
    let issuer = Issuer::new();
    let (here, there) = (Binding::from_bytes([1; 32]), Binding::from_bytes([2; 32]));
    let shown = |way: &str, on: &Binding, token: TokenProof| {
        let credential = Credential { way: Some(way.into()), shown: Shown::Proof(Bound::on(on.clone(), token)) };
        Proof { names: None, credential: Some(credential), ..proof(&[], &[]) }
    };
    for bound in [false, true] {
        let policy = policy(&issuer, |config| config.tokens[0].bound = bound);
        let sent = if bound { Err(Denial::TokenSent) } else { Ok(()) };
        for (shown, expected) in [
            (shown("old-site", &here, here.prove(b"sesame")), Ok(())),
            (shown("old-site", &here, here.prove(b"next")), Ok(())),
            (shown("old-site", &there, here.prove(b"sesame")), Err(Denial::StaticToken)),
            (shown("old-site", &here, here.prove(b"sesam")), Err(Denial::StaticToken)),
            (shown("old-site", &here, here.prove(b"")), Err(Denial::StaticToken)),
            (shown("idp", &here, here.prove(b"sesame")), Err(Denial::Token(JwtError::Missing))),
            (shown("other", &here, here.prove(b"sesame")), Err(Denial::WayUnknown)),
            (with(Some("old-site"), "sesame"), sent),
            (with(None, "sesame"), sent),
            (with(Some("old-site"), "wrong"), Err(Denial::StaticToken)),
        ] {
            let seen = judged(&policy, &shown).map(|_| ());
            assert_eq!(seen, expected, "required: {bound}, {shown:?}");
        }
    }
}

#[test]
fn what_an_agent_may_claim() {
    let issuer = Issuer::new();
    let site = || proof(&["spiffe://example/site/7"], &[]);
    let named: fn(&mut TunnelPolicy) = |policy| policy.rules[0].host_names = vec![NamePattern::Prefix("site-".into())];
    let from: fn(&mut TunnelPolicy) = |policy| {
        policy.rules[0].sources = vec![Cidr { address: [10, 1, 0, 0].into(), length: 16 }];
    };
    let nothing: fn(&mut TunnelPolicy) = |_| {};
    let wish = |cluster, host_name, weight| Wish { cluster, host_name, weight };
    let elsewhere = Proof { source: Some([10, 2, 2, 3].into()), ..site() };
    let in_memory = Proof { source: None, ..site() };
    for (change, proof, wish, expected) in [
        (nothing, site(), wish("edge", "claimed", 10), Ok(("7", 10))),
        (nothing, site(), wish("site-a", "", 1), Ok(("7", 2))),
        (nothing, site(), wish("edge", "7", 128), Ok(("7", 20))),
        (nothing, site(), wish("other", "7", 10), Err(Denial::Cluster)),
        (nothing, site(), wish("", "7", 10), Err(Denial::Cluster)),
        (named, site(), wish("edge", "site-9", 10), Ok(("site-9", 10))),
        (named, site(), wish("edge", "claimed", 10), Err(Denial::HostName)),
        // Its own name is none of those.
        (named, site(), wish("edge", "", 10), Err(Denial::HostName)),
        (named, site(), wish("edge", "site-\n", 10), Err(Denial::HostName)),
        (from, site(), wish("edge", "", 10), Ok(("7", 10))),
        (from, elsewhere, wish("edge", "", 10), Err(Denial::Source)),
        (from, in_memory, wish("edge", "", 10), Err(Denial::Source)),
    ] {
        let grant = policy(&issuer, change).judge(&proof, wish, at(0));
        let seen = grant.as_ref().map(|grant| (&*grant.host_name, grant.weight)).map_err(|denial| *denial);
        assert_eq!(seen, expected, "{proof:?} wants {wish:?}");
    }
}

#[test]
fn what_expires_ends_the_grant() {
    let issuer = Issuer::new();
    let policy = policy(&issuer, |policy| policy.rules[0].expires = Some(at(500)));
    let until = |proof: &Proof, now| policy.judge(proof, WISH, at(now)).map(|grant| grant.until);
    let site = proof(&["spiffe://example/site/7"], &[]);
    assert_eq!(until(&site, 0), Ok(Some(at(500))), "the rule ends before the certificate");
    assert_eq!(until(&site, 500), Err(Denial::NoRule), "from then on it is not there");
    let named = proof(&[], &["a.edge.example"]);
    assert_eq!(until(&named, 999), Ok(Some(at(1000))), "the certificate");
    assert_eq!(until(&named, 1000), Err(Denial::CertificateExpired), "after it");
    let bearer = with(Some("idp"), &token(&issuer, "edge-1"));
    assert_eq!(until(&bearer, 0), Ok(Some(at(360))), "the token, with 60 s for clocks");
    assert_eq!(until(&bearer, 360), Err(Denial::Token(JwtError::Expired(60))), "after it");
    assert_eq!(until(&with(Some("old-site"), "sesame"), 0), Ok(None), "a static token does not expire");
}

/// Two keys are live while they are rotated; what was signed with the one that left is believed no more.
#[test]
fn keys_are_rotated() {
    let (before, after) = (Issuer::new(), Issuer::new());
    let mut jwks = before.jwks();
    let more = after.jwks()["keys"].as_array().unwrap().clone();
    jwks["keys"].as_array_mut().unwrap().extend(more);
    let both = KeySet::parse(jwks.to_string().as_bytes()).unwrap();
    let material = |keys| PolicyMaterial { keys: vec![Arc::new(keys)], tokens: vec![Vec::new()] };
    let rotating = Policy::new(Arc::new(config()), material(both));
    let rotated = Policy::new(Arc::new(config()), material(after.keys()));
    for (issuer, then) in [(&before, Err(Denial::Token(JwtError::Signature))), (&after, Ok(()))] {
        let proof = with(Some("idp"), &token(issuer, "edge-1"));
        assert_eq!(judged(&rotating, &proof).map(drop), Ok(()), "while both are live");
        assert_eq!(judged(&rotated, &proof).map(drop), then, "afterwards");
    }
}
