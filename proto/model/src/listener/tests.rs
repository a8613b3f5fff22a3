use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::http::{RouteSource, RouterOptions};
use crate::route::{AgentSelector, ClusterChoice};
use crate::testing::{good, message, patched, refused, warned};
use crate::tunnel::{ProtocolChoice, TunnelProtocol};

const HCM: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const TUNNEL: &str = "type.googleapis.com/culvert.tunnel.v1.TunnelServer";
const ROUTER: &str = r#"{"name": "r", "typed_config":
    {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}"#;
const NODE: &str = r#"{"@type": "type.googleapis.com/envoy.config.core.v3.Node"}"#;

fn base() -> Value {
    json!({
        "name": "l", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 80}},
        "filter_chains": [{"filters": [{"name": "t", "typed_config": {
            "@type": TCP, "stat_prefix": "t", "cluster": "c"}}]}],
    })
}

/// A listener with these fields in its one filter chain, which proxies TCP.
fn chain(fields: &str) -> String {
    format!(
        r#"{{"filter_chains": [{{"filters": [{{"name": "t", "typed_config": {{
            "@type": "{TCP}", "stat_prefix": "t", "cluster": "c"}}}}], {fields}}}]}}"#
    )
}

fn filters(filters: &str) -> String {
    format!(r#"{{"filter_chains": [{{"filters": [{filters}]}}]}}"#)
}

fn one(kind: &str, fields: &str) -> String {
    filters(&format!(r#"{{"name": "f", "typed_config": {{"@type": "{kind}", {fields}}}}}"#))
}

/// A connection manager with these fields, and with a router and RDS unless they say otherwise.
fn manager(fields: &str) -> String {
    let mut all = json!({"stat_prefix": "h", "rds": {"route_config_name": "r", "config_source": {"ads": {}}}});
    all["http_filters"] = serde_json::from_str(&format!("[{ROUTER}]")).expect("the router is JSON");
    all["@type"] = HCM.into();
    let all = patched(&all, &format!("{{{fields}}}"));
    filters(&format!(r#"{{"name": "h", "typed_config": {all}}}"#))
}

fn inside(field: &str) -> String {
    format!("filter_chains[0].filters[0].typed_config.{field}")
}

/// Only loopback is a door that convenience may leave open.
#[test]
fn tunnel_listeners_that_let_in_anybody_are_warned_about() {
    let listener = |address: &str, fields: &str, chain: &str| {
        let mut listener = base();
        listener["address"]["socket_address"]["address"] = address.into();
        let config = patched(&json!({"@type": TUNNEL}), fields);
        listener["filter_chains"][0]["filters"][0] = json!({"name": "t", "typed_config": config});
        listener["filter_chains"][0] = patched(&listener["filter_chains"][0], chain);
        listener
    };
    let tls = |required: bool| {
        json!({"transport_socket": {"name": "tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": required,
            "common_tls_context": {
                "tls_certificates": [{"certificate_chain": {"filename": "a"}, "private_key": {"filename": "b"}}],
                "validation_context": {"trusted_ca": {"filename": "c"}}}}}})
        .to_string()
    };
    let credential = r#"{"credential_policies": [{"name": "p", "tokens": [{"inline_string": "t"}]}]}"#;
    for (address, fields, chain, open) in [
        ("0.0.0.0", "{}", "{}".to_owned(), true),
        ("10.1.2.3", "{}", tls(false), true),
        ("127.0.0.1", "{}", "{}".to_owned(), false),
        ("0.0.0.0", "{}", tls(true), false),
        ("0.0.0.0", r#"{"policy": "who"}"#, "{}".to_owned(), false),
        ("0.0.0.0", credential, "{}".to_owned(), false),
    ] {
        let parsed = parse(&message(&listener(address, fields, &chain)));
        let warned = parsed.warnings.iter().any(|finding| finding.reason.starts_with("let in whoever reaches"));
        assert_eq!(warned, open, "{address} {fields} {chain}: {:?} {:?}", parsed.warnings, parsed.value);
        assert!(parsed.value.is_ok(), "{address} {fields} {chain}: {:?}", parsed.value);
    }
}

#[test]
fn listeners_that_cannot_be_used() {
    let address = |address: &str| format!(r#"{{"address": {address}}}"#);
    refused(
        &base(),
        parse,
        &[
            (r#"{"name": ""}"#, "name", "is empty"),
            (r#"{"address": null}"#, "address", "is missing"),
            (&address(r#"{"pipe": {"path": "/x"}, "socket_address": null}"#), "address.pipe", "unix sockets"),
            (&address(r#"{"socket_address": {"protocol": "UDP"}}"#), "filter_chains", "no meaning for UDP"),
            (&address(r#"{"socket_address": {"address": "a.b"}}"#), "address.socket_address.address", "not an IP"),
            (r#"{"api_listener": {}}"#, "api_listener", "gRPC clients without a proxy"),
            (r#"{"udp_listener_config": {}}"#, "udp_listener_config", "protocol to UDP"),
            (r#"{"internal_listener": {}}"#, "internal_listener", "bind_to_port false"),
            (r#"{"use_original_dst": true}"#, "use_original_dst", "where traffic goes"),
            (r#"{"additional_addresses": [{}]}"#, "additional_addresses", "a listener of its own"),
            (r#"{"filter_chains": []}"#, "filter_chains", "is empty"),
            (r#"{"listener_filters_timeout": "-1s"}"#, "listener_filters_timeout", "not negative"),
            (
                &format!(r#"{{"listener_filters": [{{"name": "x", "typed_config": {NODE}}}]}}"#),
                "listener_filters[0].typed_config",
                "envoy.config.core.v3.Node is not there",
            ),
            (
                r#"{"listener_filters": [{"name": "p", "typed_config": {"@type":
                "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"}}]}"#,
                "listener_filters[0].typed_config",
                "xff_num_trusted_hops",
            ),
            (r#"{"listener_filters": [{"name": "x"}]}"#, "listener_filters[0].typed_config", "is missing"),
        ],
    );
}

#[test]
fn filter_chains_that_cannot_be_used() {
    let matching = |fields: &str| chain(&format!(r#""filter_chain_match": {{{fields}}}"#));
    let at = |field: &str| format!("filter_chains[0].filter_chain_match.{field}");
    let tcp = format!(r#"{{"name": "t", "typed_config": {{"@type": "{TCP}", "stat_prefix": "t", "cluster": "c"}}}}"#);
    let twice = format!(r#"{{"filter_chains": [{{"filters": [{tcp}]}}, {{"filters": [{tcp}]}}]}}"#);
    let tls = |fields: &str| {
        let kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
        chain(&format!(r#""transport_socket": {{"name": "t", "typed_config": {{"@type": "{kind}", {fields}}}}}"#))
    };
    let context = "filter_chains[0].transport_socket.typed_config";
    let certificate =
        r#""tls_certificates": [{"certificate_chain": {"filename": "/c"}, "private_key": {"filename": "/k"}}]"#;
    refused(
        &base(),
        parse,
        &[
            (&filters(""), "filter_chains[0].filters", "is empty"),
            (&filters(r#"{"name": "x"}"#), "filter_chains[0].filters[0].typed_config", "is missing"),
            (
                &filters(&format!(r#"{{"name": "x", "typed_config": {NODE}}}"#)),
                "filter_chains[0].filters[0].typed_config",
                "who may connect",
            ),
            (&filters(&format!("{tcp}, {tcp}")), "filter_chains[0].filters[0]", "others stand behind it"),
            (&twice, "filter_chains[1].filter_chain_match", "same as that of filter_chains[0]"),
            (&matching(r#""destination_port": 0"#), &at("destination_port"), "not a port"),
            (&matching(r#""server_names": ["*"]"#), &at("server_names[0]"), "leave it out"),
            (&matching(r#""server_names": ["a.*"]"#), &at("server_names[0]"), "neither a name"),
            (&matching(r#""transport_protocol": "quic""#), &at("transport_protocol"), "never detected"),
            (
                &matching(r#""prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 33}]"#),
                &at("prefix_ranges[0].prefix_len"),
                "more than 32",
            ),
            (
                &matching(r#""source_prefix_ranges": [{"address_prefix": "ten"}]"#),
                &at("source_prefix_ranges[0].address_prefix"),
                "not an IP address",
            ),
            (&tls(r#""require_sni": true"#), &format!("{context}.require_sni"), "who may connect"),
            (&tls("").replace(", }", "}"), &format!("{context}.common_tls_context"), "needs a certificate"),
            (
                &tls(r#""common_tls_context": {}"#),
                &format!("{context}.common_tls_context.tls_certificates"),
                "needs a certificate",
            ),
            (
                &tls(&format!(r#""require_client_certificate": true, "common_tls_context": {{{certificate}}}"#)),
                &format!("{context}.common_tls_context.validation_context"),
                "require_client_certificate",
            ),
        ],
    );
}

fn at_fault(fields: &str) -> String {
    let kind = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault";
    format!(r#""typed_config": {{"@type": "{kind}"{fields}}}"#)
}

/// As JSON within a message.
fn written_out(kind: &str) -> String {
    let outer = "type.googleapis.com/udpa.type.v1.TypedStruct";
    let inner = format!("type.googleapis.com/{kind}");
    format!(r#""typed_config": {{"@type": "{outer}", "type_url": "{inner}", "value": {{"debug": "false"}}}}"#)
}

#[test]
fn filters_that_decide_nothing_are_left_out() {
    let cors = r#""typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"}"#;
    let http = |fields: &str| manager(&format!(r#""http_filters": [{{"name": "x", {fields}}}, {ROUTER}]"#));
    let at = inside("http_filters[0].typed_config");
    let written = written_out("stats.PluginConfig");
    let proxy = format!(r#"{{"name": "t", "typed_config": {{"@type": "{TCP}", "stat_prefix": "t", "cluster": "c"}}}}"#);
    warned(
        &base(),
        parse,
        &[
            (&http(cors), &at, "Cors is not there; it decides nothing"),
            (&http(&at_fault("")), &at, "HTTPFault is not there; it decides nothing"),
            (&http(&written), &at, "stats.PluginConfig is not there; it decides nothing"),
            (
                &filters(&format!(r#"{{"name": "stats", {written}}}, {proxy}"#)),
                "filter_chains[0].filters[0].typed_config",
                "stats.PluginConfig is not there; it decides nothing",
            ),
        ],
    );
}

#[test]
fn connection_managers_that_cannot_be_used() {
    let filter = |fields: &str| manager(&format!(r#""http_filters": [{{"name": "x", {fields}}}, {ROUTER}]"#));
    refused(
        &base(),
        parse,
        &[
            (&manager(r#""stat_prefix": """#), &inside("stat_prefix"), "is empty"),
            (&manager(r#""codec_type": "HTTP3""#), &inside("codec_type"), "HTTP3 is not served"),
            (&manager(r#""http_filters": []"#), &inside("http_filters"), "has no router"),
            (
                &manager(&format!(r#""http_filters": [{ROUTER}, {ROUTER}]"#)),
                &inside("http_filters[1]"),
                "behind the router",
            ),
            (&filter(&format!(r#""typed_config": {NODE}"#)), &inside("http_filters[0].typed_config"), "is_optional"),
            (&filter(&at_fault(r#", "max_active_faults": 1"#)), &inside("http_filters[0].typed_config"), "is_optional"),
            (&filter(&written_out("x.Authorizer")), &inside("http_filters[0].typed_config"), "is_optional"),
            (
                &filter(r#""config_discovery": {"type_urls": ["x"]}"#),
                &inside("http_filters[0].config_discovery"),
                "is not there",
            ),
            (&manager(r#""rds": null"#), "filter_chains[0].filters[0].typed_config", "names no routes"),
            (&manager(r#""rds": null, "scoped_routes": {"name": "x"}"#), &inside("scoped_routes"), "names no scopes"),
            (&manager(r#""rds": {"config_source": null}"#), &inside("rds.config_source"), "is missing"),
            (&manager(r#""server_name": "a\nb""#), &inside("server_name"), "control characters"),
            (&manager(r#""max_request_headers_kb": 8193"#), &inside("max_request_headers_kb"), "not from 1 to 8192"),
            (&manager(r#""stream_idle_timeout": "-1s""#), &inside("stream_idle_timeout"), "not negative"),
            (
                &manager(r#""strip_matching_host_port": true, "strip_any_host_port": true"#),
                &inside("strip_matching_host_port"),
                "set one",
            ),
            (
                &manager(r#""scheme_header_transformation": {"scheme_to_overwrite": "ftp"}"#),
                &inside("scheme_header_transformation.scheme_to_overwrite"),
                "neither http nor https",
            ),
            (
                &manager(r#""http2_protocol_options": {"max_concurrent_streams": 0}"#),
                &inside("http2_protocol_options.max_concurrent_streams"),
                "not from 1",
            ),
            (
                &manager(r#""rds": null, "route_config": {"virtual_hosts": [{"name": "v", "domains": []}]}"#),
                &inside("route_config.virtual_hosts[0].domains"),
                "is empty",
            ),
            (&manager(r#""access_log": [{"name": "x"}]"#), &inside("access_log[0].typed_config"), "is missing"),
        ],
    );
}

#[test]
fn other_terminal_filters_that_cannot_be_used() {
    let tcp = |fields: &str| one(TCP, &format!(r#""stat_prefix": "t", {fields}"#));
    let tunnel = |fields: &str| one(TUNNEL, fields);
    refused(
        &base(),
        parse,
        &[
            (&tcp(r#""cluster": """#), &inside("cluster"), "is empty"),
            (&tcp(r#""weighted_clusters": {}"#), &inside("weighted_clusters.clusters"), "add up to 0"),
            (&tcp(r#""cluster": "c", "tunneling_config": {}"#), &inside("tunneling_config"), "where traffic goes"),
            (&tcp(r#""cluster": "c", "max_connect_attempts": 0"#), &inside("max_connect_attempts"), "less than 1"),
            (
                &tcp(
                    r#""cluster": "c", "metadata_match": {"filter_metadata": {"culvert.tunnel": {"agent_header": "x"}}}"#,
                ),
                &inside("metadata_match"),
                "no headers",
            ),
            (&tunnel(r#""handshake_timeout": "0s""#), &inside("handshake_timeout"), "is zero"),
            (
                &tunnel(r#""max_pending_handshakes_per_source": 0"#),
                &inside("max_pending_handshakes_per_source"),
                "less than 1",
            ),
            (&tunnel(r#""ping_interval": "0.5s""#), &inside("ping_interval"), "less than 1 s"),
            (&tunnel(r#""reconnect_window": "-1s""#), &inside("reconnect_window"), "not negative"),
            (&tunnel(r#""max_handshake_bytes": 1"#), &inside("max_handshake_bytes"), "not from 64 to 65535"),
            (&tunnel(r#""allowed_clusters": ["a*b"]"#), &inside("allowed_clusters[0]"), "at the end only"),
            (
                &tunnel(r#""credential_policies": [{"name": "p"}]"#),
                &inside("credential_policies[0].tokens"),
                "refuse every agent",
            ),
            (
                &tunnel(r#""credential_policies": [{"name": "p", "tokens": [{"inline_string": ""}]}]"#),
                &inside("credential_policies[0].tokens[0]"),
                "anybody could present it",
            ),
        ],
    );
}

#[test]
fn listeners_with_something_left_out() {
    let filter = |fields: &str| {
        manager(&format!(r#""http_filters": [{{"name": "x", "typed_config": {NODE}, {fields}}}, {ROUTER}]"#))
    };
    warned(
        &base(),
        parse,
        &[
            (r#"{"enable_reuse_port": false}"#, "enable_reuse_port", "every worker"),
            (r#"{"socket_options": [{}]}"#, "socket_options", "does not honour"),
            (
                r#"{"listener_filters": [{"name": "h", "typed_config": {"@type":
                "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"}}]}"#,
                "listener_filters[0].typed_config",
                "is not there",
            ),
            (&filter(r#""is_optional": true"#), &inside("http_filters[0].typed_config"), "it is optional"),
            (&filter(r#""disabled": true"#), &inside("http_filters[0].typed_config"), "it is disabled"),
            (
                &manager(r#""http_protocol_options": {"allow_absolute_url": false}"#),
                &inside("http_protocol_options.allow_absolute_url"),
                "all the same",
            ),
            (&manager(r#""tracing": {}"#), &inside("tracing"), "nothing is traced"),
            (
                &manager(&format!(r#""access_log": [{{"name": "x", "typed_config": {NODE}}}]"#)),
                &inside("access_log[0].typed_config"),
                "nothing is logged there",
            ),
        ],
    );
}

fn parsed(patch: &str) -> Listener {
    let parsed = parse(&message(&patched(&base(), patch)));
    good(&parsed, patch).clone()
}

#[test]
fn defaults_are_envoys() {
    let listener = parsed("{}");
    assert_eq!(listener.listener_filters_timeout, Duration::from_secs(15));
    assert!(!listener.inspect_tls, "nothing needs it");
    let listener = parsed(&manager(r#""access_log": []"#));
    let NetworkFilter::Http(manager) = &listener.filter_chains[0].filter else { panic!("expected a manager") };
    assert_eq!(&*manager.server_name, "envoy");
    assert_eq!((manager.max_request_headers_bytes, manager.max_headers_count), (60 * 1024, 100));
    assert_eq!(manager.stream_idle_timeout, Some(Duration::from_secs(300)));
    assert_eq!((manager.request_timeout, manager.request_headers_timeout), (None, Some(Duration::from_secs(10))));
    assert_eq!(
        (manager.drain_timeout, manager.delayed_close_timeout),
        (Duration::from_secs(5), Duration::from_secs(1))
    );
    assert!(manager.generate_request_id && !manager.use_remote_address && !manager.normalize_path);
    assert_eq!(manager.router, RouterOptions::default());
    assert!(matches!(&manager.routes, RouteSource::Rds { name, .. } if &**name == "r"), "{:?}", manager.routes);
}

#[test]
fn what_is_set_is_kept() {
    assert_eq!(parsed(r#"{"bind_to_port": false, "address": null}"#).address, None);
    let any = r#"{"address": {"socket_address": {"address": "::", "ipv4_compat": true}}}"#;
    assert!(parsed(any).place().is_some_and(|place| place.ipv4_compat), "IPv4 too");
    assert!(parsed(&chain(r#""filter_chain_match": {"server_names": ["A.com"]}"#)).inspect_tls, "SNI is matched");
    let matches = parsed(&chain(
        r#""filter_chain_match": {"server_names": ["*.A.com"], "source_ports": [1],
            "prefix_ranges": [{"address_prefix": "10.1.2.3", "prefix_len": 8}]}"#,
    ));
    let matches = &matches.filter_chains[0].matches;
    assert_eq!(&*matches.server_names[0], "*.a.com");
    assert_eq!(matches.prefix_ranges[0], Cidr { address: "10.0.0.0".parse().unwrap(), length: 8 });

    let listener =
        parsed(&manager(r#""rds": null, "route_config": {"virtual_hosts": []}, "stream_idle_timeout": "0s""#));
    let NetworkFilter::Http(manager) = &listener.filter_chains[0].filter else { panic!("expected a manager") };
    assert_eq!(manager.stream_idle_timeout, None);
    let RouteSource::Inline(routes) = &manager.routes else { panic!("expected routes, got {:?}", manager.routes) };
    assert!(routes.validate_clusters, "inline: clusters are there already");

    let listener = parsed(&one(
        TCP,
        r#""stat_prefix": "t", "cluster": "c", "metadata_match": {"filter_metadata": {"culvert.tunnel": {"agent": "e"}}}"#,
    ));
    let NetworkFilter::Tcp(proxy) = &listener.filter_chains[0].filter else { panic!("expected a proxy") };
    let ClusterChoice::One(target) = &proxy.clusters else { panic!("expected one cluster, got {:?}", proxy.clusters) };
    let agent = target.agent.as_ref().map(|agent| &agent.selector);
    assert_eq!(agent, Some(&AgentSelector::Fixed("e".into())));

    let listener = parsed(&one(TUNNEL, r#""protocol": "HTTP2", "allowed_clusters": ["edge-*", "one"]"#));
    let NetworkFilter::Tunnel(server) = &listener.filter_chains[0].filter else { panic!("expected a tunnel server") };
    assert_eq!(server.protocol, ProtocolChoice::Fixed(TunnelProtocol::Http2));
    assert_eq!(server.reconnect_window, Duration::from_secs(5), "requests wait for an agent that is just gone");
    assert_eq!(server.max_handshakes_per_second_per_source.map(u32::from), Some(500), "by default");
    let off = r#""max_handshakes_per_second_per_source": 0, "reconnect_window": "0s""#;
    let listener = parsed(&one(TUNNEL, off));
    let NetworkFilter::Tunnel(off) = &listener.filter_chains[0].filter else { panic!("expected a tunnel server") };
    assert_eq!((off.max_handshakes_per_second_per_source, off.reconnect_window), (None, Duration::ZERO), "off");
    let allowed = |name: &str| server.allowed_clusters.iter().any(|pattern| pattern.matches(name));
    assert!(allowed("edge-1") && allowed("one") && !allowed("two"), "{:?}", server.allowed_clusters);
}
