//! The tunnel agent: keeps connections to tunnel servers and has each served as a connection of a local listener.
//!
//! ```text
//! server list --(merge)--> peer (one per address) --(connection_num)--> connection: dial -> established -> hosted
//! ```
//! Every worker dials the connections that it will host. The first worker also leads: it keeps the server list, and
//! with each peer the aside connection and the graceful close. **Peers are keyed by address and exist before the first
//! dial**, so that a list that changes while a server is unreachable neither doubles nor leaks a connection.

use std::cell::Cell;
use std::collections::HashSet;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_http::{Exchange, Io};
use culvert_model::Name;
use culvert_model::agent::TunnelAgent;
use culvert_model::endpoint::Endpoints;
use culvert_model::tunnel::destinations::Destinations;
use culvert_runtime::drain::Watch;
use culvert_runtime::telemetry::Block;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::lifecycle::Journal;
use crate::metrics::AgentMetric;
use crate::status::AgentStatus;
use crate::wire::Instance;

mod chronicle;
mod connection;
mod control;
mod credential;
mod dial;
mod envoy;
mod keeper;
mod leader;
mod mux;
mod names;
mod pace;
mod peer;
mod placement;
mod servers;
mod slot;
mod tenure;

use connection::Connection;
pub use names::Resolver;
use peer::Peer;
use placement::Steering;
use servers::SourceStates;

/// Serves tunnel connections as accepted connections of a listener. Implemented by the proxy; one per worker.
pub trait Hosting: Clone + 'static {
    /// Waits until the listener is active on this worker; returns at once if it is.
    fn hosted(&self, listener: &str) -> impl Future<Output = ()>;

    /// Serves the connection until it ends. The agent is the server of the application protocol on it. Once
    /// `hosted.drain` starts the connection is drained as by a listener that goes away: what is in flight is
    /// finished, then the connection is closed. When the future is dropped the connection is cut off.
    fn serve(&self, io: Io, hosted: Hosted) -> impl Future<Output = ()>;

    /// What the HTTP requests of one tunnel share that carries HTTP/2.
    type Requests: HostedRequests;

    /// For a tunnel that was just established.
    fn requests(&self, hosted: &Hosted) -> Self::Requests;
}

/// Serves the requests of one tunnel, many at a time.
pub trait HostedRequests: 'static {
    /// Has the listener, as it is now, answer one request.
    fn serve(&self, exchange: Exchange<'_>) -> impl Future<Output = ()>;
}

/// An established tunnel, as the hosting listener sees it.
#[derive(Debug, Clone)]
pub struct Hosted {
    pub listener: Name,
    pub agent: Name,
    /// The tunnel server.
    pub peer: SocketAddr,
    /// Our end.
    pub local: SocketAddr,
    pub drain: Watch,
    /// To be told when the listener serves otherwise now: the agent dials anew, and then starts `drain`. Until then, and
    /// for some seconds at most, the connection is to be served as before.
    pub outdated: Arc<Notify>,
    /// How often the server is pinged where the protocol can.
    pub ping_interval: Duration,
    /// Where what it brings may go.
    pub destinations: Arc<Destinations>,
}

/// What an agent needs besides its configuration.
#[derive(Debug, Default)]
pub struct AgentInputs {
    /// Stands in for an unset `host_name`.
    pub node_id: Arc<str>,
    /// Present exactly when the agent's `tls` is set. `None` inside: its secrets have not arrived; dialling waits.
    /// A new value counts from the next dial.
    pub tls: Option<watch::Receiver<Option<Arc<rustls::ClientConfig>>>>,
    /// The assignment of each `ServerSource::Eds`, by service name. `None` inside: not arrived.
    pub eds: Vec<(Name, watch::Receiver<Option<Arc<Endpoints>>>)>,
    /// Where the life of its connections is logged.
    pub journal: Option<Arc<dyn Journal>>,
    /// Of the names of servers.
    pub resolver: Resolver,
}

/// Which share of an agent's connections a worker dials: those that it will host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worker {
    pub index: usize,
    /// Workers that run this agent. The first one also keeps the server list and the aside connections.
    pub count: usize,
}

/// One agent, on all workers.
#[derive(Debug)]
pub struct Agent {
    config: Arc<TunnelAgent>,
    inputs: AgentInputs,
    /// Those in the server list, and those that are being closed. Written by the leader.
    peers: watch::Sender<Arc<Vec<Arc<Peer>>>>,
    sources: SourceStates,
    /// As configured, or changed since.
    weight: watch::Sender<u32>,
    /// What servers have said of themselves and others.
    steering: watch::Sender<Steering>,
    stop: CancellationToken,
    /// By which a server tells it from others with its identity.
    instance: Instance,
}

impl Agent {
    #[must_use]
    pub fn new(config: Arc<TunnelAgent>, inputs: AgentInputs) -> Arc<Self> {
        let (peers, _) = watch::channel(Arc::default());
        let weight = watch::Sender::new(config.weight);
        let (sources, stop) = (SourceStates::default(), CancellationToken::new());
        let steering = watch::Sender::new(Steering::default());
        let epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let instance = Instance { epoch: u64::try_from(epoch).unwrap_or(u64::MAX), nonce: fastrand::u64(..) };
        Arc::new(Self { config, inputs, peers, sources, weight, steering, stop, instance })
    }

    #[must_use]
    pub fn config(&self) -> &TunnelAgent {
        &self.config
    }

    /// Runs one worker's share, on the worker's `LocalSet`; to be called once on every worker. Ends after
    /// [`Self::stop`], when the connections of this worker have closed; dropping the future cuts them off.
    pub async fn run<H: Hosting>(self: Arc<Self>, worker: Worker, hosting: H, metrics: Block<AgentMetric>) {
        let metrics = Rc::new(metrics);
        let mut tasks = JoinSet::new();
        if worker.index == 0 {
            tasks.spawn_local(leader::lead(Arc::clone(&self), Rc::clone(&metrics)));
        }
        let mut peers = self.peers.subscribe();
        let mut seen = HashSet::new();
        loop {
            let now: Arc<Vec<Arc<Peer>>> = Arc::clone(&peers.borrow_and_update());
            for peer in now.iter().filter(|peer| !seen.contains(&peer.ordinal)) {
                for index in peer.share(worker, self.config.connection_num) {
                    let connection = Connection {
                        agent: Arc::clone(&self),
                        peer: Arc::clone(peer),
                        index,
                        worker: worker.index,
                        hosting: hosting.clone(),
                        metrics: Rc::clone(&metrics),
                        renewing: Cell::new(false),
                        dialling: Cell::new(false),
                    };
                    tasks.spawn_local(connection.run());
                }
            }
            seen = now.iter().map(|peer| peer.ordinal).collect();
            if self.stop.is_cancelled() && tasks.is_empty() {
                return;
            }
            tokio::select! {
                changed = peers.changed() => debug_assert!(changed.is_ok(), "the sender is ours"),
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(agent = %self.config.name, %error, "a task of a tunnel agent broke");
                    }
                }
                () = self.stop.cancelled(), if tasks.is_empty() => {}
            }
        }
    }

    /// Begins the graceful close: no further dials, the servers are told, what is in flight is finished, at most
    /// `graceful_close_max_wait`.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Gives all connections another weight on their servers, those that stand and those to come. `false`: some server
    /// cannot be told, and nothing was done.
    pub fn reweigh(&self, weight: u32) -> bool {
        let can = self.peers.borrow().iter().all(|peer| peer.live() == 0 || peer.has_control());
        if can {
            self.weight.send_replace(weight);
        }
        can
    }

    /// Connections that are established at the moment, on all workers.
    #[must_use]
    pub fn established(&self) -> usize {
        self.peers.borrow().iter().map(|peer| peer.live()).sum()
    }

    #[must_use]
    pub fn status(&self) -> AgentStatus {
        AgentStatus {
            name: self.config.name.to_string(),
            cluster: self.config.cluster.to_string(),
            hosting_listener: self.config.hosting_listener.to_string(),
            host_name: self.host_name().to_owned(),
            stopping: self.stop.is_cancelled(),
            sources_waiting: self.sources.waiting(),
            peers: self.peers.borrow().iter().map(|peer| peer.status()).collect(),
        }
    }

    fn host_name(&self) -> &str {
        self.config.host_name.as_deref().unwrap_or(&self.inputs.node_id)
    }
}

#[cfg(test)]
mod tests;
