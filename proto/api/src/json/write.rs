//! Messages to JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::bytes::Bytes;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage, Value as Field};
use serde_json::{Map, Value};

use super::Secrets;
use super::read::{in_value, is_wrapper};
use crate::{annotations, pool};

/// How deep `Any`s and messages are followed; what lies deeper is shown as base64. A bound on the stack: each `Any` may nest
/// a hundred messages anew.
const MAX_DEPTH: usize = 200;

pub(super) struct Writer {
    secrets: Secrets,
    /// Inside of a sensitive field.
    redacting: bool,
    depth: usize,
}

impl Writer {
    pub(super) fn new(secrets: Secrets) -> Self {
        Self { secrets, redacting: false, depth: 0 }
    }

    pub(super) fn any(&mut self, type_url: &str, value: &Bytes) -> Value {
        let mut object = Map::new();
        if !type_url.is_empty() {
            object.insert("@type".to_owned(), type_url.into());
        }
        let decoded = pool::message(type_url)
            .filter(|_| self.depth < MAX_DEPTH)
            .and_then(|descriptor| DynamicMessage::decode(descriptor, value.clone()).ok());
        match decoded {
            None if type_url.is_empty() && value.is_empty() => {}
            None => {
                object.insert("value".to_owned(), self.bytes(value));
            }
            Some(message) => match self.message(&message) {
                Value::Object(fields) if !in_value(&message.descriptor()) => object.extend(fields),
                value => {
                    object.insert("value".to_owned(), value);
                }
            },
        }
        Value::Object(object)
    }

    pub(super) fn message(&mut self, message: &DynamicMessage) -> Value {
        if self.depth >= MAX_DEPTH {
            return Value::String("[nested too deeply]".to_owned());
        }
        self.depth += 1;
        let value = self.well_known(message).unwrap_or_else(|| self.fields(message));
        self.depth -= 1;
        value
    }

    fn fields(&mut self, message: &DynamicMessage) -> Value {
        let annotations = annotations::of(&message.descriptor());
        let mut object = Map::new();
        for (field, value) in message.fields() {
            let outside = self.redacting;
            if self.secrets == Secrets::Redact && annotations.is_sensitive(&field) {
                self.redacting = true;
            }
            // Where a secret is kept is no secret: the fields of a DataSource that are not inline.
            let reference = matches!(
                field.full_name(),
                "envoy.config.core.v3.DataSource.filename" | "envoy.config.core.v3.DataSource.environment_variable"
            );
            let shown =
                if reference { Self::new(Secrets::Show).field(&field, value) } else { self.field(&field, value) };
            object.insert(field.name().to_owned(), shown);
            self.redacting = outside;
        }
        Value::Object(object)
    }

    fn field(&mut self, field: &FieldDescriptor, value: &Field) -> Value {
        let kind = field.kind();
        match value {
            Field::List(items) => Value::Array(items.iter().map(|item| self.value(item, &kind)).collect()),
            Field::Map(map) => {
                let Some(value_kind) = kind.as_message().map(|entry| entry.map_entry_value_field().kind()) else {
                    return Value::Null;
                };
                let entries = map.iter().map(|(key, value)| (map_key(key), self.value(value, &value_kind)));
                Value::Object(entries.collect())
            }
            value => self.value(value, &kind),
        }
    }

    fn value(&mut self, value: &Field, kind: &Kind) -> Value {
        if self.redacting && !matches!(value, Field::Message(_) | Field::Bytes(_)) {
            return redacted();
        }
        match value {
            Field::Bool(value) => (*value).into(),
            Field::I32(value) => (*value).into(),
            Field::U32(value) => (*value).into(),
            // Proto3 JSON: 64-bit integers are strings, because JavaScript's numbers are doubles.
            Field::I64(value) => value.to_string().into(),
            Field::U64(value) => value.to_string().into(),
            // By its shortest decimal form, not by the nearest double's.
            Field::F32(value) => float(value.to_string().parse().unwrap_or_else(|_| f64::from(*value))),
            Field::F64(value) => float(*value),
            Field::String(text) => text.as_str().into(),
            Field::Bytes(bytes) => self.bytes(bytes),
            Field::EnumNumber(number) => {
                match kind.as_enum().map(|descriptor| (descriptor.full_name(), descriptor.get_value(*number))) {
                    Some(("google.protobuf.NullValue", _)) => Value::Null,
                    Some((_, Some(value))) => value.name().into(),
                    _ => (*number).into(),
                }
            }
            Field::Message(message) => self.message(message),
            Field::List(_) | Field::Map(_) => Value::Null,
        }
    }

    fn bytes(&self, bytes: &[u8]) -> Value {
        // As Envoy's dumps do, so that what is shown can still be read as the message.
        STANDARD.encode(if self.redacting { REDACTED.as_bytes() } else { bytes }).into()
    }

    /// Types with a JSON form of their own.
    fn well_known(&mut self, message: &DynamicMessage) -> Option<Value> {
        let descriptor = message.descriptor();
        let name = descriptor.full_name().strip_prefix("google.protobuf.")?;
        let number = |field| message.get_field_by_number(field);
        if self.redacting && name != "Any" && name != "Struct" && name != "ListValue" && name != "Value" {
            return Some(redacted());
        }
        match name {
            "Any" => {
                let (type_url, value) = (number(1)?, number(2)?);
                Some(self.any(type_url.as_str()?, value.as_bytes()?))
            }
            "Duration" => {
                let (seconds, nanos) = (number(1)?.as_i64()?, number(2)?.as_i32()?);
                Some(prost_types::Duration { seconds, nanos }.to_string().into())
            }
            "Timestamp" => {
                let (seconds, nanos) = (number(1)?.as_i64()?, number(2)?.as_i32()?);
                Some(prost_types::Timestamp { seconds, nanos }.to_string().into())
            }
            "Struct" | "ListValue" => {
                let field = descriptor.get_field(1)?;
                Some(self.field(&field, number(1)?.as_ref()))
            }
            "Value" => {
                let shown = message.fields().next().map(|(field, value)| self.field(&field, value));
                Some(shown.unwrap_or(Value::Null))
            }
            wrapper if is_wrapper(wrapper) => {
                let field = descriptor.get_field(1)?;
                Some(self.field(&field, number(1)?.as_ref()))
            }
            _ => None,
        }
    }
}

fn redacted() -> Value {
    REDACTED.into()
}

fn float(value: f64) -> Value {
    match serde_json::Number::from_f64(value) {
        Some(number) => Value::Number(number),
        None if value.is_nan() => "NaN".into(),
        None if value > 0.0 => "Infinity".into(),
        None => "-Infinity".into(),
    }
}

fn map_key(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

/// In place of what is secret.
const REDACTED: &str = "[redacted]";
