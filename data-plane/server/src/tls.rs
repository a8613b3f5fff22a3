//! From a TLS context to a TLS configuration: reads what it names, in files and among the secrets.

/// Why the material of a TLS context cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    #[error("{what}: {source}")]
    Source { what: &'static str, source: culvert_proxy::SourceError },
    #[error("{what}: {source}")]
    Tls { what: &'static str, source: culvert_runtime::tls::TlsError },
    #[error("secret {name} is {found}, expected {expected}")]
    Kind { name: culvert_model::Name, found: &'static str, expected: &'static str },
    #[error("no static secret is named {0}; add it to static_resources.secrets or give the reference an sds_config")]
    NoSuchSecret(culvert_model::Name),
}
