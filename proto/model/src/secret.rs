//! `envoy.extensions.transport_sockets.tls.v3.Secret`.

use crate::Name;
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
