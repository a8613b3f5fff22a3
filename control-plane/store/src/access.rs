//! Which nodes may have what. Where a directory says nothing of it, every node may have whatever is placed on it.

use std::collections::BTreeSet;
use std::sync::Arc;

use culvert_api::document::node::{Entry, Value};
use culvert_api::document::{Node, Position};
use culvert_api::type_url;
use culvert_xds::{NodeIdentity, Resource};

use crate::selector::Selector;

/// What some nodes may have. **Where there is any, a node may have only what one of those that match it grants.**
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    selector: Arc<Selector>,
    /// Type URLs, message names or short ones; `None`: all but secrets.
    types: Option<BTreeSet<String>>,
    /// Names of secrets, with `*` for anything; empty: none.
    secrets: Vec<String>,
}

impl Grant {
    /// Reads `{selector: .., types: [..], secrets: [..]}`, all of them optional.
    pub(crate) fn parse(node: &Node) -> Result<Self, Vec<(Position, String)>> {
        let mut grant = Self { selector: Arc::default(), types: None, secrets: Vec::new() };
        let mut problems = Vec::new();
        if !matches!(node.value, Value::Mapping(_)) {
            return Err(vec![(node.at, "expected a mapping with selector, types or secrets".to_owned())]);
        }
        for Entry { key, at, node } in node.entries() {
            match key.as_str() {
                "selector" => match Selector::parse(node) {
                    Ok(selector) => grant.selector = Arc::new(selector),
                    Err(mistakes) => problems.extend(mistakes),
                },
                "types" => match names(node) {
                    Ok(types) => grant.types = Some(types.into_iter().collect()),
                    Err(mistake) => problems.push(mistake),
                },
                "secrets" => match names(node) {
                    Ok(secrets) => grant.secrets = secrets,
                    Err(mistake) => problems.push(mistake),
                },
                _ => problems.push((*at, format!("unknown key {key:?}; there are selector, types and secrets"))),
            }
        }
        let types = grant.types.iter().flatten();
        if types.into_iter().any(|of| is_named(of, type_url::SECRET)) {
            problems.push((node.at, "types: secrets are granted by name; use secrets: [NAME, ..]".to_owned()));
        }
        if problems.is_empty() { Ok(grant) } else { Err(problems) }
    }

    pub(crate) fn matches(&self, node: &NodeIdentity) -> bool {
        self.selector.matches(node)
    }

    pub(crate) fn covers(&self, resource: &Resource) -> bool {
        if &**resource.type_url() == type_url::SECRET {
            return self.secrets.iter().any(|pattern| is_like(pattern, resource.name()));
        }
        self.types.as_ref().is_none_or(|types| types.iter().any(|of| is_named(of, resource.type_url())))
    }
}

/// Whether a type is meant: by its URL, its message's name, or the last part of that.
fn is_named(of: &str, url: &str) -> bool {
    [url, type_url::message_name(url), type_url::short_name(url)].contains(&of)
}

/// A list of strings that are not empty; it may be empty itself.
fn names(node: &Node) -> Result<Vec<String>, (Position, String)> {
    let Value::Sequence(items) = &node.value else { return Err((node.at, "expected a list".to_owned())) };
    let name = |item: &Node| match &item.value {
        Value::String(text) if !text.is_empty() => Ok(text.clone()),
        _ => Err((item.at, "expected a string that is not empty".to_owned())),
    };
    items.iter().map(name).collect()
}

/// Whether a text is as a pattern says, in which `*` stands for anything.
#[must_use]
pub fn is_like(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = pieces.next_back() else { return rest.is_empty() };
    for piece in pieces {
        let Some(at) = rest.find(piece) else { return false };
        rest = rest.get(at + piece.len()..).unwrap_or_default();
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::is_like;

    #[test]
    fn a_star_stands_for_anything() {
        let cases = [
            ("a", "a", true),
            ("a", "ab", false),
            ("", "a", false),
            ("*", "", true),
            ("*", "anything", true),
            ("a*", "abc", true),
            ("a*", "ba", false),
            ("*c", "abc", true),
            ("a*c", "abbc", true),
            ("a*c", "ac", true),
            ("a*c", "acd", false),
            ("aa*aa", "aaa", false),
            ("*b*b*", "abcb", true),
            ("*b*b*", "abc", false),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(is_like(pattern, text), expected, "{text:?} as {pattern:?}");
        }
    }
}
