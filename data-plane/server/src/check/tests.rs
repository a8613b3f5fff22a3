use clap::Parser;

use super::*;
use crate::options::Options;
use crate::start::{StartError, validate};
use crate::testing::certificate;

/// Every line that a bootstrap in a file would be refused with.
async fn refusals(text: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (certificate("a.test"), certificate("b.test"));
    for (name, content) in [("a.pem", &one.0), ("a-key.pem", &one.1), ("b-key.pem", &other.1)] {
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    let file = dir.path().join("b.yaml");
    let folder = dir.path().to_str().unwrap();
    std::fs::write(&file, text.replace("DIR", folder)).unwrap();
    let options = Options::try_parse_from(["culvert-proxy", "-c", file.to_str().unwrap()]).unwrap();
    let started = match crate::bootstrap::load(&options) {
        Ok(started) => started,
        Err(errors) => return errors,
    };
    let before: HashSet<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let errors = match validate(&started).await {
        Ok(()) => Vec::new(),
        Err(StartError::Configuration(errors)) => errors,
        Err(error) => panic!("expected wrong configuration, saw {error}"),
    };
    let after: HashSet<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(before, after, "checking makes no file");
    errors.into_iter().map(|error| error.replace(folder, "DIR")).collect()
}

const UPSTREAM: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const DOWNSTREAM: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// One mistake of every stage, each on a line of its own, beside the same resources in good health.
fn every_stage() -> String {
    format!(
        r#"node: {{id: a}}
static_resources:
  secrets:
  - {{name: broken, tls_certificate: {{certificate_chain: {{filename: DIR/a.pem}}, private_key: {{filename: DIR/b-key.pem}}}}}}
  clusters:
  - {{name: refused, type: STATIC, lb_policy: MAGLEV}}
  - {{name: undecoded, type: STATIC, connect_timeout: soon}}
  - name: c1
    type: STATIC
    transport_socket: {{name: tls, typed_config: {{"@type": {UPSTREAM}, common_tls_context: {{validation_context: {{trusted_ca: {{filename: DIR/none.pem}}}}}}}}}}
  listeners:
  - name: l0
    nonsense: 1
  - name: l1
    address: {{socket_address: {{address: 127.0.0.1, port_value: 4711}}}}
    filter_chains:
    - filter_chain_match: {{server_names: [a.test]}}
      transport_socket: {{name: tls, typed_config: {{"@type": {DOWNSTREAM}, common_tls_context: {{tls_certificates: [{{certificate_chain: {{filename: DIR/no-chain.pem}}, private_key: {{filename: DIR/no-key.pem}}}}]}}}}}}
      filters:
      - name: t
        typed_config: {{"@type": type.googleapis.com/culvert.tunnel.v1.TunnelServer, stat_prefix: t, credential_policies: [{{name: p, tokens: [{{filename: DIR/no-token}}]}}]}}
    - filter_chain_match: {{server_names: [b.test]}}
      transport_socket: {{name: tls, typed_config: {{"@type": {DOWNSTREAM}, common_tls_context: {{tls_certificates: [{{certificate_chain: {{filename: DIR/a.pem}}, private_key: {{filename: DIR/b-key.pem}}}}]}}}}}}
      filters:
      - name: h
        typed_config:
          "@type": {MANAGER}
          stat_prefix: h
          access_log: [{{name: f, typed_config: {{"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: DIR/access.log}}}}]
          route_config: {{name: r, validate_clusters: true, virtual_hosts: [{{name: v, domains: ["*"], routes: [
            {{match: {{prefix: /a}}, route: {{cluster: nowhere}}}}, {{match: {{prefix: /b}}, route: {{cluster: refused}}}}, {{match: {{prefix: /}}, route: {{cluster: c1}}}}]}}]}}
          http_filters: [{{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]
"#
    )
}

#[tokio::test]
async fn mistakes_of_all_stages_are_named_in_one_run_each_with_its_place() {
    let text = every_stage();
    let errors = refusals(&text).await;
    let line = |part: &str| text.lines().position(|line| line.contains(part)).unwrap() + 1;
    let expected = [
        (line("name: broken"), "static_resources.secrets[0]: ", "does not belong"),
        (line("MAGLEV"), "static_resources.clusters[0].lb_policy: ", "MAGLEV"),
        (line("soon"), "static_resources.clusters[1].connect_timeout: ", "soon"),
        (
            line("none.pem"),
            "static_resources.clusters[2].transport_socket.typed_config.common_tls_context.validation_context.trusted_ca: ",
            "none.pem",
        ),
        (line("nonsense"), "static_resources.listeners[0].nonsense: ", "remove it"),
        (line("name: l0"), "static_resources.listeners[0].address: ", "set socket_address"),
        (line("name: l0"), "static_resources.listeners[0].filter_chains: ", "is empty"),
        (
            line("no-chain.pem"),
            "static_resources.listeners[1].filter_chains[0].transport_socket.typed_config.common_tls_context.tls_certificates[0].certificate_chain: ",
            "no-chain.pem",
        ),
        (
            line("no-key.pem"),
            "static_resources.listeners[1].filter_chains[0].transport_socket.typed_config.common_tls_context.tls_certificates[0].private_key: ",
            "no-key.pem",
        ),
        (line("- name: t") - 1, "static_resources.listeners[1].filter_chains[0].filters: ", "no-token"),
        (
            line("DIR/b-key.pem}}]"),
            "static_resources.listeners[1].filter_chains[1].transport_socket.typed_config.common_tls_context: ",
            "does not belong",
        ),
        (line("- name: h") - 1, "static_resources.listeners[1].filter_chains[1].filters: ", "'nowhere'"),
    ];
    for (line, path, reason) in &expected {
        let found = errors.iter().any(|error| {
            error.starts_with(&format!("DIR/b.yaml:{line}:")) && error.contains(path) && error.contains(reason)
        });
        assert!(found, "line {line}: {path}{reason} is missing in {errors:#?}");
    }
    assert_eq!(errors.len(), expected.len(), "and nothing else: {errors:#?}");
}

#[tokio::test]
async fn what_is_good_is_not_complained_of_and_no_access_log_is_made() {
    let mut text = every_stage();
    for (bad, good) in [
        ("lb_policy: MAGLEV", "lb_policy: RANDOM"),
        ("soon", "1s"),
        ("none.pem", "a.pem"),
        ("DIR/b-key.pem", "DIR/a-key.pem"),
        ("no-chain.pem", "a.pem"),
        ("no-key.pem", "a-key.pem"),
        ("no-token", "a.pem"),
        ("nowhere", "c1"),
        ("  - name: l0\n    nonsense: 1\n", ""),
    ] {
        assert!(text.contains(bad), "{bad} is in the text");
        text = text.replace(bad, good);
    }
    assert_eq!(refusals(&text).await, Vec::<String>::new());
}
