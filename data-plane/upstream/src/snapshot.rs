//! What the admin interface shows of clusters: plain values, taken at one moment.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::Name;
use culvert_model::endpoint::Health;

use crate::balance::Member;
use crate::breaker::Level;
use crate::host::HostMetric;
use crate::tunnel::{Phase, TunnelConnection};

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
    /// Which it serves besides.
    pub further_clusters: Vec<Name>,
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

impl HostSnapshot {
    pub(crate) fn of(member: &Member) -> Self {
        let host = &member.host;
        let stat = |metric| host.stats().read(metric);
        Self {
            address: host.address(),
            hostname: Arc::clone(host.hostname()),
            region: Name::clone(host.region()),
            zone: Name::clone(host.zone()),
            sub_zone: Name::clone(host.sub_zone()),
            priority: member.priority,
            weight: member.weight,
            health: member.health,
            tunnel: host.is_tunnel(),
            cx_total: stat(HostMetric::CxTotal),
            cx_active: stat(HostMetric::CxActive),
            cx_connect_fail: stat(HostMetric::CxConnectFail),
            rq_total: stat(HostMetric::RqTotal),
            rq_active: stat(HostMetric::RqActive),
            rq_success: stat(HostMetric::RqSuccess),
            rq_error: stat(HostMetric::RqError),
            rq_timeout: stat(HostMetric::RqTimeout),
        }
    }
}

impl TunnelSnapshot {
    pub(crate) fn of(connection: &TunnelConnection) -> Self {
        let claim = connection.claim();
        let state = match connection.phase() {
            Phase::Gone => "gone",
            _ if connection.is_draining() => "draining",
            Phase::Pending => "pending",
            Phase::Idle => "idle",
            Phase::Borrowed => "borrowed",
            Phase::Open => "open",
        };
        Self {
            cluster: Name::clone(&claim.cluster),
            further_clusters: connection.further_names(),
            agent: Arc::clone(&claim.agent),
            peer: claim.peer,
            weight: connection.weight(),
            protocol: claim.protocol,
            state,
            requests: connection.requests(),
            active: u64::from(connection.active()),
            age: connection.registered().elapsed(),
        }
    }
}
