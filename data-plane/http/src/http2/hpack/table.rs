//! The dynamic table (RFC 7541, 2.3.2): the newest entries, as many as fit.

use std::collections::VecDeque;
use std::ops::Range;

use super::{DEFAULT_TABLE, ENTRY_OVERHEAD};

/// Entries over one run of bytes; allocates nothing until there is one. **Never counts more than `limit`**, and holds
/// a few times as many bytes at most, those of entries that are gone among them.
#[derive(Debug)]
pub(super) struct Table {
    /// The oldest first.
    entries: VecDeque<Entry>,
    bytes: Vec<u8>,
    /// What stood in front of `bytes` and is gone; places of entries count from before it, and wrap.
    gone: u32,
    size: usize,
    limit: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    start: u32,
    name: u32,
    value: u32,
}

impl Entry {
    fn size(self) -> usize {
        self.name as usize + self.value as usize + ENTRY_OVERHEAD
    }
}

/// So many bytes of entries that are gone are worth moving the others.
const WORTH_MOVING: usize = 256;

impl Default for Table {
    fn default() -> Self {
        Self { entries: VecDeque::new(), bytes: Vec::new(), gone: 0, size: 0, limit: DEFAULT_TABLE }
    }
}

impl Table {
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// As RFC 7541, 4.1 counts it.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Memory, in bytes.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<Entry>()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Name and value of an entry; the newest is 0.
    #[inline]
    pub(super) fn get(&self, age: usize) -> Option<(&[u8], &[u8])> {
        let (name, value) = self.place(age)?;
        Some((self.bytes.get(name)?, self.bytes.get(value)?))
    }

    /// Whether an entry is this field.
    #[inline]
    pub(super) fn is(&self, age: usize, name: &[u8], value: &[u8]) -> bool {
        self.get(age).is_some_and(|entry| same(entry.0, name) && same(entry.1, value))
    }

    /// Whether an entry has this name.
    pub(super) fn is_named(&self, age: usize, name: &[u8]) -> bool {
        self.get(age).is_some_and(|entry| same(entry.0, name))
    }

    #[inline]
    fn place(&self, age: usize) -> Option<(Range<usize>, Range<usize>)> {
        let entry = self.entries.get(self.entries.len().wrapping_sub(age + 1))?;
        let name = entry.start.wrapping_sub(self.gone) as usize;
        let value = name + entry.name as usize;
        Some((name..value, value..value + entry.value as usize))
    }

    /// Adds an entry in front of all others; whether it is there. One that cannot fit empties the table (RFC 7541, 4.4).
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) -> bool {
        let fits = self.make_room(name.len(), value.len());
        if fits {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(name);
            self.complete(start, value);
        }
        fits
    }

    /// As [`Self::insert`], with the name of entry `age`, which is there. It may be one that has to make room.
    pub(super) fn insert_named_as(&mut self, age: usize, value: &[u8]) {
        let Some((name, _)) = self.place(age) else { return };
        if self.make_room(name.len(), value.len()) {
            let start = self.bytes.len();
            self.bytes.extend_from_within(name);
            self.complete(start, value);
        }
    }

    /// Whether such an entry fits at all.
    pub(super) fn has_room(&self, name: &[u8], value: &[u8]) -> bool {
        name.len() + value.len() + ENTRY_OVERHEAD <= self.limit
    }

    fn make_room(&mut self, name: usize, value: usize) -> bool {
        let needed = name + value + ENTRY_OVERHEAD;
        self.shrink_to(self.limit.saturating_sub(needed));
        let fits = needed <= self.limit;
        self.size += if fits { needed } else { 0 };
        fits
    }

    /// Makes an entry of the name that begins at `start` and of `value`.
    #[expect(clippy::cast_possible_truncation, reason = "an entry that fits into a table is far below 4 GiB")]
    fn complete(&mut self, start: usize, value: &[u8]) {
        let name = (self.bytes.len() - start) as u32;
        self.bytes.extend_from_slice(value);
        let start = self.gone.wrapping_add(start as u32);
        self.entries.push_back(Entry { start, name, value: value.len() as u32 });
        let oldest = self.place(self.entries.len() - 1).map_or(0, |(name, _)| name.start);
        if oldest >= WORTH_MOVING && oldest >= self.bytes.len() - oldest {
            self.bytes.drain(..oldest);
            self.gone = self.gone.wrapping_add(oldest as u32);
        }
    }

    /// Sets how much there may be.
    pub(super) fn resize(&mut self, limit: usize) {
        self.limit = limit;
        self.shrink_to(limit);
        if self.entries.is_empty() {
            self.bytes = Vec::new();
        }
    }

    fn shrink_to(&mut self, size: usize) {
        while self.size > size {
            let Some(entry) = self.entries.pop_front() else { break };
            self.size -= entry.size();
        }
    }
}

/// As `==`, without a call for the short strings that most names and many values are.
#[inline]
pub(super) fn same(one: &[u8], other: &[u8]) -> bool {
    match (one.first_chunk::<8>(), one.last_chunk::<8>()) {
        (Some(first), Some(last)) if one.len() <= 16 && one.len() == other.len() => {
            other.first_chunk() == Some(first) && other.last_chunk() == Some(last)
        }
        _ => one == other,
    }
}
