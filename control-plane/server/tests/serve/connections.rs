//! Who may connect, as whom, for how long, and with how much.

use culvert_api::envoy::service::discovery::v3::DiscoveryRequest;
use culvert_api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use culvert_api::type_url::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT};
use tonic::Code;
use tonic::transport::Channel;

use crate::harness::{Certificates, Daemon, Folder, Stream, asks, cluster, cluster_names, node};

async fn clusters_of(
    id: &str,
    channel: Channel,
) -> Stream<DiscoveryRequest, culvert_api::envoy::service::discovery::v3::DiscoveryResponse> {
    let (mut stream, queue) = Stream::queue();
    let responses = AggregatedDiscoveryServiceClient::new(channel).stream_aggregated_resources(queue).await.unwrap();
    stream.responses = Some(responses.into_inner());
    stream.send(asks(id, CLUSTER)).await;
    stream
}

fn tls_args<'a>(files: &'a Certificates, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["--tls-cert", &*files.cert, "--tls-key", &*files.key, "--tls-client-ca", &*files.authority];
    args.extend(more);
    args
}

#[tokio::test]
async fn a_node_may_not_claim_what_its_certificate_does_not_say() {
    let theirs =
        format!("selector: {{identity: \"spiffe://culvert.test/node/n\"}}\nresources:\n- {}", cluster("mine", 1));
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1)), ("b.yaml", &theirs)]);
    let files = folder.certificates();
    let args = tls_args(&files, &["--client-identity", "spiffe://culvert.test/node/{id}"]);
    let daemon = Daemon::start(&folder, &args).await;
    let channel = daemon.tls_channel(&files, Some(())).await.unwrap();
    let mut own = clusters_of("n", channel.clone()).await;
    assert_eq!(cluster_names(&own.next().await.resources), ["a", "mine"], "the selector goes by the certificate");
    let mut foreign = clusters_of("other", channel).await;
    let status = foreign.failure().await;
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(status.message().contains("does not let it be node \"other\""), "{status:?}");
    daemon.eventually("/metrics", |text| text.contains("culvert_control_identities_refused_total 1\n")).await;
    daemon.terminate().await;
    // On plaintext nobody has that identity.
    let daemon = Daemon::start(&folder, &[]).await;
    let mut plain = clusters_of("n", daemon.channel().await).await;
    assert_eq!(cluster_names(&plain.next().await.resources), ["a"]);
    daemon.terminate().await;
}

#[tokio::test]
async fn new_files_of_tls_are_used_and_streams_live_on() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let former = folder.certificates();
    let daemon = Daemon::start(&folder, &tls_args(&former, &[])).await;
    let mut stream = clusters_of("n", daemon.tls_channel(&former, Some(())).await.unwrap()).await;
    let first = stream.next().await;
    stream.answer(&first, None).await;
    // Another authority, and all that it issued, in the same files.
    let latter = folder.certificates();
    daemon.eventually("/metrics", |text| text.contains("culvert_control_tls_loads_accepted_total 1\n")).await;
    let mut second = clusters_of("m", daemon.tls_channel(&latter, Some(())).await.unwrap()).await;
    assert_eq!(cluster_names(&second.next().await.resources), ["a"]);
    folder.write("b.yaml", &cluster("b", 1));
    assert_eq!(cluster_names(&stream.next().await.resources), ["a", "b"], "the stream from before lives on");
    // What makes no sense changes nothing.
    std::fs::write(&latter.key, "no key").unwrap();
    daemon.eventually("/metrics", |text| text.contains("culvert_control_tls_loads_refused_total 1\n")).await;
    daemon.tls_channel(&latter, Some(())).await.unwrap();
    daemon.terminate().await;
}

#[tokio::test]
async fn a_connection_ends_at_its_age_and_its_stream_with_ok() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &["--max-connection-age", "1"]).await;
    let mut stream = daemon.sotw().await;
    stream.send(asks("n", CLUSTER)).await;
    stream.next().await;
    assert!(stream.ended().await, "the stream ends with OK");
    daemon.eventually("/metrics", |text| text.contains("culvert_control_connections_retired_total 1\n")).await;
    daemon.terminate().await;
}

#[tokio::test]
async fn requests_of_a_million_names_are_refused_and_their_memory_comes_back() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let names: Vec<String> = (0..1_000_000).map(|number| format!("name-{number}")).collect();
    let before = daemon.memory();
    for _ in 0..3 {
        let mut stream = daemon.sotw().await;
        let type_url = CLUSTER_LOAD_ASSIGNMENT.into();
        let request =
            DiscoveryRequest { node: node("n"), type_url, resource_names: names.clone(), ..Default::default() };
        stream.send(request).await;
        assert_eq!(stream.failure().await.code(), Code::InvalidArgument);
    }
    let grown = daemon.memory().saturating_sub(before);
    assert!(grown < 60_000, "three requests left {grown} kB behind");
    // What 60,000 clusters of a large Envoy ask for is fine.
    let mut stream = daemon.sotw().await;
    let type_url = CLUSTER_LOAD_ASSIGNMENT.into();
    let resource_names = names.into_iter().take(60_000).chain(["a".to_owned()]).collect();
    stream.send(DiscoveryRequest { node: node("n"), type_url, resource_names, ..Default::default() }).await;
    stream.send(DiscoveryRequest { type_url: CLUSTER.into(), ..Default::default() }).await;
    assert_eq!(cluster_names(&stream.next().await.resources), ["a"]);
    daemon.terminate().await;
}
