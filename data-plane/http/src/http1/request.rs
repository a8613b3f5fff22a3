//! Request heads off the wire (RFC 9112, 3 and 5): where implementations disagree, the strict reading.

use memchr::{memchr, memrchr};

use super::fields::{
    CodingError, ConnectionTokens, content_length, end_of_head, first_line, is_chunked, is_hop_field, lines_begin_well,
    list,
};
use super::target::{self, Target};
use crate::fields::{Line, Malformed, Section, is_token};
use crate::server::ServerOptions;
use crate::{BodyKind, Method, RequestHead, Version};

/// A longer target is answered by 414.
const MAX_TARGET_BYTES: usize = 8 * 1024;
/// So is a line that is longer, without looking at it: method and version have their place beside the target.
const MAX_LINE_BYTES: usize = MAX_TARGET_BYTES + 64;

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

/// Parses a head at the front of `data`, which does not end before `from`; `None` if it is not all there yet.
///
/// # Errors
/// The request is refused.
pub(crate) fn parse(
    data: &[u8],
    from: usize,
    options: &ServerOptions,
    head: &mut RequestHead,
) -> Result<Option<Parsed>, Refusal> {
    let end = end_of_head(data, from);
    let len = end.unwrap_or(data.len());
    if len > options.max_head_bytes || (end.is_none() && len == options.max_head_bytes) {
        let line = memchr(b'\n', data).unwrap_or(data.len());
        return if line <= MAX_LINE_BYTES {
            refuse(431, "the request head is too large")
        } else {
            refuse(414, "the request target exceeds 8 KiB")
        };
    }
    if end.is_none() {
        return if from == 0 { begins_well(data, options).map(|()| None) } else { Ok(None) };
    }
    let Some((line, lines)) = data.get(..len).and_then(first_line) else { return refuse_bare_lf() };
    head.clear();
    head.scheme = options.scheme;
    read_line(line, options, head)?;
    read_fields(lines, options, head).map(|parsed| Some(Parsed { len, ..parsed }))
}

/// Looks at the lines of a head that has only begun: what is none is refused at once.
fn begins_well(data: &[u8], options: &ServerOptions) -> Result<(), Refusal> {
    if memchr(b'\n', data).is_some() {
        let Some((line, lines)) = first_line(data) else { return refuse_bare_lf() };
        read_line(line, options, &mut RequestHead::new())?;
        return lines_begin_well(lines).map_err(malformed);
    }
    let line = data.strip_suffix(b"\r").unwrap_or(data);
    if line.len() > MAX_LINE_BYTES {
        refuse(414, "the request target exceeds 8 KiB")
    } else if line.first().is_none_or(|&byte| is_token(byte)) && is_visible(line) {
        Ok(())
    } else {
        refuse(400, "malformed request line")
    }
}

fn is_visible(line: &[u8]) -> bool {
    line.iter().all(|byte| matches!(byte, b' '..=b'~' | 0x80..))
}

fn malformed(why: Malformed) -> Refusal {
    let detail = match why {
        Malformed::Name => "malformed header name",
        Malformed::Value => "malformed header value",
        Malformed::BareLf => BARE_LF,
    };
    Refusal { status: 400, detail }
}

const BARE_LF: &str = "a header line ends in a bare LF";

const fn refuse_bare_lf<T>() -> Result<T, Refusal> {
    refuse(400, BARE_LF)
}

/// A version of the right form that is not ours is 505, anything else no HTTP at all.
fn unknown_version(line: &[u8]) -> Result<Version, Refusal> {
    if line == b"PRI * HTTP/2.0" {
        return refuse(400, "HTTP/2 on an HTTP/1 listener");
    }
    // What is refused at its first bytes is no request of another version when it comes whole.
    if !line.first().is_some_and(|&byte| is_token(byte)) || !is_visible(line) {
        return refuse(400, "malformed request line");
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

fn read_line(line: &[u8], options: &ServerOptions, head: &mut RequestHead) -> Result<(), Refusal> {
    let (Some(first), Some(last)) = (memchr(b' ', line), memrchr(b' ', line)) else {
        return refuse(400, "malformed request line");
    };
    let word = |range: std::ops::Range<usize>| std::str::from_utf8(line.get(range).unwrap_or_default());
    head.version = match line.get(last + 1..) {
        Some(b"HTTP/1.1") => Version::Http11,
        Some(b"HTTP/1.0") => Version::Http10,
        _ => unknown_version(line)?,
    };
    let Ok(target) = word(first + 1..last) else { return refuse(400, "malformed request line") };
    if target.len() > MAX_TARGET_BYTES {
        return refuse(414, "the request target exceeds 8 KiB");
    }
    head.method = match line.get(..first) {
        Some(b"GET") => Method::Get,
        _ => match word(0..first).map(|method| Method::parse(method, options.custom_methods)) {
            Ok(Some(method)) => method,
            Ok(None) => return refuse(400, "unknown method"),
            Err(_) => return refuse(400, "malformed request line"),
        },
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

fn read_fields(lines: &[u8], options: &ServerOptions, head: &mut RequestHead) -> Result<Parsed, Refusal> {
    let mut special = Special::default();
    let mut section = head.fields.section(lines);
    let mut count = 0;
    while let Some(line) = section.next_line().map_err(malformed)? {
        count += 1;
        if count > options.max_fields {
            return refuse(431, "too many header fields");
        }
        read_field(&line, lines.get(line.value.clone()).unwrap_or_default(), &mut special, &mut section)?;
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
    line: &Line,
    value: &'a [u8],
    special: &mut Special<'a>,
    section: &mut Section<'_>,
) -> Result<(), Refusal> {
    let once = |slot: &mut Option<&'a [u8]>, detail| match slot.replace(value) {
        None => Ok(()),
        Some(_) => refuse(400, detail),
    };
    let name = section.name(line);
    // By length first: most names are told apart by it.
    match name.len() {
        4 if name == b"host" => return once(&mut special.host, "more than one host"),
        2 if name == b"te" => {
            // RFC 9110, 10.1.4: all that crosses a proxy is whether trailers are wanted.
            if list(value).any(|token| token.eq_ignore_ascii_case(b"trailers")) {
                section.fields().push_valid(b"te", b"trailers");
            }
            return Ok(());
        }
        6 if name == b"expect" => once(&mut special.expect, "more than one expectation")?,
        7 if name == b"upgrade" => {
            special.upgrade.get_or_insert(value);
            return Ok(());
        }
        10 if name == b"connection" => {
            return special.connection.read(value).or_else(|detail| refuse(400, detail));
        }
        10 if name == b"keep-alive" => return Ok(()),
        14 if name == b"content-length" => once(&mut special.length, "more than one content-length")?,
        14 if name == b"http2-settings" => return Ok(()),
        16 if name == b"proxy-connection" => {
            // Older clients mean their connection by it, and Envoy takes them at their word.
            special.connection.close |= list(value).any(|token| token.eq_ignore_ascii_case(b"close"));
            return Ok(());
        }
        17 if name == b"transfer-encoding" => return once(&mut special.coding, "more than one transfer-encoding"),
        length => debug_assert!(!is_hop_field(name) || length == 14, "a hop-by-hop field is kept"),
    }
    section.keep(line);
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
