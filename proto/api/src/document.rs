//! YAML and JSON text to messages, with the position of everything.
//!
//! Text becomes a tree of [`Node`]s that know line and column; the tree becomes a message by the descriptor
//! ([`crate::json`]). Every mistake of a file is found in one run. **Nothing here trusts its input**: size, depth, the number of
//! nodes and what aliases may expand to are bounded, and a key that stands twice is refused.

mod json_text;
pub mod node;
mod yaml;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;

use prost::Name;

use crate::json::read::Unknown;
use crate::{Any, json, pool};
pub use node::{Node, Position, Value};

/// How a text is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    /// YAML 1.2, which JSON (nearly) is a subset of; may hold several documents.
    Yaml,
    /// JSON: one value.
    Json,
}

impl Syntax {
    /// By the file's extension: `.yaml`, `.yml`, `.json`.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "yaml" | "yml" => Some(Self::Yaml),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// What one text may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of text.
    pub max_bytes: usize,
    /// Sequences and mappings inside each other.
    pub max_depth: usize,
    /// Values, aliases expanded.
    pub max_nodes: usize,
    /// Values that come out of aliases.
    pub max_alias_nodes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_bytes: 64 << 20, max_depth: 100, max_nodes: 8_000_000, max_alias_nodes: 100_000 }
    }
}

/// One mistake in a text, or in the message that it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where in the text.
    pub at: Position,
    /// Where in the message, proto field names: `filter_chains[0].filters[1].typed_config`. Empty: the whole.
    pub path: String,
    /// What is wrong, with the offending value, and what to do: a lower-case fragment.
    pub reason: String,
}

impl Problem {
    /// Whether a later finding about `path` may only be a consequence of this: it is about the same field, or about a list
    /// that lacks an item now.
    #[must_use]
    pub fn explains(&self, path: &str) -> bool {
        let list = self.path.strip_suffix(']').and_then(|path| path.rsplit_once('[')).map(|(list, _)| list);
        let broken = list.unwrap_or(&self.path);
        json::read::encloses(broken, path) || json::read::encloses(path, broken)
    }

    /// `FILE:LINE:COLUMN: PATH: REASON`.
    #[must_use]
    pub fn in_file(&self, file: &Path) -> String {
        format!("{}:{self}", file.display())
    }
}

impl fmt::Display for Problem {
    /// `LINE:COLUMN: PATH: REASON`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.at)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.reason)
    }
}

/// A message that was read from a text, and the text's tree: findings that later checks make by field path can still
/// be given a position.
#[derive(Debug, Clone)]
pub struct Loaded<M> {
    pub message: M,
    pub tree: Node,
}

impl<M> Loaded<M> {
    /// The position of a field by its path; of the nearest enclosing one that stands in the text if it does not.
    #[must_use]
    pub fn locate(&self, path: &str) -> Position {
        self.tree.locate(path)
    }

    /// A finding of a later check, with its position.
    #[must_use]
    pub fn problem(&self, path: &str, reason: impl Into<String>) -> Problem {
        Problem { at: self.locate(path), path: path.to_owned(), reason: reason.into() }
    }
}

/// Parses a text into its documents; a JSON text has exactly one.
///
/// # Errors
/// Everything that is wrong with the text itself: encoding, syntax, limits, keys that stand twice.
pub fn parse(text: &[u8], syntax: Syntax, limits: &Limits) -> Result<Vec<Node>, Vec<Problem>> {
    let text = decode(text, limits)?;
    match syntax {
        Syntax::Yaml => yaml::parse(text, limits),
        Syntax::Json => json_text::parse(text, limits).map(|node| vec![node]),
    }
}

/// Reads one message of a known type (no `@type` needed) out of a text with exactly one document, and checks the
/// API's validation rules.
///
/// # Errors
/// Every mistake in the text, in field names and values, and every violated rule, in one run.
pub fn load<M: Name + Default>(text: &[u8], syntax: Syntax) -> Result<Loaded<M>, Vec<Problem>> {
    let (loaded, problems) = load_in_spite::<M>(text, syntax)?;
    if problems.is_empty() { Ok(loaded) } else { Err(problems) }
}

/// [`load`] for what a peer sends in JSON: **fields that are not known here are skipped**, as when they come encoded. A newer peer has
/// some.
///
/// # Errors
/// As [`load`].
pub fn load_of_peer<M: Name + Default>(text: &[u8]) -> Result<M, Vec<Problem>> {
    let (loaded, problems) = load_with::<M>(text, Syntax::Json, Unknown::Skipped)?;
    if problems.is_empty() { Ok(loaded.message) } else { Err(problems) }
}

/// [`load`] that gives the message without what is broken in it, so that later checks can name their findings in the same
/// run. Where there are problems the message is for nothing else.
///
/// # Errors
/// There is no message: the text does not parse, or the message does not decode.
pub fn load_in_spite<M: Name + Default>(
    text: &[u8],
    syntax: Syntax,
) -> Result<(Loaded<M>, Vec<Problem>), Vec<Problem>> {
    load_with(text, syntax, Unknown::Refused)
}

fn load_with<M: Name + Default>(
    text: &[u8],
    syntax: Syntax,
    unknown: Unknown,
) -> Result<(Loaded<M>, Vec<Problem>), Vec<Problem>> {
    let mut documents = parse(text, syntax, &Limits::default())?.into_iter();
    let tree = match (documents.next(), documents.next()) {
        (Some(tree), None) => tree,
        (Some(_), Some(second)) => return Err(whole(second.at, "a second document begins here; one is expected")),
        (None, _) => return Err(whole(Position { line: 1, column: 1 }, "the file holds nothing")),
    };
    let Some(descriptor) = pool::message(&M::type_url()) else {
        return Err(whole(tree.at, &format!("type {} is not in the descriptor set", M::full_name())));
    };
    let (bytes, problems) = json::read::message(&tree, &descriptor, unknown);
    match M::decode(bytes.as_slice()) {
        Ok(message) => Ok((Loaded { message, tree }, problems)),
        Err(_) if !problems.is_empty() => Err(problems),
        Err(error) => Err(whole(tree.at, &format!("{} does not decode: {error}", M::full_name()))),
    }
}

/// Reads an `Any` (a mapping with `@type`) out of a tree, and checks the API's validation rules.
///
/// # Errors
/// As [`load`].
pub fn load_any(node: &Node) -> Result<Any, Vec<Problem>> {
    json::read::any(node)
}

fn decode<'a>(text: &'a [u8], limits: &Limits) -> Result<&'a str, Vec<Problem>> {
    let start = Position { line: 1, column: 1 };
    if text.len() > limits.max_bytes {
        return Err(whole(start, &format!("{} bytes; at most {} are read", text.len(), limits.max_bytes)));
    }
    if text.starts_with(b"\xef\xbb\xbf") {
        return Err(whole(start, "the file begins with a byte order mark; save it as UTF-8 without one"));
    }
    let (valid, reason) = match std::str::from_utf8(text) {
        // A NUL would be the end of the text to the YAML scanner.
        Ok(valid) => match valid.split_once('\0') {
            None => return Ok(valid),
            Some((before, _)) => (before, "a NUL character; only text is read"),
        },
        Err(error) => {
            let valid = text.get(..error.valid_up_to()).unwrap_or_default();
            (std::str::from_utf8(valid).unwrap_or_default(), "not UTF-8; save the file as UTF-8")
        }
    };
    let last = valid.rsplit('\n').next().unwrap_or_default();
    let bounded = |number: usize| u32::try_from(number + 1).unwrap_or(u32::MAX);
    Err(whole(Position { line: bounded(valid.matches('\n').count()), column: bounded(last.chars().count()) }, reason))
}

fn whole(at: Position, reason: &str) -> Vec<Problem> {
    vec![Problem { at, path: String::new(), reason: reason.to_owned() }]
}
