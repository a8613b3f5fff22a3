//! The tunnel server: from an accepted connection to a registered host.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_http::Io;
use culvert_model::tunnel::{TunnelProtocol, TunnelServer};
use culvert_runtime::telemetry::Block;

use crate::dialect::Dialect;
use crate::metrics::ServerMetric;
use crate::status::TunnelStatus;

/// Where admitted agents become hosts. Implemented by the proxy over its clusters; one per worker.
pub trait HostRegistry {
    type Lease: HostLease;

    /// Publishes the connection as a host of `claim.cluster`; returns once every worker can choose it. A request that
    /// chooses it before [`HostLease::attach`] waits for that.
    ///
    /// # Errors
    /// When the cluster does not take the host.
    fn register(&self, claim: Claim) -> impl Future<Output = Result<Self::Lease, Refusal>>;
}

/// A registered host. **Dropping it is the only removal**: the host is gone from every later choice.
pub trait HostLease {
    /// Runs the connection: the reply has been written and the peer is ready for the first byte. Ends when the peer
    /// closes, the connection breaks, the cluster goes away, or [`Self::drain`] was called and nothing is in
    /// flight any more. The connection is closed by then.
    fn attach(&self, io: Io) -> impl Future<Output = ()>;

    /// Takes the host out of every later choice; what is in flight goes on.
    fn drain(&self);
}

/// An admitted agent's wish to become a host.
#[derive(Debug, Clone)]
pub struct Claim {
    pub id: ConnectionId,
    pub dialect: Dialect,
    pub cluster: Arc<str>,
    /// By which a route can pick the agent; empty: it gave none.
    pub host_name: Arc<str>,
    /// 1 to 128.
    pub weight: u32,
    pub peer: Peer,
    /// What the connection carries.
    pub protocol: TunnelProtocol,
    /// How long a request may wait for its turn on a plain connection.
    pub queue_timeout: Duration,
    pub max_queued_requests: usize,
}

/// Who is at the other end of an accepted connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// `None` only for connections in memory.
    pub address: Option<SocketAddr>,
    /// First URI (else DNS) name of the verified client certificate.
    pub identity: Option<Arc<str>>,
}

/// A registration's name: 128 random bits, told only to the agent (and to operators).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(u128);

/// Why a registry takes no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no such cluster")]
    ClusterUnknown,
    /// The cluster takes no hosts now: it drains, or has as many as it may.
    #[error("the cluster takes no further hosts")]
    Unavailable,
}

/// Admits agents on one tunnel listener: policy, limits, live connections. Shared by the workers.
#[derive(Debug)]
pub struct Acceptor {}

/// The credentials of each policy, in the order of [`TunnelServer::policies`].
pub type Tokens = Vec<Vec<Arc<[u8]>>>;

/// Live connections of every tunnel listener of the process. Outlives configuration changes.
#[derive(Debug, Default)]
pub struct Tunnels {}

/// How an accepted connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was a tunnel and has ended.
    Tunnel,
    /// It was an aside connection and has ended.
    Aside,
    /// It was refused.
    Refused,
}

impl Acceptor {
    /// `tokens`: what the policies' data sources held; see [`Self::replace_tokens`].
    #[must_use]
    pub fn new(config: Arc<TunnelServer>, tokens: Tokens, tunnels: Arc<Tunnels>) -> Arc<Self> {
        let _ = (config, tokens, tunnels);
        todo!()
    }

    /// Takes rotated credentials; counts from the next handshake.
    pub fn replace_tokens(&self, tokens: Tokens) {
        let _ = tokens;
        todo!()
    }

    /// Runs one accepted connection (after TLS) to its end; never fails, what goes wrong is counted and logged.
    pub async fn serve<R: HostRegistry>(
        &self,
        io: Io,
        peer: Peer,
        registry: &R,
        metrics: &Block<ServerMetric>,
    ) -> Ended {
        let _ = (io, peer, registry, metrics);
        todo!()
    }

    /// Refuses further agents and drains the connections that are registered; each [`Self::serve`] ends once nothing
    /// is in flight on its connection.
    pub fn drain(&self) {
        todo!()
    }
}

impl Tunnels {
    /// Every registered connection, oldest first.
    #[must_use]
    pub fn status(&self) -> Vec<TunnelStatus> {
        todo!()
    }
}
