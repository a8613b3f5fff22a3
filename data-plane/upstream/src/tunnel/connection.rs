//! One tunnel connection: who may use it now, and who watches it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use culvert_http::client::{Http1Client, Http2Client};
use culvert_http::{ClientExchange, Io};
use culvert_model::tunnel::TunnelProtocol;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::queue::Queue;
use super::reverse::place;
use super::{TunnelClaim, TunnelEnd};
use crate::slot::ClusterSlot;

/// The shared half of a registration: the lease's owner attaches the connection to it, any worker uses it.
#[derive(Debug)]
pub(crate) struct TunnelConnection {
    claim: TunnelClaim,
    /// As claimed, or as the agent said later.
    weight: AtomicU32,
    registered: Instant,
    queue: Arc<Queue>,
    /// Clusters besides that of the registration in which it is a host.
    further: Mutex<Vec<Weak<ClusterSlot>>>,
    inner: Mutex<Inner>,
    /// What [`Inner::state`] is, to be read without the lock. Written under the lock.
    phase: AtomicU8,
    draining: AtomicBool,
    /// Whether the queue still counts on it.
    awaited: AtomicBool,
    /// Streams that are lent and not begun, so that the connection does not know of them yet.
    reserved: AtomicU32,
    /// Streams lent or under way (HTTP/2), or 1 while borrowed.
    active: AtomicU32,
    requests: AtomicU64,
    /// A request waits for it to be attached.
    wanted: Notify,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// The task that watches the connection: woken when it must look at the state.
    owner: Option<Waker>,
    /// Why the connection drains, if it does.
    drain_end: TunnelEnd,
}

#[derive(Debug)]
enum State {
    /// Registered; the connection is not there yet.
    Pending,
    Idle(Http1Client),
    Borrowed,
    Open(Http2Client),
    Gone(TunnelEnd),
}

/// [`State`] without what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    Pending,
    Idle,
    Borrowed,
    Open,
    Gone,
}

impl TunnelConnection {
    pub(crate) fn new(claim: TunnelClaim, queue: Arc<Queue>) -> Arc<Self> {
        queue.join(&claim);
        Arc::new(Self {
            weight: AtomicU32::new(claim.weight),
            claim,
            registered: Instant::now(),
            queue,
            further: Mutex::default(),
            inner: Mutex::new(Inner { state: State::Pending, owner: None, drain_end: TunnelEnd::Drained }),
            phase: AtomicU8::new(Phase::Pending as u8),
            draining: AtomicBool::new(false),
            awaited: AtomicBool::new(true),
            reserved: AtomicU32::new(0),
            active: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            wanted: Notify::new(),
        })
    }

    pub(crate) fn claim(&self) -> &TunnelClaim {
        &self.claim
    }

    pub(crate) fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    pub(crate) fn set_weight(&self, weight: u32) {
        self.weight.store(weight, Ordering::Relaxed);
    }

    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    pub(crate) fn registered(&self) -> Instant {
        self.registered
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn active(&self) -> u32 {
        self.active.load(Ordering::SeqCst)
    }

    /// Whether new requests may choose it.
    pub(crate) fn is_live(&self) -> bool {
        self.phase() != Phase::Gone && !self.is_draining()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// A hint: it may have changed by the time that the lock is held.
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::SeqCst) {
            0 => Phase::Pending,
            1 => Phase::Idle,
            2 => Phase::Borrowed,
            3 => Phase::Open,
            _ => Phase::Gone,
        }
    }

    /// Notes a further cluster that it is a host of.
    pub(crate) fn join_further(&self, slot: Weak<ClusterSlot>) {
        self.further.lock().push(slot);
    }

    /// Does something with each further cluster.
    pub(super) fn further(&self, each: impl Fn(&ClusterSlot)) {
        let slots: Vec<_> = self.further.lock().iter().filter_map(Weak::upgrade).collect();
        slots.iter().for_each(|slot| each(slot));
    }

    pub(super) fn take_further(&self) -> Vec<Weak<ClusterSlot>> {
        std::mem::take(&mut self.further.lock())
    }

    /// What a request of a cluster that is not of the `reverse_connection` type waits for: `agent`, or any.
    pub(crate) fn awaited_as(&self, agent: Option<&str>) -> Option<Box<str>> {
        match &self.claim.reverse {
            None => agent.map(Box::from),
            // Its queue is shared with agents of other clusters.
            Some(names) => match agent {
                Some(agent) => Some(place(&self.claim.cluster, agent).into()),
                None => names.groups.first().map(|group| Box::from(&**group)),
            },
        }
    }

    /// Says that a request waits for it, to whoever attaches it.
    pub(crate) fn want(&self) {
        self.wanted.notify_one();
    }

    /// Waits for [`Self::want`]; returns at once if it was called before.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Lends the connection if it is free: whole when it is plain, a stream when it is HTTP/2.
    pub(crate) fn try_lend(self: &Arc<Self>) -> Option<Lent> {
        let mut inner = self.inner.lock();
        if self.is_draining() {
            return None;
        }
        let what = match std::mem::replace(&mut inner.state, State::Borrowed) {
            State::Idle(client) => {
                self.set_phase(Phase::Borrowed);
                What::Plain(client)
            }
            State::Open(client) => {
                let room = client.capacity() > self.reserved.load(Ordering::SeqCst) as usize;
                let lent = (client.is_open() && room).then(|| client.clone());
                inner.state = State::Open(client);
                let stream = What::Stream(lent?);
                self.reserved.fetch_add(1, Ordering::SeqCst);
                stream
            }
            other => {
                inner.state = other;
                return None;
            }
        };
        self.active.fetch_add(1, Ordering::SeqCst);
        Some(Lent { connection: Arc::clone(self), what })
    }

    /// Makes a plain connection available; the caller watches it with [`Self::poll_end`].
    pub(super) fn attach_plain(self: &Arc<Self>, client: Http1Client) {
        self.attach(State::Idle(client), Phase::Idle);
    }

    /// Makes an HTTP/2 connection available.
    pub(super) fn attach_open(self: &Arc<Self>, client: Http2Client) {
        self.attach(State::Open(client), Phase::Open);
    }

    fn attach(self: &Arc<Self>, state: State, phase: Phase) {
        let mut inner = self.inner.lock();
        if !matches!(inner.state, State::Pending) {
            return;
        }
        inner.state = state;
        self.set_phase(phase);
        drop(inner);
        self.queue.serve(self);
    }

    /// Ready when the connection has ended: closed while idle, broken in use, taken, or drained with nothing in
    /// flight. Wakes the task again when that may have changed.
    pub(super) fn poll_end(&self, cx: &mut Context<'_>) -> Poll<TunnelEnd> {
        let mut inner = self.inner.lock();
        if inner.owner.as_ref().is_none_or(|owner| !owner.will_wake(cx.waker())) {
            inner.owner = Some(cx.waker().clone());
        }
        let draining = self.is_draining();
        let end = match &mut inner.state {
            State::Gone(end) => return Poll::Ready(*end),
            State::Idle(client) => match client.poll_closed(cx) {
                Poll::Ready(()) => TunnelEnd::Closed,
                Poll::Pending if draining => inner.drain_end,
                Poll::Pending => return Poll::Pending,
            },
            State::Pending | State::Open(_) if draining && self.active() == 0 => inner.drain_end,
            State::Pending | State::Open(_) | State::Borrowed => return Poll::Pending,
        };
        self.end(inner, end);
        Poll::Ready(end)
    }

    /// Takes the host out of every later choice; the owner ends when nothing is in flight.
    pub(crate) fn drain(&self, end: TunnelEnd) {
        let mut inner = self.inner.lock();
        if self.is_draining() {
            return;
        }
        inner.drain_end = end;
        self.draining.store(true, Ordering::SeqCst);
        let owner = inner.owner.clone();
        drop(inner);
        self.leave_queue();
        if let Some(owner) = owner {
            owner.wake();
        }
    }

    /// Marks the connection as ended. What is lent is closed when it comes back.
    pub(super) fn set_gone(&self, end: TunnelEnd) {
        let inner = self.inner.lock();
        if !matches!(inner.state, State::Gone(_)) {
            self.end(inner, end);
        }
    }

    fn end(&self, mut inner: MutexGuard<'_, Inner>, end: TunnelEnd) {
        let before = std::mem::replace(&mut inner.state, State::Gone(end));
        self.set_phase(Phase::Gone);
        let owner = inner.owner.take();
        drop(inner);
        // Closing a socket is no work to be done under the lock.
        drop(before);
        self.leave_queue();
        if let Some(owner) = owner {
            owner.wake();
        }
    }

    fn leave_queue(&self) {
        if self.awaited.swap(false, Ordering::SeqCst) {
            self.queue.leave(&self.claim);
        }
    }

    fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    /// An exchange is over; `client` is the plain connection if it may serve another.
    fn give_back_plain(self: &Arc<Self>, client: Option<Http1Client>) {
        self.active.fetch_sub(1, Ordering::SeqCst);
        let mut inner = self.inner.lock();
        if !matches!(inner.state, State::Borrowed) {
            return;
        }
        let Some(mut client) = client else { return self.end(inner, TunnelEnd::Closed) };
        if self.is_draining() {
            let end = inner.drain_end;
            return self.end(inner, end);
        }
        // The watcher's waker takes the place of the exchange's, and nobody is woken.
        let waker = inner.owner.as_ref().unwrap_or(Waker::noop());
        if client.poll_closed(&mut Context::from_waker(waker)).is_ready() {
            return self.end(inner, TunnelEnd::Closed);
        }
        inner.state = State::Idle(client);
        self.set_phase(Phase::Idle);
        drop(inner);
        if self.queue.has_waiters() {
            self.queue.serve(self);
        }
    }

    fn give_back_stream(self: &Arc<Self>) {
        let before = self.active.fetch_sub(1, Ordering::SeqCst);
        if self.is_draining() {
            let owner = if before == 1 { self.inner.lock().owner.clone() } else { None };
            if let Some(owner) = owner {
                owner.wake();
            }
        } else if self.queue.has_waiters() {
            self.queue.serve(self);
        }
    }

    /// The exchange counts against the connection's capacity before the reservation ends.
    fn begin_stream(&self, client: &Http2Client) -> ClientExchange {
        let exchange = client.exchange();
        self.reserved.fetch_sub(1, Ordering::SeqCst);
        exchange
    }

    fn set_taken(&self) {
        let inner = self.inner.lock();
        if matches!(inner.state, State::Borrowed) {
            self.end(inner, TunnelEnd::Taken);
        }
    }
}

/// A connection, or a stream's right on it, lent to one request. Dropping it unused gives it back; dropping it in use
/// closes what was lent.
#[derive(Debug)]
#[must_use = "dropping it gives the connection back"]
pub(crate) struct Lent {
    connection: Arc<TunnelConnection>,
    what: What,
}

#[derive(Debug)]
enum What {
    Plain(Http1Client),
    Stream(Http2Client),
    /// In use by an exchange that the request holds.
    Used,
}

/// What a TCP proxy gets of a tunnel.
#[derive(Debug)]
pub(crate) enum Whole {
    Io(Io),
    Stream(ClientExchange),
}

impl Lent {
    pub(crate) fn connection(&self) -> &TunnelConnection {
        &self.connection
    }

    /// Begins the exchange; `None` the second time. A plain connection comes back with [`Self::finish`].
    pub(crate) fn begin(&mut self) -> Option<ClientExchange> {
        self.connection.requests.fetch_add(1, Ordering::Relaxed);
        match std::mem::replace(&mut self.what, What::Used) {
            What::Plain(client) => Some(client.exchange()),
            What::Stream(client) => Some(self.connection.begin_stream(&client)),
            What::Used => None,
        }
    }

    /// Takes a plain connection out of the cluster for good, or a stream of an HTTP/2 one.
    pub(crate) fn take(&mut self) -> Option<Whole> {
        self.connection.requests.fetch_add(1, Ordering::Relaxed);
        match std::mem::replace(&mut self.what, What::Used) {
            What::Plain(client) => {
                self.connection.set_taken();
                Some(Whole::Io(client.into_io()))
            }
            What::Stream(client) => Some(Whole::Stream(self.connection.begin_stream(&client))),
            What::Used => None,
        }
    }

    /// The exchange is over: `client` is the plain connection if it may serve another.
    pub(crate) fn finish(mut self, client: Option<Http1Client>) {
        if let Some(client) = client {
            self.what = What::Plain(client);
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.what, What::Used) {
            What::Plain(client) => self.connection.give_back_plain(Some(client)),
            What::Stream(_) => {
                self.connection.reserved.fetch_sub(1, Ordering::SeqCst);
                self.connection.give_back_stream();
            }
            What::Used => match self.connection.claim.protocol {
                TunnelProtocol::Http1 => self.connection.give_back_plain(None),
                TunnelProtocol::Http2 => self.connection.give_back_stream(),
            },
        }
    }
}
