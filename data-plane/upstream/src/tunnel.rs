//! Hosts that are the other end of a reverse tunnel.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_http::Io;
use culvert_model::Name;
use culvert_model::tunnel::TunnelProtocol;

/// An admitted agent's wish to be a host of a cluster, with one connection.
#[derive(Debug, Clone)]
pub struct TunnelClaim {
    pub cluster: Name,
    /// By which a request can pick the agent; empty: it gave no name.
    pub agent: Arc<str>,
    /// 1 to 128.
    pub weight: u32,
    /// Where the tunnel came from; `None`: memory.
    pub peer: Option<SocketAddr>,
    pub protocol: TunnelProtocol,
    /// How long a request may wait for its turn.
    pub queue_timeout: Duration,
    /// Requests that may wait for a plain tunnel connection of the cluster.
    pub max_queued_requests: usize,
    /// Connections that one agent (by name) may have in the cluster; `usize::MAX`: any number.
    pub max_connections_per_agent: usize,
}

/// Why a cluster takes no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    #[error("no cluster named {0:?}")]
    ClusterUnknown(Name),
    #[error("agent {agent:?} already has {limit} connections in the cluster")]
    TooManyConnections { agent: Arc<str>, limit: usize },
}

/// How a tunnel's service ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelEnd {
    /// The peer closed it, or it broke.
    Closed,
    /// A TCP connection took it whole.
    Taken,
    /// [`TunnelLease::drain`] was called, and nothing is in flight any more.
    Drained,
    /// The cluster was removed, and nothing is in flight any more.
    ClusterRemoved,
    /// HTTP/2 could not be opened over it.
    ProtocolFailure,
}

/// A registered host. **Dropping it is the only removal.**
#[derive(Debug)]
#[must_use = "dropping the lease removes the host"]
pub struct TunnelLease(());

impl TunnelLease {
    /// Runs the connection on the worker that owns `io`, from the first byte after the handshake to its end. Requests
    /// that chose the host before wait for this. The connection is closed when it returns.
    pub async fn attach(&self, io: Io) -> TunnelEnd {
        let _ = io;
        todo!()
    }

    /// Takes the host out of every later choice; what is in flight goes on, then [`Self::attach`] ends.
    pub fn drain(&self) {
        todo!()
    }
}
