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
        fresh_host_picks: fresh_host_picks(report, message),
    })
}

/// `retry_host_predicate`, as far as there is a place for it; then `host_selection_retry_max_attempts`.
fn fresh_host_picks(report: &mut Report, message: &api::RetryPolicy) -> Option<u32> {
    use api::retry_policy::retry_host_predicate::ConfigType;
    let honoured = report.items("retry_host_predicate", &message.retry_host_predicate, |report, predicate| {
        let kind = predicate.config_type.as_ref().map(|ConfigType::TypedConfig(config)| &*config.type_url);
        let kind = kind.and_then(|url| url.rsplit('/').next()).unwrap_or(&predicate.name);
        if kind != PREVIOUS_HOSTS {
            report.warn(format!("{:?} is not honoured; {PREVIOUS_HOSTS} is", clip(kind)));
        }
        (kind == PREVIOUS_HOSTS).then_some(())
    });
    let previous_hosts = !honoured.is_empty();
    if !previous_hosts && message.host_selection_retry_max_attempts != 0 {
        report.warn_at("host_selection_retry_max_attempts", "is of no use without retry_host_predicate");
    }
    // Envoy: once where it is not set. More picks than that could find nothing new.
    let picks = u32::try_from(message.host_selection_retry_max_attempts.clamp(0, MAX_PICKS)).unwrap_or(0);
    previous_hosts.then_some(picks.max(1))
}

const PREVIOUS_HOSTS: &str = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
const MAX_PICKS: i64 = 1000;

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
