//! Trees to messages. Goes on after a mistake, so that one run names them all.

mod scalar;
mod suggest;
mod well_known;

pub(crate) use well_known::{in_value, is_wrapper};

use std::collections::HashMap;
use std::fmt;

use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, OneofDescriptor, ReflectMessage, Value as Field,
};

use super::wire;
use crate::document::Problem;
use crate::document::node::{Node, Position, Value, quote};
use crate::{Any, pool, type_url, validate};

/// Mistakes that are listed; a file with more of them is broken as a whole.
const MAX_PROBLEMS: usize = 500;

/// The message that a tree spells, encoded, and every mistake in it. What is broken is missing in the message.
pub(crate) fn message(node: &Node, descriptor: &MessageDescriptor, unknown: Unknown) -> (Vec<u8>, Vec<Problem>) {
    let mut reader = Reader { skips_unknown: unknown == Unknown::Skipped, ..Reader::default() };
    let message = reader.message(node, descriptor);
    finish(reader, node, &message)
}

/// The `Any` that a tree with `@type` spells, valid.
pub(crate) fn any(node: &Node) -> Result<Any, Vec<Problem>> {
    let mut reader = Reader::default();
    let Some(inner) = reader.any_contents(node) else { return Err(reader.problems) };
    let (type_url, value) = match inner {
        Contents::Known(type_url, message) => (type_url, valid(finish(reader, node, &message))?.into()),
        Contents::Opaque(type_url, value) if reader.problems.is_empty() => (type_url, value),
        Contents::Opaque(..) => return Err(reader.problems),
    };
    Ok(Any { type_url, value })
}

/// Encodes, and appends what the validation rules find to what was found before.
fn finish(mut reader: Reader, node: &Node, message: &DynamicMessage) -> (Vec<u8>, Vec<Problem>) {
    // A field that did not parse is missing in the message: rules would only repeat that.
    let broken: Vec<String> = reader.problems.iter().map(|problem| problem.path.clone()).collect();
    for violation in validate::validate_dynamic(message) {
        if !broken.iter().any(|path| encloses(path, &violation.path) || encloses(&violation.path, path)) {
            let at = node.locate(&violation.path);
            reader.problems.push(Problem { at, path: violation.path, reason: violation.reason });
        }
    }
    let encoded = wire::encode(message);
    if encoded.depth > wire::MAX_DEPTH {
        let reason = format!("messages are nested deeper than {} levels; no decoder takes them", wire::MAX_DEPTH);
        reader.problems.push(Problem { at: node.at, path: String::new(), reason });
    }
    reader.problems.sort_by_key(|problem| problem.at);
    if reader.problems.len() >= MAX_PROBLEMS {
        reader.problems.truncate(MAX_PROBLEMS);
        let reason = format!("there are more mistakes than the {MAX_PROBLEMS} listed");
        reader.problems.push(Problem { at: node.at, path: String::new(), reason });
    }
    (encoded.bytes, reader.problems)
}

fn valid((bytes, problems): (Vec<u8>, Vec<Problem>)) -> Result<Vec<u8>, Vec<Problem>> {
    if problems.is_empty() { Ok(bytes) } else { Err(problems) }
}

/// The message that a tree spells, encoded, whether it is valid or not.
#[cfg(test)]
pub(crate) fn unchecked(node: &Node, descriptor: &MessageDescriptor) -> Result<Vec<u8>, Vec<Problem>> {
    let mut reader = Reader::default();
    let message = reader.message(node, descriptor);
    if reader.problems.is_empty() { Ok(wire::encode(&message).bytes) } else { Err(reader.problems) }
}

/// Whether one path is the other or begins it.
pub(crate) fn encloses(outer: &str, inner: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| outer.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
}

/// What becomes of fields that are not known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// They are mistakes.
    Refused,
    /// Whoever wrote them knows more, as may be when they come encoded.
    Skipped,
}

#[derive(Default)]
struct Reader {
    path: String,
    problems: Vec<Problem>,
    skips_unknown: bool,
}

/// What an `Any` holds.
enum Contents {
    Known(String, DynamicMessage),
    /// Of a type that the pool does not know.
    Opaque(String, bytes::Bytes),
}

impl Reader {
    fn problem(&mut self, at: Position, reason: impl Into<String>) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem { at, path: self.path.clone(), reason: reason.into() });
        }
    }

    fn expected(&mut self, node: &Node, what: &str) {
        self.problem(node.at, format!("expected {what}, found {}", node.describe()));
    }

    /// Runs `f` one step further down the path.
    fn within<T>(&mut self, step: &str, f: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(step);
        let result = f(self);
        self.path.truncate(length);
        result
    }

    /// Like `within`, for an index or a key.
    fn at_index<T>(&mut self, index: impl fmt::Display, f: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        self.path.push_str(&format!("[{index}]"));
        let result = f(self);
        self.path.truncate(length);
        result
    }

    /// What did not parse is missing in the message; it was reported.
    fn message(&mut self, node: &Node, descriptor: &MessageDescriptor) -> DynamicMessage {
        if let Some(message) = self.well_known(node, descriptor) {
            return message;
        }
        let mut message = DynamicMessage::new(descriptor.clone());
        if let Value::Mapping(_) = node.value {
            self.fields(node, &mut message, false);
        } else {
            self.expected(node, &format!("a mapping with the fields of {}", descriptor.full_name()));
        }
        message
    }

    /// Reads the entries of a mapping into a message. In an `Any`, `@type` is not a field.
    fn fields(&mut self, node: &Node, message: &mut DynamicMessage, in_any: bool) {
        let descriptor = message.descriptor();
        // As many as the message has fields at most.
        let mut seen: Vec<(u32, &str)> = Vec::new();
        let mut alternatives: Vec<(OneofDescriptor, &str)> = Vec::new();
        for entry in node.entries() {
            if in_any && entry.key == "@type" {
                continue;
            }
            let field =
                descriptor.get_field_by_name(&entry.key).or_else(|| descriptor.get_field_by_json_name(&entry.key));
            let Some(field) = field else {
                if self.skips_unknown {
                    continue;
                }
                let reason = suggest::unknown_field(&descriptor, &entry.key);
                self.within(&entry.key, |reader| reader.problem(entry.at, reason));
                continue;
            };
            if let Some((_, first)) = seen.iter().find(|(number, _)| *number == field.number()) {
                let reason = format!("{:?} and {first:?} are two spellings of one field; keep one", entry.key);
                self.within(field.name(), |reader| reader.problem(entry.at, reason));
                continue;
            }
            seen.push((field.number(), &entry.key));
            // Proto3 JSON: null is the same as not there, but for the two types that have a null of their own.
            if entry.node.value == Value::Null && !takes_null(&field) {
                continue;
            }
            if let Some(oneof) = field.containing_oneof().filter(|oneof| !oneof.is_synthetic()) {
                if let Some((_, first)) = alternatives.iter().find(|(other, _)| *other == oneof) {
                    let reason = format!("{first:?} and {:?} exclude each other; keep one", entry.key);
                    self.within(field.name(), |reader| reader.problem(entry.at, reason));
                    continue;
                }
                alternatives.push((oneof, &entry.key));
            }
            let value = self.within(field.name(), |reader| reader.field(&entry.node, &field));
            if let Some(value) = value {
                message.set_field(&field, value);
            }
        }
    }

    fn field(&mut self, node: &Node, field: &FieldDescriptor) -> Option<Field> {
        if field.is_map() {
            self.map(node, field)
        } else if field.is_list() {
            let Value::Sequence(items) = &node.value else {
                self.expected(node, "a list");
                return None;
            };
            let kind = field.kind();
            let read = |(index, item): (usize, &Node)| self.at_index(index, |reader| reader.element(item, &kind));
            Some(Field::List(items.iter().enumerate().filter_map(read).collect()))
        } else {
            self.value(node, &field.kind())
        }
    }

    fn map(&mut self, node: &Node, field: &FieldDescriptor) -> Option<Field> {
        let Value::Mapping(entries) = &node.value else {
            self.expected(node, "a mapping");
            return None;
        };
        let kind = field.kind();
        let entry_type = kind.as_message()?;
        let (key_kind, value_kind) =
            (entry_type.map_entry_key_field().kind(), entry_type.map_entry_value_field().kind());
        let mut map: HashMap<MapKey, Field> = HashMap::new();
        for entry in entries {
            let step = serde_json::Value::from(entry.key.as_str());
            self.at_index(step, |reader| {
                let Some(key) = scalar::map_key(&entry.key, &key_kind) else {
                    reader.problem(entry.at, format!("key {} is no {key_kind:?}", quote(&entry.key)));
                    return;
                };
                if let Some(value) = reader.element(&entry.node, &value_kind)
                    && map.insert(key, value).is_some()
                {
                    reader.problem(entry.at, "the key stands twice");
                }
            });
        }
        Some(Field::Map(map))
    }

    /// An item of a list or a value of a map: null is none.
    fn element(&mut self, node: &Node, kind: &Kind) -> Option<Field> {
        if node.value == Value::Null && !kind_takes_null(kind) {
            self.problem(node.at, "null stands where a value is needed; remove it");
            return None;
        }
        self.value(node, kind)
    }

    fn value(&mut self, node: &Node, kind: &Kind) -> Option<Field> {
        match kind {
            Kind::Message(descriptor) => Some(Field::Message(self.message(node, descriptor))),
            Kind::Enum(descriptor) => match scalar::enumeration(node, descriptor) {
                Ok(number) => Some(Field::EnumNumber(number)),
                Err(reason) => {
                    self.problem(node.at, reason);
                    None
                }
            },
            _ => match scalar::scalar(node, kind) {
                Ok(value) => Some(value),
                Err(reason) => {
                    self.problem(node.at, reason);
                    None
                }
            },
        }
    }

    /// Reads a mapping with `@type`; `None` if that is missing or makes no sense (reported).
    fn any_contents(&mut self, node: &Node) -> Option<Contents> {
        let Value::Mapping(entries) = &node.value else {
            self.expected(node, "a mapping with \"@type\"");
            return None;
        };
        let Some(type_node) = node.get("@type") else {
            self.problem(node.at, "\"@type\" is missing; write \"@type\": type.googleapis.com/NAME.OF.MESSAGE first");
            return None;
        };
        let Value::String(url) = &type_node.value else {
            self.expected(type_node, "a type URL");
            return None;
        };
        if !url.contains('/') {
            self.problem(type_node.at, format!("{} is no type URL; write type.googleapis.com/{url}", quote(url)));
            return None;
        }
        let Some(descriptor) = pool::message(url) else {
            return self.opaque(node, type_node, url);
        };
        if !in_value(&descriptor) {
            let mut message = DynamicMessage::new(descriptor);
            self.fields(node, &mut message, true);
            return Some(Contents::Known(url.clone(), message));
        }
        for entry in entries.iter().filter(|entry| !["@type", "value"].contains(&entry.key.as_str())) {
            self.problem(entry.at, format!("{} stands in the field \"value\" here", descriptor.full_name()));
        }
        let Some(value) = node.get("value") else {
            self.problem(node.at, format!("the field \"value\" with the {} is missing", descriptor.full_name()));
            return None;
        };
        let message = self.within("value", |reader| reader.message(value, &descriptor));
        Some(Contents::Known(url.clone(), message))
    }

    /// An `Any` of an unknown type: `{"@type": .., "value": BASE64}`.
    fn opaque(&mut self, node: &Node, type_node: &Node, url: &str) -> Option<Contents> {
        if let [first, second] = node.entries()
            && [first.key.as_str(), second.key.as_str()].contains(&"value")
            && let Some(Value::String(text)) = node.get("value").map(|value| &value.value)
            && let Some(bytes) = scalar::base64(text)
        {
            return Some(Contents::Opaque(url.to_owned(), bytes));
        }
        let hint = suggest::message(type_url::message_name(url)).map(|name| format!("; did you mean {name:?}?"));
        let form = "; a type that is not known takes only \"value\" with the message as base64";
        self.problem(type_node.at, format!("type {} is not known{}", quote(url), hint.unwrap_or(form.to_owned())));
        None
    }
}

fn takes_null(field: &FieldDescriptor) -> bool {
    !field.is_list() && !field.is_map() && kind_takes_null(&field.kind())
}

fn kind_takes_null(kind: &Kind) -> bool {
    match kind {
        Kind::Message(message) => message.full_name() == "google.protobuf.Value",
        Kind::Enum(enumeration) => enumeration.full_name() == "google.protobuf.NullValue",
        _ => false,
    }
}
