//! How many bytes a connection moved.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes read and written at one layer of a connection; written by the connection's worker, read by anyone.
#[derive(Debug, Default)]
pub struct Meter {
    read: AtomicU64,
    written: AtomicU64,
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

    pub(super) fn count_read(&self, count: usize) {
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
