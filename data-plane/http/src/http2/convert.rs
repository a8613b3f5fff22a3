//! Heads between the `http` crate's types and ours. Values share one allocation per head.

use bytes::{Bytes, BytesMut};
use h2::ext::Protocol;
use http::header::{HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Request, Response, StatusCode, Uri};

use crate::fields::is_token;
use crate::http1::fields::{content_length, is_forbidden_trailer, is_hop_field};
use crate::http1::target::{is_authority, is_path};
use crate::server::ServerOptions;
use crate::{BodyKind, Fields, Method, RequestHead, ResponseHead, StreamError, Version};

/// Why a request goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The stream is reset: the request is malformed (RFC 9113, 8.1.1).
    Malformed(&'static str),
    Answer(u16, &'static str),
}

/// A request off the wire.
pub(super) fn read_request<B>(
    request: &Request<B>,
    options: &ServerOptions,
    head: &mut RequestHead,
) -> Result<(), Refusal> {
    head.clear();
    head.version = Version::Http2;
    head.scheme = options.scheme;
    head.method = match Method::parse(request.method().as_str(), options.custom_methods) {
        Some(method) => method,
        None => return Err(Refusal::Answer(400, "unknown method")),
    };
    if request.headers().len() > options.max_fields {
        return Err(Refusal::Answer(431, "too many header fields"));
    }
    if let Some(protocol) = request.extensions().get::<Protocol>() {
        // RFC 8441, 4: the name of an upgrade. Over HTTP/1 anything else could not be asked for, and would be a plain GET.
        if !is_upgrade(protocol.as_str()) {
            return Err(Refusal::Malformed("malformed :protocol"));
        }
        head.upgrade = Some(protocol.as_str().into());
    }
    read_target(request, head)?;
    read_fields(request.headers(), head)
}

fn read_target<B>(request: &Request<B>, head: &mut RequestHead) -> Result<(), Refusal> {
    let mut hosts = request.headers().get_all(http::header::HOST).iter().map(HeaderValue::as_bytes);
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::Malformed("more than one host"));
    }
    let authority = request.uri().authority().map(Authority::as_str);
    let authority = match (authority, host) {
        (Some(authority), Some(host)) if !authority.as_bytes().eq_ignore_ascii_case(host) => {
            return Err(Refusal::Malformed("host differs from :authority"));
        }
        (Some(authority), _) => authority,
        (None, Some(host)) => std::str::from_utf8(host).unwrap_or_default(),
        (None, None) => return Err(Refusal::Answer(400, "no :authority")),
    };
    let plain_connect = head.method == Method::Connect && head.upgrade.is_none();
    if !is_authority(authority.as_bytes(), plain_connect) {
        return Err(Refusal::Answer(400, "malformed :authority"));
    }
    head.authority.push_str(authority);
    if plain_connect {
        return Ok(());
    }
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    let valid = path.starts_with('/') || (path == "*" && head.method == Method::Options);
    if !valid || !is_path(path.as_bytes()) {
        return Err(Refusal::Answer(400, "malformed :path"));
    }
    if path.len() > 8 * 1024 {
        return Err(Refusal::Answer(414, "the request target exceeds 8 KiB"));
    }
    head.path.push_str(path);
    Ok(())
}

/// RFC 9110, 7.8: `protocol-name ["/" protocol-version]`.
fn is_upgrade(protocol: &str) -> bool {
    let (name, version) = protocol.split_once('/').unwrap_or((protocol, "x"));
    [name, version].iter().all(|token| !token.is_empty() && token.bytes().all(is_token))
}

fn read_fields(map: &HeaderMap, head: &mut RequestHead) -> Result<(), Refusal> {
    let mut crumbs = 0;
    for (name, value) in map {
        // RFC 9113, 8.2.1. Whoever reads it off HTTP/1 sees it without: a matcher here would have judged another value.
        if is_padded(value.as_bytes()) {
            return Err(Refusal::Malformed("white space around a header value"));
        }
        match name.as_str() {
            "host" => continue,
            "cookie" => {
                crumbs += 1;
                if crumbs > 1 {
                    continue;
                }
            }
            "expect" if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") => {
                return Err(Refusal::Answer(417, "unknown expectation"));
            }
            _ => {}
        }
        head.fields.push_valid(name.as_str().as_bytes(), value.as_bytes());
    }
    if crumbs > 1 {
        // RFC 9113, 8.2.3: crumbs become one field before they leave HTTP/2.
        let values: Vec<&[u8]> = map.get_all(http::header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        head.fields.remove(b"cookie");
        head.fields.push_valid(b"cookie", &values.join(&b"; "[..]));
    }
    Ok(())
}

fn is_padded(value: &[u8]) -> bool {
    value.trim_ascii().len() != value.len()
}

/// How a body ends, by its head's fields.
pub(super) fn body_kind(fields: &Fields, ended: bool) -> BodyKind {
    match fields.get(b"content-length").and_then(content_length) {
        _ if ended => BodyKind::Empty,
        Some(length) => BodyKind::Length(length),
        None => BodyKind::Stream,
    }
}

/// A response off the wire.
pub(super) fn read_response(status: StatusCode, map: &HeaderMap, head: &mut ResponseHead) {
    head.clear();
    head.version = Version::Http2;
    head.status = status.as_u16();
    for (name, value) in map {
        head.fields.push_valid(name.as_str().as_bytes(), value.as_bytes().trim_ascii());
    }
}

/// Fields of ours, with more behind them, in one allocation.
struct Arena(Bytes);

impl Arena {
    fn of(first: &[u8], second: &[u8], fields: &Fields) -> Self {
        let mut bytes = BytesMut::with_capacity(fields.raw().len() + first.len() + second.len());
        bytes.extend_from_slice(fields.raw());
        bytes.extend_from_slice(first);
        bytes.extend_from_slice(second);
        Self(bytes.freeze())
    }

    fn headers(&self, fields: &Fields, map: &mut HeaderMap, keep: impl Fn(&[u8]) -> bool) {
        map.reserve(fields.len() + 1);
        for (name, value) in fields.spans() {
            if !keep(&self.0[name.clone()]) {
                continue;
            }
            match (HeaderName::from_bytes(&self.0[name]), HeaderValue::from_maybe_shared(self.0.slice(value))) {
                (Ok(name), Ok(value)) => {
                    if map.try_append(name, value).is_err() {
                        tracing::warn!("more header fields than HTTP/2 can carry were left out");
                        return;
                    }
                }
                _ => tracing::warn!("a header field that HTTP/2 cannot carry was left out"),
            }
        }
    }
}

fn set_length(map: &mut HeaderMap, length: u64) {
    map.insert(http::header::CONTENT_LENGTH, HeaderValue::from(length));
}

/// A request for the wire.
pub(super) fn write_request(head: &RequestHead, body: BodyKind) -> Result<Request<()>, StreamError> {
    const UNSENDABLE: StreamError = StreamError::misuse("a request head that HTTP/2 cannot carry");
    let plain_connect = head.method == Method::Connect && head.upgrade.is_none();
    let path = if head.path.is_empty() { "/" } else { &head.path };
    let arena = Arena::of(head.authority.as_bytes(), path.as_bytes(), &head.fields);
    let authority_at = head.fields.raw().len();
    let path_at = authority_at + head.authority.len();
    let mut parts = http::uri::Parts::default();
    if !head.authority.is_empty() {
        let authority = Authority::from_maybe_shared(arena.0.slice(authority_at..path_at));
        parts.authority = Some(authority.map_err(|_| UNSENDABLE)?);
    }
    if !plain_connect {
        if !is_path(path.as_bytes()) {
            return Err(UNSENDABLE);
        }
        let path = PathAndQuery::from_maybe_shared(arena.0.slice(path_at..));
        parts.path_and_query = Some(path.map_err(|_| UNSENDABLE)?);
        parts.scheme = Some(if head.scheme == "https" { Scheme::HTTPS } else { Scheme::HTTP });
    }
    let mut request = Request::new(());
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| UNSENDABLE)?;
    *request.method_mut() = if let Some(token) = &head.upgrade {
        // RFC 8441, 5: what HTTP/1 asks for by an upgrade.
        request.extensions_mut().insert(Protocol::from(&**token));
        http::Method::CONNECT
    } else {
        http::Method::from_bytes(head.method.as_str().as_bytes()).map_err(|_| UNSENDABLE)?
    };
    arena.headers(&head.fields, request.headers_mut(), |name| !is_hop_field(name));
    match body {
        BodyKind::Length(length) => set_length(request.headers_mut(), length),
        BodyKind::Empty if matches!(head.method, Method::Post | Method::Put | Method::Patch) => {
            set_length(request.headers_mut(), 0);
        }
        _ => {}
    }
    Ok(request)
}

/// A response for the wire; `asked_head`: it answers a HEAD.
pub(super) fn write_response(
    head: &ResponseHead,
    body: BodyKind,
    asked_head: bool,
) -> Result<Response<()>, StreamError> {
    // RFC 8441, 5: what HTTP/1 answers by 101.
    let status = if head.status == 101 && body == BodyKind::Tunnel { 200 } else { head.status };
    let status = StatusCode::from_u16(status)
        .ok()
        .filter(|&status| status != StatusCode::SWITCHING_PROTOCOLS)
        .ok_or(StreamError::misuse("a status that cannot be sent"))?;
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = http::Version::HTTP_2;
    let arena = Arena::of(b"", b"", &head.fields);
    let bodyless = asked_head || head.status == 304;
    arena.headers(&head.fields, response.headers_mut(), |name| {
        !is_hop_field(name) || (bodyless && body == BodyKind::Empty && name == b"content-length")
    });
    if let BodyKind::Length(length) = body
        && head.status != 204
    {
        set_length(response.headers_mut(), length);
    }
    Ok(response)
}

pub(super) fn trailers_to_fields(map: &HeaderMap) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in map {
        let name = name.as_str().as_bytes();
        if !is_forbidden_trailer(name) {
            fields.push_valid(name, value.as_bytes().trim_ascii());
        }
    }
    fields
}

pub(super) fn fields_to_trailers(fields: &Fields) -> HeaderMap {
    let mut map = HeaderMap::new();
    Arena::of(b"", b"", fields).headers(fields, &mut map, |name| !is_forbidden_trailer(name));
    map
}
