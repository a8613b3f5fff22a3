//! TLS configurations from plain values: PEM bytes, names, versions.
//!
//! TLS 1.2 and 1.3 by rustls over aws-lc; no early data; session tickets under keys that rotate and die with the
//! configuration. Reads no file but the system's root certificates.

mod certificate;
mod client;
mod identity;
mod server;
mod trust;

use std::sync::Arc;

pub use certificate::CertificateDetails;
pub use client::{ClientTls, client_config};
pub use identity::Identity;
pub use server::{ClientTrust, ServerTls, server_config};
pub use trust::{Roots, SanCheck, SanKind, Trust};

use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;

/// Why a TLS configuration cannot be built. Never shows key material.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the certificate chain is not PEM: {0}; it must hold CERTIFICATE blocks, the leaf first")]
    ChainPem(String),
    #[error("the certificate chain holds no CERTIFICATE block")]
    ChainEmpty,
    #[error("the private key is not PEM: {0}; it must hold one unencrypted PKCS#8, PKCS#1 or SEC1 block")]
    KeyPem(String),
    #[error(
        "the private key cannot be used: {0}; give an RSA key of 2048 bits or more, ECDSA P-256, P-384 or P-521, or Ed25519"
    )]
    Key(String),
    #[error("the private key does not belong to the leaf certificate; give both from one pair")]
    KeyMismatch,
    #[error("the certificate cannot be used: {0}")]
    Certificate(String),
    #[error("the trusted certificates are not PEM: {0}")]
    RootsPem(String),
    #[error("the trusted certificates hold no usable CERTIFICATE block")]
    RootsEmpty,
    #[error("this system has no file of root certificates; name one as trusted_ca")]
    NoSystemRoots,
    #[error("the revocation list is not PEM: {0}")]
    Crl(String),
    #[error("the peer cannot be verified with these values: {0}")]
    Verifier(String),
    #[error("the least TLS version is above the greatest")]
    Versions,
    #[error("a server needs a certificate")]
    NoCertificate,
    #[error("client certificates are required but nothing is trusted to verify them; set trusted_ca")]
    NoTrust,
}

/// Versions that may be negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V1_2,
    V1_3,
}

/// The one provider of cryptography.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}

fn versions(min: Version, max: Version) -> Result<&'static [&'static SupportedProtocolVersion], TlsError> {
    match (min, max) {
        (Version::V1_2, Version::V1_2) => Ok(ONLY_1_2),
        (Version::V1_2, Version::V1_3) => Ok(BOTH),
        (Version::V1_3, Version::V1_3) => Ok(ONLY_1_3),
        (Version::V1_3, Version::V1_2) => Err(TlsError::Versions),
    }
}

static ONLY_1_2: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
static ONLY_1_3: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
static BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

#[cfg(test)]
mod tests;
