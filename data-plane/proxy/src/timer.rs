//! Deadlines that cost next to nothing when they do not pass.
//!
//! A worker keeps its timers in a free list, still armed. A request takes one; as long as the timer is armed for an
//! earlier moment than the request's deadline it is left alone, and only when it fires too early it is armed again. So
//! the runtime's timer wheel is touched about once per timeout and concurrent request, not once per request.
//!
//! Between requests a connection holds on to one: it knows already which task it wakes, and is not even asked.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::time::{Instant, Sleep, sleep_until};

/// A worker's free timers.
#[derive(Debug, Default, Clone)]
pub(crate) struct Timers {
    free: Rc<RefCell<Vec<Armed>>>,
}

/// A timer that is not in use, or its use's part of one.
#[derive(Debug)]
struct Armed {
    sleep: Pin<Box<Sleep>>,
    /// Whom it wakes as it is armed now.
    wakes: Option<Waker>,
}

/// Most timers that are kept for later.
const KEPT: usize = 1024;

impl Timers {
    /// The timers of a new connection.
    pub(crate) fn connection(&self) -> ConnectionTimers {
        ConnectionTimers { worker: self.clone(), own: RefCell::default() }
    }

    fn give_back(&self, armed: Armed) {
        let mut free = self.free.borrow_mut();
        // An elapsed one would have to be armed again at once: not worth keeping.
        if free.len() < KEPT && !armed.sleep.is_elapsed() {
            free.push(armed);
        }
    }
}

/// One connection's timers: one of its own for its requests in turn, the worker's for those at the same time.
#[derive(Debug)]
pub(crate) struct ConnectionTimers {
    worker: Timers,
    own: RefCell<Option<Armed>>,
}

impl ConnectionTimers {
    /// A timer without a deadline.
    pub(crate) fn timer(&self) -> Timer<'_> {
        Timer { timers: self, armed: None }
    }
}

impl Drop for ConnectionTimers {
    fn drop(&mut self) {
        if let Some(armed) = self.own.take() {
            self.worker.give_back(armed);
        }
    }
}

/// One pending deadline at a time. Goes back to its connection when dropped.
#[derive(Debug)]
pub(crate) struct Timer<'a> {
    timers: &'a ConnectionTimers,
    armed: Option<Armed>,
}

/// The deadline passed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Elapsed;

impl Timer<'_> {
    /// Ready when `deadline` has passed.
    pub(crate) fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let Armed { sleep, wakes } = self.armed.get_or_insert_with(|| {
            let kept = self.timers.own.take().or_else(|| self.timers.worker.free.borrow_mut().pop());
            kept.unwrap_or_else(|| Armed { sleep: Box::pin(sleep_until(deadline)), wakes: None })
        });
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        } else if !sleep.is_elapsed() && wakes.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        loop {
            if sleep.as_mut().poll(cx).is_pending() {
                *wakes = Some(cx.waker().clone());
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

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        if let Some(armed) = self.armed.take()
            && let Some(before) = self.timers.own.replace(Some(armed))
        {
            self.timers.worker.give_back(before);
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
        let worker = Timers::default();
        let start = Instant::now();
        let timers = worker.connection();
        let mut first = timers.timer();
        let served = tokio::time::sleep(Duration::from_secs(1));
        assert_eq!(first.until(Some(start + Duration::from_secs(15)), served).await, Ok(()), "served in time");
        drop(first);
        drop(timers);
        assert_eq!(worker.free.borrow().len(), 1, "the timer is kept, armed");

        let timers = worker.connection();
        let mut second = timers.timer();
        let outcome = second.until(Some(start + Duration::from_secs(30)), pending::<()>()).await;
        assert_eq!(outcome, Err(Elapsed), "nobody answers");
        assert_eq!(start.elapsed().as_secs(), 30, "the second deadline counts, not the first");
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_timer_is_brought_forward() {
        let timers = Timers::default().connection();
        let start = Instant::now();
        let mut first = timers.timer();
        let served = tokio::time::sleep(Duration::from_secs(1));
        assert_eq!(first.until(Some(start + Duration::from_secs(100)), served).await, Ok(()), "served in time");
        drop(first);
        let outcome = timers.timer().until(Some(start + Duration::from_secs(3)), pending::<()>()).await;
        assert_eq!(outcome, Err(Elapsed), "nobody answers");
        assert_eq!(start.elapsed().as_secs(), 3, "the earlier deadline counts");
    }

    #[tokio::test(start_paused = true)]
    async fn a_kept_timer_wakes_whoever_waits_now() {
        let timers = Timers::default().connection();
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut first = timers.timer();
        assert!(first.poll_until(&mut Context::from_waker(Waker::noop()), deadline).is_pending(), "nothing has passed");
        drop(first);
        let mut second = timers.timer();
        let busy = async {
            // The wait is polled for other reasons too.
            tokio::time::sleep(Duration::from_secs(1)).await;
            pending::<()>().await;
        };
        assert_eq!(second.until(Some(deadline), busy).await, Err(Elapsed), "this task is woken");
        assert_eq!(Instant::now(), deadline, "and on time");
    }
}
