//! HTTP on both sides of the proxy: an HTTP/1 codec and HTTP/2 connections of our own, one interface over both.
//!
//! **Knows no routes**: a server connection yields [`Exchange`]s to a [`Handler`]; a client connection takes requests.
//! Bodies are streamed chunk by chunk with back-pressure and never held whole.
//!
//! Both directions of an exchange are driven by one task at the same time (`select`, `join`), never by two.

mod buffers;
pub mod capsule;
pub mod client;
mod deadline;
mod drain;
pub mod error;
mod farewell;
pub mod fields;
pub mod head;
mod http1;
mod http2;
pub mod io;
mod relay;
pub mod server;
mod stream;

pub use buffers::{give_response, take_response};
pub use client::{Client, ClientExchange, Http1Client, Http2Client, Http2ClientOptions, RequestSink, ResponseSource};
pub use error::{Blame, StreamError, StreamErrorKind};
pub use fields::{FieldLine, FieldName, Fields};
pub use head::{BodyKind, Method, RequestHead, ResponseHead, Version};
pub use http2::path::RoundTrip;
pub use io::splice::Splice;
pub use io::{Io, Meter, TlsInfo};
pub use relay::{relay_request, relay_response};
pub use server::{Exchange, FloodLimits, Handler, Protocol, RequestBody, ResponseSink, ServerOptions, serve};

/// Marks a CONNECT whose bytes are a connection of its own ([`ServerOptions::connections`]). Whoever forwards requests of
/// others takes it out of every CONNECT.
pub const CONNECTION_FIELD: &[u8] = b"culvert-connection";

/// The body with which the codec refuses an HTTP/1 request by itself.
#[must_use]
pub fn refusal_body(status: u16) -> &'static str {
    http1::encode::reason(status)
}

/// A piece of a body: borrowed from a read buffer (HTTP/1) or owned (HTTP/2).
#[derive(Debug)]
pub enum Chunk<'a> {
    Borrowed(&'a [u8]),
    Owned(bytes::Bytes),
}

impl std::ops::Deref for Chunk<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl<'a> Chunk<'a> {
    /// Takes the first `count` bytes off, or all there are.
    pub(crate) fn split_to(&mut self, count: usize) -> Self {
        match self {
            Self::Borrowed(bytes) => {
                let (first, rest) = bytes.split_at(count.min(bytes.len()));
                *bytes = rest;
                Self::Borrowed(first)
            }
            Self::Owned(bytes) => Self::Owned(bytes.split_to(count.min(bytes.len()))),
        }
    }

    /// The bytes as their own; copies what is borrowed.
    #[must_use]
    pub fn into_owned(self) -> bytes::Bytes {
        match self {
            Self::Borrowed(bytes) => bytes::Bytes::copy_from_slice(bytes),
            Self::Owned(bytes) => bytes,
        }
    }
}
