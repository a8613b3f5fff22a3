//! Connections: one worker's pools, and a request's hold on one of them.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_http::{ClientExchange, Io, Version};
use culvert_model::route::Priority;

use crate::breaker::RetryPermit;
use crate::clusters::Clusters;
use crate::failure::UpstreamFailure;
use crate::host::Host;
use crate::slot::ClusterSlot;
use crate::stats::ClusterMetric;

/// What a request wants of its host and connection.
#[derive(Debug, Clone, Copy)]
pub struct PickContext<'a> {
    pub priority: Priority,
    /// The tunnel agent that must serve it.
    pub agent: Option<&'a str>,
    /// For clusters that use the downstream's protocol.
    pub downstream: DownstreamProtocol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownstreamProtocol {
    Http1,
    Http2,
}

/// One worker's connections. Lives on the worker's `LocalSet`.
#[derive(Debug)]
pub struct WorkerPools(());

impl WorkerPools {
    /// Must be called inside the worker's `LocalSet`: a local task closes what has been idle too long.
    #[must_use]
    pub fn new(clusters: Arc<Clusters>) -> Rc<Self> {
        let _ = clusters;
        todo!()
    }

    /// Picks a host and begins an exchange with it: reuses a connection, opens one, or borrows a tunnel. The caller
    /// sets the request's deadline; dropping the future gives up cleanly.
    ///
    /// # Errors
    /// See [`UpstreamFailure`]; nothing was sent.
    pub async fn checkout(
        self: &Rc<Self>,
        slot: &Arc<ClusterSlot>,
        context: &PickContext<'_>,
    ) -> Result<Checkout, UpstreamFailure> {
        let _ = (slot, context);
        todo!()
    }

    /// Picks a host and opens a connection of its own to it, for TCP proxying. A plain tunnel is taken whole.
    ///
    /// # Errors
    /// See [`UpstreamFailure`].
    pub async fn checkout_tcp(
        self: &Rc<Self>,
        slot: &Arc<ClusterSlot>,
        context: &PickContext<'_>,
    ) -> Result<TcpCheckout, UpstreamFailure> {
        let _ = (slot, context);
        todo!()
    }

    /// Leave for one retry, if the breaker or the budget allows it; counts `upstream_rq_retry` or its overflow.
    pub fn retry(&self, slot: &Arc<ClusterSlot>, priority: Priority) -> Option<RetryPermit> {
        let _ = (slot, priority);
        todo!()
    }

    /// Counts an event of the cluster on this worker.
    pub fn count(&self, slot: &Arc<ClusterSlot>, metric: ClusterMetric) {
        let _ = (slot, metric);
        todo!()
    }

    /// The cluster that a request names (`cluster_header`), if it is there.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<Arc<ClusterSlot>> {
        let _ = name;
        todo!()
    }
}

/// One exchange with a host. Dropping it gives the connection back if the exchange ended cleanly and closes it
/// otherwise; permits and counts are given back either way.
#[derive(Debug)]
pub struct Checkout(());

impl Checkout {
    /// The exchange itself.
    pub fn exchange(&mut self) -> &mut ClientExchange {
        todo!()
    }

    #[must_use]
    pub fn host(&self) -> &Host {
        todo!()
    }

    /// Whether the connection has served before: a failure before the response may mean that it was stale.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        todo!()
    }

    /// Waiting, connecting and TLS; zero for a reused connection.
    #[must_use]
    pub fn connect_time(&self) -> Duration {
        todo!()
    }

    #[must_use]
    pub fn protocol(&self) -> Version {
        todo!()
    }

    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        todo!()
    }

    /// The peer's address of this very connection (`%UPSTREAM_REMOTE_ADDRESS%`).
    #[must_use]
    pub fn remote_address(&self) -> Option<SocketAddr> {
        todo!()
    }

    /// Counts the final response's status for the cluster and the host.
    pub fn response(&self, status: u16) {
        let _ = status;
        todo!()
    }

    /// Counts an event of the cluster on this worker.
    pub fn count(&self, metric: ClusterMetric) {
        let _ = metric;
        todo!()
    }
}

/// A connection of its own to a host. Its permits are given back when it is dropped.
#[derive(Debug)]
pub struct TcpCheckout(());

impl TcpCheckout {
    /// The connection; taken once.
    pub fn take(&mut self) -> Option<TcpUpstream> {
        todo!()
    }

    #[must_use]
    pub fn host(&self) -> &Host {
        todo!()
    }

    /// Counts an event of the cluster on this worker.
    pub fn count(&self, metric: ClusterMetric) {
        let _ = metric;
        todo!()
    }
}

/// What bytes can be proxied over.
#[derive(Debug)]
pub enum TcpUpstream {
    /// A socket, TLS over it, or a plain tunnel taken whole.
    Io(Io),
    /// A stream of an HTTP/2 tunnel: send a CONNECT head first.
    Stream(ClientExchange),
}
