//! A small reader of HTTP/1 messages that shares nothing with the codec under test: what a peer makes of our bytes. It is
//! strict, since we are to send nothing that needs leniency.

/// What a peer reads.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) first: String,
    /// Names as they stand.
    pub(crate) fields: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// The one value of a field.
    pub(crate) fn field(&self, name: &str) -> Option<&[u8]> {
        let mut values = self.fields.iter().filter(|(known, _)| known == name.as_bytes()).map(|(_, value)| &**value);
        let value = values.next();
        assert!(values.next().is_none(), "{name} stands twice in {self:?}");
        value
    }

    /// Of a response.
    pub(crate) fn status(&self) -> u16 {
        self.first.get(9..12).and_then(|status| status.parse().ok()).expect("a status")
    }
}

/// Whose message it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Request,
    Response,
    /// The response to a HEAD.
    Bodyless,
}

/// The first message and its length; `None`: there is more to come.
///
/// # Panics
/// It is none, or none that every peer would read alike.
pub(crate) fn read(bytes: &[u8], kind: Kind) -> Option<(Message, usize)> {
    let shown = bytes.escape_ascii();
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let mut lines = bytes[..end].split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.next().and_then(|line| std::str::from_utf8(line).ok()).expect("a first line that is text");
    let version = if kind == Kind::Request { first.ends_with(" HTTP/1.1") } else { first.starts_with("HTTP/1.1 ") };
    assert!(version, "no version in {first:?}");
    assert!(kind != Kind::Request || first.split(' ').count() == 3, "blanks in {first:?}");
    let mut message = Message { first: first.to_owned(), fields: Vec::new(), body: Vec::new() };
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or_else(|| panic!("no colon: {shown}"));
        let (name, value) = (&line[..colon], line[colon + 1..].strip_prefix(b" ").unwrap_or(&line[colon + 1..]));
        let token = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(byte);
        assert!(!name.is_empty() && name.iter().all(token), "a bad name: {shown}");
        assert!(!value.iter().any(|byte| (*byte < 32 && *byte != b'\t') || *byte == 127), "a bad value: {shown}");
        message.fields.push((name.to_vec(), value.to_vec()));
    }
    let rest = &bytes[end + 4..];
    let length = message.field("content-length").map(|value| {
        let text = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        text.and_then(|text| text.parse::<usize>().ok()).unwrap_or_else(|| panic!("no length: {shown}"))
    });
    let chunked = message.field("transfer-encoding").inspect(|coding| assert_eq!(*coding, b"chunked", "{shown}"));
    assert!(length.is_none() || chunked.is_none(), "two framings: {shown}");
    let bodyless = match kind {
        Kind::Request => false,
        Kind::Bodyless => true,
        Kind::Response => matches!(message.status(), 100..200 | 204 | 304),
    };
    let used = match (length, chunked.is_some()) {
        _ if bodyless => 0,
        (Some(length), _) => {
            message.body = rest.get(..length)?.to_vec();
            length
        }
        (None, true) => read_chunks(rest, &mut message)?,
        (None, false) if kind == Kind::Request => 0,
        (None, false) => panic!("a response without framing: {shown}"),
    };
    Some((message, end + 4 + used))
}

/// A chunked body with its trailers; its length.
fn read_chunks(bytes: &[u8], message: &mut Message) -> Option<usize> {
    let line = |at: usize| {
        let rest = bytes.get(at..)?;
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        Some((&rest[..end], at + end + 2))
    };
    let mut at = 0;
    loop {
        let (size, behind) = line(at)?;
        let digits = std::str::from_utf8(size).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let size = digits.and_then(|text| usize::from_str_radix(text, 16).ok()).expect("the size of a chunk");
        at = behind;
        if size == 0 {
            break;
        }
        message.body.extend_from_slice(bytes.get(at..at + size)?);
        assert_eq!(bytes.get(at + size..at + size + 2)?, b"\r\n", "behind a chunk");
        at += size + 2;
    }
    loop {
        let (trailer, behind) = line(at)?;
        at = behind;
        if trailer.is_empty() {
            return Some(at);
        }
    }
}
