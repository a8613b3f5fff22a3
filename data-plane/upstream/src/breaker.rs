//! Circuit breakers: limits that hold over all workers.
//!
//! Each count is one relaxed atomic on cache lines of its own. It is taken by compare-and-swap and never passes its
//! limit, not even for a moment, so that what is refused was refused by a limit that was truly full.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use culvert_model::cluster;
use culvert_model::route::Priority;
use tokio::sync::Notify;

/// The breakers of a cluster, by routing priority.
#[derive(Debug, Default)]
pub struct Breakers {
    default: Breaker,
    high: Breaker,
}

impl Breakers {
    /// The breaker of a routing priority.
    #[must_use]
    pub const fn of(&self, priority: Priority) -> &Breaker {
        match priority {
            Priority::Default => &self.default,
            Priority::High => &self.high,
        }
    }

    /// Takes new limits. What is over a lowered limit stays, and nothing is added until it is below.
    pub fn set_limits(&self, limits: &[cluster::Breakers; 2]) {
        self.default.set_limits(&limits[0]);
        self.high.set_limits(&limits[1]);
    }
}

/// Connections, pending requests, requests and retries of one priority.
#[derive(Debug, Default)]
pub struct Breaker {
    pub(crate) connections: Count,
    pub(crate) pending: Count,
    pub(crate) requests: Count,
    pub(crate) retries: Count,
    /// The budget's percentage as bits of an `f64`; [`NO_BUDGET`]: `max_retries` counts.
    budget_percent: AtomicU64,
    budget_min: AtomicU32,
    /// Requests that wait until a connection may be opened, and who wakes them.
    pub(crate) wanted: AtomicU32,
    pub(crate) freed: Notify,
}

impl Breaker {
    fn set_limits(&self, limits: &cluster::Breakers) {
        self.connections.set_limit(limits.max_connections);
        self.pending.set_limit(limits.max_pending_requests);
        self.requests.set_limit(limits.max_requests);
        self.retries.set_limit(limits.max_retries);
        let (percent, min) = limits.retry_budget.map_or((NO_BUDGET, 0), |b| (b.percent.to_bits(), b.min_concurrency));
        self.budget_min.store(min, Ordering::Relaxed);
        self.budget_percent.store(percent, Ordering::Relaxed);
    }

    /// Retries that may be under way now: `max_retries`, or the budget's share of active and pending requests.
    fn retry_limit(&self) -> u32 {
        let percent = self.budget_percent.load(Ordering::Relaxed);
        if percent == NO_BUDGET {
            return self.retries.limit();
        }
        let active = u64::from(self.requests.used()) + u64::from(self.pending.used());
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a float to integer cast saturates, and a count of requests fits the mantissa"
        )]
        let share = (f64::from_bits(percent) / 100.0 * active as f64) as u32;
        share.max(self.budget_min.load(Ordering::Relaxed))
    }

    /// Gives a connection's place back and wakes one request that waits for it.
    pub(crate) fn release_connection(&self) {
        self.connections.release();
        // Against the fence of whoever begins to wait: either it sees the free place, or it is seen here.
        fence(Ordering::SeqCst);
        if self.wanted.load(Ordering::Relaxed) > 0 {
            self.freed.notify_one();
        }
    }

    /// In use now, by limit, as Envoy names them: `cx`, `rq_pending`, `rq`, `rq_retry`.
    pub fn levels(&self) -> [(&'static str, Level); 4] {
        let retry = Level { used: self.retries.used(), limit: self.retry_limit() };
        [
            ("cx", self.connections.level()),
            ("rq_pending", self.pending.level()),
            ("rq", self.requests.level()),
            ("rq_retry", retry),
        ]
    }
}

/// How far a limit is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    pub used: u32,
    pub limit: u32,
}

impl Level {
    /// Whether the breaker refuses now.
    #[must_use]
    pub const fn is_open(self) -> bool {
        self.used >= self.limit
    }

    /// What is left.
    #[must_use]
    pub const fn remaining(self) -> u32 {
        self.limit.saturating_sub(self.used)
    }
}

/// One limited count. 128 bytes: two lines, because processors fetch them in pairs.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Count {
    used: AtomicU32,
    limit: AtomicU32,
}

impl Default for Count {
    fn default() -> Self {
        Self { used: AtomicU32::new(0), limit: AtomicU32::new(u32::MAX) }
    }
}

impl Count {
    /// Takes one if the limit allows it.
    pub(crate) fn try_acquire(&self) -> bool {
        self.acquire_below(self.limit.load(Ordering::Relaxed))
    }

    fn acquire_below(&self, limit: u32) -> bool {
        let mut used = self.used.load(Ordering::Relaxed);
        while used < limit {
            match self.used.compare_exchange_weak(used, used + 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => used = now,
            }
        }
        false
    }

    /// Gives one back.
    pub(crate) fn release(&self) {
        let before = self.used.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "released more than was acquired");
    }

    pub(crate) fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    fn level(&self) -> Level {
        Level { used: self.used(), limit: self.limit() }
    }

    fn set_limit(&self, limit: u32) {
        self.limit.store(limit, Ordering::Relaxed);
    }
}

/// Leave for one retry; counts while it lives.
#[derive(Debug)]
#[must_use = "the retry counts while the permit lives"]
pub struct RetryPermit {
    breakers: Arc<Breakers>,
    priority: Priority,
}

impl RetryPermit {
    /// `None`: as many retries are under way as may be.
    pub(crate) fn acquire(breakers: &Arc<Breakers>, priority: Priority) -> Option<Self> {
        let breaker = breakers.of(priority);
        let limit = breaker.retry_limit();
        breaker.retries.acquire_below(limit).then(|| Self { breakers: Arc::clone(breakers), priority })
    }
}

impl Drop for RetryPermit {
    fn drop(&mut self) {
        self.breakers.of(self.priority).retries.release();
    }
}

/// No percentage has these bits: a NaN.
const NO_BUDGET: u64 = u64::MAX;

#[cfg(test)]
mod tests;
