//! Which virtual host a request's host belongs to: exact, then the longest `*.suffix`, then the longest `prefix.*`,
//! then `*`. Each step costs one hash per distinct length.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

type Map = HashMap<Box<[u8]>, u32, RandomState>;

/// Domains of all virtual hosts of a table, to the virtual host's index.
#[derive(Debug, Default)]
pub(crate) struct Domains {
    exact: Map,
    /// What follows the `*`, by its length, longest first.
    suffixes: Vec<(usize, Map)>,
    /// What stands before the `*`, by its length, longest first.
    prefixes: Vec<(usize, Map)>,
    any: Option<u32>,
}

impl Domains {
    /// `domains` are lower-case, as the model guarantees; of equal ones the first counts.
    pub(crate) fn compile<'a>(domains: impl Iterator<Item = (&'a str, u32)>) -> Self {
        let mut compiled = Self::default();
        for (domain, host) in domains {
            if domain == "*" {
                compiled.any.get_or_insert(host);
            } else if let Some(suffix) = domain.strip_prefix('*') {
                insert(&mut compiled.suffixes, suffix, host);
            } else if let Some(prefix) = domain.strip_suffix('*') {
                insert(&mut compiled.prefixes, prefix, host);
            } else {
                compiled.exact.entry(domain.as_bytes().into()).or_insert(host);
            }
        }
        compiled.suffixes.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        compiled.prefixes.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        compiled
    }

    /// The virtual host of `authority`, compared without regard to case.
    pub(crate) fn find(&self, authority: &[u8], ignore_port: bool) -> Option<u32> {
        if self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty() {
            return self.any;
        }
        let host = if ignore_port { without_port(authority) } else { authority };
        if host.iter().any(u8::is_ascii_uppercase) {
            let lower: SmallVec<[u8; 256]> = host.iter().map(u8::to_ascii_lowercase).collect();
            return self.find_lower(&lower);
        }
        self.find_lower(host)
    }

    fn find_lower(&self, host: &[u8]) -> Option<u32> {
        if let Some(found) = self.exact.get(host) {
            return Some(*found);
        }
        // A wildcard stands for at least one character.
        let suffix = self.suffixes.iter().find_map(|(length, map)| {
            let start = host.len().checked_sub(*length).filter(|start| *start > 0)?;
            map.get(host.get(start..)?)
        });
        let found = suffix.or_else(|| {
            self.prefixes
                .iter()
                .filter(|(length, _)| *length < host.len())
                .find_map(|(length, map)| map.get(host.get(..*length)?))
        });
        found.copied().or(self.any)
    }
}

fn insert(lengths: &mut Vec<(usize, Map)>, text: &str, host: u32) {
    let map = match lengths.iter().position(|(length, _)| *length == text.len()) {
        Some(index) => lengths.get_mut(index),
        None => {
            lengths.push((text.len(), Map::default()));
            lengths.last_mut()
        }
    };
    if let Some((_, map)) = map {
        map.entry(text.as_bytes().into()).or_insert(host);
    }
}

/// `host` without `:port`. An IPv6 address keeps its brackets.
pub(crate) fn without_port(authority: &[u8]) -> &[u8] {
    let Some(colon) = memchr::memrchr(b':', authority) else { return authority };
    let (host, port) = authority.split_at(colon);
    let is_port = port.len() > 1 && port.iter().skip(1).all(u8::is_ascii_digit);
    // Colons inside an unbracketed IPv6 address are no port separators.
    let bracketed_or_name = host.ends_with(b"]") || !host.contains(&b':');
    if is_port && bracketed_or_name { host } else { authority }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoys_search_order() {
        let domains = [
            "www.example.com",
            "*.example.com",
            "*-bar.example.com",
            "www.example.*",
            "www.*",
            "*",
            "api.example.com:8080",
        ];
        let table = Domains::compile(domains.iter().zip(0..).map(|(domain, index)| (*domain, index)));
        for (host, expected) in [
            ("www.example.com", 0),
            ("WWW.Example.COM", 0),
            ("api.example.com", 1),
            ("a.b.example.com", 1),
            ("foo-bar.example.com", 2),
            ("-bar.example.com", 1),
            (".example.com", 5),
            ("example.com", 5),
            ("www.example.org", 3),
            ("www.other.org", 4),
            ("www.", 5),
            ("api.example.com:8080", 6),
            ("api.example.com:8081", 5),
        ] {
            assert_eq!(table.find(host.as_bytes(), false), Some(expected), "{host} belongs to {expected}");
        }
        assert_eq!(table.find(b"www.example.com:99", true), Some(0), "the port is ignored when asked for");
    }

    #[test]
    fn no_domain_no_host() {
        let table = Domains::compile([("a.example", 0)].into_iter());
        assert_eq!(table.find(b"b.example", false), None, "nothing matches");
        assert_eq!(table.find(b"", false), None, "an empty host matches no name");
    }

    #[test]
    fn ports_are_cut_off_where_there_is_one() {
        for (authority, expected) in
            [("a:80", "a"), ("a", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("a:", "a:"), ("::1", "::1")]
        {
            assert_eq!(without_port(authority.as_bytes()), expected.as_bytes(), "{authority} without its port");
        }
    }
}
