//! Whom we believe: roots, revocation lists and the names that a peer must have.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};

use super::{CertificateDetails, TlsError};

/// How a peer's certificate is judged.
#[derive(Debug, Clone)]
pub struct Trust {
    pub roots: Roots,
    /// PEM; every certificate of a chain but the root must then be covered and not revoked.
    pub crl: Option<Arc<[u8]>>,
    /// One of them must accept one of the peer's names. Empty: see [`super::ClientTls::trust`].
    pub sans: Vec<SanCheck>,
}

/// Where trust begins.
#[derive(Debug, Clone)]
pub enum Roots {
    /// These certificates, PEM.
    Pem(Arc<[u8]>),
    /// Those of the operating system, read when the configuration is built.
    System,
}

/// Judges one kind of a peer's subject alternative names.
#[derive(Clone)]
pub struct SanCheck {
    pub kind: SanKind,
    /// Called with each name of that kind.
    pub accepts: Arc<dyn Fn(&str) -> bool + Send + Sync>,
}

impl fmt::Debug for SanCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SanCheck").field("kind", &self.kind).finish()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SanKind {
    Email,
    Dns,
    Uri,
    Ip,
}

impl Trust {
    /// Whether configurations can be built from it.
    ///
    /// # Errors
    /// The roots or the revocation list are not what they should be.
    pub fn check(&self) -> Result<(), TlsError> {
        self.root_store()?;
        self.crls()?;
        Ok(())
    }

    pub(super) fn root_store(&self) -> Result<RootCertStore, TlsError> {
        let mut store = RootCertStore::empty();
        match &self.roots {
            Roots::Pem(pem) => add_pem(&mut store, pem)?,
            Roots::System => {
                let pem = SYSTEM_ROOTS.iter().map(Path::new).find_map(|path| std::fs::read(path).ok());
                add_pem(&mut store, &pem.ok_or(TlsError::NoSystemRoots)?)?;
            }
        }
        if store.is_empty() { Err(TlsError::RootsEmpty) } else { Ok(store) }
    }

    pub(super) fn crls(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
        let Some(pem) = &self.crl else { return Ok(Vec::new()) };
        let crls: Vec<_> = CertificateRevocationListDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|error| TlsError::Crl(error.to_string()))?;
        if crls.is_empty() { Err(TlsError::Crl("it holds no X509 CRL block".to_owned())) } else { Ok(crls) }
    }
}

/// Whether one of `checks` accepts one of the certificate's names.
pub(super) fn accepts_sans(checks: &[SanCheck], certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
    let details = CertificateDetails::parse(certificate)
        .map_err(|_| rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding))?;
    let accepted = checks.iter().any(|check| match check.kind {
        SanKind::Dns => details.dns_sans.iter().any(|name| (check.accepts)(name)),
        SanKind::Uri => details.uri_sans.iter().any(|name| (check.accepts)(name)),
        SanKind::Email => details.email_sans.iter().any(|name| (check.accepts)(name)),
        SanKind::Ip => details.ip_sans.iter().map(IpAddr::to_string).any(|name| (check.accepts)(&name)),
    });
    if accepted {
        Ok(())
    } else {
        Err(rustls::Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure))
    }
}

fn add_pem(store: &mut RootCertStore, pem: &[u8]) -> Result<(), TlsError> {
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| TlsError::RootsPem(error.to_string()))?;
        store.add(certificate).map_err(|error| TlsError::RootsPem(error.to_string()))?;
    }
    Ok(())
}

/// Where distributions keep their bundle.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
