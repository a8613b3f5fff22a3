//! How an attempt ended: what the client and the log are told, what is counted, and whether the host can have seen it.

use std::time::Duration;

use culvert_http::{Blame, Method, ResponseSource, StreamError, StreamErrorKind, Version};
use culvert_upstream::{Checkout, ClusterMetric};

use super::super::Stream;
use super::super::failure::{Failure, Reset};
use super::super::limits::Expired;
use super::super::relay::{Counts, copied};
use super::Attempt;
use crate::flags::ResponseFlag;
use crate::record::CLIENT_GONE;

/// How an attempt ended.
#[derive(Debug)]
pub(in crate::router) enum Attempted {
    /// Its response was forwarded whole.
    Answered,
    /// Its response was begun and cannot be completed.
    Broken,
    /// It has a response that is not forwarded: another attempt follows after the pause.
    Again(Duration),
    /// It has no response. `stale`: the connection had been kept and the host saw nothing, or it was a tunnel, and that
    /// the host may have seen the request does no harm (RFC 9110, 9.2.2).
    Failed { failure: Failure, stale: bool },
}

impl From<StreamError> for Attempted {
    fn from(error: StreamError) -> Self {
        Self::Failed { failure: error.into(), stale: false }
    }
}

impl From<Failure> for Attempted {
    fn from(failure: Failure) -> Self {
        Self::Failed { failure, stale: false }
    }
}

impl Attempted {
    /// With whether another connection would have made a difference.
    pub(super) fn judged(self, checkout: &Checkout, method: &Method) -> Self {
        match self {
            Self::Failed { failure: Failure::Broken(error), .. } => {
                let stale = if checkout.host().is_tunnel() {
                    error.untouched || (lost(&error) && is_idempotent(method))
                } else {
                    error.untouched && checkout.is_reused()
                };
                Self::Failed { stale, failure: Failure::Broken(error) }
            }
            attempted => attempted,
        }
    }
}

impl<'a> Attempt<'_, 'a> {
    /// The response was begun: did it end well?
    pub(super) fn ended(
        &self,
        stream: &mut Stream<'a>,
        outcome: Result<Result<(), StreamError>, Expired>,
        down: Counts,
        source: &ResponseSource<'_>,
    ) -> Attempted {
        let record = &mut stream.record;
        record.bytes_sent = down.sent;
        record.upstream_received = down.sent;
        stream.prompt = !down.waited;
        match outcome {
            Ok(Ok(())) => {
                if !stream.connection.http.logs.is_empty() {
                    stream.trailers = copied(source.trailers());
                }
                return Attempted::Answered;
            }
            Ok(Err(error)) if error.blame == Blame::Downstream => {
                let (flag, details) = match error.kind {
                    // It reads nothing any more.
                    StreamErrorKind::Timeout => (ResponseFlag::StreamIdleTimeout, "stream_idle_timeout"),
                    StreamErrorKind::Protocol { .. } => (ResponseFlag::DownstreamProtocolError, "codec_error"),
                    _ => (ResponseFlag::DownstreamConnectionTermination, CLIENT_GONE),
                };
                record.flag(flag);
                record.details = details.into();
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "a response broke off");
                let reset = Reset::of(&error);
                record.flag(reset.flag);
                let reason = reset.reason.replace(' ', "_");
                record.details = format!("upstream_reset_after_response_started{{{reason}}}").into();
            }
            Err(Expired::Idle) => {
                record.flag(ResponseFlag::StreamIdleTimeout);
                record.details = "stream_idle_timeout".into();
            }
            Err(Expired::SlowBody) => record.details = "request_body_too_slow".into(),
            Err(Expired::Overall | Expired::Attempt) => {
                record.flag(ResponseFlag::UpstreamRequestTimeout);
                record.details = "response_timeout".into();
            }
        }
        Attempted::Broken
    }

    pub(super) fn count(&self, attempted: &Attempted, checkout: &Checkout) {
        match attempted {
            Attempted::Failed { failure, .. } => match failure {
                Failure::Overall => checkout.count(ClusterMetric::RqTimeout),
                Failure::AttemptTimeout => checkout.count(ClusterMetric::RqPerTryTimeout),
                Failure::Broken(error) => {
                    checkout.count(ClusterMetric::RqRxReset);
                    // Of HTTP/2 the connection counts its own.
                    if error.blame == Blame::Upstream && error.is_protocol() && checkout.protocol() == Version::Http11 {
                        checkout.count(ClusterMetric::CxProtocolError);
                    }
                }
                Failure::Downstream(_) | Failure::Idle | Failure::SlowBody => checkout.count(ClusterMetric::RqTxReset),
                Failure::Unavailable(_) => {}
            },
            Attempted::Answered if self.retries.done() > 0 => checkout.count(ClusterMetric::RqRetrySuccess),
            Attempted::Answered | Attempted::Broken | Attempted::Again(_) => {}
        }
    }
}

/// Whether the whole connection ended, not the stream alone.
const fn lost(error: &StreamError) -> bool {
    matches!(error.kind, StreamErrorKind::Closed | StreamErrorKind::Timeout)
}

/// RFC 9110, 9.2.2
pub(in crate::router) const fn is_idempotent(method: &Method) -> bool {
    matches!(method, Method::Get | Method::Head | Method::Options | Method::Trace | Method::Put | Method::Delete)
}
