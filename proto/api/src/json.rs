//! The proto3 JSON mapping, both ways, over the descriptor pool.

pub(crate) mod read;
mod wire;
mod write;

#[cfg(test)]
mod tests;

use prost::Name;
use prost_reflect::DynamicMessage;

use crate::{Any, pool};

/// What becomes of key material and passwords in a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrets {
    Show,
    /// Every field that the API marks as sensitive (and whatever it contains) becomes `"[redacted]"`, but for the
    /// names of files and environment variables.
    Redact,
}

/// An `Any` as JSON with `@type` and proto field names; one whose type is not known, or whose bytes do not decode, as
/// `{"@type": .., "value": "<base64>"}`.
#[must_use]
pub fn any_to_json(any: &Any, secrets: Secrets) -> serde_json::Value {
    write::Writer::new(secrets).any(&any.type_url, &any.value)
}

/// A typed message as JSON with proto field names.
#[must_use]
pub fn to_json<M: Name>(message: &M, secrets: Secrets) -> serde_json::Value {
    let dynamic = pool::message(&M::type_url())
        .and_then(|descriptor| DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).ok());
    // Every typed message comes out of the same descriptor set.
    dynamic.map_or(serde_json::Value::Null, |dynamic| dynamic_to_json(&dynamic, secrets))
}

/// A message as JSON with proto field names.
#[must_use]
pub fn dynamic_to_json(message: &DynamicMessage, secrets: Secrets) -> serde_json::Value {
    write::Writer::new(secrets).message(message)
}
