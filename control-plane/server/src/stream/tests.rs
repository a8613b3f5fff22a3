//! Ten thousand nodes that come at once, and drains: no sockets, and a clock that goes on only when nobody has anything to
//! do.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Parser;
use culvert_api::type_url::{CLUSTER, ROUTE_CONFIGURATION};
use culvert_store::{Directory, load};
use culvert_xds::Variant;
use futures_util::StreamExt;
use http_body_util::StreamBody;
use hyper::body::Frame;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::access::Access;
use crate::args::Args;

/// How many come at once.
const STORM: usize = 10_000;
/// How many are served already.
const SERVED: usize = 100;

struct Server {
    control: Arc<Control>,
    drain: Watch,
    folder: tempfile::TempDir,
    trigger: culvert_runtime::drain::Trigger,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write(&folder, 1);
        let args = Args::parse_from(["culvert-control", "--config", folder.path().to_str().unwrap()]);
        let first = load(&args.config, args.options(), &Directory::default());
        let control = Arc::new(Control::new(&args, Access::new(&args, None), first));
        let (trigger, drain) = culvert_runtime::drain::channel();
        Self { control, drain, folder, trigger }
    }

    fn publish(&self, timeout: u32) {
        write(&self.folder, timeout);
        self.control.reload();
    }

    /// One cluster, and routes that lead there.
    fn swap_to(&self, cluster: &str) {
        let text = format!(
            "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: {cluster}\ntype: STATIC\n---\n\
             \"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration\nname: r\nvirtual_hosts:\n\
             - {{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}\n"
        );
        std::fs::write(self.folder.path().join("a.yaml"), text).unwrap();
        self.control.reload();
    }

    /// A node that is sent a second cluster before the routes that lead there.
    async fn node_in_mid_swap(&self) -> Node {
        self.swap_to("one");
        let mut node = self.node("n");
        let clusters = node.next().await.unwrap();
        node.accept(&clusters);
        let names = vec!["r".to_owned()];
        node.send(&DiscoveryRequest {
            type_url: ROUTE_CONFIGURATION.to_owned(),
            resource_names: names,
            ..Default::default()
        });
        let routes = node.next().await.unwrap();
        node.accept(&routes);
        node.is_quiet().await;
        self.swap_to("two");
        node
    }

    fn node(&self, id: &str) -> Node {
        let (requests, body) = mpsc::channel(16);
        let peer = Peer::new(([127, 0, 0, 1], 1).into(), None);
        let kind = StreamKind { variant: Variant::Sotw, type_url: None };
        let body = Requests::<DiscoveryRequest, _>::new(StreamBody::new(ReceiverStream::new(body)));
        let responses = responses(Arc::clone(&self.control), &self.drain, peer, kind, body).unwrap();
        let node = Node { requests, responses: Box::pin(responses) };
        let identity = culvert_api::envoy::config::core::v3::Node { id: id.to_owned(), ..Default::default() };
        node.send(&DiscoveryRequest { node: Some(identity), type_url: CLUSTER.to_owned(), ..Default::default() });
        node
    }
}

fn write(folder: &tempfile::TempDir, timeout: u32) {
    let text = format!(
        "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: a\ntype: STATIC\nconnect_timeout: {timeout}s\n"
    );
    std::fs::write(folder.path().join("a.yaml"), text).unwrap();
}

/// A node of the other end.
struct Node {
    requests: mpsc::Sender<Result<Frame<Bytes>, Infallible>>,
    responses: Pin<Box<dyn Stream<Item = Result<Response, Status>> + Send>>,
}

impl Node {
    fn send(&self, request: &DiscoveryRequest) {
        let message = request.encode_to_vec();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let bytes = [&[0][..], &length, &message].concat();
        self.requests.try_send(Ok(Frame::data(bytes.into()))).unwrap();
    }

    fn accept(&self, response: &Response) {
        let response = response.to_sotw();
        let names = (response.type_url == ROUTE_CONFIGURATION).then(|| "r".to_owned());
        self.send(&DiscoveryRequest {
            resource_names: names.into_iter().collect(),
            type_url: response.type_url,
            version_info: response.version_info,
            response_nonce: response.nonce,
            ..Default::default()
        });
    }

    async fn next(&mut self) -> Result<Response, Status> {
        self.responses.next().await.expect("the stream has ended")
    }

    /// The type of the next response, and the names in it. Empty: the stream has ended.
    async fn seen(&mut self) -> (String, Option<Response>) {
        let Some(response) = self.responses.next().await else { return (String::new(), None) };
        let response = response.unwrap();
        let names: Vec<String> = response.resources().iter().map(|resource| resource.name().to_string()).collect();
        (format!("{} {}", culvert_api::type_url::short_name(response.type_url()), names.join(" ")), Some(response))
    }

    /// What was said is heard, and nothing comes of it.
    async fn is_quiet(&mut self) {
        let quiet = tokio::time::timeout(Duration::from_millis(1), self.responses.next()).await;
        assert!(quiet.is_err(), "expected nothing, saw {quiet:?}");
    }

    /// Accepts all that comes, and says so.
    async fn go_on(mut self, seen: mpsc::Sender<()>) {
        loop {
            let response = self.next().await.unwrap();
            self.accept(&response);
            let _nobody_counts = seen.try_send(());
        }
    }
}

/// What became of those that came at once.
#[derive(Debug, Default)]
struct Count {
    served: AtomicUsize,
    refused: AtomicUsize,
}

impl Count {
    fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }

    fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }
}

/// Comes back as often as it is told to, answers its first response once that may be, and stays.
async fn storm(server: Arc<Server>, number: usize, mut may_answer: watch::Receiver<bool>, count: Arc<Count>) {
    loop {
        let mut node = server.node(&format!("n{number}"));
        match node.next().await {
            Ok(first) => {
                count.served.fetch_add(1, Ordering::Relaxed);
                may_answer.wait_for(|may| *may).await.unwrap();
                node.accept(&first);
                return node.go_on(mpsc::channel(1).0).await;
            }
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                let pushback = status.metadata().get("grpc-retry-pushback-ms").expect("when to come back");
                count.refused.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(pushback.to_str().unwrap().parse().unwrap())).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_nodes_at_once_are_served_so_many_at_a_time_and_delay_nobody() {
    let server = Arc::new(Server::start());
    let at_a_time = server.control.first_pushes.available_permits();
    let (seen, mut pushed) = mpsc::channel(4 * SERVED);
    let mut running = JoinSet::new();
    for number in 0..SERVED {
        running.spawn(server.node(&format!("served-{number}")).go_on(seen.clone()));
    }
    let mut all_pushed = async || {
        let began = Instant::now();
        for _ in 0..SERVED {
            pushed.recv().await.expect("the nodes have ended");
        }
        assert_eq!(began.elapsed(), Duration::ZERO, "nodes that are served waited for something");
    };
    all_pushed().await;

    let (answer, may_answer) = watch::channel(false);
    let count = Arc::new(Count::default());
    for number in 0..STORM {
        running.spawn(storm(Arc::clone(&server), number, may_answer.clone(), Arc::clone(&count)));
    }
    // Nobody answers: each turn is given up after 5 s.
    sleep(Duration::from_secs(4)).await;
    assert_eq!((count.served(), count.refused()), (at_a_time, 0), "of the first turn");
    server.publish(2);
    all_pushed().await;
    assert_eq!(count.served(), at_a_time, "others were served before those that were there");
    sleep(Duration::from_secs(5)).await;
    assert_eq!((count.served(), count.refused()), (2 * at_a_time, 0), "of two turns");
    sleep(Duration::from_secs(53)).await;
    let turns = 12 * at_a_time..=13 * at_a_time;
    assert!(turns.contains(&count.served()), "expected {turns:?} within a minute, saw {}", count.served());
    assert_eq!(count.served() + count.refused(), STORM, "the others were told to come back");

    answer.send_replace(true);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(count.served(), STORM, "everybody is served once those before answer");
    server.publish(3);
    all_pushed().await;
    let latest = server.control.generation();
    sleep(Duration::from_secs(1)).await;
    let settled = server.control.nodes.status();
    let settled = settled.iter().filter(|node| node.standing(latest) == crate::nodes::Standing::Settled).count();
    assert_eq!(settled, STORM + SERVED, "everybody has what was published last");
    running.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_in_the_middle_of_a_change_ends_the_stream_when_that_is_over() {
    let server = Server::start();
    let mut node = server.node_in_mid_swap().await;
    let (added, clusters) = node.seen().await;
    assert_eq!(added, "Cluster one two");
    let began = Instant::now();
    server.trigger.start(Duration::from_secs(10));
    node.is_quiet().await;
    let mut answer = clusters;
    let mut seen = Vec::new();
    while let Some(response) = answer {
        node.accept(&response);
        let (next, response) = node.seen().await;
        seen.push(next);
        answer = response;
    }
    assert_eq!(seen, ["RouteConfiguration r", "Cluster two", ""], "the change goes through, and the stream ends");
    assert!(began.elapsed() < Duration::from_secs(1), "the stream ended after {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_answer_holds_a_drain_back_for_so_long() {
    let server = Server::start();
    let mut node = server.node_in_mid_swap().await;
    assert_eq!(node.seen().await.0, "Cluster one two");
    let began = Instant::now();
    server.trigger.start(Duration::from_secs(10));
    assert_eq!(node.seen().await.0, "RouteConfiguration r", "as without a drain, after 5 s");
    assert_eq!(node.seen().await.0, "", "the stream ends");
    let took = began.elapsed();
    assert!((LAST_STEPS..LAST_STEPS + Duration::from_millis(10)).contains(&took), "it took {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_a_stream_at_once_that_is_in_no_change() {
    let server = Server::start();
    let mut node = server.node("n");
    let first = node.next().await.unwrap();
    let mut silent = server.node("silent");
    silent.next().await.unwrap();
    node.accept(&first);
    node.is_quiet().await;
    let began = Instant::now();
    server.trigger.start(Duration::from_secs(10));
    for (node, what) in [(&mut node, "answered"), (&mut silent, "did not answer")] {
        assert_eq!(node.seen().await.0, "", "the stream of who {what} ends");
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
}
