//! Deadlines that cost next to nothing when they do not pass.
//!
//! A worker keeps its timers in a free list, still armed. A request takes one; as long as the timer is armed for an
//! earlier moment than the request's deadline it is left alone, and only when it fires too early it is armed again. So
//! the runtime's timer wheel is touched about once per timeout and concurrent request, not once per request.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep_until};

/// A worker's free timers.
#[derive(Debug, Default, Clone)]
pub(crate) struct Timers {
    free: Rc<RefCell<Vec<Pin<Box<Sleep>>>>>,
}

/// Most timers that are kept for later.
const KEPT: usize = 1024;

impl Timers {
    /// A timer without a deadline.
    pub(crate) fn timer(&self) -> Timer {
        Timer { timers: self.clone(), sleep: None }
    }
}

/// One pending deadline at a time. Goes back to its worker when dropped.
#[derive(Debug)]
pub(crate) struct Timer {
    timers: Timers,
    sleep: Option<Pin<Box<Sleep>>>,
}

/// The deadline passed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Elapsed;

impl Timer {
    /// Ready when `deadline` has passed.
    pub(crate) fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| {
            self.timers.free.borrow_mut().pop().unwrap_or_else(|| Box::pin(sleep_until(deadline)))
        });
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        loop {
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            // Armed by an earlier request, and early for this one.
            sleep.as_mut().reset(deadline);
        }
    }

    /// Runs `future` until `deadline` (`None`: without one). The timer is looked at only when the future has to wait.
    pub(crate) async fn until<F: Future>(
        &mut self,
        deadline: Option<Instant>,
        future: F,
    ) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(value));
            }
            match deadline {
                Some(deadline) => self.poll_until(cx, deadline).map(|()| Err(Elapsed)),
                None => Poll::Pending,
            }
        })
        .await
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let Some(sleep) = self.sleep.take() else { return };
        let mut free = self.timers.free.borrow_mut();
        // An elapsed one would have to be armed again at once: not worth keeping.
        if free.len() < KEPT && !sleep.is_elapsed() {
            free.push(sleep);
        }
    }
}

/// The earlier of two optional deadlines.
pub(crate) fn sooner(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_was_armed_for_an_earlier_request_does_not_fire_early() {
        let timers = Timers::default();
        let start = Instant::now();
        let mut first = timers.timer();
        let served = tokio::time::sleep(Duration::from_secs(1));
        assert_eq!(first.until(Some(start + Duration::from_secs(15)), served).await, Ok(()), "served in time");
        drop(first);
        assert_eq!(timers.free.borrow().len(), 1, "the timer is kept, armed");

        let mut second = timers.timer();
        let outcome = second.until(Some(start + Duration::from_secs(30)), pending::<()>()).await;
        assert_eq!(outcome, Err(Elapsed), "nobody answers");
        assert_eq!(start.elapsed().as_secs(), 30, "the second deadline counts, not the first");
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_timer_is_brought_forward() {
        let timers = Timers::default();
        let start = Instant::now();
        let mut first = timers.timer();
        let served = tokio::time::sleep(Duration::from_secs(1));
        assert_eq!(first.until(Some(start + Duration::from_secs(100)), served).await, Ok(()), "served in time");
        drop(first);
        let outcome = timers.timer().until(Some(start + Duration::from_secs(3)), pending::<()>()).await;
        assert_eq!(outcome, Err(Elapsed), "nobody answers");
        assert_eq!(start.elapsed().as_secs(), 3, "the earlier deadline counts");
    }
}
