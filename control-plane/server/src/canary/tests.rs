use clap::Parser;
use culvert_api::envoy::config::core::v3::Node;
use culvert_api::envoy::service::discovery::v3::DiscoveryRequest;
use culvert_api::google::rpc;
use culvert_api::type_url::CLUSTER;
use culvert_store::{Directory, load};
use culvert_xds::{NodeIdentity, StreamKind, Variant};

use super::*;
use crate::access::Access;
use crate::discovery::polled;
use crate::identity::Peer;
use crate::nodes::{Attached, Next, Nodes};

struct Server {
    control: Arc<Control>,
    folder: tempfile::TempDir,
}

impl Server {
    /// A change goes to three nodes first, for 10 s, which have 60 s to answer.
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write(&folder, 1);
        let args =
            ["culvert-control", "--canary-nodes", "3", "--canary-quiet", "10", "--canary-timeout", "60", "--config"];
        let args = Args::parse_from(args.into_iter().chain([folder.path().to_str().unwrap()]));
        let first = load(&args.config, args.options(), &Directory::default());
        let control = Arc::new(Control::new(&args, Access::new(&args, None), first));
        tokio::spawn(watch(Arc::clone(&control), Limits::new(&args)));
        Self { control, folder }
    }

    fn publish(&self, timeout: u32) {
        write(&self.folder, timeout);
        self.control.reload();
    }

    /// A stream that has asked for nothing yet.
    fn connect(&self, id: &str) -> Attached {
        let identity = NodeIdentity { id: id.to_owned(), ..NodeIdentity::default() };
        let kind = StreamKind { variant: Variant::Sotw, type_url: None };
        Nodes::attach(&self.control, None, identity, &"192.0.2.1:1".into(), &kind).unwrap()
    }

    fn settled(&self, id: &str) -> Attached {
        let stream = self.connect(id);
        ask(&stream);
        answer(&stream, None);
        stream
    }

    /// A poll of a node that has that version; the version that it is answered with.
    fn poll(&self, id: &str, version: &str) -> String {
        let node = Some(Node { id: id.to_owned(), ..Node::default() });
        let request = DiscoveryRequest { node, version_info: version.to_owned(), ..DiscoveryRequest::default() };
        polled(&self.control, &Peer::new(([192, 0, 2, 1], 1).into(), None), CLUSTER, request).unwrap().version_info
    }

    fn canaries(&self) -> Vec<String> {
        self.control.canary_nodes().into_iter().collect()
    }

    /// Generation and what became of it, the latest last.
    fn history(&self) -> Vec<(u64, Option<String>)> {
        self.control.history().into_iter().map(|past| (past.generation, past.taken_back)).collect()
    }
}

fn write(folder: &tempfile::TempDir, timeout: u32) {
    let text = format!(
        "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: a\ntype: STATIC\nconnect_timeout: {timeout}s\n"
    );
    std::fs::write(folder.path().join("a.yaml"), text).unwrap();
}

fn say(stream: &Attached, request: DiscoveryRequest) {
    let request = DiscoveryRequest { type_url: CLUSTER.to_owned(), ..request };
    stream.hear(|session, id| session.on_request(id, &request)).unwrap();
}

fn ask(stream: &Attached) {
    say(stream, DiscoveryRequest::default());
}

/// Takes the response that there is to be, and accepts or refuses it.
fn answer(stream: &Attached, refusal: Option<&str>) {
    let Next::Send(response) = stream.next() else { panic!("expected a response, and there is none") };
    let response = response.to_sotw();
    let error_detail =
        refusal.map(|reason| rpc::Status { code: 3, message: reason.to_owned(), ..rpc::Status::default() });
    let (version_info, response_nonce) = (response.version_info, response.nonce);
    say(stream, DiscoveryRequest { version_info, response_nonce, error_detail, ..DiscoveryRequest::default() });
}

async fn pass(seconds: u64) {
    sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_change_is_taken_back_when_a_node_that_had_it_first_is_gone() {
    let server = Server::start();
    let streams = ["n1", "n2", "n3"].map(|id| server.settled(id));
    server.publish(2);
    assert_eq!(server.canaries(), ["n1", "n2", "n3"]);
    let [first, second, third] = streams;
    answer(&first, None);
    // Two are gone for what they were sent.
    drop((second, third));
    pass(59).await;
    assert_eq!(server.canaries(), ["n1", "n2", "n3"], "they have a minute");
    pass(2).await;
    assert_eq!(server.canaries(), [""; 0]);
    let (generation, taken_back) = server.history().pop().unwrap();
    let reason = "not all of the nodes that had it first accepted it in time (gone: n2, n3)";
    assert_eq!((generation, taken_back.as_deref()), (2, Some(reason)));
    answer(&first, None);
    assert!(has_all(&server.control.nodes.status()[0], server.control.generation()), "it has what is in force again");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_comes_back_counts_when_it_has_accepted_the_change() {
    let server = Server::start();
    let streams = ["n1", "n2", "n3"].map(|id| server.settled(id));
    server.publish(2);
    let [first, second, third] = streams;
    answer(&first, None);
    answer(&second, None);
    answer(&third, None);
    pass(5).await;
    drop(third);
    pass(15).await;
    let third = server.connect("n3");
    pass(15).await;
    assert_eq!(server.canaries(), ["n1", "n2", "n3"], "it has not asked for anything");
    ask(&third);
    pass(15).await;
    assert_eq!(server.canaries(), ["n1", "n2", "n3"], "it has not answered");
    answer(&third, None);
    pass(9).await;
    assert_eq!(server.canaries(), ["n1", "n2", "n3"], "the quiet period begins when all have accepted it");
    pass(2).await;
    assert_eq!((server.canaries(), server.history().pop()), (Vec::new(), Some((3, None))), "it goes to all");
}

#[tokio::test(start_paused = true)]
async fn what_a_node_does_not_answer_or_refuses_is_said() {
    for (refusal, reason) in [
        (None, "not all of the nodes that had it first accepted it in time (without an answer: n1)"),
        (Some("no such thing"), "node \"n1\" refused it: no such thing"),
    ] {
        let server = Server::start();
        let stream = server.settled("n1");
        server.publish(2);
        if refusal.is_some() {
            answer(&stream, refusal);
        }
        pass(61).await;
        assert_eq!(server.history().pop(), Some((2, Some(reason.to_owned()))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_polls_may_be_the_first() {
    for accepts in [true, false] {
        let server = Server::start();
        let version = server.poll("p", "");
        server.poll("p", &version);
        server.publish(2);
        assert_eq!(server.canaries(), ["p"]);
        let next = server.poll("p", &version);
        assert_ne!(next, version, "it is given the change");
        for _ in 0..13 {
            pass(5).await;
            server.poll("p", if accepts { &next } else { &version });
        }
        let reason = "not all of the nodes that had it first accepted it in time (without an answer: p)";
        let expected = if accepts { (3, None) } else { (2, Some(reason.to_owned())) };
        assert_eq!(
            (server.canaries(), server.history().pop()),
            (Vec::new(), Some(expected)),
            "it accepts it: {accepts}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn history_says_what_became_of_what_only_some_nodes_had() {
    let server = Server::start();
    let stream = server.settled("n");
    server.publish(2);
    answer(&stream, None);
    server.publish(3);
    assert_eq!(server.history(), [(1, None), (2, Some("superseded by generation 3".to_owned()))]);
    answer(&stream, None);
    server.control.roll_back(1, Some("operator o".to_owned())).unwrap();
    assert_eq!(
        server.history()[2..],
        [(3, Some("operator o went back to generation 1".to_owned())), (4, None)],
        "a way back takes back what only some nodes have"
    );
    assert_eq!((server.canaries(), server.control.metrics.canaries_taken_back.get()), (Vec::new(), 1));
    answer(&stream, None);
    pass(60).await;
    assert_eq!(server.control.generation(), 4, "what was taken back stays where it is");
}

/// Read again, or written in another way, it is no change: nothing new comes to be, and what goes on does.
#[tokio::test(start_paused = true)]
async fn what_says_nothing_new_is_no_change() {
    let server = Server::start();
    let stream = server.settled("n1");
    let restate = |timeout: u32, comment: &str| {
        write(&server.folder, timeout);
        let text = std::fs::read_to_string(server.folder.path().join("a.yaml")).unwrap();
        std::fs::write(server.folder.path().join("a.yaml"), format!("# {comment}\n{text}")).unwrap();
        server.control.reload();
    };
    let since = server.control.latest().in_force_since;
    restate(1, "the same");
    assert_eq!((server.canaries(), server.history()), (Vec::new(), vec![(1, None)]));
    assert_eq!(server.control.latest().in_force_since, since);
    let origins: Vec<_> = server.control.directory().resources().map(|(_, _, origin)| origin.to_owned()).collect();
    assert!(origins.iter().all(|origin| origin.ends_with("a.yaml:2:1")), "it is known where it is now: {origins:?}");

    server.publish(2);
    answer(&stream, None);
    pass(6).await;
    restate(2, "the same as some nodes have");
    pass(6).await;
    let went_on = vec![(1, None), (3, None)];
    assert_eq!((server.canaries(), server.history()), (Vec::new(), went_on), "its quiet time did not begin anew");
    assert!(!matches!(stream.next(), Next::Send(_)), "it has what goes to all");

    server.publish(4);
    assert_eq!(server.canaries(), ["n1"]);
    restate(2, "back to what is in force");
    assert_eq!(server.canaries(), [""; 0]);
    let (_, taken_back) = server.history().pop().unwrap();
    assert_eq!(taken_back.as_deref(), Some("the directory says again what is in force"));
}
