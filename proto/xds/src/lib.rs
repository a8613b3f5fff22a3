//! The xDS subscription protocol, both halves, state of the world and delta.
//!
//! [`server::Session`] is what a control plane keeps for one node, [`client::Client`] is what a data plane keeps for
//! one control plane. Both are plain state machines: messages go in, messages come out, and **this crate opens no
//! socket, knows no clock, starts no task and holds no lock**. Time is passed in as a [`std::time::Duration`] since
//! whatever moment the caller counts from.
//!
//! A resource is a name, a type and bytes ([`resource::Resource`]); what the bytes mean is none of this crate's
//! business, but for one thing: which `ClusterLoadAssignment`s a `Cluster` refers to ([`snapshot::Snapshot`]).

pub mod client;
pub mod resource;
pub mod server;
pub mod snapshot;
mod wire;
pub mod xdstp;

pub use client::{
    Absence, Client, ClientConfig, Interest, Missing, Received, Rejection, Request, ResourceTimer, ResponseError,
    Update,
};
pub use resource::{Resource, TypeUrl, Version};
pub use server::{Heard, NodeIdentity, Occupied, RequestError, Response, Session, SessionConfig, StreamId, StreamKind};
pub use snapshot::{Snapshot, SnapshotBuilder, TypeSet};

/// The name of a resource: cheap to clone, compared by content.
pub type Name = std::sync::Arc<str>;

/// Which of the protocol's two variants a stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// State of the world: `DiscoveryRequest`, `DiscoveryResponse`.
    Sotw,
    /// Incremental: `DeltaDiscoveryRequest`, `DeltaDiscoveryResponse`.
    Delta,
}

/// The client feature (`Node.client_features`) by which a client says that it applies the good resources of a response
/// that it refuses, and names the refused ones line by line as `Type/name: reason`. Such a refusal blames only the
/// resources that it names.
pub const PARTIAL_ACK: &str = "culvert.xds.partial_ack";

/// The client feature by which a client says that it looks at `resource_errors` (xDS TP3): it is told what does not exist, or
/// what it may not have, also where a response would hold nothing else.
pub const RESOURCE_ERRORS: &str = "culvert.xds.resource_errors";

/// The client feature, as gRPC's clients send it, by which a client says that it takes resources within a `Resource` in
/// state-of-the-world responses, and with them TTLs.
pub const RESOURCE_IN_SOTW: &str = "xds.config.resource-in-sotw";
