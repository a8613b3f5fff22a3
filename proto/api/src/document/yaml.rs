//! YAML text to trees.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

use super::node::{Entry, Node, Position, Value};
use super::{Limits, Problem};

/// The documents of a stream; those that hold nothing at all are left out.
pub(super) fn parse(text: &str, limits: &Limits) -> Result<Vec<Node>, Vec<Problem>> {
    let mut builder = Builder {
        limits,
        stack: Vec::new(),
        anchors: HashMap::new(),
        nodes: 0,
        alias_nodes: 0,
        documents: Vec::new(),
        problems: Vec::new(),
    };
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let step = match event {
            Ok((event, span)) => builder.event(event, position(&span.start)),
            Err(error) => Err(problem(position(error.marker()), format!("not YAML: {}", error.info()))),
        };
        if let Err(problem) = step {
            builder.problems.push(problem);
            break;
        }
    }
    if builder.problems.is_empty() { Ok(builder.documents) } else { Err(builder.problems) }
}

/// Puts events together. A `HashMap` of anchors holds copies, which count as nodes.
struct Builder<'a> {
    limits: &'a Limits,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Anchor>,
    nodes: usize,
    alias_nodes: usize,
    documents: Vec<Node>,
    problems: Vec<Problem>,
}

struct Anchor {
    node: Node,
    size: Size,
}

#[derive(Clone, Copy)]
struct Size {
    nodes: usize,
    height: usize,
}

/// A collection that is being read.
struct Frame {
    at: Position,
    anchor: usize,
    contents: Contents,
}

enum Contents {
    Sequence(Vec<Node>),
    Mapping { entries: Vec<Entry>, seen: HashMap<String, Position>, key: Option<(String, Position)> },
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, at: Position) -> Result<(), Problem> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.anchors.clear();
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                if self.is_key() {
                    return self.key(text.into_owned(), at);
                }
                let value = scalar(text.into_owned(), style, tag.as_deref()).map_err(|reason| problem(at, reason))?;
                self.complete(Node { at, value }, anchor)
            }
            Event::Alias(anchor) => self.alias(anchor, at),
            Event::SequenceStart(anchor, tag) => {
                self.open(at, anchor, tag.as_deref(), "seq", Contents::Sequence(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                let contents = Contents::Mapping { entries: Vec::new(), seen: HashMap::new(), key: None };
                self.open(at, anchor, tag.as_deref(), "map", contents)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(frame) = self.stack.pop() else {
                    return Err(problem(at, "not YAML: nothing to close".into()));
                };
                let value = match frame.contents {
                    Contents::Sequence(items) => Value::Sequence(items),
                    Contents::Mapping { entries, .. } => Value::Mapping(entries),
                };
                self.complete(Node { at: frame.at, value }, frame.anchor)
            }
        }
    }

    fn is_key(&self) -> bool {
        matches!(self.stack.last(), Some(Frame { contents: Contents::Mapping { key: None, .. }, .. }))
    }

    fn key(&mut self, text: String, at: Position) -> Result<(), Problem> {
        self.count(1, at)?;
        if text == "<<" {
            let reason = "merge keys (\"<<\") are not part of YAML 1.2; write the fields out".to_owned();
            self.problems.push(problem(at, reason));
        }
        if let Some(Frame { contents: Contents::Mapping { seen, key, .. }, .. }) = self.stack.last_mut() {
            if let Some(first) = seen.insert(text.clone(), at) {
                let reason = format!("key {text:?} stands twice, first at {first}; remove one");
                self.problems.push(problem(at, reason));
            }
            *key = Some((text, at));
        }
        Ok(())
    }

    fn open(
        &mut self,
        at: Position,
        anchor: usize,
        tag: Option<&Tag>,
        core: &str,
        contents: Contents,
    ) -> Result<(), Problem> {
        if self.is_key() {
            return Err(problem(at, "a key must be a string, not a list or mapping".into()));
        }
        if let Some(tag) = tag
            && !(tag.is_yaml_core_schema() && tag.suffix == core)
        {
            return Err(problem(at, format!("tag {tag} is not supported; remove it")));
        }
        if self.stack.len() >= self.limits.max_depth {
            return Err(problem(at, format!("nested deeper than {} levels", self.limits.max_depth)));
        }
        self.stack.push(Frame { at, anchor, contents });
        Ok(())
    }

    fn alias(&mut self, anchor: usize, at: Position) -> Result<(), Problem> {
        if self.is_key() {
            return Err(problem(at, "an alias cannot be a key; write the key out".into()));
        }
        let Some(Anchor { node, size }) = self.anchors.get(&anchor) else {
            return Err(problem(at, "the alias stands inside of what it refers to".into()));
        };
        let (node, size) = (node, *size);
        if self.stack.len() + size.height > self.limits.max_depth {
            return Err(problem(at, format!("nested deeper than {} levels by aliases", self.limits.max_depth)));
        }
        self.alias_nodes += size.nodes;
        if self.alias_nodes > self.limits.max_alias_nodes {
            let limit = self.limits.max_alias_nodes;
            return Err(problem(at, format!("aliases expand to more than {limit} values; write less of it by alias")));
        }
        let node = node.clone();
        self.count(size.nodes, at)?;
        self.place(node);
        Ok(())
    }

    /// A whole value was read.
    fn complete(&mut self, node: Node, anchor: usize) -> Result<(), Problem> {
        self.count(1, node.at)?;
        if anchor != 0 {
            let size = size(&node);
            self.count(size.nodes, node.at)?;
            self.anchors.insert(anchor, Anchor { node: node.clone(), size });
        }
        self.place(node);
        Ok(())
    }

    fn place(&mut self, node: Node) {
        match self.stack.last_mut().map(|frame| &mut frame.contents) {
            Some(Contents::Sequence(items)) => items.push(node),
            Some(Contents::Mapping { entries, key, .. }) => {
                if let Some((key, at)) = key.take() {
                    entries.push(Entry { key, at, node });
                }
            }
            None if node.value == Value::Null => {}
            None => self.documents.push(node),
        }
    }

    fn count(&mut self, nodes: usize, at: Position) -> Result<(), Problem> {
        self.nodes += nodes;
        if self.nodes > self.limits.max_nodes {
            return Err(problem(at, format!("more than {} values", self.limits.max_nodes)));
        }
        Ok(())
    }
}

/// Recursion is bounded: no node is nested deeper than the depth limit.
fn size(node: &Node) -> Size {
    let children = match &node.value {
        Value::Sequence(items) => items.iter().map(size).fold((0, 0), fold),
        Value::Mapping(entries) => entries.iter().map(|entry| size(&entry.node)).fold((0, 0), fold),
        _ => return Size { nodes: 1, height: 0 },
    };
    Size { nodes: children.0 + 1, height: children.1 + 1 }
}

fn fold((nodes, height): (usize, usize), size: Size) -> (usize, usize) {
    (nodes + size.nodes, height.max(size.height))
}

/// YAML 1.2 §10.3, the core schema.
fn scalar(text: String, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    let resolved = if style == ScalarStyle::Plain { plain(&text) } else { None };
    let Some(tag) = tag else { return Ok(resolved.unwrap_or(Value::String(text))) };
    if !tag.is_yaml_core_schema() {
        return if tag.handle == "!" && tag.suffix.is_empty() {
            Ok(Value::String(text))
        } else {
            Err(format!("tag {tag} is not supported; remove it"))
        };
    }
    let value = if tag.suffix == "str" { Some(Value::String(text.clone())) } else { plain(&text) };
    match (tag.suffix.as_str(), value) {
        ("str", Some(value @ Value::String(_)))
        | ("bool", Some(value @ Value::Bool(_)))
        | ("int" | "float", Some(value @ Value::Number(_)))
        | ("null", Some(value @ Value::Null)) => Ok(value),
        (suffix, _) => Err(format!("{text:?} is no !!{suffix}")),
    }
}

fn plain(text: &str) -> Option<Value> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Some(Value::Null),
        "true" | "True" | "TRUE" => return Some(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Some(Value::Bool(false)),
        ".nan" | ".NaN" | ".NAN" => return Some(Value::Number("NaN".into())),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Some(Value::Number("Infinity".into())),
        "-.inf" | "-.Inf" | "-.INF" => return Some(Value::Number("-Infinity".into())),
        _ => {}
    }
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(digits) = text.strip_prefix(prefix)
            && digits.chars().all(|digit| digit.is_digit(radix))
        {
            return u64::from_str_radix(digits, radix).ok().map(|number| Value::Number(number.to_string()));
        }
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let begins = unsigned.strip_prefix('.').unwrap_or(unsigned).starts_with(|first: char| first.is_ascii_digit());
    let plausible = begins && unsigned.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
    (plausible && text.parse::<f64>().is_ok()).then(|| Value::Number(text.strip_prefix('+').unwrap_or(text).to_owned()))
}

fn position(marker: &Marker) -> Position {
    let bounded = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Position { line: bounded(marker.line()), column: bounded(marker.col().saturating_add(1)) }
}

fn problem(at: Position, reason: String) -> Problem {
    Problem { at, path: String::new(), reason }
}
