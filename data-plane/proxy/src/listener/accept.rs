//! From an accepted connection to its network filter.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use culvert_http::Io;
use culvert_model::tunnel::destinations::Destinations;
use culvert_runtime::drain::Watch;
use culvert_runtime::sockets;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;

use super::ListenerSlot;
use super::choose::Ready;
use super::generation::{Generation, WorkerFilter};
use super::inspect::TlsDetails;
use crate::http_manager;
use crate::stats::ListenerMetric;
use crate::tcp_proxy;
use crate::tunnel::{self, ClusterHosts, WorkerTunnel};
use crate::worker::{Counters, Worker};

/// Accepts connections from `socket` on this worker and serves each as a local task. Returns when the listener has
/// been told to drain and what waited in the accept queue has been taken; the socket is closed then. Connections live
/// on: see [`ListenerSlot::drained`].
///
/// # Errors
/// The socket cannot be registered with this worker's reactor.
pub async fn serve_listener(
    worker: Rc<Worker>,
    socket: std::net::TcpListener,
    slot: Arc<ListenerSlot>,
) -> std::io::Result<()> {
    socket.set_nonblocking(true)?;
    // What is accepted inherits it: no system call for each connection.
    sockets::set_nodelay(&socket)?;
    let socket = TcpListener::from_std(socket)?;
    // A connection to one address has no other; only a wildcard's have to be asked for theirs.
    let local = Some(socket.local_addr()?).filter(|local| !local.ip().is_unspecified());
    let listener = worker.listener(&slot);
    let mut draining = slot.watch.draining();
    // Connections accepted since everything else had a turn.
    let mut since_turn = 0;
    loop {
        // Without a permit nothing is accepted: what waits is the kernel's to hold, and other workers' to take.
        let accepted = tokio::select! {
            biased;
            () = &mut draining => break,
            accepted = listener.accept(&socket) => accepted,
        };
        match accepted {
            Ok((stream, remote, permit)) => {
                listener.spawn(stream, (remote, local), permit);
                since_turn += 1;
                // However many come at once, what is served already has its turns in between.
                if since_turn >= slot.accepts_per_event() {
                    since_turn = 0;
                    tokio::task::yield_now().await;
                }
            }
            Err(error) => {
                listener.counters.inc(ListenerMetric::AcceptError);
                tracing::warn!(listener = %slot.name, %error, "cannot accept");
                if is_exhaustion(&error) {
                    // Out of descriptors or memory: an immediate retry would only spin.
                    tokio::time::sleep(EXHAUSTION_PAUSE).await;
                }
            }
        }
    }
    for (stream, remote) in sockets::drain_accept_queue(&socket, MAX_DRAINED) {
        listener.spawn(TcpStream::from_std(stream)?, (remote, local), None);
    }
    Ok(())
}

/// A client of IPv4 at a socket of both families has its address mapped into IPv6; it is IPv4's everywhere behind here, as
/// in Envoy.
fn unmapped(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// Whether accepting failed for lack of descriptors or memory.
fn is_exhaustion(error: &std::io::Error) -> bool {
    // EMFILE, ENFILE, ENOBUFS, ENOMEM
    matches!(error.raw_os_error(), Some(24 | 23 | 105 | 12))
}

/// Serves a connection that a tunnel brought. `outdated` is called when its chain drains, and says whether `drain` is to be
/// expected within [`HANDOVER`].
pub(crate) async fn serve_hosted(
    worker: &Rc<Worker>,
    slot: &Arc<ListenerSlot>,
    io: Io,
    (remote, local): (SocketAddr, SocketAddr),
    hosted: OfTunnel,
    drain: impl Future<Output = ()>,
    outdated: impl FnOnce() -> bool,
) {
    let listener = worker.listener(slot);
    let Some(generation) = listener.generation() else {
        tracing::debug!(listener = %slot.name, "a tunnel's connection found no filter chains");
        return;
    };
    let arrived = Box::new(Arrived { io, remote, local, start: Instant::now(), hosted: Some(Rc::new(hosted)) });
    // Boxed: a tunnel's task is long-lived and already large.
    let drain = |chain: Watch| async move {
        let replaced = async {
            chain.draining().await;
            // Whoever brought the connection may bring another one first, and then drain this one.
            if outdated() {
                tokio::time::sleep(HANDOVER).await;
            }
        };
        tokio::select! {
            biased;
            () = drain => {}
            () = replaced => {}
        }
    };
    if let Some(tunnel) = Box::pin(listener.serve(generation, arrived, drain)).await {
        Box::pin(tunnel.run()).await;
    }
}

/// A listener as one worker sees it.
#[derive(Debug)]
pub(crate) struct WorkerListener {
    worker: std::rc::Weak<Worker>,
    pub(super) slot: Arc<ListenerSlot>,
    pub(super) counters: Counters<ListenerMetric>,
    generation: RefCell<Option<Rc<Generation>>>,
}

/// A connection that nothing has looked at yet. Boxed on its way, so that the tasks of connections stay small.
pub(super) struct Arrived {
    pub(super) io: Io,
    pub(super) remote: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) start: Instant,
    /// See [`Downstream::hosted`].
    pub(super) hosted: Option<Rc<OfTunnel>>,
}

/// Who is at the other end of a connection, for headers and logs.
#[derive(Debug)]
pub(crate) struct Downstream {
    pub(crate) id: u64,
    pub(crate) remote: SocketAddr,
    pub(crate) local: SocketAddr,
    /// When it came.
    pub(crate) start: Instant,
    /// Boxed: most connections that stay for long have none.
    pub(crate) tls: Option<Box<TlsDetails>>,
    pub(crate) server_name: Option<Arc<str>>,
    pub(crate) chain: Arc<str>,
    /// It came through a tunnel that this process hosts, or is one.
    pub(crate) hosted: Option<Rc<OfTunnel>>,
}

/// What an agent says of the connections that it hosts.
#[derive(Debug, Clone, Default)]
pub(crate) struct OfTunnel {
    /// How often the server is pinged; `None`: the connection is not the tunnel itself.
    pub(crate) ping_interval: Option<Duration>,
    /// Where what it brings may go.
    pub(crate) destinations: Arc<Destinations>,
    /// To be told when the agent is to dial anew.
    pub(crate) outdated: Option<Arc<Notify>>,
}

impl Downstream {
    /// Where what came on it may go; `None`: anywhere.
    pub(crate) fn destinations(&self) -> Option<&Destinations> {
        self.hosted.as_ref().map(|hosted| &*hosted.destinations)
    }
}

impl WorkerListener {
    pub(crate) fn new(worker: &Rc<Worker>, slot: Arc<ListenerSlot>) -> Self {
        let counters = Counters::new(&slot.stats);
        Self { worker: Rc::downgrade(worker), counters, slot, generation: RefCell::default() }
    }

    /// Whether anybody but this worker still knows the listener.
    pub(crate) fn is_alive(&self) -> bool {
        Arc::strong_count(&self.slot) > 1
    }

    async fn accept(
        &self,
        socket: &TcpListener,
    ) -> std::io::Result<(TcpStream, SocketAddr, Option<OwnedSemaphorePermit>)> {
        let limit = self.slot.limit.load_full();
        let permit = match limit.max {
            Some(_) => Some(Arc::clone(&limit.permits).acquire_owned().await.map_err(std::io::Error::other)?),
            None => None,
        };
        let (stream, remote) = socket.accept().await?;
        Ok((stream, remote, permit))
    }

    fn spawn(
        self: &Rc<Self>,
        stream: TcpStream,
        (remote, local): (SocketAddr, Option<SocketAddr>),
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let Some(generation) = self.generation() else {
            tracing::debug!(listener = %self.slot.name, "a connection came before any filter chain");
            return;
        };
        let local = match local.map_or_else(|| stream.local_addr(), Ok) {
            Ok(local) => local,
            Err(error) => {
                tracing::debug!(%error, "a connection was gone before it was looked at");
                return;
            }
        };
        let (remote, local) = (unmapped(remote), unmapped(local));
        let listener = Rc::clone(self);
        let arrived = Box::new(Arrived { io: Io::tcp(stream), remote, local, start: Instant::now(), hosted: None });
        // Boxed: a future of this size would be moved about on its way into the runtime.
        tokio::task::spawn_local(Box::pin(async move {
            let tunnel = listener.serve(generation, arrived, |chain: Watch| chain.draining()).await;
            if let Some(tunnel) = tunnel {
                // A task of its own, for this one has the size of an HTTP connection.
                tokio::task::spawn_local(Box::pin(async move {
                    tunnel.run().await;
                    drop(permit);
                }));
            }
        }));
    }

    /// The task of a connection in memory, for its size.
    #[cfg(test)]
    pub(super) fn serving(self: Rc<Self>, io: Io) -> impl Future<Output = ()> {
        let address = SocketAddr::from(([192, 0, 2, 1], 1));
        let arrived = Box::new(Arrived { io, remote: address, local: address, start: Instant::now(), hosted: None });
        async move {
            if let Some(generation) = self.generation() {
                drop(self.serve(generation, arrived, |chain: Watch| chain.draining()).await);
            }
        }
    }

    /// What is in force now.
    pub(super) fn generation(&self) -> Option<Rc<Generation>> {
        let current = self.slot.chains.load();
        let current = current.as_ref()?;
        let mut generation = self.generation.borrow_mut();
        match &*generation {
            Some(generation) if Arc::ptr_eq(&generation.chains, current) => Some(Rc::clone(generation)),
            before => {
                let fresh = Rc::new(Generation::new(Arc::clone(current), before.as_deref()));
                Some(Rc::clone(generation.insert(fresh)))
            }
        }
    }

    /// One connection from its first byte to its end; or to its filter, if that makes a tunnel of it.
    ///
    /// `drain`: when it is to finish, given the drain of its chain.
    async fn serve<F: Future<Output = ()>>(
        self: &Rc<Self>,
        generation: Rc<Generation>,
        arrived: Box<Arrived>,
        drain: impl FnOnce(Watch) -> F,
    ) -> Option<Box<Tunnelled>> {
        let counters = &self.counters;
        counters.inc(ListenerMetric::CxTotal);
        let active = Active::new(counters, ListenerMetric::CxActive, Some(ListenerMetric::CxDestroy));
        let worker = self.worker.upgrade()?;
        let chosen = {
            // Until its chain is known, the connection holds the listener's drain back.
            let _held = self.slot.watch.block();
            let _inspecting = Active::new(counters, ListenerMetric::PreCxActive, None);
            match self.choose_by_address(&worker, &generation, arrived) {
                Ok(chosen) => chosen,
                Err(arrived) => Box::pin(self.choose(&worker, &generation, *arrived)).await,
            }
        };
        let Ready { io, downstream, chain, _held, admission } = chosen?;
        if let WorkerFilter::Tunnel(filter) = &chain.filter {
            let (filter, listener) = (Rc::clone(filter), Rc::clone(self));
            let ready = Ready { io, downstream, chain, _held, admission };
            return Some(Box::new(Tunnelled { filter, listener, worker, generation, ready, _active: active }));
        }
        let watch = chain.chain.watch.clone();
        let filter = pin!(async {
            match &chain.filter {
                WorkerFilter::Http(http) => {
                    http_manager::serve(http, &worker, io, &downstream, drain(watch.clone())).await;
                }
                // Boxed, so that connections of one kind do not carry the state of another.
                WorkerFilter::Tcp(tcp) => Box::pin(tcp_proxy::serve(tcp, &worker, io, &downstream)).await,
                WorkerFilter::Tunnel(_) => debug_assert!(false, "tunnels have left above"),
            }
        });
        until_cut_off(filter, &watch, &downstream).await;
        self.ended(&generation, &downstream, &worker);
        drop(active);
        None
    }

    fn ended(&self, generation: &Generation, downstream: &Downstream, worker: &Worker) {
        let lasted = downstream.start.elapsed();
        self.counters.record(ListenerMetric::CxLengthMs, lasted.as_secs_f64() * 1000.0);
        generation.log(downstream, worker);
    }
}

/// A connection of which its filter makes a tunnel.
struct Tunnelled {
    filter: Rc<WorkerTunnel>,
    listener: Rc<WorkerListener>,
    worker: Rc<Worker>,
    generation: Rc<Generation>,
    ready: Ready,
    _active: Active<ListenerMetric>,
}

impl Tunnelled {
    /// To its end.
    async fn run(self: Box<Self>) {
        // Moved out as a whole, so that the box is gone for the tunnel's life.
        let Self {
            filter,
            listener,
            worker,
            generation,
            ready: Ready { io, downstream, chain, _held, admission },
            _active,
        } = {
            let this = self;
            *this
        };
        let watch = &chain.chain.watch;
        let hosts = ClusterHosts(&worker.process.clusters);
        let tunnel = pin!(tunnel::serve(&filter, &hosts, io, admission, &downstream, watch));
        if let Some(ended) = until_cut_off(tunnel, watch, &downstream).await {
            tracing::debug!(connection = downstream.id, ?ended, "a tunnel connection has ended");
        }
        listener.ended(&generation, &downstream, &worker);
    }
}

/// Runs a filter to its end; `None`: it was cut off at the drain's deadline.
async fn until_cut_off<T>(
    mut filter: Pin<&mut impl Future<Output = T>>,
    watch: &Watch,
    downstream: &Downstream,
) -> Option<T> {
    let mut cut_off = pin!(async {
        watch.draining().await;
        Box::pin(watch.expired()).await;
    });
    poll_fn(|cx| match filter.as_mut().poll(cx) {
        Poll::Ready(ended) => Poll::Ready(Some(ended)),
        Poll::Pending => cut_off.as_mut().poll(cx).map(|()| {
            tracing::debug!(connection = downstream.id, "cut off: the drain's deadline has passed");
            None
        }),
    })
    .await
}

/// Counts something as active while it lives.
#[derive(Debug)]
pub(crate) struct Active<M: culvert_runtime::telemetry::Metrics> {
    counters: Counters<M>,
    gauge: M,
    ended: Option<M>,
}

impl<M: culvert_runtime::telemetry::Metrics> Active<M> {
    pub(crate) fn new(counters: &Counters<M>, gauge: M, ended: Option<M>) -> Self {
        counters.inc(gauge);
        Self { counters: counters.clone(), gauge, ended }
    }
}

impl<M: culvert_runtime::telemetry::Metrics> Drop for Active<M> {
    fn drop(&mut self) {
        self.counters.dec(self.gauge);
        if let Some(ended) = self.ended {
            self.counters.inc(ended);
        }
    }
}

/// How long a connection that a tunnel brought may belong to a chain that is replaced.
const HANDOVER: Duration = Duration::from_secs(5);
const EXHAUSTION_PAUSE: Duration = Duration::from_millis(100);
/// Connections that may wait in one socket's accept queue when it closes.
const MAX_DRAINED: usize = 65_536;
