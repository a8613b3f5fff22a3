//! The control plane's half: what one node is subscribed to, what it holds, what it refused, and what it gets next.

mod holdings;
mod interest;
mod memory;
mod node;
mod polled;
mod request;
mod response;
mod session;
mod staging;
mod status;
mod subscription;

#[cfg(test)]
mod tests;

pub use node::{NodeIdentity, NodeRefused};
pub use polled::{Poll, Polled};
pub use request::RequestError;
pub use response::{Pieces, Response};
pub use session::{Occupied, Session, SessionConfig};
pub use staging::{Limits as StagingLimits, Progress};
pub use status::{ResourceState, ResourceStatus, TypeStatus};

use crate::Variant;
use crate::resource::TypeUrl;

/// A stream of one node, as its driver counts them. Nonces are made of it (of its lower 40 bits): what was said on a stream of
/// another number is never taken for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// What a stream speaks, and what about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamKind {
    pub variant: Variant,
    /// `None`: ADS, every type on one stream. Else the one type of a per-type service.
    pub type_url: Option<TypeUrl>,
}

/// What a request said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// What is asked for, maybe as it was before.
    Subscription,
    /// The outstanding response is accepted.
    Ack,
    /// The outstanding response is refused.
    Nack,
    /// It crossed a response on the wire and says nothing.
    Stale,
}
