//! Field lines off the wire, checked in the memory that they are kept in (RFC 9112, 5).

use std::ops::Range;

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
        let padded = rest.get(name + 1..).unwrap_or_default();
        // Whatever may not stand in a value ends it; nothing but a CRLF may.
        let (padded, end) = padded.split_at(value_length(padded));
        match end {
            [b'\r', b'\n', ..] => {}
            [b'\n', ..] => return Err(Malformed::BareLf),
            _ => return Err(Malformed::Value),
        }
        let start = self.at;
        let value_at = start + name + 1;
        self.at = value_at + padded.len() + 2;
        let (as_we_write, leading, length) = match padded {
            // Nearly always.
            [b' ', value @ ..] if !is_padded(value) => (true, 1, value.len()),
            _ => {
                let (leading, length) = trim(padded);
                (false, leading, length)
            }
        };
        let value = value_at + leading..value_at + leading + length;
        Ok(Some(Line { name: start..start + name, value, as_we_write }))
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

fn is_padded(value: &[u8]) -> bool {
    [value.first(), value.last()].iter().any(|end| matches!(end, Some(b' ' | b'\t')))
}

/// Without spaces and tabs around it: where a value begins, and its length.
fn trim(padded: &[u8]) -> (usize, usize) {
    let mut value = padded;
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    let leading = padded.len() - value.len();
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    (leading, value.len())
}

/// Where the first byte stands that may not stand in a value (RFC 9110, 5.5: control bytes but tab), eight at a time as long
/// as there is none, not even a tab.
fn value_length(bytes: &[u8]) -> usize {
    const EACH: u64 = u64::from_le_bytes([1; 8]);
    let mut clean = 0;
    for eight in bytes.as_chunks().0 {
        let eight = u64::from_le_bytes(*eight);
        // The lowest bit that is set is right; a borrow may set higher ones.
        let control = eight.wrapping_sub(EACH * 0x20) & !eight;
        let delete = eight ^ (EACH * 0x7f);
        let hits = (control | (delete.wrapping_sub(EACH) & !delete)) & (EACH * 0x80);
        if hits != 0 {
            clean += hits.trailing_zeros() as usize / 8;
            break;
        }
        clean += 8;
    }
    let rest = bytes.get(clean..).unwrap_or_default();
    clean + rest.iter().position(|&byte| !is_value(&[byte])).unwrap_or(rest.len())
}

/// Brings the token at the front into lower case; how long it is.
fn lower_token(bytes: &mut [u8]) -> usize {
    let length = bytes.len();
    for (at, byte) in bytes.iter_mut().enumerate() {
        match LOWER[*byte as usize] {
            0 => return at,
            lower => *byte = lower,
        }
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
