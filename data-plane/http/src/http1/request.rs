//! Request heads off the wire (RFC 9112, 3 and 5): where implementations disagree, the strict reading.

use std::mem::MaybeUninit;

use super::fields::{
    CodingError, ConnectionTokens, STACK_FIELDS, content_length, has_bare_lf, is_chunked, is_hop_field, list,
};
use super::target::{self, Target};
use crate::fields::CopiedHead;
use crate::server::ServerOptions;
use crate::{BodyKind, Method, RequestHead, Version};

/// A longer target is answered by 414.
const MAX_TARGET_BYTES: usize = 8 * 1024;

/// A request that is answered by the codec; the connection ends with the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) detail: &'static str,
}

const fn refuse<T>(status: u16, detail: &'static str) -> Result<T, Refusal> {
    Err(Refusal { status, detail })
}

/// What a head says beside itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parsed {
    /// Bytes that the head took.
    pub(crate) len: usize,
    pub(crate) body: BodyKind,
    pub(crate) keep_alive: bool,
    /// The client waits for a 100 before it sends the body.
    pub(crate) expects_continue: bool,
}

/// Parses a head at the front of `data`; `None` if it is not all there yet.
///
/// # Errors
/// The request is refused.
pub(crate) fn parse(data: &[u8], options: &ServerOptions, head: &mut RequestHead) -> Result<Option<Parsed>, Refusal> {
    let mut stack = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; STACK_FIELDS];
    let mut heap = Vec::new();
    let slots = if options.max_fields <= STACK_FIELDS {
        stack.get_mut(..options.max_fields).unwrap_or_default()
    } else {
        heap.resize_with(options.max_fields, MaybeUninit::uninit);
        &mut heap[..]
    };
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(data, slots) {
        Ok(httparse::Status::Complete(len)) if len <= options.max_head_bytes => {
            if has_bare_lf(data.get(..len).unwrap_or_default()) {
                return refuse(400, "a header line ends in a bare LF");
            }
            let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
                return refuse(400, "malformed request line");
            };
            if target.len() > MAX_TARGET_BYTES {
                return refuse(414, "the request target exceeds 8 KiB");
            }
            head.clear();
            head.version = if version == 0 { Version::Http10 } else { Version::Http11 };
            head.scheme = options.scheme;
            read_line(method, target, options, head)?;
            let bytes = data.get(..len).unwrap_or_default();
            read_fields(bytes, request.headers, options, head).map(|parsed| Some(Parsed { len, ..parsed }))
        }
        Ok(httparse::Status::Partial) if data.len() < options.max_head_bytes => {
            let line = memchr::memchr(b'\n', data).unwrap_or(data.len());
            if line > MAX_TARGET_BYTES + 64 { refuse(414, "the request target exceeds 8 KiB") } else { Ok(None) }
        }
        Ok(_) => match memchr::memchr(b'\n', data) {
            Some(line) if line <= MAX_TARGET_BYTES + 64 => refuse(431, "the request head is too large"),
            _ => refuse(414, "the request target exceeds 8 KiB"),
        },
        Err(httparse::Error::TooManyHeaders) => refuse(431, "too many header fields"),
        Err(httparse::Error::Version) => unknown_version(data),
        Err(httparse::Error::HeaderName) => refuse(400, "malformed header name"),
        Err(httparse::Error::HeaderValue) => refuse(400, "malformed header value"),
        Err(_) => refuse(400, "malformed request line"),
    }
}

/// A version of the right form that is not ours is 505, anything else no HTTP at all.
fn unknown_version(data: &[u8]) -> Result<Option<Parsed>, Refusal> {
    let line = data.split(|&byte| byte == b'\r' || byte == b'\n').next().unwrap_or_default();
    if line == b"PRI * HTTP/2.0" {
        return refuse(400, "HTTP/2 on an HTTP/1 listener");
    }
    let mut words = line.split(|&byte| byte == b' ').skip(2);
    match (words.next(), words.next()) {
        (Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]), None)
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            refuse(505, "unsupported HTTP version")
        }
        _ => refuse(400, "malformed HTTP version"),
    }
}

fn read_line(method: &str, target: &str, options: &ServerOptions, head: &mut RequestHead) -> Result<(), Refusal> {
    head.method = match Method::parse(method, options.custom_methods) {
        Some(method) => method,
        None => return refuse(400, "unknown method"),
    };
    match target::parse(target, head.method == Method::Connect) {
        Some(Target::Origin(path)) => head.path.push_str(path),
        Some(Target::Asterisk) if head.method == Method::Options => head.path.push('*'),
        Some(Target::Absolute(authority, path)) => {
            if !path.starts_with('/') {
                head.path.push('/');
            }
            head.path.push_str(path);
            head.authority.push_str(authority);
        }
        Some(Target::Authority(authority)) => head.authority.push_str(authority),
        Some(Target::Asterisk) | None => return refuse(400, "malformed request target"),
    }
    Ok(())
}

/// Fields that decide over the message rather than stand in it.
#[derive(Default)]
struct Special<'a> {
    connection: ConnectionTokens<'a>,
    host: Option<&'a [u8]>,
    length: Option<&'a [u8]>,
    coding: Option<&'a [u8]>,
    upgrade: Option<&'a [u8]>,
    expect: Option<&'a [u8]>,
}

fn read_fields(
    bytes: &[u8],
    parsed: &[httparse::Header<'_>],
    options: &ServerOptions,
    head: &mut RequestHead,
) -> Result<Parsed, Refusal> {
    let mut special = Special::default();
    let mut copied = head.fields.copy_head(bytes);
    for field in parsed {
        read_field(field, &mut special, &mut copied)?;
    }
    special.connection.apply(&mut head.fields);
    let body = body_kind(&special, head.version)?;
    if head.version == Version::Http10 && !options.accept_http_10 {
        return refuse(426, "HTTP/1.0 is not accepted");
    }
    read_host(&special, head)?;
    read_upgrade(&special, head);
    let expects_continue = match special.expect {
        None => false,
        Some(value) if value.eq_ignore_ascii_case(b"100-continue") => head.version == Version::Http11,
        Some(_) => return refuse(417, "unknown expectation"),
    };
    let connection = &special.connection;
    let keep_alive = !connection.close && (head.version == Version::Http11 || connection.keep_alive);
    Ok(Parsed { len: 0, body, keep_alive, expects_continue })
}

fn read_field<'a>(
    field: &httparse::Header<'a>,
    special: &mut Special<'a>,
    copied: &mut CopiedHead<'_>,
) -> Result<(), Refusal> {
    let once = |slot: &mut Option<&'a [u8]>, detail| match slot.replace(field.value) {
        None => Ok(()),
        Some(_) => refuse(400, detail),
    };
    let candidate = copied.candidate(field.name.as_bytes(), field.value);
    let name = copied.name(candidate);
    // By length first: most names are told apart by it.
    match name.len() {
        4 if name == b"host" => return once(&mut special.host, "more than one host"),
        2 if name == b"te" => {
            // RFC 9110, 10.1.4: all that crosses a proxy is whether trailers are wanted.
            if list(field.value).any(|token| token.eq_ignore_ascii_case(b"trailers")) {
                copied.fields.push_valid(b"te", b"trailers");
            }
            return Ok(());
        }
        6 if name == b"expect" => once(&mut special.expect, "more than one expectation")?,
        7 if name == b"upgrade" => {
            special.upgrade.get_or_insert(field.value);
            return Ok(());
        }
        10 if name == b"connection" => {
            return special.connection.read(field.value).or_else(|detail| refuse(400, detail));
        }
        10 if name == b"keep-alive" => return Ok(()),
        14 if name == b"content-length" => once(&mut special.length, "more than one content-length")?,
        14 if name == b"http2-settings" => return Ok(()),
        16 if name == b"proxy-connection" => {
            // Older clients mean their connection by it, and Envoy takes them at their word.
            special.connection.close |= list(field.value).any(|token| token.eq_ignore_ascii_case(b"close"));
            return Ok(());
        }
        17 if name == b"transfer-encoding" => return once(&mut special.coding, "more than one transfer-encoding"),
        length => debug_assert!(!is_hop_field(name) || length == 14, "a hop-by-hop field is kept"),
    }
    copied.keep(candidate);
    Ok(())
}

/// RFC 9112, 6.3, without the cases in which two readings are possible.
fn body_kind(special: &Special<'_>, version: Version) -> Result<BodyKind, Refusal> {
    match (special.coding, special.length) {
        (Some(_), Some(_)) => refuse(400, "both content-length and transfer-encoding"),
        (Some(_), None) if version == Version::Http10 => refuse(400, "transfer-encoding in HTTP/1.0"),
        (Some(coding), None) => match is_chunked(coding) {
            Ok(()) => Ok(BodyKind::Stream),
            Err(CodingError::Invalid) => refuse(400, "malformed transfer-encoding"),
            Err(CodingError::Unknown) => refuse(501, "unknown transfer-encoding"),
        },
        (None, Some(length)) => match content_length(length) {
            Some(length) => Ok(BodyKind::Length(length)),
            None => refuse(400, "malformed content-length"),
        },
        (None, None) => Ok(BodyKind::Empty),
    }
}

fn read_host(special: &Special<'_>, head: &mut RequestHead) -> Result<(), Refusal> {
    let Some(host) = special.host else {
        return if head.version == Version::Http11 { refuse(400, "no host") } else { Ok(()) };
    };
    // An empty Host is for targets without an authority, which no route serves.
    match std::str::from_utf8(host) {
        Ok(text) if target::is_authority(host, false) => {
            // RFC 9112, 3.2.2: the authority of an absolute target wins.
            if head.authority.is_empty() {
                head.authority.push_str(text);
            }
            Ok(())
        }
        _ => refuse(400, "malformed host"),
    }
}

/// An upgrade that was asked for properly: HTTP/1.1, and named by `connection` (RFC 9110, 7.8). Upgrades to HTTP/2 are
/// ignored, as any upgrade may be.
fn read_upgrade(special: &Special<'_>, head: &mut RequestHead) {
    if let Some(value) = special.upgrade
        && special.connection.upgrade
        && head.version == Version::Http11
        && !list(value).any(|token| token.eq_ignore_ascii_case(b"h2c") || token.eq_ignore_ascii_case(b"h2"))
    {
        head.upgrade = std::str::from_utf8(value).ok().filter(|token| !token.is_empty()).map(Into::into);
    }
}

#[cfg(test)]
mod tests;
