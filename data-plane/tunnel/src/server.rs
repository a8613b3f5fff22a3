//! The tunnel server: from an accepted connection to a registered host.
//!
//! ```text
//! Accepting --init frame--> Claimed --policy--> Admitted --registry--> Registered --reply acknowledged--> attached
//! ```
//! **Success means routable, and nothing shares a segment with the reply**: the host is published before the reply is
//! written, and the first byte towards the agent waits until TCP reports the reply as acknowledged, unless the agent
//! announced that it can take both at once.

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_http::{ClientExchange, Http2ClientOptions, Io};
use culvert_model::tunnel::{NamePattern, TunnelProtocol};
use rustls_pki_types::CertificateDer;
use tokio::time::Instant;

use crate::dialect::Dialect;
use crate::envoy::ping::IdleError;
use crate::wire::{Instance, Status};

mod acceptor;
mod acknowledged;
mod chronicle;
mod control;
mod duplicates;
mod envoy;
mod failure;
mod gauge;
mod handshake;
mod identity;
mod join;
mod joined;
mod live;
mod negotiation;
mod one_time;
mod pending;
mod policy;
mod registered;
mod reverse_limits;
mod standing;
mod tunnels;

pub use acceptor::{Acceptor, Ended};
pub use identity::{Grant, Identity, Policy, PolicyMaterial};
pub use pending::Place;
pub use policy::Tokens;
pub use reverse_limits::ReverseLimits;
pub use standing::Policies;
pub use tunnels::Tunnels;

/// Where admitted agents become hosts. Implemented by the proxy over its clusters; one per worker.
pub trait HostRegistry {
    type Lease: HostLease;

    /// Publishes the connection as a host of `claim.cluster`; returns once every worker can choose it. A request that
    /// chooses it before [`HostLease::attach`] waits for that. When the future is dropped instead, the deadline has
    /// passed and no host may stay.
    ///
    /// # Errors
    /// When the cluster does not take the host.
    fn register(&self, claim: Claim) -> impl Future<Output = Result<Self::Lease, Refusal>>;
}

/// A registered host. **Dropping it is the only removal**: the host is gone from every later choice.
pub trait HostLease {
    /// Resolves when a request waits for the connection to be attached; a dialect in which the connection may rest before
    /// it is used waits for it.
    fn wanted(&self) -> impl Future<Output = ()> {
        std::future::ready(())
    }

    /// Runs the connection: the reply has been written and the peer is ready for the first byte. Ends when the peer
    /// closes, the connection breaks, the cluster goes away, or [`Self::drain`] was called and nothing is in
    /// flight any more. The connection is closed by then. When the future is dropped instead, the peer is gone or the
    /// drain's time over, and the connection is to be cut off.
    fn attach(&self, io: Io) -> impl Future<Output = CloseReason>;

    /// Takes the host out of every later choice; what is in flight goes on.
    fn drain(&self);

    /// Whether nothing is in flight on it at this moment.
    fn is_idle(&self) -> bool;

    /// Requests and connections that it has carried.
    fn carried(&self) -> u64;

    /// Tells the agent, in a dialect that has no other word for it, that the connection will end (HTTP/2's GOAWAY).
    fn say_goodbye(&self) {}

    /// Gives the host another weight (1 to 128) in later choices.
    fn set_weight(&self, weight: u32);

    /// Says which clusters besides the one that it claimed it may serve; nothing new goes to others. Whether it served one
    /// that is not among them, for which something may be in flight until [`Self::end_lapsed`].
    fn set_may_serve(&self, clusters: &Arc<[NamePattern]>) -> bool;

    /// Ends what is in flight for clusters that it may serve no more, and nothing else. Whether the connection itself is to be
    /// cut, because it is lent whole to one of them.
    fn end_lapsed(&self) -> bool;

    /// An exchange of our own with the agent, beside what requests borrow; waits until the connection is attached. `None`:
    /// it does not carry HTTP/2, or is gone.
    fn exchange(&self) -> impl Future<Output = Option<ClientExchange>>;
}

/// Why a registered connection ended.
#[derive(Debug, thiserror::Error)]
pub enum CloseReason {
    #[error("closed by the agent, or broken")]
    Closed,
    #[error("taken whole by a TCP connection, which has ended")]
    Taken,
    #[error("drained")]
    Drained,
    #[error("its cluster was removed")]
    ClusterRemoved,
    #[error("the agent broke HTTP/2, or does not speak it")]
    ProtocolFailure,
    #[error("TLS could not be opened inside of it")]
    TlsFailure,
    #[error("the agent is silently gone")]
    Lost,
    #[error("cut off at the drain's deadline")]
    CutOff,
    #[error("its identity policy allows it no more")]
    Forbidden,
    #[error("its agent's certificate is trusted no more")]
    Distrusted,
    /// Envoy's dialect, before it was used.
    #[error("ended unused: {0}")]
    Idle(IdleError),
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
    /// The credential policy that let the agent in.
    pub policy: Option<Arc<str>>,
    /// Clusters that share the agents of others may have it too if their name is among these. `None`: any.
    pub may_serve: Option<Arc<[NamePattern]>>,
    /// In Envoy's dialect: by what clusters find the agent.
    pub reverse: Option<ReverseClaim>,
    /// What the connection carries.
    pub protocol: TunnelProtocol,
    /// Of HTTP/2 that was agreed on in the handshake. `None` for any other: then the cluster's are in force.
    pub http2: Option<Box<Http2ClientOptions>>,
    /// How long a request may wait for its turn on a plain connection.
    pub queue_timeout: Duration,
    /// How long after the end of the agent's last connection requests wait for its next one.
    pub reconnect_window: Duration,
    /// How often the agent is pinged where the protocol can.
    pub ping_interval: Duration,
    pub max_queued_requests: usize,
    /// Connections that one agent may have; checked here over all clusters too.
    pub max_connections_per_agent: usize,
    /// What the listener's identity policy allows, if it has one.
    pub grant: Option<Arc<Grant>>,
    /// The process that the agent is, as it says.
    pub instance: Option<Instance>,
}

impl Claim {
    /// The grant counts, and not what was claimed.
    fn take_grant(&mut self, grant: &Arc<Grant>) {
        self.host_name = Arc::clone(&grant.host_name);
        self.weight = grant.weight;
        self.may_serve = Some(Arc::clone(&grant.clusters));
        self.policy = Some(Arc::clone(&grant.rule)).filter(|rule| !rule.is_empty());
        self.grant = Some(Arc::clone(grant));
        if self.instance.is_none() {
            // A stranger's connections cannot be told apart by what they say: each is an agent.
            let epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
            let nonce = (self.id.0 & u128::from(u64::MAX)).try_into().unwrap_or(0);
            self.instance = Some(Instance { epoch: u64::try_from(epoch).unwrap_or(u64::MAX), nonce });
        }
    }
}

impl Claim {
    /// Whether the connection carries HTTP/2 as our two ends speak it.
    pub(crate) fn carries_ours(&self) -> bool {
        self.http2.is_some() && self.dialect == Dialect::Culvert
    }
}

/// What only Envoy's agents say. Their cluster id is [`Claim::cluster`], their node id [`Claim::host_name`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReverseClaim {
    pub tenant: Arc<str>,
    /// Found within its tenant only.
    pub isolated: bool,
    /// May also join the cluster that its cluster id names.
    pub joins_named_cluster: bool,
}

/// Who is at the other end of an accepted connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// `None` only for connections in memory.
    pub address: Option<SocketAddr>,
    /// First URI (else DNS) name of the verified client certificate.
    pub identity: Option<Arc<str>>,
    /// What the certificate says.
    pub names: Option<Arc<PeerNames>>,
    /// How it came, for its history; `None`: it begins with the handshake.
    pub arrival: Option<Arrival>,
}

/// How a connection came to the tunnel listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// When it was accepted.
    pub at: Instant,
    /// When TLS stood, and what was agreed on; `None`: there is none.
    pub tls: Option<Box<(Instant, String)>>,
}

/// What a verified certificate says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerNames {
    pub uris: Vec<String>,
    pub dns: Vec<String>,
    /// `None`: it says nothing.
    pub expires: Option<SystemTime>,
    /// What was shown, the agent's own certificate first: it is judged again when trust changes.
    pub chain: Arc<[CertificateDer<'static>]>,
}

impl Peer {
    /// What two connections of one agent have in common before any of them has said a word: the certificate's name,
    /// else the address without port.
    pub(crate) fn origin(&self) -> Origin {
        match (&self.identity, self.address) {
            (Some(identity), _) => Origin::Certificate(Arc::clone(identity)),
            (None, Some(address)) => Origin::Ip(address.ip().to_canonical()),
            (None, None) => Origin::Memory,
        }
    }
}

/// See [`Peer::origin`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    Certificate(Arc<str>),
    Ip(IpAddr),
    Memory,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate(name) => f.write_str(name),
            Self::Ip(ip) => ip.fmt(f),
            Self::Memory => f.write_str("memory"),
        }
    }
}

/// A registration's name: 128 random bits, told only to the agent and to operators. An agent's graceful close names
/// its connections by it: unlike an address it passes through NAT, and cannot be guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(u128);

impl ConnectionId {
    /// From the TLS library's generator; `None` when the system gives no randomness.
    pub(crate) fn random() -> Option<Self> {
        let mut bytes = [0; 16];
        culvert_runtime::tls::provider().secure_random.fill(&mut bytes).ok()?;
        Some(Self(u128::from_be_bytes(bytes)))
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        digits.then(|| u128::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Why a registry takes no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no such cluster")]
    ClusterUnknown,
    #[error("the agent has as many connections as it may have")]
    TooManyConnections,
    #[error("its source has as many connections as it may have")]
    SourceFull,
    #[error("another agent with its identity serves")]
    Duplicate,
    /// The cluster takes no hosts now, for instance because it is being removed.
    #[error("the cluster takes no further hosts now")]
    Unavailable,
}

impl Refusal {
    /// What the agent is told. MOSN has no word for the last two.
    pub(crate) fn status(self) -> Status {
        match self {
            Self::ClusterUnknown => Status::ClusterNotFound,
            Self::TooManyConnections | Self::SourceFull | Self::Duplicate | Self::Unavailable => Status::Unknown,
        }
    }
}

#[cfg(test)]
mod tests;
