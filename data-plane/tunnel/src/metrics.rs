//! What the two ends count. The composition root prefixes the names (`tunnel_server.<stat_prefix>.`,
//! `tunnel_agent.<agent>.`).

use culvert_runtime::telemetry::{Metric, Metrics, counter, gauge, histogram};

/// Of one tunnel listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum ServerMetric {
    /// Connections whose handshake began.
    Handshakes,
    /// Handshakes that ended in a registered host.
    Accepted,
    /// Refused: credential wrong, or none where one is demanded.
    RefusedAuth,
    /// Refused: names a policy that this listener does not have.
    RefusedPolicy,
    /// Refused: the cluster does not exist, or the agent may not join it.
    RefusedCluster,
    /// Refused: the agent has as many connections as it may have.
    RefusedLimit,
    /// Refused: the listener drains.
    RefusedDraining,
    /// Closed: bytes that are no handshake.
    Malformed,
    /// Closed: the handshake deadline passed.
    Timeout,
    /// Closed: the peer left before its handshake was complete.
    Aborted,
    /// Closed at once: too many handshakes under way.
    PendingOverflow,
    /// Closed at once: too many handshakes of one source under way.
    SourceOverflow,
    /// Closed at once: too many handshakes a second of one source.
    RateLimited,
    /// Connections drained because their agent asked for it.
    GracefulClose,
    /// Addresses or ids in a graceful close that name no connection of that agent.
    GracefulCloseIgnored,
    /// Aside connections closed because the agent has enough of them, or because they stayed silent.
    AsideClosed,
    /// Envoy's audit mode: let in although the token is missing or wrong.
    JwtWouldDeny,
    /// Tunnels that the identity policy allows no more.
    Withdrawn,
    /// Tunnels drained because a later agent with their identity came.
    Superseded,
    /// Refused: another agent with its identity serves.
    RefusedDuplicate,
    /// Tunnels inside of which TLS could not be opened.
    TlsFailures,
    /// Times that bytes to an agent were not acknowledged for 1.75 ping intervals.
    StalledWrites,
    /// Registered connections at the moment.
    Active,
    /// Aside connections at the moment.
    Asides,
    /// Handshakes under way at the moment.
    Pending,
    /// Of the registered connections, carry HTTP/2 as our two ends speak it.
    ActiveHttp2,
    /// Round trips that PINGs on those measured.
    RoundTripMs,
}

impl Metrics for ServerMetric {
    const ALL: &'static [Metric] = &[
        counter("handshakes"),
        counter("accepted"),
        counter("refused_auth"),
        counter("refused_policy"),
        counter("refused_cluster"),
        counter("refused_limit"),
        counter("refused_draining"),
        counter("malformed"),
        counter("timeout"),
        counter("aborted"),
        counter("pending_overflow"),
        counter("source_overflow"),
        counter("rate_limited"),
        counter("graceful_close"),
        counter("graceful_close_ignored"),
        counter("aside_closed"),
        counter("jwt_would_deny"),
        counter("withdrawn"),
        counter("superseded"),
        counter("refused_duplicate"),
        counter("tls_failures"),
        counter("stalled_writes"),
        gauge("active"),
        gauge("asides"),
        gauge("pending"),
        gauge("active_http2"),
        histogram("round_trip_ms"),
    ];
    fn index(self) -> usize {
        self as usize
    }
}

/// Of one agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum AgentMetric {
    /// Attempts to open a connection.
    Dials,
    /// Attempts that failed before the handshake: name, connect, TLS.
    DialFailures,
    /// Attempts that failed in the handshake: refused, no answer, not an answer.
    HandshakeFailures,
    /// Of these, refused by the server with a status.
    Refused,
    /// Tunnel connections that came to be.
    Established,
    /// Tunnel connections that ended without being asked to.
    Lost,
    /// Times that bytes to a server were not acknowledged for 1.75 ping intervals.
    StalledWrites,
    /// Tunnel connections that took the place of one that served.
    Replaced,
    /// Attempts after the first of a connection.
    Reconnects,
    /// Connections given up after `connect_retry_times` failures in a row.
    GivenUp,
    /// Graceful-close frames sent.
    GracefulClose,
    /// Tunnel connections at the moment.
    Active,
    /// Servers in the list at the moment.
    Servers,
    /// Of the tunnel connections, carry HTTP/2 as our two ends speak it.
    ActiveHttp2,
    /// Round trips that PINGs on those measured.
    RoundTripMs,
}

impl Metrics for AgentMetric {
    const ALL: &'static [Metric] = &[
        counter("dials"),
        counter("dial_failures"),
        counter("handshake_failures"),
        counter("refused"),
        counter("established"),
        counter("lost"),
        counter("stalled_writes"),
        counter("replaced"),
        counter("reconnects"),
        counter("given_up"),
        counter("graceful_close"),
        gauge("active"),
        gauge("servers"),
        gauge("active_http2"),
        histogram("round_trip_ms"),
    ];
    fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_its_own_entry() {
        assert_eq!(ServerMetric::RoundTripMs.index() + 1, ServerMetric::ALL.len(), "one entry per member, in order");
        assert_eq!(AgentMetric::RoundTripMs.index() + 1, AgentMetric::ALL.len(), "one entry per member, in order");
        assert_eq!(ServerMetric::ALL[ServerMetric::Timeout.index()].name, "timeout", "order of the entries");
        assert_eq!(AgentMetric::ALL[AgentMetric::Active.index()].name, "active", "order of the entries");
    }
}
