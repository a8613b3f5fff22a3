//! Matchers for strings, headers, query parameters and paths, compiled when they are parsed.

use std::borrow::Cow;
use std::fmt::Display;
use std::sync::Arc;

use culvert_api::envoy::config::route::v3 as route;
use culvert_api::envoy::r#type::matcher::v3 as api;
use regex::bytes::{Regex, RegexBuilder};
use regex_syntax::ast;
use regex_syntax::hir::translate::TranslatorBuilder;

use crate::report::{Report, clip};
use crate::scalar;

mod folding;
#[cfg(test)]
mod tests;

/// `StringMatcher`.
#[derive(Debug, Clone)]
pub enum StringMatcher {
    // Values are in lower case where case is ignored.
    Exact { value: Arc<str>, ignore_case: bool },
    Prefix { value: Arc<str>, ignore_case: bool },
    Suffix { value: Arc<str>, ignore_case: bool },
    Contains { value: Arc<str>, ignore_case: bool },
    Regex(SafeRegex),
}

impl StringMatcher {
    /// Whether `subject` matches; case is ignored in ASCII only.
    #[must_use]
    pub fn matches(&self, subject: &[u8]) -> bool {
        match self {
            Self::Exact { value, ignore_case } => same(subject, value.as_bytes(), *ignore_case),
            Self::Prefix { value, ignore_case } => {
                subject.get(..value.len()).is_some_and(|start| same(start, value.as_bytes(), *ignore_case))
            }
            Self::Suffix { value, ignore_case } => {
                let end = subject.len().checked_sub(value.len()).and_then(|at| subject.get(at..));
                end.is_some_and(|end| same(end, value.as_bytes(), *ignore_case))
            }
            Self::Contains { value, ignore_case } => {
                let value = value.as_bytes();
                value.is_empty() || subject.windows(value.len()).any(|part| same(part, value, *ignore_case))
            }
            Self::Regex(regex) => regex.matches(subject),
        }
    }
}

fn same(left: &[u8], right: &[u8], ignore_case: bool) -> bool {
    if ignore_case { left.eq_ignore_ascii_case(right) } else { left == right }
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

impl SafeRegex {
    /// Compiles `source`, which must match whole subjects.
    ///
    /// # Errors
    /// What is wrong with it: syntax, or a source or program over the limits. RE2's syntax is accepted (no
    /// look-around, no back-references).
    pub fn new(source: &str) -> Result<Self, String> {
        Self::sized(source).map(|(regex, _)| regex)
    }

    /// As [`Self::new`], and how many bytes the program takes at most.
    fn sized(source: &str) -> Result<(Self, usize), String> {
        if source.is_empty() {
            return Err("is empty; give a regular expression".to_owned());
        }
        if source.len() > MAX_SOURCE {
            return Err(format!("has {} bytes, more than {MAX_SOURCE}", source.len()));
        }
        let misspelt = |reason: &dyn Display| format!("{:?} is not a regular expression: {reason}", clip(source));
        // On its own first: `a)(b` is only sound inside the group below.
        let parsed = ast::parse::ParserBuilder::new().nest_limit(MAX_NEST).build().parse(source);
        let parsed = parsed.map_err(|error| misspelt(error.kind()))?;
        if folding::effort(&parsed) > MAX_FOLDED {
            return Err(format!("{:?} ignores the case of too many Unicode classes; make it simpler", clip(source)));
        }
        // The smallest limit that it fits says how much it may take; the compiler itself does not.
        let mut limits = PROGRAM_LIMITS.into_iter().peekable();
        while let Some(limit) = limits.next() {
            let compiled = RegexBuilder::new(&format!(r"\A(?:{source})\z"))
                .size_limit(limit)
                .dfa_size_limit(MAX_DFA)
                .nest_limit(MAX_NEST.saturating_add(2))
                .build();
            match compiled {
                Ok(whole) => return Ok((Self { source: source.into(), whole }, limit)),
                Err(regex::Error::CompiledTooBig(_)) if limits.peek().is_some() => {}
                Err(regex::Error::CompiledTooBig(limit)) => {
                    return Err(format!("{:?} compiles to more than {limit} bytes; make it simpler", clip(source)));
                }
                Err(_) => break,
            }
        }
        // Spelt right, and meaningless: a class that nobody knows.
        let meant = TranslatorBuilder::new().utf8(false).build().translate(source, &parsed);
        Err(meant.err().map_or_else(|| misspelt(&"not understood"), |error| misspelt(error.kind())))
    }

    /// Whether the whole of `subject` matches.
    #[must_use]
    pub fn matches(&self, subject: &[u8]) -> bool {
        self.whole.is_match(subject)
    }
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

impl HeaderMatcher {
    /// Whether a message matches; `lookup` yields the value of the header with this name, several joined by a comma.
    pub fn matches<'v>(&self, lookup: impl FnOnce(&str) -> Option<Cow<'v, [u8]>>) -> bool {
        let value = lookup(&self.name);
        let value = match (&self.value, value) {
            (HeaderValueMatcher::Present(present), value) => return (value.is_some() == *present) != self.invert,
            (_, Some(value)) => value,
            (_, None) if self.treat_missing_as_empty => Cow::Borrowed(&[][..]),
            // Envoy: the rule is ignored, so it does not match, inverted or not.
            (_, None) => return false,
        };
        let matched = match &self.value {
            HeaderValueMatcher::Present(present) => *present,
            HeaderValueMatcher::String(matcher) => matcher.matches(&value),
            HeaderValueMatcher::Range { start, end } => {
                let number = std::str::from_utf8(&value).ok().and_then(|text| text.parse::<i64>().ok());
                number.is_some_and(|number| (*start..*end).contains(&number))
            }
        };
        matched != self.invert
    }
}

impl QueryMatcher {
    /// Whether the query string (what stands behind `?`, as it was sent) matches. The first parameter of the name
    /// counts; nothing is percent-decoded, as in Envoy.
    #[must_use]
    pub fn matches(&self, query: &[u8]) -> bool {
        let mut parameters = query.split(|byte| *byte == b'&').map(|parameter| {
            let mut halves = parameter.splitn(2, |byte| *byte == b'=');
            (halves.next().unwrap_or_default(), halves.next().unwrap_or_default())
        });
        let value = parameters.find(|(name, _)| *name == self.name.as_bytes()).map(|(_, value)| value);
        match &self.value {
            QueryValueMatcher::Present(present) => value.is_some() == *present,
            QueryValueMatcher::String(matcher) => value.is_some_and(|value| matcher.matches(value)),
        }
    }
}

/// Parses the `StringMatcher` at hand.
pub(crate) fn string(report: &mut Report, message: &api::StringMatcher) -> Option<StringMatcher> {
    use api::string_matcher::MatchPattern;
    let ignore_case = message.ignore_case;
    let fold = |value: &str| if ignore_case { value.to_ascii_lowercase().into() } else { value.into() };
    match message.match_pattern.as_ref() {
        Some(MatchPattern::Exact(value)) => Some(StringMatcher::Exact { value: fold(value), ignore_case }),
        Some(MatchPattern::Prefix(value)) => {
            Some(StringMatcher::Prefix { value: fold(filled(report, "prefix", value)?), ignore_case })
        }
        Some(MatchPattern::Suffix(value)) => {
            Some(StringMatcher::Suffix { value: fold(filled(report, "suffix", value)?), ignore_case })
        }
        Some(MatchPattern::Contains(value)) => {
            Some(StringMatcher::Contains { value: fold(filled(report, "contains", value)?), ignore_case })
        }
        Some(MatchPattern::SafeRegex(matcher)) => {
            report.field("safe_regex", |report| regex(report, matcher)).map(StringMatcher::Regex)
        }
        // The coverage tables have refused it.
        Some(MatchPattern::Custom(_)) => None,
        None => {
            report.error("matches nothing; set exact, prefix, suffix, contains or safe_regex");
            None
        }
    }
}

/// An empty affix would match everything: Envoy refuses it too.
fn filled<'m>(report: &mut Report, field: &'static str, value: &'m str) -> Option<&'m str> {
    if value.is_empty() {
        report.error_at(field, "is empty; use present_match to match any value");
        return None;
    }
    Some(value)
}

/// Parses the `RegexMatcher` at hand.
pub(crate) fn regex(report: &mut Report, message: &api::RegexMatcher) -> Option<SafeRegex> {
    if !report.has_room_for_regex() {
        return None;
    }
    match SafeRegex::sized(&message.regex) {
        Ok((regex, bytes)) => report.admit_regex(bytes).then_some(regex),
        Err(reason) => {
            report.error_at("regex", reason);
            // What is refused took as much to find out.
            report.admit_regex(LARGEST_PROGRAM);
            None
        }
    }
}

/// Parses the `RegexMatchAndSubstitute` at hand: pattern and substitution. The substitution is kept as it is written
/// (`\\1` is the first group).
pub(crate) fn substitute(report: &mut Report, message: &api::RegexMatchAndSubstitute) -> Option<(SafeRegex, Arc<str>)> {
    let Some(pattern) = &message.pattern else {
        report.error_at("pattern", "is missing");
        return None;
    };
    let pattern = report.field("pattern", |report| regex(report, pattern));
    let substitution = scalar::header_value(report, "substitution", &message.substitution);
    let (pattern, substitution) = pattern.zip(substitution)?;
    let groups = pattern.whole.captures_len();
    let mut bytes = substitution.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            continue;
        }
        // RE2's Rewrite: a digit or a backslash follows.
        match bytes.next() {
            Some(b'\\') => {}
            Some(digit) if digit.is_ascii_digit() && usize::from(digit - b'0') < groups => {}
            _ => {
                let reason = format!("{substitution:?}: a backslash is followed by a backslash or a group's number");
                report.error_at("substitution", reason);
                return None;
            }
        }
    }
    Some((pattern, substitution))
}

/// Parses the `HeaderMatcher` at hand.
#[expect(deprecated, reason = "exact_match and the like are still used")]
pub(crate) fn header(report: &mut Report, message: &route::HeaderMatcher) -> Option<HeaderMatcher> {
    use route::header_matcher::HeaderMatchSpecifier as Specifier;
    let ignore_case = false;
    let name = scalar::field_name(report, "name", &message.name);
    let value = match &message.header_match_specifier {
        None => HeaderValueMatcher::Present(true),
        Some(Specifier::PresentMatch(present)) => HeaderValueMatcher::Present(*present),
        Some(Specifier::StringMatch(matcher)) => {
            HeaderValueMatcher::String(report.field("string_match", |report| string(report, matcher))?)
        }
        Some(Specifier::ExactMatch(value)) => {
            HeaderValueMatcher::String(StringMatcher::Exact { value: value.as_str().into(), ignore_case })
        }
        Some(Specifier::PrefixMatch(value)) => {
            let value = filled(report, "prefix_match", value)?.into();
            HeaderValueMatcher::String(StringMatcher::Prefix { value, ignore_case })
        }
        Some(Specifier::SuffixMatch(value)) => {
            let value = filled(report, "suffix_match", value)?.into();
            HeaderValueMatcher::String(StringMatcher::Suffix { value, ignore_case })
        }
        Some(Specifier::ContainsMatch(value)) => {
            let value = filled(report, "contains_match", value)?.into();
            HeaderValueMatcher::String(StringMatcher::Contains { value, ignore_case })
        }
        Some(Specifier::SafeRegexMatch(matcher)) => {
            let regex = report.field("safe_regex_match", |report| regex(report, matcher))?;
            HeaderValueMatcher::String(StringMatcher::Regex(regex))
        }
        Some(Specifier::RangeMatch(range)) => HeaderValueMatcher::Range { start: range.start, end: range.end },
    };
    let treat_missing_as_empty = message.treat_missing_header_as_empty;
    Some(HeaderMatcher { name: name?, value, invert: message.invert_match, treat_missing_as_empty })
}

/// Parses the `QueryParameterMatcher` at hand.
pub(crate) fn query(report: &mut Report, message: &route::QueryParameterMatcher) -> Option<QueryMatcher> {
    use route::query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;
    let name = scalar::name(report, "name", &message.name);
    let value = match &message.query_parameter_match_specifier {
        None => QueryValueMatcher::Present(true),
        Some(Specifier::PresentMatch(present)) => QueryValueMatcher::Present(*present),
        Some(Specifier::StringMatch(matcher)) => {
            QueryValueMatcher::String(report.field("string_match", |report| string(report, matcher))?)
        }
    };
    Some(QueryMatcher { name: name?, value })
}

/// Bytes of a regular expression's source.
const MAX_SOURCE: usize = 4096;
/// Bytes that a compiled program may take, tried in this order. Unicode classes alone take some ten thousand.
const PROGRAM_LIMITS: [usize; 3] = [8 * 1024, 64 * 1024, LARGEST_PROGRAM];
const LARGEST_PROGRAM: usize = 1024 * 1024;
/// Code points of which the case is ignored: each of the tries reads the expression anew, within some 40 ms.
const MAX_FOLDED: usize = 4 * folding::ALL;
/// Bytes of the cache that a search may fill.
const MAX_DFA: usize = 1024 * 1024;
const MAX_NEST: u32 = 64;
