//! Why an attempt has no response, and what the client is told: Envoy's statuses, bodies, flags and details.

use std::io::ErrorKind;
use std::net::SocketAddr;

use culvert_http::{Blame, StreamError, StreamErrorKind};
use culvert_upstream::UpstreamFailure;

use super::limits::Expired;
use crate::flags::ResponseFlag;
use crate::local_reply::LocalReply;

/// Why there is no response.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection to a host.
    Unavailable(UpstreamFailure),
    /// The exchange broke before the response's head.
    Broken(StreamError),
    /// The client went away or broke the protocol.
    Downstream(StreamError),
    Overall,
    AttemptTimeout,
    Idle,
    SlowBody,
}

impl From<Expired> for Failure {
    fn from(expired: Expired) -> Self {
        match expired {
            Expired::Overall => Self::Overall,
            Expired::Attempt => Self::AttemptTimeout,
            Expired::Idle => Self::Idle,
            Expired::SlowBody => Self::SlowBody,
        }
    }
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Self {
        match error.blame {
            Blame::Downstream => Self::Downstream(error),
            Blame::Upstream | Blame::Internal => Self::Broken(error),
        }
    }
}

/// What Envoy calls the way in which an upstream stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reset {
    pub(super) flag: ResponseFlag,
    pub(super) reason: &'static str,
    status: u16,
}

impl Reset {
    const fn new(flag: ResponseFlag, reason: &'static str) -> Self {
        Self { flag, reason, status: 503 }
    }

    pub(super) const fn of(error: &StreamError) -> Self {
        match error.kind {
            StreamErrorKind::Closed => Self::new(ResponseFlag::UpstreamConnectionTermination, "connection termination"),
            StreamErrorKind::Reset(_) => Self::new(ResponseFlag::UpstreamRemoteReset, "remote reset"),
            StreamErrorKind::Refused => Self::new(ResponseFlag::UpstreamRemoteReset, "remote refused stream reset"),
            StreamErrorKind::Protocol { .. } => {
                Self { flag: ResponseFlag::UpstreamProtocolError, reason: "protocol error", status: 502 }
            }
            StreamErrorKind::Timeout => Self::new(ResponseFlag::UpstreamConnectionTermination, "connection timeout"),
            StreamErrorKind::Overflow => Self::new(ResponseFlag::UpstreamOverflow, "overflow"),
        }
    }
}

impl Failure {
    /// The answer to the client, `request_complete` says whether its request had been received whole; `None`: there is
    /// nobody to answer.
    pub(super) fn reply(&self, retried: u32, request_complete: bool, cluster_not_found: u16) -> Option<LocalReply> {
        Some(match self {
            Self::Downstream(_) => return None,
            Self::SlowBody => {
                LocalReply { closes: true, ..LocalReply::new(408, "request timeout", "request_body_too_slow") }
            }
            Self::Overall if !request_complete => LocalReply::new(408, "request timeout", "request_overall_timeout"),
            Self::Overall => LocalReply::new(504, "upstream request timeout", "response_timeout")
                .flagged(ResponseFlag::UpstreamRequestTimeout),
            Self::AttemptTimeout => LocalReply::new(504, "upstream request timeout", "upstream_per_try_timeout")
                .flagged(ResponseFlag::UpstreamRequestTimeout),
            Self::Idle => {
                let status = if request_complete { 504 } else { 408 };
                LocalReply::new(status, "stream timeout", "stream_idle_timeout")
                    .flagged(ResponseFlag::StreamIdleTimeout)
            }
            Self::Broken(error) => reset(Reset::of(error), retried, None),
            Self::Unavailable(failure) => unavailable(failure, retried, cluster_not_found),
        })
    }

    /// The client's own doing.
    pub(super) const fn is_downstreams(&self) -> bool {
        matches!(self, Self::Downstream(_) | Self::SlowBody)
    }

    /// The host that could not be reached.
    pub(super) const fn host(&self) -> Option<SocketAddr> {
        match self {
            Self::Unavailable(
                UpstreamFailure::ConnectFailure { address, .. }
                | UpstreamFailure::ConnectTimeout { address, .. }
                | UpstreamFailure::TlsFailure { address, .. },
            ) => Some(*address),
            _ => None,
        }
    }

    /// What `%UPSTREAM_TRANSPORT_FAILURE_REASON%` says.
    pub(super) fn transport_failure(&self) -> Option<String> {
        match self {
            Self::Unavailable(UpstreamFailure::ConnectFailure { reason, .. }) => {
                Some(format!("delayed_connect_error:_{}", system_text(*reason).replace(' ', "_")))
            }
            Self::Unavailable(UpstreamFailure::TlsFailure { reason, .. }) => Some(format!("TLS_error: {reason}")),
            _ => None,
        }
    }
}

fn unavailable(failure: &UpstreamFailure, retried: u32, cluster_not_found: u16) -> LocalReply {
    let connect = |reason| Reset::new(ResponseFlag::UpstreamConnectionFailure, reason);
    let overflow = Reset::new(ResponseFlag::UpstreamOverflow, "overflow");
    match failure {
        UpstreamFailure::NoCluster => {
            LocalReply::new(cluster_not_found, "", "cluster_not_found").flagged(ResponseFlag::NoClusterFound)
        }
        UpstreamFailure::NoHealthyHost => {
            LocalReply::new(503, "no healthy upstream", "no_healthy_upstream").flagged(ResponseFlag::NoHealthyUpstream)
        }
        UpstreamFailure::AgentUnknown => LocalReply::new(404, "unknown tunnel agent", "tunnel_agent_unknown")
            .flagged(ResponseFlag::TunnelAgentUnknown),
        UpstreamFailure::DestinationDenied { .. } => {
            LocalReply::new(403, "tunnel destination denied", "tunnel_destination_denied")
                .flagged(ResponseFlag::TunnelDestinationDenied)
        }
        UpstreamFailure::AgentOffline { seconds } => {
            let reply = LocalReply::new(503, failure.to_string(), "").flagged(ResponseFlag::TunnelAgentOffline);
            let details = format!("tunnel_agent_offline{{{seconds}_s}}");
            // The longer it is away, the longer it will be.
            LocalReply { retry_after: Some((*seconds).clamp(1, MAX_RETRY_AFTER)), ..reply.detailed(details) }
        }
        UpstreamFailure::DropOverload => {
            LocalReply::new(503, "drop overload", "drop_overload").flagged(ResponseFlag::DropOverload)
        }
        UpstreamFailure::Overflow(_) | UpstreamFailure::QueueFull | UpstreamFailure::QueueTimeout => {
            LocalReply { overloaded: true, ..reset(overflow, retried, None) }
        }
        UpstreamFailure::ConnectTimeout { .. } => reset(connect("connection timeout"), retried, None),
        UpstreamFailure::ConnectFailure { reason, .. } => {
            let text = format!("delayed_connect_error:_{}", system_text(*reason).replace(' ', "_"));
            reset(connect("remote connection failure"), retried, Some(&text))
        }
        UpstreamFailure::TlsFailure { reason, .. } => {
            reset(connect("remote connection failure"), retried, Some(&format!("TLS_error: {reason}")))
        }
        UpstreamFailure::TunnelClosed => reset(connect("connection termination"), retried, None),
        UpstreamFailure::OtherTransport => {
            reset(connect("remote connection failure"), retried, Some("the_tunnel_serves_another_transport_socket"))
        }
    }
}

/// Seconds: as long as an agent waits at most before it dials again, by default.
const MAX_RETRY_AFTER: u64 = 30;

/// Envoy's words for a stream that ended before its response.
fn reset(reset: Reset, retried: u32, transport: Option<&str>) -> LocalReply {
    let prefix = if retried > 0 { "retried and the latest reset reason: " } else { "reset reason: " };
    // What the transport said goes into the log only: it may tell strangers about the inside.
    let body = format!("upstream connect error or disconnect/reset before headers. {prefix}{}", reset.reason);
    let mut details = format!("upstream_reset_before_response_started{{{}", reset.reason.replace(' ', "_"));
    if let Some(transport) = transport {
        details.push('|');
        details.push_str(&transport.replace(' ', "_"));
    }
    details.push('}');
    LocalReply::new(reset.status, body, "").flagged(reset.flag).detailed(details)
}

/// As the system's `strerror` puts it.
fn system_text(kind: ErrorKind) -> String {
    match kind {
        ErrorKind::ConnectionRefused => "Connection refused".to_owned(),
        ErrorKind::ConnectionReset => "Connection reset by peer".to_owned(),
        ErrorKind::NetworkUnreachable => "Network is unreachable".to_owned(),
        ErrorKind::HostUnreachable => "No route to host".to_owned(),
        ErrorKind::AddrNotAvailable => "Cannot assign requested address".to_owned(),
        kind => kind.to_string(),
    }
}
