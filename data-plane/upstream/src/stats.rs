//! What a cluster counts, under Envoy's names (`cluster.<name>.` is prefixed by who prints them).

use std::sync::atomic::{AtomicU64, Ordering};

use culvert_runtime::telemetry::{Metric, Metrics, counter, gauge, histogram, statuses};

/// A cluster's metrics; each worker keeps a block of them. What is known without counting (membership, breaker
/// gauges) is computed by [`crate::ClusterSlot::gauges`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum ClusterMetric {
    // What every request counts stands together, so that it touches one cache line.
    RqTotal,
    RqActive,
    RqCompleted,
    Rq2xx,
    TunnelBorrowed,
    CxTotal,
    CxActive,
    CxHttp1Total,
    CxHttp2Total,
    CxConnectFail,
    CxConnectTimeout,
    CxOverflow,
    CxDestroy,
    CxDestroyLocal,
    CxDestroyRemote,
    CxDestroyWithActiveRq,
    CxIdleTimeout,
    CxMaxDurationReached,
    CxMaxRequests,
    CxPoolOverflow,
    CxProtocolError,
    CxRxBytesTotal,
    CxTxBytesTotal,
    RqPendingTotal,
    RqPendingActive,
    RqPendingOverflow,
    RqPendingFailureEject,
    RqCancelled,
    RqTimeout,
    RqPerTryTimeout,
    RqPerTryIdleTimeout,
    RqMaxDurationReached,
    RqRxReset,
    RqTxReset,
    RqRetry,
    RqRetrySuccess,
    RqRetryOverflow,
    RqRetryLimitExceeded,
    RqRetryBackoffExponential,
    RqDropOverload,
    Rq1xx,
    Rq3xx,
    Rq4xx,
    Rq5xx,
    RqNoneHealthy,
    LbHealthyPanic,
    TunnelQueued,
    TunnelQueueOverflow,
    TunnelQueueTimeout,
    /// Requests that waited for an agent to come back.
    TunnelParked,
    TunnelAgentUnknown,
    TunnelAgentOffline,
    TunnelAgentDenied,
    TunnelDestinationDenied,
    TunnelOtherTransport,
    SslHandshake,
    SslConnectionError,
    /// TCP and TLS, in milliseconds.
    CxConnectMs,
    /// Life of connections, in milliseconds.
    CxLengthMs,
    /// Response times, in milliseconds; recorded by who knows when a request was complete.
    RqTime,
    /// Each status by itself.
    RqStatus,
}

impl ClusterMetric {
    /// The class counter of a response's status.
    #[must_use]
    pub const fn of_status(status: u16) -> Self {
        match status {
            100..=199 => Self::Rq1xx,
            200..=299 => Self::Rq2xx,
            300..=399 => Self::Rq3xx,
            400..=499 => Self::Rq4xx,
            _ => Self::Rq5xx,
        }
    }
}

/// What configuration updates and DNS count of a cluster: rare, so plain shared atomics.
#[derive(Debug, Default)]
pub struct UpdateCounts {
    attempts: AtomicU64,
    successes: AtomicU64,
    failures: AtomicU64,
    membership_changes: AtomicU64,
    members: AtomicU64,
}

impl UpdateCounts {
    pub(crate) fn lookup(&self, succeeded: bool) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        let outcome = if succeeded { &self.successes } else { &self.failures };
        outcome.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn members(&self, now: usize) {
        if self.members.swap(now as u64, Ordering::Relaxed) != now as u64 {
            self.membership_changes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counters under Envoy's names: `membership_change`, and of lookups in DNS `update_attempt`, `update_success` and
    /// `update_failure`. What is counted of assignments is known to whoever receives them.
    #[must_use]
    pub fn read(&self) -> [(&'static str, u64); 4] {
        [
            ("update_attempt", self.attempts.load(Ordering::Relaxed)),
            ("update_success", self.successes.load(Ordering::Relaxed)),
            ("update_failure", self.failures.load(Ordering::Relaxed)),
            ("membership_change", self.membership_changes.load(Ordering::Relaxed)),
        ]
    }
}

impl Metrics for ClusterMetric {
    const ALL: &'static [Metric] = &[
        counter("upstream_rq_total"),
        gauge("upstream_rq_active"),
        counter("upstream_rq_completed"),
        counter("upstream_rq_2xx"),
        counter("tunnel.borrowed"),
        counter("upstream_cx_total"),
        gauge("upstream_cx_active"),
        counter("upstream_cx_http1_total"),
        counter("upstream_cx_http2_total"),
        counter("upstream_cx_connect_fail"),
        counter("upstream_cx_connect_timeout"),
        counter("upstream_cx_overflow"),
        counter("upstream_cx_destroy"),
        counter("upstream_cx_destroy_local"),
        counter("upstream_cx_destroy_remote"),
        counter("upstream_cx_destroy_with_active_rq"),
        counter("upstream_cx_idle_timeout"),
        counter("upstream_cx_max_duration_reached"),
        counter("upstream_cx_max_requests"),
        counter("upstream_cx_pool_overflow"),
        counter("upstream_cx_protocol_error"),
        counter("upstream_cx_rx_bytes_total"),
        counter("upstream_cx_tx_bytes_total"),
        counter("upstream_rq_pending_total"),
        gauge("upstream_rq_pending_active"),
        counter("upstream_rq_pending_overflow"),
        counter("upstream_rq_pending_failure_eject"),
        counter("upstream_rq_cancelled"),
        counter("upstream_rq_timeout"),
        counter("upstream_rq_per_try_timeout"),
        counter("upstream_rq_per_try_idle_timeout"),
        counter("upstream_rq_max_duration_reached"),
        counter("upstream_rq_rx_reset"),
        counter("upstream_rq_tx_reset"),
        counter("upstream_rq_retry"),
        counter("upstream_rq_retry_success"),
        counter("upstream_rq_retry_overflow"),
        counter("upstream_rq_retry_limit_exceeded"),
        counter("upstream_rq_retry_backoff_exponential"),
        counter("upstream_rq_drop_overload"),
        counter("upstream_rq_1xx"),
        counter("upstream_rq_3xx"),
        counter("upstream_rq_4xx"),
        counter("upstream_rq_5xx"),
        counter("upstream_cx_none_healthy"),
        counter("lb_healthy_panic"),
        counter("tunnel.queued"),
        counter("tunnel.queue_overflow"),
        counter("tunnel.queue_timeout"),
        counter("tunnel.parked"),
        counter("tunnel.agent_unknown"),
        counter("tunnel.agent_offline"),
        counter("tunnel.agent_denied"),
        counter("tunnel.destination_denied"),
        counter("tunnel.other_transport"),
        counter("ssl.handshake"),
        counter("ssl.connection_error"),
        histogram("upstream_cx_connect_ms"),
        histogram("upstream_cx_length_ms"),
        histogram("upstream_rq_time"),
        statuses("upstream_rq"),
    ];
    fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_stands_at_its_name() {
        let pinned = [
            (ClusterMetric::CxTotal, "upstream_cx_total"),
            (ClusterMetric::CxPoolOverflow, "upstream_cx_pool_overflow"),
            (ClusterMetric::RqTotal, "upstream_rq_total"),
            (ClusterMetric::RqPendingFailureEject, "upstream_rq_pending_failure_eject"),
            (ClusterMetric::RqRetry, "upstream_rq_retry"),
            (ClusterMetric::RqDropOverload, "upstream_rq_drop_overload"),
            (ClusterMetric::Rq5xx, "upstream_rq_5xx"),
            (ClusterMetric::LbHealthyPanic, "lb_healthy_panic"),
            (ClusterMetric::SslConnectionError, "ssl.connection_error"),
            (ClusterMetric::RqTime, "upstream_rq_time"),
            (ClusterMetric::RqStatus, "upstream_rq"),
        ];
        for (metric, name) in pinned {
            assert_eq!(ClusterMetric::ALL[metric.index()].name, name, "name of {metric:?}");
        }
        assert_eq!(ClusterMetric::ALL.len(), ClusterMetric::RqStatus.index() + 1, "one name per member, no more");
    }
}
