//! Hosts that are the other end of a reverse tunnel.
//!
//! A registration ([`TunnelClaim`] → [`TunnelLease`]) publishes a host; the lease's owner then runs the connection on its
//! worker ([`TunnelLease::attach`]) and any worker may use it: a stream of an HTTP/2 tunnel, or a plain tunnel whole for
//! one exchange. **Configuration pushes never remove a tunnel host; dropping the lease does, and nothing else.**

mod connection;
mod elsewhere;
mod lane;
mod lent;
mod opening;
mod presence;
mod queue;
mod reverse;

use std::fmt;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use culvert_http::Io;
use culvert_http::client::{ClientExchange, Http1Client, Http2Client, Http2ClientOptions};
use culvert_model::Name;
use culvert_model::tunnel::{NamePattern, TunnelProtocol};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::host::Host;
use crate::slot::ClusterSlot;
pub(crate) use connection::{Phase, TunnelConnection};
pub(crate) use lane::{Lane, lend_among};
pub(crate) use lent::{Lent, Whole};
pub(crate) use opening::Opening;
pub(crate) use presence::Absence;
pub(crate) use queue::{Full, Queue};
pub use reverse::ReverseNames;
pub(crate) use reverse::Wish;

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
    /// Of HTTP/2. `None`: the cluster's.
    pub http2: Option<Box<Http2ClientOptions>>,
    /// How long a request may wait for its turn.
    pub queue_timeout: Duration,
    /// How long after the end of an agent's last connection requests wait for its next one; zero: they do not.
    pub reconnect_window: Duration,
    /// HTTP/2: how often the agent is pinged, unless the cluster says something else. One that does not answer is gone
    /// within three intervals.
    pub ping_interval: Duration,
    /// Requests that may wait for a tunnel connection of the cluster.
    pub max_queued_requests: usize,
    /// Connections that one agent (by name) may have in the cluster; `usize::MAX`: any number.
    pub max_connections_per_agent: usize,
    /// Registered for every cluster of Envoy's `reverse_connection` type.
    pub reverse: Option<Box<ReverseNames>>,
    /// Clusters that it may serve besides [`Self::cluster`]. `None`: any that shares its agents.
    pub may_serve: Option<Arc<[NamePattern]>>,
}

impl TunnelClaim {
    /// Whom requests may wait for where it is registered.
    fn names(&self) -> impl Iterator<Item = &Arc<str>> + Clone {
        let own = self.reverse.is_none().then_some(&self.agent);
        own.into_iter().chain(self.reverse.iter().flat_map(|names| names.all()))
    }

    /// Whether clusters find the agent by the name of the cluster that it claims.
    pub(crate) fn joins(&self) -> bool {
        self.reverse.as_ref().is_none_or(|names| names.joins)
    }
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
    /// A TCP connection had taken it whole, and is over.
    Taken,
    /// [`TunnelLease::drain`] was called, and nothing is in flight any more.
    Drained,
    /// The cluster was removed, and nothing is in flight any more.
    ClusterRemoved,
    /// The peer broke HTTP/2, or does not speak it.
    ProtocolFailure,
    /// TLS inside of it, which a cluster demands, could not be.
    TlsFailure,
}

/// A registered host. **Dropping it is the only removal.**
#[derive(Debug)]
#[must_use = "dropping the lease removes the host"]
pub struct TunnelLease {
    slot: Arc<ClusterSlot>,
    host: Arc<Host>,
    connection: Arc<TunnelConnection>,
    /// `None`: it carries none.
    http2: Option<Box<OpenHttp2>>,
}

/// HTTP/2 on a tunnel.
#[derive(Debug, Default)]
struct OpenHttp2 {
    /// While it is open.
    client: Mutex<Option<Http2Client>>,
    opened: Notify,
}

impl TunnelLease {
    pub(crate) fn new(slot: Arc<ClusterSlot>, host: Arc<Host>, connection: Arc<TunnelConnection>) -> Self {
        let http2 = (connection.claim().protocol == TunnelProtocol::Http2).then(Box::default);
        Self { slot, host, connection, http2 }
    }

    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Waits until a request waits for [`Self::attach`].
    pub async fn wanted(&self) {
        self.connection.wanted().await;
    }

    /// Runs the connection on the worker that owns `io`, from the first byte after the handshake to its end. Requests
    /// that chose the host before wait for this. The connection is closed when it returns, or when the future is
    /// dropped (but for what was lent: that is closed by its exchange).
    pub fn attach(&self, io: Io) -> Attached<'_> {
        let gone = GoneOnDrop(&self.connection);
        // A plain tunnel's task has room neither for the connection, which the requests hold, nor for HTTP/2's state.
        let running = match self.connection.claim().protocol {
            TunnelProtocol::Http1 => {
                self.connection.attach_plain(Http1Client::new(io));
                None
            }
            TunnelProtocol::Http2 => {
                Some(Box::pin(self.run_http2(io)) as Pin<Box<dyn Future<Output = TunnelEnd> + '_>>)
            }
        };
        Attached { lease: self, running, _gone: gone }
    }

    async fn run_http2(&self, io: Io) -> TunnelEnd {
        let cluster = || self.slot.config().map_or_else(default_http2, |config| http2_options(&config.cluster.http2));
        let mut options = self.claim().http2.as_deref().cloned().unwrap_or_else(cluster);
        if options.keepalive_interval.is_none() {
            let interval = self.connection.claim().ping_interval;
            options.keepalive_interval = Some(interval);
            options.keepalive_timeout = interval.mul_f64(1.75);
        }
        let opening = self.connection.opening();
        let io = match Box::pin(tokio::time::timeout(OPEN_TIMEOUT, opening.open(io))).await {
            Ok(Ok(io)) => io,
            Ok(Err(error)) => return self.refused(&error),
            Err(elapsed) => return self.refused(&elapsed),
        };
        let (client, driver) = Http2Client::connect(io, &options);
        if let Some(http2) = &self.http2 {
            *http2.client.lock() = Some(client.clone());
            http2.opened.notify_waiters();
        }
        self.connection.attach_open(client);
        tokio::select! {
            result = driver => {
                let Err(error) = result else { return TunnelEnd::Closed };
                let agent = &self.connection.claim().agent;
                tracing::debug!(cluster = %self.slot.name(), %agent, %error, "tunnel broke");
                if error.is_protocol() { TunnelEnd::ProtocolFailure } else { TunnelEnd::Closed }
            }
            end = self.ended() => end,
        }
    }

    fn refused(&self, error: &dyn fmt::Display) -> TunnelEnd {
        let agent = &self.connection.claim().agent;
        tracing::warn!(cluster = %self.slot.name(), %agent, %error, "cannot open TLS over the tunnel");
        TunnelEnd::TlsFailure
    }

    async fn ended(&self) -> TunnelEnd {
        std::future::poll_fn(|cx| self.connection.poll_end(cx)).await
    }

    /// Whether nothing is in flight on it at this moment.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        match self.connection.phase() {
            Phase::Borrowed => false,
            Phase::Open => self.connection.active() == 0,
            Phase::Pending | Phase::Idle | Phase::Gone => true,
        }
    }

    /// Requests and connections that it has carried.
    #[must_use]
    pub fn carried(&self) -> u64 {
        self.connection.requests()
    }

    /// Takes the host out of every later choice; what is in flight goes on, then [`Self::attach`] ends.
    pub fn drain(&self) {
        self.connection.drain(TunnelEnd::Drained);
        self.slot.tunnels_changed();
        self.connection.further(|slot| slot.tunnels_changed());
    }

    /// Tells the agent by HTTP/2's GOAWAY that the connection will end; it serves as before.
    pub fn say_goodbye(&self) {
        if let Some(http2) = &self.http2 {
            http2.client.lock().iter().for_each(Http2Client::say_goodbye);
        }
    }

    /// Gives the host another weight (1 to 128) in later choices.
    pub fn set_weight(&self, weight: u32) {
        self.connection.set_weight(weight);
        self.slot.tunnels_changed();
        self.connection.further(|slot| slot.tunnels_changed());
    }

    /// Says which clusters it may serve besides the one that it is registered in (see [`TunnelClaim::may_serve`]).
    /// Whether it served one that it may serve no more: nothing new goes there, but what is in flight goes on until
    /// [`Self::end_lapsed`].
    pub fn set_may_serve(&self, clusters: Option<Arc<[NamePattern]>>) -> bool {
        self.connection.set_may_serve(clusters);
        self.slot.sharing().judge(&self.host)
    }

    /// Ends what is in flight for clusters that it may serve no more; other streams go on. Whether the whole connection, a plain
    /// one, is lent to one of them, and is to be cut.
    pub fn end_lapsed(&self) -> bool {
        self.slot.sharing().end_withheld(&self.host)
    }

    /// An exchange that no request asked for, and that no drain waits for, once HTTP/2 is open on the connection.
    /// `None`: it carries none.
    pub async fn exchange(&self) -> Option<ClientExchange> {
        let http2 = self.http2.as_ref()?;
        loop {
            let mut opened = pin!(http2.opened.notified());
            opened.as_mut().enable();
            if let Some(client) = &*http2.client.lock() {
                return Some(client.exchange());
            }
            opened.await;
        }
    }

    /// What was claimed.
    #[must_use]
    pub fn claim(&self) -> &TunnelClaim {
        self.connection.claim()
    }
}

impl Drop for TunnelLease {
    fn drop(&mut self) {
        self.connection.set_gone(TunnelEnd::Closed);
        self.slot.remove_tunnel(self.host.id());
        self.slot.sharing().ended(&self.host);
    }
}

/// See [`TunnelLease::attach`]. A type of its own for its size: every idle tunnel has one.
#[must_use = "dropping it closes the connection"]
pub struct Attached<'a> {
    lease: &'a TunnelLease,
    /// Of HTTP/2.
    running: Option<Pin<Box<dyn Future<Output = TunnelEnd> + 'a>>>,
    _gone: GoneOnDrop<'a>,
}

impl fmt::Debug for Attached<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").field("lease", &self.lease).finish_non_exhaustive()
    }
}

impl Future for Attached<'_> {
    type Output = TunnelEnd;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TunnelEnd> {
        let lease = self.lease;
        let end = ready!(match &mut self.running {
            None => lease.connection.poll_end(cx),
            Some(running) => running.as_mut().poll(cx),
        });
        lease.connection.set_gone(end);
        if let Some(http2) = &lease.http2 {
            *http2.client.lock() = None;
        }
        tracing::debug!(cluster = %lease.slot.name(), agent = %lease.claim().agent, ?end, "tunnel ended");
        Poll::Ready(end)
    }
}

/// Whoever stops running a connection ends it: nobody else watches it.
struct GoneOnDrop<'a>(&'a TunnelConnection);

impl Drop for GoneOnDrop<'_> {
    fn drop(&mut self) {
        self.0.set_gone(TunnelEnd::Closed);
    }
}

/// Options of HTTP/2 towards a host.
pub(crate) fn http2_options(options: &culvert_model::http::Http2Options) -> Http2ClientOptions {
    Http2ClientOptions {
        initial_stream_window: options.initial_stream_window,
        initial_connection_window: options.initial_connection_window,
        max_concurrent_streams: options.max_concurrent_streams,
        max_head_bytes: MAX_RESPONSE_HEAD,
        keepalive_interval: options.keepalive_interval,
        keepalive_timeout: options.keepalive_timeout,
        ..Http2ClientOptions::default()
    }
}

fn default_http2() -> Http2ClientOptions {
    http2_options(&culvert_model::http::Http2Options::default())
}

/// Of a response head, in bytes: Envoy's default for upstream headers.
const MAX_RESPONSE_HEAD: u32 = 60 * 1024;

/// For TLS inside of an established tunnel, and for HTTP/2's preface to be written on it.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
