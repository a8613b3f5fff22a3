//! The proto3 JSON mapping, both ways, over the descriptor pool.

use prost::Name;
use prost_reflect::DynamicMessage;

use crate::Any;

/// What becomes of key material and passwords in a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrets {
    Show,
    /// `"[redacted]"`.
    Redact,
}

/// An `Any` as JSON with `@type` and proto field names; one whose type is not known, or whose bytes do not decode, as
/// `{"@type": .., "value": "<base64>"}`.
#[must_use]
pub fn any_to_json(any: &Any, secrets: Secrets) -> serde_json::Value {
    let _ = (any, secrets);
    todo!()
}

/// A typed message as JSON with proto field names.
#[must_use]
pub fn to_json<M: Name>(message: &M, secrets: Secrets) -> serde_json::Value {
    let _ = (message, secrets);
    todo!()
}

/// A message as JSON with proto field names.
#[must_use]
pub fn dynamic_to_json(message: &DynamicMessage, secrets: Secrets) -> serde_json::Value {
    let _ = (message, secrets);
    todo!()
}
