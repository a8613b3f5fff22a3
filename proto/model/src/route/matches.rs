//! `RouteMatch` out of its message.

use std::sync::Arc;

use culvert_api::envoy::config::route::v3 as api;

use super::{PathMatch, RouteMatch};
use crate::matcher;
use crate::report::{Report, clip};
use crate::runtime;
use crate::scalar;

/// Parses the `RouteMatch` at hand.
pub(super) fn route_match(report: &mut Report, message: &api::RouteMatch) -> Option<RouteMatch> {
    use api::route_match::PathSpecifier;
    let path = match &message.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => Some(PathMatch::Prefix(path(report, "prefix", prefix)?)),
        Some(PathSpecifier::Path(exact)) => Some(PathMatch::Exact(path(report, "path", exact)?)),
        Some(PathSpecifier::SafeRegex(regex)) => {
            report.field("safe_regex", |report| matcher::regex(report, regex)).map(PathMatch::Regex)
        }
        Some(PathSpecifier::ConnectMatcher(_)) => Some(PathMatch::Connect),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            if prefix.is_empty() || prefix.ends_with('/') {
                let reason = "is empty or ends with a slash; the slash behind it is part of the match already";
                report.error_at("path_separated_prefix", format!("{:?} {reason}", clip(prefix)));
                return None;
            }
            Some(PathMatch::PathSeparatedPrefix(path(report, "path_separated_prefix", prefix)?))
        }
        // The coverage tables have refused it.
        Some(PathSpecifier::PathMatchPolicy(_)) => None,
        None => {
            report.error("matches no path; set prefix, path, path_separated_prefix or safe_regex");
            None
        }
    };
    let fraction = message.runtime_fraction.as_ref();
    let runtime_fraction =
        fraction.map(|fraction| report.field("runtime_fraction", |report| runtime::share(report, fraction)));
    Some(RouteMatch {
        path: path?,
        ignore_case: !message.case_sensitive.unwrap_or(true),
        headers: report.items("headers", &message.headers, matcher::header),
        query: report.items("query_parameters", &message.query_parameters, matcher::query),
        grpc: message.grpc.is_some(),
        runtime_fraction,
        tls_context: message.tls_context.as_ref().and_then(|tls| tls.presented),
    })
}

/// Paths are matched without their query.
fn path(report: &mut Report, field: &'static str, path: &str) -> Option<Arc<str>> {
    if path.bytes().any(|byte| matches!(byte, b'?' | b'#')) {
        let reason = "holds `?` or `#`, but a path ends before its query; use query_parameters";
        report.error_at(field, format!("{:?} {reason}", clip(path)));
        return None;
    }
    scalar::header_value(report, field, path)
}
