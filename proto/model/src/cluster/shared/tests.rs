use serde_json::{Value, json};

use crate::cluster::{Balancer, Discovery, parse};
use crate::testing::{good, message, refused, warned};

const OURS: &str = "type.googleapis.com/culvert.tunnel.v1.TunnelCluster";

fn sharing(sources: &Value) -> Value {
    json!({"name": "pay", "cluster_type": {"name": "any", "typed_config": {"@type": OURS, "sources": sources}}})
}

#[test]
fn what_it_says_is_kept() {
    let sources = json!([{"registered_as": "edge", "host_names": ["edge-*", "*.eu", "one"]},
        {"registered_as": "far", "priority": 1}]);
    let mut config = sharing(&sources);
    config["lb_policy"] = "LEAST_REQUEST".into();
    let parsed = parse(&message(&config));
    let cluster = good(&parsed, "the cluster");
    assert_eq!(cluster.balancer, Balancer::LeastRequest { choices: 2 }, "its own");
    let Discovery::Tunnels(sources) = &cluster.discovery else { panic!("{:?}", cluster.discovery) };
    for (index, cluster, agent, expected) in [
        (0, "edge", "edge-1", true),
        (0, "edge", "a.eu", true),
        (0, "edge", "one", true),
        (0, "edge", "one-1", false),
        (0, "far", "edge-1", false),
        (1, "far", "whatever", true),
        (1, "far", "", true),
    ] {
        assert_eq!(sources[index].has(cluster, agent), expected, "source {index}: {agent:?} of {cluster:?}");
    }
    assert_eq!((sources[0].priority, sources[1].priority), (0, 1));
}

#[test]
fn what_cannot_be_is_refused() {
    let typed = |fields: &str| format!(r#"{{"cluster_type": {{"typed_config": {{"sources": {fields}}}}}}}"#);
    let at = |field: &str| format!("cluster_type.typed_config.{field}");
    let many = serde_json::to_string(&vec![json!({"registered_as": "edge"}); 65]).unwrap();
    let tls = r#"{"transport_socket": {"name": "tls", "typed_config":
        {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"}}}"#;
    refused(
        &sharing(&json!([{"registered_as": "edge"}])),
        parse,
        &[
            (&typed("[]"), &at("sources"), "is empty"),
            (&typed(&many), &at("sources"), "65 entries"),
            (&typed(r#"[{"registered_as": ""}]"#), &at("sources[0].registered_as"), ""),
            (&typed(r#"[{"registered_as": "pay"}]"#), &at("sources[0].registered_as"), "is the cluster at hand"),
            (&typed(r#"[{"registered_as": "edge", "host_names": ["a*b"]}]"#), &at("sources[0].host_names[0]"), "*"),
            (r#"{"load_assignment": {"cluster_name": "pay"}}"#, "cluster_type", "stands beside endpoints"),
            (r#"{"lb_policy": "CLUSTER_PROVIDED"}"#, "lb_policy", "is not there"),
            (tls, "transport_socket", "whose hosts are tunnels"),
        ],
    );
}

#[test]
fn what_has_no_meaning_is_warned_about() {
    let whole = r#"{"cluster_type": {"typed_config": {"sources": [{"registered_as": "edge"}, {"registered_as": "edge", "host_names": ["a"]}]}}}"#;
    warned(
        &sharing(&json!([{"registered_as": "edge"}])),
        parse,
        &[
            (r#"{"upstream_connection_options": {"tcp_keepalive": {}}}"#, "upstream_connection_options", "opened by"),
            (whole, "cluster_type.typed_config.sources[1].registered_as", "nobody left"),
        ],
    );
}
