//! Reads a request.

use bytes::{Buf, Bytes, BytesMut};

use super::{Answer, HeadEnd, MAX_FIELDS, MAX_HEAD, Request, UPGRADE};

/// Takes bytes as they come and yields the one request. **What is wrong is refused as soon as it is seen**: a first line
/// with its end, the rest with the empty line.
#[derive(Debug, Default)]
pub struct RequestReader {
    buffer: BytesMut,
    end: HeadEnd,
    line_checked: bool,
    /// The head was read; its chunked body of no bytes is still to come.
    chunked: Option<Request>,
}

impl RequestReader {
    /// Begins with bytes that were read to tell the dialect.
    #[must_use]
    pub fn new(first: BytesMut) -> Self {
        Self { buffer: first, ..Self::default() }
    }

    /// Where received bytes are to be appended.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The request, once it is whole; `None`: more bytes are needed.
    ///
    /// # Errors
    /// The answer that is due.
    pub fn next_request(&mut self) -> Result<Option<Request>, Answer> {
        if let Some(request) = self.chunked.take() {
            return self.empty_body(request);
        }
        let Some(length) = self.end.find(&self.buffer) else {
            if self.buffer.len() > MAX_HEAD {
                return Err(Answer::HeadTooLarge);
            }
            return self.check_line().map(|()| None);
        };
        if length > MAX_HEAD {
            return Err(Answer::HeadTooLarge);
        }
        let head = self.buffer.split_to(length);
        let (request, body) = parse(&head)?;
        match body {
            Body::None => Ok(Some(request)),
            Body::Chunked => self.empty_body(request),
        }
    }

    /// What came behind the request. An initiator has nothing to say there.
    #[must_use]
    pub fn into_surplus(self) -> Bytes {
        self.buffer.freeze()
    }

    /// Envoy takes a chunked body without chunks.
    fn empty_body(&mut self, request: Request) -> Result<Option<Request>, Answer> {
        let started = self.buffer.len().min(NO_CHUNKS.len());
        if self.buffer[..started] != NO_CHUNKS[..started] {
            return Err(Answer::Body);
        }
        if started < NO_CHUNKS.len() {
            self.chunked = Some(request);
            return Ok(None);
        }
        self.buffer.advance(NO_CHUNKS.len());
        Ok(Some(request))
    }

    /// A first line that is none, when it has ended.
    fn check_line(&mut self) -> Result<(), Answer> {
        if self.line_checked || !self.buffer.contains(&b'\n') {
            return Ok(());
        }
        self.line_checked = true;
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        request.parse(&self.buffer).map(drop).map_err(|error| refusal(&error))
    }
}

enum Body {
    None,
    Chunked,
}

fn parse(head: &[u8]) -> Result<(Request, Body), Answer> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    let status = parsed.parse(head).map_err(|error| refusal(&error))?;
    let (Some(method), Some(path), Some(version), true) =
        (parsed.method, parsed.path, parsed.version, status.is_complete())
    else {
        return Err(Answer::BadRequest);
    };
    if version == 0 {
        return Err(Answer::HttpVersion);
    }
    let fields: Vec<(String, Vec<u8>)> =
        parsed.headers.iter().map(|field| (field.name.to_ascii_lowercase(), field.value.to_vec())).collect();
    let values = |name: &'static str| fields.iter().filter(move |(known, _)| known == name).map(|(_, value)| value);
    let has = |name: &'static str, word: &str| {
        let mut words = values(name).flat_map(|value| value.split(|byte| *byte == b','));
        words.any(|value| value.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
    };
    let (lengths, codings) = (values("content-length").count(), values("transfer-encoding").count());
    let body = match (lengths, codings) {
        (0, 0) => Body::None,
        // RFC 9112 §6.1: both at once is how requests are smuggled.
        (1, 1..) | (0, 2..) | (2.., _) => return Err(Answer::BadRequest),
        (1, 0) if values("content-length").all(|value| value.trim_ascii() == b"0") => Body::None,
        (1, 0) => return Err(Answer::Body),
        (0, 1) if has("transfer-encoding", "chunked") => Body::Chunked,
        (0, 1) => return Err(Answer::BadRequest),
    };
    let upgrade = has("connection", "upgrade") && has("upgrade", UPGRADE);
    Ok((Request { method: method.to_owned(), path: path.to_owned(), upgrade, fields }, body))
}

fn refusal(error: &httparse::Error) -> Answer {
    match error {
        httparse::Error::TooManyHeaders => Answer::HeadTooLarge,
        _ => Answer::BadRequest,
    }
}

const NO_CHUNKS: &[u8] = b"0\r\n\r\n";
