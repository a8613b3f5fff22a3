//! The one lock of a connection, and what those hold who have one of its streams.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::core::{Core, Key};

/// A connection, as its driver and all its streams share it.
#[derive(Debug)]
pub(super) struct Shared {
    core: Mutex<Core>,
    /// A client's exchanges, begun or not.
    pub(super) active: AtomicUsize,
}

impl Shared {
    pub(super) fn new(core: Core) -> Arc<Self> {
        Arc::new(Self { core: Mutex::new(core), active: AtomicUsize::new(0) })
    }

    /// For the driver, which wakes others itself.
    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs something short, then wakes who has to know of it.
    pub(super) fn with<T>(&self, run: impl FnOnce(&mut Core) -> T) -> T {
        let mut core = self.lock();
        let result = run(&mut core);
        let driver = core.wake_driver();
        let wakes = (!core.wakes().is_empty()).then(|| std::mem::take(core.wakes()));
        drop(core);
        if let Some(driver) = driver {
            driver.wake();
        }
        if let Some(wakes) = wakes {
            wakes.into_iter().for_each(std::task::Waker::wake);
        }
        result
    }

    /// As [`Self::with`], but the driver sleeps on: more is to come at once.
    pub(super) fn with_quietly<T>(&self, run: impl FnOnce(&mut Core) -> T) -> T {
        run(&mut self.lock())
    }
}

/// A stream, for whoever knows that its lease is still held.
#[derive(Debug, Clone)]
pub(super) struct StreamRef {
    pub(super) shared: Arc<Shared>,
    pub(super) key: Key,
}

impl StreamRef {
    pub(super) fn with<T>(&self, run: impl FnOnce(&mut Core, Key) -> T) -> T {
        self.shared.with(|core| run(core, self.key))
    }
}

/// Keeps a stream's record. Whoever drops it lets go of the stream: what has not ended is reset.
#[derive(Debug)]
pub(super) struct Lease(StreamRef);

impl Lease {
    pub(super) fn new(shared: Arc<Shared>, key: Key) -> Self {
        Self(StreamRef { shared, key })
    }

    pub(super) fn stream(&self) -> &StreamRef {
        &self.0
    }

    /// Resets the stream, if it has not ended.
    pub(super) fn reset(&self, code: u32) {
        self.0.with(|core, key| core.reset(key, code));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.with(Core::release);
    }
}
