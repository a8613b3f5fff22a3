//! The UDP proxy: datagrams of a listener, by session, to hosts as UDP or within CONNECT-UDP (RFC 9298).
//!
//! ```text
//! Receiver (a socket of a listener, on its worker) -> Session (a client's address) -> Direct: a socket of its own
//!                                                                                  -> Tunnelled: a stream
//! ```
//!
//! A client that keeps its address and port keeps its worker: the kernel chooses the socket by both. **No datagram waits
//! without a bound**: what finds no room is dropped and counted, and what is sent to a client comes from its own session.

mod receiver;
mod session;
#[cfg(test)]
mod tests;
mod tunnelled;
mod waiting;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use culvert_model::listener;
use culvert_model::route::Priority;
use culvert_runtime::drain::{Trigger, Watch};
use culvert_runtime::telemetry::{Scope, ScopePath};
use culvert_upstream::ClusterSlot;

pub use self::receiver::serve_datagrams;
use crate::access_log::{LogTargets, WorkerLogs};
use crate::listener::CompileError;
use crate::stats::{UdpClusterMetric, UdpMetric};
use crate::worker::{Counters, Process, Worker};

/// The compiled UDP proxy of a listener. Shared by the workers.
#[derive(Debug)]
pub(crate) struct UdpProxy {
    pub(crate) config: Arc<listener::UdpProxy>,
    target: Arc<ClusterSlot>,
    logs: LogTargets,
    stats: Scope<UdpMetric>,
    /// Sessions of all workers.
    sessions: AtomicU32,
    drain: Trigger,
    watch: Watch,
}

impl UdpProxy {
    /// `listener`: the drain of the listener, of which this one is a part.
    pub(crate) fn compile(
        config: &Arc<listener::UdpProxy>,
        listener: &Watch,
        process: &Process,
    ) -> Result<Arc<Self>, CompileError> {
        let (drain, watch) = listener.child();
        Ok(Arc::new(Self {
            target: process.clusters.slot(&config.cluster),
            logs: LogTargets::open(&config.access_log, process)?,
            stats: process.registry.scope(ScopePath::udp(Arc::clone(&config.stat_prefix))),
            sessions: AtomicU32::new(0),
            config: Arc::clone(config),
            drain,
            watch,
        }))
    }

    /// Another configuration takes its place: sessions may last `within`.
    pub(crate) fn retire(&self, within: Duration) {
        self.drain.start(within);
    }

    /// A place for one more session. Envoy: the cluster's `max_connections` says how many there may be.
    fn place(self: &Arc<Self>) -> Option<Place> {
        let [(_, connections), ..] = self.target.breakers().of(Priority::Default).levels();
        let one_more = |taken: u32| (taken < connections.limit).then(|| taken + 1);
        let granted = self.sessions.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok();
        granted.then(|| Place(Arc::clone(self)))
    }
}

/// A session's place among those that there may be.
#[derive(Debug)]
struct Place(Arc<UdpProxy>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A UDP proxy on one worker.
#[derive(Debug)]
struct WorkerUdp {
    proxy: Arc<UdpProxy>,
    counters: Counters<UdpMetric>,
    upstream: Counters<UdpClusterMetric>,
    logs: WorkerLogs,
}

impl WorkerUdp {
    fn new(proxy: &Arc<UdpProxy>, worker: &Worker) -> Rc<Self> {
        Rc::new(Self {
            counters: Counters::new(&proxy.stats),
            upstream: worker.udp_counters(&proxy.target),
            logs: proxy.logs.for_worker(),
            proxy: Arc::clone(proxy),
        })
    }
}

/// A non-blocking socket for the datagrams of one session, from and to `host` alone.
///
/// # Errors
/// There is none left, or no way to the host.
pub(crate) fn host_socket(host: SocketAddr) -> std::io::Result<UdpSocket> {
    let any = if host.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.connect(host)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
