//! Why a request got no connection: a closed set, each member one response flag of Envoy's.

use std::net::SocketAddr;
use std::time::Duration;

/// Why there is no upstream connection. The request was not sent: trying again cannot do it twice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamFailure {
    /// `NC`: the route names a cluster that is not there (any more).
    #[error("no such cluster")]
    NoCluster,
    /// `UH`: no host may be chosen.
    #[error("no healthy upstream")]
    NoHealthyHost,
    /// `UO`: a circuit breaker is open.
    #[error("circuit breaker open: {0}")]
    Overflow(Exhausted),
    /// `DO`: the assignment's `drop_overloads` chose this request.
    #[error("dropped by the assignment's overload policy")]
    DropOverload,
    /// `UF`: the connection was refused, reset or unreachable.
    #[error("cannot connect to {address}: {reason}")]
    ConnectFailure { address: SocketAddr, reason: std::io::ErrorKind },
    /// `UF`: connecting, with TLS, took longer than the cluster's `connect_timeout`.
    #[error("no connection to {address} within {limit:?}")]
    ConnectTimeout { address: SocketAddr, limit: Duration },
    /// `UF`: the TLS handshake failed.
    #[error("TLS handshake with {address} failed: {reason}")]
    TlsFailure { address: SocketAddr, reason: String },
    /// `TAU`: the request names an agent that never registered here.
    #[error("unknown tunnel agent")]
    AgentUnknown,
    /// `TAO`: the request names an agent that was here and has had no tunnel for so long.
    #[error("tunnel agent offline for {seconds} s")]
    AgentOffline { seconds: u64 },
    /// `UO`: the tunnel's wait queue is full.
    #[error("too many requests wait for the tunnel")]
    QueueFull,
    /// `UO`: no connection became free in time.
    #[error("no connection became free in time")]
    QueueTimeout,
    /// `TDD`: what came through a tunnel may not go there.
    #[error("the tunnel agent allows nobody to go to {address}")]
    DestinationDenied { address: SocketAddr },
    /// `UF`: the agent's tunnels were opened for a cluster with another `transport_socket`.
    #[error("the agent's tunnels serve another transport socket")]
    OtherTransport,
    /// `UF`: the tunnel closed before the request was sent.
    #[error("the tunnel closed")]
    TunnelClosed,
}

impl UpstreamFailure {
    /// Whether the retry condition `connect-failure` covers it.
    #[must_use]
    pub const fn is_connect_failure(&self) -> bool {
        matches!(
            self,
            Self::ConnectFailure { .. } | Self::ConnectTimeout { .. } | Self::TlsFailure { .. } | Self::TunnelClosed
        )
    }
}

/// Which limit of the circuit breaker was hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    Connections,
    Pending,
    Requests,
}

impl std::fmt::Display for Exhausted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connections => "max_connections",
            Self::Pending => "max_pending_requests",
            Self::Requests => "max_requests",
        })
    }
}
