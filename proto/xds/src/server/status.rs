//! What a node holds, for CSDS and for the admin page.

use std::sync::Arc;

use crate::resource::{TypeUrl, Version};
use crate::{Name, Variant};

/// `envoy.service.status.v3.ConfigStatus`, per resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResourceState {
    /// Sent and accepted.
    Synced,
    /// Sent and not answered yet, or newer than what was sent.
    Stale,
    /// Sent and refused.
    Error,
    /// Served, and neither asked for by name nor by wildcard.
    NotSent,
}

/// One resource of a node.
#[derive(Debug, Clone)]
pub struct ResourceStatus {
    pub name: Name,
    pub state: ResourceState,
    /// Of the content served now; `None`: it is no longer served, and the node was not told or did not answer yet.
    pub version: Option<Version>,
    /// Of the content that the node accepted last.
    pub accepted: Option<Version>,
    /// What the node said when it refused.
    pub error: Option<Arc<str>>,
}

/// All resources of one type, as one subscription sees them.
#[derive(Debug, Clone)]
pub struct TypeStatus {
    pub type_url: TypeUrl,
    /// `None`: no stream of the node asks for this type now.
    pub variant: Option<Variant>,
    pub wildcard: bool,
    /// Resources subscribed to by name, whether they exist or not.
    pub names: usize,
    /// Responses sent, accepted and refused on the present stream.
    pub sent: u64,
    pub acked: u64,
    pub nacked: u64,
    /// A response is on its way or being looked at.
    pub outstanding: bool,
    /// `version_info` of the response that was accepted last.
    pub accepted_version: Option<String>,
    /// What the node said at its latest refusal, until it accepts a response.
    pub error: Option<Arc<str>>,
    pub resources: Vec<ResourceStatus>,
}
