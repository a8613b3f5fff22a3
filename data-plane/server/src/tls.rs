//! From a TLS context to a TLS configuration: reads what it names, in files and among the secrets.
//!
//! Two steps. [`gather`] collects the bytes that a context needs now; its [`Material`] has a digest, so that a file that was
//! written again with the same content changes nothing. [`Material::server`] and [`Material::client`] build from them.
//! **Nothing is kept here**: who uses a configuration asks again when a file or a secret has changed.

mod material;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use culvert_model::Name;
use culvert_model::secret::{Secret, SecretKind};
use culvert_model::source::DataSource;
use culvert_model::tls::{CommonTls, SecretRef, TlsCertificate, ValidationContext};
use culvert_proxy::{SourceError, read_source};
use culvert_runtime::tls::{Identity, Roots, Trust};

pub(crate) use material::{Material, Validation};

use crate::secrets::{Lookup, Secrets, describe};

/// Why the material of a TLS context cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MaterialError {
    #[error("{what}: {source}")]
    Source { what: &'static str, source: SourceError },
    #[error(transparent)]
    Tls(#[from] culvert_runtime::tls::TlsError),
    #[error("secret {name} is {found}, expected {expected}")]
    Kind { name: Name, found: &'static str, expected: &'static str },
    #[error("no static secret is named {0}; add it to static_resources.secrets or give the reference an sds_config")]
    NoSuchSecret(Name),
}

/// What is there of a context.
#[derive(Debug)]
pub(crate) enum Gathered {
    Complete(Material),
    /// Secrets that have not come yet, by name.
    Awaiting(Vec<Name>),
}

/// Collects what `context` names.
///
/// # Errors
/// A source cannot be read, or a secret is missing or of the wrong kind.
pub(crate) fn gather(context: &CommonTls, secrets: &Secrets) -> Result<Gathered, MaterialError> {
    let mut awaited = Vec::new();
    let mut material = Material::default();
    for reference in &context.certificates {
        if let Some(certificate) = certificate(reference, secrets, &mut awaited)? {
            let chain = read("certificate chain", &certificate.chain)?;
            material.certificates.push((chain, read("private key", &certificate.key)?));
        }
    }
    let mut merged: Option<ValidationContext> = context.validation_default.clone();
    if let Some(reference) = &context.validation
        && let Some(given) = validation(reference, secrets, &mut awaited)?
    {
        merged = Some(merged.map_or_else(|| given.clone(), |default| merge(default, given)));
    }
    if let Some(context) = merged {
        let read_optional =
            |what, source: &Option<DataSource>| source.as_ref().map(|source| read(what, source)).transpose();
        material.validation = Some(Validation {
            trusted_ca: read_optional("trusted CA", &context.trusted_ca)?,
            crl: read_optional("revocation list", &context.crl)?,
            system_roots: context.system_roots,
            sans: context.san_matchers,
        });
    }
    if awaited.is_empty() { Ok(Gathered::Complete(material)) } else { Ok(Gathered::Awaiting(awaited)) }
}

/// Every source of a context that stands in it and cannot be read, with its path in `CommonTlsContext`.
#[must_use]
pub(crate) fn unreadable(context: &CommonTls) -> Vec<(String, MaterialError)> {
    let mut sources = Vec::new();
    for (index, certificate) in context.certificates.iter().enumerate() {
        if let SecretRef::Inline(certificate) = certificate {
            let path = |field: &str| format!("tls_certificates[{index}].{field}");
            sources.push((path("certificate_chain"), "certificate chain", &certificate.chain));
            sources.push((path("private_key"), "private key", &certificate.key));
        }
    }
    let combined = "combined_validation_context.default_validation_context";
    let inline = context.validation.iter().filter_map(|validation| match validation {
        SecretRef::Inline(validation) => Some(("validation_context", validation)),
        SecretRef::Sds { .. } => None,
    });
    for (path, validation) in inline.chain(context.validation_default.iter().map(|default| (combined, default))) {
        sources.extend(validation.trusted_ca.iter().map(|ca| (format!("{path}.trusted_ca"), "trusted CA", ca)));
        sources.extend(validation.crl.iter().map(|crl| (format!("{path}.crl"), "revocation list", crl)));
    }
    let broken = sources.into_iter().filter_map(|(path, what, source)| Some((path, read(what, source).err()?)));
    broken.collect()
}

/// Whether a secret can be used: its sources can be read, and hold what they should.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_secret(secret: &Secret) -> Result<(), MaterialError> {
    match &secret.kind {
        SecretKind::Certificate(certificate) => {
            let chain = read("certificate chain", &certificate.chain)?;
            Identity::from_pem(&chain, &read("private key", &certificate.key)?)?;
        }
        SecretKind::Validation(context) => {
            if let Some(source) = &context.trusted_ca {
                let crl = context.crl.as_ref().map(|source| read("revocation list", source)).transpose()?;
                let roots = Roots::Pem(Arc::from(&*read("trusted CA", source)?));
                Trust { roots, crl: crl.map(|crl| Arc::from(&*crl)), sans: Vec::new() }.check()?;
            }
        }
        SecretKind::Generic(source) => drop(read("generic secret", source)?),
    }
    Ok(())
}

/// The files that `context` reads at the moment, and the directories that it wants watched.
#[must_use]
pub(crate) fn files(context: &CommonTls, secrets: &Secrets) -> Vec<PathBuf> {
    let mut awaited = Vec::new();
    let mut sources = Vec::new();
    for reference in &context.certificates {
        if let Ok(Some(certificate)) = certificate(reference, secrets, &mut awaited) {
            sources.extend([&certificate.chain, &certificate.key]);
        }
    }
    let given = context.validation.iter().filter_map(|reference| validation(reference, secrets, &mut awaited).ok()?);
    for context in given.chain(&context.validation_default) {
        sources.extend(context.trusted_ca.iter().chain(&context.crl));
    }
    sources.into_iter().flat_map(source_files).collect()
}

/// The files behind a source.
pub(crate) fn source_files(source: &DataSource) -> impl Iterator<Item = PathBuf> + use<> {
    let paths = match source {
        DataSource::File { path, watched_directory } => [Some(path.clone()), watched_directory.clone()],
        DataSource::Inline(_) | DataSource::Environment(_) => [None, None],
    };
    paths.into_iter().flatten()
}

fn certificate<'a>(
    reference: &'a SecretRef<TlsCertificate>,
    secrets: &'a Secrets,
    awaited: &mut Vec<Name>,
) -> Result<Option<&'a TlsCertificate>, MaterialError> {
    match reference {
        SecretRef::Inline(certificate) => Ok(Some(certificate)),
        SecretRef::Sds { name, config } => match resolve(name, &secrets.lookup(name, config.as_ref()), awaited)? {
            None => Ok(None),
            Some(SecretKind::Certificate(certificate)) => Ok(Some(certificate)),
            Some(other) => Err(wrong_kind(name, other, "a certificate")),
        },
    }
}

fn validation<'a>(
    reference: &'a SecretRef<ValidationContext>,
    secrets: &'a Secrets,
    awaited: &mut Vec<Name>,
) -> Result<Option<&'a ValidationContext>, MaterialError> {
    match reference {
        SecretRef::Inline(context) => Ok(Some(context)),
        SecretRef::Sds { name, config } => match resolve(name, &secrets.lookup(name, config.as_ref()), awaited)? {
            None => Ok(None),
            Some(SecretKind::Validation(context)) => Ok(Some(context)),
            Some(other) => Err(wrong_kind(name, other, "a validation context")),
        },
    }
}

fn resolve<'a>(
    name: &Name,
    found: &Lookup<'a>,
    awaited: &mut Vec<Name>,
) -> Result<Option<&'a SecretKind>, MaterialError> {
    match found {
        Lookup::Found(secret) => Ok(Some(&secret.kind)),
        Lookup::Awaited => {
            awaited.push(Name::clone(name));
            Ok(None)
        }
        Lookup::Unknown => Err(MaterialError::NoSuchSecret(Name::clone(name))),
    }
}

fn wrong_kind(name: &Name, found: &SecretKind, expected: &'static str) -> MaterialError {
    MaterialError::Kind { name: Name::clone(name), found: describe(found), expected }
}

/// `combined_validation_context`: what SDS gives is merged into the default as protobuf merges messages.
fn merge(default: ValidationContext, given: &ValidationContext) -> ValidationContext {
    let mut san_matchers = default.san_matchers;
    san_matchers.extend(given.san_matchers.iter().cloned());
    ValidationContext {
        trusted_ca: given.trusted_ca.clone().or(default.trusted_ca),
        system_roots: given.system_roots || default.system_roots,
        crl: given.crl.clone().or(default.crl),
        san_matchers,
    }
}

fn read(what: &'static str, source: &DataSource) -> Result<Bytes, MaterialError> {
    read_source(source, SOURCE_LIMIT).map_err(|source| MaterialError::Source { what, source })
}

/// Of one PEM source: a bundle of roots is about 250 KB.
const SOURCE_LIMIT: usize = 4 << 20;
