//! HTTP on both sides of the proxy: our own HTTP/1 codec, HTTP/2 by the `h2` crate, one interface over both.
//!
//! **Knows no routes**: a server connection yields [`Exchange`]s to a [`Handler`]; a client connection takes requests.
//! Bodies are streamed chunk by chunk with back-pressure and never held whole.

pub mod client;
pub mod error;
pub mod fields;
pub mod head;
pub mod io;
pub mod server;

pub use client::{Client, ClientExchange, RequestSink, ResponseSource};
pub use error::{Blame, StreamError, StreamErrorKind};
pub use fields::Fields;
pub use head::{BodyKind, Method, RequestHead, ResponseHead, Version};
pub use io::Io;
pub use server::{Exchange, Handler, RequestBody, ResponseSink};

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
