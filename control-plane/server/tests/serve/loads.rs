//! Load reports and the times in client status.

use std::time::{Duration, SystemTime};

use culvert_api::culvert::control::v1 as api;
use culvert_api::culvert::control::v1::control_service_client::ControlServiceClient;
use culvert_api::document::{self, Syntax};
use culvert_api::envoy::config::core::v3::{Address, Node};
use culvert_api::envoy::config::endpoint::v3::{ClusterStats, UpstreamEndpointStats, UpstreamLocalityStats};
use culvert_api::envoy::service::load_stats::v3::load_reporting_service_client::LoadReportingServiceClient;
use culvert_api::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use culvert_api::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use culvert_api::envoy::service::status::v3::{ClientStatusRequest, ConfigStatus};
use culvert_api::google::rpc::Status as Refusal;
use culvert_api::type_url::CLUSTER;
use serde_json::{Value, json};

use crate::harness::{Daemon, Folder, Stream, asks, cluster, node};

async fn open(daemon: &Daemon, node: Option<Node>) -> Stream<LoadStatsRequest, LoadStatsResponse> {
    let (mut stream, queue) = Stream::queue();
    stream.send(LoadStatsRequest { node, ..Default::default() }).await;
    let mut client = LoadReportingServiceClient::new(daemon.channel().await);
    stream.responses = Some(client.stream_load_stats(queue).await.unwrap().into_inner());
    stream
}

fn report(cluster: &str, successes: u64, in_progress: u64) -> LoadStatsRequest {
    let locality = UpstreamLocalityStats {
        total_successful_requests: successes,
        total_requests_in_progress: in_progress,
        ..Default::default()
    };
    let stats = ClusterStats {
        cluster_name: cluster.into(),
        upstream_locality_stats: vec![locality],
        total_dropped_requests: 1,
        ..Default::default()
    };
    LoadStatsRequest { cluster_stats: vec![stats], ..Default::default() }
}

#[tokio::test]
async fn reports_of_nodes_are_added_up() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &["--load-report-interval", "3"]).await;
    let features = vec!["envoy.lrs.supports_send_all_clusters".to_owned()];
    let knows_all = Node { id: "n".into(), client_features: features, ..Default::default() };
    let mut first = open(&daemon, Some(knows_all)).await;
    let wanted = first.next().await;
    assert!(wanted.send_all_clusters && wanted.clusters.is_empty(), "{wanted:?}");
    assert_eq!(wanted.load_reporting_interval.map(|interval| interval.seconds), Some(3));

    let mut second = open(&daemon, node("m")).await;
    let wanted = second.next().await;
    assert_eq!((wanted.send_all_clusters, wanted.clusters), (false, vec!["a".to_owned()]));
    folder.write("b.yaml", &cluster("b", 1));
    assert_eq!(second.next().await.clusters, ["a", "b"], "it is told of a new cluster");

    first.send(report("a", 5, 2)).await;
    second.send(report("a", 3, 1)).await;
    let line = "culvert_control_load_requests_total{cluster=\"a\",result=\"success\"} 8\n";
    daemon.eventually("/metrics", |text| text.contains(line)).await;
    let gauge = "culvert_control_load_requests_in_progress{cluster=\"a\"}";
    daemon.eventually("/metrics", |text| text.contains(&format!("{gauge} 3\n"))).await;
    drop(second);
    daemon.eventually("/metrics", |text| text.contains(&format!("{gauge} 2\n"))).await;
    daemon.eventually("/loads", |text| text.contains("\"successes\": 8")).await;
    let mut client = ControlServiceClient::new(daemon.channel().await);
    let request = api::GetLoadRequest { clusters: vec!["a".into()] };
    let load = client.get_load(request).await.unwrap().into_inner();
    let seen = &load.clusters[0];
    assert_eq!((load.nodes, seen.successes, seen.dropped, seen.localities.len()), (1, 8, 2, 1), "{load:?}");
    daemon.terminate().await;
}

#[tokio::test]
async fn endpoints_are_told_apart_where_that_is_wanted() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &["--load-report-endpoints"]).await;
    let mut stream = open(&daemon, node("n")).await;
    assert!(stream.next().await.report_endpoint_granularity, "nobody asked for endpoints");
    let address = "{socket_address: {address: \"::1\", port_value: 7}}";
    let address = document::load(address.as_bytes(), Syntax::Yaml).unwrap().message;
    let of_endpoint = |successes: u64, in_progress: u64| {
        let mut report = report("a", successes, in_progress);
        report.cluster_stats[0].upstream_locality_stats[0].upstream_endpoint_stats = vec![UpstreamEndpointStats {
            address: Some(Address::clone(&address)),
            total_successful_requests: successes,
            total_requests_in_progress: in_progress,
            ..Default::default()
        }];
        report
    };
    let shows = async |successes: u64, in_progress: u64| {
        let expected = json!({ "[::1]:7": {
            "successes": successes, "errors": 0, "issued": 0, "in_progress": in_progress } });
        let of = |text: &str| serde_json::from_str::<Value>(text).unwrap()["clusters"][0]["endpoints"].clone();
        daemon.eventually("/loads", |text| of(text) == expected).await;
    };
    stream.send(of_endpoint(5, 3)).await;
    shows(5, 3).await;
    stream.send(of_endpoint(2, 1)).await;
    shows(7, 1).await;
    let mut client = ControlServiceClient::new(daemon.channel().await);
    let load = client.get_load(api::GetLoadRequest { clusters: vec!["a".into()] }).await.unwrap().into_inner();
    let expected =
        api::EndpointLoad { address: "[::1]:7".into(), successes: 7, in_progress: 1, ..api::EndpointLoad::default() };
    assert_eq!(load.clusters[0].endpoints, [expected], "by gRPC");
    drop(stream);
    shows(7, 0).await;
    daemon.terminate().await;
}

#[tokio::test]
async fn a_report_of_nobody_is_refused() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let mut stream = open(&daemon, None).await;
    assert_eq!(stream.failure().await.code(), tonic::Code::InvalidArgument);
    daemon.terminate().await;
}

#[tokio::test]
async fn client_status_says_when() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1)), ("b.yaml", &cluster("b", 1))]);
    let before = SystemTime::now() - Duration::from_secs(1);
    let daemon = Daemon::start(&folder, &[]).await;
    let mut status = ClientStatusDiscoveryServiceClient::new(daemon.channel().await);
    let mut fetch = async || {
        let answer = status.fetch_client_status(ClientStatusRequest::default()).await.unwrap().into_inner();
        let configs = answer.config.into_iter().flat_map(|config| config.generic_xds_configs);
        let seen = configs.map(|one| {
            let at = one.last_updated.map(|at| SystemTime::try_from(at).unwrap());
            let attempt = one.error_state.clone().and_then(|error| error.last_update_attempt);
            (one.name.clone(), one.config_status(), at, attempt)
        });
        seen.collect::<Vec<_>>()
    };
    let mut stream = daemon.sotw().await;
    stream.send(asks("n", CLUSTER)).await;
    let first = stream.next().await;
    let sent = fetch().await;
    assert!(sent.iter().all(|one| one.1 == ConfigStatus::Stale && one.2 > Some(before)), "{sent:?}");
    stream.answer(&first, None).await;
    daemon.eventually("/push", |text| text.contains("\"pending\": 0")).await;
    let accepted = fetch().await;
    assert!(accepted.iter().all(|one| one.1 == ConfigStatus::Synced && one.2 >= sent[0].2), "{accepted:?}");
    folder.write("b.yaml", &cluster("b", 2));
    let second = stream.next().await;
    let refusal = Refusal { code: 13, message: "b: no such thing".into(), ..Default::default() };
    stream.answer(&second, Some(refusal)).await;
    daemon.eventually("/push", |text| text.contains("refused")).await;
    let refused = fetch().await;
    assert_eq!((refused[0].1, refused[1].1), (ConfigStatus::Synced, ConfigStatus::Error));
    assert_eq!(refused[0].2, accepted[0].2, "what was not touched keeps its time");
    assert!(refused[1].2 > accepted[1].2 && refused[1].3.is_some(), "{refused:?}");
    daemon.terminate().await;
}

#[tokio::test]
async fn client_status_shows_no_keys_and_no_contents_where_none_are_wanted() {
    let tls = "{\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext,
      common_tls_context: {tls_certificates: [{certificate_chain: {inline_string: chain}, private_key: {inline_string: TOP-SECRET}}]}}";
    let keyed =
        cluster("a", 1).replace("type: STATIC", &format!("transport_socket: {{name: tls, typed_config: {tls}}}"));
    let folder = Folder::new(&[("a.yaml", &keyed)]);
    let daemon = Daemon::start(&folder, &[]).await;
    let (_stream, first) = daemon.settled("n").await;
    assert!(String::from_utf8_lossy(&first.resources[0].value).contains("TOP-SECRET"), "the node itself has its key");
    let mut status = ClientStatusDiscoveryServiceClient::new(daemon.channel().await);
    let mut fetch = async |exclude_resource_contents: bool| {
        let request = ClientStatusRequest { exclude_resource_contents, ..Default::default() };
        let answer = status.fetch_client_status(request).await.unwrap().into_inner();
        answer.config[0].generic_xds_configs[0].clone()
    };
    let shown = fetch(false).await;
    let content = shown.xds_config.unwrap_or_else(|| panic!("no content of {}", shown.name));
    let content = String::from_utf8_lossy(&content.value);
    assert!(content.contains("chain") && content.contains("[redacted]"), "expected all but the key, saw {content}");
    assert!(!content.contains("TOP-SECRET"), "a key in {content}");
    let without = fetch(true).await;
    assert_eq!((without.name.as_str(), without.xds_config), ("a", None), "contents that nobody wants");
    daemon.terminate().await;
}
