//! A parsed text as a tree that knows where everything stands.

use std::fmt;

/// A place in a text: both from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub line: u32,
    pub column: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A value and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub at: Position,
    pub value: Value,
}

/// What JSON knows.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    /// As it was written: conversion decides between integers and floats without loss.
    Number(String),
    String(String),
    Sequence(Vec<Node>),
    /// In the order of the text; no key stands twice.
    Mapping(Vec<Entry>),
}

/// One key of a mapping.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key: String,
    /// Where the key begins.
    pub at: Position,
    pub node: Node,
}

impl Node {
    /// The value of a key, if this is a mapping that has it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.entries().iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    /// The entries of a mapping; none of anything else.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Mapping(entries) => entries,
            _ => &[],
        }
    }

    /// The position of what a field path names (`filter_chains[0].filters[1]`, `labels["a.b"]`; proto or JSON names); of the
    /// nearest enclosing field that stands in the text if it does not.
    #[must_use]
    pub fn locate(&self, path: &str) -> Position {
        let mut node = self;
        let mut at = self.at;
        for step in steps(path) {
            let found = match (&step, &node.value) {
                (Step::Index(index), Value::Sequence(items)) => items.get(*index).map(|item| (item.at, item)),
                (Step::Field(name), Value::Mapping(entries)) => find(entries, |key| same_field(key, name)),
                (Step::Key(name), Value::Mapping(entries)) => find(entries, |key| key == name),
                _ => None,
            };
            let Some((next_at, next)) = found else { break };
            (at, node) = (next_at, next);
        }
        at
    }

    /// What this is, for messages: "a list", "the string \"x\"".
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => format!("the boolean {value}"),
            Value::Number(text) => format!("the number {text}"),
            Value::String(text) => format!("the string {}", quote(text)),
            Value::Sequence(_) => "a list".to_owned(),
            Value::Mapping(_) => "a mapping".to_owned(),
        }
    }
}

/// A string in quotes, cut to what a message can bear.
pub(crate) fn quote(text: &str) -> String {
    match text.char_indices().nth(80) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", text.get(..end).unwrap_or_default()),
    }
}

/// A scalar is found at itself, a collection at its key.
fn find(entries: &[Entry], matches: impl Fn(&str) -> bool) -> Option<(Position, &Node)> {
    let entry = entries.iter().find(|entry| matches(&entry.key))?;
    let collection = matches!(entry.node.value, Value::Sequence(_) | Value::Mapping(_));
    Some((if collection { entry.at } else { entry.node.at }, &entry.node))
}

/// Whether a key, in proto or JSON spelling, is the field with this proto name.
fn same_field(key: &str, proto_name: &str) -> bool {
    key == proto_name || {
        let letters = |text: &str| text.chars().filter(|c| *c != '_').flat_map(char::to_lowercase).collect::<String>();
        !key.contains('_') && letters(key) == letters(proto_name)
    }
}

enum Step {
    Field(String),
    Index(usize),
    Key(String),
}

/// `a.b[0]["key"]` in steps; stops where the text is no path.
fn steps(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(quoted) = rest.strip_prefix('[').filter(|inner| inner.starts_with('"')) {
            let mut values = serde_json::Deserializer::from_str(quoted).into_iter::<String>();
            let Some(Ok(key)) = values.next() else { break };
            let end = values.byte_offset() + 1;
            steps.push(Step::Key(key));
            rest = quoted.get(end..).unwrap_or_default();
        } else if let Some((index, after)) = rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            let Ok(index) = index.parse() else { break };
            steps.push(Step::Index(index));
            rest = after;
        } else {
            rest = rest.strip_prefix('.').unwrap_or(rest);
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            if end == 0 {
                break;
            }
            let (name, after) = rest.split_at(end);
            steps.push(Step::Field(name.to_owned()));
            rest = after;
        }
    }
    steps
}
