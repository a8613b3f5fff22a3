use serde_json::json;

use super::*;
use crate::testing::{message, refused};

fn base() -> serde_json::Value {
    json!({
        "name": "p",
        "jwtProviders": [{"name": "idp", "issuer": "https://idp", "localJwks": {"filename": "/keys"}}],
        "staticTokens": [{"name": "old", "tokens": [{"filename": "/secret"}], "requireTlsBinding": true}],
        "rules": [{
            "name": "sites",
            "principals": [{"uri": "spiffe://example/site/*"}, {"dns": "*.Edge.example"}, {"staticToken": "old"},
                {"jwt": {"provider": "idp", "subject": "site-1"}}],
            "clusters": ["edge"],
            "hostNames": ["site-*"],
            "maxConnections": 3,
            "maxWeight": 20,
            "sourceRanges": [{"addressPrefix": "10.1.2.3", "prefixLen": 8}],
            "expiresAt": "2030-01-01T00:00:00Z",
            "duplicates": "REPLACE",
        }],
        "maxConnectionsPerSource": 7,
    })
}

#[test]
fn a_policy_is_read() {
    let policy = parse(&message(&base())).value.unwrap();
    assert_eq!(policy.max_connections_per_source.map(NonZeroUsize::get), Some(7), "the limit of a source");
    assert!(policy.tokens[0].bound, "the token is not to be sent");
    let provider = &policy.providers[0];
    assert_eq!((&*provider.subject_claim, provider.expected.clock_skew), ("sub", Duration::from_secs(60)), "defaults");
    let rule = &policy.rules[0];
    assert_eq!(rule.principals[0], Principal::Uri(NamePattern::Prefix("spiffe://example/site/".into())), "a prefix");
    assert_eq!(rule.principals[1], Principal::Dns(NamePattern::Suffix(".edge.example".into())), "in lower case");
    assert_eq!((rule.weights, rule.max_connections), ((1, 20), 3), "limits");
    assert_eq!(rule.sources, [Cidr { address: "10.0.0.0".parse().unwrap(), length: 8 }], "the range, masked");
    let expires = rule.expires.unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(expires.as_secs(), 1_893_456_000, "seconds since 1970");
    assert_eq!(rule.duplicates, DuplicateAgents::Replace, "as said");
}

#[test]
fn what_is_wrong_is_named() {
    refused(
        &base(),
        parse,
        &[
            (r#"{"name": ""}"#, "name", ""),
            (r#"{"jwtProviders": null}"#, "rules[0].principals", "does not have"),
            (r#"{"staticTokens": null}"#, "rules[0].principals", "does not have"),
            (
                r#"{"jwtProviders": [{"name": "idp", "issuer": "i", "remoteJwks": {"httpUri":
                    {"uri": "ftp://idp/keys", "cluster": "idp", "timeout": "1s"}}}]}"#,
                "jwt_providers[0].remote_jwks.http_uri.uri",
                "is not http(s)://",
            ),
            (
                r#"{"jwtProviders": [{"name": "idp", "issuer": "i", "localJwks": {"filename": "/k"}, "remoteJwks": {"httpUri":
                    {"uri": "https://idp/keys", "cluster": "idp", "timeout": "1s"}}}]}"#,
                "jwt_providers[0].remote_jwks",
                "keep one of them",
            ),
            (r#"{"jwtProviders": [{"name": "idp", "issuer": "i"}]}"#, "jwt_providers[0].local_jwks", "is missing"),
            (
                r#"{"jwtProviders": [{"name": "idp", "issuer": "i", "localJwks": {"filename": "/k"}, "clockSkew": "601s"}]}"#,
                "jwt_providers[0].clock_skew",
                "10 minutes",
            ),
            (r#"{"staticTokens": [{"name": "idp", "tokens": [{"filename": "/s"}]}]}"#, "", "two ways"),
            (
                r#"{"staticTokens": [{"name": "old", "tokens": [{"inlineString": "secret"}]}]}"#,
                "static_tokens[0].tokens[0]",
                "plain text",
            ),
            (
                r#"{"staticTokens": [{"name": "old", "tokens": [{"inlineString": ""}]}]}"#,
                "static_tokens[0].tokens[0]",
                "",
            ),
            (r#"{"rules": [{"clusters": ["a"]}]}"#, "rules[0].principals", ""),
            (r#"{"rules": [{"principals": [{"uri": "a"}]}]}"#, "rules[0].clusters", ""),
            (r#"{"rules": [{"principals": [{}], "clusters": ["a"]}]}"#, "rules[0].principals[0]", ""),
            (
                r#"{"rules": [{"principals": [{"uri": "a*b"}], "clusters": ["a"]}]}"#,
                "rules[0].principals[0].uri",
                "end",
            ),
            (
                r#"{"rules": [{"principals": [{"uri": "*a*"}], "clusters": ["a"]}]}"#,
                "rules[0].principals[0].uri",
                "end",
            ),
            (
                r#"{"rules": [{"principals": [{"uri": "a"}], "clusters": ["a"], "minWeight": 9, "maxWeight": 8}]}"#,
                "rules[0].max_weight",
                "less",
            ),
            (
                r#"{"rules": [{"principals": [{"uri": "a"}], "clusters": ["a"], "sourceRanges": [{"addressPrefix": "x"}]}]}"#,
                "rules[0].source_ranges[0].address_prefix",
                "",
            ),
        ],
    );
}
