//! What belongs to one pooled connection: its place in the breaker and its counts.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_http::Meter;
use culvert_model::route::Priority;
use culvert_runtime::telemetry::Block;
use tokio::time::Instant;

use crate::host::{Host, HostMetric};
use crate::slot::ClusterSlot;
use crate::stats::ClusterMetric;

/// One worker's counts of one host, with those of its cluster.
#[derive(Debug)]
pub(super) struct HostStats {
    pub(super) slot: Rc<SlotStats>,
    pub(super) host: Arc<Host>,
    pub(super) block: Block<HostMetric>,
}

/// One worker's counts of one cluster.
#[derive(Debug)]
pub(super) struct SlotStats {
    pub(super) slot: Arc<ClusterSlot>,
    pub(super) block: Block<ClusterMetric>,
}

impl SlotStats {
    /// Counts a final status, by its class and by itself.
    pub(super) fn answered(&self, status: u16) {
        self.block.inc(ClusterMetric::of_status(status));
        self.block.status(ClusterMetric::RqStatus, status);
        self.block.inc(ClusterMetric::RqCompleted);
    }
}

/// A connection's place in the circuit breaker.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    slot: Rc<SlotStats>,
    priority: Priority,
}

impl ConnectionPermit {
    /// `None`: the cluster has as many connections as it may have.
    pub(super) fn acquire(slot: &Rc<SlotStats>, priority: Priority) -> Option<Self> {
        let granted = slot.slot.breakers().of(priority).connections.try_acquire();
        granted.then(|| Self { slot: Rc::clone(slot), priority })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.slot.slot.breakers().of(self.priority).release_connection();
    }
}

/// An open connection's facts. Counts as active while it lives.
#[derive(Debug)]
pub(super) struct Link {
    stats: Rc<HostStats>,
    pub(super) local: Option<SocketAddr>,
    pub(super) remote: Option<SocketAddr>,
    /// The configuration's epoch it was opened under.
    pub(super) epoch: u64,
    pub(super) opened: Instant,
    /// Exchanges that it has begun.
    pub(super) served: u32,
    /// Of connections whose bytes nobody else counts, and what was counted of them.
    meter: Option<Arc<Meter>>,
    metered: Cell<(u64, u64)>,
    /// Given back after the counts, when the connection is closed.
    _permit: ConnectionPermit,
}

impl Link {
    pub(super) fn new(
        stats: &Rc<HostStats>,
        permit: ConnectionPermit,
        epoch: u64,
        local: Option<SocketAddr>,
        remote: SocketAddr,
        meter: Option<Arc<Meter>>,
    ) -> Self {
        stats.slot.block.inc(ClusterMetric::CxTotal);
        stats.slot.block.inc(ClusterMetric::CxActive);
        stats.block.inc(HostMetric::CxTotal);
        stats.block.inc(HostMetric::CxActive);
        let stats = Rc::clone(stats);
        Self {
            stats,
            local,
            remote: Some(remote),
            epoch,
            opened: Instant::now(),
            served: 0,
            meter,
            metered: Cell::default(),
            _permit: permit,
        }
    }

    /// Counts the bytes since the last call.
    pub(super) fn count_bytes(&self) {
        let Some(meter) = &self.meter else { return };
        let (read, written) = (meter.read(), meter.written());
        let before = self.metered.replace((read, written));
        self.stats.slot.block.add(ClusterMetric::CxRxBytesTotal, read - before.0);
        self.stats.slot.block.add(ClusterMetric::CxTxBytesTotal, written - before.1);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.count_bytes();
        self.stats.slot.block.dec(ClusterMetric::CxActive);
        self.stats.slot.block.inc(ClusterMetric::CxDestroy);
        self.stats.slot.block.record(ClusterMetric::CxLengthMs, milliseconds(self.opened.elapsed()));
        self.stats.block.dec(HostMetric::CxActive);
    }
}

/// As histograms take it.
pub(super) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
