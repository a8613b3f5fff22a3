//! Header blocks into our heads, field by field as HPACK yields them, and what is wrong with them (RFC 9113, 8.1 to 8.3).

use crate::fields::is_token;
use crate::http1::fields::{MAX_FIELDS, content_length, is_forbidden_trailer};
use crate::http1::target::{is_authority, is_path};
use crate::{BodyKind, Fields, Method, RequestHead, ResponseHead, Version};

/// What a server takes of a request's head.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadLimits {
    pub(super) bytes: usize,
    pub(super) fields: usize,
    pub(super) custom_methods: bool,
    pub(super) extended_connect: bool,
    /// `http` or `https`.
    pub(super) scheme: &'static str,
}

/// Why a message goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The stream is reset: the message is malformed (RFC 9113, 8.1.1).
    Malformed(&'static str),
    Answer(u16, &'static str),
}

use Refusal::{Answer, Malformed};

/// What a field counts beside its bytes (RFC 9113, 6.5.2).
const OVERHEAD: usize = 32;
/// A longer path is answered by 414.
const MAX_PATH: usize = 8 * 1024;

/// A request as it is read.
#[derive(Debug)]
pub(super) struct RequestReader<'a> {
    head: &'a mut RequestHead,
    limits: &'a HeadLimits,
    size: usize,
    fields: usize,
    seen: Seen,
    crumbs: u32,
    length: Option<u64>,
    malformed: Option<&'static str>,
    answer: Option<(u16, &'static str)>,
}

#[derive(Debug, Default)]
struct Seen {
    method: bool,
    scheme: bool,
    authority: bool,
    path: bool,
    host: bool,
    regular: bool,
}

impl<'a> RequestReader<'a> {
    pub(super) fn new(head: &'a mut RequestHead, limits: &'a HeadLimits) -> Self {
        head.clear();
        head.version = Version::Http2;
        head.scheme = limits.scheme;
        Self {
            head,
            limits,
            size: 0,
            fields: 0,
            seen: Seen::default(),
            crumbs: 0,
            length: None,
            malformed: None,
            answer: None,
        }
    }

    /// The next field. Once something is wrong nothing more is kept.
    pub(super) fn field(&mut self, name: &[u8], value: &[u8]) {
        self.size += name.len() + value.len() + OVERHEAD;
        if self.size > self.limits.bytes || self.malformed.is_some() {
            return;
        }
        let read = match name.first() {
            Some(b':') => self.pseudo(name, value),
            _ => self.regular(name, value),
        };
        match read {
            Ok(()) => {}
            Err(Malformed(detail)) => self.malformed = Some(detail),
            Err(Answer(status, detail)) => {
                self.answer.get_or_insert((status, detail));
            }
        }
    }

    fn pseudo(&mut self, name: &[u8], value: &[u8]) -> Result<(), Refusal> {
        if self.seen.regular {
            return Err(Malformed("a pseudo-header behind a header"));
        }
        let text = || std::str::from_utf8(value);
        let seen = match name {
            b":method" => {
                let method = text().ok().and_then(|method| Method::parse(method, self.limits.custom_methods));
                match method {
                    Some(method) => self.head.method = method,
                    None => self.answer = Some((400, "unknown method")),
                }
                &mut self.seen.method
            }
            b":scheme" => {
                if !is_scheme(value) {
                    return Err(Malformed("malformed :scheme"));
                }
                &mut self.seen.scheme
            }
            b":authority" => {
                self.head.authority.push_str(text().unwrap_or(" "));
                &mut self.seen.authority
            }
            b":path" if value.is_empty() => return Err(Malformed("an empty :path")),
            b":path" => {
                self.head.path.push_str(text().unwrap_or(" "));
                &mut self.seen.path
            }
            b":protocol" if self.limits.extended_connect && self.head.upgrade.is_none() => {
                // RFC 8441, 4: the name of an upgrade. Over HTTP/1 anything else could not be asked for, and would be a
                // plain GET.
                let protocol = text().ok().filter(|protocol| is_upgrade(protocol));
                let protocol = protocol.ok_or(Malformed("malformed :protocol"))?;
                self.head.upgrade = Some(protocol.into());
                return Ok(());
            }
            _ => return Err(Malformed("an unknown pseudo-header")),
        };
        if std::mem::replace(seen, true) { Err(Malformed("a pseudo-header twice")) } else { Ok(()) }
    }

    fn regular(&mut self, name: &[u8], value: &[u8]) -> Result<(), Refusal> {
        self.seen.regular = true;
        self.fields += 1;
        if self.fields > self.limits.fields {
            return Ok(());
        }
        // RFC 9113, 8.2.1. Whoever reads it off HTTP/1 sees it without: a matcher here would have judged another value.
        if is_padded(value) {
            return Err(Malformed("white space around a header value"));
        }
        match name.len() {
            2 | 10 | 7 | 16 | 17 if !is_for_http2(name, value) => {
                return Err(Malformed("a field of HTTP/1's connections"));
            }
            4 if name == b"host" => return self.host(value),
            6 if name == b"cookie" => self.crumbs += 1,
            6 if name == b"expect" && !value.eq_ignore_ascii_case(b"100-continue") => {
                return Err(Answer(417, "unknown expectation"));
            }
            14 if name == b"content-length" => {
                let length = content_length(value).ok_or(Malformed("malformed content-length"))?;
                if self.length.replace(length).is_some() {
                    return Err(Malformed("more than one content-length"));
                }
            }
            _ => {}
        }
        if self.head.fields.push_lower(name, value) { Ok(()) } else { Err(Malformed("a malformed header")) }
    }

    fn host(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if std::mem::replace(&mut self.seen.host, true) {
            return Err(Malformed("more than one host"));
        }
        if !self.seen.authority {
            self.head.authority.push_str(std::str::from_utf8(value).unwrap_or_default());
        } else if !self.head.authority.as_bytes().eq_ignore_ascii_case(value) {
            return Err(Malformed("host differs from :authority"));
        }
        Ok(())
    }

    /// The whole head, and the length that it promises.
    ///
    /// # Errors
    /// It is malformed, too large, or cannot be routed.
    pub(super) fn finish(self, ended: bool) -> Result<Option<u64>, Refusal> {
        if let Some(detail) = self.malformed {
            return Err(Malformed(detail));
        }
        if self.size > self.limits.bytes {
            return Err(Answer(431, "the request's head is too large"));
        }
        let plain_connect = self.head.method == Method::Connect && self.head.upgrade.is_none();
        let seen = &self.seen;
        if !seen.method || self.head.upgrade.is_some() && self.head.method != Method::Connect {
            return Err(Malformed("pseudo-headers that are no request's"));
        }
        let target = if plain_connect { !seen.scheme && !seen.path } else { seen.scheme && seen.path };
        if !target {
            return Err(Malformed("pseudo-headers that are no request's"));
        }
        if ended && self.length.is_some_and(|length| length > 0) {
            return Err(Malformed("a length without a body"));
        }
        if let Some((status @ 400, detail)) = self.answer {
            return Err(Answer(status, detail));
        }
        if self.fields > self.limits.fields {
            return Err(Answer(431, "too many header fields"));
        }
        self.check_target(plain_connect)?;
        if let Some((status, detail)) = self.answer {
            return Err(Answer(status, detail));
        }
        if self.crumbs > 1 {
            // RFC 9113, 8.2.3: crumbs become one field before they leave HTTP/2.
            let values: Vec<&[u8]> = self.head.fields.get_all(b"cookie").collect();
            let joined = values.join(&b"; "[..]);
            self.head.fields.remove(b"cookie");
            self.head.fields.push_valid(b"cookie", &joined);
        }
        Ok(self.length)
    }

    fn check_target(&self, plain_connect: bool) -> Result<(), Refusal> {
        if !self.seen.authority && !self.seen.host {
            return Err(Answer(400, "no :authority"));
        }
        if !is_authority(self.head.authority.as_bytes(), plain_connect) {
            return Err(Answer(400, "malformed :authority"));
        }
        let path = &self.head.path;
        if plain_connect {
            return Ok(());
        }
        let valid = path.starts_with('/') || (path == "*" && self.head.method == Method::Options);
        if !valid || !is_path(path.as_bytes()) {
            return Err(Answer(400, "malformed :path"));
        }
        if path.len() > MAX_PATH {
            return Err(Answer(414, "the request target exceeds 8 KiB"));
        }
        Ok(())
    }
}

/// A response as it is read.
#[derive(Debug)]
pub(super) struct ResponseReader<'a> {
    head: &'a mut ResponseHead,
    most: usize,
    size: usize,
    regular: bool,
    length: Option<u64>,
    malformed: Option<&'static str>,
}

impl<'a> ResponseReader<'a> {
    /// `most`: bytes that its fields may have.
    pub(super) fn new(head: &'a mut ResponseHead, most: usize) -> Self {
        head.clear();
        head.version = Version::Http2;
        Self { head, most, size: 0, regular: false, length: None, malformed: None }
    }

    pub(super) fn field(&mut self, name: &[u8], value: &[u8]) {
        self.size += name.len() + value.len() + OVERHEAD;
        if self.size > self.most || self.malformed.is_some() {
            return;
        }
        if name.first() == Some(&b':') {
            if self.regular || name != b":status" || self.head.status != 0 {
                self.malformed = Some("malformed pseudo-headers in the response");
            }
            self.head.status = match value {
                [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
                    u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')
                }
                _ => 0,
            };
            return;
        }
        self.regular = true;
        if self.head.fields.len() >= MAX_FIELDS {
            self.malformed = Some("too many header fields in the response");
            return;
        }
        if matches!(name.len(), 2 | 10 | 7 | 16 | 17) && !is_for_http2(name, value) {
            self.malformed = Some("a field of HTTP/1's connections in the response");
        } else if name == b"content-length" {
            self.length = content_length(value);
            if self.length.is_none() {
                self.malformed = Some("malformed content-length");
            }
        }
        if !self.head.fields.push_lower(name, value.trim_ascii()) {
            self.malformed = Some("a malformed header in the response");
        }
    }

    /// The whole head, and the length that it promises.
    ///
    /// # Errors
    /// It is malformed or too large.
    pub(super) fn finish(self) -> Result<Option<u64>, &'static str> {
        match self.malformed {
            Some(detail) => Err(detail),
            None if self.size > self.most => Err("the response's head is too large"),
            None if self.head.status == 0 => Err("a response without a status"),
            None if self.head.status == 101 => Err("a 101 in HTTP/2"),
            None => Ok(self.length),
        }
    }
}

/// Trailers as they are read.
#[derive(Debug, Default)]
pub(super) struct TrailersReader {
    kept: Fields,
    size: usize,
    fields: usize,
    malformed: bool,
}

impl TrailersReader {
    /// `most`: bytes that they may have.
    pub(super) fn field(&mut self, name: &[u8], value: &[u8], most: usize) {
        self.size += name.len() + value.len() + OVERHEAD;
        self.fields += 1;
        if self.size > most || self.malformed {
            return;
        }
        if name.first() == Some(&b':') || matches!(name.len(), 2 | 10 | 7 | 16 | 17) && !is_for_http2(name, value) {
            self.malformed = true;
        } else if !is_forbidden_trailer(name) {
            self.malformed = !self.kept.push_lower(name, value.trim_ascii());
        }
    }

    /// How many there were, those included that are not kept.
    pub(super) fn count(&self) -> usize {
        self.fields
    }

    /// # Errors
    /// They are malformed or too many.
    pub(super) fn finish(self, most: usize) -> Result<Fields, &'static str> {
        match self.malformed {
            true => Err("malformed trailers"),
            false if self.size > most => Err("the trailers are too large"),
            false => Ok(self.kept),
        }
    }
}

/// How a body ends, by its head's fields; `ended`: it has already.
pub(super) fn body_kind(fields: &Fields, ended: bool) -> BodyKind {
    match fields.get(b"content-length").and_then(content_length) {
        _ if ended => BodyKind::Empty,
        Some(length) => BodyKind::Length(length),
        None => BodyKind::Stream,
    }
}

/// Whether HTTP/2 knows the field (RFC 9113, 8.2.2).
fn is_for_http2(name: &[u8], value: &[u8]) -> bool {
    match name {
        b"te" => value.eq_ignore_ascii_case(b"trailers"),
        b"connection" | b"keep-alive" | b"upgrade" | b"proxy-connection" | b"transfer-encoding" => false,
        _ => true,
    }
}

fn is_padded(value: &[u8]) -> bool {
    let space = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_whitespace);
    space(value.first()) || space(value.last())
}

/// RFC 3986, 3.1.
fn is_scheme(value: &[u8]) -> bool {
    value.first().is_some_and(u8::is_ascii_alphabetic)
        && value.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

/// RFC 9110, 7.8: `protocol-name ["/" protocol-version]`.
fn is_upgrade(protocol: &str) -> bool {
    let (name, version) = protocol.split_once('/').unwrap_or((protocol, "x"));
    [name, version].iter().all(|token| !token.is_empty() && token.bytes().all(is_token))
}
