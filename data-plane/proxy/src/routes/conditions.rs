//! What a route demands besides its path: headers, query parameters, gRPC, a share of the traffic.

use std::borrow::Cow;

use culvert_http::RequestHead;
use culvert_model::matcher::{HeaderMatcher, HeaderValueMatcher, QueryMatcher, QueryValueMatcher, StringMatcher};
use culvert_model::route::RouteMatch;

use crate::shares::BoundShare;

/// A request as the route table sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) head: &'a RequestHead,
    /// One random number per request, so that fractions and weights are decided once.
    pub(crate) random: u64,
    /// Whether the client presented a certificate.
    pub(crate) client_certificate: bool,
}

impl<'a> Subject<'a> {
    /// The path without its query.
    pub(crate) fn path(&self) -> &'a str {
        split_path(&self.head.path).0
    }

    /// Whether only `connect_matcher` may match: a CONNECT that is not extended.
    pub(crate) fn is_connect(&self) -> bool {
        matches!(self.head.method, culvert_http::Method::Connect) && self.head.upgrade.is_none()
    }
}

/// Path and query; the query begins after the `?`.
pub(crate) fn split_path(path: &str) -> (&str, Option<&str>) {
    match path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path, None),
    }
}

/// Whether everything but the path matches; `share` is the bound `runtime_fraction`.
pub(crate) fn hold(matches: &RouteMatch, share: Option<&BoundShare>, subject: &Subject<'_>) -> bool {
    share.is_none_or(|share| share.has(subject.random))
        && (!matches.grpc || is_grpc(subject.head))
        && matches.tls_context.is_none_or(|presented| presented == subject.client_certificate)
        && matches.headers.iter().all(|matcher| header_matches(matcher, subject.head))
        && matches.query.iter().all(|matcher| query_matches(matcher, &subject.head.path))
}

/// Whether there is anything to check besides the path.
pub(crate) fn any(matches: &RouteMatch) -> bool {
    matches.runtime_fraction.is_some()
        || matches.grpc
        || matches.tls_context.is_some()
        || !matches.headers.is_empty()
        || !matches.query.is_empty()
}

/// `application/grpc`, alone or with a subtype (`application/grpc+proto`).
pub(crate) fn is_grpc(head: &RequestHead) -> bool {
    head.fields.get(b"content-type").is_some_and(|value| {
        value.strip_prefix(b"application/grpc").is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+"))
    })
}

/// Envoy's `HeaderMatcher` on a request.
pub(crate) fn header_matches(matcher: &HeaderMatcher, head: &RequestHead) -> bool {
    let value = match matcher.name.as_bytes() {
        b":path" => Some(Cow::Borrowed(head.path.as_bytes())),
        b":method" => Some(Cow::Borrowed(head.method.as_str().as_bytes())),
        b":authority" | b"host" => Some(Cow::Borrowed(head.authority.as_bytes())),
        b":scheme" => Some(Cow::Borrowed(head.scheme.as_bytes())),
        name => joined(&head.fields, name),
    };
    value_matches(matcher, value.as_deref())
}

/// Envoy's `HeaderMatcher` on plain fields (a response's).
pub(crate) fn field_matches(matcher: &HeaderMatcher, fields: &culvert_http::Fields) -> bool {
    value_matches(matcher, joined(fields, matcher.name.as_bytes()).as_deref())
}

fn value_matches(matcher: &HeaderMatcher, value: Option<&[u8]>) -> bool {
    let value = match (&matcher.value, value) {
        (HeaderValueMatcher::Present(present), value) => {
            let is_there = value.is_some() || matcher.treat_missing_as_empty;
            return (*present == is_there) != matcher.invert;
        }
        (_, Some(value)) => value,
        (_, None) if matcher.treat_missing_as_empty => b"",
        // A header that is not there matches nothing, not even inverted.
        (_, None) => return false,
    };
    let matched = match &matcher.value {
        HeaderValueMatcher::Present(_) => true,
        HeaderValueMatcher::String(string) => string_matches(string, value),
        HeaderValueMatcher::Range { start, end } => std::str::from_utf8(value)
            .ok()
            .and_then(|text| text.parse::<i64>().ok())
            .is_some_and(|number| (*start..*end).contains(&number)),
    };
    matched != matcher.invert
}

fn query_matches(matcher: &QueryMatcher, path: &str) -> bool {
    let value = split_path(path).1.and_then(|query| {
        query.split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name == &*matcher.name).then_some(value)
        })
    });
    match &matcher.value {
        QueryValueMatcher::Present(present) => value.is_some() == *present,
        QueryValueMatcher::String(string) => value.is_some_and(|value| string_matches(string, value.as_bytes())),
    }
}

/// `StringMatcher`.
pub(crate) fn string_matches(matcher: &StringMatcher, subject: &[u8]) -> bool {
    let fold = |ignore_case: bool, a: &[u8], b: &[u8]| if ignore_case { a.eq_ignore_ascii_case(b) } else { a == b };
    match matcher {
        StringMatcher::Exact { value, ignore_case } => fold(*ignore_case, subject, value.as_bytes()),
        StringMatcher::Prefix { value, ignore_case } => {
            subject.get(..value.len()).is_some_and(|start| fold(*ignore_case, start, value.as_bytes()))
        }
        StringMatcher::Suffix { value, ignore_case } => subject
            .len()
            .checked_sub(value.len())
            .and_then(|start| subject.get(start..))
            .is_some_and(|end| fold(*ignore_case, end, value.as_bytes())),
        StringMatcher::Contains { value, ignore_case: false } => {
            memchr::memmem::find(subject, value.as_bytes()).is_some()
        }
        StringMatcher::Contains { value, ignore_case: true } => {
            value.is_empty() || subject.windows(value.len()).any(|part| part.eq_ignore_ascii_case(value.as_bytes()))
        }
        StringMatcher::Regex(regex) => regex.whole.is_match(subject),
    }
}

/// All values of a field, joined by commas when there are several (Envoy matches them as one).
fn joined<'a>(fields: &'a culvert_http::Fields, name: &[u8]) -> Option<Cow<'a, [u8]>> {
    let mut values = fields.iter().filter(|(candidate, _)| *candidate == name).map(|(_, value)| value);
    let first = values.next()?;
    let mut all = Cow::Borrowed(first);
    for value in values {
        let all = all.to_mut();
        all.push(b',');
        all.extend_from_slice(value);
    }
    Some(all)
}
