//! Fields to header blocks.

use super::recall::{Hashes, Recall};
use super::table::Table;
use super::{DEFAULT_TABLE, huffman, integer, static_table};

/// What a peer's decoder was told so far.
#[derive(Debug, Default)]
pub(in crate::http2) struct Encoder {
    table: Table,
    recall: Recall,
    /// Sizes of the table that the peer has to be told: the smallest since the last block, and the last (RFC 7541, 4.2).
    resize: Option<(usize, usize)>,
}

/// Indexed field, literal with incremental indexing, without, and never indexed (RFC 7541, 6).
const INDEXED: (u8, u8) = (0x80, 0x7f);
const INSERTED: (u8, u8) = (0x40, 0x3f);
const LITERAL: (u8, u8) = (0x00, 0x0f);
const NEVER_INDEXED: (u8, u8) = (0x10, 0x0f);

/// Shorter values that no table keeps go plain: what Huffman's code saves of them is not worth the work of both sides.
const WORTH_CODING: usize = 64;
/// A cookie below that can be guessed (RFC 7541, 7.1.3).
const SHORT_COOKIE: usize = 20;

const AUTHORIZATION: usize = 23;
const COOKIE: usize = 32;
const PROXY_AUTHORIZATION: usize = 49;

impl Encoder {
    /// Allocates nothing until something is inserted.
    pub(in crate::http2) fn new() -> Self {
        Self::default()
    }

    #[cfg(test)]
    pub(super) fn table_size(&self) -> usize {
        self.table.size()
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE; the next block says what is made of it. No more than 4096 bytes are used.
    pub(in crate::http2) fn peer_allows(&mut self, max_table: u32) {
        let size = usize::try_from(max_table).unwrap_or(usize::MAX).min(DEFAULT_TABLE);
        match &mut self.resize {
            Some((smallest, last)) => (*smallest, *last) = (size.min(*smallest), size),
            None if size == self.table.limit() => {}
            None => self.resize = Some((size, size)),
        }
    }

    /// At the start of each block.
    pub(in crate::http2) fn begin(&mut self, out: &mut Vec<u8>) {
        self.recall.begin();
        let Some((smallest, last)) = self.resize.take() else { return };
        if smallest < last {
            integer::write(smallest, 0x1f, 0x20, out);
            self.table.resize(smallest);
        }
        integer::write(last, 0x1f, 0x20, out);
        self.table.resize(last);
        self.recall.keep(self.table.len());
    }

    /// Appends a field, in the shortest form that is worth the work. `name` is in lower case.
    pub(in crate::http2) fn field(&mut self, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        // Nothing that is a secret or in the static table is ever in ours.
        let expected = self.recall.expected();
        if self.table.is(expected, name, value) {
            return self.refer(expected, out);
        }
        let known = static_table::name(name);
        if let Some(number) = known.and_then(|first| static_table::field(first, value)) {
            return integer::write(number, INDEXED.1, INDEXED.0, out);
        }
        if is_secret(known, value) {
            return literal(NEVER_INDEXED, known, name, value, out);
        }
        let hashes = Hashes::of(name, value);
        let table = &self.table;
        match self.recall.field(hashes, |age| table.is(age, name, value)) {
            Some(age) => self.refer(age, out),
            None => self.absent(known, name, value, hashes, out),
        }
    }

    #[inline]
    fn refer(&mut self, age: usize, out: &mut Vec<u8>) {
        self.recall.uses(age);
        integer::write(number(age), INDEXED.1, INDEXED.0, out);
    }

    /// A field that no table has.
    fn absent(&mut self, known: Option<usize>, name: &[u8], value: &[u8], hashes: Hashes, out: &mut Vec<u8>) {
        let table = &self.table;
        let named = self.recall.name(hashes, |age| table.is_named(age, name));
        let known = known.or(named.map(number));
        if named.is_some_and(|age| !self.recall.is_worth(age, hashes)) || !self.table.has_room(name, value) {
            return literal(LITERAL, known, name, value, out);
        }
        literal(INSERTED, known, name, value, out);
        self.table.insert(name, value);
        self.recall.inserted(hashes, self.table.len());
    }
}

/// The number of the entry of that age (RFC 7541, 2.3.3).
fn number(age: usize) -> usize {
    static_table::ENTRIES.len() + 1 + age
}

/// What no table on the way may keep, lest somebody find it out by trying (RFC 7541, 7.1.3).
fn is_secret(known: Option<usize>, value: &[u8]) -> bool {
    match known {
        Some(AUTHORIZATION | PROXY_AUTHORIZATION) => true,
        Some(COOKIE) => value.len() < SHORT_COOKIE,
        _ => false,
    }
}

/// A field whose value is spelled, and its name too if no entry has it.
fn literal(form: (u8, u8), named_as: Option<usize>, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    integer::write(named_as.unwrap_or(0), form.1, form.0, out);
    if named_as.is_none() {
        text(name, true, out);
    }
    text(value, form == INSERTED || value.len() >= WORTH_CODING, out);
}

/// A string (RFC 7541, 5.2), in Huffman's code if that is shorter and `worth` it.
fn text(text: &[u8], worth: bool, out: &mut Vec<u8>) {
    let coded = if worth { huffman::encoded_len(text) } else { usize::MAX };
    if coded < text.len() {
        integer::write(coded, 0x7f, 0x80, out);
        huffman::encode(text, out);
    } else {
        integer::write(text.len(), 0x7f, 0, out);
        out.extend_from_slice(text);
    }
}
