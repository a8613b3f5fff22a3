//! Requests that wait for a tunnel connection of one cluster: first come, first served, and no agent's waiters take the
//! places of the others'.
//!
//! **No waiter is missed**: one that joins looks at the connections after it stands in the queue, and a connection that
//! becomes free looks at the queue after it can be lent; both with sequentially consistent order.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::TunnelClaim;
use super::connection::TunnelConnection;
use super::lent::Lent;
use super::opening::Opening;
use super::presence::{Absence, Hope, Presence};

/// The wait queue of a cluster's tunnels.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// The id of its cluster's slot.
    cluster: u64,
    inner: Mutex<Waiting>,
    /// Length of the queue, to be read without the lock.
    len: AtomicUsize,
    /// Tunnels have served the cluster, ever.
    used: AtomicBool,
    /// Agents are expected that never were here.
    expecting: AtomicBool,
    /// How the last tunnel was to be opened that somebody wanted.
    opening: Mutex<Opening>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Those that any connection will do for.
    any: Lane,
    /// Those that wait for one agent.
    named: HashMap<Arc<str>, Lane>,
    len: usize,
    tickets: u64,
    presence: Presence,
    limits: Limits,
}

type Lane = VecDeque<Waiter>;

#[derive(Debug)]
struct Waiter {
    /// Who came first.
    ticket: u64,
    /// What the tunnel has to be opened with.
    opening: Opening,
    answer: oneshot::Sender<Result<Lent, Full>>,
}

/// What the agent that joined last brought from its listener.
#[derive(Debug, Clone, Copy, Default)]
struct Limits {
    timeout: Duration,
    places: usize,
}

/// As many requests wait as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// A place in the queue.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Ends without an answer when there is nothing left to wait for.
    pub(crate) answer: oneshot::Receiver<Result<Lent, Full>>,
    /// Until when to wait.
    pub(crate) deadline: Instant,
}

impl Queue {
    /// For the cluster whose slot has that id.
    pub(crate) fn of(cluster: u64) -> Arc<Self> {
        Arc::new(Self { cluster, ..Self::default() })
    }

    /// Requests wait for any agent, also one that was never here, until then. As long as none has joined the limits of a
    /// tunnel listener that sets none hold.
    pub(crate) fn expect(&self, until: Instant) {
        let mut inner = self.inner.lock();
        inner.presence.expect(until);
        if !self.is_used() {
            inner.limits = Limits { timeout: QUEUE_TIMEOUT, places: QUEUE_PLACES };
        }
        self.expecting.store(true, Ordering::Relaxed);
    }

    /// Counts a connection that may become free, and that is called so here; how it is to be opened, if somebody waits
    /// for it.
    pub(super) fn join<'n>(
        &self,
        claim: &TunnelClaim,
        names: impl IntoIterator<Item = &'n Arc<str>> + Clone,
    ) -> Option<Opening> {
        let mut inner = self.inner.lock();
        inner.presence.join(names.clone());
        inner.limits = Limits { timeout: claim.queue_timeout, places: claim.max_queued_requests };
        self.set_used();
        inner.next(names, |_| true).map(|next| next.opening)
    }

    pub(super) fn note_opening(&self, opening: &Opening) {
        *self.opening.lock() = opening.clone();
    }

    pub(super) fn last_opening(&self) -> Opening {
        self.opening.lock().clone()
    }

    /// A connection will not become free any more; the next one of its agent is expected within `window` (`None`: not at
    /// all, and it is as if it had never been here). Those that wait for its names go on waiting as long as it is expected
    /// back; those that wait for nothing now are told by their channel's end.
    pub(super) fn leave<'n>(&self, names: impl IntoIterator<Item = &'n Arc<str>> + Clone, window: Option<Duration>) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        inner.presence.leave(names.clone(), window, now);
        for name in names {
            if inner.presence.hope(Some(name), now) == Hope::None
                && let Some(lane) = inner.named.remove(name)
            {
                inner.len -= lane.len();
            }
        }
        if inner.presence.hope(None, now) == Hope::None {
            inner.len -= std::mem::take(&mut inner.any).len();
        }
        self.len.store(inner.len, Ordering::SeqCst);
    }

    /// Whether a request without a connection should wait for one that is expected back.
    pub(crate) fn expects(&self, agent: Option<&str>) -> bool {
        (self.is_used() || self.expecting.load(Ordering::Relaxed))
            && self.inner.lock().presence.hope(agent, Instant::now()) != Hope::None
    }

    /// Tunnels serve the cluster, whose waiters may stand in another queue.
    pub(crate) fn set_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    /// Whether tunnels serve the cluster, or ever did.
    pub(crate) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Why a named agent cannot be reached.
    pub(crate) fn absence(&self, agent: &str) -> Absence {
        self.inner.lock().presence.absence(agent, Instant::now())
    }

    /// Agents that are here, or were.
    #[cfg(test)]
    pub(crate) fn remembered(&self) -> usize {
        self.inner.lock().presence.len()
    }

    /// Whether a connection is there for such a request, free or not.
    pub(crate) fn has_live(&self, agent: Option<&str>) -> bool {
        self.inner.lock().presence.hope(agent, Instant::now()) == Hope::Live
    }

    /// Queues up for any connection, or for one of that agent, that is opened in such a way. Afterwards the caller has every connection that it could
    /// use look at the queue ([`Self::serve`]).
    pub(crate) fn wait(&self, agent: Option<&str>, opening: &Opening) -> Result<Turn, Full> {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        let (answer, answered) = oneshot::channel();
        let longest = now + inner.limits.timeout;
        let deadline = match inner.presence.hope(agent, now) {
            Hope::Live => longest,
            Hope::Until(expected) => expected.min(longest),
            // The sender goes: there is nothing to wait for.
            Hope::None => return Ok(Turn { answer: answered, deadline: now }),
        };
        inner.make_room(agent)?;
        inner.tickets += 1;
        let waiter = Waiter { ticket: inner.tickets, opening: opening.clone(), answer };
        inner.lane(agent).push_back(waiter);
        inner.len += 1;
        self.len.store(inner.len, Ordering::SeqCst);
        Ok(Turn { answer: answered, deadline })
    }

    /// Takes those out who have given up waiting for the same: for names that nobody has, nobody else would.
    pub(crate) fn forget(&self, agent: Option<&str>) {
        let mut inner = self.inner.lock();
        let lane = match agent {
            None => Some(&mut inner.any),
            Some(agent) => inner.named.get_mut(agent),
        };
        let Some(lane) = lane else { return };
        let before = lane.len();
        lane.retain(|waiter| !waiter.answer.is_closed());
        let (left, gone) = (lane.len(), before - lane.len());
        if left == 0
            && let Some(agent) = agent
        {
            inner.named.remove(agent);
        }
        inner.len -= gone;
        self.len.store(inner.len, Ordering::SeqCst);
    }

    pub(crate) fn has_waiters(&self) -> bool {
        self.len.load(Ordering::SeqCst) > 0
    }

    /// Lends what `connection` has to those that wait for it. The connection's lock is taken under the queue's: never
    /// the other way round.
    pub(crate) fn serve(&self, connection: &Arc<TunnelConnection>) {
        while let Some(refused) = self.serve_one(connection) {
            // The waiter gave up in this very moment. Outside the lock: what was lent goes back.
            drop(refused);
        }
    }

    /// `Some`: what a waiter was lent that had given up; there may be another.
    fn serve_one(&self, connection: &Arc<TunnelConnection>) -> Option<Result<Lent, Full>> {
        let mut inner = self.inner.lock();
        let mut refused = None;
        while refused.is_none()
            && let Some(next) = inner.next(connection.names_in(self), |opening| connection.suits(opening))
            && let Some(lent) = connection.try_lend(&next.opening, self.cluster)
        {
            refused = inner.pop(&next).and_then(|waiter| waiter.answer.send(Ok(lent)).err());
        }
        self.len.store(inner.len, Ordering::SeqCst);
        refused
    }
}

impl Waiting {
    fn lane(&mut self, agent: Option<&str>) -> &mut Lane {
        match agent {
            None => &mut self.any,
            Some(agent) => self.named.entry(Arc::from(agent)).or_default(),
        }
    }

    /// A free place, if need be that of the last one in the longest lane: **one slow agent's waiters leave room for the
    /// others'**.
    fn make_room(&mut self, agent: Option<&str>) -> Result<(), Full> {
        if self.len < self.limits.places {
            return Ok(());
        }
        for lane in self.named.values_mut().chain([&mut self.any]) {
            lane.retain(|waiter| !waiter.answer.is_closed());
        }
        self.named.retain(|_, lane| !lane.is_empty());
        self.len = self.any.len() + self.named.values().map(VecDeque::len).sum::<usize>();
        if self.len < self.limits.places {
            return Ok(());
        }
        let mine = match agent {
            None => self.any.len(),
            Some(agent) => self.named.get(agent).map_or(0, VecDeque::len),
        };
        let longest = self.named.values_mut().chain([&mut self.any]).max_by_key(|lane| lane.len());
        let last = longest.filter(|lane| lane.len() > mine + 1).and_then(VecDeque::pop_back).ok_or(Full)?;
        self.len -= 1;
        // If it gave up just now, so much the better.
        drop(last.answer.send(Err(Full)));
        Ok(())
    }

    /// Whoever has waited longest of those that such a connection serves.
    fn next<'c>(
        &mut self,
        names: impl IntoIterator<Item = &'c Arc<str>>,
        suits: impl Fn(&Opening) -> bool,
    ) -> Option<Next<'c>> {
        let mut dropped = 0;
        let mut first = |lane: &mut Lane| {
            while lane.front().is_some_and(|waiter| waiter.answer.is_closed()) {
                lane.pop_front();
                dropped += 1;
            }
            // Nearly always the first one.
            let at = lane.iter().position(|waiter| suits(&waiter.opening))?;
            lane.get(at).map(|waiter| (at, waiter.ticket, waiter.opening.clone()))
        };
        let any = first(&mut self.any).map(|found| (found, Which::Any));
        let named = names.into_iter();
        let named = named.filter_map(|name| Some((first(self.named.get_mut(name)?)?, Which::Named(name))));
        let next = named.chain(any).min_by_key(|((_, ticket, _), _)| *ticket);
        self.len -= dropped;
        next.map(|((at, _, opening), lane)| Next { lane, at, opening })
    }

    fn pop(&mut self, next: &Next<'_>) -> Option<Waiter> {
        let waiter = match next.lane {
            Which::Any => self.any.remove(next.at),
            Which::Named(name) => {
                let lane = self.named.get_mut(name)?;
                let waiter = lane.remove(next.at);
                if lane.is_empty() {
                    self.named.remove(name);
                }
                waiter
            }
        };
        self.len -= usize::from(waiter.is_some());
        waiter
    }
}

/// A waiter's place, and what it demands.
struct Next<'c> {
    lane: Which<'c>,
    at: usize,
    opening: Opening,
}

/// One of the lanes that a connection serves.
#[derive(Debug, Clone, Copy)]
enum Which<'c> {
    Any,
    /// Of those that wait for one of its names.
    Named(&'c Arc<str>),
}

/// Of a `TunnelServer` that says nothing else.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
const QUEUE_PLACES: usize = 1024;
