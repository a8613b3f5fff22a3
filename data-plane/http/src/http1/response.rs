//! Response heads off the wire (RFC 9112, 4 to 6). An upstream whose framing can be read in two ways is not believed.

use super::fields::{
    ConnectionTokens, MAX_FIELDS, MAX_HEAD_BYTES, content_length, end_of_head, first_line, is_chunked,
};
use crate::fields::{Malformed, is_value};
use crate::{BodyKind, ResponseHead, Version};

/// What of the request decides how its response is read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Asked {
    pub(crate) head: bool,
    pub(crate) connect: bool,
    pub(crate) upgrade: bool,
}

/// What a head says beside itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) len: usize,
    pub(crate) body: BodyKind,
    /// The end of the body is the end of the connection.
    pub(crate) until_close: bool,
    pub(crate) keep_alive: bool,
}

/// Parses a head at the front of `data`, which does not end before `from`; `None` if it is not all there yet.
///
/// # Errors
/// What is wrong with it: the connection is of no more use, and the answer is 502.
pub(crate) fn parse(
    data: &[u8],
    from: usize,
    asked: Asked,
    head: &mut ResponseHead,
) -> Result<Option<Parsed>, &'static str> {
    let Some(len) = end_of_head(data, from).filter(|&len| len <= MAX_HEAD_BYTES) else {
        return if data.len() >= MAX_HEAD_BYTES {
            Err("the response head exceeds 60 KiB")
        } else if begins_well(data) {
            Ok(None)
        } else {
            Err(MALFORMED)
        };
    };
    let Some((line, lines)) = data.get(..len).and_then(first_line) else { return Err(BARE_LF) };
    head.clear();
    (head.version, head.status) = status_line(line).ok_or(MALFORMED)?;
    if head.status < 100 {
        return Err("a status below 100");
    }
    let framing = read_fields(lines, head)?;
    frame(&framing, asked, head).map(|parsed| Some(Parsed { len, ..parsed }))
}

const MALFORMED: &str = "malformed response head";
const BARE_LF: &str = "a response header line ends in a bare LF";

/// Whether what came so far may be a response: what is none is refused at once.
fn begins_well(data: &[u8]) -> bool {
    match first_line(data) {
        Some((line, _)) => status_line(line).is_some(),
        None => data.iter().zip(b"HTTP/1.").all(|(byte, expected)| byte == expected) && !data.contains(&b'\n'),
    }
}

/// Version and status; the reason is for people (RFC 9112, 4).
fn status_line(line: &[u8]) -> Option<(Version, u16)> {
    let (version, rest) = line.strip_prefix(b"HTTP/1.")?.split_first()?;
    let version = match version {
        b'0' => Version::Http10,
        b'1' => Version::Http11,
        _ => return None,
    };
    let [b' ', a @ b'0'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', reason @ ..] = rest else { return None };
    let digit = |byte: &u8| u16::from(*byte - b'0');
    let separated = reason.is_empty() || reason.starts_with(b" ");
    (separated && is_value(reason)).then(|| (version, digit(a) * 100 + digit(b) * 10 + digit(c)))
}

struct Framing {
    close: bool,
    keep_alive: bool,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

fn read_fields(lines: &[u8], head: &mut ResponseHead) -> Result<Framing, &'static str> {
    let mut connection = ConnectionTokens::default();
    let status = head.status;
    let mut section = head.fields.section(lines);
    let (mut length, mut coding, mut upgrade) = (None, None, false);
    let mut count = 0;
    while let Some(line) = section.next_line().map_err(malformed)? {
        count += 1;
        if count > MAX_FIELDS {
            return Err("too many header fields in the response");
        }
        let value = lines.get(line.value.clone()).unwrap_or_default();
        let name = section.name(&line);
        match name.len() {
            7 if name == b"upgrade" => {
                upgrade = true;
                if status != 101 {
                    continue;
                }
            }
            10 if name == b"connection" => {
                connection.read(value)?;
                continue;
            }
            10 if name == b"keep-alive" => continue,
            14 if name == b"content-length" => {
                let value = content_length(value).ok_or("malformed content-length in the response")?;
                if length.replace(value).is_some() {
                    return Err("more than one content-length in the response");
                }
            }
            16 if name == b"proxy-connection" => continue,
            17 if name == b"transfer-encoding" => {
                is_chunked(value).map_err(|_| "unknown transfer-encoding in the response")?;
                if coding.replace(()).is_some() {
                    return Err("more than one transfer-encoding in the response");
                }
                continue;
            }
            _ => {}
        }
        section.keep(&line);
    }
    connection.apply(&mut head.fields);
    let (close, keep_alive) = (connection.close, connection.keep_alive);
    Ok(Framing { close, keep_alive, length, chunked: coding.is_some(), upgrade })
}

const fn malformed(why: Malformed) -> &'static str {
    match why {
        Malformed::Name | Malformed::Value => MALFORMED,
        Malformed::BareLf => BARE_LF,
    }
}

/// RFC 9112, 6.3.
fn frame(framing: &Framing, asked: Asked, head: &ResponseHead) -> Result<Parsed, &'static str> {
    let http_10 = head.version == Version::Http10;
    let keep_alive = !framing.close && (!http_10 || framing.keep_alive);
    let parsed = Parsed { len: 0, body: BodyKind::Empty, until_close: false, keep_alive };
    let success = (200..300).contains(&head.status);
    if framing.chunked && (framing.length.is_some() || http_10) {
        return Err("both content-length and transfer-encoding in the response");
    }
    if head.status == 101 {
        return if asked.upgrade && framing.upgrade {
            Ok(Parsed { body: BodyKind::Tunnel, keep_alive: false, ..parsed })
        } else {
            Err("a 101 that nobody asked for")
        };
    }
    if asked.connect && success {
        return Ok(Parsed { body: BodyKind::Tunnel, keep_alive: false, ..parsed });
    }
    if asked.head || head.status < 200 || head.status == 204 || head.status == 304 {
        return Ok(parsed);
    }
    if framing.chunked {
        return Ok(Parsed { body: BodyKind::Stream, ..parsed });
    }
    match framing.length {
        Some(length) => Ok(Parsed { body: BodyKind::Length(length), ..parsed }),
        None if framing.keep_alive => Err("keep-alive without framing in the response"),
        None => Ok(Parsed { body: BodyKind::Stream, until_close: true, keep_alive: false, ..parsed }),
    }
}
