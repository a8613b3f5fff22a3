//! The tunnel agent: keeps connections to tunnel servers and has each served as a connection of a local listener.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use culvert_http::Io;
use culvert_model::Name;
use culvert_model::agent::TunnelAgent;
use culvert_model::endpoint::Endpoints;
use culvert_runtime::drain::Watch;
use culvert_runtime::telemetry::Block;
use tokio::sync::watch;

use crate::metrics::AgentMetric;
use crate::status::AgentStatus;

/// Serves tunnel connections as accepted connections of a listener. Implemented by the proxy; one per worker.
pub trait Hosting: Clone + 'static {
    /// Waits until the listener is active on this worker; returns at once if it is.
    fn hosted(&self, listener: &str) -> impl Future<Output = ()>;

    /// Serves the connection until it ends. The agent is the server of the application protocol on it. Once
    /// `hosted.drain` starts the connection is drained as by a listener that goes away: what is in flight is
    /// finished, then the connection is closed.
    fn serve(&self, io: Io, hosted: Hosted) -> impl Future<Output = ()>;
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
pub struct Agent {}

impl Agent {
    #[must_use]
    pub fn new(config: Arc<TunnelAgent>, inputs: AgentInputs) -> Arc<Self> {
        let _ = (config, inputs);
        todo!()
    }

    /// Runs one worker's share, on the worker's `LocalSet`; to be called once on every worker. Ends after
    /// [`Self::stop`], when the connections of this worker have closed.
    pub async fn run<H: Hosting>(self: Arc<Self>, worker: Worker, hosting: H, metrics: Block<AgentMetric>) {
        let _ = (worker, hosting, metrics);
        todo!()
    }

    /// Begins the graceful close: no further dials, the servers are told, what is in flight is finished, at most
    /// `graceful_close_max_wait`.
    pub fn stop(&self) {
        todo!()
    }

    #[must_use]
    pub fn status(&self) -> AgentStatus {
        todo!()
    }
}
