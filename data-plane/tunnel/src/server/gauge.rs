//! Counting what is there at the moment.

use culvert_runtime::telemetry::Block;

use crate::metrics::ServerMetric;

/// Counts in a gauge as long as it lives.
#[derive(Debug)]
pub(super) struct Gauge<'a> {
    metrics: &'a Block<ServerMetric>,
    metric: ServerMetric,
}

impl<'a> Gauge<'a> {
    pub(super) fn enter(metrics: &'a Block<ServerMetric>, metric: ServerMetric) -> Self {
        metrics.inc(metric);
        Self { metrics, metric }
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.metrics.dec(self.metric);
    }
}
