//! Scalars of the proto3 JSON mapping.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost::bytes::Bytes;
use prost_reflect::{EnumDescriptor, Kind, MapKey, Value as Field};

use super::suggest;
use crate::document::node::{Node, Value, quote};

/// A scalar that is no enum, or what is wrong.
pub(super) fn scalar(node: &Node, kind: &Kind) -> Result<Field, String> {
    let wrong = |what: &str| Err(format!("expected {what}, found {}", node.describe()));
    match (kind, &node.value) {
        (Kind::Bool, Value::Bool(value)) => Ok(Field::Bool(*value)),
        (Kind::Bool, Value::String(text)) if ["yes", "no", "on", "off"].contains(&text.to_lowercase().as_str()) => {
            Err(format!("expected a boolean, found {}; YAML 1.2 writes true or false", quote(text)))
        }
        (Kind::Bool, _) => wrong("true or false"),
        (Kind::String, Value::String(text)) => Ok(Field::String(text.clone())),
        (Kind::String, Value::Bool(_) | Value::Number(_)) => {
            Err(format!("expected a string, found {}; put it in quotes", node.describe()))
        }
        (Kind::String, _) => wrong("a string"),
        (Kind::Bytes, Value::String(text)) => match base64(text) {
            Some(bytes) => Ok(Field::Bytes(bytes)),
            None => Err("expected base64".to_owned()),
        },
        (Kind::Bytes, _) => wrong("bytes as base64"),
        (Kind::Double, value) => float(node, value).map(Field::F64),
        (Kind::Float, value) => {
            let wide = float(node, value)?;
            #[expect(clippy::cast_possible_truncation, reason = "rounding to the nearest f32 is what is wanted")]
            let narrow = wide as f32;
            if narrow.is_infinite() && wide.is_finite() {
                return Err(format!("{wide} is out of range for a float"));
            }
            Ok(Field::F32(narrow))
        }
        (Kind::Int32 | Kind::Sint32 | Kind::Sfixed32, _) => integer(node).map(Field::I32),
        (Kind::Int64 | Kind::Sint64 | Kind::Sfixed64, _) => integer(node).map(Field::I64),
        (Kind::Uint32 | Kind::Fixed32, _) => integer(node).map(Field::U32),
        (Kind::Uint64 | Kind::Fixed64, _) => integer(node).map(Field::U64),
        (Kind::Message(_) | Kind::Enum(_), _) => wrong("a scalar"),
    }
}

/// The number of an enum value that is given by name or number. Names count in any case, as they do for Envoy
/// (`case_insensitive_enum_parsing`): bootstraps say `type: strict_dns`.
pub(super) fn enumeration(node: &Node, descriptor: &EnumDescriptor) -> Result<i32, String> {
    match &node.value {
        Value::String(name) => descriptor
            .get_value_by_name(name)
            .or_else(|| descriptor.values().find(|value| value.name().eq_ignore_ascii_case(name)))
            .map(|value| value.number())
            .ok_or_else(|| suggest::unknown_enum_value(descriptor, name)),
        Value::Number(_) => integer(node),
        Value::Null if descriptor.full_name() == "google.protobuf.NullValue" => Ok(0),
        _ => Err(format!("expected a value of {}, found {}", descriptor.full_name(), node.describe())),
    }
}

/// The key of a map: always a string in JSON.
pub(super) fn map_key(text: &str, kind: &Kind) -> Option<MapKey> {
    match kind {
        Kind::String => Some(MapKey::String(text.to_owned())),
        Kind::Bool => text.parse().ok().map(MapKey::Bool),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => text.parse().ok().map(MapKey::I32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => text.parse().ok().map(MapKey::I64),
        Kind::Uint32 | Kind::Fixed32 => text.parse().ok().map(MapKey::U32),
        Kind::Uint64 | Kind::Fixed64 => text.parse().ok().map(MapKey::U64),
        _ => None,
    }
}

/// Standard or URL-safe alphabet, with or without padding.
pub(super) fn base64(text: &str) -> Option<Bytes> {
    const LENIENT: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let alphabet = if text.contains(['-', '_']) { &alphabet::URL_SAFE } else { &alphabet::STANDARD };
    GeneralPurpose::new(alphabet, LENIENT).decode(text).ok().map(Bytes::from)
}

/// An integer, as a number or a string (64-bit values in JSON). `1e3` and `1.0` are integers, too.
fn integer<T: TryFrom<i128> + Bounds>(node: &Node) -> Result<T, String> {
    let (Value::Number(text) | Value::String(text)) = &node.value else {
        return Err(format!("expected a whole number, found {}", node.describe()));
    };
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!(
            "{text} begins with a zero, which some read as octal; write 0o{digits} or leave the zero out"
        ));
    }
    let exact = text.parse::<i128>().ok().or_else(|| {
        let float = text.parse::<f64>().ok().filter(|float| float.fract() == 0.0 && float.abs() < 9e15)?;
        #[expect(clippy::cast_possible_truncation, reason = "whole and within 53 bits")]
        Some(float as i128)
    });
    let Some(exact) = exact else {
        return Err(format!("expected a whole number, found {}", node.describe()));
    };
    T::try_from(exact).map_err(|_| format!("{text} is out of range {}", T::RANGE))
}

fn float(node: &Node, value: &Value) -> Result<f64, String> {
    let number = match value {
        Value::Number(text) => text.parse::<f64>().ok(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            other => other.parse::<f64>().ok().filter(|number| number.is_finite()),
        },
        _ => None,
    };
    number.ok_or_else(|| format!("expected a number, found {}", node.describe()))
}

trait Bounds {
    const RANGE: &'static str;
}

impl Bounds for i32 {
    const RANGE: &'static str = "(-2147483648 to 2147483647)";
}

impl Bounds for i64 {
    const RANGE: &'static str = "(64 bits with sign)";
}

impl Bounds for u32 {
    const RANGE: &'static str = "(0 to 4294967295)";
}

impl Bounds for u64 {
    const RANGE: &'static str = "(0 to 18446744073709551615)";
}
