//! Values that several test modules need: certificates, contexts, and a process without workers' traffic.

use std::sync::Arc;
use std::time::Duration;

use culvert_model::source::{ConfigSource, ConfigSourceKind, DataSource};
use culvert_model::tls::{CommonTls, SecretRef, TlsCertificate, TlsVersion, ValidationContext};
use culvert_proxy::Process;
use culvert_runtime::access_log::AccessLogs;
use culvert_runtime::drain::Trigger;
use culvert_upstream::{Clusters, Resolver};

/// A self-signed certificate and its key, PEM.
pub(crate) fn certificate(name: &str) -> (String, String) {
    let signed = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    (signed.cert.pem(), signed.signing_key.serialize_pem())
}

pub(crate) fn inline(text: &str) -> DataSource {
    DataSource::Inline(text.as_bytes().into())
}

pub(crate) fn tls_certificate((chain, key): &(String, String)) -> TlsCertificate {
    TlsCertificate { chain: inline(chain), key: inline(key) }
}

pub(crate) fn common(certificates: Vec<SecretRef<TlsCertificate>>) -> CommonTls {
    CommonTls {
        certificates,
        validation: None,
        validation_default: None,
        alpn: Vec::new(),
        min: TlsVersion::V1_2,
        max: TlsVersion::V1_3,
    }
}

pub(crate) fn trusting(pem: &str) -> ValidationContext {
    ValidationContext { trusted_ca: Some(inline(pem)), system_roots: false, san_matchers: Vec::new(), crl: None }
}

/// A reference to a secret that comes over ADS.
pub(crate) fn sds<T>(name: &str) -> SecretRef<T> {
    let config = ConfigSource { kind: ConfigSourceKind::Ads, initial_fetch_timeout: Duration::from_secs(15) };
    SecretRef::Sds { name: name.into(), config: Some(config) }
}

/// A process without listeners, on the current runtime.
pub(crate) fn process() -> (Arc<Process>, Trigger) {
    let (drain, watch) = culvert_runtime::drain::channel();
    let process = Process {
        clusters: Clusters::new(tokio::runtime::Handle::current(), Resolver::system()),
        listeners: culvert_proxy::Listeners::default(),
        routes: culvert_proxy::RouteSlots::default(),
        scopes: Arc::default(),
        demands: Arc::default(),
        shares: culvert_proxy::Shares::default(),
        registry: culvert_runtime::telemetry::Registry::default(),
        logs: AccessLogs::start().unwrap(),
        hostname: "test".into(),
        drain: watch,
    };
    (Arc::new(process), drain)
}
