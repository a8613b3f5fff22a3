//! Reads a responder's answer.

use bytes::{Bytes, BytesMut};

use super::{HeadEnd, MAX_FIELDS, MAX_HEAD, TLS_KEPT, UPGRADE};

/// Takes bytes as they come and yields the one answer.
#[derive(Debug, Default)]
pub struct ResponseReader {
    buffer: BytesMut,
    end: HeadEnd,
}

/// The server took the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The server keeps the TLS session for the tunnel's whole life.
    pub tls_kept: bool,
}

/// Why an answer is no success.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    #[error("the server answered {status} {reason}")]
    Refused { status: u16, reason: String },
    #[error("the answer is no HTTP/1.1 response: {0}")]
    Malformed(&'static str),
    #[error(
        "the server answered {status} where {expected} was expected; use_http_upgrade must be the same on both sides"
    )]
    OtherMode { status: u16, expected: u16 },
}

impl ResponseReader {
    /// Where received bytes are to be appended.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The answer, once its head is whole; `None`: more bytes are needed.
    ///
    /// # Errors
    /// It is no success in the mode that was asked for.
    pub fn next_response(&mut self, upgrade: bool) -> Result<Option<Accepted>, ResponseError> {
        let started = self.buffer.len().min(START.len());
        // Also of a head that is whole: the parser would skip empty lines before it.
        if self.buffer[..started] != START[..started] {
            return Err(ResponseError::Malformed("it does not begin with HTTP/1."));
        }
        let Some(length) = self.end.find(&self.buffer) else {
            return if self.buffer.len() > MAX_HEAD {
                Err(ResponseError::Malformed("a head of more than 64 KiB"))
            } else {
                Ok(None)
            };
        };
        let head = self.buffer.split_to(length);
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut parsed = httparse::Response::new(&mut fields);
        let complete = parsed.parse(&head).is_ok_and(|status| status.is_complete());
        let (true, Some(status)) = (complete, parsed.code) else {
            return Err(ResponseError::Malformed("its head cannot be read"));
        };
        let expected = if upgrade { 101 } else { 200 };
        let has = |name: &str, value: Option<&str>| {
            parsed.headers.iter().any(|field| {
                field.name.eq_ignore_ascii_case(name)
                    && value.is_none_or(|value| field.value.trim_ascii().eq_ignore_ascii_case(value.as_bytes()))
            })
        };
        match status {
            101 if upgrade && !has("upgrade", Some(UPGRADE)) => {
                Err(ResponseError::Malformed("a 101 to another protocol"))
            }
            // A body would be taken for the tunnel's first bytes.
            200 if !upgrade && (has("transfer-encoding", None) || !no_body(parsed.headers)) => {
                Err(ResponseError::Malformed("a 200 with a body"))
            }
            status if status == expected => Ok(Some(Accepted { tls_kept: has(TLS_KEPT, None) })),
            101 | 200 => Err(ResponseError::OtherMode { status, expected }),
            status => {
                let reason = shown(parsed.reason.unwrap_or_default(), &self.buffer);
                Err(ResponseError::Refused { status, reason })
            }
        }
    }

    /// What came behind the answer: it belongs to the tunnel, and is to be looked at before anything else is read.
    #[must_use]
    pub fn into_surplus(self) -> Bytes {
        self.buffer.freeze()
    }
}

fn no_body(fields: &[httparse::Header<'_>]) -> bool {
    let mut lengths = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("content-length"));
    lengths.all(|field| field.value.trim_ascii() == b"0")
}

/// The reason phrase and what came of the body, for people: short, and without control characters.
fn shown(reason: &str, body: &[u8]) -> String {
    let body = String::from_utf8_lossy(&body[..body.len().min(MAX_SHOWN)]);
    let words = body.split("\r\n").filter(|line| u64::from_str_radix(line, 16).is_err() && !line.is_empty());
    let text: String = std::iter::once(reason).chain(words).collect::<Vec<_>>().join(": ");
    text.chars().filter(|char| !char.is_control()).take(MAX_SHOWN).collect()
}

const START: &[u8] = b"HTTP/1.";
const MAX_SHOWN: usize = 128;
