//! The simulated world: a publisher, a server, one node with one or several clients, and the shadow model.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use culvert_api::envoy::config::core::v3::Node;
use culvert_api::envoy::service::discovery::v3 as discovery;
use culvert_api::type_url::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, ROUTE_CONFIGURATION};
use culvert_xds::server::StagingLimits;
use culvert_xds::{
    Client, ClientConfig, Interest, Name, NodeIdentity, Request, Resource, ResourceTimer, Session, SessionConfig,
    Snapshot, StreamId, StreamKind, Variant,
};
use prost::Message;

use crate::contents::{NAMES, TYPES, content, is_bad, name_of};
use crate::network::{Choices, Connection};
use crate::shadow::{Shadow, consume, forget};

const STEPS: usize = 400;

/// What a run amounted to.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) messages: u64,
    pub(crate) refused: u64,
}

pub(crate) struct World {
    choices: Choices,
    verbose: bool,
    variant: Variant,
    /// Whether the server knows that the node applies the good resources of a response that it refuses.
    partial: bool,
    /// Whether changes go out in steps.
    staged: bool,
    now: Duration,
    published: Published,
    server: Server,
    peers: Vec<Peer>,
    /// Accepted contents by type and name: what the consumer works with.
    store: BTreeMap<(&'static str, Name), Bytes>,
    shadow: Shadow,
    report: Report,
    /// Of 100 chances to lose a connection, so many are taken: some runs are calm, and nothing is healed by a new stream.
    churn: usize,
}

/// What the operator wants, and the snapshot of it.
#[derive(Default)]
struct Published {
    contents: BTreeMap<(&'static str, Name), Bytes>,
    snapshot: Arc<Snapshot>,
    edits: u32,
}

struct Server {
    sessions: Vec<Session>,
    /// Streams whose end the server has not noticed yet.
    lingering: Vec<(usize, StreamId)>,
    streams: u64,
}

/// One client of the node and its stream: ADS, or one type of several.
struct Peer {
    client: Client,
    only: Option<&'static str>,
    connection: Option<Connection>,
}

impl World {
    pub(crate) fn new(seed: u64, verbose: bool) -> Self {
        let mut choices = Choices::new(seed);
        let variant = if seed.is_multiple_of(2) { Variant::Sotw } else { Variant::Delta };
        let partial = !choices.percent(15);
        let staged = choices.percent(50);
        let split = choices.percent(35);
        let churn = [0, 10, 100][choices.below(3)];
        let config = ClientConfig {
            variant,
            node: Node { id: "n".into(), ..Node::default() },
            node_on_first_message_only: choices.percent(50),
            resource_timer: ResourceTimer::DoesNotExist,
            fail_on_data_errors: false,
        };
        let peer = |only| Peer { client: Client::new(config.clone()), only, connection: None };
        let peers = if split { TYPES.iter().map(|only| peer(Some(*only))).collect() } else { vec![peer(None)] };
        let mut world = Self {
            choices,
            verbose,
            variant,
            partial,
            staged,
            now: Duration::ZERO,
            published: Published::default(),
            server: Server { sessions: Vec::new(), lingering: Vec::new(), streams: 0 },
            peers,
            store: BTreeMap::new(),
            shadow: Shadow::default(),
            report: Report { messages: 0, refused: 0 },
            churn,
        };
        for of in [CLUSTER, LISTENER] {
            world.watch(of, Interest::everything());
        }
        world
    }

    pub(crate) fn run(mut self) -> Report {
        for _ in 0..STEPS {
            self.step();
        }
        if self.staged {
            // What was refused ended its change, and what came after it waits for a change without it.
            self.mend();
            for _ in 0..8 {
                self.settle();
                self.now += Duration::from_secs(6);
            }
        }
        self.settle();
        self.trace(|| format!("progress {:?}", self.server.sessions.iter().map(Session::progress).collect::<Vec<_>>()));
        self.check();
        self.report
    }

    /// Replaces everything that clients refuse.
    fn mend(&mut self) {
        for ((of, name), body) in &mut self.published.contents {
            if is_bad(body) {
                *body = content(of, name, "mended");
            }
        }
        self.put_in_force();
    }

    fn step(&mut self) {
        let peer = self.choices.below(self.peers.len());
        match self.choices.below(100) {
            0..10 => self.publish(),
            10..16 => self.watch_routes(),
            16..20 => self.disconnect(peer),
            20..30 => self.connect(peer),
            30..31 => self.restart_server(),
            31..35 => self.notice_lingering(),
            35..37 => self.pass_time(),
            37..52 => self.send_requests(peer),
            52..67 => self.send_responses(peer),
            67..83 => self.deliver_request(peer),
            _ => self.deliver_response(peer),
        }
    }

    /// No more changes: everything is delivered until nobody has anything left to say.
    fn settle(&mut self) {
        self.notice_lingering();
        let before = self.report.messages;
        loop {
            let said = self.report.messages;
            for peer in 0..self.peers.len() {
                self.connect(peer);
                self.send_requests(peer);
                while self.has_request(peer) {
                    self.deliver_request(peer);
                }
                self.send_responses(peer);
                while self.has_response(peer) {
                    self.deliver_response(peer);
                }
            }
            if self.report.messages == said {
                break;
            }
            let spoken = self.report.messages - before;
            assert!(spoken < 2_000, "both halves still talk after {spoken} messages without any change");
        }
    }

    fn check(&self) {
        for of in TYPES {
            let interest = self.interest(of);
            let names: BTreeSet<Name> = (0..NAMES).map(|index| name_of(of, index)).collect();
            for name in names {
                let key = (of, name);
                let held = self.store.get(&key);
                let set = self.published.snapshot.of_type(of);
                let published = set.and_then(|set| {
                    if interest.names.contains(&key.1) { set.get(&key.1) } else { set.get_listed(&key.1) }
                });
                let published = published.map(|resource| resource.value());
                let at = format!("{} {}", culvert_api::type_url::short_name(of), key.1);
                if !interest.covers(&key.1) {
                    assert!(held.is_none(), "{at}: held and not wanted");
                    continue;
                }
                assert!(held.is_none_or(|held| !is_bad(held)), "{at}: a refused content is held");
                match published {
                    Some(good) if !is_bad(&good) => {
                        assert!(held == Some(&good) || !self.partial, "{at}: held {held:?}, published {good:?}");
                    }
                    Some(_) if self.partial => {
                        if let Some(accepted) = self.shadow.accepted.get(&key) {
                            assert_eq!(held, Some(accepted), "{at}: the last accepted content is to be kept");
                        }
                    }
                    // Only these two can say in the state of the world that something is gone.
                    None if self.variant == Variant::Delta || of == CLUSTER || of == LISTENER => {
                        assert_eq!(held, None, "{at}: held and not published");
                    }
                    _ => {}
                }
            }
        }
    }

    fn publish(&mut self) {
        for _ in 0..=self.choices.below(4) {
            let of = TYPES[self.choices.below(TYPES.len())];
            let name = name_of(of, self.choices.below(NAMES));
            let key = (of, Name::clone(&name));
            self.published.edits += 1;
            if self.choices.percent(25) {
                self.published.contents.remove(&key);
            } else {
                let bad = self.choices.percent(25);
                // Few values, so that contents come back.
                let mark = if bad { "bad" } else { ["1", "2", "3"][self.choices.below(3)] };
                self.published.contents.insert(key, content(of, &name, mark));
            }
        }
        self.put_in_force();
    }

    fn put_in_force(&mut self) {
        self.published.snapshot = Arc::new(self.snapshot());
        let snapshot = &self.published.snapshot;
        for session in &mut self.server.sessions {
            session.on_snapshot(Arc::clone(snapshot), self.now);
        }
        // A stand-in replaces what was unpublished, and what is no longer covered by one is gone.
        let gone = |key: &(&'static str, Name)| snapshot.of_type(key.0).is_none_or(|set| set.get(&key.1).is_none());
        for key in TYPES.into_iter().flat_map(|of| (0..NAMES).map(move |index| (of, name_of(of, index)))) {
            if gone(&key) {
                self.shadow.accepted.remove(&key);
                self.shadow.absent.insert(key, self.report.messages);
            }
        }
    }

    fn snapshot(&mut self) -> Snapshot {
        let fresh = self.choices.percent(20);
        let mut builder = if fresh { Snapshot::builder() } else { self.published.snapshot.successor() };
        for ((of, name), body) in &self.published.contents {
            builder.insert(Arc::new(Resource::new(&(*of).into(), Name::clone(name), body)));
        }
        builder.build()
    }

    fn watch_routes(&mut self) {
        let names: Vec<Name> =
            (0..NAMES).filter(|_| self.choices.percent(50)).map(|index| name_of(ROUTE_CONFIGURATION, index)).collect();
        self.watch(ROUTE_CONFIGURATION, Interest::named(names));
        if self.choices.percent(30) {
            let names = self.assignments();
            self.watch(CLUSTER_LOAD_ASSIGNMENT, Interest::named(Vec::new()));
            self.watch(CLUSTER_LOAD_ASSIGNMENT, Interest::named(names));
        }
    }

    /// The assignments of the clusters that are held.
    fn assignments(&self) -> Vec<Name> {
        self.store.keys().filter(|(of, _)| *of == CLUSTER).map(|(_, name)| Name::clone(name)).collect()
    }

    fn watch(&mut self, of: &'static str, interest: Interest) {
        let peer = self.peer_of(of);
        forget(&mut self.store, &mut self.shadow, of, &interest);
        self.peers[peer].client.watch(of, interest);
    }

    fn peer_of(&self, of: &str) -> usize {
        self.peers.iter().position(|peer| peer.only.is_none_or(|only| only == of)).expect("a peer for every type")
    }

    fn interest(&self, of: &'static str) -> Interest {
        match of {
            CLUSTER | LISTENER => Interest::everything(),
            CLUSTER_LOAD_ASSIGNMENT => Interest::named(self.assignments()),
            _ => self.peers[self.peer_of(of)].client.interest(of).cloned().unwrap_or_default(),
        }
    }

    fn pass_time(&mut self) {
        self.now += Duration::from_secs(self.choices.below(10) as u64);
        for peer in &mut self.peers {
            while let Some(missing) = peer.client.poll_timeout(self.now) {
                assert!(peer.connection.is_some(), "{missing:?}: a timer ran without a stream");
            }
        }
    }

    fn connect(&mut self, peer: usize) {
        let peer = &mut self.peers[peer];
        if peer.connection.is_none() {
            self.server.streams += 1;
            peer.connection = Some(Connection::new(StreamId(self.server.streams)));
            peer.client.on_connected();
        }
    }

    /// Everything under way is lost; the server may notice much later.
    fn disconnect(&mut self, peer: usize) {
        if !self.choices.percent(self.churn) {
            return;
        }
        let peer = &mut self.peers[peer];
        let Some(connection) = peer.connection.take() else { return };
        peer.client.on_disconnected();
        if let Some(session) = connection.session {
            self.server.lingering.push((session, connection.stream));
        }
        if self.choices.percent(60) {
            self.notice_lingering();
        }
    }

    fn notice_lingering(&mut self) {
        for (session, stream) in std::mem::take(&mut self.server.lingering) {
            self.server.sessions[session].on_close(stream);
        }
    }

    fn restart_server(&mut self) {
        if !self.choices.percent(self.churn) {
            return;
        }
        for peer in &mut self.peers {
            if peer.connection.take().is_some() {
                peer.client.on_disconnected();
            }
        }
        self.server.sessions.clear();
        self.server.lingering.clear();
        self.published.snapshot = Arc::new({
            let mut builder = Snapshot::builder();
            for ((of, name), body) in &self.published.contents {
                builder.insert(Arc::new(Resource::new(&(*of).into(), Name::clone(name), body)));
            }
            builder.build()
        });
    }

    fn send_requests(&mut self, peer: usize) {
        while let Some(request) = self.peers[peer].client.poll_request(self.now) {
            self.send(peer, &request);
        }
    }

    fn send(&mut self, peer: usize, request: &Request) {
        self.trace(|| format!("-> {request:?}"));
        let bytes = match request {
            Request::Sotw(request) => request.encode_to_vec(),
            Request::Delta(request) => request.encode_to_vec(),
        };
        self.report.messages += 1;
        if let Some(connection) = &mut self.peers[peer].connection {
            connection.up.push_back(bytes.into());
        }
    }

    fn has_request(&self, peer: usize) -> bool {
        self.peers[peer].connection.as_ref().is_some_and(|connection| !connection.up.is_empty())
    }

    fn has_response(&self, peer: usize) -> bool {
        self.peers[peer].connection.as_ref().is_some_and(|connection| !connection.down.is_empty())
    }

    fn deliver_request(&mut self, peer: usize) {
        let Peer { connection: Some(connection), only, .. } = &mut self.peers[peer] else { return };
        let Some(bytes) = connection.up.pop_front() else { return };
        let stream = connection.stream;
        let only = *only;
        let session = match connection.session {
            Some(session) => session,
            None => {
                let session = self.server.attach(
                    stream,
                    only,
                    self.variant,
                    (self.partial, self.staged),
                    &self.published.snapshot,
                );
                connection.session = Some(session);
                session
            }
        };
        let twice = self.variant == Variant::Sotw && self.choices.percent(8);
        let session = &mut self.server.sessions[session];
        for _ in 0..=usize::from(twice) {
            let heard = match self.variant {
                Variant::Sotw => {
                    session.on_request(stream, &discovery::DiscoveryRequest::decode(bytes.clone()).expect("request"))
                }
                Variant::Delta => session.on_delta_request(
                    stream,
                    &discovery::DeltaDiscoveryRequest::decode(bytes.clone()).expect("request"),
                ),
            };
            heard.expect("every request of the client half is answerable");
        }
    }

    fn send_responses(&mut self, peer: usize) {
        let Some(connection) = &mut self.peers[peer].connection else { return };
        let Some(session) = connection.session else { return };
        let mut sent = Vec::new();
        while let Some(response) = self.server.sessions[session].poll_stream(connection.stream, self.now) {
            let mut bytes = BytesMut::new();
            response.encode(&mut bytes);
            assert_eq!(bytes.len(), response.encoded_len(), "the length announced for {response:?}");
            self.report.messages += 1;
            connection.down.push_back((self.report.messages, bytes.freeze()));
            sent.push(response);
        }
        for response in sent {
            self.trace(|| format!("<- {response:?}"));
        }
    }

    fn deliver_response(&mut self, peer: usize) {
        let Some(connection) = &mut self.peers[peer].connection else { return };
        let Some((sent, bytes)) = connection.down.pop_front() else { return };
        for _ in 0..=usize::from(self.choices.percent(4)) {
            let client = &mut self.peers[peer].client;
            let update = match self.variant {
                Variant::Sotw => {
                    client.on_response(discovery::DiscoveryResponse::decode(bytes.clone()).expect("response"))
                }
                Variant::Delta => client
                    .on_delta_response(discovery::DeltaDiscoveryResponse::decode(bytes.clone()).expect("response")),
            };
            let update = update.expect("every response of the server half is answerable");
            let of = TYPES.into_iter().find(|of| **of == **update.type_url()).expect("a known type");
            let request = consume(update, of, sent, &mut self.store, &mut self.shadow, &mut self.report.refused);
            if of == CLUSTER {
                // Before the answer, as a data plane does.
                let names = self.assignments();
                self.watch(CLUSTER_LOAD_ASSIGNMENT, Interest::named(names));
                let peer = self.peer_of(CLUSTER_LOAD_ASSIGNMENT);
                self.send_requests(peer);
            }
            self.send(peer, &request);
        }
    }

    fn trace(&self, line: impl FnOnce() -> String) {
        if self.verbose {
            eprintln!("{}", line());
        }
    }
}

impl Server {
    /// The session that a stream joins: the first whose streams leave it room.
    fn attach(
        &mut self,
        stream: StreamId,
        only: Option<&str>,
        variant: Variant,
        (partial, staged): (bool, bool),
        snapshot: &Arc<Snapshot>,
    ) -> usize {
        let kind = StreamKind { variant, type_url: only.map(Into::into) };
        if let Some(at) = self.sessions.iter_mut().position(|session| session.open(stream, kind.clone()).is_ok()) {
            return at;
        }
        let staging = staged.then(StagingLimits::default);
        let config = SessionConfig { staging, ..SessionConfig::default() };
        let client_features = if partial { vec![culvert_xds::PARTIAL_ACK.to_owned()] } else { Vec::new() };
        let node = Arc::new(NodeIdentity { id: "n".into(), client_features, ..NodeIdentity::default() });
        let mut session = Session::new(config, node, Arc::clone(snapshot));
        session.open(stream, kind).expect("a new session has room");
        self.sessions.push(session);
        self.sessions.len() - 1
    }
}
