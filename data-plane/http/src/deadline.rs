//! One timer for all of a connection's deadlines.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// How long a client may take nothing of what it is sent.
pub(crate) const STALLED: Duration = Duration::from_secs(60);

/// Tells a client that takes nothing any more from a slow one. Holds a timer only while a write has to wait.
#[derive(Debug, Default)]
pub(crate) struct Stall {
    since: Option<Instant>,
    deadline: Deadline,
}

impl Stall {
    /// For a write that has to wait; `progress`: something was taken since the last call. Resolves after [`STALLED`].
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, progress: bool) -> Poll<()> {
        let since = match self.since {
            Some(since) if !progress => since,
            _ => *self.since.insert(Instant::now()),
        };
        self.deadline.poll(cx, since + STALLED)
    }
}

/// A timer that is moved only to make it earlier, or when it fires too early: a busy connection does not touch the timer
/// wheel.
#[derive(Debug, Default)]
pub(crate) struct Deadline(Option<Pin<Box<Sleep>>>);

impl Deadline {
    pub(crate) const fn new() -> Self {
        Self(None)
    }

    /// Resolves at `deadline` or later; the task is woken then.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}
