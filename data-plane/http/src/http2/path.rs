//! What PINGs tell of the path to the peer, and how windows follow it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// The round trip over a connection as its last PING measured it. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct RoundTrip(Arc<Measured>);

#[derive(Debug, Default)]
struct Measured {
    /// In nanoseconds; 0: no PING has been answered yet.
    last: AtomicU64,
    news: Notify,
}

impl RoundTrip {
    /// `None`: no PING has been answered yet.
    #[must_use]
    pub fn last(&self) -> Option<Duration> {
        Some(self.0.last.load(Ordering::Relaxed)).filter(|time| *time > 0).map(Duration::from_nanos)
    }

    /// Resolves to the next measurement, at once if there was one since the last call. For one waiter.
    pub async fn measured(&self) -> Duration {
        self.0.news.notified().await;
        self.last().unwrap_or_default()
    }

    pub(super) fn note(&self, time: Duration) {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.0.last.store(time, Ordering::Relaxed);
        self.0.news.notify_one();
    }
}

/// Windows that grow with the round trip: a stream's takes what a path of [`RATE`] has under way, within its limits, and
/// the connection's four times as much. They never shrink: bytes that were allowed cannot be taken back.
#[derive(Debug)]
pub(super) struct Windows {
    stream: u32,
    connection: u32,
    most: u32,
}

impl Windows {
    /// `most`: the greatest stream window; zero: they stay as they are.
    pub(super) fn new(stream: u32, connection: u32, most: u32) -> Self {
        Self { stream, connection, most: most.min(LIMIT) }
    }

    /// The stream's and the connection's window after a measurement; `None`: as before. Small differences are not
    /// worth a SETTINGS frame.
    pub(super) fn follow(&mut self, round_trip: Duration) -> Option<(u32, u32)> {
        let under_way = round_trip.as_micros().saturating_mul(RATE / 1_000_000);
        let wanted = u32::try_from(under_way).unwrap_or(u32::MAX).min(self.most);
        if u64::from(wanted) < u64::from(self.stream) * 3 / 2 {
            return None;
        }
        self.stream = wanted;
        self.connection = self.connection.max(wanted.saturating_mul(4).min(LIMIT));
        Some((self.stream, self.connection))
    }
}

/// Bytes a second that a path is taken to carry: 1 Gbit/s.
const RATE: u128 = 125_000_000;
/// RFC 9113, 6.9.1, with room.
const LIMIT: u32 = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_follow_the_round_trip_up_and_never_down() {
        let mut windows = Windows::new(256 * 1024, 1024 * 1024, 8 * 1024 * 1024);
        for (milliseconds, expected) in [
            (0, None),
            (1, None),
            (3, None),
            (10, Some((1_250_000, 5_000_000))),
            (11, None),
            (2, None),
            (40, Some((5_000_000, 20_000_000))),
            (500, Some((8 * 1024 * 1024, 32 * 1024 * 1024))),
            (5000, None),
        ] {
            let seen = windows.follow(Duration::from_millis(milliseconds));
            assert_eq!(seen, expected, "after {milliseconds} ms");
        }
    }

    #[test]
    fn windows_that_may_not_grow_stay() {
        let mut windows = Windows::new(65_535, 65_535, 0);
        assert_eq!(windows.follow(Duration::from_secs(1)), None);
    }
}
