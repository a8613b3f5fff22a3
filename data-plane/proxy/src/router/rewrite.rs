//! What a route changes in heads: fields, path, host; and where a redirect points.

use std::sync::Arc;

use culvert_http::{Fields, RequestHead};
use culvert_model::access_log::Format;
use culvert_model::route::{AppendAction, HeaderAdd, HeaderMutations, HostRewrite, PathMatch, RedirectPath};
use smallvec::SmallVec;

use crate::format::{Absent, write_format};
use crate::forwarding::append;
use crate::record::{Record, Scene};
use crate::routes::{CompiledPathRewrite, CompiledRedirect, Forward, Matched, split_path, without_port};

/// The mutations of a match in the order in which they are applied, the weighted cluster's first (or last).
pub(super) fn levels<'a>(
    matched: &Matched<'a>,
    weighted: Option<&'a Arc<HeaderMutations>>,
    most_specific_wins: bool,
) -> impl Iterator<Item = &'a Arc<HeaderMutations>> {
    let (first, last) = if most_specific_wins { (None, weighted) } else { (weighted, None) };
    first.into_iter().chain(&matched.compiled.headers).chain(last)
}

/// Applies one level's request mutations: removals first, as Envoy does.
pub(crate) fn mutate_request(head: &mut RequestHead, mutations: &HeaderMutations, record: &Record<'_>, hostname: &str) {
    remove(&mut head.fields, &mutations.request_remove);
    for add in &mutations.request_add {
        let value = value(&add.value, |format, out| {
            let scene = Scene { record, request: Some(head), response: None, trailers: None, hostname };
            write_format(format, Absent::Nothing, &scene, out);
        });
        apply(&mut head.fields, add, value.bytes());
    }
}

/// Applies one level's response mutations.
pub(super) fn mutate_response(
    head: &mut culvert_http::ResponseHead,
    mutations: &HeaderMutations,
    record: &Record<'_>,
    request: &RequestHead,
    hostname: &str,
) {
    remove(&mut head.fields, &mutations.response_remove);
    for add in &mutations.response_add {
        let value = value(&add.value, |format, out| {
            let scene = Scene { record, request: Some(request), response: Some(head), trailers: None, hostname };
            write_format(format, Absent::Nothing, &scene, out);
        });
        apply(&mut head.fields, add, value.bytes());
    }
}

/// A field's value: the configuration's text, or what was made for this request.
enum Value<'a> {
    Literal(&'a str),
    Made(Vec<u8>),
}

impl Value<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Literal(text) => text.as_bytes(),
            Self::Made(bytes) => bytes,
        }
    }
}

fn value(format: &Format, make: impl FnOnce(&Format, &mut Vec<u8>)) -> Value<'_> {
    format.literal().map_or_else(
        || {
            let mut made = Vec::with_capacity(64);
            make(format, &mut made);
            Value::Made(made)
        },
        Value::Literal,
    )
}

fn remove(fields: &mut Fields, names: &[Arc<str>]) {
    for name in names {
        fields.remove(name.as_bytes());
    }
}

fn apply(fields: &mut Fields, add: &HeaderAdd, value: &[u8]) {
    if value.is_empty() && !add.keep_empty {
        return;
    }
    let name = add.name.as_bytes();
    // The field is refused, and logged, if the value would smuggle a line.
    match add.append {
        AppendAction::AppendIfExistsOrAdd => fields.push(name, value),
        AppendAction::AddIfAbsent => fields.get(name).is_some() || fields.push(name, value),
        AppendAction::OverwriteIfExistsOrAdd => fields.set(name, value),
        AppendAction::OverwriteIfExists => fields.get(name).is_none() || fields.set(name, value),
    };
}

/// Rewrites host and path of a request that is forwarded. `host_name` is the picked host's, for `auto_host_rewrite`.
pub(super) fn rewrite_request(
    head: &mut RequestHead,
    action: &Forward,
    matched: &Matched<'_>,
    weighted_host: Option<&Arc<str>>,
    suppress_envoy_headers: bool,
) {
    let host = match (weighted_host, &action.config.host_rewrite) {
        (Some(host), _) | (None, Some(HostRewrite::Literal(host))) => Some(host.to_string()),
        (None, Some(HostRewrite::Header(name))) => head
            .fields
            .get(name.as_bytes())
            .and_then(|value| std::str::from_utf8(value).ok())
            .filter(|host| is_authority(host))
            .map(ToOwned::to_owned),
        (None, Some(HostRewrite::PathRegex { .. })) => {
            let path = split_path(&head.path).0;
            action.host_path_regex.as_ref().and_then(|regex| regex.apply(path)).filter(|host| is_authority(host))
        }
        (None, Some(HostRewrite::Auto) | None) => None,
    };
    if let Some(host) = host {
        set_host(head, &host, action.config.append_x_forwarded_host);
    }
    if let Some(rewrite) = &action.path_rewrite
        && let Some(path) = rewritten_path(&head.path, &matched.route.matches.path, rewrite)
    {
        let before = std::mem::replace(&mut head.path, path);
        if !suppress_envoy_headers {
            head.fields.set(b"x-envoy-original-path", before.as_bytes());
        }
    }
}

/// Gives the request another host; keeps the one before in `x-forwarded-host` if that is configured.
pub(super) fn set_host(head: &mut RequestHead, host: &str, append_forwarded: bool) {
    if host.is_empty() || head.authority == host {
        return;
    }
    if append_forwarded {
        append(&mut head.fields, b"x-forwarded-host", head.authority.as_bytes());
    }
    head.authority.clear();
    head.authority.push_str(host);
}

/// Whether a text that a request brought may stand as its host (RFC 3986 §3.2, without user information).
fn is_authority(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]%".contains(&byte))
}

/// The path with its matched part replaced; `None` when the result would be no path.
fn rewritten_path(path: &str, matched: &PathMatch, rewrite: &CompiledPathRewrite) -> Option<String> {
    let (plain, _) = split_path(path);
    let rest = |length: usize| path.get(length..);
    let new = match rewrite {
        CompiledPathRewrite::Prefix(prefix) => {
            let length = match matched {
                PathMatch::Prefix(matched) | PathMatch::PathSeparatedPrefix(matched) => matched.len(),
                PathMatch::Exact(_) | PathMatch::Regex(_) => plain.len(),
                PathMatch::Connect => return None,
            };
            format!("{prefix}{}", rest(length)?)
        }
        CompiledPathRewrite::Regex(substitution) => format!("{}{}", substitution.apply(plain)?, rest(plain.len())?),
    };
    // A prefix that was matched with its slash and is replaced by nothing leaves none.
    let new = if new.starts_with('/') { new } else { format!("/{new}") };
    new.bytes().all(|byte| byte > b' ' && byte != 0x7f).then_some(new)
}

/// `location` of a redirect: Envoy's `newUri`.
pub(super) fn redirect_location(head: &RequestHead, redirect: &CompiledRedirect, matched: &PathMatch) -> String {
    let config = &redirect.config;
    let scheme = config.scheme.as_deref().unwrap_or(head.scheme);
    let authority = match &config.host {
        Some(host) => host,
        None => redirected_host(head, scheme, config.port),
    };
    let port = config.port.map(|port| format!(":{port}"));
    let (path, query) = split_path(&head.path);
    let replaced = match &config.path {
        RedirectPath::Keep | RedirectPath::Full(_) => None,
        RedirectPath::Prefix(prefix) => rewritten_path(path, matched, &CompiledPathRewrite::Prefix(Arc::clone(prefix))),
        RedirectPath::Regex { .. } => redirect.regex.as_ref().and_then(|regex| regex.apply(path)),
    };
    let new_path = match &config.path {
        RedirectPath::Full(full) => full,
        _ => replaced.as_deref().unwrap_or(path),
    };
    let mut location: SmallVec<[&str; 8]> = SmallVec::from_slice(&[scheme, "://", authority]);
    location.extend(port.as_deref());
    location.push(new_path);
    // A query in the new path takes the place of the request's, whatever `strip_query` says.
    if let Some(query) = query.filter(|_| !config.strip_query && !new_path.contains('?')) {
        location.extend(["?", query]);
    }
    location.concat()
}

/// `location` when a virtual host demands TLS.
pub(super) fn https_location(head: &RequestHead) -> String {
    format!("https://{}{}", redirected_host(head, "https", None), head.path)
}

/// The request's host for a redirect: without its port if another is set, or if it was the old scheme's own.
fn redirected_host<'a>(head: &'a RequestHead, scheme: &str, port: Option<u16>) -> &'a str {
    let length = without_port(head.authority.as_bytes()).len();
    let Some((host, own_port)) = head.authority.split_at_checked(length) else { return &head.authority };
    let was_default = (head.scheme == "https" && own_port == ":443") || (head.scheme == "http" && own_port == ":80");
    if port.is_some() || (scheme != head.scheme && was_default) { host } else { &head.authority }
}
