//! What the admin interface shows of tunnels (`/tunnels`): plain values, taken at one moment.

use std::net::SocketAddr;
use std::time::SystemTime;

use serde::Serialize;

use crate::dialect::Dialect;
use crate::history::Event;

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
    /// Those that it serves besides. Filled in by whoever knows: the clusters.
    pub further_clusters: Vec<String>,
    pub host_name: String,
    pub weight: u32,
    pub peer: Option<SocketAddr>,
    /// Subject alternative name of the agent's certificate.
    pub identity: Option<String>,
    /// The credential policy that let it in.
    pub policy: Option<String>,
    /// Envoy's dialect: the tenant.
    pub tenant: Option<String>,
    /// `stat_prefix` of the listener.
    pub listener: String,
    pub draining: bool,
    /// Seconds since the handshake.
    pub age_seconds: u64,
    /// When that was.
    #[serde(serialize_with = "unix_millis")]
    pub created_at: SystemTime,
    /// Since the handshake, within TLS.
    pub received_bytes: u64,
    pub sent_bytes: u64,
    /// Requests and connections that it carried, and those that it carries. Filled in by whoever knows: the cluster.
    pub requests: u64,
    pub active: u64,
    /// The latest ones, by milliseconds since the handshake.
    pub events: Vec<Event>,
}

fn unix_millis<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    serializer.serialize_u64(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A registered connection that is no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndedTunnel {
    /// As it was last.
    #[serde(flatten)]
    pub tunnel: TunnelStatus,
    /// Why it ended.
    pub reason: Option<String>,
    pub ended_seconds_ago: u64,
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
    /// Of the tunnel that stands.
    pub dialect: Option<Dialect>,
    /// `http1` or `http2`, as agreed on in the handshake. Envoy's dialect does not: there the first request tells.
    pub protocol: Option<&'static str>,
    /// As in [`TunnelStatus`].
    pub round_trip_us: Option<u64>,
    /// Of the attempts since the last tunnel, if none stands.
    pub last_error: Option<String>,
    /// Why the tunnel before ended.
    pub last_end: Option<String>,
    /// Attempts after the first.
    pub reconnects: u64,
    /// Of the tunnel that stands; zero without one.
    pub received_bytes: u64,
    pub sent_bytes: u64,
    /// The latest ones, by milliseconds since the connection was first tried.
    pub events: Vec<Event>,
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
