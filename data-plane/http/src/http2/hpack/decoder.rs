//! Header blocks to fields.

use std::ops::Range;

use super::table::Table;
use super::{HpackError, huffman, integer, static_table};
use crate::buffers::{give_out, take_out};

/// What a peer's encoder has said so far.
#[derive(Debug)]
pub(in crate::http2) struct Decoder {
    table: Table,
    /// What our SETTINGS allow the table to be.
    max_table: usize,
}

/// Bytes of fields that a block may stand for, beside some for each of its own. A head with a hundred of the largest
/// entries is below; a block that repeats a reference to such an entry thousands of times only means to make us work.
const EXPANSION: usize = 1024 * 1024;
const EXPANSION_PER_BYTE: usize = 16;

/// A string of a block: as it stands there, or where it was decoded to.
#[derive(Debug)]
enum Text<'a> {
    Plain(&'a [u8]),
    Decoded(Range<usize>),
}

impl<'a> Text<'a> {
    fn bytes(&self, decoded: &'a [u8]) -> &'a [u8] {
        match self {
            Text::Plain(bytes) => bytes,
            Text::Decoded(range) => decoded.get(range.clone()).unwrap_or_default(),
        }
    }
}

/// Where a literal's name comes from.
#[derive(Debug)]
enum Name<'a> {
    Static(&'static [u8]),
    /// The entry of that age.
    Dynamic(usize),
    Text(Text<'a>),
}

impl Decoder {
    /// `max_table`: the SETTINGS_HEADER_TABLE_SIZE that the peer has acknowledged, or the 4096 that hold before. Allocates
    /// nothing until the peer inserts something.
    pub(in crate::http2) fn new(max_table: usize) -> Self {
        let mut table = Table::default();
        table.resize(max_table);
        Self { table, max_table }
    }

    #[cfg(test)]
    pub(super) fn table_size(&self) -> usize {
        self.table.size()
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.table.held()
    }

    /// Decodes one whole header block: calls `emit` with name and value of each field in order. Names and values are
    /// whatever the peer wrote: nothing of RFC 9113 or RFC 9110 is checked here.
    ///
    /// # Errors
    /// COMPRESSION_ERROR of the connection: no further block can be decoded.
    pub(in crate::http2) fn decode(
        &mut self,
        block: &[u8],
        mut emit: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), HpackError> {
        let mut decoded = Vec::new();
        let result = self.fields(block, &mut decoded, &mut emit);
        give_out(decoded);
        result
    }

    fn fields(
        &mut self,
        block: &[u8],
        decoded: &mut Vec<u8>,
        emit: &mut impl FnMut(&[u8], &[u8]),
    ) -> Result<(), HpackError> {
        let mut rest = self.table_sizes(block)?;
        let mut budget = EXPANSION + EXPANSION_PER_BYTE * block.len();
        while let Some((&first, behind)) = rest.split_first() {
            rest = behind;
            let length = if first & 0x80 != 0 {
                let (name, value) = self.entry(integer::read(first, 0x7f, &mut rest)?)?;
                emit(name, value);
                name.len() + value.len()
            } else if first & 0x40 != 0 {
                self.literal(first, 0x3f, &mut rest, decoded, emit)?
            } else if first & 0x20 != 0 {
                return Err(HpackError::LateTableSize);
            } else {
                // Without indexing, and never indexed: nobody here indexes what goes on.
                self.literal(first, 0x0f, &mut rest, decoded, emit)?
            };
            budget = budget.checked_sub(length).ok_or(HpackError::Bomb)?;
        }
        Ok(())
    }

    /// Changes of the table's size, which stand in front of all fields (RFC 7541, 4.2); what is behind them.
    fn table_sizes<'a>(&mut self, block: &'a [u8]) -> Result<&'a [u8], HpackError> {
        let mut rest = block;
        while let Some((&first, behind)) = rest.split_first()
            && first & 0xe0 == 0x20
        {
            rest = behind;
            let size = integer::read(first, 0x1f, &mut rest)?;
            if size > self.max_table {
                return Err(HpackError::TableSize);
            }
            self.table.resize(size);
        }
        Ok(rest)
    }

    /// The entry of that number in the tables, one behind the other (RFC 7541, 2.3.3).
    #[inline]
    fn entry(&self, number: usize) -> Result<(&[u8], &[u8]), HpackError> {
        let at = number.checked_sub(1).ok_or(HpackError::Index)?;
        match static_table::ENTRIES.get(at) {
            Some(&entry) => Ok(entry),
            None => self.table.get(at - static_table::ENTRIES.len()).ok_or(HpackError::Index),
        }
    }

    /// A field whose value stands in the block, and perhaps its name (RFC 7541, 6.2). How many bytes both have.
    fn literal(
        &mut self,
        first: u8,
        mask: u8,
        rest: &mut &[u8],
        decoded: &mut Vec<u8>,
        emit: &mut impl FnMut(&[u8], &[u8]),
    ) -> Result<usize, HpackError> {
        decoded.clear();
        let name = match integer::read(first, mask, rest)?.checked_sub(1) {
            None => Name::Text(text(rest, decoded)?),
            Some(at) => match static_table::ENTRIES.get(at) {
                Some(&(name, _)) => Name::Static(name),
                None => Name::Dynamic(at - static_table::ENTRIES.len()),
            },
        };
        let value = text(rest, decoded)?;
        let value = value.bytes(decoded);
        let insert = first & 0x40 != 0;
        let name = match name {
            Name::Static(name) => name,
            Name::Text(ref name) => name.bytes(decoded),
            Name::Dynamic(age) => {
                let (name, _) = self.table.get(age).ok_or(HpackError::Index)?;
                emit(name, value);
                let length = name.len() + value.len();
                if insert {
                    self.table.insert_named_as(age, value);
                }
                return Ok(length);
            }
        };
        emit(name, value);
        if insert {
            self.table.insert(name, value);
        }
        Ok(name.len() + value.len())
    }
}

/// A string (RFC 7541, 5.2).
#[inline]
fn text<'a>(rest: &mut &'a [u8], decoded: &mut Vec<u8>) -> Result<Text<'a>, HpackError> {
    let Some((&first, behind)) = rest.split_first() else { return Err(HpackError::Truncated) };
    *rest = behind;
    let length = integer::read(first, 0x7f, rest)?;
    let (coded, behind) = rest.split_at_checked(length).ok_or(HpackError::Truncated)?;
    *rest = behind;
    if first & 0x80 == 0 {
        return Ok(Text::Plain(coded));
    }
    if decoded.capacity() == 0 {
        *decoded = take_out();
    }
    let start = decoded.len();
    huffman::decode(coded, decoded)?;
    Ok(Text::Decoded(start..decoded.len()))
}
