use super::*;
use crate::document::{Limits, Syntax, parse};
use crate::envoy::config::cluster::v3::Cluster;
use crate::envoy::config::route::v3::RouteConfiguration;
use crate::rules::string_rules::WellKnown;

/// The violations of a document with `@type`, `PATH: REASON` each, without positions.
fn violations(yaml: &str) -> Vec<String> {
    let tree = parse(yaml.as_bytes(), Syntax::Yaml, &Limits::default()).unwrap().remove(0);
    match crate::document::load_any(&tree) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.into_iter().map(|problem| format!("{}: {}", problem.path, problem.reason)).collect(),
    }
}

fn check(yaml: &str, expected: &[&str]) {
    let mut found = violations(yaml);
    found.sort();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected, "violations of\n{yaml}");
}

const CLUSTER: &str = "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: c\n";
const ROUTES: &str = "\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration\nname: r\n";

#[test]
fn rules_are_in_the_descriptor_set() {
    let with_rules: usize =
        pool::pool().all_messages().map(|message| annotations::of(&message).all_rules().count()).sum();
    assert!(with_rules > 1000, "the descriptor set has lost its options: {with_rules} fields with rules");
    let agent = pool::message(type_url::TUNNEL_AGENT).unwrap();
    assert!(annotations::of(&agent).all_rules().count() > 5, "our own messages have lost their rules");
}

#[test]
fn every_pattern_compiles() {
    let mut patterns = Vec::new();
    for message in pool::pool().all_messages() {
        for (_, rules) in annotations::of(&message).all_rules() {
            if let Some(Type::String(rules)) = &rules.r#type {
                patterns.extend(rules.pattern.clone());
            }
        }
    }
    assert!(!patterns.is_empty(), "the API has patterns");
    for pattern in patterns {
        assert!(regex::bytes::Regex::new(&pattern).is_ok(), "pattern {pattern:?} does not compile");
    }
}

#[test]
fn numbers_strings_enums_durations() {
    check(&format!("{CLUSTER}connect_timeout: 0s\n"), &["connect_timeout: must be greater than 0s, is 0s"]);
    check(&format!("{CLUSTER}connect_timeout: 0.001s\n"), &[]);
    check("\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\n", &["name: must not be empty"]);
    check(
        &format!("{CLUSTER}lb_policy: 99\n"),
        &["lb_policy: 99 is no value of envoy.config.cluster.v3.Cluster.LbPolicy"],
    );
    check(
        &format!("{CLUSTER}dns_refresh_rate: 0.0005s\n"),
        &["dns_refresh_rate: must be greater than 0.001s, is 0.000500s"],
    );
    check(
        &format!("{CLUSTER}least_request_lb_config: {{choice_count: 1}}\n"),
        &["least_request_lb_config.choice_count: must be at least 2, is 1"],
    );
    check(
        &format!("{CLUSTER}outlier_detection: {{max_ejection_percent: 101}}\n"),
        &["outlier_detection.max_ejection_percent: must be at most 100, is 101"],
    );
}

#[test]
fn lists_oneofs_and_required_messages() {
    let host = |more: &str| format!("{ROUTES}virtual_hosts:\n- name: v\n  domains: [a]\n  {more}\n");
    check(
        &format!("{ROUTES}virtual_hosts: [{{name: v}}]\n"),
        &["virtual_hosts[0].domains: has 0 items; at least 1 needed"],
    );
    check(&host("routes: [{route: {cluster: c}}]"), &["virtual_hosts[0].routes[0].match: is required"]);
    check(
        &host("routes: [{match: {prefix: /}}]"),
        &[
            "virtual_hosts[0].routes[0]: one of route, redirect, direct_response, filter_action, non_forwarding_action is required",
        ],
    );
    check(
        &host("routes: [{match: {prefix: /}, direct_response: {status: 700}}]"),
        &["virtual_hosts[0].routes[0].direct_response.status: must be less than 600, is 700"],
    );
    check(
        &host("routes: [{match: {prefix: /, headers: [{name: \"a\\nb\"}]}, direct_response: {status: 200}}]"),
        &["virtual_hosts[0].routes[0].match.headers[0].name: \"a\\nb\" is no header name"],
    );
    // Beside `name` stands an empty `cluster_header`, whose rule is not strict.
    check(&host("routes: [{match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: c, weight: 1}]}}}]"), &[]);
}

#[test]
fn nested_anys_are_checked_where_they_stand() {
    check(
        "\"@type\": type.googleapis.com/envoy.config.listener.v3.Listener
name: l
address: {socket_address: {address: 127.0.0.1, port_value: 1}}
filter_chains:
- filters:
  - name: hcm
    typed_config:
      \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: ''
      route_config: {virtual_hosts: [{name: '', domains: ['*']}]}
",
        &[
            "filter_chains[0].filters[0].typed_config.stat_prefix: must not be empty",
            "filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].name: must not be empty",
        ],
    );
}

#[test]
fn bytes_that_do_not_decode_are_a_violation() {
    let any = Any { type_url: type_url::CLUSTER.into(), value: bytes::Bytes::from_static(b"\x0a\xff") };
    assert!(validate_any(&any)[0].reason.contains("does not decode"), "{:?}", validate_any(&any));
    let unknown = Any { type_url: "x/unknown.Type".into(), value: bytes::Bytes::from_static(b"\x0a\xff") };
    assert_eq!(validate_any(&unknown), []);
    // Anys in Anys: no decoder bounds them.
    let mut nested = Any::pack(&Cluster::default());
    for _ in 0..10_000 {
        nested = Any::pack(&nested);
    }
    assert!(validate_any(&nested)[0].reason.contains("nested deeper"), "{:?}", validate_any(&nested));
}

#[test]
fn typed_messages() {
    assert_eq!(validate(&RouteConfiguration::default()), []);
    let found = validate(&Cluster::default());
    assert_eq!(found[0].to_string(), "name: must not be empty");
}

#[test]
fn well_known_strings() {
    for (form, good, bad) in [
        (WellKnown::Ip(true), &["1.2.3.4", "::1"][..], &["1.2.3", "a", "::1%eth0"][..]),
        (WellKnown::Hostname(true), &["a.b", "a-1.b.", "1a"], &["", "-a", "a_b", "a..b"]),
        (WellKnown::Uri(true), &["http://a/b?c#d", "spiffe://td/x"], &["/relative", "http://a b"]),
        (WellKnown::UriRef(true), &["/relative"], &["a b"]),
        (
            WellKnown::Uuid(true),
            &["00000000-0000-0000-0000-00000000abcd"],
            &["0", "00000000-0000-0000-0000-00000000abcg"],
        ),
        (WellKnown::Email(true), &["a@b.c"], &["a", "@b", "a@-b"]),
        (WellKnown::WellKnownRegex(1), &["a-b", ":path"], &["", "a b", "a:"]),
        (WellKnown::WellKnownRegex(2), &["a b\tc", ""], &["a\nb", "\x7f"]),
    ] {
        let rules = crate::rules::StringRules { well_known: Some(form), ..Default::default() };
        for text in good {
            assert_eq!(strings::string(text, &rules), [""; 0], "{text:?} by {rules:?}");
        }
        for text in bad {
            assert_eq!(strings::string(text, &rules).len(), 1, "{text:?} by {rules:?}");
        }
    }
}

#[test]
fn ranges_may_be_exclusive() {
    use super::numbers::check;
    let rules = |lt, gt| Type::Uint32(crate::rules::UInt32Rules { lt, gt, ..Default::default() });
    for (lt, gt, value, holds) in [
        (Some(10), Some(5), 7, true),
        (Some(10), Some(5), 5, false),
        (Some(5), Some(10), 7, false),
        (Some(5), Some(10), 11, true),
    ] {
        let found = check(&rules(lt, gt), &Value::U32(value));
        assert_eq!(found.is_none(), holds, "{value} with lt {lt:?} gt {gt:?}: {found:?}");
    }
    let nan =
        check(&Type::Double(crate::rules::DoubleRules { gte: Some(0.0), ..Default::default() }), &Value::F64(f64::NAN));
    assert!(nan.is_some(), "NaN violates every bound");
}
