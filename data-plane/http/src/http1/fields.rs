//! What requests and responses have in common in their header sections.

use std::sync::LazyLock;

use memchr::memmem::Finder;
use memchr::{memchr, memrchr};
use smallvec::SmallVec;

use crate::Fields;
use crate::fields::Malformed;

pub(crate) const MAX_HEAD_BYTES: usize = 60 * 1024;
pub(crate) const MAX_FIELDS: usize = 100;

/// Fields that belong to one connection, not to the message (RFC 9110, 7.6.1), and framing, which the encoder writes.
pub(crate) fn is_hop_field(name: &[u8]) -> bool {
    match name.len() {
        4 => name == b"host",
        7 => name == b"upgrade",
        10 => name == b"connection" || name == b"keep-alive",
        14 => name == b"content-length",
        16 => name == b"proxy-connection",
        17 => name == b"transfer-encoding",
        _ => false,
    }
}

/// What may not stand in a trailer section: framing, routing, authentication, and what changes how a message is read
/// (RFC 9110, 6.5.1).
pub(crate) fn is_forbidden_trailer(name: &[u8]) -> bool {
    is_hop_field(name)
        || matches!(
            name,
            b"authorization"
                | b"proxy-authorization"
                | b"proxy-authenticate"
                | b"www-authenticate"
                | b"cookie"
                | b"set-cookie"
                | b"cache-control"
                | b"content-encoding"
                | b"content-range"
                | b"content-type"
                | b"expect"
                | b"http2-settings"
                | b"max-forwards"
                | b"pragma"
                | b"range"
                | b"te"
                | b"trailer"
        )
        || name.starts_with(b"x-forwarded-")
        || name.starts_with(b"x-envoy-")
}

/// Where a head ends, behind its blank line, if not before `from`. One that a bare LF makes ends it too: it is refused
/// then, and not waited for.
pub(crate) fn end_of_head(data: &[u8], from: usize) -> Option<usize> {
    static END: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\n\r\n"));
    static BARE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\n\n"));
    let from = from.saturating_sub(3);
    let tail = data.get(from..).unwrap_or_default();
    match END.find(tail) {
        Some(at) => Some(from + at + 3),
        None => BARE.find(tail).map(|at| from + at + 2),
    }
}

/// The first line, without its CRLF, and what is behind it; `None`: it ends in a bare LF.
pub(crate) fn first_line(head: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr(b'\n', head)?;
    let line = head.get(..end)?.strip_suffix(b"\r")?;
    Some((line, head.get(end + 1..)?))
}

/// What the `connection` fields say.
#[derive(Debug, Default)]
pub(crate) struct ConnectionTokens<'a> {
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    pub(crate) upgrade: bool,
    /// Fields that are for this connection only.
    named: SmallVec<[&'a [u8]; 4]>,
}

impl<'a> ConnectionTokens<'a> {
    /// Reads one `connection` field.
    ///
    /// # Errors
    /// It names a field that must not be taken off: to forward the message without it would change what it means.
    pub(crate) fn read(&mut self, value: &'a [u8]) -> Result<(), &'static str> {
        // Nearly always that one word.
        if value.eq_ignore_ascii_case(b"keep-alive") {
            self.keep_alive = true;
            return Ok(());
        }
        for token in list(value) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else if is_protected(token) {
                return Err("connection names a field that is not its to remove");
            } else if !token.is_empty() && !token.eq_ignore_ascii_case(b"te") {
                self.named.push(token);
            }
        }
        Ok(())
    }

    /// Takes off the fields that were named.
    pub(crate) fn apply(&self, fields: &mut Fields) {
        for name in &self.named {
            fields.remove_ignore_case(name);
        }
    }
}

fn is_protected(token: &[u8]) -> bool {
    const PROTECTED: [&[u8]; 9] = [
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"trailer",
        b"expect",
        b"authorization",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
    ];
    token.starts_with(b":") || PROTECTED.iter().any(|name| token.eq_ignore_ascii_case(name))
}

/// The elements of a comma-separated list, trimmed; empty ones too.
pub(crate) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

/// `1*DIGIT` up to 2^63 - 1 (RFC 9110, 8.6); no sign, list, or white space. What neighbours would read as a negative
/// number is not passed on to them.
pub(crate) fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    let length = value.iter().try_fold(0u64, |sum, &byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    });
    length.filter(|&length| i64::try_from(length).is_ok())
}

/// Why a `transfer-encoding` is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CodingError {
    /// Not a list of tokens, or `chunked` where it cannot be.
    Invalid,
    /// A coding that we do not know.
    Unknown,
}

/// `chunked`, alone: nothing else is understood (RFC 9112, 6.1).
pub(crate) fn is_chunked(value: &[u8]) -> Result<(), CodingError> {
    let mut count = 0;
    let mut chunked = 0;
    let mut last_chunked = false;
    for coding in list(value) {
        if coding.is_empty() || !coding.iter().all(|&byte| crate::fields::is_token(byte)) {
            return Err(CodingError::Invalid);
        }
        count += 1;
        last_chunked = coding.eq_ignore_ascii_case(b"chunked");
        chunked += usize::from(last_chunked);
    }
    match (count, chunked, last_chunked) {
        (1, 1, _) => Ok(()),
        (_, 0, _) | (_, 1, true) => Err(CodingError::Unknown),
        _ => Err(CodingError::Invalid),
    }
}

/// Looks at the lines that are whole of a section that has only begun.
pub(crate) fn lines_begin_well(data: &[u8]) -> Result<(), Malformed> {
    let whole = memrchr(b'\n', data).and_then(|last| data.get(..=last)).unwrap_or_default();
    let mut scratch = Fields::new();
    let mut section = scratch.section(whole);
    while section.next_line()?.is_some() {}
    Ok(())
}

/// Parses a trailer section, which does not end before `from`: its length, or `None` if more must be read.
///
/// # Errors
/// It is malformed, or there is too much of it.
pub(crate) fn trailers(
    data: &[u8],
    from: usize,
    into: &mut Option<Box<Fields>>,
) -> Result<Option<usize>, &'static str> {
    if data.starts_with(b"\r\n") {
        return Ok(Some(2));
    }
    let Some(end) = end_of_head(data, from).filter(|&end| end <= MAX_HEAD_BYTES) else {
        if data.len() > MAX_HEAD_BYTES {
            return Err("trailers exceed 60 KiB");
        }
        // At once if it is garbage; not with each byte, which would cost their square.
        return if from == 0 { lines_begin_well(data).map(|()| None).map_err(malformed_trailer) } else { Ok(None) };
    };
    let kept = into.get_or_insert_default();
    let mut section = kept.section(data.get(..end).unwrap_or_default());
    let mut count = 0;
    while let Some(line) = section.next_line().map_err(malformed_trailer)? {
        count += 1;
        if count > MAX_FIELDS {
            return Err("too many trailers");
        }
        if !is_forbidden_trailer(section.name(&line)) {
            section.keep(&line);
        }
    }
    Ok(Some(end))
}

const fn malformed_trailer(why: Malformed) -> &'static str {
    match why {
        Malformed::Name | Malformed::Value => "malformed trailers",
        Malformed::BareLf => "a trailer line ends in a bare LF",
    }
}
