//! What the data-driven tests share: messages out of JSON, variations of a good message, and checks of findings.

use std::fmt::Debug;

use prost::{Message, Name};
use prost_reflect::DynamicMessage;
use serde_json::Value;

use crate::report::{Finding, Parsed};

/// The message that `json` (proto3 JSON) describes.
pub(crate) fn message<M: Message + Name + Default>(json: &Value) -> M {
    let descriptor = culvert_api::pool::pool().get_message_by_name(&M::full_name()).expect("the message is known");
    let dynamic =
        DynamicMessage::deserialize(descriptor, json.clone()).unwrap_or_else(|error| panic!("{json}: {error}"));
    M::decode(dynamic.encode_to_vec().as_slice()).expect("what was encoded decodes")
}

/// `base` with the fields of `patch` in place of its own (RFC 7396).
pub(crate) fn patched(base: &Value, patch: &str) -> Value {
    let patch: Value = serde_json::from_str(patch).unwrap_or_else(|error| panic!("{patch}: {error}"));
    let mut patched = base.clone();
    merge(&mut patched, &patch);
    patched
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let object = target.as_object_mut().expect("it is an object by now");
    for (name, value) in fields {
        if value.is_null() {
            object.remove(name);
        } else {
            merge(object.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Each patch of `base` must be refused at the path, with a reason that holds the text.
pub(crate) fn refused<M, T>(base: &Value, parse: impl Fn(&M) -> Parsed<T>, cases: &[(&str, &str, &str)])
where
    M: Message + Name + Default,
    T: Debug,
{
    good(&parse(&message(base)), "the base");
    for (patch, path, text) in cases {
        let parsed = parse(&message(&patched(base, patch)));
        match parsed.value {
            Ok(value) => panic!("{patch}: expected a refusal at {path}, was accepted as {value:?}"),
            Err(errors) => assert!(has(&errors, path, text), "{patch}: expected `{path}: ..{text}..`, got {errors:#?}"),
        }
    }
}

/// Each patch of `base` must be accepted with a warning at the path that holds the text.
pub(crate) fn warned<M, T>(base: &Value, parse: impl Fn(&M) -> Parsed<T>, cases: &[(&str, &str, &str)])
where
    M: Message + Name + Default,
    T: Debug,
{
    for (patch, path, text) in cases {
        let parsed = parse(&message(&patched(base, patch)));
        let warnings = parsed.warnings;
        if let Err(errors) = parsed.value {
            panic!("{patch}: expected a warning at {path}, was refused: {errors:#?}");
        }
        assert!(has(&warnings, path, text), "{patch}: expected `{path}: ..{text}..`, got {warnings:#?}");
    }
}

/// The value, which must be there without a warning.
pub(crate) fn good<'p, T: Debug>(parsed: &'p Parsed<T>, what: &str) -> &'p T {
    assert!(parsed.warnings.is_empty(), "{what}: expected no warnings, got {:#?}", parsed.warnings);
    parsed.value.as_ref().unwrap_or_else(|errors| panic!("{what}: expected a value, got {errors:#?}"))
}

fn has(findings: &[Finding], path: &str, text: &str) -> bool {
    findings.iter().any(|finding| finding.path == path && finding.reason.contains(text))
}
