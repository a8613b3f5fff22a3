//! Header and trailer fields as a flat list over one buffer: no allocation per field, reused from request to request.

mod section;

use std::borrow::Cow;
use std::fmt;

pub(crate) use section::{Line, Malformed, Section};

/// Fields in order of arrival. Names are lower-case and valid, values hold no control bytes but tab: [`Fields::push`]
/// and [`Fields::set`] refuse anything else, so that no field can smuggle a line (RFC 9110, 5.5).
///
/// The bytes are kept as they stand on the wire (`name: value\r\n`), so that a run of untouched fields is sent by one
/// copy.
#[derive(Default, Clone)]
pub struct Fields {
    bytes: Vec<u8>,
    list: Vec<Field>,
}

#[derive(Clone, Copy)]
struct Field {
    start: u32,
    name: u32,
    value: u32,
}

impl Field {
    const SEPARATORS: usize = b": \r\n".len();

    fn name(self) -> std::ops::Range<usize> {
        self.start as usize..self.start as usize + self.name as usize
    }

    fn value(self) -> std::ops::Range<usize> {
        let start = self.start as usize + self.name as usize + 2;
        start..start + self.value as usize
    }

    fn wire(self) -> std::ops::Range<usize> {
        let start = self.start as usize;
        start..start + self.name as usize + self.value as usize + Self::SEPARATORS
    }
}

/// A name that the program itself gives to fields: checked when it is compiled, so that no request pays for it.
#[derive(Debug, Clone, Copy)]
pub struct FieldName {
    /// As it stands on the wire: `name: `.
    wire: &'static [u8],
}

impl FieldName {
    /// `wire` is the name with what follows it on the wire: `b"server: "`. Meant for constants.
    ///
    /// # Panics
    /// It is no lower-case token with a colon and a space behind it.
    #[must_use]
    pub const fn of(wire: &'static [u8]) -> Self {
        assert!(wire.len() > 2, "no name");
        let (name, separator) = wire.split_at(wire.len() - 2);
        assert!(matches!(separator, b": "), "no separator");
        let mut at = 0;
        while at < name.len() {
            assert!(LOWER_TOKEN[name[at] as usize], "no lower-case token");
            at += 1;
        }
        Self { wire }
    }

    /// The name alone.
    #[must_use]
    pub const fn bytes(self) -> &'static [u8] {
        self.wire.split_at(self.wire.len() - 2).0
    }
}

/// A whole field that the program or its configuration gives to many messages: made and checked once, added by one copy.
#[derive(Debug, Clone)]
pub struct FieldLine {
    /// As it stands on the wire.
    wire: Cow<'static, [u8]>,
    name: usize,
}

impl FieldLine {
    /// `wire` is the field as it stands on the wire: `b"server: envoy\r\n"`. Meant for constants.
    ///
    /// # Panics
    /// It is no such line.
    #[must_use]
    pub const fn of(wire: &'static [u8]) -> Self {
        let mut colon = 0;
        while wire[colon] != b':' {
            colon += 1;
        }
        let (name, rest) = wire.split_at(colon + 2);
        let name = FieldName::of(name);
        let (value, end) = rest.split_at(rest.len() - 2);
        assert!(matches!(end, b"\r\n"), "no end");
        let mut at = 0;
        while at < value.len() {
            assert!(value[at] >= 0x20 && value[at] != 0x7f, "no value");
            at += 1;
        }
        Self { wire: Cow::Borrowed(wire), name: name.bytes().len() }
    }

    /// `None`: the value is not valid.
    #[must_use]
    pub fn new(name: FieldName, value: &[u8]) -> Option<Self> {
        let wire = || [name.wire, value, b"\r\n"].concat().into();
        is_value(value).then(|| Self { wire: wire(), name: name.bytes().len() })
    }

    fn name(&self) -> &[u8] {
        &self.wire[..self.name]
    }
}

impl Fields {
    /// None yet; allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), list: Vec::new() }
    }

    /// Appends a field. A name that is no lower-case token or a value with CR, LF, NUL or another control byte would
    /// let one field pass for two: it is refused, logged, and `false` returned.
    pub fn push(&mut self, name: &[u8], value: &[u8]) -> bool {
        let valid = self.push_lower(name, value);
        if !valid {
            tracing::warn!(name = %name.escape_ascii(), "a header field that is not valid was not added");
        }
        valid
    }

    /// As [`Self::push`], for a name that is known to be one.
    pub fn push_known(&mut self, name: FieldName, value: &[u8]) -> bool {
        let valid = is_value(value);
        if valid {
            self.append(name.wire, value);
        } else {
            tracing::warn!(name = %name.bytes().escape_ascii(), "a header field that is not valid was not added");
        }
        valid
    }

    /// Appends a whole field.
    pub fn push_line(&mut self, line: &FieldLine) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&line.wire);
        self.list_field(start, line.name, line.wire.len() - line.name - Field::SEPARATORS);
    }

    /// Replaces all fields of that name by this one at the end.
    pub fn set_line(&mut self, line: &FieldLine) {
        self.remove_first(self.list.len(), line.name());
        self.push_line(line);
    }

    /// As [`Self::set`], for a name that is known to be one.
    pub fn set_known(&mut self, name: FieldName, value: &[u8]) -> bool {
        let before = self.list.len();
        let added = self.push_known(name, value);
        if added {
            self.remove_first(before, name.bytes());
        }
        added
    }

    /// Appends a field off HTTP/2, whose names have no capitals; `false`: it is not valid, and was not added.
    pub(crate) fn push_lower(&mut self, name: &[u8], value: &[u8]) -> bool {
        let is_name = name.iter().fold(!name.is_empty(), |valid, &byte| valid & LOWER_TOKEN[byte as usize]);
        let valid = is_name && is_value(value);
        if valid {
            self.append_parts(name, value);
        }
        valid
    }

    /// Appends a field that a parser has checked already; only the case of the name is changed.
    pub(crate) fn push_valid(&mut self, name: &[u8], value: &[u8]) {
        let at = self.bytes.len();
        self.append_parts(name, value);
        if let Some(copy) = self.bytes.get_mut(at..at + name.len()) {
            copy.make_ascii_lowercase();
        }
    }

    fn append_parts(&mut self, name: &[u8], value: &[u8]) {
        self.bytes.reserve(name.len() + value.len() + Field::SEPARATORS);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(b": ");
        self.append_value(start, name.len(), value);
    }

    /// `name`: with its separator.
    fn append(&mut self, name: &[u8], value: &[u8]) {
        self.bytes.reserve(name.len() + value.len() + 2);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name);
        self.append_value(start, name.len() - 2, value);
    }

    /// Completes the field whose name begins at `start`.
    fn append_value(&mut self, start: usize, name: usize, value: &[u8]) {
        self.bytes.extend_from_slice(value);
        self.bytes.extend_from_slice(b"\r\n");
        self.list_field(start, name, value.len());
    }

    /// Makes a field of bytes that stand there as on the wire.
    fn list_field(&mut self, start: usize, name: usize, value: usize) {
        match (u32::try_from(start), u32::try_from(name), u32::try_from(value)) {
            (Ok(start), Ok(name), Ok(value)) => self.list.push(Field { start, name, value }),
            _ => tracing::warn!("a header field beyond 4 GiB was not added"),
        }
    }

    /// Takes over field lines in one copy; which of them become fields is said one by one.
    pub(crate) fn section(&mut self, lines: &[u8]) -> Section<'_> {
        Section::new(self, lines)
    }

    /// The first value of that name (lower-case).
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.list
            .iter()
            .find(|field| field.name as usize == name.len() && &self.bytes[field.name()] == name)
            .map(|field| &self.bytes[field.value()])
    }

    /// All values of that name (lower-case), in order.
    pub fn get_all<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(move |(candidate, _)| *candidate == name).map(|(_, value)| value)
    }

    /// Whether there is a field of that name (lower-case).
    #[must_use]
    pub fn contains(&self, name: &[u8]) -> bool {
        self.get(name).is_some()
    }

    /// Replaces all fields of that name by one at the end; refuses what [`Self::push`] refuses, and then changes nothing.
    pub fn set(&mut self, name: &[u8], value: &[u8]) -> bool {
        let before = self.list.len();
        let added = self.push(name, value);
        if added {
            self.remove_first(before, name);
        }
        added
    }

    /// Removes the fields of that name among the first `count`: nearly always none, or one.
    fn remove_first(&mut self, mut count: usize, name: &[u8]) {
        let mut at = 0;
        while at < count {
            let field = self.list[at];
            if field.name as usize == name.len() && &self.bytes[field.name()] == name {
                self.list.remove(at);
                count -= 1;
            } else {
                at += 1;
            }
        }
    }

    /// Removes all fields of that name (lower-case); whether there were any.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        let before = self.list.len();
        let bytes = &self.bytes;
        self.list.retain(|field| field.name as usize != name.len() || &bytes[field.name()] != name);
        self.list.len() != before
    }

    pub(crate) fn remove_ignore_case(&mut self, name: &[u8]) {
        let bytes = &self.bytes;
        self.list.retain(|field| !bytes[field.name()].eq_ignore_ascii_case(name));
    }

    /// Keeps the fields that `keep` likes.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let bytes = &self.bytes;
        self.list.retain(|field| keep(&bytes[field.name()], &bytes[field.value()]));
    }

    /// All fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.list.iter().map(|field| (&self.bytes[field.name()], &self.bytes[field.value()]))
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Bytes that the fields take on an HTTP/1 wire.
    #[must_use]
    pub fn wire_len(&self) -> usize {
        self.list.iter().map(|field| field.wire().len()).sum()
    }

    /// Forgets all fields, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.list.clear();
    }

    /// Memory held for reuse, in bytes.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity() + self.list.capacity() * size_of::<Field>()
    }

    /// Appends the fields that `keep` likes as they stand on an HTTP/1 wire.
    pub(crate) fn write_wire(&self, out: &mut Vec<u8>, mut keep: impl FnMut(&[u8]) -> bool) {
        let mut run = 0..0;
        for field in &self.list {
            if !keep(&self.bytes[field.name()]) {
                continue;
            }
            let wire = field.wire();
            if wire.start != run.end {
                out.extend_from_slice(&self.bytes[run]);
                run = wire;
            } else {
                run.end = wire.end;
            }
        }
        out.extend_from_slice(&self.bytes[run]);
    }

    /// What the fields take in memory.
    pub(crate) fn raw(&self) -> &[u8] {
        &self.bytes
    }
}

/// RFC 9110, 5.6.2: `tchar`.
pub(crate) const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
}

/// Whether a byte is a `tchar` and no capital: looked up for every byte of every name that is added.
static LOWER_TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] = is_token(byte) && !byte.is_ascii_uppercase();
        byte += 1;
    }
    table
};

/// RFC 9110, 5.5: visible bytes, space, tab and obs-text.
pub(crate) fn is_value(value: &[u8]) -> bool {
    // Without an early end, so that it is a few vector instructions.
    value.iter().fold(true, |valid, &byte| valid & ((byte == b'\t') | ((byte >= 0x20) & (byte != 0x7f))))
}

/// Names only: values may be secrets.
impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(name, _)| String::from_utf8_lossy(name))).finish()
    }
}

#[cfg(test)]
mod tests;
