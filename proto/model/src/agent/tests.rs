use serde_json::{Value, json};

use super::*;
use crate::testing::{good, message, patched, refused};

fn base() -> Value {
    json!({"name": "a", "cluster": "edge", "hosting_listener": "l", "servers": [{"address": "127.0.0.1:9999"}]})
}

#[test]
fn agents_that_cannot_be_used() {
    let server = |server: &str| format!(r#"{{"servers": [{server}]}}"#);
    refused(
        &base(),
        parse,
        &[
            (r#"{"name": ""}"#, "name", "is empty"),
            (r#"{"cluster": ""}"#, "cluster", "is empty"),
            (r#"{"hosting_listener": ""}"#, "hosting_listener", "is empty"),
            (r#"{"servers": []}"#, "servers", "at least one"),
            (&server("{}"), "servers[0]", "names no source"),
            (&server(r#"{"address": "x"}"#), "servers[0].address", "host:port"),
            (&server(r#"{"address": "x:0"}"#), "servers[0].address", "host:port"),
            (&server(r#"{"address": "::1:80"}"#), "servers[0].address", "in brackets"),
            (&server(r#"{"eds": {"service_name": "s"}}"#), "servers[0].eds.eds_config", "is missing"),
            (&server(r#"{"eds": {"eds_config": {"ads": {}}}}"#), "servers[0].eds.service_name", "is empty"),
            (&server(r#"{"address": "x:1", "dns_refresh_rate": "0s"}"#), "servers[0].dns_refresh_rate", "is zero"),
            (r#"{"connection_num": 0}"#, "connection_num", "not from 1 to 1024"),
            (r#"{"max_servers": 0}"#, "max_servers", "not from 1 to 1024"),
            (r#"{"max_connection_age": "0s"}"#, "max_connection_age", "is zero"),
            (r#"{"weight": 129}"#, "weight", "not from 1 to 128"),
            (r#"{"connect_timeout": "-1s"}"#, "connect_timeout", "not negative"),
            (
                r#"{"reconnect_base_interval": "2s", "reconnect_max_interval": "1s"}"#,
                "reconnect_max_interval",
                "less than reconnect_base_interval",
            ),
            (r#"{"credential": {"policy": "p"}}"#, "credential.credential", "is missing"),
            (r#"{"credential": {"credential": {"inline_string": "x"}}}"#, "credential.policy", "is empty"),
            (
                r#"{"credential": {"policy": "p", "credential": {"inline_string": "x"}, "bind_to_tls": true}}"#,
                "credential.bind_to_tls",
                "needs transport_socket",
            ),
        ],
    );
}

#[test]
fn agents_have_the_documented_defaults() {
    let parsed = parse(&message(&base()));
    let agent = good(&parsed, "the base");
    assert_eq!((agent.connection_num, agent.weight), (1, 10));
    assert_eq!(agent.connect_timeout, Duration::from_secs(15));
    assert_eq!((agent.reconnect_base, agent.reconnect_max), (Duration::from_millis(500), Duration::from_secs(30)));
    assert_eq!((agent.retry_times, agent.host_name.clone()), (None, None));
    assert_eq!(agent.protocol, ProtocolChoice::Negotiated);
    assert_eq!((agent.max_servers, agent.max_connection_age, &*agent.region), (2, None, ""));
}

#[test]
fn servers_are_addresses_names_and_assignments() {
    let json = patched(
        &base(),
        r#"{"servers": [{"address": "[::1]:80"}, {"address": "Tunnel.example:443", "dns_refresh_rate": "1s"},
            {"eds": {"service_name": "s", "eds_config": {"ads": {}}}}]}"#,
    );
    let parsed = parse(&message(&json));
    let servers = &good(&parsed, "three servers").servers;
    let five = Duration::from_secs(5);
    let ip = Address::Ip("[::1]:80".parse().unwrap());
    assert_eq!(servers[0], ServerSource::Address { address: ip, dns_refresh: five });
    let name = Address::Name { host: "tunnel.example".into(), port: 443 };
    assert_eq!(servers[1], ServerSource::Address { address: name, dns_refresh: Duration::from_secs(1) });
    assert!(matches!(&servers[2], ServerSource::Eds { service_name, .. } if &**service_name == "s"), "{servers:?}");
}
