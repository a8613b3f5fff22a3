//! Matchers for strings, headers, query parameters and paths, compiled when they are parsed.

use std::sync::Arc;

use regex::bytes::Regex;

/// `StringMatcher`.
#[derive(Debug, Clone)]
pub enum StringMatcher {
    Exact { value: Arc<str>, ignore_case: bool },
    Prefix { value: Arc<str>, ignore_case: bool },
    Suffix { value: Arc<str>, ignore_case: bool },
    Contains { value: Arc<str>, ignore_case: bool },
    Regex(SafeRegex),
}

impl PartialEq for StringMatcher {
    fn eq(&self, other: &Self) -> bool {
        use StringMatcher::{Contains, Exact, Prefix, Regex, Suffix};
        match (self, other) {
            (Exact { value: a, ignore_case: i }, Exact { value: b, ignore_case: j })
            | (Prefix { value: a, ignore_case: i }, Prefix { value: b, ignore_case: j })
            | (Suffix { value: a, ignore_case: i }, Suffix { value: b, ignore_case: j })
            | (Contains { value: a, ignore_case: i }, Contains { value: b, ignore_case: j }) => a == b && i == j,
            (Regex(a), Regex(b)) => a == b,
            _ => false,
        }
    }
}
impl Eq for StringMatcher {}

/// A regular expression that must match the whole subject, as Envoy's `safe_regex` does. Linear time; the compiled
/// program is bounded.
#[derive(Debug, Clone)]
pub struct SafeRegex {
    pub source: Arc<str>,
    /// Anchored at both ends.
    pub whole: Regex,
}

impl PartialEq for SafeRegex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}
impl Eq for SafeRegex {}

/// `HeaderMatcher`; `name` is lower-case (`:path`, `:method`, `:authority`, `:scheme` name the pseudo-headers).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderMatcher {
    pub name: Arc<str>,
    pub value: HeaderValueMatcher,
    pub invert: bool,
    pub treat_missing_as_empty: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderValueMatcher {
    Present(bool),
    String(StringMatcher),
    /// `range_match`: start ≤ value < end.
    Range {
        start: i64,
        end: i64,
    },
}

/// `QueryParameterMatcher`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryMatcher {
    pub name: Arc<str>,
    pub value: QueryValueMatcher,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryValueMatcher {
    Present(bool),
    String(StringMatcher),
}
