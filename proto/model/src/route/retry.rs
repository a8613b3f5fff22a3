//! `RetryPolicy` out of its message.

use std::time::Duration;

use culvert_api::envoy::config::route::v3 as api;

use super::{RetryOn, RetryPolicy};
use crate::matcher;
use crate::report::{Report, clip};
use crate::scalar;

/// Parses the `RetryPolicy` at hand.
pub(super) fn policy(report: &mut Report, message: &api::RetryPolicy) -> Option<RetryPolicy> {
    let on = retry_on(report, &message.retry_on);
    let mut statuses = Vec::with_capacity(message.retriable_status_codes.len());
    for code in &message.retriable_status_codes {
        match u16::try_from(*code).ok().filter(|code| (100..600).contains(code)) {
            Some(code) => statuses.push(code),
            None => report.error_at("retriable_status_codes", format!("{code} is not a status from 100 to 599")),
        }
    }
    let (base_interval, max_interval) =
        message.retry_back_off.as_ref().map_or((BASE_INTERVAL, BASE_INTERVAL * 10), |back_off| {
            report.field("retry_back_off", |report| intervals(report, back_off))
        });
    let per_try_timeout = scalar::limit(report, "per_try_timeout", message.per_try_timeout.as_ref(), None);
    let per_try_idle_timeout =
        scalar::limit(report, "per_try_idle_timeout", message.per_try_idle_timeout.as_ref(), None);
    Some(RetryPolicy {
        on,
        statuses,
        num_retries: message.num_retries.unwrap_or(1),
        per_try_timeout,
        per_try_idle_timeout,
        base_interval,
        max_interval,
        retriable_headers: report.items("retriable_headers", &message.retriable_headers, matcher::header),
        retriable_request_headers: report.items(
            "retriable_request_headers",
            &message.retriable_request_headers,
            matcher::header,
        ),
    })
}

fn intervals(report: &mut Report, message: &api::retry_policy::RetryBackOff) -> (Duration, Duration) {
    if message.base_interval.is_none() {
        report.error_at("base_interval", "is missing");
    }
    let base = scalar::positive(report, "base_interval", message.base_interval.as_ref(), BASE_INTERVAL);
    // Envoy: ten times the base when it is not set.
    let default = base.saturating_mul(10).min(scalar::MAX_DURATION);
    let max = scalar::positive(report, "max_interval", message.max_interval.as_ref(), default);
    if max < base {
        report.error_at("max_interval", "is less than base_interval");
    }
    (base, max)
}

fn retry_on(report: &mut Report, text: &str) -> RetryOn {
    let mut on = RetryOn::default();
    for condition in text.split(',').map(str::trim).filter(|condition| !condition.is_empty()) {
        let set = match condition {
            "5xx" => &mut on.any_5xx,
            "gateway-error" => &mut on.gateway_error,
            "reset" => &mut on.reset,
            "reset-before-request" => &mut on.reset_before_request,
            "connect-failure" => &mut on.connect_failure,
            "retriable-4xx" => &mut on.retriable_4xx,
            "refused-stream" => &mut on.refused_stream,
            "retriable-status-codes" => &mut on.retriable_status_codes,
            "retriable-headers" => &mut on.retriable_headers,
            "cancelled" => &mut on.grpc_cancelled,
            "deadline-exceeded" => &mut on.grpc_deadline_exceeded,
            "internal" => &mut on.grpc_internal,
            "resource-exhausted" => &mut on.grpc_resource_exhausted,
            "unavailable" => &mut on.grpc_unavailable,
            other => {
                report.warn_at("retry_on", format!("{:?} is not known; nothing is retried for it", clip(other)));
                continue;
            }
        };
        *set = true;
    }
    on
}

/// Envoy's default.
const BASE_INTERVAL: Duration = Duration::from_millis(25);
