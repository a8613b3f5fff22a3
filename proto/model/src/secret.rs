//! `envoy.extensions.transport_sockets.tls.v3.Secret`.

use culvert_api::envoy::extensions::transport_sockets::tls::v3 as api;

use crate::Name;
use crate::report::Parsed;
use crate::source::DataSource;
use crate::tls::{TlsCertificate, ValidationContext};

/// A named secret. `Debug` never shows key material (see [`DataSource`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    pub name: Name,
    pub kind: SecretKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretKind {
    Certificate(TlsCertificate),
    Validation(ValidationContext),
    Generic(DataSource),
}

/// Parses a `Secret`.
#[must_use]
pub fn parse(message: &api::Secret) -> Parsed<Secret> {
    let _ = message;
    todo!()
}
