//! One node and its streams.

mod change;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use culvert_api::envoy::config::core::v3::Node;
use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use culvert_api::{pool, type_url};

use super::memory::Memory;
use super::response::Nonce;
use super::staging::{Limits, Progress, Staging};
use super::status::{self, TypeStatus};
use super::subscription::{RequestSettings, Subscription};
use super::{Heard, NodeIdentity, RequestError, Response, StreamId, StreamKind};
use crate::Variant;
use crate::resource::{Resource, TypeUrl, may_be_asked_for_without_names};
use crate::snapshot::{Snapshot, TypeSet};

/// Settings of a [`Session`].
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// `control_plane.identifier` of every response.
    pub control_plane: Arc<str>,
    /// Whether a first request without names asks for everything (all types but EDS, LEDS, RDS, SDS, ECDS and RTDS). Of gRPC's
    /// clients it never does.
    pub legacy_wildcard: bool,
    /// A change goes to the node in steps, so that nothing is taken away that something still refers to. `None`: at once.
    pub staging: Option<Limits>,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self { control_plane: "culvert-control".into(), legacy_wildcard: true, staging: Some(Limits::default()) }
    }
}

/// Another stream of this session already speaks about these types: the stream needs a session of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another stream of this node is subscribed to the same types")]
pub struct Occupied;

/// What the control plane knows about one node: its streams (ADS, or one per type), what each is subscribed to, what
/// the node accepted and refused. Survives its streams, so that a node that comes back is not sent again what it
/// refused.
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    node: Arc<NodeIdentity>,
    staging: Staging,
    /// Counts changes of what is served that nobody told the session: other streams have to look again.
    steps: u64,
    /// Subscriptions to types that nobody here knows.
    unknown_types: usize,
    /// The time that the caller said last.
    now: Duration,
    /// What ended a change is forgotten: the node starts anew, and gets it once more.
    retry: bool,
    streams: BTreeMap<StreamId, Stream>,
    /// What is known of types that no stream asks for at the moment.
    parked: BTreeMap<TypeUrl, Parked>,
    /// Stands for the types that the snapshot does not have.
    nothing: Arc<TypeSet>,
}

/// A type whose stream ended, or of which a node has something that came from another server.
#[derive(Debug)]
struct Parked {
    memory: Memory,
    /// A change waits for the node to ask again.
    awaited: bool,
}

#[derive(Debug)]
struct Stream {
    kind: StreamKind,
    /// In push order.
    subscriptions: Vec<Subscription>,
    /// Of its latest response.
    nonce: Nonce,
}

impl Session {
    /// Most types on one stream.
    const MAX_TYPES: usize = 64;

    #[must_use]
    pub fn new(config: SessionConfig, node: Arc<NodeIdentity>, snapshot: Arc<Snapshot>) -> Self {
        Self {
            config,
            node,
            staging: Staging::new(snapshot),
            steps: 0,
            unknown_types: 0,
            now: Duration::ZERO,
            retry: false,
            streams: BTreeMap::new(),
            parked: BTreeMap::new(),
            nothing: Arc::new(TypeSet::default()),
        }
    }

    #[must_use]
    pub fn node(&self) -> &Arc<NodeIdentity> {
        &self.node
    }

    /// What the node should hold; see [`Session::progress`].
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        self.staging.target()
    }

    /// How far the node is on the way there.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.staging.progress()
    }

    /// Changes whenever streams other than the one polled have to look again.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// How often a stream began to ask for a type that is neither served nor one of the API: somebody's mistake, or a client of
    /// another control plane.
    #[must_use]
    pub fn unknown_types(&self) -> usize {
        self.unknown_types
    }

    /// Attaches a stream.
    ///
    /// # Errors
    /// An open stream already serves one of its types; the stream needs a session of its own.
    pub fn open(&mut self, stream: StreamId, kind: StreamKind) -> Result<(), Occupied> {
        // Envoy without ADS has a stream for each name of the types that are referred to by name.
        let shares = kind.type_url.as_ref().is_some_and(|of| !may_be_asked_for_without_names(of));
        let same = |open: &Stream| !shares && open.kind.type_url == kind.type_url;
        let taken = self.streams.iter().any(|(id, open)| *id == stream || same(open));
        if taken {
            return Err(Occupied);
        }
        self.streams.insert(stream, Stream { kind, subscriptions: Vec::new(), nonce: Nonce::before(stream) });
        Ok(())
    }

    /// Detaches a stream. What the node accepted and refused stays known.
    pub fn on_close(&mut self, stream: StreamId) {
        let Some(stream) = self.streams.remove(&stream) else { return };
        for subscription in stream.subscriptions {
            if self.subscriptions().any(|other| other.type_url == subscription.type_url) {
                continue;
            }
            let parked = Parked { memory: subscription.memory, awaited: true };
            self.parked.insert(subscription.type_url, parked);
        }
        while self.parked.len() > Self::MAX_TYPES {
            self.parked.pop_last();
        }
    }

    /// Whether no stream is attached.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.streams.is_empty()
    }

    /// Tells the time, as for [`Session::poll_stream`]: what is heard from now on is heard then.
    pub fn tell_time(&mut self, now: Duration) {
        self.now = now;
    }

    /// Takes a request of a state-of-the-world stream.
    ///
    /// # Errors
    /// The stream is to be closed with the error's code.
    pub fn on_request(&mut self, stream: StreamId, request: &DiscoveryRequest) -> Result<Heard, RequestError> {
        self.check_node(request.node.as_ref())?;
        let settings = self.settings();
        let (subscription, set) = self.subscription(stream, Variant::Sotw, &request.type_url)?;
        let heard = subscription.on_request(request, &set, settings)?;
        let refused = subscription.refused();
        self.retry |= subscription.refuses_nothing() && self.halted_by(&refused.0);
        self.after(heard, refused);
        Ok(heard)
    }

    /// Takes a request of a delta stream.
    ///
    /// # Errors
    /// The stream is to be closed with the error's code.
    pub fn on_delta_request(
        &mut self,
        stream: StreamId,
        request: &DeltaDiscoveryRequest,
    ) -> Result<Heard, RequestError> {
        self.check_node(request.node.as_ref())?;
        let settings = self.settings();
        let is_stranger = !request.initial_resource_versions.is_empty() && self.held().next().is_none();
        if is_stranger {
            self.meet();
        }
        let met = self.staging.is_meeting().then(|| Arc::clone(self.staging.target()));
        let (subscription, set) = self.subscription(stream, Variant::Delta, &request.type_url)?;
        let withheld = subscription.withholds_any();
        let met = met.filter(|_| &*subscription.type_url == type_url::CLUSTER && !subscription.is_started());
        let heard = subscription.on_delta_request(request, &set, settings)?;
        let clusters = met.iter().flat_map(|target| subscription.news(&set).map(move |cluster| (target, cluster)));
        let assignments =
            clusters.filter_map(|(target, cluster)| target.assignment_to_come(cluster)).cloned().collect();
        let refused = subscription.refused();
        let (holds_back, refuses_nothing) = (!withheld && subscription.withholds_any(), subscription.refuses_nothing());
        self.retry |= refuses_nothing && self.halted_by(&refused.0);
        self.staging.add_assignments(assignments);
        if holds_back {
            self.hold_back();
        }
        self.after(heard, refused);
        Ok(heard)
    }

    /// Replaces what the node should hold. It gets there in steps ([`Progress`]); `now` is the time since whatever moment the
    /// caller counts from.
    pub fn on_snapshot(&mut self, snapshot: Arc<Snapshot>, now: Duration) {
        for subscription in self.streams.values_mut().flat_map(|stream| &mut stream.subscriptions) {
            subscription.memory.new_target();
            subscription.release(snapshot.of_type(&subscription.type_url).unwrap_or(&self.nothing));
        }
        for (type_url, parked) in &mut self.parked {
            parked.memory.new_target();
            parked.memory.release(snapshot.of_type(type_url).unwrap_or(&self.nothing));
        }
        if self.config.staging.is_some() {
            self.staging.start(snapshot, now);
        } else {
            self.staging.jump(snapshot);
        }
    }

    /// When to poll the stream again although nothing was heard.
    #[must_use]
    pub fn poll_timeout(&self, stream: StreamId) -> Option<Duration> {
        let step = self.config.staging.as_ref().and_then(|limits| self.staging.deadline(limits));
        // Of its own: what another stream has to say does not come by polling this one.
        let own = self.streams.get(&stream).into_iter().flat_map(|stream| &stream.subscriptions);
        step.into_iter().chain(own.filter_map(Subscription::deadline)).min()
    }

    /// The next response that may be sent, in push order per stream. `None`: nothing to say, or every subscription
    /// that has something to say waits for the answer to its last response.
    pub fn poll_response(&mut self, now: Duration) -> Option<(StreamId, Response)> {
        let streams: Vec<StreamId> = self.streams.keys().copied().collect();
        streams.into_iter().find_map(|stream| Some((stream, self.poll_stream(stream, now)?)))
    }

    /// As [`Session::poll_response`], for one stream whose transport has room.
    pub fn poll_stream(&mut self, stream: StreamId, now: Duration) -> Option<Response> {
        self.now = now;
        if std::mem::take(&mut self.retry) {
            self.staging.restart(now);
            self.steps += 1;
        }
        loop {
            let response = self.next(stream);
            if response.is_some() || !self.advance(now) {
                return response;
            }
        }
    }

    fn next(&mut self, stream: StreamId) -> Option<Response> {
        let Stream { subscriptions, nonce, .. } = self.streams.get_mut(&stream)?;
        let response = subscriptions.iter_mut().find_map(|subscription| {
            if self.staging.withholds(&subscription.type_url) {
                return None;
            }
            let set = self.staging.served().of_type(&subscription.type_url).unwrap_or(&self.nothing);
            subscription.memory.now = self.now;
            subscription.next(set, || nonce.advance(), &self.config.control_plane)
        })?;
        Self::repeat_what_is_referred_to(subscriptions, response.type_url());
        Some(response)
    }

    /// Envoy takes a changed cluster for another one, which waits for an assignment even though it holds that (Envoy, "Resource
    /// warming"); so do a scope's routes in state of the world, whose names may be the same as before.
    fn repeat_what_is_referred_to(subscriptions: &mut [Subscription], by: &str) {
        let referred = match by {
            type_url::CLUSTER => type_url::CLUSTER_LOAD_ASSIGNMENT,
            type_url::SCOPED_ROUTE_CONFIGURATION => type_url::ROUTE_CONFIGURATION,
            _ => return,
        };
        let place = |wanted: &str| subscriptions.iter().position(|one| &*one.type_url == wanted);
        let (Some(by), Some(referred)) = (place(by), place(referred)) else { return };
        if let Ok([by, referred]) = subscriptions.get_disjoint_mut([by, referred]) {
            referred.repeat(by.referred_names());
        }
    }

    /// Whether a response of this type is unanswered on any stream.
    #[must_use]
    pub fn is_outstanding(&self, type_url: &str) -> bool {
        self.subscriptions()
            .any(|subscription| &*subscription.type_url == type_url && subscription.outstanding.is_some())
    }

    /// Whether a response is unanswered on this stream.
    #[must_use]
    pub fn awaits_answer(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_some_and(|open| open.subscriptions.iter().any(|one| one.outstanding.is_some()))
    }

    /// What the node holds, by subscription; then what is served and not asked for.
    #[must_use]
    pub fn status(&self) -> Vec<TypeStatus> {
        let mut types: Vec<TypeStatus> = self
            .subscriptions()
            .map(|subscription| {
                let set = self.staging.target().of_type(&subscription.type_url).unwrap_or(&self.nothing);
                status::of_subscription(subscription, set)
            })
            .collect();
        for (type_url, set) in self.staging.target().types() {
            if !types.iter().any(|status| status.type_url == *type_url) {
                types.push(status::of_parked(type_url, set, self.parked.get(type_url).map(|parked| &parked.memory)));
            }
        }
        types.sort_by_key(|status| (type_url::push_order(&status.type_url), Arc::clone(&status.type_url)));
        types
    }

    /// What the node accepted last, as far as is known.
    pub fn held(&self) -> impl Iterator<Item = &Arc<Resource>> {
        let parked = self.parked.values().flat_map(|parked| parked.memory.all_accepted());
        self.subscriptions().flat_map(|one| one.memory.all_accepted()).chain(parked)
    }

    fn subscriptions(&self) -> impl Iterator<Item = &Subscription> {
        self.streams.values().flat_map(|stream| &stream.subscriptions)
    }

    fn settings(&self) -> RequestSettings {
        let legacy_wildcard = self.config.legacy_wildcard && !self.node.is_grpc();
        let staged = self.config.staging.is_some();
        RequestSettings { legacy_wildcard, partial_ack: self.node.acknowledges_in_part(), staged }
    }

    /// xDS: only the first message of a stream must carry the node; a later one may not be another's.
    fn check_node(&self, node: Option<&Node>) -> Result<(), RequestError> {
        match node {
            Some(node) if !node.id.is_empty() && node.id != self.node.id => {
                Err(RequestError::NodeChanged { expected: self.node.id.clone(), found: node.id.clone() })
            }
            _ => Ok(()),
        }
    }

    /// The subscription that a request is about, which it may begin, and the set that it is served from.
    fn subscription(
        &mut self,
        stream: StreamId,
        variant: Variant,
        type_url: &str,
    ) -> Result<(&mut Subscription, Arc<TypeSet>), RequestError> {
        let stream = self.streams.get_mut(&stream).filter(|stream| stream.kind.variant == variant);
        let stream = stream.ok_or(RequestError::NoSuchStream)?;
        let type_url = match &stream.kind.type_url {
            None if type_url.is_empty() => return Err(RequestError::MissingTypeUrl),
            None => type_url,
            // xDS: on the stream of one type its URL is implied.
            Some(only) if type_url.is_empty() || type_url == &**only => &**only,
            Some(only) => {
                return Err(RequestError::WrongType { expected: only.to_string(), found: type_url.to_owned() });
            }
        };
        let set = Arc::clone(self.staging.served().of_type(type_url).unwrap_or(&self.nothing));
        let subscriptions = &mut stream.subscriptions;
        let index = match subscriptions.iter().position(|subscription| &*subscription.type_url == type_url) {
            Some(index) => index,
            None if subscriptions.len() >= Self::MAX_TYPES => {
                return Err(RequestError::TooManyTypes { limit: Self::MAX_TYPES });
            }
            None => {
                if self.staging.target().of_type(type_url).is_none() {
                    self.unknown_types += usize::from(pool::message(type_url).is_none());
                    tracing::info!(node = self.node.id, type_url, "asked for a type of which there is nothing");
                }
                let parked = self.parked.remove_entry(type_url).map(|(url, parked)| (url, parked.memory));
                let (url, memory) = parked.unwrap_or_else(|| (type_url.into(), Memory::default()));
                let order = type_url::push_order(type_url);
                let at = subscriptions.partition_point(|other| type_url::push_order(&other.type_url) <= order);
                let mut new = Subscription::new(variant, url, memory);
                new.tells_absence = self.node.hears_of_absence();
                new.takes_ttl = self.node.takes_ttl(type_url);
                subscriptions.insert(at, new);
                at
            }
        };
        let subscription = subscriptions.get_mut(index).ok_or(RequestError::NoSuchStream)?;
        subscription.memory.now = self.now;
        Ok((subscription, set))
    }
}
