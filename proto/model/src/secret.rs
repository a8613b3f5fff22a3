//! `envoy.extensions.transport_sockets.tls.v3.Secret`.

use culvert_api::envoy::extensions::transport_sockets::tls::v3 as api;

use crate::Name;
use crate::report::{Parsed, Report};
use crate::scalar;
use crate::source::{self, DataSource};
use crate::tls::{self, TlsCertificate, ValidationContext};

/// A named secret. `Debug` never shows key material (see [`DataSource`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    pub name: Name,
    pub kind: SecretKind,
}

/// What a secret holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretKind {
    Certificate(TlsCertificate),
    Validation(ValidationContext),
    Generic(DataSource),
}

/// Parses a `Secret`.
#[must_use]
pub fn parse(message: &api::Secret) -> Parsed<Secret> {
    let mut report = Report::default();
    report.check(message);
    let secret = secret(&mut report, message);
    report.finish(secret)
}

/// Parses the `Secret` at hand.
pub(crate) fn secret(report: &mut Report, message: &api::Secret) -> Option<Secret> {
    use api::secret::Type;
    let name = scalar::name(report, "name", &message.name);
    let kind = match &message.r#type {
        Some(Type::TlsCertificate(certificate)) => {
            SecretKind::Certificate(report.field("tls_certificate", |report| tls::certificate(report, certificate))?)
        }
        Some(Type::ValidationContext(context)) => {
            SecretKind::Validation(report.field("validation_context", |report| tls::validation(report, context))?)
        }
        Some(Type::GenericSecret(generic)) => {
            let secret = generic.secret.as_ref();
            SecretKind::Generic(report.field("generic_secret", |report| {
                let Some(secret) = secret else {
                    report.error_at("secret", "is missing");
                    return None;
                };
                report.field("secret", |report| source::data_source(report, secret, None))
            })?)
        }
        // The coverage tables have refused it.
        Some(Type::SessionTicketKeys(_)) => return None,
        None => {
            report.error("holds nothing; set tls_certificate, validation_context or generic_secret");
            return None;
        }
    };
    Some(Secret { name: name?, kind })
}
