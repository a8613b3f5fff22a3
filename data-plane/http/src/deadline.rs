//! One timer for all of a connection's deadlines.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
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
/// wheel, nor the timer once its task is known there.
#[derive(Debug, Default)]
pub(crate) struct Deadline {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whom the timer wakes as it is armed now.
    wakes: Option<Waker>,
}

impl Deadline {
    pub(crate) const fn new() -> Self {
        Self { sleep: None, wakes: None }
    }

    /// Resolves at `deadline` or later; the task is woken then.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        } else if !sleep.is_elapsed() && self.wakes.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        self.wakes = Some(cx.waker().clone());
        Poll::Pending
    }
}
