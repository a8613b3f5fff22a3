//! Answers that come from the proxy itself: Envoy's statuses and bodies, or a gRPC status for gRPC requests.

use std::borrow::Cow;

use culvert_http::{Method, RequestHead, ResponseHead, Version};

use crate::flags::ResponseFlag;
use crate::forwarding::Text;
use crate::routes::is_grpc;

/// An answer of our own.
#[derive(Debug, Clone)]
pub(crate) struct LocalReply {
    pub(crate) status: u16,
    pub(crate) body: Cow<'static, [u8]>,
    pub(crate) flag: Option<ResponseFlag>,
    /// `%RESPONSE_CODE_DETAILS%`
    pub(crate) details: Cow<'static, str>,
    pub(crate) location: Option<String>,
    /// A circuit breaker refused: `x-envoy-overloaded`.
    pub(crate) overloaded: bool,
    /// The connection cannot be read any further.
    pub(crate) closes: bool,
    /// In seconds.
    pub(crate) retry_after: Option<u64>,
}

impl LocalReply {
    pub(crate) fn new(status: u16, body: impl Into<Cow<'static, str>>, details: &'static str) -> Self {
        let body = match body.into() {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        };
        Self {
            status,
            body,
            flag: None,
            details: Cow::Borrowed(details),
            location: None,
            overloaded: false,
            closes: false,
            retry_after: None,
        }
    }

    pub(crate) fn flagged(self, flag: ResponseFlag) -> Self {
        Self { flag: Some(flag), ..self }
    }

    pub(crate) fn detailed(self, details: impl Into<Cow<'static, str>>) -> Self {
        Self { details: details.into(), ..self }
    }

    /// The client broke the protocol in its request's body.
    pub(crate) fn codec_error(status: u16, version: Version) -> Self {
        let text = if status == 400 { "Bad Request" } else { "" };
        let details = if version == Version::Http2 { "http2.violation.of.messaging.rule" } else { "http1.codec_error" };
        Self { closes: true, ..Self::new(status, text, details).flagged(ResponseFlag::DownstreamProtocolError) }
    }

    pub(crate) fn with_body(self, body: Vec<u8>) -> Self {
        Self { body: Cow::Owned(body), ..self }
    }

    pub(crate) fn redirect(status: u16, location: String, details: &'static str) -> Self {
        Self { location: Some(location), ..Self::new(status, "", details) }
    }

    /// Writes the head; whether the body goes into it (as `grpc-message`) and nothing follows.
    pub(crate) fn head(&self, request: &RequestHead, head: &mut ResponseHead) -> Trailing {
        head.fields.clear();
        if is_grpc(request) && self.location.is_none() {
            self.grpc_head(head);
            return Trailing::Nothing;
        }
        head.status = self.status;
        if let Some(location) = &self.location {
            head.fields.push(b"location", location.as_bytes());
        }
        if self.overloaded {
            head.fields.push(b"x-envoy-overloaded", b"true");
        }
        self.push_retry_after(head);
        if self.body.is_empty() {
            return Trailing::Nothing;
        }
        head.fields.push(b"content-type", b"text/plain");
        if request.method != Method::Head {
            return Trailing::Body;
        }
        let mut length = itoa::Buffer::new();
        head.fields.push(b"content-length", length.format(self.body.len()).as_bytes());
        Trailing::Nothing
    }

    /// A trailers-only response (gRPC over HTTP/2: PROTOCOL-HTTP2.md, "Responses").
    fn grpc_head(&self, head: &mut ResponseHead) {
        head.status = 200;
        head.fields.push(b"content-type", b"application/grpc");
        let mut status = itoa::Buffer::new();
        head.fields.push(b"grpc-status", status.format(grpc_status(self.status)).as_bytes());
        if !self.body.is_empty() {
            head.fields.push(b"grpc-message", &percent_encoded(&self.body));
        }
        if self.overloaded {
            head.fields.push(b"x-envoy-overloaded", b"true");
        }
        self.push_retry_after(head);
    }

    fn push_retry_after(&self, head: &mut ResponseHead) {
        if let Some(seconds) = self.retry_after {
            head.fields.push(b"retry-after", itoa::Buffer::new().format(seconds).as_bytes());
        }
    }
}

/// What follows the head of a local reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trailing {
    Nothing,
    Body,
}

/// gRPC's mapping of HTTP statuses ("HTTP to gRPC Status Code Mapping").
const fn grpc_status(status: u16) -> u8 {
    match status {
        200 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// PROTOCOL-HTTP2.md, "Percent-Encoded".
fn percent_encoded(message: &[u8]) -> Vec<u8> {
    let mut encoded = Text::default();
    for byte in message {
        match byte {
            b' '..=b'~' if *byte != b'%' => encoded.write(format_args!("{}", char::from(*byte))),
            byte => encoded.write(format_args!("%{byte:02X}")),
        }
    }
    encoded.bytes().to_vec()
}
