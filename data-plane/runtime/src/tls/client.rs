//! What a client presents and believes.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::trust::accepts_sans;
use super::{Identity, SanCheck, TlsError, Trust, Version, certificate, provider, versions};

/// A client's side of TLS.
#[derive(Debug, Clone)]
pub struct ClientTls {
    /// Shown when the server asks for a certificate.
    pub identity: Option<Identity>,
    /// `None`: any server is believed, whoever it is. Without [`Trust::sans`] a server must own the DNS name that it was
    /// addressed by; one addressed by IP need only be under the roots.
    pub trust: Option<Trust>,
    /// The server must own the DNS name it was addressed by even if `trust.sans` says something else too.
    pub verify_server_name: bool,
    /// Whether the server name is sent at all.
    pub send_server_name: bool,
    pub alpn: Vec<Vec<u8>>,
    pub min: Version,
    pub max: Version,
}

/// Builds a configuration.
///
/// # Errors
/// See [`TlsError`].
pub fn client_config(tls: ClientTls) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = match &tls.trust {
        Some(trust) => {
            let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(trust.root_store()?), provider())
                .with_crls(trust.crls()?)
                .build()
                .map_err(|error| TlsError::Verifier(error.to_string()))?;
            let name = if tls.verify_server_name {
                NameCheck::Always
            } else if trust.sans.is_empty() {
                NameCheck::DnsOnly
            } else {
                NameCheck::Never
            };
            ServerVerifier { chain: Some((chain, name)), sans: trust.sans.clone() }
        }
        None => ServerVerifier { chain: None, sans: Vec::new() },
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions(tls.min, tls.max)?)
        .map_err(|error| TlsError::Certificate(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &tls.identity {
        Some(identity) => {
            let key = Arc::clone(identity.certified_key());
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = tls.alpn;
    config.enable_sni = tls.send_server_name;
    Ok(Arc::new(config))
}

/// When the certificate must be for the name that the server was addressed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NameCheck {
    Always,
    DnsOnly,
    Never,
}

/// The chain, then the names.
#[derive(Debug)]
struct ServerVerifier {
    /// `None`: whoever owns the key of the certificate he shows is believed.
    chain: Option<(Arc<WebPkiServerVerifier>, NameCheck)>,
    sans: Vec<SanCheck>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some((chain, name)) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        let name_counts = match name {
            NameCheck::Always => true,
            NameCheck::DnsOnly => matches!(server_name, ServerName::DnsName(_)),
            NameCheck::Never => false,
        };
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Ok(_) => {}
            // The name is looked at after the chain was found good.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !name_counts => {}
            Err(error) => return Err(error),
        }
        if !self.sans.is_empty() {
            accepts_sans(&self.sans, end_entity)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        if self.chain.is_some() {
            return rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms);
        }
        // Whatever form the certificate has (the way through webpki refuses version 1): its key is all that counts.
        let key = certificate::public_key(cert).map_err(|_| CertificateError::BadEncoding)?;
        rustls::crypto::verify_tls13_signature_with_raw_key(message, &key, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
