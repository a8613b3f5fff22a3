//! Headers that are added and removed, at the four places where the API has them.

use std::sync::Arc;

use culvert_api::envoy::config::core::v3 as core;
use culvert_api::envoy::config::route::v3 as api;

use super::{AppendAction, HeaderAdd, HeaderMutations};
use crate::access_log::Format;
use crate::report::{Report, clip};
use crate::scalar;
use crate::source;

/// The four fields that every place has.
struct Fields<'m> {
    request_add: &'m [core::HeaderValueOption],
    request_remove: &'m [String],
    response_add: &'m [core::HeaderValueOption],
    response_remove: &'m [String],
}

pub(super) fn of_routes(report: &mut Report, message: &api::RouteConfiguration) -> HeaderMutations {
    let fields = Fields {
        request_add: &message.request_headers_to_add,
        request_remove: &message.request_headers_to_remove,
        response_add: &message.response_headers_to_add,
        response_remove: &message.response_headers_to_remove,
    };
    mutations(report, &fields)
}

pub(super) fn of_virtual_host(report: &mut Report, message: &api::VirtualHost) -> HeaderMutations {
    let fields = Fields {
        request_add: &message.request_headers_to_add,
        request_remove: &message.request_headers_to_remove,
        response_add: &message.response_headers_to_add,
        response_remove: &message.response_headers_to_remove,
    };
    mutations(report, &fields)
}

pub(super) fn of_route(report: &mut Report, message: &api::Route) -> HeaderMutations {
    let fields = Fields {
        request_add: &message.request_headers_to_add,
        request_remove: &message.request_headers_to_remove,
        response_add: &message.response_headers_to_add,
        response_remove: &message.response_headers_to_remove,
    };
    mutations(report, &fields)
}

pub(super) fn of_cluster(report: &mut Report, message: &api::weighted_cluster::ClusterWeight) -> HeaderMutations {
    let fields = Fields {
        request_add: &message.request_headers_to_add,
        request_remove: &message.request_headers_to_remove,
        response_add: &message.response_headers_to_add,
        response_remove: &message.response_headers_to_remove,
    };
    mutations(report, &fields)
}

fn mutations(report: &mut Report, fields: &Fields<'_>) -> HeaderMutations {
    let request_add = added(report, "request_headers_to_add", fields.request_add);
    let response_add = added(report, "response_headers_to_add", fields.response_add);
    HeaderMutations {
        request_add,
        request_remove: report
            .items("request_headers_to_remove", fields.request_remove, |report, name| removed(report, name)),
        response_add,
        response_remove: report
            .items("response_headers_to_remove", fields.response_remove, |report, name| removed(report, name)),
    }
}

/// Parses one list of headers that are added.
pub(crate) fn added(report: &mut Report, field: &'static str, headers: &[core::HeaderValueOption]) -> Vec<HeaderAdd> {
    if headers.len() > MAX_HEADERS {
        report.error_at(field, format!("has {} headers, more than {MAX_HEADERS}", headers.len()));
        return Vec::new();
    }
    report.items(field, headers, header)
}

#[expect(deprecated, reason = "configurations still use append")]
fn header(report: &mut Report, message: &core::HeaderValueOption) -> Option<HeaderAdd> {
    use core::header_value_option::HeaderAppendAction as Kind;
    let Some(header) = &message.header else {
        report.error_at("header", "is missing");
        return None;
    };
    let (name, value) = report.field("header", |report| {
        let name = changeable(report, "key", &header.key);
        let value = source::header_value(report, header);
        let field = if header.raw_value.is_empty() { "value" } else { "raw_value" };
        (name, value.and_then(|value| Format::report(report, field, &value, true)))
    });
    let append = match scalar::enumeration(report, "append_action", message.append_action)? {
        Kind::AppendIfExistsOrAdd => match message.append {
            Some(false) => AppendAction::OverwriteIfExistsOrAdd,
            Some(true) | None => AppendAction::AppendIfExistsOrAdd,
        },
        _ if message.append.is_some() => {
            report.error_at("append", "stands beside append_action, which takes its place; remove it");
            return None;
        }
        Kind::AddIfAbsent => AppendAction::AddIfAbsent,
        Kind::OverwriteIfExistsOrAdd => AppendAction::OverwriteIfExistsOrAdd,
        Kind::OverwriteIfExists => AppendAction::OverwriteIfExists,
    };
    Some(HeaderAdd { name: name?, value: value?, append, keep_empty: message.keep_empty_value })
}

fn removed(report: &mut Report, name: &str) -> Option<Arc<str>> {
    if !is_changeable(name) {
        report.error(format!("{:?} is not a header that can be removed", clip(name)));
        return None;
    }
    Some(name.to_ascii_lowercase().into())
}

fn changeable(report: &mut Report, field: &'static str, name: &str) -> Option<Arc<str>> {
    if !is_changeable(name) {
        let reason = "is not a header that can be set; the host is rewritten by host_rewrite_literal";
        report.error_at(field, format!("{:?} {reason}", clip(name)));
        return None;
    }
    scalar::header_name(report, field, name)
}

/// Envoy: pseudo-headers and the host are not changed here. Nor is what frames messages.
fn is_changeable(name: &str) -> bool {
    let framing = ["host", "content-length", "transfer-encoding", "connection", "upgrade"];
    !name.is_empty()
        && name.bytes().all(scalar::is_token)
        && !framing.iter().any(|framing| name.eq_ignore_ascii_case(framing))
}

/// validate.rules of the API.
const MAX_HEADERS: usize = 1000;
