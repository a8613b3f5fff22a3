//! TLS contexts: what a listener presents and demands, and what a cluster or an agent does towards its peer.

mod parse;

use std::sync::Arc;

use crate::Name;
use crate::matcher::StringMatcher;
use crate::source::{ConfigSource, DataSource};

pub(crate) use parse::{certificate, downstream_socket, upstream_socket, validation};

/// `TlsCertificate`: chain and key, each read when used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsCertificate {
    pub chain: DataSource,
    pub key: DataSource,
}

/// `CertificateValidationContext`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidationContext {
    /// PEM of the trusted roots. `None`: the system's roots when `system_roots`, else nothing verifies the peer.
    pub trusted_ca: Option<DataSource>,
    pub system_roots: bool,
    /// `match_typed_subject_alt_names`: one must match. Empty: for a server the SNI name decides, for a client any
    /// certificate under the roots.
    pub san_matchers: Vec<SanMatcher>,
    pub crl: Option<DataSource>,
}

/// One name that a peer's certificate may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SanMatcher {
    pub kind: SanKind,
    pub matcher: StringMatcher,
}

/// Which kind of name of a certificate is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SanKind {
    Email,
    Dns,
    Uri,
    Ip,
}

/// A value that stands here, or the name under which SDS delivers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretRef<T> {
    Inline(T),
    /// `config: None` names a static secret of the bootstrap.
    Sds {
        name: Name,
        config: Option<ConfigSource>,
    },
}

/// The versions that are spoken; older ones are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

/// `CommonTlsContext`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommonTls {
    /// What we present. Several: chosen by SNI.
    pub certificates: Vec<SecretRef<TlsCertificate>>,
    pub validation: Option<SecretRef<ValidationContext>>,
    /// `combined_validation_context`: what stands inline beside a validation context from SDS; merged into it.
    pub validation_default: Option<ValidationContext>,
    pub alpn: Vec<Arc<[u8]>>,
    pub min: TlsVersion,
    pub max: TlsVersion,
}

/// `DownstreamTlsContext`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownstreamTls {
    pub common: CommonTls,
    pub require_client_certificate: bool,
}

/// `UpstreamTlsContext`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTls {
    pub common: CommonTls,
    /// `None`: the host name of the endpoint, if it has one, else no SNI.
    pub sni: Option<Arc<str>>,
    pub auto_host_sni: bool,
    pub auto_sni_san_validation: bool,
}
