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
        let _ = path;
        todo!()
    }
}
