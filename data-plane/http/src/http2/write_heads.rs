//! Our heads into header blocks.

use super::hpack::Encoder;
use crate::http1::fields::{is_forbidden_trailer, is_hop_field};
use crate::http1::target::{is_authority, is_path};
use crate::{BodyKind, Fields, Method, RequestHead, ResponseHead, StreamError};

/// Whether HTTP/2 can carry a request head.
///
/// # Errors
/// It cannot.
pub(super) fn check_request(head: &RequestHead) -> Result<(), StreamError> {
    let authority = head.authority.is_empty() || is_authority(head.authority.as_bytes(), false);
    if authority && is_path(head.path.as_bytes()) {
        return Ok(());
    }
    Err(StreamError::misuse("a request head that HTTP/2 cannot carry"))
}

/// The block of a request, which [`check_request`] has found good.
pub(super) fn request(head: &RequestHead, body: BodyKind, encoder: &mut Encoder, out: &mut Vec<u8>) {
    encoder.begin(out);
    // RFC 8441, 5: what HTTP/1 asks for by an upgrade.
    let method = if head.upgrade.is_some() { "CONNECT" } else { head.method.as_str() };
    encoder.field(b":method", method.as_bytes(), out);
    if head.method != Method::Connect || head.upgrade.is_some() {
        let path = if head.path.is_empty() { "/" } else { &head.path };
        encoder.field(b":scheme", if head.scheme == "https" { b"https" } else { b"http" }, out);
        encoder.field(b":path", path.as_bytes(), out);
    }
    if !head.authority.is_empty() {
        encoder.field(b":authority", head.authority.as_bytes(), out);
    }
    if let Some(protocol) = &head.upgrade {
        encoder.field(b":protocol", protocol.as_bytes(), out);
    }
    fields(&head.fields, encoder, out, |name| !is_hop_field(name));
    match body {
        BodyKind::Length(length) => content_length(length, encoder, out),
        BodyKind::Empty if matches!(head.method, Method::Post | Method::Put | Method::Patch) => {
            content_length(0, encoder, out);
        }
        _ => {}
    }
}

/// The status of a response on the wire.
///
/// # Errors
/// It is none that HTTP/2 has.
pub(super) fn check_status(head: &ResponseHead, body: BodyKind) -> Result<u16, StreamError> {
    // RFC 8441, 5: what HTTP/1 answers by 101.
    let status = if head.status == 101 && body == BodyKind::Tunnel { 200 } else { head.status };
    match status {
        0..=99 | 101 | 1000.. => Err(StreamError::misuse("a status that cannot be sent")),
        status => Ok(status),
    }
}

/// The block of a response; `asked_head`: it answers a HEAD.
pub(super) fn response(
    status: u16,
    (head, body, asked_head): (&Fields, BodyKind, bool),
    encoder: &mut Encoder,
    out: &mut Vec<u8>,
) {
    encoder.begin(out);
    encoder.field(b":status", itoa::Buffer::new().format(status).as_bytes(), out);
    let bodyless = (asked_head || status == 304) && body == BodyKind::Empty;
    fields(head, encoder, out, |name| !is_hop_field(name) || (bodyless && name == b"content-length"));
    if let BodyKind::Length(length) = body
        && status != 204
    {
        content_length(length, encoder, out);
    }
}

pub(super) fn trailers(kept: &Fields, encoder: &mut Encoder, out: &mut Vec<u8>) {
    encoder.begin(out);
    fields(kept, encoder, out, |name| !is_forbidden_trailer(name));
}

fn fields(fields: &Fields, encoder: &mut Encoder, out: &mut Vec<u8>, keep: impl Fn(&[u8]) -> bool) {
    for (name, value) in fields.iter() {
        if keep(name) {
            encoder.field(name, value, out);
        }
    }
}

fn content_length(length: u64, encoder: &mut Encoder, out: &mut Vec<u8>) {
    encoder.field(b"content-length", itoa::Buffer::new().format(length).as_bytes(), out);
}
