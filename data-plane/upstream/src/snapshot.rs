//! What the admin interface shows of clusters: plain values, taken at one moment.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::Name;
use culvert_model::endpoint::Health;

use crate::breaker::Level;

/// One cluster (`/clusters`).
#[derive(Debug, Clone)]
pub struct ClusterSnapshot {
    pub name: Name,
    /// By priority (`default`, `high`): limits and use, in the order cx, rq_pending, rq, rq_retry.
    pub breakers: [(&'static str, [(&'static str, Level); 4]); 2],
    pub hosts: Vec<HostSnapshot>,
}

/// One host of a cluster.
#[derive(Debug, Clone)]
pub struct HostSnapshot {
    /// Where connections go; of a tunnel host, where its tunnel came from (`None`: in memory).
    pub address: Option<SocketAddr>,
    pub hostname: Arc<str>,
    pub region: Name,
    pub zone: Name,
    pub sub_zone: Name,
    pub priority: u32,
    pub weight: u32,
    pub health: Health,
    /// Whether the host is the other end of a tunnel.
    pub tunnel: bool,
    pub cx_total: u64,
    pub cx_active: u64,
    pub cx_connect_fail: u64,
    pub rq_total: u64,
    pub rq_active: u64,
    pub rq_success: u64,
    pub rq_error: u64,
    pub rq_timeout: u64,
}

/// One registered tunnel connection, as the cluster sees it.
#[derive(Debug, Clone)]
pub struct TunnelSnapshot {
    pub cluster: Name,
    pub agent: Arc<str>,
    pub peer: Option<SocketAddr>,
    pub weight: u32,
    pub protocol: culvert_model::tunnel::TunnelProtocol,
    /// `pending`, `idle`, `borrowed`, `open`, `draining` or `gone`.
    pub state: &'static str,
    pub requests: u64,
    pub active: u64,
    pub age: Duration,
}
