//! One node and its streams.

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use super::{NodeIdentity, RequestError, Response, StreamId, StreamKind, TypeStatus};
use crate::snapshot::Snapshot;

/// Settings of a [`Session`].
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// `control_plane.identifier` of every response.
    pub control_plane: Arc<str>,
    /// Whether a first request without names asks for everything (all but EDS, RDS, SDS, ECDS, RTDS and LEDS).
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
    node: Arc<NodeIdentity>,
    snapshot: Arc<Snapshot>,
    config: SessionConfig,
    streams: BTreeMap<StreamId, ()>,
}

impl Session {
    #[must_use]
    pub fn new(config: SessionConfig, node: Arc<NodeIdentity>, snapshot: Arc<Snapshot>) -> Self {
        Self { node, snapshot, config, streams: BTreeMap::new() }
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
        todo!()
    }

    /// Detaches a stream. What the node accepted and refused stays known.
    pub fn on_close(&mut self, stream: StreamId) {
        todo!()
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
    pub fn on_request(&mut self, stream: StreamId, request: &DiscoveryRequest) -> Result<(), RequestError> {
        todo!()
    }

    /// Takes a request of a delta stream.
    ///
    /// # Errors
    /// The stream is to be closed with the error's code.
    pub fn on_delta_request(&mut self, stream: StreamId, request: &DeltaDiscoveryRequest) -> Result<(), RequestError> {
        todo!()
    }

    /// Replaces what the node should hold.
    pub fn on_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = snapshot;
    }

    /// The next response that may be sent, in push order per stream. `None`: nothing to say, or every subscription
    /// that has something to say waits for the answer to its last response.
    pub fn poll_response(&mut self) -> Option<(StreamId, Response)> {
        todo!()
    }

    /// As [`Session::poll_response`], for one stream whose transport has room.
    pub fn poll_stream(&mut self, stream: StreamId) -> Option<Response> {
        todo!()
    }

    /// Whether a response of this type is unanswered on any stream.
    #[must_use]
    pub fn is_outstanding(&self, type_url: &str) -> bool {
        todo!()
    }

    /// What the node holds, by type. A type that is served and not asked for is listed as not sent.
    #[must_use]
    pub fn status(&self) -> Vec<TypeStatus> {
        todo!()
    }
}
