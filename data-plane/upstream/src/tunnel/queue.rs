//! Requests that wait for a tunnel connection of one cluster: first come, first served.
//!
//! **No waiter is missed**: one that joins looks at the connections after it stands in the queue, and a connection that
//! becomes free looks at the queue after it can be lent; both with sequentially consistent order.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::TunnelClaim;
use super::connection::{Lent, TunnelConnection};

/// The wait queue of a cluster's tunnels.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    inner: Mutex<Waiting>,
    /// Length of the queue, to be read without the lock.
    len: AtomicUsize,
}

#[derive(Debug, Default)]
struct Waiting {
    waiters: VecDeque<Waiter>,
    /// Connections that may still become free, by agent.
    live: HashMap<Arc<str>, usize>,
}

#[derive(Debug)]
struct Waiter {
    agent: Option<Box<str>>,
    answer: oneshot::Sender<Lent>,
}

/// As many requests wait as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

impl Queue {
    /// Counts a connection that may become free.
    pub(super) fn join(&self, claim: &TunnelClaim) {
        let mut inner = self.inner.lock();
        for name in claim.names() {
            *inner.live.entry(Arc::clone(name)).or_default() += 1;
        }
    }

    /// A connection will not become free any more. Those that wait for nothing now are told by their channel's end.
    pub(super) fn leave(&self, claim: &TunnelClaim) {
        let mut inner = self.inner.lock();
        let Waiting { waiters, live } = &mut *inner;
        for name in claim.names() {
            if let Some(count) = live.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    live.remove(name);
                }
            }
        }
        let hopeless = |waiter: &Waiter| match &waiter.agent {
            Some(agent) => !live.contains_key(&**agent),
            None => live.is_empty(),
        };
        waiters.retain(|waiter| !hopeless(waiter));
        self.len.store(waiters.len(), Ordering::SeqCst);
    }

    /// Queues up for any connection, or for one of that agent. Afterwards the caller has every connection that it could
    /// use look at the queue ([`Self::serve`]).
    pub(crate) fn wait(&self, agent: Option<&str>, limit: usize) -> Result<oneshot::Receiver<Lent>, Full> {
        let mut inner = self.inner.lock();
        if inner.waiters.len() >= limit {
            inner.waiters.retain(|waiter| !waiter.answer.is_closed());
            if inner.waiters.len() >= limit {
                return Err(Full);
            }
        }
        let (answer, answered) = oneshot::channel();
        let hopeless = match agent {
            Some(agent) => !inner.live.contains_key(agent),
            None => inner.live.is_empty(),
        };
        if !hopeless {
            inner.waiters.push_back(Waiter { agent: agent.map(Box::from), answer });
        }
        self.len.store(inner.waiters.len(), Ordering::SeqCst);
        Ok(answered)
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
    fn serve_one(&self, connection: &Arc<TunnelConnection>) -> Option<Lent> {
        let mut inner = self.inner.lock();
        loop {
            inner.waiters.retain(|waiter| !waiter.answer.is_closed());
            let fits = |agent: &str| connection.claim().names().any(|name| **name == *agent);
            let place = inner.waiters.iter().position(|waiter| waiter.agent.as_deref().is_none_or(fits));
            let lent = place.and_then(|_| connection.try_lend());
            let (Some(place), Some(lent)) = (place, lent) else {
                self.len.store(inner.waiters.len(), Ordering::SeqCst);
                return None;
            };
            let waiter = inner.waiters.remove(place);
            self.len.store(inner.waiters.len(), Ordering::SeqCst);
            if let Some(waiter) = waiter
                && let Err(refused) = waiter.answer.send(lent)
            {
                return Some(refused);
            }
        }
    }
}
