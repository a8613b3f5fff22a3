//! The bytes of a TLS context, and the configurations that are built from them.

use std::sync::Arc;

use bytes::Bytes;
use culvert_model::cluster::{AutoSni, Cluster, UpstreamProtocol};
use culvert_model::matcher::StringMatcher;
use culvert_model::tls::{CommonTls, DownstreamTls, SanKind, SanMatcher, TlsVersion, UpstreamTls};
use culvert_runtime::tls::{
    self as runtime, CertificateDetails, ClientTls, ClientTrust, Identity, Roots, SanCheck, ServerTls, TlsError, Trust,
    Version,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use xxhash_rust::xxh3::Xxh3;

/// Everything that a context needs, read. No `Debug` of the bytes: there are private keys among them.
#[derive(Default)]
pub(crate) struct Material {
    /// Chains with their keys.
    pub certificates: Vec<(Bytes, Bytes)>,
    pub validation: Option<Validation>,
}

/// How peers are verified.
#[derive(Debug)]
pub(crate) struct Validation {
    pub trusted_ca: Option<Bytes>,
    pub crl: Option<Bytes>,
    pub system_roots: bool,
    pub sans: Vec<SanMatcher>,
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material").field("certificates", &self.certificates.len()).finish_non_exhaustive()
    }
}

impl Material {
    /// Differs when any byte differs.
    #[must_use]
    pub(crate) fn digest(&self) -> u128 {
        let mut hash = Xxh3::new();
        let mut add = |part: Option<&Bytes>| {
            hash.update(&part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
            hash.update(part.map_or(&[], |part| part));
        };
        for (chain, key) in &self.certificates {
            add(Some(chain));
            add(Some(key));
        }
        if let Some(validation) = &self.validation {
            add(validation.trusted_ca.as_ref());
            add(validation.crl.as_ref());
            // The matchers are part of the context, or of a secret that replaces it.
            add(Some(&Bytes::from(format!("{:?}", validation.sans))));
        }
        hash.digest128()
    }

    /// What a listener presents and demands.
    ///
    /// # Errors
    /// Bytes that are no certificates or keys, or that do not belong together.
    pub(crate) fn server(&self, tls: &DownstreamTls) -> Result<Arc<rustls::ServerConfig>, TlsError> {
        let (min, max) = versions(&tls.common);
        runtime::server_config(ServerTls {
            identities: self.identities()?,
            trust: self.trust(),
            require_client_certificate: tls.require_client_certificate,
            alpn: alpn(&tls.common),
            min,
            max,
        })
    }

    /// Whom the listener believes now; `None`: it asks nobody for a certificate.
    ///
    /// # Errors
    /// As [`Self::server`].
    pub(crate) fn client_trust(&self) -> Result<Option<ClientTrust>, TlsError> {
        self.trust().as_ref().map(ClientTrust::new).transpose()
    }

    /// What an agent presents and believes.
    ///
    /// # Errors
    /// As [`Self::server`].
    pub(crate) fn client(&self, tls: &UpstreamTls) -> Result<Arc<rustls::ClientConfig>, TlsError> {
        self.client_of(tls, None, None)
    }

    /// What a cluster presents and believes, if it speaks TLS.
    ///
    /// # Errors
    /// As [`Self::server`].
    pub(crate) fn cluster(&self, cluster: &Cluster) -> Result<Option<Arc<rustls::ClientConfig>>, TlsError> {
        let Some(tls) = &cluster.tls else { return Ok(None) };
        self.client_of(tls, Some(cluster.protocol), cluster.auto_sni.as_ref()).map(Some)
    }

    /// `protocol`: whose names are offered by ALPN when the context itself offers none.
    pub(crate) fn client_of(
        &self,
        tls: &UpstreamTls,
        protocol: Option<UpstreamProtocol>,
        auto_sni: Option<&AutoSni>,
    ) -> Result<Arc<rustls::ClientConfig>, TlsError> {
        let (min, max) = versions(&tls.common);
        let mut names = alpn(&tls.common);
        if names.is_empty() {
            names = match protocol {
                Some(UpstreamProtocol::Http2) => vec![b"h2".to_vec()],
                Some(UpstreamProtocol::Auto) => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
                Some(UpstreamProtocol::Http1 | UpstreamProtocol::Downstream) | None => Vec::new(),
            };
        }
        runtime::client_config(ClientTls {
            identity: self.identities()?.into_iter().next(),
            trust: self.trust(),
            verify_server_name: tls.auto_sni_san_validation || auto_sni.is_some_and(|auto| auto.validates),
            send_server_name: true,
            alpn: names,
            min,
            max,
        })
    }

    /// The certificates that are presented, and those that are trusted, for `/certs`. What does not parse is left out.
    #[must_use]
    pub(crate) fn details(&self) -> (Vec<CertificateDetails>, Vec<CertificateDetails>) {
        let parse = |pem: &Bytes| -> Vec<CertificateDetails> {
            let certificates = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok);
            certificates.filter_map(|der| CertificateDetails::parse(&der).ok()).collect()
        };
        let presented = self.certificates.iter().flat_map(|(chain, _)| parse(chain)).collect();
        let trusted = self.validation.iter().filter_map(|validation| validation.trusted_ca.as_ref());
        (presented, trusted.flat_map(parse).collect())
    }

    fn identities(&self) -> Result<Vec<Identity>, TlsError> {
        self.certificates.iter().map(|(chain, key)| Identity::from_pem(chain, key)).collect()
    }

    fn trust(&self) -> Option<Trust> {
        let validation = self.validation.as_ref()?;
        let roots = match &validation.trusted_ca {
            Some(pem) => Roots::Pem(Arc::from(&**pem)),
            None if validation.system_roots => Roots::System,
            None => return None,
        };
        Some(Trust {
            roots,
            crl: validation.crl.as_ref().map(|pem| Arc::from(&**pem)),
            sans: validation.sans.iter().map(san_check).collect(),
        })
    }
}

fn versions(common: &CommonTls) -> (Version, Version) {
    let version = |version| match version {
        TlsVersion::V1_2 => Version::V1_2,
        TlsVersion::V1_3 => Version::V1_3,
    };
    (version(common.min), version(common.max))
}

fn alpn(common: &CommonTls) -> Vec<Vec<u8>> {
    common.alpn.iter().map(|name| name.to_vec()).collect()
}

fn san_check(san: &SanMatcher) -> SanCheck {
    let kind = match san.kind {
        SanKind::Email => runtime::SanKind::Email,
        SanKind::Dns => runtime::SanKind::Dns,
        SanKind::Uri => runtime::SanKind::Uri,
        SanKind::Ip => runtime::SanKind::Ip,
    };
    let (dns, matcher) = (san.kind == SanKind::Dns, san.matcher.clone());
    let accepts = move |name: &str| match &matcher {
        // Envoy: an exact DNS matcher is matched by a certificate's wildcard.
        StringMatcher::Exact { value, .. } if dns => dns_covers(name, value),
        matcher => matcher.matches(name.as_bytes()),
    };
    SanCheck { kind, accepts: Arc::new(accepts) }
}

/// Whether a certificate's DNS name, which may be a wildcard, is for `name`.
fn dns_covers(pattern: &str, name: &str) -> bool {
    if pattern.eq_ignore_ascii_case(name) {
        return true;
    }
    match (pattern.strip_prefix("*."), name.split_once('.')) {
        (Some(suffix), Some((label, rest))) => !label.is_empty() && suffix.eq_ignore_ascii_case(rest),
        _ => false,
    }
}
