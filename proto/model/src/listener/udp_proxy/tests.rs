use std::time::Duration;

use serde_json::{Value, json};

use super::DatagramBuffer;
use crate::listener::{Listener, Place, Transport, parse};
use crate::testing::{good, message, patched, refused, warned};

const UDP: &str = "type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig";
const ROUTE: &str = "type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.Route";

fn base() -> Value {
    json!({
        "name": "dns", "address": {"socket_address": {"protocol": "UDP", "address": "127.0.0.1", "port_value": 53}},
        "listener_filters": [{"name": "udp", "typed_config": {"@type": UDP, "stat_prefix": "dns", "cluster": "c"}}],
    })
}

const CAPSULES: &str = r#"[{"name": "http_capsule", "typed_config": {
    "@type": "type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.session.http_capsule.v3.FilterConfig"}}]"#;

/// The listener with these fields in its filter.
fn with(fields: &str) -> String {
    let filter = json!({"@type": UDP, "stat_prefix": "dns", "cluster": "c"});
    let filter = patched(&filter, &format!("{{{fields}}}"));
    format!(r#"{{"listener_filters": [{{"name": "udp", "typed_config": {filter}}}]}}"#)
}

fn tunneling(fields: &str) -> String {
    let config = json!({"proxy_host": "edge", "target_host": "10.0.0.53", "default_target_port": 53});
    let config = patched(&config, &format!("{{{fields}}}"));
    with(&format!(r#""session_filters": {CAPSULES}, "tunneling_config": {config}"#))
}

fn inside(field: &str) -> String {
    format!("listener_filters[0].typed_config.{field}")
}

fn parsed(patch: &str) -> Listener {
    let parsed = parse(&message(&patched(&base(), patch)));
    good(&parsed, patch).clone()
}

#[test]
fn the_defaults_are_envoys() {
    let listener = parsed("{}");
    let place = Place { address: "127.0.0.1:53".parse().unwrap(), transport: Transport::Udp, ipv4_compat: false };
    assert_eq!(listener.place(), Some(place), "where it is bound");
    let udp = listener.udp.expect("it is a listener of datagrams");
    assert_eq!((&*udp.stat_prefix, &*udp.cluster), ("dns", "c"), "names");
    assert_eq!(udp.idle_timeout, Duration::from_secs(60), "idle timeout");
    assert_eq!((udp.max_downstream_datagram, udp.max_upstream_datagram), (1500, 1500), "sizes of datagrams");
    assert_eq!(udp.tunneling, None, "no tunnelling");
}

#[test]
fn a_matcher_may_name_the_cluster() {
    let route = json!({"on_no_match": {"action": {"name": "r", "typed_config": {"@type": ROUTE, "cluster": "d"}}}});
    let udp = parsed(&with(&format!(r#""cluster": null, "matcher": {route}"#))).udp.expect("it is there");
    assert_eq!(&*udp.cluster, "d", "cluster");
}

#[test]
fn sizes_and_times_are_taken() {
    let size = r#""upstream_socket_config": {"max_rx_datagram_size": "9000"}, "idle_timeout": "5s""#;
    let mut patch: Value = serde_json::from_str(&with(size)).unwrap();
    patch["udp_listener_config"] = json!({"downstream_socket_config": {"max_rx_datagram_size": "65527"}});
    let udp = parsed(&patch.to_string()).udp.expect("it is there");
    assert_eq!((udp.max_downstream_datagram, udp.max_upstream_datagram), (65_527, 9000), "sizes of datagrams");
    assert_eq!(udp.idle_timeout, Duration::from_secs(5), "idle timeout");
}

#[test]
fn tunnelling_names_its_target_as_the_rfc_says() {
    let cases = [
        ("", "edge", "/.well-known/masque/udp/10.0.0.53/53/"),
        (r#""proxy_port": 443"#, "edge:443", "/.well-known/masque/udp/10.0.0.53/53/"),
        (r#""proxy_host": "::1", "proxy_port": 443"#, "[::1]:443", "/.well-known/masque/udp/10.0.0.53/53/"),
        (r#""target_host": "2001:db8::42""#, "edge", "/.well-known/masque/udp/2001%3Adb8%3A%3A42/53/"),
    ];
    for (fields, authority, path) in cases {
        let tunneling = parsed(&tunneling(fields)).udp.and_then(|udp| udp.tunneling.clone()).expect("it tunnels");
        assert_eq!((&*tunneling.authority, &*tunneling.path), (authority, path), "{fields}");
        assert_eq!((tunneling.max_connect_attempts, tunneling.buffer), (1, None), "{fields}");
    }
    let fields = r#""retry_options": {"max_connect_attempts": 3}, "buffer_options": {},
        "headers_to_add": [{"header": {"key": "X-A", "value": "b"}}]"#;
    let all = parsed(&tunneling(fields)).udp.and_then(|udp| udp.tunneling.clone()).expect("it tunnels");
    assert_eq!(all.max_connect_attempts, 3, "attempts");
    assert_eq!(all.buffer, Some(DatagramBuffer { datagrams: 1024, bytes: 16_384 }), "Envoy's defaults");
    assert_eq!(&*all.headers.request_add[0].name, "x-a", "a header");
}

#[test]
fn what_cannot_be_honoured_is_refused_with_its_path() {
    let tcp = json!({"filters": [{"name": "t", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "t", "cluster": "c"}}]});
    let chains = format!(r#"{{"filter_chains": [{tcp}]}}"#);
    let other =
        format!(r#""session_filters": [{{"name": "x", "typed_config": {{"@type": "{ROUTE}", "cluster": "c"}}}}]"#);
    let rx = r#"{"udp_listener_config": {"downstream_socket_config": {"max_rx_datagram_size": "70000"}}}"#;
    refused(
        &base(),
        parse,
        &[
            (&chains, "filter_chains", "no meaning for UDP"),
            (r#"{"listener_filters": []}"#, "listener_filters", "needs one"),
            (r#"{"listener_filters": [{"name": "x"}]}"#, "listener_filters[0].typed_config", "is missing"),
            (r#"{"bind_to_port": false}"#, "bind_to_port", "remove it"),
            (
                r#"{"address": {"socket_address": {"ipv4_compat": true}}}"#,
                "address.socket_address.ipv4_compat",
                "of its own",
            ),
            (rx, "udp_listener_config.downstream_socket_config.max_rx_datagram_size", "65527"),
            (r#"{"udp_listener_config": {"quic_options": {}}}"#, "udp_listener_config.quic_options", "HTTP/3"),
            (&with(r#""cluster": null"#), "listener_filters[0].typed_config", "names no cluster"),
            (&with(r#""cluster": null, "matcher": {}"#), &inside("matcher.on_no_match"), "is missing"),
            (&with(r#""idle_timeout": "0s""#), &inside("idle_timeout"), "zero"),
            (&with(r#""use_original_src_ip": true"#), &inside("use_original_src_ip"), "source"),
            (&with(r#""use_per_packet_load_balancing": true"#), &inside("use_per_packet_load_balancing"), "keeps to"),
            (&with(r#""session_filters": [{"name": "x"}]"#), &inside("session_filters[0].typed_config"), "is missing"),
            (&with(&other), &inside("session_filters[0].typed_config"), "where traffic goes"),
            (&with(&format!(r#""session_filters": {CAPSULES}"#)), &inside("session_filters"), "tunneling_config"),
            (&tunneling(r#""target_host": "%X%""#), &inside("tunneling_config.target_host"), "command operators"),
            (&tunneling(r#""target_host": "a/b""#), &inside("tunneling_config.target_host"), "nor a host name"),
            (&tunneling(r#""proxy_host": "a b""#), &inside("tunneling_config.proxy_host"), "nor a host name"),
            (&tunneling(r#""proxy_port": 70000"#), &inside("tunneling_config.proxy_port"), "not a port"),
            (&tunneling(r#""default_target_port": 0"#), &inside("tunneling_config.default_target_port"), "not a port"),
            (&tunneling(r#""use_post": true"#), &inside("tunneling_config.use_post"), "POST"),
            (
                &tunneling(r#""buffer_options": {"max_buffered_bytes": "10000000"}"#),
                &inside("tunneling_config.buffer_options.max_buffered_bytes"),
                "1048576",
            ),
            (
                &tunneling(r#""retry_options": {"max_connect_attempts": 1000}"#),
                &inside("tunneling_config.retry_options.max_connect_attempts"),
                "64",
            ),
        ],
    );
}

#[test]
fn what_changes_little_is_warned_about() {
    let config = r#"{"proxy_host": "edge", "target_host": "10.0.0.53", "default_target_port": 53}"#;
    let bare = with(&format!(r#""tunneling_config": {config}"#));
    warned(
        &base(),
        parse,
        &[
            (&with(r#""hash_policies": [{"source_ip": true}]"#), &inside("hash_policies"), "hashes"),
            (&bare, &inside("session_filters"), "capsules all the same"),
            (&with(r#""access_log_options": {}"#), &inside("access_log_options"), "when they end"),
        ],
    );
}
