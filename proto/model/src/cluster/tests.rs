use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::testing::{good, message, patched, refused, warned};

fn base() -> Value {
    json!({"name": "c", "type": "STATIC", "load_assignment": {"cluster_name": "c", "endpoints": [{"lb_endpoints": [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 80}}}},
    ]}]}})
}

fn tls(context: &str) -> String {
    let kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    format!(r#"{{"transport_socket": {{"name": "t", "typed_config": {{"@type": "{kind}", {context}}}}}}}"#)
}

fn protocol(options: &str) -> String {
    let kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let typed = format!(r#"{{"@type": "type.googleapis.com/{kind}", {options}}}"#);
    format!(r#"{{"typed_extension_protocol_options": {{"{kind}": {typed}}}}}"#)
}

/// The path of `field` inside the HTTP protocol options.
fn inside(field: &str) -> String {
    let kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    format!(r#"typed_extension_protocol_options["{kind}"].{field}"#)
}

/// The base as a `DnsCluster` with `options`, and `more` fields of the cluster.
fn dns(options: &str, more: &str) -> String {
    let kind = "type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster";
    format!(
        r#"{{"type": null, "cluster_type": {{"name": "dns", "typed_config": {{"@type": "{kind}"{options}}}}}{more}}}"#
    )
}

/// A `load_balancing_policy` of that kind with `options`.
fn policy(kind: &str, options: &str) -> String {
    let kind = format!("type.googleapis.com/envoy.extensions.load_balancing_policies.{kind}");
    format!(
        r#"{{"load_balancing_policy": {{"policies": [{{"typed_extension_config": {{
            "name": "x", "typed_config": {{"@type": "{kind}"{options}}}}}}}]}}}}"#
    )
}

const TLS: &str = "transport_socket.typed_config";

#[test]
fn clusters_that_cannot_be_used() {
    refused(
        &base(),
        parse,
        &[
            (r#"{"name": ""}"#, "name", "is empty"),
            (r#"{"connect_timeout": "-1s"}"#, "connect_timeout", "not negative"),
            (r#"{"connect_timeout": "0s"}"#, "connect_timeout", "is zero"),
            (r#"{"connect_timeout": "315576000000s"}"#, "connect_timeout", "is longer than"),
            (r#"{"type": "EDS", "load_assignment": null}"#, "eds_cluster_config.eds_config", "is missing"),
            (r#"{"type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}}"#, "load_assignment", "type EDS"),
            (r#"{"eds_cluster_config": {"eds_config": {"ads": {}}}}"#, "eds_cluster_config", "type STATIC"),
            (
                r#"{"type": "EDS", "load_assignment": null, "eds_cluster_config": {"eds_config": {"self": {}}}}"#,
                "eds_cluster_config.eds_config.self",
                "where configuration comes from",
            ),
            (r#"{"type": "ORIGINAL_DST"}"#, "type", "ORIGINAL_DST is not there"),
            (r#"{"type": null, "cluster_type": {"name": "x"}}"#, "cluster_type.typed_config", "is missing"),
            (r#"{"type": "LOGICAL_DNS", "load_assignment": {"endpoints": []}}"#, "load_assignment", "has 0 endpoints"),
            (r#"{"lb_policy": "RING_HASH"}"#, "lb_policy", "RING_HASH is not there"),
            (r#"{"lb_policy": "MAGLEV"}"#, "lb_policy", "MAGLEV is not there"),
            (r#"{"lb_policy": "LOAD_BALANCING_POLICY_CONFIG"}"#, "load_balancing_policy", "is missing"),
            (r#"{"load_balancing_policy": {"policies": []}}"#, "load_balancing_policy.policies", "none is known"),
            (
                r#"{"least_request_lb_config": {"choice_count": 1}}"#,
                "least_request_lb_config.choice_count",
                "less than 2",
            ),
            (r#"{"lb_subset_config": {}}"#, "lb_subset_config", "which endpoint a request goes to"),
            (
                r#"{"transport_socket_matches": [{"name": "a"}]}"#,
                "transport_socket_matches[0].transport_socket",
                "is missing",
            ),
            (
                r#"{"common_lb_config": {"healthy_panic_threshold": {"value": 101}}}"#,
                "common_lb_config.healthy_panic_threshold",
                "not from 0 to 100",
            ),
            (
                r#"{"circuit_breakers": {"thresholds": [{"retry_budget": {"budget_percent": {"value": "NaN"}}}]}}"#,
                "circuit_breakers.thresholds[0].retry_budget.budget_percent",
                "NaN is not from 0 to 100",
            ),
            (
                r#"{"upstream_bind_config": {"source_address": {"address": "x", "port_value": 0}}}"#,
                "upstream_bind_config.source_address.address",
                "not an IP address",
            ),
        ],
    );
}

#[test]
fn protocols_that_cannot_be_used() {
    refused(
        &base(),
        parse,
        &[
            (
                &protocol(r#""explicit_http_config": {"http3_protocol_options": {}}"#),
                &inside("explicit_http_config.http3_protocol_options"),
                "HTTP/3",
            ),
            (&protocol(r#""auto_config": {}"#), &inside("auto_config"), "needs a TLS transport_socket"),
            (&protocol(r#""explicit_http_config": {}"#), &inside("explicit_http_config"), "names no protocol"),
            (
                &protocol(r#""explicit_http_config": {"http2_protocol_options": {"initial_stream_window_size": 1}}"#),
                &inside("explicit_http_config.http2_protocol_options.initial_stream_window_size"),
                "not from 65535",
            ),
            (
                &protocol(
                    r#""explicit_http_config": {"http_protocol_options": {}},
                    "upstream_http_protocol_options": {"auto_san_validation": true}"#,
                ),
                &inside("upstream_http_protocol_options.auto_san_validation"),
                "needs auto_sni",
            ),
            (
                &protocol(
                    r#""explicit_http_config": {"http_protocol_options": {}},
                    "upstream_http_protocol_options": {"auto_sni": true, "override_auto_sni_header": "a b"}"#,
                ),
                &inside("upstream_http_protocol_options.override_auto_sni_header"),
                "",
            ),
            (
                &protocol(r#""explicit_http_config": {"http_protocol_options": {}}, "http_filters": [{"name": "x"}]"#),
                &inside("http_filters[0].typed_config"),
                "is not there",
            ),
        ],
    );
}

#[test]
fn tls_that_would_not_protect_is_refused() {
    let san = r#""match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "a"}}]"#;
    let context = |fields: &str| tls(&format!(r#""common_tls_context": {{{fields}}}"#));
    let unrooted = context(&format!(r#""validation_context": {{{san}}}"#));
    let common = |field: &str| format!("{TLS}.common_tls_context.{field}");
    refused(
        &base(),
        parse,
        &[
            (&unrooted, &common("validation_context.match_typed_subject_alt_names"), "needs trusted_ca"),
            (&context(r#""validation_context": {}"#), &common("validation_context"), "checks nothing"),
            (
                &context(r#""validation_context": {"trust_chain_verification": "ACCEPT_UNTRUSTED"}"#),
                &common("validation_context.trust_chain_verification"),
                "ACCEPT_UNTRUSTED",
            ),
            (
                &context(r#""validation_context": {"verify_certificate_hash": ["00"]}"#),
                &common("validation_context.verify_certificate_hash"),
                "which certificates are accepted",
            ),
            (
                &context(r#""tls_params": {"tls_maximum_protocol_version": "TLSv1_1"}"#),
                &common("tls_params.tls_maximum_protocol_version"),
                "TLS 1.2 is the least",
            ),
            (
                &context(
                    r#""tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_2"}"#,
                ),
                &common("tls_params"),
                "above the maximum",
            ),
            (
                &context(r#""tls_certificates": [{"certificate_chain": {"filename": "/c"}}]"#),
                &common("tls_certificates[0].private_key"),
                "is missing",
            ),
            (&context(r#""alpn_protocols": [""]"#), &common("alpn_protocols[0]"), "1 to 255"),
            (&tls(r#""sni": "a b""#), &format!("{TLS}.sni"), "not a host name"),
            (&tls(r#""auto_sni_san_validation": true"#), &format!("{TLS}.auto_sni_san_validation"), "needs a name"),
            (r#"{"transport_socket": {"name": "envoy.transport_sockets.tls"}}"#, TLS, "is missing"),
            (
                r#"{"transport_socket": {"name": "x", "typed_config": {
                    "@type": "type.googleapis.com/envoy.config.core.v3.Node"}}}"#,
                TLS,
                "not a known transport socket",
            ),
        ],
    );
}

#[test]
fn extensions_that_cannot_be_used() {
    let config = |field: &str| format!("cluster_type.typed_config.{field}");
    refused(
        &base(),
        parse,
        &[
            (
                r#"{"type": null, "cluster_type": {"name": "x", "typed_config": {
                    "@type": "type.googleapis.com/envoy.config.core.v3.Node"}}}"#,
                "cluster_type.typed_config",
                "envoy.config.core.v3.Node is not there",
            ),
            (&dns(r#", "dns_refresh_rate": "-1s""#, ""), &config("dns_refresh_rate"), "not negative"),
            (
                &dns(r#", "typed_dns_resolver_config": {"name": "x"}"#, ""),
                &config("typed_dns_resolver_config"),
                "the system's resolver",
            ),
            (&dns("", r#", "lb_policy": "CLUSTER_PROVIDED""#), "lb_policy", "chooses no host"),
            (
                &dns("", r#", "eds_cluster_config": {"eds_config": {"ads": {}}}"#),
                "eds_cluster_config",
                "beside a DnsCluster",
            ),
            (
                &dns(r#", "all_addresses_in_single_endpoint": true"#, r#", "load_assignment": {"endpoints": []}"#),
                "load_assignment",
                "has 0 endpoints",
            ),
            (
                &policy("least_request.v3.LeastRequest", r#", "choice_count": 1"#),
                "load_balancing_policy.policies[0].typed_extension_config.typed_config.choice_count",
                "less than 2",
            ),
            (&policy("maglev.v3.Maglev", ""), "load_balancing_policy.policies", "none is known"),
        ],
    );
}

#[test]
fn clusters_with_something_left_out() {
    warned(
        &base(),
        parse,
        &[
            (r#"{"health_checks": [{}]}"#, "health_checks", "health_status"),
            (r#"{"outlier_detection": {}}"#, "outlier_detection", "does not honour"),
            (r#"{"wait_for_warm_on_init": false}"#, "wait_for_warm_on_init", "start waits"),
            (
                r#"{"circuit_breakers": {"thresholds": [{"max_requests": 1}, {"max_requests": 2}]}}"#,
                "circuit_breakers.thresholds[1]",
                "the first ones count",
            ),
            (
                &protocol(r#""explicit_http_config": {"http2_protocol_options": {}}"#).replacen(
                    '{',
                    r#"{"common_http_protocol_options": {}, "#,
                    1,
                ),
                "typed_extension_protocol_options",
                "do not count",
            ),
            (&tls(r#""sni": "a""#), &format!("{TLS}.common_tls_context.validation_context"), "not verified"),
            (
                &tls(r#""common_tls_context": {"tls_params": {"cipher_suites": ["x"]}}"#),
                &format!("{TLS}.common_tls_context.tls_params.cipher_suites"),
                "ECDHE",
            ),
            (
                r#"{"typed_extension_protocol_options": {"redis": {
                    "@type": "type.googleapis.com/envoy.config.core.v3.Node"}}}"#,
                r#"typed_extension_protocol_options["redis"]"#,
                "changes nothing",
            ),
        ],
    );
}

#[test]
fn defaults_are_envoys() {
    let parsed = parse(&message(&base()));
    let cluster = good(&parsed, "the base");
    assert_eq!(cluster.connect_timeout, Duration::from_secs(5));
    assert_eq!(cluster.balancer, Balancer::RoundRobin);
    assert_eq!(cluster.breakers, [Breakers::default(); 2]);
    assert_eq!(cluster.breakers[0].max_requests, 1024);
    assert_eq!(cluster.protocol, UpstreamProtocol::Http1);
    assert_eq!(cluster.idle_timeout, Some(Duration::from_secs(3600)));
    assert_eq!((cluster.panic_threshold_percent, cluster.overprovisioning_factor), (50, 140));
    assert_eq!(cluster.stat_name, cluster.name);
}

#[test]
fn what_is_set_is_kept() {
    let check = |patch: &str, expected: &dyn Fn(&Cluster) -> bool| {
        let parsed = parse(&message(&patched(&base(), patch)));
        assert!(expected(good(&parsed, patch)), "{patch}: got {parsed:#?}");
    };
    check(
        r#"{"load_assignment": null}"#,
        &|cluster| matches!(&cluster.discovery, Discovery::Static(endpoints) if endpoints.localities.is_empty()),
    );
    check(&protocol(r#""explicit_http_config": {"http2_protocol_options": {}}"#), &|cluster| {
        cluster.protocol == UpstreamProtocol::Http2
    });
    // Of the cluster's own fields this one counts beside them, as in Envoy: Istio's bootstrap has both.
    let own = protocol(r#""explicit_http_config": {"http2_protocol_options": {}}"#).replacen(
        '{',
        r#"{"max_requests_per_connection": 1, "#,
        1,
    );
    check(&own, &|cluster| {
        cluster.protocol == UpstreamProtocol::Http2 && cluster.max_requests_per_connection == Some(1)
    });
    let trusted = r#""common_tls_context": {"validation_context": {"trusted_ca": {"filename": "/ca"}}}"#;
    let sni = tls(trusted).replacen('{', r#"{"upstream_http_protocol_options": {"auto_sni": true}, "#, 1);
    check(&sni, &|cluster| cluster.auto_sni == Some(AutoSni { header: None, validates: false }));
    check(r#"{"http2_protocol_options": {"max_concurrent_streams": 7}}"#, &|cluster| {
        cluster.protocol == UpstreamProtocol::Http2 && cluster.http2.max_concurrent_streams == 7
    });
    check(
        &protocol(
            r#""use_downstream_protocol_config": {}, "common_http_protocol_options":
                {"idle_timeout": "0s", "max_requests_per_connection": 3}"#,
        ),
        &|cluster| {
            cluster.protocol == UpstreamProtocol::Downstream
                && cluster.idle_timeout.is_none()
                && cluster.max_requests_per_connection == Some(3)
        },
    );
    check(
        r#"{"type": "EDS", "load_assignment": null, "eds_cluster_config": {"eds_config": {"ads": {}}}}"#,
        &|cluster| matches!(&cluster.discovery, Discovery::Eds { service_name, .. } if &**service_name == "c"),
    );
    check(r#"{"circuit_breakers": {"thresholds": [{"priority": "HIGH", "max_retries": 9}]}}"#, &|cluster| {
        cluster.breakers[1].max_retries == 9 && cluster.breakers[0] == Breakers::default()
    });
    check(&policy("random.v3.Random", ""), &|cluster| cluster.balancer == Balancer::Random);
    let weighted = r#", "locality_lb_config": {"locality_weighted_lb_config": {}}"#;
    check(&policy("round_robin.v3.RoundRobin", weighted), &|cluster| cluster.locality_weighted);
    check(&policy("least_request.v3.LeastRequest", &format!(r#", "choice_count": 5{weighted}"#)), &|cluster| {
        cluster.balancer == Balancer::LeastRequest { choices: 5 } && cluster.locality_weighted
    });
    // What belongs to lb_policy does not count beside a load_balancing_policy.
    let both = policy("round_robin.v3.RoundRobin", "").replacen(
        '{',
        r#"{"common_lb_config": {"locality_weighted_lb_config": {}}, "#,
        1,
    );
    check(&both, &|cluster| !cluster.locality_weighted);
    let named = r#", "dns_lookup_family": "V6_ONLY", "load_assignment": {"endpoints": [{"lb_endpoints": [
        {"endpoint": {"address": {"socket_address": {"address": "a.example", "port_value": 80}}}}]}]}"#;
    let options = r#", "dns_refresh_rate": "30s", "respect_dns_ttl": true, "dns_lookup_family": "V4_PREFERRED""#;
    let expected = DnsOptions { refresh: Duration::from_secs(30), respect_ttl: true, family: DnsFamily::V4Preferred };
    check(
        &dns(options, named),
        &|cluster| matches!(&cluster.discovery, Discovery::StrictDns { dns, .. } if *dns == expected),
    );
    check(
        &dns(r#", "all_addresses_in_single_endpoint": true"#, named),
        &|cluster| matches!(&cluster.discovery, Discovery::LogicalDns { dns, .. } if dns.family == DnsFamily::Auto),
    );
    check(r#"{"common_lb_config": {"locality_weighted_lb_config": {}}}"#, &|cluster| cluster.locality_weighted);
}

#[test]
fn unix_sockets_are_for_configuration() {
    let to = |path: &str| {
        format!(
            r#"{{"load_assignment": {{"endpoints": [{{"lb_endpoints": [{{"endpoint": {{"address": {{"pipe": {path}}}}}}}]}}]}}}}"#
        )
    };
    let at = "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.pipe";
    warned(&base(), parse, &[(&to(r#"{"path": "./etc/istio/proxy/XDS"}"#), at, "a request that is routed there")]);
    let long = to(&format!(r#"{{"path": "{}"}}"#, "x".repeat(108)));
    refused(&base(), parse, &[(&long, &format!("{at}.path"), "107"), (&to("{}"), &format!("{at}.path"), "107")]);
}

/// Istio's shape: TLS for endpoints that say that they take it, plain text for others.
#[test]
fn an_endpoint_is_secured_as_its_metadata_says() {
    let context = |sni: &str| {
        let kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
        format!(r#"{{"name": "tls", "typed_config": {{"@type": "{kind}", "sni": "{sni}"}}}}"#)
    };
    let raw = r#"{"name": "envoy.transport_sockets.raw_buffer"}"#;
    let matches = |first: &str, second: &str, more: &str| {
        format!(
            r#"{{"transport_socket_matches": [
                {{"name": "a", "match": {{"tlsMode": "istio"}}, "transport_socket": {first}}},
                {{"name": "b", "match": {{"tlsMode": "other", "n": 1}}, "transport_socket": {second}}}]{more}}}"#
        )
    };
    let said = |text: &str| BTreeMap::from([("envoy.transport_socket_match".to_owned(), text.to_owned())]);
    let tls = context("s");
    let otherwise = format!(r#", "transport_socket": {tls}"#);
    for (patch, istio, other, none) in [
        (matches(&tls, raw, ""), true, false, false),
        (matches(raw, &tls, ""), false, true, false),
        (matches(raw, raw, &otherwise), false, false, true),
    ] {
        let parsed = parse(&message(&patched(&base(), &patch)));
        let cluster = parsed.value.unwrap_or_else(|errors| panic!("{patch}: {errors:#?}"));
        let sni = cluster.tls.as_ref().and_then(|tls| tls.sni.as_deref());
        assert_eq!(sni, Some("s"), "{patch}");
        assert_eq!(cluster.secures(&said(r#"{"tlsMode": "istio"}"#)), istio, "{patch}");
        assert_eq!(cluster.secures(&said(r#"{"tlsMode": "other", "n": 1, "more": true}"#)), other, "{patch}");
        assert_eq!(cluster.secures(&said(r#"{"tlsMode": "other"}"#)), none, "{patch}: one of two is no match");
        assert_eq!(cluster.secures(&BTreeMap::new()), none, "{patch}");
    }
    let at = "transport_socket_matches[1].transport_socket";
    refused(&base(), parse, &[(&matches(&tls, &context("t"), ""), at, "another TLS context")]);
}
