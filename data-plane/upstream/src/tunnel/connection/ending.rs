//! How a tunnel connection ends: seen by the task that watches it, or brought about.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::MutexGuard;
use tokio::time::sleep;

use super::{Inner, Phase, State, TunnelConnection};
use crate::tunnel::TunnelEnd;

impl TunnelConnection {
    /// Ready when the connection has ended: closed while idle, broken in use, taken, or drained with nothing in
    /// flight. Wakes the task again when that may have changed.
    pub(in crate::tunnel) fn poll_end(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<TunnelEnd> {
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
            State::Unread(..) if draining => inner.drain_end,
            State::Unread(rest, deadline) => match rest.poll_drain(cx) {
                Poll::Ready(true) => return self.resume(inner, cx),
                Poll::Ready(false) => TunnelEnd::Closed,
                Poll::Pending => {
                    let deadline = deadline.get_or_insert_with(|| Box::pin(sleep(REST_TIME)));
                    std::task::ready!(deadline.as_mut().poll(cx));
                    TunnelEnd::Closed
                }
            },
            State::Pending | State::Open(_) if draining && self.active() == 0 => inner.drain_end,
            State::Pending | State::Open(_) | State::Borrowed(_) => return Poll::Pending,
        };
        self.end(inner, end);
        Poll::Ready(end)
    }

    /// The rest of a response was read: the connection is free again.
    fn resume(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>, cx: &mut Context<'_>) -> Poll<TunnelEnd> {
        let State::Unread(rest, _) = std::mem::replace(&mut inner.state, State::Borrowed(NOBODY)) else {
            debug_assert!(false, "only an unread response is read to its end");
            return Poll::Pending;
        };
        let mut client = rest.into_client();
        if client.poll_closed(cx).is_ready() {
            self.end(inner, TunnelEnd::Closed);
            return Poll::Ready(TunnelEnd::Closed);
        }
        self.rest(inner, client);
        Poll::Pending
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
    pub(in crate::tunnel) fn set_gone(&self, end: TunnelEnd) {
        let inner = self.inner.lock();
        if !matches!(inner.state, State::Gone(_)) {
            self.end(inner, end);
        }
    }

    pub(super) fn end(&self, mut inner: MutexGuard<'_, Inner>, end: TunnelEnd) {
        let before = std::mem::replace(&mut inner.state, State::Gone(end));
        self.set_phase(Phase::Gone);
        let owner = inner.owner.take();
        drop(inner);
        // Closing a socket is no work to be done under the lock.
        drop(before);
        match end {
            // The next one of its agent would fail alike: nobody is to wait for that.
            TunnelEnd::TlsFailure => self.leave_queue_for(Duration::ZERO),
            _ => self.leave_queue(),
        }
        if let Some(owner) = owner {
            owner.wake();
        }
    }

    pub(super) fn leave_queue(&self) {
        self.leave_queue_for(self.claim.reconnect_window);
    }

    /// Its agent is expected back within `window`.
    fn leave_queue_for(&self, window: Duration) {
        if self.awaited.swap(false, Ordering::SeqCst) {
            self.queue.leave(self.claim.names(), Some(window));
            self.elsewhere.leave(&self.claim.agent, window);
        }
    }
}

/// No slot has this id.
const NOBODY: u64 = 0;
/// The rest of a response that nobody wants any more is read for so long before its connection is cut: about as long as a
/// new connection may take.
const REST_TIME: Duration = Duration::from_secs(1);
