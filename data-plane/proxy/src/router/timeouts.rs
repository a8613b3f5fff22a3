//! How long a request may take.

use std::time::Duration;

use culvert_http::FieldName;

use super::Stream;
use super::retry::Retries;
use crate::routes::{Forward, is_grpc};

const EXPECTED_TIMEOUT: FieldName = FieldName::of(b"x-envoy-expected-rq-timeout-ms: ");

impl Stream<'_> {
    /// The route's timeout, or the one that a gRPC client asks for where the route lets it.
    pub(super) fn timeout(&self, action: &Forward) -> Option<Duration> {
        let route = Some(action.config.timeout).filter(|timeout| !timeout.is_zero());
        let Some(max) = action.config.grpc_timeout_max.filter(|_| is_grpc(self.request)) else { return route };
        let asked = self.request.fields.get(b"grpc-timeout").and_then(grpc_timeout);
        match asked {
            Some(asked) if max.is_zero() => Some(asked),
            Some(asked) => Some(asked.min(max)),
            None => Some(max).filter(|max| !max.is_zero()),
        }
    }

    pub(super) fn idle_timeout(&self, action: &Forward) -> Option<Duration> {
        let of_listener = self.connection.http.manager.config.stream_idle_timeout;
        action.config.idle_timeout.or(of_listener).filter(|idle| !idle.is_zero())
    }

    /// Tells upstream how long we wait.
    pub(super) fn expected_timeout(&mut self, timeout: Option<Duration>, retries: &Retries<'_>) {
        let manager = &self.connection.http.manager;
        let expected = match (timeout, retries.attempt_limit()) {
            (Some(timeout), Some(attempt)) => Some(timeout.min(attempt)),
            (timeout, attempt) => attempt.or(timeout),
        };
        let Some(expected) = expected.filter(|_| !manager.suppresses_envoy_headers()) else { return };
        let mut digits = itoa::Buffer::new();
        self.request.fields.set_known(EXPECTED_TIMEOUT, digits.format(expected.as_millis()).as_bytes());
    }
}

/// gRPC over HTTP/2, "Timeout": at most eight digits and a unit.
pub(super) fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}
