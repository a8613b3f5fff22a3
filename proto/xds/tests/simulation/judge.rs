//! A client of any habits against the server half, whose every response is judged by a model of the protocol that shares nothing
//! with it: what is subscribed to, what was sent, what has to be answered, what was refused, what is kept alive.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use culvert_api::envoy::service::discovery::v3 as discovery;
use culvert_api::google::rpc;
use culvert_api::type_url::{CLUSTER, LISTENER, ROUTE_CONFIGURATION, SECRET, short_name};
use culvert_xds::resource::Extras;
use culvert_xds::{
    NodeIdentity, PARTIAL_ACK, Resource, Session, SessionConfig, Snapshot, StreamId, StreamKind, Variant,
};
use prost::Message;

use crate::network::Choices;
use crate::told::{Carried, Told};

/// Two of which a response holds all there is, and two that are answered in part.
pub(crate) const JUDGED: [&str; 4] = [CLUSTER, LISTENER, ROUTE_CONFIGURATION, SECRET];
/// The last one is never published, the one before has a TTL.
pub(crate) const NAMES: [&str; 6] = ["a", "b", "c", "d", "ttl", "ghost"];
const TTL: Duration = Duration::from_secs(12);
const STEPS: usize = 500;

struct World {
    choices: Choices,
    verbose: bool,
    variant: Variant,
    session: Session,
    stream: StreamId,
    now: Duration,
    published: BTreeMap<(&'static str, String), Arc<Resource>>,
    /// Everything that was ever published: name and version by content.
    known: BTreeMap<Bytes, (String, String)>,
    types: BTreeMap<&'static str, Told>,
    nonces: BTreeSet<String>,
    /// Responses that the client did not read yet.
    inbox: VecDeque<(&'static str, String)>,
    messages: u64,
    refused: u64,
}

pub(crate) fn run(seed: u64, verbose: bool) -> (u64, u64) {
    let mut choices = Choices::new(seed);
    let variant = if seed.is_multiple_of(2) { Variant::Sotw } else { Variant::Delta };
    // What a state-of-the-world client must say to be sent TTLs.
    let ttls = choices.percent(50).then(|| "xds.config.resource-in-sotw".to_owned());
    let client_features = ttls.into_iter().chain([PARTIAL_ACK.to_owned()]).collect();
    let node = Arc::new(NodeIdentity { id: "n".into(), client_features, ..NodeIdentity::default() });
    // Steps of a change are another model's.
    let config = SessionConfig { staging: None, ..SessionConfig::default() };
    let session = Session::new(config, node, Arc::default());
    let mut world = World {
        choices,
        verbose,
        variant,
        session,
        stream: StreamId(0),
        now: Duration::ZERO,
        published: BTreeMap::new(),
        known: BTreeMap::new(),
        types: BTreeMap::new(),
        nonces: BTreeSet::new(),
        inbox: VecDeque::new(),
        messages: 0,
        refused: 0,
    };
    world.reconnect();
    for _ in 0..STEPS {
        world.step();
    }
    world.settle();
    (world.messages, world.refused)
}

impl World {
    fn step(&mut self) {
        let of = JUDGED[self.choices.below(JUDGED.len())];
        match self.choices.below(100) {
            0..10 => self.publish(),
            10..32 => self.subscribe(of),
            32..60 => drop(self.poll()),
            60..90 => self.read(),
            90..93 => self.settle(),
            93..95 => self.reconnect(),
            _ => self.now += Duration::from_millis(250),
        }
    }

    fn publish(&mut self) {
        for _ in 0..=self.choices.below(3) {
            let of = JUDGED[self.choices.below(JUDGED.len())];
            let name = NAMES[self.choices.below(NAMES.len() - 1)];
            if self.choices.percent(25) {
                self.published.remove(&(of, name.to_owned()));
                self.told(of).lapse(name);
                continue;
            }
            // Few contents, so that they come back.
            let mark = ["bad", "1", "2", "3"][self.choices.below(4)];
            let mut body = Vec::new();
            prost::encoding::string::encode(1, &name.to_owned(), &mut body);
            prost::encoding::string::encode(10_000, &format!("mark-{mark}"), &mut body);
            let extras = Extras { ttl: (name == "ttl").then_some(TTL), ..Extras::default() };
            let resource = Arc::new(Resource::with(&of.into(), name, &body, extras));
            self.known.insert(resource.value(), (name.to_owned(), resource.version().to_string()));
            self.published.insert((of, name.to_owned()), resource);
        }
        let mut builder = Snapshot::builder();
        for resource in self.published.values() {
            builder.insert(Arc::clone(resource));
        }
        self.session.on_snapshot(Arc::new(builder.build()), self.now);
    }

    fn told(&mut self, of: &'static str) -> &mut Told {
        self.types.entry(of).or_insert_with(|| Told::new(of))
    }

    /// Names, and now and then everything.
    fn names(&mut self, percent: usize) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for name in NAMES.into_iter().chain(["*"]) {
            if self.choices.percent(percent) {
                names.push(name.to_owned());
            }
        }
        // The same name twice is one.
        let twice = names.first().filter(|_| self.choices.percent(10)).cloned();
        names.into_iter().chain(twice).collect()
    }

    fn subscribe(&mut self, of: &'static str) {
        let first = !self.told(of).started;
        match self.variant {
            Variant::Sotw => {
                let names = if self.choices.percent(25) { Vec::new() } else { self.names(40) };
                self.told(of).wanted = names;
                let fresh = self.choices.percent(50);
                let version = if first && !fresh { self.told(of).accepted_version.clone() } else { String::new() };
                self.ask_sotw(of, &version, None);
            }
            Variant::Delta => {
                let empty = first && self.choices.percent(40);
                let (subscribe, unsubscribe) =
                    if empty { (Vec::new(), Vec::new()) } else { (self.names(25), self.names(20)) };
                let fresh = self.choices.percent(30);
                let held = if first && !fresh { self.told(of).accepted.clone() } else { BTreeMap::new() };
                self.ask_delta(of, (&subscribe, &unsubscribe), &held, None);
            }
        }
    }

    /// The client's list, with the nonce that it saw last, which may not be the last one sent.
    fn ask_sotw(&mut self, of: &'static str, version: &str, error: Option<rpc::Status>) {
        let told = self.told(of);
        let request = discovery::DiscoveryRequest {
            type_url: of.to_owned(),
            version_info: version.to_owned(),
            resource_names: told.wanted.clone(),
            response_nonce: told.seen_nonce.clone(),
            error_detail: error,
            ..discovery::DiscoveryRequest::default()
        };
        let first = !told.started;
        if first || told.seen_nonce == told.last_nonce {
            told.replace();
            if first && version.is_empty() {
                told.refused.clear();
                told.accepted.clear();
                told.accepted_version.clear();
            }
        }
        self.trace(|| format!("-> {request:?}"));
        self.session.on_request(self.stream, &request).expect("it can be answered");
        if first && !version.is_empty() && self.told(of).is_pure_wildcard() {
            self.poll_or_skip(of);
        }
    }

    /// Everything at the version that the node has may be left unsaid; then it has everything.
    fn poll_or_skip(&mut self, of: &'static str) {
        while self.poll() {}
        if self.told(of).last_nonce.is_empty() {
            let all = self.published_of(of);
            let told = self.told(of);
            let mut has = told.accepted.clone();
            // Of types that are answered in part nobody hears what is gone.
            has.retain(|name, _| told.is_whole() || all.contains_key(name));
            assert_eq!(has, all, "{of}: nothing was sent to who says that it has everything");
            (told.sent, told.owed) = (all, false);
            told.refused.clear();
        }
    }

    fn ask_delta(
        &mut self,
        of: &'static str,
        (subscribe, unsubscribe): (&[String], &[String]),
        held: &BTreeMap<String, String>,
        error: Option<rpc::Status>,
    ) {
        let told = self.told(of);
        let first = !told.started;
        let request = discovery::DeltaDiscoveryRequest {
            type_url: of.to_owned(),
            resource_names_subscribe: subscribe.to_vec(),
            resource_names_unsubscribe: unsubscribe.to_vec(),
            initial_resource_versions: held.clone().into_iter().collect(),
            response_nonce: if first { String::new() } else { told.seen_nonce.clone() },
            error_detail: error,
            ..discovery::DeltaDiscoveryRequest::default()
        };
        told.update(subscribe, unsubscribe);
        if first {
            let published = self.published_of(of);
            self.told(of).hold(held, &published);
        }
        self.trace(|| format!("-> {request:?}"));
        self.session.on_delta_request(self.stream, &request).expect("it can be answered");
    }

    fn published_of(&self, of: &str) -> BTreeMap<String, String> {
        let all = self.published.iter().filter(|((published, _), _)| *published == of);
        all.map(|((_, name), resource)| (name.clone(), resource.version().to_string())).collect()
    }

    /// Takes one response from the server, and judges it. False: there is none.
    fn poll(&mut self) -> bool {
        let Some(response) = self.session.poll_stream(self.stream, self.now) else { return false };
        self.trace(|| format!("<- {response:?}"));
        self.messages += 1;
        let mut bytes = BytesMut::new();
        response.encode(&mut bytes);
        let of = JUDGED.into_iter().find(|of| **of == **response.type_url()).expect("a type that was asked for");
        let carried = match self.variant {
            Variant::Sotw => {
                Carried::of_sotw(&discovery::DiscoveryResponse::decode(&*bytes).expect("it decodes"), &self.known)
            }
            Variant::Delta => {
                Carried::of_delta(&discovery::DeltaDiscoveryResponse::decode(&*bytes).expect("it decodes"), &self.known)
            }
        };
        assert!(self.nonces.insert(carried.nonce.clone()), "nonce {:?} for the second time", carried.nonce);
        let (published, bad) = (self.published_of(of), self.bad_versions());
        let (now, variant) = (self.now, self.variant);
        let nonce = carried.nonce.clone();
        self.told(of).judge(variant, carried, (&published, &bad), now);
        self.inbox.push_back((of, nonce));
        true
    }

    /// The client reads a response, and answers it now or never.
    fn read(&mut self) {
        let Some((of, nonce)) = self.inbox.pop_front() else { return };
        let bad: BTreeSet<String> = self.bad_versions();
        let told = self.told(of);
        told.seen_nonce.clone_from(&nonce);
        let blamed = told.answer(&bad);
        self.refused += blamed.len() as u64;
        let error = (!blamed.is_empty()).then(|| {
            let lines = blamed.iter().map(|name| format!("{}/{name}: mark: bad", short_name(of)));
            rpc::Status { code: 13, message: lines.collect::<Vec<_>>().join("\n"), ..rpc::Status::default() }
        });
        match self.variant {
            Variant::Sotw => {
                let version = self.told(of).accepted_version.clone();
                self.ask_sotw(of, &version, error);
            }
            Variant::Delta => self.ask_delta(of, (&[], &[]), &BTreeMap::new(), error),
        }
    }

    fn bad_versions(&self) -> BTreeSet<String> {
        let is_bad = |content: &Bytes| crate::contents::is_bad(content);
        self.known.iter().filter(|(content, _)| is_bad(content)).map(|(_, (_, version))| version.clone()).collect()
    }

    fn reconnect(&mut self) {
        self.session.on_close(self.stream);
        self.stream = StreamId(self.stream.0 + 1);
        let kind = StreamKind { variant: self.variant, type_url: None };
        self.session.open(self.stream, kind).expect("one stream at a time");
        self.inbox.clear();
        self.types.values_mut().for_each(Told::disconnect);
    }

    /// Everything is sent, read and answered: then everybody has what is published, and no more is said.
    fn settle(&mut self) {
        for round in 0.. {
            while !self.inbox.is_empty() {
                self.read();
            }
            let misunderstood = self.types.iter().filter(|(_, told)| told.is_misunderstood());
            let stale: Vec<&'static str> = misunderstood.map(|(of, _)| *of).collect();
            for of in &stale {
                let version = self.told(of).accepted_version.clone();
                self.ask_sotw(of, &version, None);
            }
            if !self.poll() && stale.is_empty() {
                break;
            }
            assert!(round < 200, "the server does not come to rest");
        }
        for (of, told) in &self.types {
            told.check(self.variant, &self.published_of(of), self.now);
        }
    }

    fn trace(&self, line: impl FnOnce() -> String) {
        if self.verbose {
            eprintln!("{}", line());
        }
    }
}
