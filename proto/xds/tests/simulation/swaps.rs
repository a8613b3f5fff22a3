//! Clusters and routes that change together, again and again, to a node that answers when it likes, refuses some and
//! loses its connections: at no time does a route that it has lead to a cluster, or a cluster to an assignment, that it
//! does not have. The same holds of a node (of delta) that comes to a server which forgot everything and serves something else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use culvert_api::envoy::config::core::v3::Node;
use culvert_api::envoy::config::route::v3::RouteConfiguration;
use culvert_api::envoy::service::discovery::v3 as discovery;
use culvert_api::type_url::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT, ROUTE_CONFIGURATION};
use culvert_xds::server::{Progress, StagingLimits};
use culvert_xds::{
    Client, ClientConfig, Interest, Name, NodeIdentity, PARTIAL_ACK, Rejection, Request, Resource, ResourceTimer,
    Session, SessionConfig, Snapshot, SnapshotBuilder, StreamId, StreamKind, Variant,
};
use prost::Message;

use crate::contents::{content, is_bad};
use crate::network::{Choices, Connection};

const SWAPPED: [&str; 3] = [CLUSTER, CLUSTER_LOAD_ASSIGNMENT, ROUTE_CONFIGURATION];
const CLUSTERS: usize = 6;
const ROUTES: [&str; 3] = ["r0", "r1", "r2"];
const STEPS: usize = 600;

/// Contents by type and name.
type Contents = BTreeMap<(&'static str, Name), Bytes>;

struct Swaps {
    choices: Choices,
    verbose: bool,
    variant: Variant,
    now: Duration,
    session: Session,
    streams: u64,
    /// One client for all types, or one for each.
    peers: Vec<(Client, Option<&'static str>, Option<Connection>)>,
    held: Contents,
    /// Everything was there once: from then on it must stay so.
    complete: bool,
    messages: u64,
    refused: u64,
}

pub(crate) fn run(seed: u64, verbose: bool) -> (u64, u64) {
    let mut swaps = Swaps::new(seed, verbose);
    swaps.settle();
    swaps.complete = true;
    swaps.check();
    for _ in 0..STEPS {
        swaps.step();
        swaps.check();
    }
    swaps.complete = false;
    // In the end a change that is refused by nobody arrives as a whole.
    swaps.publish(0);
    swaps.settle();
    swaps.complete = true;
    swaps.check();
    assert_eq!(swaps.session.progress(), Progress::Settled, "the last change is over");
    for of in SWAPPED {
        let set = swaps.session.snapshot().of_type(of).expect("published");
        let held = swaps.held.iter().filter(|((held, _), _)| *held == of);
        let published: BTreeMap<_, _> = set.resources().map(|one| (one.name().clone(), one.value())).collect();
        let held: BTreeMap<_, _> = held.map(|((_, name), body)| (name.clone(), body.clone())).collect();
        // In the state of the world nothing says that an assignment is gone, but that its cluster is.
        assert_eq!(held, published, "{of}: what is held is not what was published last");
    }
    (swaps.messages, swaps.refused)
}

/// The routes that there are, and the clusters that they lead to.
fn ways(contents: &Contents) -> impl Iterator<Item = (&Name, Name)> {
    let routes = contents.iter().filter(|((of, _), _)| *of == ROUTE_CONFIGURATION);
    routes.map(|((_, name), body)| {
        let routes = RouteConfiguration::decode(body.clone()).expect("routes");
        (name, Name::from(routes.internal_only_headers[0].as_str()))
    })
}

fn session(node: Arc<NodeIdentity>, snapshot: Arc<Snapshot>) -> Session {
    // Only answers move a change on here.
    let limits = StagingLimits { answer: Duration::from_secs(1_000_000), ..StagingLimits::default() };
    let config = SessionConfig { staging: Some(limits), ..SessionConfig::default() };
    Session::new(config, node, snapshot)
}

impl Swaps {
    fn new(seed: u64, verbose: bool) -> Self {
        let mut choices = Choices::new(seed);
        let variant = if seed.is_multiple_of(2) { Variant::Sotw } else { Variant::Delta };
        let config = ClientConfig {
            variant,
            node: Node { id: "n".into(), ..Node::default() },
            node_on_first_message_only: true,
            resource_timer: ResourceTimer::DoesNotExist,
            fail_on_data_errors: false,
        };
        let peers: Vec<_> = if choices.percent(40) {
            SWAPPED.iter().map(|only| (Client::new(config.clone()), Some(*only), None)).collect()
        } else {
            vec![(Client::new(config), None, None)]
        };
        let client_features = if choices.percent(50) { vec![PARTIAL_ACK.to_owned()] } else { Vec::new() };
        let node = Arc::new(NodeIdentity { id: "n".into(), client_features, ..NodeIdentity::default() });
        let mut swaps = Self {
            choices,
            verbose,
            variant,
            now: Duration::ZERO,
            session: session(node, Arc::default()),
            streams: 0,
            peers,
            held: BTreeMap::new(),
            complete: false,
            messages: 0,
            refused: 0,
        };
        swaps.publish(0);
        swaps.client(CLUSTER).watch(CLUSTER, Interest::everything());
        swaps.client(ROUTE_CONFIGURATION).watch(ROUTE_CONFIGURATION, Interest::named(ROUTES.map(Name::from)));
        swaps
    }

    fn client(&mut self, of: &str) -> &mut Client {
        let peer = self.peers.iter_mut().find(|(_, only, _)| only.is_none_or(|only| only == of));
        &mut peer.expect("a peer for every type").0
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(10);
        let peer = self.choices.below(self.peers.len());
        match self.choices.below(100) {
            0..6 => self.publish(15),
            6..8 => self.disconnect(peer),
            8 if self.choices.percent(25) => self.restart_server(),
            8..16 => self.connect(peer),
            16..36 => self.send_requests(peer),
            36..56 => self.send_responses(peer),
            56..78 => self.deliver_request(peer),
            _ => self.deliver_response(peer),
        }
    }

    fn settle(&mut self) {
        for _ in 0..40 {
            self.now += Duration::from_millis(50);
            for peer in 0..self.peers.len() {
                self.connect(peer);
                self.send_requests(peer);
                while self.peers[peer].2.as_ref().is_some_and(|connection| !connection.up.is_empty()) {
                    self.deliver_request(peer);
                }
                self.send_responses(peer);
                while self.peers[peer].2.as_ref().is_some_and(|connection| !connection.down.is_empty()) {
                    self.deliver_response(peer);
                }
            }
        }
    }

    fn publish(&mut self, bad: usize) {
        let snapshot = self.fill(self.session.snapshot().successor(), bad);
        self.session.on_snapshot(Arc::new(snapshot), self.now);
    }

    /// The node loses its streams, and comes to a server that does not know it and serves something else. (In the state of the
    /// world nothing says what a node holds: there it is not kept.)
    fn restart_server(&mut self) {
        if self.variant == Variant::Sotw {
            return;
        }
        for peer in 0..self.peers.len() {
            self.disconnect(peer);
        }
        let snapshot = self.fill(Snapshot::builder(), 15);
        self.session = session(Arc::clone(self.session.node()), Arc::new(snapshot));
    }

    /// Every route leads to a cluster; there are no other clusters. Of 100 new contents so many are refused.
    fn fill(&mut self, mut builder: SnapshotBuilder, bad: usize) -> Snapshot {
        let mut insert = |of: &str, name: &str, body: &[u8]| {
            builder.insert(Arc::new(Resource::new(&of.into(), name, body)));
        };
        let mut clusters = BTreeSet::new();
        for name in ROUTES {
            let cluster = format!("c{}", self.choices.below(CLUSTERS));
            let mark = if self.choices.percent(bad) { "mark-bad" } else { "mark-good" };
            let headers = vec![cluster.clone(), mark.to_owned()];
            let routes = RouteConfiguration { name: name.into(), internal_only_headers: headers, ..Default::default() };
            insert(ROUTE_CONFIGURATION, name, &routes.encode_to_vec());
            clusters.insert(cluster);
        }
        for cluster in clusters {
            let mark = if self.choices.percent(bad) { "bad" } else { ["1", "2"][self.choices.below(2)] };
            insert(CLUSTER, &cluster, &content(CLUSTER, &cluster, mark));
            let mark = ["1", "2"][self.choices.below(2)];
            insert(CLUSTER_LOAD_ASSIGNMENT, &cluster, &content(CLUSTER_LOAD_ASSIGNMENT, &cluster, mark));
        }
        let snapshot: Snapshot = builder.build();
        self.trace(|| format!("publish {snapshot:?}"));
        snapshot
    }

    /// What the node has is in order.
    fn check(&self) {
        if !self.complete {
            return;
        }
        for (name, cluster) in ways(&self.held) {
            for of in [CLUSTER, CLUSTER_LOAD_ASSIGNMENT] {
                let held = self.held.contains_key(&(of, Name::clone(&cluster)));
                assert!(held, "routes {name} lead to {cluster}, of which the node has no {of}");
            }
        }
    }

    fn connect(&mut self, peer: usize) {
        let (client, only, connection) = &mut self.peers[peer];
        if connection.is_none() {
            self.streams += 1;
            let stream = StreamId(self.streams);
            let kind = StreamKind { variant: self.variant, type_url: only.map(Into::into) };
            self.session.open(stream, kind).expect("its former stream is closed");
            *connection = Some(Connection::new(stream));
            client.on_connected();
        }
    }

    fn disconnect(&mut self, peer: usize) {
        let (client, _, connection) = &mut self.peers[peer];
        if let Some(connection) = connection.take() {
            client.on_disconnected();
            self.session.on_close(connection.stream);
        }
    }

    fn send_requests(&mut self, peer: usize) {
        while let Some(request) = self.peers[peer].0.poll_request(self.now) {
            self.send(peer, &request);
        }
    }

    fn send(&mut self, peer: usize, request: &Request) {
        self.trace(|| format!("-> {request:?}"));
        let bytes = match request {
            Request::Sotw(request) => request.encode_to_vec(),
            Request::Delta(request) => request.encode_to_vec(),
        };
        self.messages += 1;
        if let Some(connection) = &mut self.peers[peer].2 {
            connection.up.push_back(bytes.into());
        }
    }

    fn deliver_request(&mut self, peer: usize) {
        let Some(connection) = &mut self.peers[peer].2 else { return };
        let Some(bytes) = connection.up.pop_front() else { return };
        let (session, stream) = (&mut self.session, connection.stream);
        let heard = match self.variant {
            Variant::Sotw => session.on_request(stream, &discovery::DiscoveryRequest::decode(bytes).expect("request")),
            Variant::Delta => {
                session.on_delta_request(stream, &discovery::DeltaDiscoveryRequest::decode(bytes).expect("request"))
            }
        };
        heard.expect("every request of the client half is answerable");
    }

    fn send_responses(&mut self, peer: usize) {
        let Some(stream) = self.peers[peer].2.as_ref().map(|connection| connection.stream) else { return };
        while let Some(response) = self.session.poll_stream(stream, self.now) {
            self.trace(|| format!("<- {response:?}"));
            self.messages += 1;
            let mut bytes = Vec::new();
            response.encode(&mut bytes);
            if let Some(connection) = &mut self.peers[peer].2 {
                connection.down.push_back((self.messages, bytes.into()));
            }
        }
    }

    fn deliver_response(&mut self, peer: usize) {
        let (client, _, Some(connection)) = &mut self.peers[peer] else { return };
        let Some((_, bytes)) = connection.down.pop_front() else { return };
        let update = match self.variant {
            Variant::Sotw => client.on_response(discovery::DiscoveryResponse::decode(bytes).expect("response")),
            Variant::Delta => {
                client.on_delta_response(discovery::DeltaDiscoveryResponse::decode(bytes).expect("response"))
            }
        };
        let update = update.expect("every response of the server half is answerable");
        let of = SWAPPED.into_iter().find(|of| **of == **update.type_url()).expect("a known type");
        let mut rejections = Vec::new();
        for received in update.resources() {
            if is_bad(&received.body.value) {
                rejections.push(Rejection { name: received.name.to_string(), reason: "mark: bad".to_owned() });
            } else {
                self.held.insert((of, Name::clone(&received.name)), received.body.value.clone());
            }
        }
        for name in update.removed() {
            if self.held.remove(&(of, Name::clone(name))).is_some() && of != ROUTE_CONFIGURATION {
                let led = ways(&self.held).find(|(_, cluster)| cluster == name);
                assert!(led.is_none(), "{of} {name} was taken away, and {led:?} lead there");
            }
        }
        self.refused += rejections.len() as u64;
        let answer = if rejections.is_empty() { update.ack() } else { update.nack(rejections) };
        if of == CLUSTER {
            // Before the answer, as a data plane does.
            let names: Vec<Name> =
                self.held.keys().filter(|(of, _)| *of == CLUSTER).map(|(_, name)| Name::clone(name)).collect();
            let kept = |(of, name): &(&str, Name)| *of != CLUSTER_LOAD_ASSIGNMENT || names.contains(name);
            self.held.retain(|key, _| kept(key));
            self.client(CLUSTER_LOAD_ASSIGNMENT).watch(CLUSTER_LOAD_ASSIGNMENT, Interest::named(names));
            let assignments =
                self.peers.iter().position(|(_, only, _)| only.is_none_or(|only| only == CLUSTER_LOAD_ASSIGNMENT));
            self.send_requests(assignments.expect("a peer for assignments"));
        }
        self.send(peer, &answer);
    }

    fn trace(&self, line: impl FnOnce() -> String) {
        if self.verbose {
            eprintln!("{}", line());
        }
    }
}
