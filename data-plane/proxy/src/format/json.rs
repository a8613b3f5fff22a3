//! JSON log lines.

use std::sync::Arc;

use culvert_model::access_log::{JsonValue, Part};

use super::{Absent, Values, write_format};

/// Appends a JSON object. A format that is one operator keeps its type: a number, a string, or null when absent.
pub(crate) fn write_json(object: &[(Arc<str>, JsonValue)], values: &impl Values, out: &mut Vec<u8>) {
    out.push(b'{');
    for ((key, value), index) in object.iter().zip(0_usize..) {
        if index > 0 {
            out.push(b',');
        }
        quoted(out, |out| out.extend_from_slice(key.as_bytes()));
        out.push(b':');
        write_value(value, values, out);
    }
    out.push(b'}');
}

fn write_value(value: &JsonValue, values: &impl Values, out: &mut Vec<u8>) {
    match value {
        JsonValue::Object(object) => write_json(object, values, out),
        JsonValue::List(items) => {
            out.push(b'[');
            for (value, index) in items.iter().zip(0_usize..) {
                if index > 0 {
                    out.push(b',');
                }
                write_value(value, values, out);
            }
            out.push(b']');
        }
        JsonValue::Bool(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
        JsonValue::Number(value) => out.extend_from_slice(value.to_string().as_bytes()),
        JsonValue::Format(format) => match format.parts.as_slice() {
            [Part::Operator { operator, max_length: None }] if values.number(operator).is_some() => {
                values.write(operator, out);
            }
            [Part::Operator { operator, .. }] => {
                let start = out.len();
                let present = values.write(operator, out);
                out.truncate(start);
                if present {
                    quoted(out, |out| write_format(format, Absent::Nothing, values, out));
                } else {
                    out.extend_from_slice(if format.omit_empty { b"\"\"" } else { b"null" });
                }
            }
            _ => quoted(out, |out| write_format(format, Absent::Dash, values, out)),
        },
    }
}

/// Appends a JSON string of what `write` appends. Bytes that are no UTF-8 become U+FFFD.
pub(crate) fn quoted(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'"');
    let start = out.len();
    write(out);
    let is_plain = |byte: &u8| (b' '..=b'~').contains(byte) && *byte != b'"' && *byte != b'\\';
    if !out.iter().skip(start).all(is_plain) {
        let raw = out.split_off(start);
        for character in String::from_utf8_lossy(&raw).chars() {
            escape(character, out);
        }
    }
    out.push(b'"');
}

fn escape(character: char, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    match character {
        '"' => out.extend_from_slice(b"\\\""),
        '\\' => out.extend_from_slice(b"\\\\"),
        '\n' => out.extend_from_slice(b"\\n"),
        '\r' => out.extend_from_slice(b"\\r"),
        '\t' => out.extend_from_slice(b"\\t"),
        character if u32::from(character) < 0x20 || character == '\u{7f}' => {
            let code = u32::from(character) as usize;
            out.extend_from_slice(b"\\u00");
            out.extend([HEX[code >> 4 & 15], HEX[code & 15]]);
        }
        character => {
            let mut buffer = [0; 4];
            out.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
        }
    }
}
