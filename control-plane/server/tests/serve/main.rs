//! The binary, and a client that speaks the protocol to it message by message.

#[cfg(test)]
mod access;
#[cfg(test)]
mod bounds;
#[cfg(test)]
mod connections;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod inventory;
#[cfg(test)]
mod loads;
#[cfg(test)]
mod mosn;
#[cfg(test)]
mod operations;
#[cfg(test)]
mod operator;
#[cfg(test)]
mod replicas;
#[cfg(test)]
mod services;
#[cfg(test)]
mod status;

use std::time::Duration;

use culvert_api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use culvert_api::envoy::service::status::v3::ClientStatusRequest;
use culvert_api::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use culvert_api::google::rpc::Status as Refusal;
use culvert_api::type_url::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, SECRET};
use harness::{Daemon, Folder, Stream, asks, cluster, cluster_names, delta_asks, names, node, seconds};

#[tokio::test]
async fn state_of_the_world_pushes_edits_and_acknowledges_quietly() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let (mut stream, first) = daemon.settled("n").await;
    assert_eq!(cluster_names(&first.resources), ["a"]);

    folder.write("b.yaml", &cluster("b", 1));
    let second = stream.next().await;
    assert_eq!(cluster_names(&second.resources), ["a", "b"], "an edit is pushed, nothing else before it");
    assert_ne!(first.version_info, second.version_info);
    stream.answer(&second, None).await;

    folder.remove("a.yaml");
    let third = stream.next().await;
    assert_eq!(cluster_names(&third.resources), ["b"], "what is gone is left out");
    stream.answer(&third, None).await;
    daemon.eventually("/nodes", |text| text.contains("\"state\": \"SYNCED\"")).await;
    daemon.terminate().await;
}

#[tokio::test]
async fn a_refused_response_is_not_sent_again_and_is_visible() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let (mut stream, _) = daemon.settled("n").await;
    folder.write("a.yaml", &cluster("a", 2));
    let second = stream.next().await;
    let refusal = Refusal { code: 13, message: "cluster a: I do not like it".into(), details: Vec::new() };
    stream.answer(&second, Some(refusal)).await;
    daemon
        .eventually("/nodes", |text| text.contains("I do not like it") && text.contains("\"state\": \"ERROR\""))
        .await;
    assert!(stream.is_quiet().await, "the same content is not sent again");

    let mut status = ClientStatusDiscoveryServiceClient::new(daemon.channel().await);
    let status = status.fetch_client_status(ClientStatusRequest::default()).await.unwrap().into_inner();
    let config = &status.config[0].generic_xds_configs[0];
    let details = config.error_state.as_ref().map(|error| error.details.as_str());
    assert_eq!((config.name.as_str(), details), ("a", Some("cluster a: I do not like it")));

    folder.write("a.yaml", &cluster("a", 3));
    let third = stream.next().await;
    assert_eq!(seconds(&third.resources[0]), 3, "its next content is sent");
    daemon.terminate().await;
}

#[tokio::test]
async fn delta_sends_only_what_changed_and_what_is_gone() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1)), ("b.yaml", &cluster("b", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let mut stream = daemon.delta().await;
    stream.send(delta_asks("n", CLUSTER)).await;
    let first = stream.next().await;
    assert_eq!(names(&first), ["a", "b"]);
    stream.answer(&first, None).await;
    folder.write("a.yaml", &cluster("a", 2));
    let second = stream.next().await;
    assert_eq!((names(&second), second.removed_resources.clone()), (vec!["a"], vec![]));
    stream.answer(&second, None).await;
    folder.remove("b.yaml");
    let third = stream.next().await;
    assert_eq!((names(&third), third.removed_resources.clone()), (vec![], vec!["b".to_owned()]));
    stream.answer(&third, None).await;
    assert!(stream.is_quiet().await, "nothing more to say");

    // Who comes back with what it holds is sent nothing but what changed.
    drop(stream);
    let mut stream = daemon.delta().await;
    let held = second.resources.iter().map(|one| (one.name.clone(), one.version.clone()));
    let held = held.chain([("b".to_owned(), "x".to_owned())]).collect();
    let again = DeltaDiscoveryRequest {
        node: node("n"),
        type_url: CLUSTER.into(),
        initial_resource_versions: held,
        ..Default::default()
    };
    stream.send(again).await;
    // What it has of before is removed last, as in any change: something may refer to it.
    let fourth = stream.next().await;
    assert_eq!((names(&fourth), fourth.removed_resources.clone()), (vec![], vec![]));
    stream.answer(&fourth, None).await;
    let fifth = stream.next().await;
    assert_eq!((names(&fifth), fifth.removed_resources.clone()), (vec![], vec!["b".to_owned()]));
    daemon.terminate().await;
}

#[tokio::test]
async fn a_bad_edit_changes_nothing_until_it_is_mended() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let (mut stream, _) = daemon.settled("n").await;
    folder.write("b.yaml", &cluster("b", 1));
    let second = stream.next().await;
    stream.answer(&second, None).await;

    folder.write("c.yaml", "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nnme: c\n");
    daemon.eventually("/config", |text| text.contains("unknown field") && text.contains("\"line\": 2")).await;
    daemon.eventually("/metrics", |text| text.contains("culvert_control_config_errors 2\n")).await;
    assert!(stream.is_quiet().await, "a refused directory is not served");
    folder.write("c.yaml", &cluster("c", 1));
    let third = stream.next().await;
    assert_eq!(cluster_names(&third.resources), ["a", "b", "c"]);
    daemon.terminate().await;
}

#[tokio::test]
async fn without_watching_only_sighup_reads_the_directory() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &["--watch=false"]).await;
    let (mut stream, _) = daemon.settled("n").await;
    folder.write("b.yaml", &cluster("b", 1));
    assert!(stream.is_quiet().await, "nobody watches");
    daemon.hang_up();
    assert_eq!(cluster_names(&stream.next().await.resources), ["a", "b"]);
    daemon.terminate().await;
}

#[tokio::test]
async fn types_come_in_the_order_that_breaks_nothing() {
    let listener = "{\"@type\": type.googleapis.com/envoy.config.listener.v3.Listener, name: l,
      address: {socket_address: {address: 127.0.0.1, port_value: 1}}}";
    let eds = "{\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: e, type: EDS,
      eds_cluster_config: {eds_config: {ads: {}}}}";
    let folder = Folder::new(&[]);
    let daemon = Daemon::start(&folder, &[]).await;
    let mut stream = daemon.delta().await;
    for (type_url, wanted) in [(LISTENER, vec![]), (CLUSTER_LOAD_ASSIGNMENT, vec!["e".to_owned()]), (CLUSTER, vec![])] {
        let request = DeltaDiscoveryRequest {
            node: node("n"),
            type_url: type_url.into(),
            resource_names_subscribe: wanted,
            ..Default::default()
        };
        stream.send(request).await;
        let response = stream.next().await;
        assert_eq!(response.type_url, type_url, "each type is answered, with nothing in it");
        stream.answer(&response, None).await;
    }
    daemon.eventually("/nodes", |text| text.matches("\"outstanding\": false").count() == 3).await;
    folder.write("all.yaml", &format!("- {listener}\n- {eds}\n"));
    let mut order = Vec::new();
    for _ in 0..3 {
        let response = stream.next().await;
        order.push((response.type_url.clone(), names(&response).join(",")));
        stream.answer(&response, None).await;
    }
    let expected = [(CLUSTER, "e"), (CLUSTER_LOAD_ASSIGNMENT, "e"), (LISTENER, "l")];
    assert_eq!(order, expected.map(|(type_url, names)| (type_url.to_owned(), names.to_owned())));
    daemon.terminate().await;
}

#[tokio::test]
async fn a_fetch_is_answered_for_its_node_and_a_secret_is_never_shown() {
    let secret = "selector: {node_id: trusted}\nresources:\n- {\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret,
    name: s, generic_secret: {secret: {inline_string: TOP-SECRET}}}";
    let folder = Folder::new(&[("s.yaml", secret)]);
    let daemon = Daemon::start(&folder, &[]).await;
    let fetch = async |id: &str| {
        use culvert_api::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
        let mut client = SecretDiscoveryServiceClient::new(daemon.channel().await);
        let names = vec!["s".to_owned()];
        let request = DiscoveryRequest { node: node(id), resource_names: names, ..Default::default() };
        client.fetch_secrets(request).await.unwrap().into_inner()
    };
    let answer = fetch("trusted").await;
    assert_eq!((answer.resources.len(), answer.type_url.as_str()), (1, SECRET));
    assert_eq!(fetch("other").await.resources.len(), 0, "the secret is for another node");
    let dump = daemon.get("/config_dump").await;
    assert!(dump.contains("[redacted]") && !dump.contains("TOP-SECRET"), "{dump}");
    let mut stream = daemon.sotw().await;
    let names = vec!["s".to_owned()];
    let request = DiscoveryRequest {
        node: node("trusted"),
        type_url: SECRET.into(),
        resource_names: names,
        ..Default::default()
    };
    stream.send(request).await;
    assert_eq!(stream.next().await.resources.len(), 1);
    let mut status = ClientStatusDiscoveryServiceClient::new(daemon.channel().await);
    let status = status.fetch_client_status(ClientStatusRequest::default()).await.unwrap().into_inner();
    let config = &status.config[0].generic_xds_configs[0];
    assert_eq!((config.name.as_str(), &config.xds_config), ("s", &None));
    daemon.terminate().await;
}

#[tokio::test]
async fn mistakes_of_clients_end_their_stream_only() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    for (request, wanted) in [
        (DiscoveryRequest { type_url: CLUSTER.into(), ..Default::default() }, "must carry a node"),
        (DiscoveryRequest { node: node("n"), ..Default::default() }, "must carry a type_url"),
    ] {
        let mut stream = daemon.sotw().await;
        stream.send(request).await;
        let status = stream.failure().await;
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(wanted), "{status:?}");
    }
    assert_eq!(daemon.get("/ready").await, "ready\n");
    daemon.terminate().await;
}

#[tokio::test]
async fn a_bad_directory_at_the_start_ends_the_process_with_all_errors() {
    let bad = "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\n";
    let folder = Folder::new(&[("a.yaml", &format!("{bad}nme: x\n")), ("b.yaml", "]")]);
    for mode in ["serve", "validate"] {
        let (code, text) = folder.run(&["--mode", mode]).await;
        assert_eq!(code, Some(2), "{mode}: {text}");
        assert!(text.contains("a.yaml:2:1") && text.contains("b.yaml:1:1"), "{mode}: {text}");
    }
    let good = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let (code, text) = good.run(&["--mode", "validate"]).await;
    assert_eq!((code, text.contains("1 resources in 1 files are good")), (Some(0), true), "{text}");
    let (code, text) = good.run(&["--tls-cert", "/nonexistent", "--tls-key", "/nonexistent"]).await;
    assert_eq!((code, text.contains("cannot read /nonexistent")), (Some(2), true), "{text}");
    let (code, text) = good.run(&["--admin", "0.0.0.0:0"]).await;
    assert_eq!((code, text.contains("use a loopback address")), (Some(2), true), "{text}");
}

/// A web page whose name has been made to resolve to loopback reads nothing.
#[tokio::test]
async fn admin_pages_are_refused_under_a_foreign_name() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    for page in ["/config_dump", "/nodes", "/config", "/metrics", "/"] {
        let foreign = daemon.answer(page, "rebound.example:18001").await;
        assert!(foreign.starts_with("the host of this request is not this machine"), "{page}: {foreign}");
        let ours = daemon.answer(page, "127.0.0.1:18001").await;
        assert!(!ours.is_empty() && ours != foreign, "{page} by address: {ours}");
    }
    daemon.terminate().await;
}

#[tokio::test]
async fn termination_ends_streams_cleanly() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let mut stream = daemon.sotw().await;
    stream.send(asks("n", CLUSTER)).await;
    stream.next().await;
    let begun = tokio::time::Instant::now();
    daemon.terminate().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "an open stream does not hold the process back");
    assert!(stream.ended().await, "the stream ends with OK");
}

#[tokio::test]
async fn streams_of_one_type_each_belong_to_one_node() {
    use culvert_api::envoy::service::cluster::v3::cluster_discovery_service_client::ClusterDiscoveryServiceClient;
    use culvert_api::envoy::service::listener::v3::listener_discovery_service_client::ListenerDiscoveryServiceClient;
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let channel = daemon.channel().await;
    let (mut clusters, queue) = Stream::queue();
    let responses = ClusterDiscoveryServiceClient::new(channel.clone()).delta_clusters(queue).await.unwrap();
    clusters.responses = Some(responses.into_inner());
    clusters.send(DeltaDiscoveryRequest { node: node("n"), ..Default::default() }).await;
    let first = clusters.next().await;
    assert_eq!((names(&first), first.type_url.as_str()), (vec!["a"], CLUSTER));
    let (mut listeners, queue) = Stream::queue();
    let responses = ListenerDiscoveryServiceClient::new(channel).stream_listeners(queue).await.unwrap();
    listeners.responses = Some(responses.into_inner());
    listeners.send(DiscoveryRequest { node: node("n"), ..Default::default() }).await;
    let first = listeners.next().await;
    assert_eq!((first.resources.len(), first.type_url.as_str()), (0, LISTENER));
    let nodes = daemon.get("/nodes").await;
    assert_eq!(nodes.matches("\"id\": \"n\"").count(), 1, "one node, two streams: {nodes}");
    assert!(nodes.contains("\"delta\"") && nodes.contains("\"state of the world\""), "{nodes}");
    // The wrong type on a stream of one type.
    listeners.send(DiscoveryRequest { type_url: CLUSTER.into(), ..Default::default() }).await;
    assert_eq!(listeners.failure().await.code(), tonic::Code::InvalidArgument);
    daemon.terminate().await;
}

#[tokio::test]
async fn a_swap_of_a_mounted_volume_is_seen() {
    let folder = Folder::new(&[]);
    folder.mount("one", "a.yaml", &cluster("a", 1));
    let daemon = Daemon::start(&folder, &[]).await;
    let mut stream = daemon.sotw().await;
    stream.send(asks("n", CLUSTER)).await;
    for (seconds_expected, version) in [(1, "two"), (2, "three"), (3, "four")] {
        let response = stream.next().await;
        assert_eq!(seconds(&response.resources[0]), seconds_expected);
        stream.answer(&response, None).await;
        folder.mount(version, "a.yaml", &cluster("a", u32::try_from(seconds_expected + 1).unwrap()));
    }
    daemon.terminate().await;
}

#[tokio::test]
async fn over_mutual_tls_a_node_is_who_its_certificate_says() {
    let secret = "selector: {node_id: n}\nresources:\n- {\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret,
    name: s, generic_secret: {secret: {inline_string: TOP-SECRET}}}";
    let folder = Folder::new(&[("s.yaml", secret)]);
    let (code, text) = folder.run(&["--listen", "0.0.0.0:0", "--mode", "validate"]).await;
    assert_eq!((code, text.contains("would be served in plaintext")), (Some(2), true), "{text}");
    let files = folder.certificates();
    let args = ["--tls-cert", &files.cert, "--tls-key", &files.key, "--tls-client-ca", &files.authority];
    let daemon = Daemon::start(&folder, &args).await;
    assert!(daemon.tls_channel(&files, None).await.is_err(), "a client without a certificate is refused");
    let (mut stream, queue) = Stream::queue();
    let channel = daemon.tls_channel(&files, Some(())).await.unwrap();
    let responses = AggregatedDiscoveryServiceClient::new(channel).stream_aggregated_resources(queue).await.unwrap();
    stream.responses = Some(responses.into_inner());
    let wanted = vec!["s".to_owned()];
    stream
        .send(DiscoveryRequest {
            node: node("n"),
            type_url: SECRET.into(),
            resource_names: wanted,
            ..Default::default()
        })
        .await;
    assert_eq!(stream.next().await.resources.len(), 1);
    let nodes = daemon.get("/nodes").await;
    assert!(nodes.contains("\"certificate\": \"spiffe://culvert.test/node/n\""), "{nodes}");
    daemon.terminate().await;
}

#[tokio::test]
async fn a_stream_that_does_not_answer_gets_the_latest_later_and_delays_nobody() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let (mut mute, mut quick) = (daemon.sotw().await, daemon.sotw().await);
    for (stream, id) in [(&mute, "mute"), (&quick, "quick")] {
        stream.send(asks(id, CLUSTER)).await;
    }
    let unanswered = mute.next().await;
    let first = quick.next().await;
    quick.answer(&first, None).await;
    for round in 2..=6 {
        folder.write("a.yaml", &cluster("a", round));
        let response = quick.next().await;
        assert_eq!(seconds(&response.resources[0]), i64::from(round));
        quick.answer(&response, None).await;
    }
    assert!(mute.is_quiet().await, "one response at a time");
    mute.answer(&unanswered, None).await;
    let latest = mute.next().await;
    assert_eq!(seconds(&latest.resources[0]), 6, "nothing in between is kept for it");
    mute.answer(&latest, None).await;
    assert!(mute.is_quiet().await, "and nothing comes after it");
    daemon.terminate().await;
}
