//! `google.protobuf.Any` with shared bytes, and the way from and to typed messages.

use bytes::Bytes;
use prost::{Message, Name};

/// `google.protobuf.Any`. Unlike `prost_types::Any` its value is [`Bytes`]: cloning it, or decoding it out of a
/// response, copies nothing.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Any {
    /// `type.googleapis.com/` and the full name of the message.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The message, encoded.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

impl Name for Any {
    const NAME: &'static str = "Any";
    const PACKAGE: &'static str = "google.protobuf";

    fn type_url() -> String {
        crate::type_url::of_name("google.protobuf.Any")
    }
}

impl Any {
    /// Packs a typed message.
    #[must_use]
    pub fn pack<M: Name>(message: &M) -> Self {
        Self { type_url: M::type_url(), value: message.encode_to_vec().into() }
    }

    /// The full message name behind the last `/` of the type URL; the whole URL where it has none.
    #[must_use]
    pub fn type_name(&self) -> &str {
        crate::type_url::message_name(&self.type_url)
    }

    /// Whether this is a `M`.
    #[must_use]
    pub fn is<M: Name>(&self) -> bool {
        self.type_name() == M::full_name()
    }

    /// Decodes the message, which must be a `M`.
    ///
    /// # Errors
    /// Another type, or bytes that do not decode (also: nested deeper than prost's limit of 100).
    pub fn unpack<M: Name + Default>(&self) -> Result<M, UnpackError> {
        if !self.is::<M>() {
            return Err(UnpackError::Type { expected: M::full_name(), found: self.type_name().to_owned() });
        }
        M::decode(self.value.clone()).map_err(|source| UnpackError::Decode { name: M::full_name(), source })
    }
}

/// Why an [`Any`] did not yield the message asked for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UnpackError {
    #[error("expected a {expected}, found a {found}")]
    Type { expected: String, found: String },
    #[error("{name} does not decode: {source}")]
    Decode { name: String, source: prost::DecodeError },
}
