//! Readiness as named blockers: the process is ready when nobody holds one any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// Whether the process takes work, and what it still waits for. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Readiness {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// How many blockers of each name are held.
    blockers: Mutex<BTreeMap<Arc<str>, usize>>,
    count: watch::Sender<usize>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { shared: Arc::new(Shared { blockers: Mutex::default(), count: watch::Sender::new(0) }) }
    }
}

impl Readiness {
    /// Not ready until the returned value is dropped. `name` is what an operator is told to wait for.
    pub fn block(&self, name: &str) -> ReadinessBlocker {
        let name: Arc<str> = name.into();
        *self.shared.blockers.lock().entry(Arc::clone(&name)).or_default() += 1;
        self.shared.count.send_modify(|count| *count += 1);
        ReadinessBlocker { name, shared: Arc::clone(&self.shared) }
    }

    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.shared.count.borrow() == 0
    }

    /// What is waited for, sorted.
    #[must_use]
    pub fn pending(&self) -> Vec<Arc<str>> {
        self.shared.blockers.lock().keys().cloned().collect()
    }

    /// Returns when nothing blocks.
    pub async fn ready(&self) {
        let mut count = self.shared.count.subscribe();
        // Cannot fail: `self` holds the sender.
        drop(count.wait_for(|count| *count == 0).await);
    }
}

/// Holds readiness back while it lives.
#[must_use = "readiness is only held back while this value lives"]
#[derive(Debug)]
pub struct ReadinessBlocker {
    name: Arc<str>,
    shared: Arc<Shared>,
}

impl Drop for ReadinessBlocker {
    fn drop(&mut self) {
        let mut blockers = self.shared.blockers.lock();
        if let Some(count) = blockers.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                blockers.remove(&self.name);
            }
        }
        drop(blockers);
        self.shared.count.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_the_last_blocker_is_gone() {
        let readiness = Readiness::default();
        assert!(readiness.is_ready(), "nothing blocks at first");
        let first = readiness.block("listeners");
        let second = readiness.block("listeners");
        let third = readiness.block("clusters");
        drop(first);
        let pending = readiness.pending();
        assert_eq!(pending, ["clusters".into(), "listeners".into()], "one blocker of each name is left");
        drop((second, third));
        readiness.ready().await;
        assert!(readiness.is_ready() && readiness.pending().is_empty(), "all blockers are gone");
    }
}
