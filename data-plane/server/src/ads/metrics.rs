//! What is counted about the control plane, under Envoy's names.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use culvert_runtime::telemetry::{Registry, Sample, ScopePath};

use crate::apply::Kind;

/// Counters of all subscriptions. Written by any task of the control runtime.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    connected: AtomicU64,
    kinds: [Subscription; 6],
}

#[derive(Debug, Default)]
struct Subscription {
    attempt: AtomicU64,
    success: AtomicU64,
    rejected: AtomicU64,
    failure: AtomicU64,
    init_fetch_timeout: AtomicU64,
}

/// What became of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A request was sent.
    Attempt,
    Success,
    Rejected,
    /// The stream or the file failed.
    Failure,
    InitFetchTimeout,
}

impl Metrics {
    /// Counters that `registry` shows.
    pub(crate) fn new(registry: &Registry) -> Arc<Self> {
        let metrics = Arc::new(Self::default());
        let shown = Arc::clone(&metrics);
        registry.add_source(move |samples| shown.samples(samples));
        metrics
    }

    /// A stream was opened.
    pub(crate) fn connected(&self) {
        self.connected.fetch_add(1, Ordering::Relaxed);
    }

    /// A stream that was opened is gone.
    pub(crate) fn disconnected(&self) {
        self.connected.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn count(&self, kind: Kind, outcome: Outcome) {
        let Some(subscription) = self.kinds.get(kind as usize) else { return };
        let counter = match outcome {
            Outcome::Attempt => &subscription.attempt,
            Outcome::Success => &subscription.success,
            Outcome::Rejected => &subscription.rejected,
            Outcome::Failure => &subscription.failure,
            Outcome::InitFetchTimeout => &subscription.init_fetch_timeout,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn samples(&self, samples: &mut Vec<Sample>) {
        let connected = u64::from(self.connected.load(Ordering::Relaxed) > 0);
        samples.push(Sample::gauge(ScopePath::process("control_plane"), "connected_state", connected));
        for (kind, subscription) in KINDS.iter().zip(&self.kinds) {
            let mut add = |name: &'static str, counter: &AtomicU64| {
                samples.push(Sample::counter(ScopePath::process(kind), name, counter.load(Ordering::Relaxed)));
            };
            add("update_attempt", &subscription.attempt);
            add("update_success", &subscription.success);
            add("update_rejected", &subscription.rejected);
            add("update_failure", &subscription.failure);
            add("init_fetch_timeout", &subscription.init_fetch_timeout);
        }
    }
}

/// In the order of [`Kind`]. Envoy counts EDS, RDS and SDS per resource; here they are counted per type.
const KINDS: [&str; 6] = ["sds", "cluster_manager.cds", "eds", "rds", "listener_manager.lds", "culvert.tunnel_agents"];
