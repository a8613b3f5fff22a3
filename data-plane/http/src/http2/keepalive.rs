//! PINGs that tell a silent connection from a dead one, and how long the way to the peer is.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::handle::Shared;
use super::path::RoundTrip;

#[derive(Debug)]
pub(super) struct Keepalive {
    interval: Duration,
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
    /// When the PING was sent whose answer is awaited.
    sent: Option<Instant>,
    round_trip: Option<RoundTrip>,
    /// A measurement that nobody has taken yet.
    fresh: Option<Duration>,
}

impl Keepalive {
    /// With a `round_trip` to be told, the first PING does not wait for the interval.
    pub(super) fn new(interval: Duration, timeout: Duration, round_trip: Option<RoundTrip>) -> Self {
        let first = if round_trip.is_some() { interval.min(FIRST) } else { interval };
        let timer = Box::pin(tokio::time::sleep(first));
        Self { interval, timeout, timer, sent: None, round_trip, fresh: None }
    }

    /// What was measured since the last call.
    pub(super) fn take_measured(&mut self) -> Option<Duration> {
        self.fresh.take()
    }

    /// Another time than the interval for the first one.
    pub(super) fn first_after(mut self, time: Duration) -> Self {
        self.rest(time);
        self
    }

    /// Resolves when the peer did not answer in time.
    pub(super) fn poll_dead(&mut self, shared: &Shared, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(sent) = self.sent {
                if shared.lock().take_pong() {
                    self.sent = None;
                    self.measured(sent.elapsed());
                    self.rest(self.interval);
                } else {
                    ready!(self.timer.as_mut().poll(cx));
                    return Poll::Ready(());
                }
            }
            ready!(self.timer.as_mut().poll(cx));
            shared.lock().ping();
            self.sent = Some(Instant::now());
            self.rest(self.timeout);
        }
    }

    fn measured(&mut self, time: Duration) {
        if let Some(round_trip) = &self.round_trip {
            round_trip.note(time);
            self.fresh = Some(time);
        }
    }

    fn rest(&mut self, time: Duration) {
        let now = Instant::now();
        self.timer.as_mut().reset(now.checked_add(time).unwrap_or(now));
    }
}

/// Until the first PING of a connection whose round trip is wanted.
const FIRST: Duration = Duration::from_millis(500);
