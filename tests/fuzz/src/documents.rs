//! Text that people and tools write: files of the control plane, and bootstraps.

use culvert_api::document::{Limits, Problem, Syntax, load, load_any, parse};
use culvert_api::envoy::config::bootstrap::v3::Bootstrap;
use culvert_api::json::{Secrets, any_to_json};

pub(crate) const WORDS: &[&str] = &[
    "\"@type\": ",
    "type.googleapis.com/",
    "envoy.config.cluster.v3.Cluster",
    "envoy.config.listener.v3.Listener",
    "envoy.config.route.v3.RouteConfiguration",
    "google.protobuf.Struct",
    "google.protobuf.Any",
    "google.protobuf.Duration",
    "google.protobuf.StringValue",
    "\"value\"",
    "name: a",
    "connect_timeout: 1s",
    "STATIC",
    "{",
    "}",
    "[",
    "]",
    "- ",
    ": ",
    "\n",
    "\n---\n",
    "\n  ",
    "&a ",
    "*a",
    "<<: ",
    "!!binary ",
    "!!str ",
    "| ",
    "> ",
    "# ",
    "\t",
    "null",
    "~",
    "true",
    "yes",
    "0x10",
    ".inf",
    "-0",
    "1e400",
    "NaN",
    "\"1.000000001s\"",
    "\\u0000",
    "static_resources: ",
    "node: ",
    "admin: ",
];

const LIMITS: Limits = Limits { max_bytes: 1 << 20, max_depth: 60, max_nodes: 100_000, max_alias_nodes: 1000 };

/// The first byte says which syntax. What was understood is written as JSON and read again, to the same message; mistakes
/// have a place in the text.
pub(crate) fn resources(data: &[u8]) {
    let Some((&how, text)) = data.split_first() else { return };
    let nodes = match parse(text, syntax(how), &LIMITS) {
        Ok(nodes) => nodes,
        Err(problems) => return check(&problems, text),
    };
    for node in &nodes {
        let any = match load_any(node) {
            Ok(any) => any,
            Err(problems) => {
                check(&problems, text);
                continue;
            }
        };
        let written = any_to_json(&any, Secrets::Show);
        let json = written.to_string();
        let nodes = parse(json.as_bytes(), Syntax::Json, &Limits::default())
            .unwrap_or_else(|problems| panic!("{json} is no JSON: {problems:?}"));
        let again = load_any(&nodes[0]).unwrap_or_else(|problems| panic!("{json} is not read again: {problems:?}"));
        assert_eq!(any_to_json(&again, Secrets::Show), written, "written and read again");
        // Neither may panic, whatever a message says.
        drop(any_to_json(&any, Secrets::Redact));
        drop(culvert_model::parse_any(&any.type_url, &any.value));
    }
}

/// A whole bootstrap: the first byte says which syntax.
pub(crate) fn bootstraps(data: &[u8]) {
    let Some((&how, text)) = data.split_first() else { return };
    match load::<Bootstrap>(text, syntax(how)) {
        Err(problems) => check(&problems, text),
        Ok(loaded) => {
            let parsed = culvert_model::bootstrap::parse(&loaded.message);
            if let Err(errors) = parsed.value {
                assert!(!errors.is_empty(), "refused without a reason");
                for error in errors {
                    check(&[loaded.problem(&error.path, error.reason)], text);
                }
            }
        }
    }
}

fn syntax(how: u8) -> Syntax {
    if how & 1 == 0 { Syntax::Yaml } else { Syntax::Json }
}

fn check(problems: &[Problem], text: &[u8]) {
    assert!(!problems.is_empty(), "refused without a reason");
    let lines = text.split(|byte| matches!(byte, b'\n' | b'\r')).count();
    for problem in problems {
        assert!(problem.at.line as usize <= lines + 1, "{problem:?} behind the last of {lines} lines");
        assert!(!problem.reason.is_empty(), "{problem:?}");
    }
}

const CLUSTER: &str = "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: a\nconnect_timeout: 1.5s\n\
    load_assignment: {cluster_name: a, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 80}}}}]}]}\n";

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let listener = r#"{"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": "l", "metadata": {"filter_metadata": {"a": {"b": [1, null, "c", {"d": true}]}}}, "filter_chains": [{"filters": [{"name": "f", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "s", "cluster": "a"}}]}]}"#;
    let unknown = r#"{"@type": "type.googleapis.com/nobody.knows.It", "value": "AAEC"}"#;
    vec![
        format!("\0{CLUSTER}").into_bytes(),
        format!("\0{CLUSTER}---\n- {listener}\n").into_bytes(),
        format!("\x01{listener}").into_bytes(),
        format!("\x01{unknown}").into_bytes(),
        b"\0a: &a [1, 2]\nb: *a\nc: |\n  text\n  more\nd: !!str 1\n".to_vec(),
    ]
}

pub(crate) fn bootstrap_seeds() -> Vec<Vec<u8>> {
    let cluster = CLUSTER.replacen("\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\n", "", 1);
    let cluster = cluster.trim().replace('\n', "\n    ");
    let head = "node: {id: n, cluster: c}\nadmin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}\n";
    let dynamic = "dynamic_resources: {ads_config: {api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: a}}]}, cds_config: {ads: {}, resource_api_version: V3}}\n";
    vec![
        format!("\0{head}").into_bytes(),
        format!("\0{head}{dynamic}static_resources:\n  clusters:\n  - {cluster}\n").into_bytes(),
        b"\x01{\"node\": {\"id\": \"n\"}, \"bootstrap_extensions\": []}".to_vec(),
    ]
}
