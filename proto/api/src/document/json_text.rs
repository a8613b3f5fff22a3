//! JSON text (RFC 8259) to a tree. Strings and numbers are checked by serde_json; what is here is the structure and
//! the positions, which serde_json does not give.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::node::{Entry, Node, Position, Value};
use super::{Limits, Problem};

/// The one value of a text.
pub(super) fn parse(text: &str, limits: &Limits) -> Result<Node, Vec<Problem>> {
    let mut reader =
        Reader { text, offset: 0, at: Position { line: 1, column: 1 }, limits, nodes: 0, problems: Vec::new() };
    let result = reader.value(0).and_then(|node| {
        reader.space();
        if reader.rest().is_empty() { Ok(node) } else { Err(reader.problem("something stands behind the value")) }
    });
    match result {
        Ok(node) if reader.problems.is_empty() => Ok(node),
        Ok(_) => Err(reader.problems),
        Err(last) => {
            reader.problems.push(last);
            Err(reader.problems)
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    /// Bytes read; always on a character boundary.
    offset: usize,
    at: Position,
    limits: &'a Limits,
    nodes: usize,
    /// Keys that stand twice: reading goes on.
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    fn value(&mut self, depth: usize) -> Result<Node, Problem> {
        self.space();
        self.nodes += 1;
        if self.nodes > self.limits.max_nodes {
            return Err(self.problem(format!("more than {} values", self.limits.max_nodes)));
        }
        let at = self.at;
        let value = match self.rest().bytes().next() {
            None => return Err(self.problem("the text ends where a value is expected")),
            Some(b'{' | b'[') if depth >= self.limits.max_depth => {
                return Err(self.problem(format!("nested deeper than {} levels", self.limits.max_depth)));
            }
            Some(b'{') => self.mapping(depth)?,
            Some(b'[') => self.sequence(depth)?,
            Some(b'"') => Value::String(self.string()?),
            Some(_) => self.word()?,
        };
        Ok(Node { at, value })
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, Problem> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen: HashMap<String, Position, RandomState> = HashMap::default();
        self.advance(1);
        if self.take('}') {
            return Ok(Value::Mapping(entries));
        }
        loop {
            self.space();
            let at = self.at;
            if !self.rest().starts_with('"') {
                return Err(self.problem("expected a key in double quotes"));
            }
            let key = self.string()?;
            if let Some(first) = seen.insert(key.clone(), at) {
                let reason = format!("key {key:?} stands twice, first at {first}; remove one");
                self.problems.push(Problem { at, path: String::new(), reason });
            }
            if !self.take(':') {
                return Err(self.problem("expected \":\""));
            }
            let node = self.value(depth + 1)?;
            entries.push(Entry { key, at, node });
            if self.take('}') {
                return Ok(Value::Mapping(entries));
            }
            if !self.take(',') {
                return Err(self.problem("expected \",\" or \"}\""));
            }
        }
    }

    fn sequence(&mut self, depth: usize) -> Result<Value, Problem> {
        let mut items = Vec::new();
        self.advance(1);
        if self.take(']') {
            return Ok(Value::Sequence(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if self.take(']') {
                return Ok(Value::Sequence(items));
            }
            if !self.take(',') {
                return Err(self.problem("expected \",\" or \"]\""));
            }
        }
    }

    fn string(&mut self) -> Result<String, Problem> {
        let rest = self.rest();
        let mut escaped = false;
        let end = rest.bytes().enumerate().skip(1).find_map(|(index, byte)| {
            if escaped {
                escaped = false;
                return None;
            }
            escaped = byte == b'\\';
            (byte == b'"').then_some(index + 1)
        });
        let Some(quoted) = end.and_then(|end| rest.get(..end)) else {
            return Err(self.problem("the text ends inside of a string"));
        };
        let string = serde_json::from_str(quoted).map_err(|error| self.problem(format!("bad string: {error}")))?;
        self.advance(quoted.len());
        Ok(string)
    }

    fn word(&mut self) -> Result<Value, Problem> {
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "+-._".contains(c))).unwrap_or(rest.len());
        let word = rest.get(..end).unwrap_or_default();
        let value = match word {
            "null" => Value::Null,
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            number if serde_json::from_str::<serde_json::Number>(number).is_ok() => Value::Number(number.to_owned()),
            "" => return Err(self.problem(format!("unexpected {:?}", rest.chars().next().unwrap_or_default()))),
            other => return Err(self.problem(format!("{other:?} is no JSON value; is it a string without quotes?"))),
        };
        self.advance(word.len());
        Ok(value)
    }

    fn space(&mut self) {
        let rest = self.rest();
        self.advance(rest.len() - rest.trim_start_matches([' ', '\t', '\r', '\n']).len());
    }

    /// Skips white space, then takes `wanted` if it comes next.
    fn take(&mut self, wanted: char) -> bool {
        self.space();
        let found = self.rest().starts_with(wanted);
        if found {
            self.advance(wanted.len_utf8());
        }
        found
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.offset..).unwrap_or_default()
    }

    fn advance(&mut self, bytes: usize) {
        let mut passed = self.rest().get(..bytes).unwrap_or_default();
        while let Some((_, next)) = passed.split_once('\n') {
            self.at = Position { line: self.at.line.saturating_add(1), column: 1 };
            passed = next;
        }
        let columns = u32::try_from(passed.chars().count()).unwrap_or(u32::MAX);
        self.at.column = self.at.column.saturating_add(columns);
        self.offset += bytes;
    }

    fn problem(&self, reason: impl Into<String>) -> Problem {
        Problem { at: self.at, path: String::new(), reason: format!("not JSON: {}", reason.into()) }
    }
}
