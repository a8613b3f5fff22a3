//! Client status discovery, as clients and operators ask for it.

use culvert_api::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use culvert_api::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use culvert_api::envoy::service::status::v3::{ClientConfig, ClientStatusRequest, ConfigStatus};
use culvert_api::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use culvert_api::envoy::r#type::matcher::v3::{NodeMatcher, StringMatcher};
use culvert_api::type_url::CLUSTER_LOAD_ASSIGNMENT;
use tonic::Code;

use crate::access::{Bearer, open, tokens, with};
use crate::harness::{Daemon, Folder, asks, cluster};

type Client = ClientStatusDiscoveryServiceClient<
    tonic::service::interceptor::InterceptedService<tonic::transport::Channel, Bearer>,
>;

fn matching(id: &str) -> NodeMatcher {
    let pattern = Some(MatchPattern::Exact(id.to_owned()));
    NodeMatcher {
        node_id: Some(StringMatcher { match_pattern: pattern, ..StringMatcher::default() }),
        ..NodeMatcher::default()
    }
}

async fn shown(client: &mut Client, node_matchers: Vec<NodeMatcher>) -> Vec<ClientConfig> {
    let request = ClientStatusRequest { node_matchers, ..ClientStatusRequest::default() };
    client.fetch_client_status(request).await.unwrap().into_inner().config
}

fn ids(configs: &[ClientConfig]) -> Vec<&str> {
    configs.iter().map(|config| config.node.as_ref().unwrap().id.as_str()).collect()
}

#[tokio::test]
async fn a_node_sees_its_own_status_alone_and_an_operator_all_or_those_that_it_asks_for() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let file = tokens(&folder);
    let rules = ["--client-identity", "spiffe://culvert.test/node/{id}"];
    let operators = ["--operator-identity", "spiffe://culvert.test/operator/*"];
    let daemon = Daemon::start(&folder, &[&["--tokens", file.as_str()][..], &rules, &operators].concat()).await;
    let mut streams = Vec::new();
    for (token, id) in [("secret-m", "m"), ("secret-n", "n")] {
        let mut stream = open(&daemon, Some(token), id).await.unwrap();
        stream.next().await;
        streams.push(stream);
    }
    for (token, matched, expected) in [
        ("secret-n", &[][..], &["n"][..]),
        ("secret-m", &[], &["m"]),
        ("secret-n", &["m"], &[]),
        ("secret-n", &["m", "n"], &["n"]),
        ("secret-o", &[], &["m", "n"]),
        ("secret-o", &["m"], &["m"]),
        ("secret-o", &["m", "x", "n"], &["m", "n"]),
        ("secret-o", &["x"], &[]),
    ] {
        let mut client = ClientStatusDiscoveryServiceClient::new(with(&daemon, Some(token)).await);
        let configs = shown(&mut client, matched.iter().map(|id| matching(id)).collect()).await;
        assert_eq!(ids(&configs), expected, "{token} asks for {matched:?}");
        // The stream answers the same.
        let node_matchers = matched.iter().map(|id| matching(id)).collect();
        let asking = tokio_stream::iter([ClientStatusRequest { node_matchers, ..ClientStatusRequest::default() }]);
        let mut answers = client.stream_client_status(asking).await.unwrap().into_inner();
        let streamed = answers.message().await.unwrap().expect("an answer").config;
        assert_eq!(ids(&streamed), expected, "{token} asks for {matched:?} over a stream");
    }
    let mut stranger = ClientStatusDiscoveryServiceClient::new(with(&daemon, None).await);
    let refused = stranger.fetch_client_status(ClientStatusRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    daemon.terminate().await;
}

#[tokio::test]
async fn what_a_node_has_not_asked_for_is_not_sent() {
    let assignment = |name: &str| {
        format!(
            "{{\"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: {name}}}\n"
        )
    };
    let folder =
        Folder::new(&[("a.yaml", &assignment("a")), ("b.yaml", &assignment("b")), ("c.yaml", &cluster("c", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let mut stream = daemon.sotw().await;
    let resource_names = vec!["a".to_owned()];
    let request = DiscoveryRequest { resource_names, ..asks("n", CLUSTER_LOAD_ASSIGNMENT) };
    stream.send(request.clone()).await;
    let DiscoveryResponse { nonce: response_nonce, version_info, .. } = stream.next().await;
    stream.send(DiscoveryRequest { response_nonce, version_info, ..request }).await;
    daemon.eventually("/push", |text| text.contains("\"pending\": 0")).await;
    let mut client = ClientStatusDiscoveryServiceClient::new(with(&daemon, None).await);
    let configs = shown(&mut client, Vec::new()).await;
    let mut seen: Vec<_> =
        configs[0].generic_xds_configs.iter().map(|one| (one.name.as_str(), one.config_status())).collect();
    seen.sort_by_key(|(name, _)| *name);
    let expected = [("a", ConfigStatus::Synced), ("b", ConfigStatus::NotSent), ("c", ConfigStatus::NotSent)];
    assert_eq!(seen, expected, "one that it asked for, one that it did not, and a type that it did not");
    daemon.terminate().await;
}
