//! Field lines off the wire, checked in the memory that they are kept in (RFC 9112, 5).

use std::ops::Range;

use memchr::memchr;

use super::{Field, Fields, is_token, is_value};

/// The field lines of a head or trailer section: [`Self::next_line`] checks them one after the other, [`Self::keep`]
/// makes a field of one. Strict where neighbours differ: a line ends in CRLF and in nothing else, no line continues
/// another, and no white space stands before a colon.
#[derive(Debug)]
pub(crate) struct Section<'a> {
    fields: &'a mut Fields,
    /// Where the lines begin among the fields' bytes.
    base: usize,
    /// Where the next line begins among the lines.
    at: usize,
    /// Where the lines end; what is copied once more stands behind them.
    end: usize,
}

/// A field line; all ranges are among the lines as they came.
#[derive(Debug)]
pub(crate) struct Line {
    name: Range<usize>,
    pub(crate) value: Range<usize>,
    /// It stands there as we write fields: `name: value`, CRLF.
    as_we_write: bool,
}

/// What is wrong with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Malformed {
    Name,
    Value,
    BareLf,
}

impl<'a> Section<'a> {
    /// Copies `lines` behind what `fields` hold.
    pub(super) fn new(fields: &'a mut Fields, lines: &[u8]) -> Self {
        let base = fields.bytes.len();
        fields.bytes.extend_from_slice(lines);
        Self { fields, base, at: 0, end: lines.len() }
    }

    /// The next line, its name in lower case from here on; `None` at the blank line and where the lines end.
    ///
    /// # Errors
    /// The line is malformed.
    pub(crate) fn next_line(&mut self) -> Result<Option<Line>, Malformed> {
        let rest = self.fields.bytes.get_mut(self.base + self.at..self.base + self.end).unwrap_or_default();
        let name = lower_token(rest);
        match rest.get(name) {
            Some(b':') if name > 0 => {}
            Some(b'\r') if rest == b"\r\n" => return Ok(None),
            None if rest.is_empty() => return Ok(None),
            Some(b'\n') => return Err(Malformed::BareLf),
            _ => return Err(Malformed::Name),
        }
        let behind = rest.get(name + 1..).unwrap_or_default();
        let end = memchr(b'\n', behind).ok_or(Malformed::Value)?;
        let Some((b'\r', line)) = behind.get(..end).and_then(<[u8]>::split_last) else {
            return Err(Malformed::BareLf);
        };
        let leading = line.iter().take_while(|byte| is_padding(**byte)).count();
        let trailing = line.iter().skip(leading).rev().take_while(|byte| is_padding(**byte)).count();
        let value = leading..line.len() - trailing;
        if !is_value(line.get(value.clone()).unwrap_or_default()) {
            return Err(Malformed::Value);
        }
        let as_we_write = line.starts_with(b" ") && leading == 1 && trailing == 0;
        let start = self.at;
        let value_at = start + name + 1;
        self.at = value_at + end + 1;
        Ok(Some(Line { name: start..start + name, value: value_at + value.start..value_at + value.end, as_we_write }))
    }

    /// A line's name, in lower case.
    pub(crate) fn name(&self, line: &Line) -> &[u8] {
        self.fields.bytes.get(self.base..).and_then(|lines| lines.get(line.name.clone())).unwrap_or_default()
    }

    /// Makes a field of a line. One that does not stand there as we write fields is copied once more.
    pub(crate) fn keep(&mut self, line: &Line) {
        let place = |range: &Range<usize>| self.base + range.start..self.base + range.end;
        let (name, value) = (place(&line.name), place(&line.value));
        if line.as_we_write {
            self.fields.list_field(name.start, name.len(), value.len());
            return;
        }
        let bytes = &mut self.fields.bytes;
        let start = bytes.len();
        bytes.reserve(name.len() + value.len() + Field::SEPARATORS);
        bytes.extend_from_within(name.clone());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_within(value.clone());
        bytes.extend_from_slice(b"\r\n");
        self.fields.list_field(start, name.len(), value.len());
    }

    /// The fields, to add what no line says as it is kept.
    pub(crate) fn fields(&mut self) -> &mut Fields {
        self.fields
    }
}

const fn is_padding(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// Brings the token at the front into lower case; how long it is.
fn lower_token(bytes: &mut [u8]) -> usize {
    let mut length = 0;
    for byte in bytes {
        match LOWER[*byte as usize] {
            0 => break,
            lower => *byte = lower,
        }
        length += 1;
    }
    length
}

/// A `tchar` in lower case; 0 for any other byte.
static LOWER: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        if is_token(byte) {
            table[byte as usize] = byte.to_ascii_lowercase();
        }
        byte += 1;
    }
    table
};
