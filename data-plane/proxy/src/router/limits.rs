//! The time that a request has: overall, for one attempt, and without anything happening.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
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
    /// While more of an announced body is waited for: when the client has become too slow.
    body: Cell<Option<Instant>>,
    /// When something last happened.
    active: Cell<Instant>,
}

/// How long the client of an announced body may still send nothing. Each piece buys time at [`Self::RATE`]; what upstream
/// takes costs none.
#[derive(Debug)]
pub(crate) struct Patience(Duration);

impl Patience {
    /// Bytes in a second.
    const RATE: f64 = 64.0;
    const FULL: Duration = Duration::from_secs(30);

    pub(crate) const fn new() -> Self {
        Self(Self::FULL)
    }

    /// A piece is waited for from now on.
    pub(crate) fn begin(&self, limits: &Limits) {
        limits.body.set(Some(Instant::now() + self.0));
    }

    /// A piece has come.
    pub(crate) fn end(&mut self, limits: &Limits, bytes: usize) {
        if let Some(deadline) = limits.body.take() {
            let left = deadline.saturating_duration_since(Instant::now());
            let bought = Duration::from_secs_f64(f64::from(u32::try_from(bytes).unwrap_or(u32::MAX)) / Self::RATE);
            self.0 = (left + bought).min(Self::FULL);
        }
    }
}

/// Which limit has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expired {
    Overall,
    Attempt,
    Idle,
    /// The client sends the body that it announced too slowly.
    SlowBody,
}

impl Limits {
    pub(crate) fn new(start: Instant, idle: Option<Duration>) -> Self {
        Self {
            overall: Cell::new(None),
            attempt: Cell::new(None),
            attempt_idle: Cell::new(None),
            body: Cell::new(None),
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
        sooner(sooner(self.overall.get(), self.attempt_until()), sooner(self.idle_until(), self.body.get()))
    }

    fn which(&self, at: Instant) -> Expired {
        if self.overall.get().is_some_and(|overall| overall <= at) {
            Expired::Overall
        } else if self.attempt_until().is_some_and(|attempt| attempt <= at) {
            Expired::Attempt
        } else if self.body.get().is_some_and(|body| body <= at) {
            Expired::SlowBody
        } else {
            Expired::Idle
        }
    }

    /// Runs `future` within the limits. The timer is looked at only when the future has to wait. Pinned by the caller: one
    /// that was handed over would be moved twice.
    pub(crate) fn run<F: Future>(
        &self,
        timer: &mut Timer<'_>,
        mut future: Pin<&mut F>,
    ) -> impl Future<Output = Result<F::Output, Expired>> {
        poll_fn(move |cx| {
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
    }
}
