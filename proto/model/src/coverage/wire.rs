//! Walks an encoded message and reports every set field that is not honoured.
//!
//! The bytes are read, not a decoded message: nothing is allocated for fields that are honoured, and fields that this
//! build's API does not know are still there to be seen.

use std::collections::HashMap;
use std::sync::LazyLock;

use foldhash::fast::RandomState;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_reflect::{FieldDescriptor, Kind};

use super::{TABLES, Verdict};
use crate::report::Report;

/// Reports, below the report's path, every set field of the encoded `message` that is not honoured. Messages inside
/// an `Any` are the parsers' to unpack. Bytes that do not decode end the walk: decoding them is what refuses them.
pub(crate) fn walk(report: &mut Report, message: &str, bytes: &[u8]) {
    if let Some(&index) = INDEX.by_name.get(message) {
        // Malformed: see above.
        let _end = walk_message(report, index, bytes, MAX_DEPTH);
    }
}

/// `None`: malformed.
fn walk_message(report: &mut Report, index: usize, mut bytes: &[u8], depth: usize) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    let message = INDEX.messages.get(index)?;
    let mut seen: Vec<(u32, usize)> = Vec::new();
    while !bytes.is_empty() {
        let (number, wire_type) = decode_key(&mut bytes).ok()?;
        let value = value(&mut bytes, number, wire_type)?;
        let Some(field) = message.fields.get(&number) else {
            report.unknown_field(message.name, number);
            continue;
        };
        let counts = field.repeated || matches!(field.verdict, Verdict::Warned(_) | Verdict::Refused(_));
        let position = if counts { position(&mut seen, number) } else { 0 };
        match field.verdict {
            Verdict::Carried => {}
            Verdict::Honoured => walk_field(report, field, position, &value, depth)?,
            Verdict::Warned(reason) if position == 0 && field.is_set(&value) => {
                report.warn_at(field.name, not_honoured(reason));
            }
            Verdict::Refused(reason) if position == 0 && field.is_set(&value) => {
                report.error_at(field.name, not_honoured(reason));
            }
            Verdict::Warned(_) | Verdict::Refused(_) => {}
        }
    }
    Some(())
}

/// Goes on inside an honoured field.
fn walk_field(
    report: &mut Report,
    field: &'static Field,
    position: usize,
    value: &Value<'_>,
    depth: usize,
) -> Option<()> {
    let (Shape::Message(inner) | Shape::Map(inner), Value::Bytes(bytes)) = (field.shape, value) else {
        return Some(());
    };
    if matches!(field.shape, Shape::Map(_)) {
        let (key, bytes) = entry(bytes)?;
        report.entry(field.name, key, |report| walk_message(report, inner, bytes, depth))
    } else if field.repeated {
        report.item(field.name, position, |report| walk_message(report, inner, bytes, depth))
    } else {
        report.field(field.name, |report| walk_message(report, inner, bytes, depth))
    }
}

fn not_honoured(reason: &str) -> String {
    match reason {
        "" => "is set, and culvert-proxy does not honour it".to_owned(),
        reason => format!("is set, and culvert-proxy does not honour it: {reason}"),
    }
}

/// How many values of this field stood before.
fn position(seen: &mut Vec<(u32, usize)>, number: u32) -> usize {
    if let Some((_, count)) = seen.iter_mut().find(|(other, _)| *other == number) {
        *count += 1;
        return *count;
    }
    seen.push((number, 0));
    0
}

/// A value on the wire.
enum Value<'b> {
    /// A number; groups never occur in proto3 and count as set.
    Number(bool),
    Bytes(&'b [u8]),
}

fn value<'b>(bytes: &mut &'b [u8], number: u32, wire_type: WireType) -> Option<Value<'b>> {
    match wire_type {
        WireType::Varint => decode_varint(bytes).ok().map(|value| Value::Number(value != 0)),
        WireType::SixtyFourBit => fixed(bytes, 8),
        WireType::ThirtyTwoBit => fixed(bytes, 4),
        WireType::LengthDelimited => {
            let length = usize::try_from(decode_varint(bytes).ok()?).ok()?;
            let (value, rest) = bytes.split_at_checked(length)?;
            *bytes = rest;
            Some(Value::Bytes(value))
        }
        WireType::StartGroup | WireType::EndGroup => {
            skip_field(wire_type, number, bytes, DecodeContext::default()).ok()?;
            Some(Value::Number(true))
        }
    }
}

fn fixed<'b>(bytes: &mut &'b [u8], length: usize) -> Option<Value<'b>> {
    let value = bytes.get(..length)?;
    let set = value.iter().any(|byte| *byte != 0);
    bytes.advance(length);
    Some(Value::Number(set))
}

/// Key and value of a map entry; only maps with string keys hold messages that we look into.
fn entry(mut bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (mut key, mut inner): (&[u8], &[u8]) = (&[], &[]);
    while !bytes.is_empty() {
        let (number, wire_type) = decode_key(&mut bytes).ok()?;
        match (number, value(&mut bytes, number, wire_type)?) {
            (1, Value::Bytes(bytes)) => key = bytes,
            (2, Value::Bytes(bytes)) => inner = bytes,
            _ => {}
        }
    }
    Some((std::str::from_utf8(key).ok()?, inner))
}

static INDEX: LazyLock<Index> = LazyLock::new(Index::build);

/// The tables by field number.
struct Index {
    messages: Vec<Message>,
    by_name: HashMap<&'static str, usize, RandomState>,
}

struct Message {
    name: &'static str,
    fields: HashMap<u32, Field, RandomState>,
}

struct Field {
    name: &'static str,
    verdict: Verdict,
    shape: Shape,
    repeated: bool,
}

#[derive(Clone, Copy)]
enum Shape {
    /// A number, string or bytes that is set when it is not its default.
    Implicit,
    /// Set when it is there.
    Explicit,
    /// A bool in any form: only `true` is set, for `false` is what holds without it.
    Bool,
    /// A message with a table of its own.
    Message(usize),
    /// A map from strings to such messages.
    Map(usize),
}

impl Field {
    fn is_set(&self, value: &Value<'_>) -> bool {
        match (self.shape, value) {
            (Shape::Implicit | Shape::Bool, Value::Number(set)) => *set,
            (Shape::Implicit, Value::Bytes(bytes)) => !bytes.is_empty(),
            (Shape::Bool, Value::Bytes(bytes)) => bytes.iter().rev().take(1).any(|byte| *byte != 0),
            (Shape::Explicit | Shape::Message(_) | Shape::Map(_), _) => true,
        }
    }
}

impl Index {
    fn build() -> Self {
        let tables: Vec<_> = TABLES.iter().copied().flatten().collect();
        let by_name: HashMap<_, _, _> =
            tables.iter().enumerate().map(|(index, table)| (table.message, index)).collect();
        let mut messages = Vec::new();
        for table in tables {
            let mut fields = HashMap::default();
            let descriptor = culvert_api::pool::pool().get_message_by_name(table.message);
            let descriptors = descriptor.iter().flat_map(prost_reflect::MessageDescriptor::fields);
            let by_field: HashMap<String, FieldDescriptor> =
                descriptors.map(|field| (field.name().to_owned(), field)).collect();
            for group in table.groups {
                for name in group.fields {
                    if let Some(descriptor) = by_field.get(*name) {
                        let shape = shape(descriptor, &by_name);
                        let field = Field { name, verdict: group.verdict, shape, repeated: descriptor.is_list() };
                        fields.insert(descriptor.number(), field);
                    }
                }
            }
            messages.push(Message { name: table.message, fields });
        }
        Self { messages, by_name }
    }
}

fn shape(field: &FieldDescriptor, by_name: &HashMap<&'static str, usize, RandomState>) -> Shape {
    let message = match field.kind() {
        Kind::Bool => return Shape::Bool,
        Kind::Message(message) => message,
        _ if field.supports_presence() => return Shape::Explicit,
        _ => return Shape::Implicit,
    };
    if message.full_name() == "google.protobuf.BoolValue" {
        return Shape::Bool;
    }
    if field.is_map() {
        return match message.map_entry_value_field().kind() {
            Kind::Message(value) => by_name.get(value.full_name()).map_or(Shape::Explicit, |index| Shape::Map(*index)),
            _ => Shape::Explicit,
        };
    }
    by_name.get(message.full_name()).map_or(Shape::Explicit, |index| Shape::Message(*index))
}

/// As deep as prost decodes.
const MAX_DEPTH: usize = 101;
