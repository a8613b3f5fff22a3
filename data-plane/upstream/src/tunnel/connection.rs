//! One tunnel connection: who may use it now, and who watches it.

mod ending;

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Waker};

use culvert_http::ClientExchange;
use culvert_http::client::{Http1Client, Http1Rest, Http2Client, Leftover};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use super::elsewhere::Elsewhere;
use super::lent::{Lent, What};
use super::opening::Opening;
use super::queue::Queue;
use super::{TunnelClaim, TunnelEnd};
use crate::host::Host;

/// The shared half of a registration: the lease's owner attaches the connection to it, any worker uses it.
#[derive(Debug)]
pub(crate) struct TunnelConnection {
    claim: TunnelClaim,
    /// As claimed, or as the agent said later.
    weight: AtomicU32,
    /// Which host it is the connection of.
    host: OnceLock<Weak<Host>>,
    registered: Instant,
    queue: Arc<Queue>,
    /// Clusters besides that of the registration in which it is a host.
    pub(super) elsewhere: Elsewhere,
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
    /// Of Envoy's dialect: as whoever wanted it first demands.
    opening: OnceLock<Opening>,
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
    /// For the cluster whose slot has that id.
    Borrowed(u64),
    /// Its last exchange was given up: the owner reads the rest of the response, until that time.
    Unread(Http1Rest, Option<Pin<Box<Sleep>>>),
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
    pub(crate) fn new(mut claim: TunnelClaim, queue: Arc<Queue>) -> Arc<Self> {
        let elsewhere = Elsewhere::new(claim.may_serve.take());
        let awaited = queue.join(&claim, claim.names());
        let connection = Arc::new(Self {
            weight: AtomicU32::new(claim.weight),
            claim,
            host: OnceLock::new(),
            registered: Instant::now(),
            queue,
            elsewhere,
            inner: Mutex::new(Inner { state: State::Pending, owner: None, drain_end: TunnelEnd::Drained }),
            phase: AtomicU8::new(Phase::Pending as u8),
            draining: AtomicBool::new(false),
            awaited: AtomicBool::new(true),
            reserved: AtomicU32::new(0),
            active: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            wanted: Notify::new(),
            opening: OnceLock::new(),
        });
        if let Some(opening) = awaited {
            connection.want(&opening);
        }
        connection
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

    /// To be called once, by whoever makes the host.
    pub(crate) fn belongs_to(&self, host: &Arc<Host>) {
        let first = self.host.set(Arc::downgrade(host));
        debug_assert!(first.is_ok(), "a connection has one host");
    }

    /// As what it stands in that queue's cluster. `None`: it is in no generation of it any more.
    pub(crate) fn host_in(&self, queue: &Queue) -> Option<Arc<Host>> {
        if self.is_of(queue) { self.host.get()?.upgrade() } else { self.elsewhere.host_in(queue) }
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

    /// Whether it serves those that wait there for `name`; `None`: for any connection.
    pub(crate) fn answers_to(&self, queue: &Queue, name: Option<&str>) -> bool {
        name.is_none_or(|wanted| self.names_in(queue).any(|name| **name == *wanted))
    }

    /// What it is called there.
    pub(super) fn names_in(&self, queue: &Queue) -> impl Iterator<Item = &Arc<str>> + Clone {
        let is_home = self.is_of(queue);
        let own = is_home.then(|| self.claim.names()).into_iter().flatten();
        own.chain((!is_home).then_some(&self.claim.agent))
    }

    /// Whether it is registered there.
    pub(super) fn is_of(&self, queue: &Queue) -> bool {
        std::ptr::eq(queue, &raw const *self.queue)
    }

    /// Says that a request waits for it, to whoever attaches it. The first one decides how it is opened.
    pub(crate) fn want(&self, opening: &Opening) {
        if self.claim.reverse.is_some() {
            self.opening.get_or_init(|| opening.clone());
            self.queue.note_opening(opening);
        }
        self.wanted.notify_one();
    }

    /// Whether whoever demands that may use it, as far as is decided.
    pub(crate) fn suits(&self, opening: &Opening) -> bool {
        self.opening.get().is_none_or(|own| own.serves(opening))
    }

    /// How it is to be opened. One that nobody wants, which is opened to say goodbye, as the last one that somebody wanted.
    pub(super) fn opening(&self) -> Opening {
        if self.claim.reverse.is_none() {
            return Opening::default();
        }
        self.opening.get_or_init(|| self.queue.last_opening()).clone()
    }

    /// Waits for [`Self::want`]; returns at once if it was called before.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// A stream was lent and not begun.
    pub(super) fn give_back_unused_stream(self: &Arc<Self>) {
        self.reserved.fetch_sub(1, Ordering::SeqCst);
        self.give_back_stream();
    }

    /// Lends the connection if it is free: whole when it is plain, a stream when it is HTTP/2; and if it was opened as is
    /// demanded. `cluster`: the id of the slot for which.
    pub(crate) fn try_lend(self: &Arc<Self>, opening: &Opening, cluster: u64) -> Option<Lent> {
        let mut inner = self.inner.lock();
        // Asked under the lock: what is open is decided.
        if self.is_draining() || !self.suits(opening) {
            return None;
        }
        let what = match std::mem::replace(&mut inner.state, State::Borrowed(cluster)) {
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
        Some(Lent::new(Arc::clone(self), what, cluster))
    }

    /// Resets the streams that were lent for that cluster. Whether it is a plain connection that is lent for it.
    pub(crate) fn end_lent(&self, cluster: u64) -> bool {
        let inner = self.inner.lock();
        match &inner.state {
            State::Open(client) => client.end_group(cluster),
            State::Borrowed(borrower) => return *borrower == cluster,
            State::Pending | State::Idle(_) | State::Unread(..) | State::Gone(_) => {}
        }
        false
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
        self.serve_waiters();
    }

    /// Makes the plain connection available, whose watcher's waker is registered.
    fn rest(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>, client: Http1Client) {
        inner.state = State::Idle(client);
        self.set_phase(Phase::Idle);
        drop(inner);
        self.serve_waiters();
    }

    /// Lends what it has free to those that wait for it. Where clusters share it each comes first in its turn.
    fn serve_waiters(self: &Arc<Self>) {
        self.elsewhere.each_queue(&self.queue, |queue| {
            if queue.has_waiters() {
                queue.serve(self);
            }
        });
    }

    fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    /// The TCP connection that had it is over, and so is the tunnel.
    pub(super) fn give_back_taken(&self) {
        self.active.fetch_sub(1, Ordering::SeqCst);
        let inner = self.inner.lock();
        if matches!(inner.state, State::Borrowed(_)) {
            self.end(inner, TunnelEnd::Taken);
        }
    }

    /// An exchange is over, and this is what it leaves.
    pub(super) fn give_back_plain(self: &Arc<Self>, leftover: Leftover) {
        self.active.fetch_sub(1, Ordering::SeqCst);
        let mut inner = self.inner.lock();
        if !matches!(inner.state, State::Borrowed(_)) {
            return;
        }
        if self.is_draining() {
            let end = inner.drain_end;
            return self.end(inner, end);
        }
        match leftover {
            Leftover::Nothing => self.end(inner, TunnelEnd::Closed),
            Leftover::Unread(rest) => {
                inner.state = State::Unread(rest, None);
                let owner = inner.owner.clone();
                drop(inner);
                if let Some(owner) = owner {
                    owner.wake();
                }
            }
            Leftover::Reusable(mut client) => {
                // The watcher's waker takes the place of the exchange's, and nobody is woken.
                let waker = inner.owner.as_ref().unwrap_or(Waker::noop());
                if client.poll_closed(&mut Context::from_waker(waker)).is_ready() {
                    return self.end(inner, TunnelEnd::Closed);
                }
                self.rest(inner, client);
            }
        }
    }

    pub(super) fn give_back_stream(self: &Arc<Self>) {
        let before = self.active.fetch_sub(1, Ordering::SeqCst);
        if self.is_draining() {
            let owner = if before == 1 { self.inner.lock().owner.clone() } else { None };
            if let Some(owner) = owner {
                owner.wake();
            }
        } else {
            self.serve_waiters();
        }
    }

    /// The exchange counts against the connection's capacity before the reservation ends.
    pub(super) fn begin_stream(&self, client: &Http2Client, cluster: u64) -> ClientExchange {
        let exchange = client.exchange_of(cluster);
        self.reserved.fetch_sub(1, Ordering::SeqCst);
        exchange
    }
}
