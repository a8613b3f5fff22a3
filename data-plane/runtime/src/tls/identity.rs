//! What we present: a certificate chain and its key.

use std::fmt;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{CertificateDetails, TlsError, certificate, provider};

/// A certificate chain with its private key. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    key: Arc<CertifiedKey>,
    leaf: Arc<CertificateDetails>,
}

impl Identity {
    /// From a PEM chain, leaf first, and a PEM key.
    ///
    /// # Errors
    /// Either is not PEM, or the key is not the leaf's.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|error| TlsError::ChainPem(error.to_string()))?;
        let leaf = chain.first().ok_or(TlsError::ChainEmpty)?;
        let details = Arc::new(CertificateDetails::parse(leaf)?);
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::KeyPem(error.to_string()))?;
        let key = provider().key_provider.load_private_key(key).map_err(|error| TlsError::Key(error.to_string()))?;
        // Not `CertifiedKey::from_der`: it refuses X.509 version 1, which many a home-made certificate is. Whether to
        // believe one is the peer's to say.
        let public = certificate::public_key(leaf)?;
        if key.public_key().is_some_and(|other| other != public) {
            return Err(TlsError::KeyMismatch);
        }
        Ok(Self { key: Arc::new(CertifiedKey::new(chain, key)), leaf: details })
    }

    /// What the leaf says.
    #[must_use]
    pub fn details(&self) -> &CertificateDetails {
        &self.leaf
    }

    pub(super) fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// How well the leaf's DNS names fit what a client asks for.
    fn covers(&self, server_name: &str) -> Option<NameMatch> {
        let names = self.leaf.dns_sans.iter().map(String::as_str);
        names.filter_map(|pattern| name_match(pattern, server_name)).max()
    }

    fn can_sign(&self, offered: &[SignatureScheme]) -> bool {
        self.key.key.choose_scheme(offered).is_some()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("subject", &self.leaf.subject).field("sha256", &self.leaf.sha256).finish()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum NameMatch {
    Wildcard,
    Exact,
}

fn name_match(pattern: &str, name: &str) -> Option<NameMatch> {
    if pattern.eq_ignore_ascii_case(name) {
        return Some(NameMatch::Exact);
    }
    let suffix = pattern.strip_prefix("*.")?;
    let (first, rest) = name.split_once('.')?;
    (!first.is_empty() && rest.eq_ignore_ascii_case(suffix)).then_some(NameMatch::Wildcard)
}

/// Chooses by the client's server name and signature schemes: an exact name before a wildcard, else the first that can
/// sign, else the first.
#[derive(Debug)]
pub(super) struct Chooser(pub(super) Vec<Identity>);

impl ResolvesServerCert for Chooser {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        let able = || self.0.iter().filter(|identity| identity.can_sign(schemes));
        let named = hello.server_name().and_then(|name| {
            let covering = |wanted| able().find(move |identity| identity.covers(name) == Some(wanted));
            covering(NameMatch::Exact).or_else(|| covering(NameMatch::Wildcard))
        });
        let chosen = named.or_else(|| able().next()).or_else(|| self.0.first());
        chosen.map(|identity| Arc::clone(&identity.key))
    }
}
