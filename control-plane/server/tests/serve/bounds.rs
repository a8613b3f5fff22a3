//! What many clients, large requests, large responses and slow readers may cost.

use std::time::Duration;

use culvert_api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use culvert_api::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use culvert_api::type_url::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::Channel;

use crate::harness::{Daemon, Folder, Stream, asks, cluster, delta_asks, names, node};

type Sotw = Stream<DiscoveryRequest, DiscoveryResponse>;
type Delta = Stream<DeltaDiscoveryRequest, DeltaDiscoveryResponse>;

/// How many nodes are sent their first response at a time, as the server counts them.
fn at_a_time() -> usize {
    (15 + 5 * std::thread::available_parallelism().unwrap().get()).min(100)
}

/// Opens a stream on a channel, which takes responses of any size.
async fn sotw(channel: Channel) -> Sotw {
    let (mut stream, queue) = Stream::queue();
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(usize::MAX);
    stream.responses = Some(client.stream_aggregated_resources(queue).await.unwrap().into_inner());
    stream
}

async fn delta(channel: Channel) -> Delta {
    let (mut stream, queue) = Stream::queue();
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(usize::MAX);
    stream.responses = Some(client.delta_aggregated_resources(queue).await.unwrap().into_inner());
    stream
}

async fn count(daemon: &Daemon, metric: &str) -> usize {
    let text = daemon.get("/metrics").await;
    let value = text.lines().find_map(|line| line.strip_prefix(&format!("culvert_control_{metric} ")));
    value.unwrap_or_else(|| panic!("no {metric} in {text}")).parse().unwrap()
}

#[tokio::test]
async fn a_storm_of_nodes_is_served_so_many_at_a_time_and_delays_nobody_who_is_served() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let mut served = daemon.sotw().await;
    served.send(asks("served", CLUSTER)).await;
    let first = served.next().await;
    served.answer(&first, None).await;

    let channel = daemon.channel().await;
    let (answer, may_answer) = watch::channel(false);
    let began = Instant::now();
    let mut storm = JoinSet::new();
    let all = at_a_time() + 20;
    for number in 0..all {
        let (channel, mut may_answer) = (channel.clone(), may_answer.clone());
        storm.spawn(async move {
            let mut stream = sotw(channel).await;
            stream.send(asks(&format!("n{number}"), CLUSTER)).await;
            let first = stream.next().await;
            may_answer.wait_for(|may| *may).await.unwrap();
            stream.answer(&first, None).await;
            // Open until the test ends.
            stream
        });
    }
    let wanted = at_a_time() + 1;
    let requests = all + 2;
    daemon
        .eventually("/metrics", |text| {
            let has = |metric: &str, least: usize| {
                let value = text.lines().find_map(|line| line.strip_prefix(&format!("culvert_control_{metric} ")));
                value.is_some_and(|value| value.parse::<usize>().unwrap() >= least)
            };
            has("requests_total", requests) && has("responses_total", wanted)
        })
        .await;
    // Who does not answer keeps its turn for 5 s.
    let sent = count(&daemon, "responses_total").await;
    let turns = 1 + usize::try_from(began.elapsed().as_secs()).unwrap() / 5;
    assert!(sent <= at_a_time() * turns + 1, "expected at most {} at a time, saw {sent}", at_a_time());

    folder.write("a.yaml", &cluster("a", 2));
    let second = served.next().await;
    served.answer(&second, None).await;

    answer.send(true).unwrap();
    let mut open = Vec::new();
    while let Some(stream) = storm.join_next().await {
        open.push(stream.unwrap());
    }
    assert_eq!(open.len(), all, "everybody is served in the end");
    daemon.terminate().await;
}

#[tokio::test]
async fn who_waits_too_long_for_its_first_response_is_told_to_come_back() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &["--admission-wait", "1"]).await;
    let channel = daemon.channel().await;
    let mut stuck = Vec::new();
    for number in 0..at_a_time() {
        let mut stream = sotw(channel.clone()).await;
        stream.send(asks(&format!("n{number}"), CLUSTER)).await;
        stream.next().await;
        stuck.push(stream);
    }
    // The turns end after 5 s each: some that come now are early enough to wait for longer than a second.
    let mut refused = None;
    while refused.is_none() {
        let mut late = sotw(channel.clone()).await;
        late.send(asks("late", CLUSTER)).await;
        match late.answer_or_failure().await {
            Ok(_) => stuck.push(late),
            Err(status) => refused = Some(status),
        }
        assert!(stuck.len() < 1000, "nobody was ever refused");
    }
    let refused = refused.unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let pushback = refused.metadata().get("grpc-retry-pushback-ms").map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(pushback.as_deref(), Some("5000"), "{refused:?}");
    daemon.terminate().await;
}

/// A request of more than 5 MB, as an Envoy sends it that has so many clusters.
#[tokio::test]
async fn a_request_of_sixty_thousand_names_is_answered() {
    let long = "a-name-as-long-as-those-of-services-in-large-meshes-with-their-namespaces-and-ports";
    let wanted: Vec<String> = (0..60_000).map(|number| format!("{long}-{number:05}")).collect();
    let assignment = |name: &str| {
        format!(
            "{{\"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: {name}}}\n"
        )
    };
    let (some, other) = (wanted[777].as_str(), wanted[59_999].as_str());
    let folder = Folder::new(&[("a.yaml", &assignment(some)), ("b.yaml", &assignment(other))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let before = daemon.memory();

    let mut stream = delta(daemon.channel().await).await;
    let request = DeltaDiscoveryRequest {
        node: node("n"),
        type_url: CLUSTER_LOAD_ASSIGNMENT.into(),
        resource_names_subscribe: wanted.clone(),
        ..Default::default()
    };
    stream.send(request).await;
    let first = stream.next().await;
    assert_eq!(names(&first), [some, other]);
    assert_eq!(first.removed_resources.len(), 59_998, "the others do not exist");
    stream.answer(&first, None).await;
    folder.write("c.yaml", &assignment(&wanted[5]));
    let second = stream.next().await;
    assert_eq!(names(&second), [wanted[5].as_str()], "what comes to be is sent, and nothing else");
    stream.answer(&second, None).await;

    let mut stream = sotw(daemon.channel().await).await;
    let type_url = CLUSTER_LOAD_ASSIGNMENT.to_owned();
    let request = DiscoveryRequest { node: node("m"), type_url, resource_names: wanted.clone(), ..Default::default() };
    stream.send(request.clone()).await;
    let first = stream.next().await;
    assert_eq!(first.resources.len(), 3);
    let ack = DiscoveryRequest { node: None, response_nonce: first.nonce, version_info: first.version_info, ..request };
    stream.send(ack).await;
    daemon.eventually("/push", |text| text.contains("\"pending\": 0")).await;
    let grown = daemon.memory().saturating_sub(before);
    assert!(grown < 150_000, "two streams of 60,000 names of 88 bytes take {grown} kB");
    daemon.terminate().await;
}

/// Each is 1 MB; reading 200 MB takes a build without optimization minutes, so that what is that large is tested beside the
/// code (`a_response_of_200_megabytes_is_handed_on_without_a_copy`).
const LARGE: usize = 24;

/// A file of clusters of 1 MB each.
fn large(count: usize) -> String {
    let filler = "x".repeat(1 << 20);
    (0..count)
        .map(|number| {
            format!(
                "{{\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: c{number:03}, type: STATIC, \
                 metadata: {{filter_metadata: {{filler: {{text: {filler}}}}}}}}}\n---\n"
            )
        })
        .collect()
}

/// Who does not read takes what its transport holds of its response, and never the whole.
#[tokio::test]
async fn a_large_response_is_read_by_who_reads_and_costs_little_for_who_does_not() {
    const SLOW: u64 = 10;
    // In kB, of a stream on a connection of its own: a piece of 128 KiB, and as much again for the connection.
    const HELD: u64 = 256;
    // What the allocator may take in advance, for all of them.
    const ALLOCATOR: u64 = 8 << 10;
    let folder = Folder::new(&[]);
    let daemon = Daemon::start(&folder, &[]).await;
    folder.write("a.yaml", &large(LARGE));
    daemon.eventually("/config", |text| text.contains("\"resources\": 24,")).await;

    // The first one has the whole state packed, once for all.
    let mut reader = sotw(daemon.channel().await).await;
    reader.send(asks("reader", CLUSTER)).await;
    let whole = reader.next().await;
    assert_eq!(whole.resources.len(), LARGE);
    assert!(whole.resources.iter().all(|any| any.value.len() > 1 << 20));
    reader.answer(&whole, None).await;
    drop(whole);
    let before = daemon.memory();
    let mut slow = Vec::new();
    for number in 0..SLOW {
        let stream = sotw(daemon.channel().await).await;
        stream.send(asks(&format!("s{number}"), CLUSTER)).await;
        let deltas = delta(daemon.channel().await).await;
        deltas.send(delta_asks(&format!("d{number}"), CLUSTER)).await;
        slow.push((stream, deltas));
    }
    let responses = 1 + 2 * usize::try_from(SLOW).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while count(&daemon, "responses_total").await < responses {
        assert!(Instant::now() < deadline, "the slow readers' responses do not begin");
    }
    let grown = daemon.memory().saturating_sub(before);
    let most = SLOW * 2 * HELD + ALLOCATOR;
    assert!(grown < most, "{} readers that do not read take {grown} kB, expected {most} at most", SLOW * 2);
    let mut late = slow.pop().unwrap().1;
    let all = late.next().await;
    assert_eq!(names(&all).len(), LARGE, "who reads in the end gets all");
    daemon.terminate().await;
}

#[tokio::test]
async fn a_stream_that_is_not_read_is_reset_and_others_of_its_connection_go_on() {
    let folder = Folder::new(&[("a.yaml", &large(4))]);
    let daemon = Daemon::start(&folder, &["--send-timeout", "1"]).await;
    let channel = daemon.channel().await;
    let mut stuck = sotw(channel.clone()).await;
    stuck.send(asks("stuck", CLUSTER)).await;
    let mut reader = sotw(channel).await;
    let resource_names = vec!["x".to_owned()];
    reader.send(DiscoveryRequest { resource_names, ..asks("reader", CLUSTER_LOAD_ASSIGNMENT) }).await;
    daemon.eventually("/metrics", |text| text.contains("culvert_control_slow_readers_total 1\n")).await;
    assert_eq!(stuck.failure().await.code(), Code::Cancelled, "the stream is reset");
    let assignment =
        "{\"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: x}\n";
    folder.write("b.yaml", assignment);
    assert_eq!(reader.next().await.resources.len(), 1, "another stream of the connection lives");
    // Who answers nothing is not slow: it has its response, and waits for nothing.
    assert_eq!(count(&daemon, "slow_readers_total").await, 1);
    daemon.terminate().await;
}

#[tokio::test]
async fn types_that_nobody_knows_are_counted_and_others_of_which_there_is_nothing_are_not() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let mut stream = daemon.delta().await;
    for (asked, (type_url, expected)) in
        [("no.such.Type", 1), ("no.other.Type", 2), ("no.such.Type", 2)].into_iter().enumerate()
    {
        stream.send(delta_asks("n", &format!("type.googleapis.com/{type_url}"))).await;
        if asked < 2 {
            stream.next().await;
        }
        stream.send(delta_asks("n", CLUSTER_LOAD_ASSIGNMENT)).await;
        stream.send(delta_asks("n", CLUSTER)).await;
        if asked == 0 {
            stream.next().await;
            stream.next().await;
        }
        let metric = format!("culvert_control_unknown_types_total {expected}\n");
        daemon.eventually("/metrics", |text| text.contains(&metric)).await;
    }
}
