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

/// Registered methods that are no extension of somebody's own (IANA's registry, and PURGE that caches know).
const REGISTERED: [&str; 30] = [
    "ACL",
    "BIND",
    "CHECKOUT",
    "COPY",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "ORDERPATCH",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
    "BASELINE-CONTROL",
];

impl Method {
    /// The method of that name. A name that nobody registered is one only if `custom` says so; `None` otherwise, and
    /// for what is no token.
    #[must_use]
    pub fn parse(name: &str, custom: bool) -> Option<Self> {
        Some(match name {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "DELETE" => Self::Delete,
            "CONNECT" => Self::Connect,
            "OPTIONS" => Self::Options,
            "TRACE" => Self::Trace,
            "PATCH" => Self::Patch,
            _ if name.is_empty() || !name.bytes().all(crate::fields::is_token) => return None,
            _ if custom || REGISTERED.contains(&name) => Self::Other(name.into()),
            _ => return None,
        })
    }

    /// As it stands on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Patch => "PATCH",
            Self::Other(name) => name,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
    Http2,
}

/// A request head. `host` is never among the fields: the authority stands in `authority`. Nor are the fields that
/// belong to one connection (`connection`, `keep-alive`, `proxy-connection`, `transfer-encoding`, `upgrade`, whatever
/// `connection` names; `te` only as `trailers`): the codecs take them off and write their own. `content-length` is
/// there to be read; what is sent follows from the [`BodyKind`].
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

impl RequestHead {
    /// `GET` of nothing; allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            version: Version::Http11,
            method: Method::Get,
            scheme: "http",
            authority: String::new(),
            path: String::new(),
            upgrade: None,
            fields: Fields::new(),
        }
    }

    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.version = Version::Http11;
        self.method = Method::Get;
        self.scheme = "http";
        self.authority.clear();
        self.path.clear();
        self.upgrade = None;
        self.fields.clear();
    }
}

impl Default for RequestHead {
    fn default() -> Self {
        Self::new()
    }
}

/// A response head. Its fields follow the same rules as a request's; of a 101, `upgrade` is kept.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    pub version: Version,
    pub status: u16,
    pub fields: Fields,
}

impl ResponseHead {
    /// A status without fields.
    #[must_use]
    pub const fn new(status: u16) -> Self {
        Self { version: Version::Http11, status, fields: Fields::new() }
    }

    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.version = Version::Http11;
        self.status = 0;
        self.fields.clear();
    }

    /// 1xx, but for 101, which is final.
    #[must_use]
    pub fn is_informational(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }
}

impl Default for ResponseHead {
    fn default() -> Self {
        Self::new(0)
    }
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

impl BodyKind {
    /// Nothing follows the head.
    #[must_use]
    pub fn is_empty(self) -> bool {
        matches!(self, Self::Empty | Self::Length(0))
    }
}
