//! Request and response heads, the same for HTTP/1 and HTTP/2.

use crate::Fields;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
    /// Any other token.
    Other(Box<str>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
    Http2,
}

/// A request head. `host` is never among the fields: the authority stands in `authority`.
#[derive(Debug, Clone)]
pub struct RequestHead {
    pub version: Version,
    pub method: Method,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Host and optional port, valid per RFC 3986; empty only for HTTP/1.0 without Host.
    pub authority: String,
    /// Path and query; `*` for OPTIONS; empty for CONNECT.
    pub path: String,
    /// Extended CONNECT's `:protocol`, or the `upgrade` token of an HTTP/1 upgrade that was asked for properly.
    pub upgrade: Option<Box<str>>,
    pub fields: Fields,
}

#[derive(Debug, Clone)]
pub struct ResponseHead {
    pub version: Version,
    pub status: u16,
    pub fields: Fields,
}

/// How the end of a body is known when its head is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    /// There is none.
    Empty,
    Length(u64),
    /// Chunked on HTTP/1.
    Stream,
    /// After a 101 or a CONNECT's 2xx: bytes until either side closes.
    Tunnel,
}
