//! The time that a request has: overall, for one attempt, and without anything happening.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use crate::timer::{Timer, sooner};

/// The limits of one request. Both directions of its bodies report their progress here.
#[derive(Debug)]
pub(crate) struct Limits {
    /// The route's timeout; `None` while the request is still being received, and after an upgrade.
    pub(crate) overall: Cell<Option<Instant>>,
    pub(crate) attempt: Cell<Option<Instant>>,
    pub(crate) idle: Option<Duration>,
    /// Without anything happening, while an attempt has no response.
    pub(crate) attempt_idle: Cell<Option<Duration>>,
    /// When something last happened.
    active: Cell<Instant>,
}

/// Which limit has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expired {
    Overall,
    Attempt,
    Idle,
}

impl Limits {
    pub(crate) fn new(start: Instant, idle: Option<Duration>) -> Self {
        Self {
            overall: Cell::new(None),
            attempt: Cell::new(None),
            attempt_idle: Cell::new(None),
            idle,
            active: Cell::new(start),
        }
    }

    /// Something happened.
    pub(crate) fn touch(&self) {
        if self.idle.is_some() || self.attempt_idle.get().is_some() {
            self.active.set(Instant::now());
        }
    }

    /// Something happened at a moment that is known already.
    pub(crate) fn touch_at(&self, now: Instant) {
        self.active.set(now);
    }

    fn idle_until(&self) -> Option<Instant> {
        self.idle.map(|idle| self.active.get() + idle)
    }

    /// Ends the limits that only an attempt without a response has.
    pub(crate) fn end_attempt(&self) {
        self.attempt.set(None);
        self.attempt_idle.set(None);
    }

    fn attempt_until(&self) -> Option<Instant> {
        let idle = self.attempt_idle.get().map(|idle| self.active.get() + idle);
        sooner(self.attempt.get(), idle)
    }

    /// The next limit that may pass; it may move while one waits.
    fn next(&self) -> Option<Instant> {
        sooner(sooner(self.overall.get(), self.attempt_until()), self.idle_until())
    }

    fn which(&self, at: Instant) -> Expired {
        if self.overall.get().is_some_and(|overall| overall <= at) {
            Expired::Overall
        } else if self.attempt_until().is_some_and(|attempt| attempt <= at) {
            Expired::Attempt
        } else {
            Expired::Idle
        }
    }

    /// Runs `future` within the limits. The timer is looked at only when the future has to wait.
    pub(crate) async fn run<F: Future>(&self, timer: &mut Timer, future: F) -> Result<F::Output, Expired> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(value));
            }
            while let Some(at) = self.next() {
                if timer.poll_until(cx, at).is_pending() {
                    return Poll::Pending;
                }
                if self.next() == Some(at) {
                    return Poll::Ready(Err(self.which(at)));
                }
            }
            Poll::Pending
        })
        .await
    }
}
