use serde_json::{Value, json};

use super::*;
use crate::testing::{good, message, patched, refused, warned};

fn base() -> Value {
    json!({"name": "r", "virtual_hosts": [
        {"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "c"}}]},
    ]})
}

/// A route configuration with this one route.
fn with(route: &str) -> String {
    format!(r#"{{"virtual_hosts": [{{"name": "v", "domains": ["*"], "routes": [{route}]}}]}}"#)
}

fn matching(matches: &str) -> String {
    with(&format!(r#"{{"match": {{{matches}}}, "route": {{"cluster": "c"}}}}"#))
}

fn acting(action: &str) -> String {
    with(&format!(r#"{{"match": {{"prefix": "/"}}, "route": {{"cluster": "c", {action}}}}}"#))
}

fn doing(action: &str) -> String {
    with(&format!(r#"{{"match": {{"prefix": "/"}}, {action}}}"#))
}

fn at(field: &str) -> String {
    format!("virtual_hosts[0].routes[0].{field}")
}

#[test]
fn virtual_hosts_that_cannot_be_used() {
    let hosts = |hosts: &str| format!(r#"{{"virtual_hosts": [{hosts}]}}"#);
    let filter = "type.googleapis.com/envoy.config.core.v3.Node";
    let per_filter = format!(r#"{{"typed_per_filter_config": {{"rbac": {{"@type": "{filter}"}}}}}}"#);
    refused(
        &base(),
        parse,
        &[
            (r#"{"name": ""}"#, "name", "is empty"),
            (
                &hosts(r#"{"name": "a", "domains": ["x.com"]}, {"name": "b", "domains": ["X.com"]}"#),
                "virtual_hosts[1].domains",
                r#""x.com" stands in virtual host "a" already"#,
            ),
            (
                &hosts(r#"{"name": "a", "domains": ["x"]}, {"name": "a", "domains": ["y"]}"#),
                "virtual_hosts[1].name",
                "another virtual host",
            ),
            (&hosts(r#"{"name": "a"}"#), "virtual_hosts[0].domains", "is empty"),
            (&hosts(r#"{"name": "a", "domains": ["a.*.b"]}"#), "virtual_hosts[0].domains[0]", "is not a domain"),
            (&hosts(r#"{"name": "a", "domains": ["*.*"]}"#), "virtual_hosts[0].domains[0]", "is not a domain"),
            (&hosts(r#"{"name": "a", "domains": [""]}"#), "virtual_hosts[0].domains[0]", "is not a domain"),
            (r#"{"vhds": {}}"#, "vhds.config_source", "is missing"),
            (
                r#"{"vhds": {"config_source": {"path_config_source": {"path": "x"}}}}"#,
                "vhds.config_source",
                "single names",
            ),
            (r#"{"internal_only_headers": ["x"]}"#, "internal_only_headers", "request_headers_to_remove"),
            (r#"{"request_headers_to_remove": [":path"]}"#, "request_headers_to_remove[0]", "can be removed"),
            (r#"{"request_headers_to_remove": ["a b"]}"#, "request_headers_to_remove[0]", "be removed"),
            (&per_filter, r#"typed_per_filter_config["rbac"]"#, "is not there"),
        ],
    );
}

#[test]
fn matches_that_cannot_be_used() {
    refused(
        &base(),
        parse,
        &[
            (&with(r#"{"route": {"cluster": "c"}}"#), &at("match"), "is missing"),
            (&matching(""), &at("match"), "matches no path"),
            (&matching(r#""prefix": "/a?b""#), &at("match.prefix"), "query_parameters"),
            (&matching(r#""path": "/a#b""#), &at("match.path"), "query_parameters"),
            (&matching(r#""path_separated_prefix": "/a/""#), &at("match.path_separated_prefix"), "ends with a slash"),
            (&matching(r#""safe_regex": {"regex": "("}"#), &at("match.safe_regex.regex"), "not a regular expression"),
            (
                &matching(r#""safe_regex": {"regex": "((a{100}){100}){100}"}"#),
                &at("match.safe_regex.regex"),
                "compiles to more than",
            ),
            (
                &matching(r#""prefix": "/", "headers": [{"name": "a b"}]"#),
                &at("match.headers[0].name"),
                "not a header name",
            ),
            (
                &matching(r#""prefix": "/", "headers": [{"name": "a", "string_match": {"prefix": ""}}]"#),
                &at("match.headers[0].string_match.prefix"),
                "present_match",
            ),
            (
                &matching(r#""prefix": "/", "query_parameters": [{"name": "q", "string_match": {}}]"#),
                &at("match.query_parameters[0].string_match"),
                "matches nothing",
            ),
            (&matching(r#""prefix": "/", "cookies": [{"name": "a"}]"#), &at("match.cookies"), "where traffic goes"),
            (
                &matching(r#""prefix": "/", "tls_context": {"validated": true}"#),
                &at("match.tls_context.validated"),
                "where traffic goes",
            ),
        ],
    );
}

#[test]
fn actions_that_cannot_be_used() {
    let weighted =
        |clusters: &str| doing(&format!(r#""route": {{"weighted_clusters": {{"clusters": [{clusters}]}}}}"#));
    let header = |header: &str| doing(&format!(r#""route": {{"cluster": "c"}}, "request_headers_to_add": [{header}]"#));
    refused(
        &base(),
        parse,
        &[
            (&doing(r#""name": "x""#), "virtual_hosts[0].routes[0]", "names no action"),
            (&doing(r#""route": {}"#), &at("route"), "names no cluster"),
            (&doing(r#""route": {"cluster": ""}"#), &at("route.cluster"), "is empty"),
            (&acting(r#""timeout": "-0.5s""#), &at("route.timeout"), "not negative"),
            (
                &acting(r#""retry_policy": {"retry_back_off": {"base_interval": "2s", "max_interval": "1s"}}"#),
                &at("route.retry_policy.retry_back_off.max_interval"),
                "less than base_interval",
            ),
            (
                &acting(r#""retry_policy": {"retriable_status_codes": [99]}"#),
                &at("route.retry_policy.retriable_status_codes"),
                "not a status",
            ),
            (&acting(r#""prefix_rewrite": "/\u0001""#), &at("route.prefix_rewrite"), "control characters"),
            (
                &acting(r#""prefix_rewrite": "/", "regex_rewrite": {"pattern": {"regex": "a"}}"#),
                &at("route.regex_rewrite"),
                "beside prefix_rewrite",
            ),
            (
                &acting(r#""regex_rewrite": {"pattern": {"regex": "a"}, "substitution": "\\1"}"#),
                &at("route.regex_rewrite.substitution"),
                "group",
            ),
            (&acting(r#""request_mirror_policies": [{}]"#), &at("route.request_mirror_policies"), "copies"),
            (
                &acting(r#""metadata_match": {"filter_metadata": {"envoy.lb": {"v": "1"}}}"#),
                &at(r#"route.metadata_match.filter_metadata["envoy.lb"]"#),
                "subsets are not there",
            ),
            (&weighted(""), &at("route.weighted_clusters.clusters"), "add up to 0"),
            (
                &weighted(r#"{"name": "a", "weight": 4294967295}, {"name": "b", "weight": 1}"#),
                &at("route.weighted_clusters.clusters"),
                "add up to 4294967296",
            ),
            (&weighted(r#"{"name": "a"}"#), &at("route.weighted_clusters.clusters[0].weight"), "is missing"),
            (
                &header(r#"{"header": {"key": "host", "value": "x"}}"#),
                &at("request_headers_to_add[0].header.key"),
                "host_rewrite_literal",
            ),
            (
                &header(r#"{"header": {"key": "x", "value": "a\r\nb"}}"#),
                &at("request_headers_to_add[0].header.value"),
                "control characters",
            ),
            (
                &header(r#"{"header": {"key": "x", "value": "%NOPE%"}}"#),
                &at("request_headers_to_add[0].header.value"),
                "not a known operator",
            ),
        ],
    );
}

/// A configuration cannot make every request carry what it pleases.
#[test]
fn headers_that_are_added_are_few_and_short() {
    let header = |value: &str| format!(r#"{{"header": {{"key": "x", "value": "{value}"}}}}"#);
    let adding = |headers: &[String]| {
        doing(&format!(r#""route": {{"cluster": "c"}}, "response_headers_to_add": [{}]"#, headers.join(", ")))
    };
    let most = adding(&vec![header("a"); 1000]);
    good(&parse(&message(&patched(&base(), &most))), "a thousand headers");
    let long = "a".repeat(1 << 20);
    refused(
        &base(),
        parse,
        &[
            (&adding(&vec![header("a"); 1001]), &at("response_headers_to_add"), "has 1001 headers, more than 1000"),
            (&adding(&[header(&long)]), &at("response_headers_to_add[0].header.value"), "has 1048576 bytes, more than"),
        ],
    );
}

#[test]
fn local_answers_that_cannot_be_used() {
    let body = "x".repeat(4097);
    refused(
        &base(),
        parse,
        &[
            (&doing(r#""redirect": {"port_redirect": 65536}"#), &at("redirect.port_redirect"), "not a port"),
            (&doing(r#""direct_response": {"status": 199}"#), &at("direct_response.status"), "200 to 599"),
            (
                &doing(&format!(r#""direct_response": {{"status": 200, "body": {{"inline_string": "{body}"}}}}"#)),
                &at("direct_response.body"),
                "4097 bytes",
            ),
            (&doing(r#""filter_action": {}"#), &at("filter_action"), "where traffic goes"),
        ],
    );
}

#[test]
fn routes_with_something_left_out() {
    let optional = r#"{"typed_per_filter_config": {"x": {
        "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "is_optional": true,
        "config": {"@type": "type.googleapis.com/envoy.config.core.v3.Node"}}}}"#;
    warned(
        &base(),
        parse,
        &[
            (optional, r#"typed_per_filter_config["x"]"#, "left out"),
            (&acting(r#""retry_policy": {"retry_on": "5xx,nope"}"#), &at("route.retry_policy.retry_on"), "nope"),
            (
                &acting(r#""retry_policy": {"retry_host_predicate": [{"name": "canary"}]}"#),
                &at("route.retry_policy.retry_host_predicate[0]"),
                "canary",
            ),
            (
                &acting(r#""retry_policy": {"host_selection_retry_max_attempts": "3"}"#),
                &at("route.retry_policy.host_selection_retry_max_attempts"),
                "without retry_host_predicate",
            ),
            (&acting(r#""hash_policy": [{}]"#), &at("route.hash_policy"), "hashes"),
            (&doing(r#""route": {"cluster": "c"}, "decorator": {"operation": "x"}"#), &at("decorator"), "traced"),
        ],
    );
}

fn action(patch: &str) -> Arc<RouteAction> {
    let parsed = parse(&message(&patched(&base(), patch)));
    match &good(&parsed, patch).virtual_hosts[0].routes[0].action {
        Action::Forward(action) => action.clone(),
        other => panic!("{patch}: expected a forwarding action, got {other:?}"),
    }
}

#[test]
fn a_route_names_one_tunnel_agent() {
    let named = |selector: &str| {
        let metadata = format!(r#""metadata": {{"filter_metadata": {{"culvert.tunnel": {selector}}}}}"#);
        doing(&format!(r#""route": {{"cluster": "c"}}, {metadata}"#))
    };
    let cases = [
        (r#"{"agent_header": "X-Agent"}"#, Some(AgentSelector::Header("x-agent".into()))),
        (r#"{"agent_host_label": true}"#, Some(AgentSelector::HostLabel)),
        (r#"{"agent_host_label": false}"#, None),
        (r#"{"agent": "edge-7"}"#, Some(AgentSelector::Fixed("edge-7".into()))),
    ];
    for (selector, expected) in cases {
        let agent = expected.map(|selector| AgentChoice { selector, allowed: Vec::new() });
        let expected = ClusterChoice::One(ClusterRef { cluster: "c".into(), agent });
        assert_eq!(action(&named(selector)).clusters, expected, "{selector}");
    }
    let limited = action(&named(r#"{"agent_header": "x", "allowed_agents": ["edge-*", "one"]}"#));
    let ClusterChoice::One(ClusterRef { agent: Some(agent), .. }) = &limited.clusters else { panic!("{limited:?}") };
    let allowed = ["edge-", "edge-7", "one", "", "two", "one-more"].map(|name| agent.allows(name));
    assert_eq!(allowed, [true, true, true, false, false, false], "{agent:?}");
    let place = at(r#"metadata.filter_metadata["culvert.tunnel"]"#);
    refused(
        &base(),
        parse,
        &[
            (&named(r#"{"agent": "a", "agent_header": "b"}"#), &place, "set one"),
            (&named(r#"{"agent": "a", "allowed_agents": []}"#), &format!("{place}.allowed_agents"), "is empty"),
            (&named(r#"{"agent": "a", "allowed_agents": [1]}"#), &format!("{place}.allowed_agents[0]"), "no text"),
            (&named(r#"{"allowed_agents": ["a"]}"#), &format!("{place}.allowed_agents"), "none of them can"),
            (&named(r#"{"agent_header": "a b"}"#), &format!("{place}.agent_header"), "not a header name"),
            (&named(r#"{"agnet": "a"}"#), &format!(r#"{place}["agnet"]"#), "is none of"),
        ],
    );
}

#[test]
fn a_weighted_cluster_has_its_own_agent_or_that_of_its_route() {
    let patch = r#"{"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"},
        "metadata": {"filter_metadata": {"culvert.tunnel": {"agent": "all"}}},
        "route": {"weighted_clusters": {"clusters": [
            {"name": "a", "weight": 1}, {"name": "b", "weight": 2, "metadata_match": {"filter_metadata":
                {"culvert.tunnel": {"agent": "own"}}}}]}}}]}]}"#;
    let ClusterChoice::Weighted { clusters, total } = &action(patch).clusters else { panic!("expected weights") };
    let agents: Vec<_> = clusters.iter().map(|cluster| cluster.target.agent.clone()).collect();
    let fixed = |name: &str| Some(AgentChoice { selector: AgentSelector::Fixed(name.into()), allowed: Vec::new() });
    assert_eq!((agents, *total), (vec![fixed("all"), fixed("own")], 3));
}

#[test]
fn defaults_are_envoys() {
    let parsed = parse(&message(&base()));
    let routes = good(&parsed, "the base");
    assert!(!routes.validate_clusters, "RDS: clusters may come later");
    assert_eq!(routes.max_direct_response_body, 4096);
    let action = action("{}");
    assert_eq!((action.timeout, action.idle_timeout), (Duration::from_secs(15), None));
    assert_eq!(action.cluster_not_found, 503);
    let retry = self::action(&acting(r#""retry_policy": {"retry_on": "5xx, connect-failure"}"#)).retry.clone().unwrap();
    assert!(retry.on.any_5xx && retry.on.connect_failure && !retry.on.reset, "{retry:?}");
    assert_eq!(retry.num_retries, 1);
    assert_eq!((retry.base_interval, retry.max_interval), (Duration::from_millis(25), Duration::from_millis(250)));
}

#[test]
fn what_is_set_is_kept() {
    assert_eq!(action(&acting(r#""timeout": "0s""#)).timeout, Duration::ZERO);
    assert_eq!(action(&acting(r#""idle_timeout": "0s""#)).idle_timeout, Some(Duration::ZERO));
    let action = action(&acting(r#""upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]"#));
    assert_eq!(&*action.upgrades[0].kind, "connect");
    assert!(action.upgrades[0].terminate_connect && action.upgrades[0].enabled, "{action:?}");
    let patch = doing(
        r#""redirect": {"https_redirect": true, "prefix_rewrite": "/x", "response_code": "PERMANENT_REDIRECT"},
        "response_headers_to_add": [{"header": {"key": "X-A", "value": "%PROTOCOL%"}, "append": false}]"#,
    );
    let parsed = parse(&message(&patched(&base(), &patch)));
    let route = &good(&parsed, "a redirect").virtual_hosts[0].routes[0];
    let Action::Redirect(redirect) = &route.action else { panic!("expected a redirect, got {route:?}") };
    assert_eq!((redirect.status, redirect.scheme.as_deref()), (308, Some("https")));
    assert_eq!(redirect.path, RedirectPath::Prefix("/x".into()));
    let added = &route.headers.response_add[0];
    assert_eq!((&*added.name, added.append), ("x-a", AppendAction::OverwriteIfExistsOrAdd));
}
