//! Envoy's reverse-tunnel configuration as a whole: filter, cluster, listener address, bootstrap extensions.

use serde_json::{Value, json};

use super::*;
use crate::bootstrap::{self, Bootstrap};
use crate::cluster::Discovery;
use crate::listener::{Listener, NetworkFilter, ReverseAddress};
use crate::testing::{good, message, patched, refused};
use crate::tunnel::id_format::IdFormat;

const FILTER: &str = "type.googleapis.com/envoy.extensions.filters.network.reverse_tunnel.v3";
const BOOTSTRAP: &str = "type.googleapis.com/envoy.extensions.bootstrap.reverse_tunnel";
const CLUSTER: &str =
    "type.googleapis.com/envoy.extensions.clusters.reverse_connection.v3.ReverseConnectionClusterConfig";

fn tunnel_listener(fields: &Value) -> Value {
    let mut filter = json!({"@type": format!("{FILTER}.ReverseTunnel")});
    filter.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    json!({
        "name": "tunnel",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}},
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.reverse_tunnel", "typed_config": filter}]}],
    })
}

fn server(fields: &Value) -> (TunnelServer, usize) {
    let parsed = crate::listener::parse(&message(&tunnel_listener(fields)));
    let listener: &Listener = parsed.value.as_ref().expect("the listener");
    let NetworkFilter::Tunnel(server) = &listener.filter_chains[0].filter else { panic!("not a tunnel filter") };
    ((**server).clone(), parsed.warnings.len())
}

#[test]
fn the_filters_defaults_are_envoys() {
    let (server, warnings) = server(&json!({}));
    let reverse = &server.reverse;
    assert!(!server.mosn && reverse.leaves_tls && !reverse.joins_named_cluster, "as in Envoy: {reverse:?}");
    assert_eq!((&*reverse.method, &*reverse.path), ("GET", "/reverse_connections/request"));
    assert_eq!(reverse.mode, HandshakeMode::Plain);
    assert_eq!((reverse.ping_interval, server.handshake_timeout), (Duration::from_secs(2), Duration::from_secs(10)));
    assert_eq!(server.protocol, ProtocolChoice::Fixed(TunnelProtocol::Http2));
    assert_eq!(warnings, 0);
}

#[test]
fn what_the_filter_says_is_kept() {
    let (server, warnings) = server(&json!({
        "request_method": "POST", "request_path": "/x", "use_http_upgrade": true, "ping_interval": "0.5s",
        "handshake_timeout": "3s", "required_cluster_name": "cloud", "enable_connection_limit": true,
        "skip_rebalancing": true, "auto_close_connections": true,
        "validation": {"node_id_format": "%DOWNSTREAM_PEER_URI_SAN%", "emit_dynamic_metadata": true},
        "jwt_validator": {"issuer": "i", "audiences": ["a"], "local_jwks": {"inline_string": "{}"}},
    }));
    let reverse = &server.reverse;
    assert_eq!((&*reverse.method, &*reverse.path, reverse.mode), ("POST", "/x", HandshakeMode::Upgrade));
    assert_eq!(server.handshake_timeout, Duration::from_secs(3), "a field that the package's files do not have");
    assert_eq!(reverse.required_cluster.as_deref(), Some("cloud"));
    assert_eq!(reverse.node_format, IdFormat::of_handshake("%DOWNSTREAM_PEER_URI_SAN%").ok());
    let jwt = reverse.jwt.as_ref().expect("the validator");
    assert_eq!((&*jwt.token_header, jwt.expected.clock_skew), ("authorization", Duration::from_secs(60)));
    assert_eq!(&*jwt.claims_namespace, "envoy.filters.network.reverse_tunnel.jwt");
    assert!(reverse.limited && !jwt.allow_missing_or_failed);
    assert_eq!(warnings, 2, "auto_close_connections and emit_dynamic_metadata");
}

#[test]
fn filters_that_cannot_be_used() {
    let inside = |fields: &str| {
        let fields: Value = serde_json::from_str(fields).unwrap();
        tunnel_listener(&fields).to_string()
    };
    let at = |field: &str| format!("filter_chains[0].filters[0].typed_config.{field}");
    for (fields, field, text) in [
        (r#"{"handshake_timeout": "301s"}"#, "handshake_timeout", "more than 300 s"),
        (r#"{"request_path": "/a b"}"#, "request_path", "white space"),
        (
            r#"{"validation": {"node_id_format": "%CEL(x)%"}}"#,
            "validation.node_id_format",
            "`%CEL%` is not a known operator",
        ),
        (r#"{"jwt_validator": {"issuer": "i"}}"#, "jwt_validator.local_jwks", "is missing"),
    ] {
        refused(&tunnel_listener(&json!({})), crate::listener::parse, &[(&inside(fields), &at(field), text)]);
    }
}

fn reverse_cluster(config: &Value) -> Value {
    let mut typed = json!({"@type": CLUSTER});
    typed.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    json!({"name": "agents", "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": {"name": "envoy.clusters.reverse_connection", "typed_config": typed}})
}

#[test]
fn clusters_choose_agents() {
    let config =
        json!({"host_id_format": "%REQ(x-node)%", "tenant_id_format": "%REQ(x-tenant)%", "cleanup_interval": "60s"});
    let parsed = crate::cluster::parse(&message(&reverse_cluster(&config)));
    let cluster = good(&parsed, "the cluster");
    let Discovery::Reverse(reverse) = &cluster.discovery else { panic!("{:?}", cluster.discovery) };
    assert!(reverse.tenant_id.is_some());
    refused(
        &reverse_cluster(&config),
        crate::cluster::parse,
        &[
            (r#"{"lb_policy": "ROUND_ROBIN"}"#, "cluster_type.name", "CLUSTER_PROVIDED"),
            (
                r#"{"cluster_type": {"typed_config": {"host_id_format": "%DYNAMIC_METADATA(a:b)%"}}}"#,
                "cluster_type.typed_config.host_id_format",
                "is not there",
            ),
            (
                r#"{"cluster_type": {"typed_config": {"tenant_id_format": "%"}}}"#,
                "cluster_type.typed_config.tenant_id_format",
                "write `%%`",
            ),
            (
                r#"{"transport_socket": {"name": "tls", "typed_config": {"auto_host_sni": true,
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"}}}"#,
                "transport_socket",
                "agents have no host names",
            ),
            (
                r#"{"transport_socket": {"name": "tls", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"}},
                    "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http2_protocol_options": {}},
                    "upstream_http_protocol_options": {"auto_sni": true}}}}"#,
                "typed_extension_protocol_options",
                "tunnels are opened for the requests of all hosts",
            ),
        ],
    );
}

fn rc_listener(address: &str) -> Value {
    let mut listener = tunnel_listener(&json!({}));
    listener["address"]["socket_address"] =
        json!({"address": address, "port_value": 0, "resolver_name": "envoy.resolvers.reverse_connection"});
    listener
}

#[test]
fn rc_addresses() {
    let mut listener = rc_listener("rc://edge-1:edge:tenant-a@cloud:3");
    listener["additional_addresses"] = json!([{"address": rc_listener("rc://a:b:c@d:1")["address"]}]);
    let parsed = crate::listener::parse(&message(&listener));
    let listener = good(&parsed, "the listener");
    let address = |node: &str, cluster: &str, tenant: &str, remote: &str, count| ReverseAddress {
        node: node.into(),
        cluster: cluster.into(),
        tenant: tenant.into(),
        remote_cluster: remote.into(),
        count,
    };
    let expected = [address("edge-1", "edge", "tenant-a", "cloud", 3), address("a", "b", "c", "d", 1)];
    assert_eq!((listener.address, listener.reverse.as_slice()), (None, &expected[..]));
    let path = "address.socket_address.address";
    for address in ["rc://", "rc://a:b@c:1", "rc://a:b:c:d@e:1", "rc://a:b:c@d", "rc://a:b:c@d:0", "rc://a:b:c@:1"] {
        let patch = rc_listener(address).to_string();
        refused(&rc_listener("rc://a:b:c@d:1"), crate::listener::parse, &[(&patch, path, "is not rc://")]);
    }
    for (patch, path, text) in [
        (rc_listener("rc://:b:c@d:1"), path, "is empty"),
        (
            json!({"address": {"socket_address": {"resolver_name": "other"}}}),
            "address.socket_address.resolver_name",
            "which rc:// addresses need",
        ),
        (
            json!({"additional_addresses": [{"address": {"socket_address": {"address": "1.1.1.1", "port_value": 1}}}]}),
            "additional_addresses[0].address",
            "a listener of its own",
        ),
    ] {
        refused(&rc_listener("rc://a:b:c@d:1"), crate::listener::parse, &[(&patch.to_string(), path, text)]);
    }
}

fn extended(extensions: &Value) -> Value {
    json!({"node": {"id": "n", "cluster": "c"}, "bootstrap_extensions": extensions})
}

fn downstream(fields: &Value) -> Value {
    let kind = "downstream_socket_interface.v3.DownstreamReverseConnectionSocketInterface";
    let config = patched(&json!({"@type": format!("{BOOTSTRAP}.{kind}")}), &fields.to_string());
    extended(&json!([{"name": "envoy.bootstrap.reverse_tunnel.downstream_socket_interface", "typed_config": config}]))
}

#[test]
fn bootstrap_extensions() {
    let parsed = bootstrap::parse(&message(&downstream(&json!({
        "stat_prefix": "edge", "max_reconnect_backoff": "7s",
        "http_handshake": {"request_path": "/x", "use_http_upgrade": true, "handshake_timeout": "4s",
            "additional_headers": [{"header": {"key": "Authorization", "value": "Bearer 100%%"}}]},
    }))));
    let bootstrap: &Bootstrap = good(&parsed, "the initiators' extension");
    let reverse = &bootstrap.reverse;
    assert_eq!(
        (reverse.handshake_timeout, reverse.max_reconnect_backoff),
        (Duration::from_secs(4), Duration::from_secs(7))
    );
    assert!(reverse.handshake.upgrade && reverse.handshake.leaves_tls && &*reverse.handshake.path == "/x");
    assert_eq!(reverse.handshake.additional_headers, [("authorization".into(), "Bearer 100%".into())]);

    let kind = "upstream_socket_interface.v3.UpstreamReverseConnectionSocketInterface";
    let parsed = bootstrap::parse(&message(&extended(&json!([{"name": "x", "typed_config": {
        "@type": format!("{BOOTSTRAP}.{kind}"), "ping_failure_threshold": 5, "enable_tenant_isolation": true,
        "max_connections_per_node": 9,
    }}]))));
    let reverse = &good(&parsed, "the responders' extension").reverse;
    let seen = (reverse.ping_failure_threshold, reverse.tenant_isolation, reverse.max_connections_per_node);
    assert_eq!(seen, (5, true, 9));

    let at = |field: &str| format!("bootstrap_extensions[0].typed_config.http_handshake.{field}");
    let header = |key: &str, value: &str| {
        let headers = json!({"http_handshake": {"additional_headers": [{"header": {"key": key, "value": value}}]}});
        downstream(&headers).to_string()
    };
    for (patch, field, text) in [
        (header("a", "%FILE_CONTENT(/x)%"), "additional_headers[0].header.value", "has an operator"),
        (header("host", "b"), "additional_headers[0].header.key", "the handshake's own"),
        (header("x-envoy-reverse-tunnel-node-id", "b"), "additional_headers[0].header.key", "the handshake's own"),
        (header("a", "b\r\nc: d"), "additional_headers[0].header.value", "control characters"),
        (downstream(&json!({"http_handshake": {"request_path": "x"}})).to_string(), "request_path", "begins with /"),
    ] {
        refused(&downstream(&json!({})), bootstrap::parse, &[(&patch, &at(field), text)]);
    }
}
