//! The rare way to a connection: open one, or wait until one is free.

use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use culvert_http::Meter;
use culvert_http::client::{Http1Client, Http2Client};
use culvert_model::route::Priority;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::PickContext;
use super::checkout::{Checkout, Held, TcpCheckout};
use super::connection::{ConnectionPermit, Link, SlotStats, milliseconds};
use super::dial::{self, Dialled, Offer, Wire};
use super::host::{HostPool, Multiplexed};
use super::line::Line;
use super::slot::SlotPool;
use crate::breaker::Breaker;
use crate::clusters::Clusters;
use crate::failure::{Exhausted, UpstreamFailure};
use crate::host::HostMetric;
use crate::slot::ClusterConfig;
use crate::stats::ClusterMetric;
use crate::tunnel::{Full, Lent, http2_options};

/// A request whose host has no connection free.
pub(super) struct Open {
    pub(super) pool: Rc<SlotPool>,
    pub(super) host: Rc<HostPool>,
    pub(super) config: Arc<ClusterConfig>,
    pub(super) offer: Offer,
    pub(super) priority: Priority,
    pub(super) least_request: bool,
}

impl Open {
    pub(super) async fn run(self, clusters: &Clusters) -> Result<Checkout, UpstreamFailure> {
        let started = Instant::now();
        let pending = Pending::begin(&self.pool.stats, self.priority)?;
        let held =
            self.obtain(clusters).await.inspect_err(|_| self.host.count(ClusterMetric::RqPendingFailureEject))?;
        drop(pending);
        let checkout = Checkout::begin(self.host, held, self.priority, self.least_request)?;
        Ok(checkout.waited(started.elapsed()))
    }

    pub(super) async fn run_tcp(self, clusters: &Clusters) -> Result<TcpCheckout, UpstreamFailure> {
        let started = Instant::now();
        let pending = Pending::begin(&self.pool.stats, self.priority)?;
        // Nothing that is pooled serves TCP: what comes is leave to connect.
        let Leave::Connect(permit) = self.leave(clusters).await? else {
            return Err(UpstreamFailure::Overflow(Exhausted::Connections));
        };
        let dialled = self.dial().await?;
        drop(pending);
        let link = self.link(permit, &dialled, None);
        TcpCheckout::dialled(self.host, dialled.io, link, self.priority, started.elapsed())
    }

    async fn obtain(&self, clusters: &Clusters) -> Result<Held, UpstreamFailure> {
        loop {
            if let Some(held) = self.host.reuse(self.offer) {
                return Ok(held);
            }
            if !self.host.multiplexes(self.offer) {
                return self.connect_or_reuse(clusters).await;
            } else if !self.host.opening.borrow().under_way {
                let mut turn = Turn::begin(&self.host);
                let outcome = self.connect_or_reuse(clusters).await;
                turn.failure = outcome.as_ref().err().cloned();
                return outcome;
            } else {
                self.other_opens().await?;
            }
        }
    }

    async fn connect_or_reuse(&self, clusters: &Clusters) -> Result<Held, UpstreamFailure> {
        match self.leave(clusters).await? {
            Leave::Connect(permit) => self.connect(permit).await,
            Leave::Reuse(held) => Ok(held),
        }
    }

    /// Waits until the connection that another request opens is there.
    async fn other_opens(&self) -> Result<(), UpstreamFailure> {
        let round = self.host.opening.borrow().round;
        self.host.opened.notified().await;
        let opening = self.host.opening.borrow();
        match &opening.failure {
            Some(failure) if opening.round > round => Err(failure.clone()),
            Some(_) | None => Ok(()),
        }
    }

    async fn connect(&self, permit: ConnectionPermit) -> Result<Held, UpstreamFailure> {
        let mut dialled = self.dial().await?;
        self.host.alpn.set(Some(dialled.wire));
        let meter = dialled.io.meter();
        let link = self.link(permit, &dialled, Some(meter));
        match dialled.wire {
            Wire::Http1 => {
                self.host.count(ClusterMetric::CxHttp1Total);
                Ok(Held::Http1 { client: Some(Http1Client::new(dialled.io)), link: Box::new(link) })
            }
            Wire::Http2 => {
                self.host.count(ClusterMetric::CxHttp2Total);
                Ok(Held::Http2(self.multiplex(dialled, link)))
            }
        }
    }

    fn multiplex(&self, dialled: Dialled, link: Link) -> Rc<Multiplexed> {
        let address = dialled.remote;
        let (client, driver) = Http2Client::connect(dialled.io, &http2_options(&self.config.cluster.http2));
        let connection = self.host.add_http2(client, link);
        let stats = Rc::clone(&self.host.stats.slot);
        let (pool, entry) = (Rc::downgrade(&self.host), Rc::downgrade(&connection));
        tokio::task::spawn_local(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%address, %error, "upstream HTTP/2 connection ended");
                if error.is_protocol() {
                    stats.block.inc(ClusterMetric::CxProtocolError);
                }
            }
            forget(&pool, &entry);
        });
        connection
    }

    async fn dial(&self) -> Result<Dialled, UpstreamFailure> {
        let started = Instant::now();
        let outcome = dial::dial(&self.config, self.host.host(), self.offer, self.host.asked()).await;
        if let Ok(dialled) = &outcome {
            self.host.stats.slot.block.record(ClusterMetric::CxConnectMs, milliseconds(started.elapsed()));
            if dialled.io.is_tls() {
                self.host.count(ClusterMetric::SslHandshake);
            }
        }
        let Err(failure) = &outcome else { return outcome };
        tracing::debug!(cluster = %self.config.cluster.name, %failure, "cannot connect to upstream host");
        self.host.count(ClusterMetric::CxConnectFail);
        self.host.stats.block.inc(HostMetric::CxConnectFail);
        match failure {
            UpstreamFailure::ConnectTimeout { .. } => self.host.count(ClusterMetric::CxConnectTimeout),
            UpstreamFailure::TlsFailure { .. } => self.host.count(ClusterMetric::SslConnectionError),
            _ => {}
        }
        outcome
    }

    fn link(&self, permit: ConnectionPermit, dialled: &Dialled, meter: Option<Arc<Meter>>) -> Link {
        Link::new(&self.host.stats, permit, self.config.epoch, dialled.local, dialled.remote, meter)
    }

    /// Waits until a connection may be opened, or one that can be used came back.
    async fn leave(&self, clusters: &Clusters) -> Result<Leave, UpstreamFailure> {
        let acquire = || ConnectionPermit::acquire(&self.pool.stats, self.priority).map(Leave::Connect);
        if let Some(leave) = acquire() {
            return Ok(leave);
        }
        self.host.count(ClusterMetric::CxOverflow);
        if self.pool.evict_idle()
            && let Some(leave) = acquire()
        {
            return Ok(leave);
        }
        let breaker = self.pool.stats.slot.breakers().of(self.priority);
        let _wanted = Wanted::begin(breaker, &self.host);
        clusters.wanted().notify_waiters();
        let deadline = Instant::now() + MAX_PERMIT_WAIT;
        loop {
            if let Some(leave) = self.host.reuse(self.offer).map(Leave::Reuse).or_else(acquire) {
                return Ok(leave);
            }
            // A wake-up that finds nothing was overtaken: whoever took what was free wakes again when it is done.
            tokio::select! {
                () = breaker.freed.notified() => {}
                () = self.host.returned.notified() => {}
                () = tokio::time::sleep_until(deadline) => {
                    self.host.count(ClusterMetric::CxPoolOverflow);
                    return Err(UpstreamFailure::Overflow(Exhausted::Connections));
                }
            }
        }
    }
}

enum Leave {
    Connect(ConnectionPermit),
    Reuse(Held),
}

fn forget(pool: &Weak<HostPool>, connection: &Weak<Multiplexed>) {
    if let (Some(pool), Some(connection)) = (pool.upgrade(), connection.upgrade()) {
        pool.count(ClusterMetric::CxDestroyRemote);
        pool.forget_http2(&connection);
    }
}

/// A request that waits for a connection: its place in `max_pending_requests`.
struct Pending {
    stats: Rc<SlotStats>,
    priority: Priority,
}

impl Pending {
    fn begin(stats: &Rc<SlotStats>, priority: Priority) -> Result<Self, UpstreamFailure> {
        if !stats.slot.breakers().of(priority).pending.try_acquire() {
            stats.block.inc(ClusterMetric::RqPendingOverflow);
            return Err(UpstreamFailure::Overflow(Exhausted::Pending));
        }
        stats.block.inc(ClusterMetric::RqPendingTotal);
        stats.block.inc(ClusterMetric::RqPendingActive);
        Ok(Self { stats: Rc::clone(stats), priority })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.stats.block.dec(ClusterMetric::RqPendingActive);
        self.stats.slot.breakers().of(self.priority).pending.release();
    }
}

/// The one request that opens an HTTP/2 connection for all.
struct Turn {
    host: Rc<HostPool>,
    failure: Option<UpstreamFailure>,
}

impl Turn {
    fn begin(host: &Rc<HostPool>) -> Self {
        host.opening.borrow_mut().under_way = true;
        Self { host: Rc::clone(host), failure: None }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut opening = self.host.opening.borrow_mut();
        opening.under_way = false;
        opening.round += 1;
        opening.failure = self.failure.take();
        drop(opening);
        self.host.opened.notify_waiters();
    }
}

/// A request that waits until a connection may be opened.
struct Wanted<'a> {
    breaker: &'a Breaker,
    host: &'a HostPool,
}

impl<'a> Wanted<'a> {
    fn begin(breaker: &'a Breaker, host: &'a HostPool) -> Self {
        breaker.wanted.fetch_add(1, Ordering::SeqCst);
        // Whoever releases from here on sees that it is wanted, or what it released is seen by the next attempt.
        fence(Ordering::SeqCst);
        host.waiting.set(host.waiting.get() + 1);
        Self { breaker, host }
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.host.waiting.set(self.host.waiting.get() - 1);
        self.breaker.wanted.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A request whose tunnels are all in use, not attached yet, or expected back.
pub(super) struct Wait {
    pool: Rc<SlotPool>,
    line: Line,
    priority: Priority,
    least_request: bool,
}

impl Wait {
    pub(super) fn new(context: &PickContext<'_>, pool: Rc<SlotPool>, line: Line, least_request: bool) -> Self {
        Self { pool, line, priority: context.priority, least_request }
    }

    pub(super) async fn exchange(self) -> Result<Checkout, UpstreamFailure> {
        let started = Instant::now();
        let (host, lent) = self.lent().await?;
        let checkout = Checkout::begin(host, Held::Tunnel(lent), self.priority, self.least_request)?;
        Ok(checkout.waited(started.elapsed()))
    }

    pub(super) async fn whole(self) -> Result<TcpCheckout, UpstreamFailure> {
        let started = Instant::now();
        let (host, lent) = self.lent().await?;
        let checkout = TcpCheckout::tunnel(host, lent, self.priority, self.least_request)?;
        Ok(checkout.waited(started.elapsed()))
    }

    async fn lent(&self) -> Result<(Rc<HostPool>, Lent), UpstreamFailure> {
        let stats = &self.pool.stats;
        let overflow = |Full| {
            stats.block.inc(ClusterMetric::TunnelQueueOverflow);
            UpstreamFailure::QueueFull
        };
        let _pending = Pending::begin(stats, self.priority)?;
        let mut place = InLine { line: &self.line, is_served: false };
        let turn = self.line.queue().wait(self.line.name(), self.line.opening()).map_err(overflow)?;
        // One may have become free, or have come, before we stood in the queue.
        self.pool.serve_waiters(&self.line);
        let lent = match tokio::time::timeout_at(turn.deadline, self.answered(turn.answer)).await {
            Ok(Ok(lent)) => {
                place.is_served = true;
                lent.map_err(overflow)?
            }
            Ok(Err(_)) => return Err(self.pool.nobody_left(&self.line)),
            Err(_) if self.line.queue().has_live(self.line.name()) => {
                stats.block.inc(ClusterMetric::TunnelQueueTimeout);
                return Err(UpstreamFailure::QueueTimeout);
            }
            Err(_) => return Err(self.pool.nobody_left(&self.line)),
        };
        // A host that is in no generation any more has drained: its connection goes back.
        let host = self.pool.host_of(&self.line, lent.connection()).ok_or(UpstreamFailure::TunnelClosed)?;
        Ok((host, lent))
    }

    /// Has tunnels opened that rest, one after the other, until there is an answer.
    async fn answered<T>(&self, answer: oneshot::Receiver<T>) -> Result<T, oneshot::error::RecvError> {
        let mut answer = std::pin::pin!(answer);
        let mut asked = Vec::new();
        loop {
            // The one that was wanted may break; others are wanted only then, for each that is opened costs.
            self.pool.want_another(&self.line, &mut asked);
            if let Ok(answer) = tokio::time::timeout(WANT_ANOTHER, &mut answer).await {
                return answer;
            }
        }
    }
}

/// A place in a queue, which nobody keeps who has given up: also by being dropped.
struct InLine<'a> {
    line: &'a Line,
    is_served: bool,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        if !self.is_served {
            self.line.queue().forget(self.line.name());
        }
    }
}

/// How long a tunnel may take to be opened before another is asked for.
const WANT_ANOTHER: Duration = Duration::from_millis(500);
/// A request's own deadline comes first; this bounds one that has none.
const MAX_PERMIT_WAIT: Duration = Duration::from_secs(60);
