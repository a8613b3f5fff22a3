//! One node and its streams.

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_api::envoy::config::core::v3::Node;
use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use culvert_api::type_url;

use super::memory::Memory;
use super::status::{self, TypeStatus};
use super::subscription::{RequestSettings, Subscription};
use super::{Heard, NodeIdentity, RequestError, Response, StreamId, StreamKind};
use crate::Variant;
use crate::resource::TypeUrl;
use crate::snapshot::{Snapshot, TypeSet};

/// Settings of a [`Session`].
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// `control_plane.identifier` of every response.
    pub control_plane: Arc<str>,
    /// Whether a first request without names asks for everything (all types but EDS, LEDS, RDS, SDS, ECDS and RTDS).
    pub legacy_wildcard: bool,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self { control_plane: "culvert-control".into(), legacy_wildcard: true }
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
    snapshot: Arc<Snapshot>,
    streams: BTreeMap<StreamId, Stream>,
    /// What is known of types that no stream asks for at the moment.
    parked: BTreeMap<TypeUrl, Memory>,
    /// Stands for the types that the snapshot does not have.
    nothing: Arc<TypeSet>,
}

#[derive(Debug)]
struct Stream {
    kind: StreamKind,
    /// In push order.
    subscriptions: Vec<Subscription>,
    responses: u64,
}

impl Session {
    /// Most types on one stream.
    const MAX_TYPES: usize = 64;

    #[must_use]
    pub fn new(config: SessionConfig, node: Arc<NodeIdentity>, snapshot: Arc<Snapshot>) -> Self {
        Self {
            config,
            node,
            snapshot,
            streams: BTreeMap::new(),
            parked: BTreeMap::new(),
            nothing: Arc::new(TypeSet::default()),
        }
    }

    #[must_use]
    pub fn node(&self) -> &Arc<NodeIdentity> {
        &self.node
    }

    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Attaches a stream.
    ///
    /// # Errors
    /// An open stream already serves one of its types; the stream needs a session of its own.
    pub fn open(&mut self, stream: StreamId, kind: StreamKind) -> Result<(), Occupied> {
        let taken = self.streams.iter().any(|(id, open)| *id == stream || open.kind.type_url == kind.type_url);
        if taken {
            return Err(Occupied);
        }
        self.streams.insert(stream, Stream { kind, subscriptions: Vec::new(), responses: 0 });
        Ok(())
    }

    /// Detaches a stream. What the node accepted and refused stays known.
    pub fn on_close(&mut self, stream: StreamId) {
        let Some(stream) = self.streams.remove(&stream) else { return };
        for subscription in stream.subscriptions {
            self.parked.insert(subscription.type_url, subscription.memory);
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

    /// Takes a request of a state-of-the-world stream.
    ///
    /// # Errors
    /// The stream is to be closed with the error's code.
    pub fn on_request(&mut self, stream: StreamId, request: &DiscoveryRequest) -> Result<Heard, RequestError> {
        self.check_node(request.node.as_ref())?;
        let settings = self.settings();
        let (subscription, set) = self.subscription(stream, Variant::Sotw, &request.type_url)?;
        let heard = subscription.on_request(request, &set, settings)?;
        self.log(heard, &request.type_url, request.error_detail.as_ref().map(|error| &*error.message));
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
        let (subscription, set) = self.subscription(stream, Variant::Delta, &request.type_url)?;
        let heard = subscription.on_delta_request(request, &set, settings)?;
        self.log(heard, &request.type_url, request.error_detail.as_ref().map(|error| &*error.message));
        Ok(heard)
    }

    /// Replaces what the node should hold.
    pub fn on_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = snapshot;
    }

    /// The next response that may be sent, in push order per stream. `None`: nothing to say, or every subscription
    /// that has something to say waits for the answer to its last response.
    pub fn poll_response(&mut self) -> Option<(StreamId, Response)> {
        let streams: Vec<StreamId> = self.streams.keys().copied().collect();
        streams.into_iter().find_map(|stream| Some((stream, self.poll_stream(stream)?)))
    }

    /// As [`Session::poll_response`], for one stream whose transport has room.
    pub fn poll_stream(&mut self, stream: StreamId) -> Option<Response> {
        let Stream { subscriptions, responses, .. } = self.streams.get_mut(&stream)?;
        subscriptions.iter_mut().find_map(|subscription| {
            let set = self.snapshot.of_type(&subscription.type_url).unwrap_or(&self.nothing);
            let nonce = || {
                *responses += 1;
                responses.to_string()
            };
            subscription.next(set, nonce, &self.config.control_plane)
        })
    }

    /// Whether a response of this type is unanswered on any stream.
    #[must_use]
    pub fn is_outstanding(&self, type_url: &str) -> bool {
        self.subscriptions()
            .any(|subscription| &*subscription.type_url == type_url && subscription.outstanding.is_some())
    }

    /// What the node holds, by subscription; then what is served and not asked for.
    #[must_use]
    pub fn status(&self) -> Vec<TypeStatus> {
        let mut types: Vec<TypeStatus> = self
            .subscriptions()
            .map(|subscription| {
                let set = self.snapshot.of_type(&subscription.type_url).unwrap_or(&self.nothing);
                status::of_subscription(subscription, set)
            })
            .collect();
        for (type_url, set) in self.snapshot.types() {
            if !types.iter().any(|status| status.type_url == *type_url) {
                types.push(status::of_parked(type_url, set, self.parked.get(type_url)));
            }
        }
        types.sort_by_key(|status| (type_url::push_order(&status.type_url), Arc::clone(&status.type_url)));
        types
    }

    fn subscriptions(&self) -> impl Iterator<Item = &Subscription> {
        self.streams.values().flat_map(|stream| &stream.subscriptions)
    }

    fn settings(&self) -> RequestSettings {
        RequestSettings { legacy_wildcard: self.config.legacy_wildcard, partial_ack: self.node.acknowledges_in_part() }
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
        let set = Arc::clone(self.snapshot.of_type(type_url).unwrap_or(&self.nothing));
        let subscriptions = &mut stream.subscriptions;
        let index = match subscriptions.iter().position(|subscription| &*subscription.type_url == type_url) {
            Some(index) => index,
            None if subscriptions.len() >= Self::MAX_TYPES => {
                return Err(RequestError::TooManyTypes { limit: Self::MAX_TYPES });
            }
            None => {
                if self.snapshot.of_type(type_url).is_none() {
                    tracing::info!(node = self.node.id, type_url, "asked for a type of which there is nothing");
                }
                let (url, memory) =
                    self.parked.remove_entry(type_url).unwrap_or_else(|| (type_url.into(), Memory::default()));
                let order = type_url::push_order(type_url);
                let at = subscriptions.partition_point(|other| type_url::push_order(&other.type_url) <= order);
                subscriptions.insert(at, Subscription::new(variant, url, memory));
                at
            }
        };
        let subscription = subscriptions.get_mut(index).ok_or(RequestError::NoSuchStream)?;
        Ok((subscription, set))
    }

    fn log(&self, heard: Heard, type_url: &str, message: Option<&str>) {
        if heard == Heard::Nack {
            let message = message.unwrap_or_default();
            tracing::warn!(node = self.node.id, type_url, message, "the node refused a response");
        }
    }
}
