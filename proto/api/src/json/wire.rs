//! Canonical encoding of dynamic messages: fields by number, maps by key, so that equal messages have equal bytes
//! (and content hashes). Unknown fields are not written: a message that was read from text has none.

use prost::encoding::{WireType, encode_key, encode_varint};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, Value};

/// How deep messages may be nested: what prost and most other decoders take.
pub(super) const MAX_DEPTH: usize = 100;

pub(super) struct Encoded {
    pub(super) bytes: Vec<u8>,
    /// Levels of messages, 1 for a flat one.
    pub(super) depth: usize,
}

/// Recurses as deep as the message is; a message from a tree is as deep as the tree, times three.
pub(super) fn encode(message: &DynamicMessage) -> Encoded {
    let mut encoded = Encoded { bytes: Vec::new(), depth: 1 };
    for (field, value) in message.fields() {
        encoded.field(&field, value);
    }
    encoded
}

impl Encoded {
    fn field(&mut self, field: &FieldDescriptor, value: &Value) {
        let kind = field.kind();
        match value {
            Value::Map(map) => {
                let Some(entry) = kind.as_message() else { return };
                let (key_kind, value_kind) = (entry.map_entry_key_field().kind(), entry.map_entry_value_field().kind());
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                for (key, value) in entries {
                    let mut inner = Self { bytes: Vec::new(), depth: 1 };
                    inner.single(1, &key_kind, &Value::from(MapKey::clone(key)));
                    inner.single(2, &value_kind, value);
                    self.nested(field.number(), &inner);
                }
            }
            Value::List(items) if field.is_packed() => {
                let mut packed = Vec::new();
                items.iter().for_each(|item| scalar(item, &kind, &mut packed));
                self.delimited(field.number(), &packed);
            }
            Value::List(items) => items.iter().for_each(|item| self.single(field.number(), &kind, item)),
            value => self.single(field.number(), &kind, value),
        }
    }

    fn single(&mut self, number: u32, kind: &Kind, value: &Value) {
        match value {
            Value::Message(message) => self.nested(number, &encode(message)),
            Value::String(text) => self.delimited(number, text.as_bytes()),
            Value::Bytes(bytes) => self.delimited(number, bytes),
            value => {
                encode_key(number, wire_type(kind), &mut self.bytes);
                scalar(value, kind, &mut self.bytes);
            }
        }
    }

    fn nested(&mut self, number: u32, inner: &Self) {
        self.depth = self.depth.max(inner.depth + 1);
        self.delimited(number, &inner.bytes);
    }

    fn delimited(&mut self, number: u32, bytes: &[u8]) {
        encode_key(number, WireType::LengthDelimited, &mut self.bytes);
        encode_varint(bytes.len() as u64, &mut self.bytes);
        self.bytes.extend_from_slice(bytes);
    }
}

fn wire_type(kind: &Kind) -> WireType {
    match kind {
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => WireType::SixtyFourBit,
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => WireType::ThirtyTwoBit,
        _ => WireType::Varint,
    }
}

/// Protocol Buffers encoding, "Base 128 varints" and "More integer types": negative int32 take ten bytes, sint is zig-zag.
fn scalar(value: &Value, kind: &Kind, bytes: &mut Vec<u8>) {
    match (kind, value) {
        (Kind::Sint32, Value::I32(value)) => {
            encode_varint(u64::from(((value << 1) ^ (value >> 31)).cast_unsigned()), bytes)
        }
        (Kind::Sint64, Value::I64(value)) => encode_varint(((value << 1) ^ (value >> 63)).cast_unsigned(), bytes),
        (Kind::Sfixed32, Value::I32(value)) => bytes.extend_from_slice(&value.to_le_bytes()),
        (Kind::Sfixed64, Value::I64(value)) => bytes.extend_from_slice(&value.to_le_bytes()),
        (Kind::Fixed32, Value::U32(value)) => bytes.extend_from_slice(&value.to_le_bytes()),
        (Kind::Fixed64, Value::U64(value)) => bytes.extend_from_slice(&value.to_le_bytes()),
        (_, Value::F32(value)) => bytes.extend_from_slice(&value.to_le_bytes()),
        (_, Value::F64(value)) => bytes.extend_from_slice(&value.to_le_bytes()),
        (_, Value::Bool(value)) => encode_varint(u64::from(*value), bytes),
        (_, Value::I32(value) | Value::EnumNumber(value)) => encode_varint(i64::from(*value).cast_unsigned(), bytes),
        (_, Value::I64(value)) => encode_varint(value.cast_unsigned(), bytes),
        (_, Value::U32(value)) => encode_varint(u64::from(*value), bytes),
        (_, Value::U64(value)) => encode_varint(*value, bytes),
        _ => debug_assert!(false, "{kind:?} cannot hold {value:?}"),
    }
}
