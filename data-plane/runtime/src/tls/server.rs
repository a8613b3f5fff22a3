//! What a server presents and demands.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::identity::Chooser;
use super::trust::accepts_sans;
use super::{Identity, SanCheck, TlsError, Trust, Version, provider, versions};

/// A server's side of TLS.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// At least one; several are told apart by the client's server name.
    pub identities: Vec<Identity>,
    /// `Some`: clients are asked for a certificate, and one that they show must be trusted.
    pub trust: Option<Trust>,
    /// A client without a certificate is refused.
    pub require_client_certificate: bool,
    /// In order of preference. Empty: the extension is not used.
    pub alpn: Vec<Vec<u8>>,
    pub min: Version,
    pub max: Version,
}

/// Judges what clients have shown, as handshakes do with the same trust.
#[derive(Debug, Clone)]
pub struct ClientTrust(Arc<dyn ClientCertVerifier>);

impl ClientTrust {
    /// # Errors
    /// As [`Trust::check`].
    pub fn new(trust: &Trust) -> Result<Self, TlsError> {
        client_verifier(trust, true).map(Self)
    }

    /// Whether a chain, the client's own certificate first, would be accepted now.
    ///
    /// # Errors
    /// Why it would not: its authority is not trusted, it is revoked, it has expired, or it has not the names.
    pub fn judge(&self, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        let (own, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        self.0.verify_client_cert(own, intermediates, UnixTime::now()).map(drop)
    }
}

/// Builds a configuration.
///
/// # Errors
/// See [`TlsError`].
pub fn server_config(tls: ServerTls) -> Result<Arc<ServerConfig>, TlsError> {
    if tls.identities.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions(tls.min, tls.max)?)
        .map_err(|error| TlsError::Certificate(error.to_string()))?;
    let builder = match &tls.trust {
        None if tls.require_client_certificate => return Err(TlsError::NoTrust),
        None => builder.with_no_client_auth(),
        Some(trust) => builder.with_client_cert_verifier(client_verifier(trust, tls.require_client_certificate)?),
    };
    let mut config = builder.with_cert_resolver(Arc::new(Chooser(tls.identities)));
    config.alpn_protocols = tls.alpn;
    config.ticketer =
        rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|error| TlsError::Certificate(error.to_string()))?;
    Ok(Arc::new(config))
}

fn client_verifier(trust: &Trust, required: bool) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let roots = Arc::new(trust.root_store()?);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider()).with_crls(trust.crls()?);
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    let chain = builder.build().map_err(|error| TlsError::Verifier(error.to_string()))?;
    if trust.sans.is_empty() {
        return Ok(chain);
    }
    Ok(Arc::new(SanVerifier { chain, sans: trust.sans.clone() }))
}

/// The chain first, then the names.
#[derive(Debug)]
struct SanVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    sans: Vec<SanCheck>,
}

impl ClientCertVerifier for SanVerifier {
    fn offer_client_auth(&self) -> bool {
        self.chain.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        accepts_sans(&self.sans, end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
