//! `culvert.tunnel.v1.TunnelServer`: what a tunnel listener demands of agents.

use std::sync::Arc;
use std::time::Duration;

use crate::Name;
use crate::source::DataSource;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelServer {
    pub stat_prefix: Name,
    /// Not empty: default deny.
    pub policies: Vec<CredentialPolicy>,
    /// Empty: any cluster.
    pub allowed_clusters: Vec<NamePattern>,
    pub handshake_timeout: Duration,
    pub max_handshake_bytes: usize,
    pub max_pending_handshakes: usize,
    pub max_connections_per_agent: usize,
    pub protocol: TunnelProtocol,
    pub queue_timeout: Duration,
    pub max_queued_requests: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialPolicy {
    pub name: Name,
    pub tokens: Vec<DataSource>,
    /// Empty: those of the filter.
    pub clusters: Vec<NamePattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamePattern {
    Exact(Arc<str>),
    /// `edge-*`.
    Prefix(Arc<str>),
}

impl NamePattern {
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => &**exact == name,
            Self::Prefix(prefix) => name.starts_with(&**prefix),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelProtocol {
    Http1,
    Http2,
}
