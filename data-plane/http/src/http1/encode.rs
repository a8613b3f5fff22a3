//! Heads onto the wire.

use super::fields::is_hop_field;
use super::target;
use super::write::Framing;
use crate::{BodyKind, Fields, Method, RequestHead, ResponseHead, StreamError, Version};

fn write_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn write_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"content-length: ");
    write_number(out, length);
    out.extend_from_slice(b"\r\n");
}

const CHUNKED: &[u8] = b"transfer-encoding: chunked\r\n";

/// Writes a request head; how its body is framed.
///
/// # Errors
/// The head cannot stand on a wire: whoever made it erred.
pub(crate) fn request(out: &mut Vec<u8>, head: &RequestHead, body: BodyKind) -> Result<Framing, StreamError> {
    if !target::is_path(head.path.as_bytes()) || !target::is_path(head.authority.as_bytes()) {
        return Err(StreamError::misuse("a path or authority that cannot stand in a request line"));
    }
    let tunnel = head.method == Method::Connect && head.upgrade.is_none();
    // RFC 8441, 5: an extended CONNECT becomes the GET that HTTP/1 upgrades with.
    let method = if head.method == Method::Connect && !tunnel { "GET" } else { head.method.as_str() };
    out.extend_from_slice(method.as_bytes());
    out.push(b' ');
    match (tunnel, head.path.as_str()) {
        (true, _) => out.extend_from_slice(head.authority.as_bytes()),
        (false, "") => out.push(b'/'),
        (false, path) => out.extend_from_slice(path.as_bytes()),
    }
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    out.extend_from_slice(head.authority.as_bytes());
    out.extend_from_slice(b"\r\n");
    head.fields.write_wire(out, |name| !is_hop_field(name));
    if let Some(token) = &head.upgrade {
        write_upgrade(out, token, head);
    }
    let framing = match body {
        BodyKind::Length(length) => {
            write_length(out, length);
            Framing::length(length)
        }
        BodyKind::Stream if tunnel => Framing::Done,
        BodyKind::Stream => {
            out.extend_from_slice(CHUNKED);
            Framing::Chunked
        }
        BodyKind::Empty | BodyKind::Tunnel => {
            // RFC 9110, 8.6: methods that define a meaning for a body say that there is none.
            if matches!(head.method, Method::Post | Method::Put | Method::Patch) {
                write_length(out, 0);
            }
            Framing::Done
        }
    };
    out.extend_from_slice(b"\r\n");
    Ok(framing)
}

fn write_upgrade(out: &mut Vec<u8>, token: &str, head: &RequestHead) {
    if !crate::fields::is_value(token.as_bytes()) {
        tracing::warn!("an upgrade token that is not valid was not sent");
        return;
    }
    out.extend_from_slice(b"connection: upgrade\r\nupgrade: ");
    out.extend_from_slice(token.as_bytes());
    out.extend_from_slice(b"\r\n");
    if head.version == Version::Http2
        && token.eq_ignore_ascii_case("websocket")
        && !head.fields.contains(b"sec-websocket-key")
    {
        // RFC 8441, 5.1 leaves the key out; RFC 6455, 4.1 requires one. Nobody checks the answer to it.
        out.extend_from_slice(b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n");
    }
}

/// What of the request decides how its response is written.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) head: bool,
    pub(crate) connect: bool,
    pub(crate) http_10: bool,
    pub(crate) upgrade: Option<Box<str>>,
}

impl Asked {
    /// Whether a status refuses a change of protocol. A 2xx or 3xx that ignores an `upgrade` does not: the next bytes are
    /// HTTP, as the client knows (RFC 9110, 7.8).
    pub(crate) const fn is_refused_switch(&self, status: u16) -> bool {
        status >= 400 && (self.connect || self.upgrade.is_some())
    }
}

/// Writes a response head; how its body is framed. `close`: the connection ends with this response.
///
/// # Errors
/// The head cannot stand on a wire: whoever made it erred.
pub(crate) fn response(
    out: &mut Vec<u8>,
    head: &ResponseHead,
    body: BodyKind,
    asked: &Asked,
    close: bool,
) -> Result<Framing, StreamError> {
    let success = (200..300).contains(&head.status);
    if body == BodyKind::Tunnel {
        return match &asked.upgrade {
            // What HTTP/2 answers by 2xx, HTTP/1 answers by 101 (RFC 8441, 5).
            Some(token) if head.status == 101 || success => {
                write_status(out, 101);
                write_fields(out, &head.fields);
                out.extend_from_slice(b"connection: upgrade\r\nupgrade: ");
                let token = head.fields.get(b"upgrade").unwrap_or(token.as_bytes());
                out.extend_from_slice(token);
                out.extend_from_slice(b"\r\n\r\n");
                Ok(Framing::Tunnel)
            }
            None if asked.connect && success => {
                write_status(out, head.status);
                write_fields(out, &head.fields);
                out.extend_from_slice(b"\r\n");
                Ok(Framing::Tunnel)
            }
            _ => Err(StreamError::misuse("a tunnel that nobody asked for")),
        };
    }
    if head.status == 101 || !(100..=999).contains(&head.status) {
        return Err(StreamError::misuse("a status that cannot be sent"));
    }
    write_status(out, head.status);
    write_fields(out, &head.fields);
    if head.is_informational() {
        out.extend_from_slice(b"\r\n");
        return Ok(Framing::Head);
    }
    let framing = write_framing(out, head, body, asked);
    if close || framing == Framing::UntilClose {
        out.extend_from_slice(b"connection: close\r\n");
    } else if asked.http_10 {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    out.extend_from_slice(b"\r\n");
    Ok(framing)
}

/// What stands in the body of an answer that the codec makes itself: the status' reason, as in Envoy.
pub(crate) fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default()
}

fn write_status(out: &mut Vec<u8>, status: u16) {
    if status == 200 {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    write_number(out, u64::from(status));
    out.push(b' ');
    out.extend_from_slice(reason(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn write_fields(out: &mut Vec<u8>, fields: &Fields) {
    fields.write_wire(out, |name| !is_hop_field(name));
}

fn write_framing(out: &mut Vec<u8>, head: &ResponseHead, body: BodyKind, asked: &Asked) -> Framing {
    if asked.head || head.status == 304 {
        // The length that the body would have (RFC 9110, 8.6).
        let length = head.fields.get(b"content-length").and_then(super::fields::content_length);
        match (body, length) {
            (BodyKind::Length(length), _) | (BodyKind::Empty, Some(length)) => write_length(out, length),
            _ => {}
        }
        return if body.is_empty() { Framing::Done } else { Framing::Discard };
    }
    if head.status == 204 {
        return if body.is_empty() { Framing::Done } else { Framing::Discard };
    }
    match body {
        BodyKind::Length(length) => {
            write_length(out, length);
            Framing::length(length)
        }
        BodyKind::Stream if asked.http_10 => Framing::UntilClose,
        BodyKind::Stream => {
            out.extend_from_slice(CHUNKED);
            Framing::Chunked
        }
        BodyKind::Empty | BodyKind::Tunnel => {
            // A CONNECT's 2xx has no framing; any other response without a body says so.
            if !(asked.connect && (200..300).contains(&head.status)) {
                write_length(out, 0);
            }
            Framing::Done
        }
    }
}

/// The trailer section after the last chunk, with its blank line.
pub(crate) fn trailers(out: &mut Vec<u8>, fields: Option<&Fields>) {
    out.extend_from_slice(b"0\r\n");
    if let Some(fields) = fields {
        fields.write_wire(out, |name| !super::fields::is_forbidden_trailer(name));
    }
    out.extend_from_slice(b"\r\n");
}
