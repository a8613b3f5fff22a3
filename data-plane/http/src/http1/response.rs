//! Response heads off the wire (RFC 9112, 4 to 6). An upstream whose framing can be read in two ways is not believed.

use std::mem::MaybeUninit;

use super::fields::{ConnectionTokens, MAX_FIELDS, MAX_HEAD_BYTES, content_length, has_bare_lf, is_chunked};
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

/// Parses a head at the front of `data`; `None` if it is not all there yet.
///
/// # Errors
/// What is wrong with it: the connection is of no more use, and the answer is 502.
pub(crate) fn parse(data: &[u8], asked: Asked, head: &mut ResponseHead) -> Result<Option<Parsed>, &'static str> {
    let mut slots = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let result = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, data, &mut slots);
    let len = match result {
        Ok(httparse::Status::Complete(len)) if len <= MAX_HEAD_BYTES => len,
        Ok(httparse::Status::Partial) if data.len() < MAX_HEAD_BYTES => return Ok(None),
        Ok(_) => return Err("the response head exceeds 60 KiB"),
        Err(httparse::Error::TooManyHeaders) => return Err("too many header fields in the response"),
        Err(_) => return Err("malformed response head"),
    };
    if has_bare_lf(data.get(..len).unwrap_or_default()) {
        return Err("a response header line ends in a bare LF");
    }
    let (Some(status), Some(version)) = (response.code, response.version) else {
        return Err("malformed status line");
    };
    if status < 100 {
        return Err("a status below 100");
    }
    head.clear();
    head.version = if version == 0 { Version::Http10 } else { Version::Http11 };
    head.status = status;
    let framing = read_fields(data.get(..len).unwrap_or_default(), response.headers, head)?;
    frame(&framing, asked, head).map(|parsed| Some(Parsed { len, ..parsed }))
}

struct Framing {
    close: bool,
    keep_alive: bool,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

fn read_fields(
    bytes: &[u8],
    parsed: &[httparse::Header<'_>],
    head: &mut ResponseHead,
) -> Result<Framing, &'static str> {
    let mut connection = ConnectionTokens::default();
    let status = head.status;
    let mut copied = head.fields.copy_head(bytes);
    let (mut length, mut coding, mut upgrade) = (None, None, false);
    for field in parsed {
        let candidate = copied.candidate(field.name.as_bytes(), field.value);
        let name = copied.name(candidate);
        match name.len() {
            7 if name == b"upgrade" => {
                upgrade = true;
                if status != 101 {
                    continue;
                }
            }
            10 if name == b"connection" => {
                connection.read(field.value)?;
                continue;
            }
            10 if name == b"keep-alive" => continue,
            14 if name == b"content-length" => {
                let value = content_length(field.value).ok_or("malformed content-length in the response")?;
                if length.replace(value).is_some() {
                    return Err("more than one content-length in the response");
                }
            }
            16 if name == b"proxy-connection" => continue,
            17 if name == b"transfer-encoding" => {
                is_chunked(field.value).map_err(|_| "unknown transfer-encoding in the response")?;
                if coding.replace(()).is_some() {
                    return Err("more than one transfer-encoding in the response");
                }
                continue;
            }
            _ => {}
        }
        copied.keep(candidate);
    }
    connection.apply(&mut head.fields);
    let (close, keep_alive) = (connection.close, connection.keep_alive);
    Ok(Framing { close, keep_alive, length, chunked: coding.is_some(), upgrade })
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
