//! Connections: one worker's pools, and a request's hold on one of them.
//!
//! ```text
//! checkout -> pick a host -> reuse | borrow a tunnel   (at once: no allocation, no lock of ours, no system call)
//!                         -> dial | wait for a tunnel  (boxed: the rare way)
//! ```

mod checkout;
mod connection;
mod datagrams;
mod dial;
pub mod direct;
mod host;
mod line;
mod named;
mod open;
mod slot;
mod sweep;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use culvert_http::RequestHead;
use culvert_model::Name;
use culvert_model::route::Priority;
use culvert_model::tunnel::destinations::Destinations;
use tokio::time::Instant;

use crate::breaker::RetryPermit;
use crate::clusters::Clusters;
use crate::failure::UpstreamFailure;
use crate::slot::ClusterSlot;
use crate::stats::ClusterMetric;
pub use checkout::{Checkout, TcpCheckout, TcpUpstream};
pub use datagrams::UdpCheckout;
use slot::{SlotPool, Step, TcpStep};

/// What a request wants of its host and connection.
#[derive(Debug, Clone, Copy)]
pub struct PickContext<'a> {
    pub priority: Priority,
    /// The tunnel agent that must serve it.
    pub agent: Option<&'a str>,
    /// From which a `reverse_connection` cluster reads the agent, and one with `auto_sni` the name of the host; `None`: a
    /// TCP connection.
    pub request: Option<&'a RequestHead>,
    /// For clusters that use the downstream's protocol.
    pub downstream: DownstreamProtocol,
    /// Hosts that were tried already, and how often another is asked for when the balancer names one of them.
    pub tried: &'a [SocketAddr],
    pub fresh_picks: u32,
    /// Where it may go, if it came through a tunnel: a host elsewhere is not dialled.
    pub destinations: Option<&'a Destinations>,
}

impl PickContext<'_> {
    fn check(&self, host: Option<SocketAddr>) -> Result<(), UpstreamFailure> {
        match (self.destinations, host) {
            (Some(destinations), Some(address)) if !destinations.allow(address.ip()) => {
                Err(UpstreamFailure::DestinationDenied { address })
            }
            _ => Ok(()),
        }
    }
}

/// What the client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownstreamProtocol {
    Http1,
    Http2,
}

/// One worker's connections. Lives on the worker's `LocalSet`; dropping it closes what is idle.
#[derive(Debug)]
pub struct WorkerPools {
    clusters: Arc<Clusters>,
    slots: RefCell<HashMap<u64, Rc<SlotPool>, foldhash::fast::RandomState>>,
    /// Slots that requests have named (`cluster_header`): spares them the registry's lock.
    named: RefCell<HashMap<Name, Arc<ClusterSlot>, foldhash::fast::RandomState>>,
    /// The time of the last sweep: precise enough for idle times, and free to read.
    clock: Rc<Cell<Instant>>,
}

impl WorkerPools {
    /// Must be called inside the worker's `LocalSet`: a local task closes what has been idle too long.
    #[must_use]
    pub fn new(clusters: Arc<Clusters>) -> Rc<Self> {
        let pools = Rc::new(Self {
            clusters: Arc::clone(&clusters),
            slots: RefCell::default(),
            named: RefCell::default(),
            clock: Rc::new(Cell::new(Instant::now())),
        });
        tokio::task::spawn_local(sweep::run(Rc::downgrade(&pools), clusters));
        pools
    }

    /// Picks a host and begins an exchange with it: reuses a connection, opens one, or borrows a tunnel. The caller
    /// sets the request's deadline; dropping the future gives up cleanly.
    ///
    /// # Errors
    /// See [`UpstreamFailure`]; nothing was sent.
    pub async fn checkout(
        &self,
        slot: &Arc<ClusterSlot>,
        context: &PickContext<'_>,
    ) -> Result<Checkout, UpstreamFailure> {
        let pool = self.pool(slot);
        match pool.start(context)? {
            Step::Ready(checkout) => Ok(checkout),
            Step::Open(open) => Box::pin(open.run(&self.clusters)).await,
            Step::Wait(wait) => Box::pin(wait.exchange()).await,
        }
    }

    /// Picks a host and opens a connection of its own to it, for TCP proxying. A plain tunnel is taken whole.
    ///
    /// # Errors
    /// See [`UpstreamFailure`].
    pub async fn checkout_tcp(
        &self,
        slot: &Arc<ClusterSlot>,
        context: &PickContext<'_>,
    ) -> Result<TcpCheckout, UpstreamFailure> {
        let pool = self.pool(slot);
        match pool.start_tcp(context)? {
            TcpStep::Ready(checkout) => Ok(*checkout),
            TcpStep::Open(open) => Box::pin(open.run_tcp(&self.clusters)).await,
            TcpStep::Wait(wait) => Box::pin(wait.whole()).await,
        }
    }

    /// Picks a host for the datagrams of one session. Nothing is opened here: the caller has the socket.
    ///
    /// # Errors
    /// See [`UpstreamFailure`]; a host that is a tunnel takes none.
    pub fn checkout_udp(
        &self,
        slot: &Arc<ClusterSlot>,
        context: &PickContext<'_>,
    ) -> Result<UdpCheckout, UpstreamFailure> {
        self.pool(slot).start_udp(context)
    }

    /// Leave for one retry, if the breaker or the budget allows it; counts `upstream_rq_retry` or its overflow.
    pub fn retry(&self, slot: &Arc<ClusterSlot>, priority: Priority) -> Option<RetryPermit> {
        let permit = RetryPermit::acquire(slot.breakers(), priority);
        let metric = if permit.is_some() { ClusterMetric::RqRetry } else { ClusterMetric::RqRetryOverflow };
        self.count(slot, metric);
        if permit.is_some() {
            self.count(slot, ClusterMetric::RqRetryBackoffExponential);
        }
        permit
    }

    /// Counts an event of the cluster on this worker.
    pub fn count(&self, slot: &Arc<ClusterSlot>, metric: ClusterMetric) {
        self.pool(slot).count(metric);
    }

    /// Counts the status that a client got in place of a response from the cluster, as Envoy does.
    pub fn answered(&self, slot: &Arc<ClusterSlot>, status: u16) {
        self.pool(slot).answered(status);
    }

    /// The cluster that a request names (`cluster_header`), if it is there.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<Arc<ClusterSlot>> {
        if let Some(slot) = self.named.borrow().get(name) {
            return Some(Arc::clone(slot));
        }
        let slot = self.clusters.lookup(name)?;
        slot.config()?;
        self.named.borrow_mut().insert(Name::clone(slot.name()), Arc::clone(&slot));
        Some(slot)
    }

    fn pool(&self, slot: &Arc<ClusterSlot>) -> Rc<SlotPool> {
        if let Some(pool) = self.slots.borrow().get(&slot.id()) {
            return Rc::clone(pool);
        }
        let pool = SlotPool::new(slot, self.clusters.reverse(), &self.clock);
        self.slots.borrow_mut().insert(slot.id(), Rc::clone(&pool));
        pool
    }
}
