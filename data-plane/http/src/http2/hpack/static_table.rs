//! The table that every connection has (RFC 7541, appendix A).

use super::table::same;

/// Name and value of an entry; the first is number 1.
pub(super) static ENTRIES: [(&[u8], &[u8]); 61] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];

/// The number of the first entry of that name.
#[inline]
pub(super) fn name(name: &[u8]) -> Option<usize> {
    let mut slot = place(name);
    loop {
        let number = usize::from(SLOTS[slot]);
        if number == 0 {
            return None;
        }
        if same(ENTRIES[number - 1].0, name) {
            return Some(number);
        }
        slot = (slot + 1) % SLOTS.len();
    }
}

/// The number of the entry of that value and of the name whose first entry is number `first`.
#[inline]
pub(super) fn field(first: usize, value: &[u8]) -> Option<usize> {
    let last = match first {
        2 | 4 | 6 => first + 1,
        8 => 14,
        _ => first,
    };
    (first..=last).find(|number| ENTRIES[number - 1].1 == value)
}

/// Where the search for a name begins: spreads the table's names well enough.
const fn place(name: &[u8]) -> usize {
    let [first, .., last] = name else { return name.len() };
    let middle = name[name.len() / 2] as usize;
    (name.len() * 7 + *first as usize * 3 + *last as usize * 29 + middle * 11) % 256
}

/// Numbers of entries by the places of their names; 0 where there is none. Sparse, so that a search is short.
static SLOTS: [u8; 256] = {
    let mut slots = [0; 256];
    let mut number = 1;
    while number <= ENTRIES.len() {
        let mut slot = place(ENTRIES[number - 1].0);
        while slots[slot] != 0 {
            slot = (slot + 1) % 256;
        }
        slots[slot] = number as u8;
        // Of entries of one name the first is the one to find.
        number += match number {
            2 | 4 | 6 => 2,
            8 => 7,
            _ => 1,
        };
    }
    slots
};
