//! A hold on a host that is sent datagrams: what a connection is to TCP, without one.

use std::net::SocketAddr;
use std::rc::Rc;

use super::PickContext;
use super::connection::{ConnectionPermit, Link};
use super::host::HostPool;
use super::slot::{Picked, SlotPool};
use crate::failure::{Exhausted, UpstreamFailure};
use crate::host::Host;
use crate::stats::ClusterMetric;
use crate::tunnel::Lane;

/// One session's hold on its host. Counts as a connection, in the breaker and in the statistics, while it lives.
#[derive(Debug)]
pub struct UdpCheckout {
    host: Rc<HostPool>,
    address: SocketAddr,
    _link: Link,
}

impl UdpCheckout {
    #[must_use]
    pub fn host(&self) -> &Host {
        self.host.host()
    }

    /// Whether the cluster does not have the host any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.host().is_gone()
    }

    /// Where its datagrams go.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Counts `n` of the cluster on this worker: bytes.
    pub fn add(&self, metric: ClusterMetric, n: u64) {
        self.host.stats.slot.block.add(metric, n);
    }
}

impl SlotPool {
    /// As [`Self::start`], for datagrams: there is nothing to wait for.
    pub(super) fn start_udp(self: &Rc<Self>, context: &PickContext<'_>) -> Result<UdpCheckout, UpstreamFailure> {
        let host = match self.pick(context, Lane::Stream)? {
            Picked::Host { host, .. } => host,
            // A tunnel takes datagrams within CONNECT-UDP only.
            Picked::Lent { .. } | Picked::Busy { .. } => return Err(self.counted(UpstreamFailure::OtherTransport)),
        };
        let address = host.host().address();
        context.check(address).map_err(|failure| self.counted(failure))?;
        let address = address.ok_or(UpstreamFailure::NoHealthyHost)?;
        let Some(permit) = ConnectionPermit::acquire(&self.stats, context.priority) else {
            self.count(ClusterMetric::CxOverflow);
            return Err(UpstreamFailure::Overflow(Exhausted::Connections));
        };
        let link = Link::new(&host.stats, permit, host.config().epoch, None, address, None);
        Ok(UdpCheckout { host, address, _link: link })
    }
}
