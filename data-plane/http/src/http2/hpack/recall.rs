//! What an encoder knows of its table's entries, to find one by a few instructions.

use std::collections::VecDeque;

/// Finds entries by hash. **Knows no bytes**: whoever asks compares them; whatever it says wrongly costs some compression
/// and nothing else. Allocates nothing until there is an entry.
#[derive(Debug, Default)]
pub(super) struct Recall {
    /// The newest entry of each place, by the number that it was inserted as (which wraps).
    newest: Option<Box<[Places; PLACES]>>,
    /// Of all entries, the oldest first.
    links: VecDeque<Link>,
    inserted: u16,
    /// The entry that this block used last.
    last: Option<u16>,
    /// The entry that blocks begin with.
    first: u16,
    expected: u16,
}

#[derive(Debug, Clone, Copy)]
struct Places {
    field: u16,
    name: u16,
}

#[derive(Debug)]
struct Link {
    field: u32,
    name: u32,
    /// The next older entries at the same places. One that is gone ends a search, for all behind it are gone too.
    older: Places,
    /// The entry that was used behind this one.
    next: u16,
    /// It was of use since it was inserted.
    used: bool,
    /// The last field of that name that was not in the table.
    missed: u32,
}

const PLACES: usize = 64;
/// Entries that a search looks at: more at one place are an accident, or malice.
const STEPS: usize = 8;

/// Hashes of a field, and of its name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hashes {
    field: u32,
    name: u32,
}

impl Hashes {
    #[inline]
    pub(super) fn of(name: &[u8], value: &[u8]) -> Self {
        let name = digest(name);
        Self { field: mix(name, digest(value)) as u32, name: name as u32 }
    }
}

/// Of all bytes: names and values often differ in a few of them only.
fn digest(text: &[u8]) -> u64 {
    let mut digest = text.len() as u64;
    let (words, rest) = text.as_chunks();
    for &word in words {
        digest = mix(digest, u64::from_le_bytes(word));
    }
    // The last ones are looked at in one piece, with some that were seen, if there are so many.
    match (text.last_chunk(), rest) {
        (_, []) => digest,
        (Some(&last), _) => mix(digest, u64::from_le_bytes(last)),
        (None, rest) => mix(digest, rest.iter().fold(0, |word, &byte| word << 8 | u64::from(byte))),
    }
}

/// Each bit of either matters to the lower bits of what comes out.
fn mix(digest: u64, word: u64) -> u64 {
    let product = u128::from(digest ^ word ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
    product as u64 ^ (product >> 64) as u64
}

fn place(hash: u32) -> usize {
    hash as usize % PLACES
}

impl Recall {
    /// A block begins.
    pub(super) fn begin(&mut self) {
        self.last = None;
        self.expected = self.first;
    }

    /// The age of the entry that is likely to be used next: the one that was the time before, for heads repeat themselves.
    #[inline]
    pub(super) fn expected(&self) -> usize {
        self.age(self.expected)
    }

    /// The newest entry of that hash that `is_it` accepts by its age.
    pub(super) fn field(&self, hashes: Hashes, is_it: impl Fn(usize) -> bool) -> Option<usize> {
        let newest = self.newest.as_ref()?[place(hashes.field)].field;
        self.walk(newest, |link| (link.field == hashes.field, link.older.field), is_it)
    }

    /// A block refers to entry `age`.
    #[inline]
    pub(super) fn uses(&mut self, age: usize) {
        self.follow(age);
        if let Some(link) = self.link(age) {
            link.used = true;
            self.expected = link.next;
        }
    }

    /// Entry `age` is the last of this block so far.
    #[inline]
    fn follow(&mut self, age: usize) {
        let number = self.inserted.wrapping_sub(1).wrapping_sub(age as u16);
        if number != self.expected {
            match self.last.map(|last| self.age(last)) {
                None => self.first = number,
                Some(last) => _ = self.link(last).map(|link| link.next = number),
            }
        }
        self.last = Some(number);
    }

    /// How many entries were inserted since that one.
    #[inline]
    fn age(&self, number: u16) -> usize {
        usize::from(self.inserted.wrapping_sub(number).wrapping_sub(1))
    }

    /// The newest entry of that name.
    pub(super) fn name(&self, hashes: Hashes, is_it: impl Fn(usize) -> bool) -> Option<usize> {
        let newest = self.newest.as_ref()?[place(hashes.name)].name;
        self.walk(newest, |link| (link.name == hashes.name, link.older.name), is_it)
    }

    fn walk(
        &self,
        mut number: u16,
        look: impl Fn(&Link) -> (bool, u16),
        is_it: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        for _ in 0..STEPS {
            let age = self.age(number);
            let link = self.links.get(self.links.len().checked_sub(age + 1)?)?;
            let (same, older) = look(link);
            if same && is_it(age) {
                return Some(age);
            }
            number = older;
        }
        None
    }

    fn link(&mut self, age: usize) -> Option<&mut Link> {
        let at = self.links.len().checked_sub(age + 1)?;
        self.links.get_mut(at)
    }

    /// Whether a field that the table lacks should go into it, although entry `age` has its name. Not if values of that
    /// name differ each time: then entries of it only push out others.
    pub(super) fn is_worth(&mut self, age: usize, hashes: Hashes) -> bool {
        let Some(link) = self.link(age) else { return true };
        let seen_before = std::mem::replace(&mut link.missed, hashes.field) == hashes.field;
        link.used || seen_before
    }

    /// An entry was inserted, of which and of older ones `count` are left.
    pub(super) fn inserted(&mut self, hashes: Hashes, count: usize) {
        // Numbers of no entry: as far as can be behind the first.
        let none = Places { field: u16::MAX / 2, name: u16::MAX / 2 };
        let newest = self.newest.get_or_insert_with(|| Box::new([none; PLACES]));
        let number = self.inserted;
        let older = Places {
            field: std::mem::replace(&mut newest[place(hashes.field)].field, number),
            name: std::mem::replace(&mut newest[place(hashes.name)].name, number),
        };
        let Hashes { field, name } = hashes;
        self.links.push_back(Link { field, name, older, next: number, used: false, missed: field });
        self.inserted = number.wrapping_add(1);
        self.keep(count);
        self.follow(0);
    }

    /// Only the newest `count` entries are left.
    pub(super) fn keep(&mut self, count: usize) {
        let gone = self.links.len().saturating_sub(count);
        self.links.drain(..gone);
    }
}
