//! Whether a failed attempt is followed by another.

use std::net::SocketAddr;
use std::time::Duration;

use culvert_http::{RequestHead, ResponseHead, StreamErrorKind};
use culvert_model::route::RetryPolicy;
use culvert_upstream::RetryPermit;
use smallvec::SmallVec;

use super::failure::Failure;
use crate::routes::{field_matches, header_matches};

/// A request's retry policy with what is left of it.
#[derive(Debug)]
pub(super) struct Retries<'a> {
    policy: Option<&'a RetryPolicy>,
    left: u32,
    done: u32,
    /// The cluster's leave for the retry that runs.
    permit: Option<RetryPermit>,
    /// Where attempts went, if the policy cares.
    tried: SmallVec<[SocketAddr; 2]>,
}

impl<'a> Retries<'a> {
    /// A policy with `retriable_request_headers` is for requests that match one of them.
    pub(super) fn new(policy: Option<&'a RetryPolicy>, request: &RequestHead) -> Self {
        let policy = policy.filter(|policy| {
            let wanted = &policy.retriable_request_headers;
            wanted.is_empty() || wanted.iter().any(|matcher| header_matches(matcher, request))
        });
        Self {
            left: policy.map_or(0, |policy| policy.num_retries),
            done: 0,
            permit: None,
            tried: SmallVec::new(),
            policy,
        }
    }

    /// Whether there may be a retry at all: only then is the request's body kept.
    pub(super) const fn are_possible(&self) -> bool {
        self.left > 0
    }

    pub(super) fn attempt_limit(&self) -> Option<Duration> {
        self.policy.and_then(|policy| policy.per_try_timeout)
    }

    pub(super) fn attempt_idle_limit(&self) -> Option<Duration> {
        self.policy.and_then(|policy| policy.per_try_idle_timeout)
    }

    /// Where attempts went, and how often the balancer is asked for a host that is not among them.
    pub(super) fn tried(&self) -> &[SocketAddr] {
        &self.tried
    }

    pub(super) fn fresh_picks(&self) -> u32 {
        if self.tried.is_empty() { 0 } else { self.policy.and_then(|policy| policy.fresh_host_picks).unwrap_or(0) }
    }

    pub(super) fn note_tried(&mut self, host: Option<SocketAddr>) {
        if self.policy.is_some_and(|policy| policy.fresh_host_picks.is_some()) {
            self.tried.extend(host);
        }
    }

    pub(super) const fn done(&self) -> u32 {
        self.done
    }

    /// Whether the policy covers an attempt without a response.
    pub(super) fn covers_failure(&self, failure: &Failure) -> bool {
        let Some(on) = self.policy.map(|policy| policy.on) else { return false };
        let any_failure = on.any_5xx || on.gateway_error;
        match failure {
            Failure::Unavailable(failure) if failure.is_connect_failure() => {
                on.connect_failure || on.reset || on.reset_before_request || any_failure
            }
            // Nothing was tried: another attempt would find the same.
            Failure::Unavailable(_) => false,
            Failure::Broken(error) => match error.kind {
                StreamErrorKind::Refused => on.refused_stream || on.reset || on.reset_before_request || any_failure,
                StreamErrorKind::Overflow => false,
                _ => on.reset || any_failure || (on.reset_before_request && error.untouched),
            },
            Failure::AttemptTimeout => on.reset || any_failure,
            Failure::Downstream(_) | Failure::Overall | Failure::Idle | Failure::SlowBody => false,
        }
    }

    /// Whether the policy covers a response; nothing of it has been forwarded.
    pub(super) fn covers_response(&self, head: &ResponseHead) -> bool {
        let Some(policy) = self.policy else { return false };
        let on = policy.on;
        let status = head.status;
        (on.any_5xx && (500..600).contains(&status))
            || (on.gateway_error && matches!(status, 502..=504))
            || (on.retriable_4xx && status == 409)
            || (on.retriable_status_codes && policy.statuses.contains(&status))
            || (on.retriable_headers && policy.retriable_headers.iter().any(|m| field_matches(m, &head.fields)))
            || covers_grpc(policy, head)
    }

    /// Uses up one retry, for which `permit` asks the cluster; how long to wait before it. `None`: there is none.
    pub(super) fn take(&mut self, permit: impl FnOnce() -> Option<RetryPermit>) -> Option<Duration> {
        let policy = self.policy?;
        let left = self.left.checked_sub(1)?;
        // The one before gives its place back first: a request is one retry at a time.
        drop(self.permit.take());
        self.permit = Some(permit()?);
        self.left = left;
        // Full jitter: anything from nothing to the exponential bound.
        let bound = policy.base_interval.saturating_mul(1 << self.done.min(16)).min(policy.max_interval);
        self.done += 1;
        Some(bound.mul_f64(fastrand::f64()))
    }
}

/// gRPC's status stands in the head when there is no body.
fn covers_grpc(policy: &RetryPolicy, head: &ResponseHead) -> bool {
    let on = policy.on;
    let any = on.grpc_cancelled
        || on.grpc_deadline_exceeded
        || on.grpc_internal
        || on.grpc_resource_exhausted
        || on.grpc_unavailable;
    any && match head.fields.get(b"grpc-status") {
        Some(b"1") => on.grpc_cancelled,
        Some(b"4") => on.grpc_deadline_exceeded,
        Some(b"8") => on.grpc_resource_exhausted,
        Some(b"13") => on.grpc_internal,
        Some(b"14") => on.grpc_unavailable,
        _ => false,
    }
}
