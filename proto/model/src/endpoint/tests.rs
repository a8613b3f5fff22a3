use serde_json::{Value, json};

use super::*;
use crate::testing::{good, message, refused, warned};

fn base() -> Value {
    json!({"cluster_name": "c", "endpoints": [{"lb_endpoints": [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 80}}}},
    ]}]})
}

/// One endpoint with these fields.
fn with(endpoint: &str) -> String {
    format!(r#"{{"endpoints": [{{"lb_endpoints": [{endpoint}]}}]}}"#)
}

fn at(address: &str, port: u32) -> String {
    format!(r#"{{"endpoint": {{"address": {{"socket_address": {{"address": "{address}", "port_value": {port}}}}}}}}}"#)
}

#[test]
fn assignments_that_cannot_be_used() {
    let first = "endpoints[0].lb_endpoints[0]";
    let address = &format!("{first}.endpoint.address.socket_address.address");
    let heavy = format!(
        r#"{{"endpoints": [{{"lb_endpoints": [{}, {}]}}]}}"#,
        at("127.0.0.1", 1).replacen('{', r#"{"load_balancing_weight": 4294967295, "#, 1),
        at("127.0.0.1", 2).replacen('{', r#"{"load_balancing_weight": 1, "#, 1),
    );
    let pipe = with(r#"{"endpoint": {"address": {"pipe": {"path": "/run/x"}}}}"#);
    let udp = with(
        r#"{"endpoint": {"address": {"socket_address": {"protocol": "UDP", "address": "127.0.0.1", "port_value": 1}}}}"#,
    );
    refused(
        &base(),
        parse,
        &[
            (r#"{"cluster_name": ""}"#, "cluster_name", "is empty"),
            (&with(&at("example.com", 80)), address, "not an IP address"),
            (&with(&at("fe80::1%eth0", 80)), address, "zones"),
            (&with(&at("127.0.0.256", 80)), address, "not an IP address"),
            (&with(&at("127.0.0.1", 0)), &format!("{first}.endpoint.address"), "port 0"),
            (&with(&at("127.0.0.1", 65536)), &format!("{first}.endpoint.address.socket_address.port_value"), "65535"),
            (&pipe, &format!("{first}.endpoint.address.pipe"), "unix sockets"),
            (&udp, &format!("{first}.endpoint.address.socket_address.protocol"), "UDP"),
            (&with("{}"), &format!("{first}.endpoint"), "is missing"),
            (&with(r#"{"endpoint": {}}"#), &format!("{first}.endpoint.address"), "is missing"),
            (&with(r#"{"endpoint_name": "x"}"#), &format!("{first}.endpoint_name"), "where traffic goes"),
            (
                &with(&at("127.0.0.1", 1).replacen('{', r#"{"load_balancing_weight": 0, "#, 1)),
                &format!("{first}.load_balancing_weight"),
                "less than 1",
            ),
            (&heavy, "endpoints[0].lb_endpoints", "add up to 4294967296"),
            (r#"{"endpoints": [{"priority": 129}]}"#, "endpoints[0].priority", "not from 0 to 128"),
            (r#"{"endpoints": [{"load_balancing_weight": 0}]}"#, "endpoints[0].load_balancing_weight", "less than 1"),
            (
                r#"{"endpoints": [{"leds_cluster_locality_config": {}}]}"#,
                "endpoints[0].leds_cluster_locality_config",
                "where traffic goes",
            ),
            (r#"{"named_endpoints": {"a": {}}}"#, "named_endpoints", "where traffic goes"),
            (r#"{"policy": {"overprovisioning_factor": 0}}"#, "policy.overprovisioning_factor", "less than 1"),
        ],
    );
}

#[test]
fn assignments_with_something_left_out() {
    let twice = format!(r#"{{"endpoints": [{{"lb_endpoints": [{0}, {0}]}}]}}"#, at("127.0.0.1", 80));
    warned(
        &base(),
        parse,
        &[
            (&twice, "endpoints[0].lb_endpoints[1]", "127.0.0.1:80 stands here a second time"),
            (r#"{"policy": {"endpoint_stale_after": "1s"}}"#, "policy.endpoint_stale_after", "does not honour"),
            (
                r#"{"endpoints": [{"lb_endpoints": [{"endpoint": {
                    "health_check_config": {"port_value": 1},
                    "address": {"socket_address": {"address": "::1", "port_value": 1}}
                }}]}]}"#,
                "endpoints[0].lb_endpoints[0].endpoint.health_check_config",
                "not probed",
            ),
        ],
    );
}

#[test]
fn endpoints_keep_order_weight_health_and_metadata() {
    let json = json!({"cluster_name": "c",
    "policy": {"drop_overloads": [{"category": "d", "drop_percentage": {"numerator": 5, "denominator": "TEN_THOUSAND"}}]},
    "endpoints": [
        {"priority": 2, "lb_endpoints": [{"health_status": "DRAINING", "endpoint": {
            "hostname": "edge", "address": {"socket_address": {"address": "::1", "port_value": 1}}}}]},
        {"locality": {"zone": "z"}, "load_balancing_weight": 7, "lb_endpoints": [{
            "load_balancing_weight": 3, "metadata": {"filter_metadata": {"a": {"n": 1, "f": 0.5, "s": ["x", null]}}},
            "endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 2}}}}]},
    ]});
    let parsed = parse(&message(&json));
    let endpoints = good(&parsed, "the assignment");
    assert_eq!(endpoints.drops, [("d".into(), 500)], "drops of a million");
    let priorities: Vec<_> = endpoints.localities.iter().map(|locality| locality.priority).collect();
    assert_eq!(priorities, [0, 2], "sorted by priority, the gap stays");
    let first = &endpoints.localities[0];
    assert_eq!((&*first.zone, first.weight, first.endpoints[0].weight), ("z", Some(7), 3));
    assert_eq!(first.endpoints[0].metadata["a"], r#"{"f":0.5,"n":1,"s":["x",null]}"#);
    let second = &endpoints.localities[1].endpoints[0];
    assert_eq!((&*second.hostname, second.health), ("edge", Health::Draining));
}

#[test]
fn no_endpoints_and_very_many_are_both_fine() {
    let parsed = parse(&message(&json!({"cluster_name": "c"})));
    assert!(good(&parsed, "an empty assignment").localities.is_empty(), "no localities");
    let many: Vec<_> = (0..100_000_u32)
        .map(|index| {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + index).to_string();
            api::LbEndpoint {
                host_identifier: Some(api::lb_endpoint::HostIdentifier::Endpoint(api::Endpoint {
                    address: Some(core::Address {
                        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
                            address,
                            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(80)),
                            ..Default::default()
                        })),
                    }),
                    ..Default::default()
                })),
                ..Default::default()
            }
        })
        .collect();
    let endpoints = vec![api::LocalityLbEndpoints { lb_endpoints: many, ..Default::default() }];
    let parsed = parse(&api::ClusterLoadAssignment { cluster_name: "c".into(), endpoints, ..Default::default() });
    assert_eq!(good(&parsed, "100,000 endpoints").localities[0].endpoints.len(), 100_000);
}

#[test]
fn host_names() {
    let cases = [
        ("example.com", true),
        ("a_b.example.com.", true),
        ("x", true),
        ("", false),
        (".", false),
        ("a..b", false),
        ("-a.com", false),
        ("a b", false),
        ("127.0.0.256", false),
        ("a/b", false),
    ];
    for (name, expected) in cases {
        assert_eq!(is_host_name(name), expected, "{name:?}");
    }
}
