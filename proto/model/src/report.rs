//! What a parser has to say besides its value: refusals and warnings, each with the path of the field.

use std::fmt;

use culvert_api::Any;
use prost::{Message, Name};

use crate::coverage;

/// One finding about one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where: `filter_chains[0].filters[1].typed_config.route_config`, proto field names.
    pub path: String,
    /// What is wrong, with the offending value, and what to do: a lower-case fragment.
    pub reason: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.reason) } else { write!(f, "{}: {}", self.path, self.reason) }
    }
}

/// Collects findings while a message is parsed; knows the path of the field under the parser's hands.
#[derive(Debug, Default)]
pub struct Report {
    path: Vec<Segment>,
    /// The value cannot be used.
    pub errors: Vec<Finding>,
    /// Set, and not honoured by culvert-proxy; the value can be used without it.
    pub warnings: Vec<Finding>,
    /// Bytes that the regular expressions of this resource may take so far.
    regex_bytes: usize,
    /// Fields of a newer API that were reported already: the message's name and the number.
    unknown: Vec<(&'static str, u32)>,
}

/// One step of a path.
#[derive(Debug)]
enum Segment {
    Field(&'static str),
    Item(&'static str, usize),
    Entry(&'static str, String),
    /// Inside a `Struct`, which JSON writes as an object: `["key"]`.
    Key(String),
    /// Inside a list of such values.
    Index(usize),
}

impl Report {
    /// Runs `f` with `field` appended to the path.
    pub fn field<T>(&mut self, field: &'static str, f: impl FnOnce(&mut Self) -> T) -> T {
        self.within(Segment::Field(field), f)
    }

    /// Runs `f` with `field[index]` appended to the path.
    pub fn item<T>(&mut self, field: &'static str, index: usize, f: impl FnOnce(&mut Self) -> T) -> T {
        self.within(Segment::Item(field, index), f)
    }

    /// Runs `f` with `field["key"]` appended to the path.
    pub fn entry<T>(&mut self, field: &'static str, key: &str, f: impl FnOnce(&mut Self) -> T) -> T {
        self.within(Segment::Entry(field, clip(key).to_owned()), f)
    }

    /// Runs `f` with `["key"]` appended to the path: a field of the `Struct` at hand.
    pub(crate) fn key<T>(&mut self, key: &str, f: impl FnOnce(&mut Self) -> T) -> T {
        self.within(Segment::Key(clip(key).to_owned()), f)
    }

    /// Runs `f` with `[index]` appended to the path: a value of the list at hand.
    pub(crate) fn index<T>(&mut self, index: usize, f: impl FnOnce(&mut Self) -> T) -> T {
        self.within(Segment::Index(index), f)
    }

    /// Refuses the field at hand.
    pub fn error(&mut self, reason: impl Into<String>) {
        let finding = Finding { path: self.path(), reason: reason.into() };
        push_bounded(&mut self.errors, finding);
    }

    /// Refuses `field` of the message at hand.
    pub fn error_at(&mut self, field: &'static str, reason: impl Into<String>) {
        self.field(field, |report| report.error(reason));
    }

    /// Says that the field at hand is set and not honoured.
    pub fn warn(&mut self, reason: impl Into<String>) {
        let finding = Finding { path: self.path(), reason: reason.into() };
        push_bounded(&mut self.warnings, finding);
    }

    /// Says that `field` of the message at hand is set and not honoured.
    pub fn warn_at(&mut self, field: &'static str, reason: impl Into<String>) {
        self.field(field, |report| report.warn(reason));
    }

    /// Parses every item of a repeated field; an item that yields nothing has been reported.
    pub fn items<'m, M, T>(
        &mut self,
        field: &'static str,
        items: impl IntoIterator<Item = &'m M>,
        mut f: impl FnMut(&mut Self, &'m M) -> Option<T>,
    ) -> Vec<T>
    where
        M: 'm + ?Sized,
    {
        let parse = |(index, item)| self.item(field, index, |report| f(report, item));
        items.into_iter().enumerate().filter_map(parse).collect()
    }

    /// Reports what of `message` is set and not honoured.
    pub(crate) fn check<M: Message + Name>(&mut self, message: &M) {
        coverage::walk(self, &M::full_name(), &message.encode_to_vec());
    }

    /// Decodes the `Any` at hand, which must be a `M`, and reports what of it is not honoured.
    pub(crate) fn unpack<M: Message + Name + Default>(&mut self, any: &Any) -> Option<M> {
        match any.unpack::<M>() {
            Ok(message) => {
                coverage::walk(self, &M::full_name(), &any.value);
                Some(message)
            }
            Err(error) => {
                self.error(error.to_string());
                None
            }
        }
    }

    /// Says once in a resource that the message at hand has a field that this build's API does not know.
    pub(crate) fn unknown_field(&mut self, message: &'static str, number: u32) {
        if self.unknown.len() < MAX_UNKNOWN && !self.unknown.contains(&(message, number)) {
            self.unknown.push((message, number));
            self.warn(format!("field {number} of {message} is set and not known: the sender has a newer API"));
        }
    }

    /// What [`Self::admit_regex`] has counted so far.
    pub(crate) fn regex_bytes(&self) -> usize {
        self.regex_bytes
    }

    /// Counts a compiled regular expression of at most `bytes`; whether all of them together are still few enough.
    pub(crate) fn admit_regex(&mut self, bytes: usize) -> bool {
        self.regex_bytes = self.regex_bytes.saturating_add(bytes);
        self.has_room_for_regex()
    }

    /// Whether all of them together are few enough: there is no use in compiling another one otherwise.
    pub(crate) fn has_room_for_regex(&mut self) -> bool {
        if self.regex_bytes <= MAX_REGEX_BYTES {
            return true;
        }
        self.error(format!(
            "the regular expressions of this resource may take more than {MAX_REGEX_BYTES} bytes together"
        ));
        false
    }

    /// Ends the parse: `value` counts only when nothing was refused.
    pub(crate) fn finish<T>(mut self, value: Option<T>) -> Parsed<T> {
        if value.is_none() && self.errors.is_empty() {
            self.error("cannot be used");
        }
        let value = match value {
            Some(value) if self.errors.is_empty() => Ok(value),
            _ => Err(self.errors),
        };
        Parsed { value, warnings: self.warnings }
    }

    fn within<T>(&mut self, segment: Segment, f: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(segment);
        let value = f(self);
        self.path.pop();
        value
    }

    fn path(&self) -> String {
        let mut path = String::new();
        for segment in &self.path {
            if !path.is_empty() && !matches!(segment, Segment::Key(_) | Segment::Index(_)) {
                path.push('.');
            }
            match segment {
                Segment::Field(field) => path.push_str(field),
                Segment::Item(field, index) => path.push_str(&format!("{field}[{index}]")),
                Segment::Entry(field, key) => path.push_str(&format!("{field}[{}]", quoted(key))),
                Segment::Key(key) => path.push_str(&format!("[{}]", quoted(key))),
                Segment::Index(index) => path.push_str(&format!("[{index}]")),
            }
        }
        path
    }
}

/// A parsed resource, or why there is none. Warnings come either way.
#[derive(Debug)]
pub struct Parsed<T> {
    /// The value, or every reason why there is none (never empty).
    pub value: Result<T, Vec<Finding>>,
    /// Fields that are set and not honoured.
    pub warnings: Vec<Finding>,
}

impl<T> Parsed<T> {
    /// The same with another value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Parsed<U> {
        Parsed { value: self.value.map(f), warnings: self.warnings }
    }
}

/// A key as JSON writes it, which is how paths are read again to find the line of a finding.
fn quoted(key: &str) -> String {
    serde_json::Value::from(key).to_string()
}

/// `text` cut so that a hostile value cannot fill a log line.
#[must_use]
pub(crate) fn clip(text: &str) -> &str {
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => text.get(..end).unwrap_or(text),
        None => text,
    }
}

/// Keeps the first [`MAX_FINDINGS`]; the last of them says that there are more.
fn push_bounded(findings: &mut Vec<Finding>, finding: Finding) {
    match findings.len() {
        0..MAX_FINDINGS => findings.push(finding),
        MAX_FINDINGS => findings.push(Finding {
            path: String::new(),
            reason: format!("more than {MAX_FINDINGS} findings of this kind; the rest is left out"),
        }),
        _ => {}
    }
}

/// Bytes that the regular expressions of one resource may take.
const MAX_REGEX_BYTES: usize = 512 * 1024 * 1024;
/// Distinct unknown fields that one resource reports.
const MAX_UNKNOWN: usize = 100;
/// Findings of one kind that one resource may yield.
const MAX_FINDINGS: usize = 1000;
/// Characters of a value that a finding quotes.
const MAX_QUOTED: usize = 200;
