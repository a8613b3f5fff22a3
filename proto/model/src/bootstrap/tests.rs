use serde_json::{Value, json};

use super::*;
use crate::listener::NetworkFilter;
use crate::testing::{good, message, patched, refused, warned};

fn cluster(name: &str) -> Value {
    json!({"name": name, "type": "STATIC", "connect_timeout": "5s", "http2_protocol_options": {},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 18000}}}}]}]}})
}

fn base() -> Value {
    json!({
        "node": {"id": "n", "cluster": "c"},
        "static_resources": {"clusters": [cluster("control")]},
        "dynamic_resources": {
            "ads_config": {"api_type": "DELTA_GRPC", "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "control"}}]},
            "cds_config": {"ads": {}}, "lds_config": {"ads": {}},
        },
    })
}

#[test]
fn bootstraps_that_cannot_be_used() {
    let ads = |fields: &str| format!(r#"{{"dynamic_resources": {{"ads_config": {{{fields}}}}}}}"#);
    let at = |field: &str| format!("dynamic_resources.ads_config.{field}");
    let twice = json!({"static_resources": {"clusters": [cluster("control"), cluster("control")]}}).to_string();
    let listener = |name: &str| {
        json!({"name": name, "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}},
            "filter_chains": [{"filters": [{"name": "t", "typed_config": {"stat_prefix": "t", "cluster": "c",
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"}}]}]})
    };
    let same_address = json!({"static_resources": {"listeners": [listener("a"), listener("b")]}}).to_string();
    let tls = json!({"name": "t", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {"validation_context_sds_secret_config": {"name": "roots"}}}});
    let mut secured = cluster("control");
    secured["transport_socket"] = tls;
    let no_secret = json!({"static_resources": {"clusters": [secured]}}).to_string();
    refused(
        &base(),
        parse,
        &[
            (r#"{"dynamic_resources": {"ads_config": null}}"#, "dynamic_resources.cds_config.ads", "is missing"),
            (&ads(r#""api_type": "REST""#), &at("api_type"), "use GRPC or DELTA_GRPC"),
            (&ads(r#""api_type": "AGGREGATED_GRPC""#), &at("api_type"), "use GRPC or DELTA_GRPC"),
            (&ads(r#""transport_api_version": "V2""#), &at("transport_api_version"), "use V3"),
            (&ads(r#""grpc_services": []"#), &at("grpc_services"), "is empty"),
            (
                &ads(r#""grpc_services": [{"envoy_grpc": {"cluster_name": "x"}}]"#),
                &at("grpc_services[0].envoy_grpc.cluster_name"),
                "not a static cluster",
            ),
            (
                &ads(r#""grpc_services": [{"google_grpc": {"target_uri": "x"}}]"#),
                &at("grpc_services[0].google_grpc"),
                "use envoy_grpc",
            ),
            (&twice, "static_resources.clusters", r#"the name "control" stands there twice"#),
            (&same_address, "static_resources.listeners", "the same address, 127.0.0.1:1"),
            (&no_secret, "static_resources.secrets", r#"cluster "control" names the secret "roots""#),
            (r#"{"admin": {"address": {"pipe": {"path": "/x"}}}}"#, "admin.address.pipe", "unix sockets"),
            (r#"{"admin": {"allow_paths": [{"exact": "/"}]}}"#, "admin.allow_paths", "loopback"),
            (r#"{"header_prefix": "a b"}"#, "header_prefix", "not a header name"),
            (r#"{"default_config_source": {}}"#, "default_config_source", "where configuration comes from"),
            (
                r#"{"bootstrap_extensions": [{"name": "x", "typed_config": {
                    "@type": "type.googleapis.com/envoy.config.core.v3.Node"}}]}"#,
                "bootstrap_extensions[0].typed_config",
                "is not there",
            ),
            (
                r#"{"bootstrap_extensions": [{"name": "x", "typed_config": {
                    "@type": "type.googleapis.com/culvert.tunnel.v1.TunnelAgents", "agents": [{"name": "a"}]}}]}"#,
                "bootstrap_extensions[0].typed_config.agents[0].servers",
                "at least one",
            ),
        ],
    );
    warned(&base(), parse, &[(r#"{"stats_config": {}}"#, "stats_config", "admin interface")]);
}

#[test]
fn all_findings_come_in_one_run() {
    let json = json!({
        "admin": {"address": {"pipe": {"path": "/x"}}},
        "static_resources": {
            "clusters": [{"name": "", "connect_timeout": "0s"}, {"name": "b", "lb_policy": "MAGLEV"}],
            "listeners": [{"name": "l"}],
            "secrets": [{"name": "s"}],
        },
        "dynamic_resources": {"cds_config": {}},
    });
    let errors = parse(&message(&json)).value.expect_err("everything is wrong");
    for path in [
        "admin.address.pipe",
        "static_resources.clusters[0].name",
        "static_resources.clusters[0].connect_timeout",
        "static_resources.clusters[1].lb_policy",
        "static_resources.listeners[0].address",
        "static_resources.listeners[0].filter_chains",
        "static_resources.secrets[0]",
        "dynamic_resources.cds_config",
    ] {
        assert!(errors.iter().any(|error| error.path == path), "expected a finding at {path}, got {errors:#?}");
    }
}

#[test]
fn a_bootstrap_with_everything() {
    let agents = json!({"@type": "type.googleapis.com/culvert.tunnel.v1.TunnelAgents", "agents_config": {"ads": {}},
        "agents": [{"name": "a", "cluster": "c", "hosting_listener": "l", "servers": [{"address": "t:1"}]}]});
    let json = json!({
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}, "access_log_path": "/dev/stdout"},
        "bootstrap_extensions": [{"name": "culvert.tunnel_agents", "typed_config": agents}],
        "node": {"metadata": {"k": "v"}},
    });
    let parsed = parse(&message(&patched(&base(), &json.to_string())));
    let bootstrap = good(&parsed, "the bootstrap");
    assert_eq!((&*bootstrap.node.id, &*bootstrap.node.cluster), ("n", "c"));
    assert!(!bootstrap.node.encoded.is_empty(), "the node goes out as it came in");
    assert_eq!(bootstrap.admin.as_ref().map(|admin| admin.access_log.len()), Some(1));
    let ads = bootstrap.dynamic.ads.as_ref().expect("ADS is configured");
    assert!(ads.delta && *ads.clusters == ["control".into()], "{ads:?}");
    assert_eq!(bootstrap.agents.len(), 1);
    assert!(bootstrap.agents_config.is_some(), "agents come over ADS as well");
    assert_eq!(&*bootstrap.header_prefix, "x-envoy");
}

/// A gateway as a benchmark of Envoy writes it: TLS with certificates from files, an HTTP/2 backend, many routes.
#[test]
fn an_envoy_bootstrap_runs_unmodified() {
    let big = 1_000_000;
    let mut backend = cluster("c0");
    backend["circuit_breakers"] = json!({"thresholds": [{
        "max_connections": big, "max_pending_requests": big, "max_requests": big, "max_retries": big}]});
    backend.as_object_mut().unwrap().remove("http2_protocol_options");
    let kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    backend["typed_extension_protocol_options"] = json!({kind: {"@type": format!("type.googleapis.com/{kind}"),
        "explicit_http_config": {"http2_protocol_options": {}}}});
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in", "codec_type": "AUTO", "http2_protocol_options": {"max_concurrent_streams": 1000},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
        "route_config": {"name": "local", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/r1/"}, "route": {"cluster": "c0", "timeout": "0s"}},
            {"match": {"prefix": "/"}, "route": {"cluster": "c0", "timeout": "0s"}}]}]},
    });
    let tls = json!({"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"alpn_protocols": ["h2", "http/1.1"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [{"certificate_chain": {"filename": "/c.pem"}, "private_key": {"filename": "/k.pem"}}]}}});
    let listener = json!({"address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}},
        "filter_chains": [{"transport_socket": tls, "filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}]});
    let json = json!({"node": {"id": "envoy", "cluster": "envoy"},
        "static_resources": {"listeners": [listener], "clusters": [backend]}});
    let parsed = parse(&message(&json));
    let bootstrap = good(&parsed, "the bootstrap");
    assert_eq!(
        &*bootstrap.listeners[0].name, "127.0.0.1:1",
        "a static listener without a name is named by its address"
    );
    let chain = &bootstrap.listeners[0].filter_chains[0];
    assert!(chain.tls.is_some(), "TLS is terminated");
    assert!(matches!(chain.filter, NetworkFilter::Http(_)), "HTTP is served");
    assert_eq!(bootstrap.clusters[0].breakers[0].max_requests, big);
}
