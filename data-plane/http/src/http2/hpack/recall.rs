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
        let field = name.wrapping_add(digest(value)).wrapping_mul(SPREAD);
        Self { field: (field >> 32) as u32, name: (name >> 32) as u32 }
    }
}

const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Of a string's length, its first and its last bytes.
#[inline]
fn digest(text: &[u8]) -> u64 {
    let (first, last) = match (text.first_chunk(), text.last_chunk()) {
        (Some(&first), Some(&last)) => (u64::from_le_bytes(first), u64::from_le_bytes(last)),
        _ => match (text.first_chunk(), text.last_chunk()) {
            (Some(&first), Some(&last)) => (u64::from(u32::from_le_bytes(first)), u64::from(u32::from_le_bytes(last))),
            _ => text.iter().fold((0, 0), |(first, last), &byte| (first << 8 | u64::from(byte), last)),
        },
    };
    (first ^ last.rotate_left(31) ^ text.len() as u64).wrapping_mul(SPREAD)
}

fn place(hash: u32) -> usize {
    hash as usize % PLACES
}

impl Recall {
    /// The newest entry of that hash that `is_it` accepts by its age, among the `count` that there are.
    #[inline]
    pub(super) fn field(&mut self, hashes: Hashes, is_it: impl Fn(usize) -> bool) -> Option<usize> {
        let newest = self.newest.as_ref()?[place(hashes.field)].field;
        let age = self.walk(newest, |link| (link.field == hashes.field, link.older.field), is_it)?;
        self.link(age)?.used = true;
        Some(age)
    }

    /// The newest entry of that name.
    pub(super) fn name(&self, hashes: Hashes, is_it: impl Fn(usize) -> bool) -> Option<usize> {
        let newest = self.newest.as_ref()?[place(hashes.name)].name;
        self.walk(newest, |link| (link.name == hashes.name, link.older.name), is_it)
    }

    #[inline]
    fn walk(
        &self,
        mut number: u16,
        look: impl Fn(&Link) -> (bool, u16),
        is_it: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        for _ in 0..STEPS {
            let age = usize::from(self.inserted.wrapping_sub(number).wrapping_sub(1));
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
        self.links.push_back(Link { field, name, older, used: false, missed: field });
        self.inserted = number.wrapping_add(1);
        self.keep(count);
    }

    /// Only the newest `count` entries are left.
    pub(super) fn keep(&mut self, count: usize) {
        let gone = self.links.len().saturating_sub(count);
        self.links.drain(..gone);
    }
}
