//! What listeners, HTTP connection managers and TCP proxies count, under Envoy's names. The scopes are found in the
//! process's `Registry`; the same path is the same scope.

use culvert_runtime::telemetry::{Metric, Metrics, counter, gauge, histogram};

/// What one listener counts (`listener.<address>.`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum ListenerMetric {
    CxTotal,
    CxActive,
    CxDestroy,
    CxOverflow,
    PreCxTimeout,
    PreCxActive,
    NoFilterChainMatch,
    AcceptError,
    CxLengthMs,
    SslHandshake,
    SslConnectionError,
    SslNoCertificate,
    SslFailVerifyError,
    SslFailVerifyNoCert,
    SslNotReady,
    TlsOnPlaintext,
    UdpRxDropped,
}

impl Metrics for ListenerMetric {
    const ALL: &'static [Metric] = &[
        counter("downstream_cx_total"),
        gauge("downstream_cx_active"),
        counter("downstream_cx_destroy"),
        counter("downstream_cx_overflow"),
        counter("downstream_pre_cx_timeout"),
        gauge("downstream_pre_cx_active"),
        counter("no_filter_chain_match"),
        counter("downstream_accept_error"),
        histogram("downstream_cx_length_ms"),
        counter("ssl.handshake"),
        counter("ssl.connection_error"),
        counter("ssl.no_certificate"),
        counter("ssl.fail_verify_error"),
        counter("ssl.fail_verify_no_cert"),
        counter("server_ssl_socket_factory.downstream_context_secrets_not_ready"),
        counter("downstream_tls_on_plaintext"),
        counter("udp.downstream_rx_datagram_dropped"),
    ];
    fn index(self) -> usize {
        self as usize
    }
}

/// What one HTTP connection manager counts (`http.<stat_prefix>.`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum HttpMetric {
    // What every request counts stands together, so that it touches one cache line.
    RqTotal,
    RqActive,
    RqHttp1Total,
    RqTotalRouter,
    RqCompleted,
    Rq2xx,
    CxTotal,
    CxActive,
    CxDestroy,
    CxSslTotal,
    CxSslActive,
    CxProtocolError,
    CxDrainClose,
    CxUpgradesTotal,
    CxUpgradesActive,
    CxRxBytesTotal,
    CxTxBytesTotal,
    CxHttp1Total,
    CxHttp2Total,
    RqHttp2Total,
    Rq1xx,
    Rq3xx,
    Rq4xx,
    Rq5xx,
    RqRxReset,
    RqTxReset,
    RqTimeout,
    RqIdleTimeout,
    RqHeaderTimeout,
    RqTooLarge,
    RqWsOnNonWsRoute,
    RqFailedPathNormalization,
    RqRedirectedWithNormalizedPath,
    RqTime,
    NoRoute,
    NoCluster,
    RqDirectResponse,
    RqRedirect,
    RqRetrySkippedRequestNotComplete,
}

impl Metrics for HttpMetric {
    const ALL: &'static [Metric] = &[
        counter("downstream_rq_total"),
        gauge("downstream_rq_active"),
        counter("downstream_rq_http1_total"),
        counter("rq_total"),
        counter("downstream_rq_completed"),
        counter("downstream_rq_2xx"),
        counter("downstream_cx_total"),
        gauge("downstream_cx_active"),
        counter("downstream_cx_destroy"),
        counter("downstream_cx_ssl_total"),
        gauge("downstream_cx_ssl_active"),
        counter("downstream_cx_protocol_error"),
        counter("downstream_cx_drain_close"),
        counter("downstream_cx_upgrades_total"),
        gauge("downstream_cx_upgrades_active"),
        counter("downstream_cx_rx_bytes_total"),
        counter("downstream_cx_tx_bytes_total"),
        counter("downstream_cx_http1_total"),
        counter("downstream_cx_http2_total"),
        counter("downstream_rq_http2_total"),
        counter("downstream_rq_1xx"),
        counter("downstream_rq_3xx"),
        counter("downstream_rq_4xx"),
        counter("downstream_rq_5xx"),
        counter("downstream_rq_rx_reset"),
        counter("downstream_rq_tx_reset"),
        counter("downstream_rq_timeout"),
        counter("downstream_rq_idle_timeout"),
        counter("downstream_rq_header_timeout"),
        counter("downstream_rq_too_large"),
        counter("downstream_rq_ws_on_non_ws_route"),
        counter("downstream_rq_failed_path_normalization"),
        counter("downstream_rq_redirected_with_normalized_path"),
        histogram("downstream_rq_time"),
        counter("no_route"),
        counter("no_cluster"),
        counter("rq_direct_response"),
        counter("rq_redirect"),
        counter("rq_retry_skipped_request_not_complete"),
    ];
    fn index(self) -> usize {
        self as usize
    }
}

/// What one TCP proxy counts (`tcp.<stat_prefix>.`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum TcpMetric {
    CxTotal,
    CxNoRoute,
    CxRxBytesTotal,
    CxTxBytesTotal,
    IdleTimeout,
    MaxDurationReached,
}

impl Metrics for TcpMetric {
    const ALL: &'static [Metric] = &[
        counter("downstream_cx_total"),
        counter("downstream_cx_no_route"),
        counter("downstream_cx_rx_bytes_total"),
        counter("downstream_cx_tx_bytes_total"),
        counter("idle_timeout"),
        counter("max_downstream_connection_duration"),
    ];
    fn index(self) -> usize {
        self as usize
    }
}

/// What one UDP proxy counts (`udp.<stat_prefix>.`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum UdpMetric {
    RxDatagrams,
    RxBytes,
    TxDatagrams,
    TxBytes,
    SessTotal,
    SessActive,
    SessNoRoute,
    RxErrors,
    TxErrors,
    IdleTimeout,
}

impl Metrics for UdpMetric {
    const ALL: &'static [Metric] = &[
        counter("downstream_sess_rx_datagrams"),
        counter("downstream_sess_rx_bytes"),
        counter("downstream_sess_tx_datagrams"),
        counter("downstream_sess_tx_bytes"),
        counter("downstream_sess_total"),
        gauge("downstream_sess_active"),
        counter("downstream_sess_no_route"),
        counter("downstream_sess_rx_errors"),
        counter("downstream_sess_tx_errors"),
        counter("idle_timeout"),
    ];
    fn index(self) -> usize {
        self as usize
    }
}

/// What is counted of a cluster's datagrams (`cluster.<name>.udp.`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum UdpClusterMetric {
    RxDatagrams,
    TxDatagrams,
    RxDropped,
    RxErrors,
    TxErrors,
    TunnelSuccess,
    TunnelFailure,
    BufferOverflow,
}

impl Metrics for UdpClusterMetric {
    const ALL: &'static [Metric] = &[
        counter("sess_rx_datagrams"),
        counter("sess_tx_datagrams"),
        counter("sess_rx_datagrams_dropped"),
        counter("sess_rx_errors"),
        counter("sess_tx_errors"),
        counter("sess_tunnel_success"),
        counter("sess_tunnel_failure"),
        counter("sess_tunnel_buffer_overflow"),
    ];
    fn index(self) -> usize {
        self as usize
    }
}

impl HttpMetric {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_stands_at_its_name() {
        for (metric, name) in [
            (HttpMetric::CxTotal, "downstream_cx_total"),
            (HttpMetric::RqTotal, "downstream_rq_total"),
            (HttpMetric::Rq5xx, "downstream_rq_5xx"),
            (HttpMetric::NoRoute, "no_route"),
            (HttpMetric::RqTotalRouter, "rq_total"),
        ] {
            assert_eq!(HttpMetric::ALL[metric.index()].name, name, "name of {metric:?}");
        }
        assert_eq!(ListenerMetric::ALL[ListenerMetric::TlsOnPlaintext.index()].name, "downstream_tls_on_plaintext");
        assert_eq!(TcpMetric::ALL[TcpMetric::MaxDurationReached.index()].name, "max_downstream_connection_duration");
        assert_eq!(
            HttpMetric::ALL.len(),
            HttpMetric::RqRetrySkippedRequestNotComplete.index() + 1,
            "one name per member"
        );
        assert_eq!(ListenerMetric::ALL.len(), ListenerMetric::UdpRxDropped.index() + 1, "one name per member");
        assert_eq!(UdpMetric::ALL[UdpMetric::IdleTimeout.index()].name, "idle_timeout");
        assert_eq!(UdpClusterMetric::ALL[UdpClusterMetric::BufferOverflow.index()].name, "sess_tunnel_buffer_overflow");
        assert_eq!(UdpMetric::ALL.len(), UdpMetric::IdleTimeout.index() + 1, "one name per member");
        assert_eq!(UdpClusterMetric::ALL.len(), UdpClusterMetric::BufferOverflow.index() + 1, "one name per member");
        assert_eq!(TcpMetric::ALL.len(), TcpMetric::MaxDurationReached.index() + 1, "one name per member");
    }
}
