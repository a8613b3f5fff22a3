//! The API's validation rules (protoc-gen-validate options), read by reflection.

use std::fmt;

use prost::Name;
use prost_reflect::DynamicMessage;

use crate::Any;

/// A violated rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Proto field names: `filter_chains[0].filters[1].typed_config.stat_prefix`.
    pub path: String,
    /// What is wrong, with the value: a lower-case fragment.
    pub reason: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.reason) } else { write!(f, "{}: {}", self.path, self.reason) }
    }
}

/// Every violated rule of a typed message and what it contains, `Any`s of known types included.
#[must_use]
pub fn validate<M: Name>(message: &M) -> Vec<Violation> {
    let _ = message;
    todo!()
}

/// Every violated rule of the message in an `Any`; nothing if its type is not known. Bytes that do not decode are a violation.
#[must_use]
pub fn validate_any(any: &Any) -> Vec<Violation> {
    let _ = any;
    todo!()
}

/// Every violated rule of a message and what it contains.
#[must_use]
pub fn validate_dynamic(message: &DynamicMessage) -> Vec<Violation> {
    let _ = message;
    todo!()
}
