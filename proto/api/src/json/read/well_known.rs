//! Messages with a JSON form of their own: `google.protobuf`'s well-known types.

use std::collections::HashMap;

use prost_reflect::{DynamicMessage, Kind, MapKey, MessageDescriptor, ReflectMessage, Value as Field};

use super::{Contents, Reader, scalar};
use crate::document::node::{Node, Value};
use crate::json::wire;

/// Whether the JSON form inside an `Any` stands in a field `value`.
pub(crate) fn in_value(descriptor: &MessageDescriptor) -> bool {
    let Some(name) = descriptor.full_name().strip_prefix("google.protobuf.") else { return false };
    matches!(name, "Any" | "Duration" | "Timestamp" | "Struct" | "Value" | "ListValue") || is_wrapper(name)
}

pub(crate) fn is_wrapper(name: &str) -> bool {
    matches!(
        name,
        "BoolValue"
            | "StringValue"
            | "BytesValue"
            | "DoubleValue"
            | "FloatValue"
            | "Int32Value"
            | "Int64Value"
            | "UInt32Value"
            | "UInt64Value"
    )
}

impl Reader {
    /// The message, if its type has a JSON form of its own; empty if that was wrong (reported).
    pub(super) fn well_known(&mut self, node: &Node, descriptor: &MessageDescriptor) -> Option<DynamicMessage> {
        let name = descriptor.full_name().strip_prefix("google.protobuf.")?;
        let mut message = DynamicMessage::new(descriptor.clone());
        match name {
            "Any" => self.any_field(node, &mut message),
            "Duration" | "Timestamp" => self.time(node, name, &mut message),
            "Struct" => self.structure(node, &mut message),
            "ListValue" => self.list_value(node, &mut message),
            "Value" => self.any_value(node, &mut message),
            wrapper if is_wrapper(wrapper) => {
                let kind = descriptor.get_field(1)?.kind();
                match scalar::scalar(node, &kind) {
                    Ok(value) => message.set_field_by_number(1, value),
                    Err(reason) => self.problem(node.at, reason),
                }
            }
            _ => return None,
        }
        Some(message)
    }

    fn any_field(&mut self, node: &Node, message: &mut DynamicMessage) {
        // An empty mapping is an empty `Any`.
        if matches!(&node.value, Value::Mapping(entries) if entries.is_empty()) {
            return;
        }
        let (type_url, value) = match self.any_contents(node) {
            None => return,
            Some(Contents::Opaque(type_url, value)) => (type_url, value),
            Some(Contents::Known(type_url, inner)) => {
                let encoded = wire::encode(&inner);
                if encoded.depth > wire::MAX_DEPTH {
                    self.problem(node.at, format!("messages are nested deeper than {} levels", wire::MAX_DEPTH));
                }
                (type_url, encoded.bytes.into())
            }
        };
        message.set_field_by_number(1, Field::String(type_url));
        message.set_field_by_number(2, Field::Bytes(value));
    }

    fn time(&mut self, node: &Node, name: &str, message: &mut DynamicMessage) {
        // Proto3 JSON: ±315,576,000,000 s; years 1 to 9999.
        let (example, range) = match name {
            "Duration" => ("a duration such as 1.5s", -315_576_000_000..=315_576_000_000),
            _ => ("a time such as 2030-01-31T12:00:00Z", -62_135_596_800..=253_402_300_799),
        };
        let parsed = match &node.value {
            Value::String(text) if name == "Duration" => {
                text.parse::<prost_types::Duration>().ok().map(|duration| (duration.seconds, duration.nanos))
            }
            Value::String(text) => text.parse::<prost_types::Timestamp>().ok().map(|time| (time.seconds, time.nanos)),
            _ => None,
        };
        match parsed {
            Some((seconds, nanos)) if range.contains(&seconds) => {
                message.set_field_by_number(1, Field::I64(seconds));
                message.set_field_by_number(2, Field::I32(nanos));
            }
            Some(_) => self.problem(node.at, format!("{} is out of range", node.describe())),
            None => self.expected(node, example),
        }
    }

    fn structure(&mut self, node: &Node, message: &mut DynamicMessage) {
        let Value::Mapping(entries) = &node.value else { return self.expected(node, "a mapping") };
        let Some(value_type) = map_value_type(message) else { return };
        let mut fields = HashMap::new();
        for entry in entries {
            let step = serde_json::Value::from(entry.key.as_str());
            let value = self.at_index(step, |reader| reader.message(&entry.node, &value_type));
            fields.insert(MapKey::String(entry.key.clone()), Field::Message(value));
        }
        message.set_field_by_number(1, Field::Map(fields));
    }

    fn list_value(&mut self, node: &Node, message: &mut DynamicMessage) {
        let Value::Sequence(items) = &node.value else { return self.expected(node, "a list") };
        let Some(Kind::Message(value_type)) = message.descriptor().get_field(1).map(|field| field.kind()) else {
            return;
        };
        let read = |(index, item): (usize, &Node)| {
            Field::Message(self.at_index(index, |reader| reader.message(item, &value_type)))
        };
        message.set_field_by_number(1, Field::List(items.iter().enumerate().map(read).collect()));
    }

    /// `google.protobuf.Value`: null_value = 1, number_value = 2, string_value = 3, bool_value = 4, struct_value = 5,
    /// list_value = 6.
    fn any_value(&mut self, node: &Node, message: &mut DynamicMessage) {
        let nested = |number| match message.descriptor().get_field(number).map(|field| field.kind()) {
            Some(Kind::Message(descriptor)) => Some(descriptor),
            _ => None,
        };
        let (number, value) = match &node.value {
            Value::Null => (1, Field::EnumNumber(0)),
            Value::Bool(value) => (4, Field::Bool(*value)),
            Value::String(text) => (3, Field::String(text.clone())),
            Value::Number(_) => match scalar::scalar(node, &Kind::Double) {
                Ok(value) => (2, value),
                Err(reason) => return self.problem(node.at, reason),
            },
            Value::Mapping(_) => {
                let Some(descriptor) = nested(5) else { return };
                (5, Field::Message(self.message(node, &descriptor)))
            }
            Value::Sequence(_) => {
                let Some(descriptor) = nested(6) else { return };
                (6, Field::Message(self.message(node, &descriptor)))
            }
        };
        message.set_field_by_number(number, value);
    }
}

fn map_value_type(structure: &DynamicMessage) -> Option<MessageDescriptor> {
    let field = structure.descriptor().get_field(1)?;
    match field.kind().as_message()?.map_entry_value_field().kind() {
        Kind::Message(descriptor) => Some(descriptor),
        _ => None,
    }
}
