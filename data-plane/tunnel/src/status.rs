//! What the admin interface shows of tunnels (`/tunnels`): plain values, taken at one moment.

use std::net::SocketAddr;

use serde::Serialize;

use crate::dialect::Dialect;

/// One registered connection, on the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TunnelStatus {
    pub id: String,
    pub dialect: Dialect,
    /// `http1` or `http2`.
    pub protocol: &'static str,
    /// Of the last PING, in microseconds; only where the connection carries HTTP/2 as our two ends speak it.
    pub round_trip_us: Option<u64>,
    pub cluster: String,
    pub host_name: String,
    pub weight: u32,
    pub peer: Option<SocketAddr>,
    /// Subject alternative name of the agent's certificate.
    pub identity: Option<String>,
    /// The credential policy that let it in.
    pub policy: Option<String>,
    pub draining: bool,
    /// Seconds since the handshake.
    pub age_seconds: u64,
}

/// One agent, with all its peers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AgentStatus {
    pub name: String,
    pub cluster: String,
    pub hosting_listener: String,
    pub host_name: String,
    /// Whether the agent closes gracefully.
    pub stopping: bool,
    /// Sources of servers that have not answered yet, or whose last lookup failed.
    pub sources_waiting: Vec<String>,
    pub peers: Vec<PeerStatus>,
}

/// One tunnel server, as the agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerStatus {
    pub address: SocketAddr,
    pub server_name: String,
    pub closing: bool,
    pub aside: AsideState,
    pub connections: Vec<ConnectionStatus>,
}

/// One of the `connection_num` connections of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConnectionStatus {
    pub index: u32,
    pub worker: usize,
    pub state: ConnectionState,
    /// Seconds since the state was entered.
    pub since_seconds: u64,
    pub local: Option<SocketAddr>,
    /// The server's id for the connection, if it gave one.
    pub id: Option<String>,
    /// `http2` where that was agreed on in the handshake.
    pub protocol: Option<&'static str>,
    /// As in [`TunnelStatus`].
    pub round_trip_us: Option<u64>,
    pub last_error: Option<String>,
    /// Attempts after the first.
    pub reconnects: u64,
}

/// Where a connection of an agent stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionState {
    /// The hosting listener is not there (yet).
    WaitingForListener,
    /// The TLS configuration or the credential is not there (yet).
    WaitingForSecret,
    /// Connect, TLS and handshake.
    Dialing,
    Established,
    /// Waits before the next attempt.
    BackingOff,
    /// Established, and finishes what is in flight.
    Draining,
    /// `connect_retry_times` failures in a row.
    GivenUp,
    Closed,
}

/// The connection by which a server is told of a graceful close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AsideState {
    None,
    Connected,
    /// Dialled when there is something to say.
    OnDemand,
}
