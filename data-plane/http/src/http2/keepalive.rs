//! PINGs that tell a silent connection from a dead one.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

#[derive(Debug)]
pub(super) struct Keepalive {
    pings: PingPong,
    interval: Duration,
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
}

impl Keepalive {
    pub(super) fn new(pings: PingPong, interval: Duration, timeout: Duration) -> Self {
        Self { pings, interval, timeout, timer: Box::pin(tokio::time::sleep(interval)), waiting: false }
    }

    /// Resolves when the peer did not answer in time.
    pub(super) fn poll_dead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.waiting {
                match self.pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.waiting = false;
                        self.rest(self.interval);
                    }
                    // The connection ends by itself.
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => {
                        ready!(self.timer.as_mut().poll(cx));
                        return Poll::Ready(());
                    }
                }
            }
            ready!(self.timer.as_mut().poll(cx));
            if let Err(error) = self.pings.send_ping(Ping::opaque()) {
                tracing::debug!(%error, "a keepalive PING could not be sent");
                return Poll::Pending;
            }
            self.waiting = true;
            self.rest(self.timeout);
        }
    }

    fn rest(&mut self, time: Duration) {
        let now = Instant::now();
        self.timer.as_mut().reset(now.checked_add(time).unwrap_or(now));
    }
}
