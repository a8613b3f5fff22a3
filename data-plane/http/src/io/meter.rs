//! How many bytes a connection moved.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

/// Bytes read and written at one layer of a connection; written by the connection's worker, read by anyone.
#[derive(Debug, Default)]
pub struct Meter {
    read: AtomicU64,
    written: AtomicU64,
    first: OnceLock<Instant>,
}

impl Meter {
    /// Bytes received so far.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes sent so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// When the first byte came in.
    #[must_use]
    pub fn first_read(&self) -> Option<Instant> {
        self.first.get().copied()
    }

    pub(super) fn count_read(&self, count: usize) {
        if count > 0 && self.read() == 0 {
            self.first.get_or_init(Instant::now);
        }
        Self::add(&self.read, count);
    }

    pub(super) fn count_written(&self, count: usize) {
        Self::add(&self.written, count);
    }

    /// One writer at a time: no locked instruction is needed.
    fn add(counter: &AtomicU64, count: usize) {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(count as u64), Ordering::Relaxed);
    }
}
