//! TLS contexts out of their messages. Whatever would leave a peer unverified that was meant to be verified is refused.

use std::sync::Arc;

use culvert_api::envoy::config::core::v3 as core;
use culvert_api::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use culvert_api::envoy::extensions::transport_sockets::tls::v3 as api;
use prost::Name as _;

use super::{
    CommonTls, DownstreamTls, SanKind, SanMatcher, SecretRef, TlsCertificate, TlsVersion, UpstreamTls,
    ValidationContext,
};
use crate::matcher;
use crate::report::{Report, clip};
use crate::scalar;
use crate::source;

/// Parses the transport socket of a filter chain; `None` is plaintext (or refused, which the report knows).
pub(crate) fn downstream_socket(report: &mut Report, message: &core::TransportSocket) -> Option<Arc<DownstreamTls>> {
    report.field("transport_socket", |report| {
        let context: api::DownstreamTlsContext = typed_config(report, message)?;
        report.field("typed_config", |report| downstream(report, &context)).map(Arc::new)
    })
}

/// Parses the transport socket of a cluster or an agent; `None` is plaintext (or refused, which the report knows).
pub(crate) fn upstream_socket(report: &mut Report, message: &core::TransportSocket) -> Option<Arc<UpstreamTls>> {
    report.field("transport_socket", |report| {
        let context: api::UpstreamTlsContext = typed_config(report, message)?;
        report.field("typed_config", |report| upstream(report, &context)).map(Arc::new)
    })
}

/// The TLS context in a transport socket; none in a raw buffer.
fn typed_config<M: prost::Message + prost::Name + Default>(
    report: &mut Report,
    message: &core::TransportSocket,
) -> Option<M> {
    let Some(core::transport_socket::ConfigType::TypedConfig(config)) = &message.config_type else {
        if message.name != RAW_BUFFER {
            report.error_at("typed_config", format!("is missing; put a {} there", M::full_name()));
        }
        return None;
    };
    report.field("typed_config", |report| {
        let name = config.type_name();
        if name == RawBuffer::full_name() {
            return None;
        }
        if name != M::full_name() {
            let known = M::full_name();
            report.error(format!("{name} is not a known transport socket; use {known} or {}", RawBuffer::full_name()));
            return None;
        }
        report.unpack(config)
    })
}

fn downstream(report: &mut Report, message: &api::DownstreamTlsContext) -> Option<DownstreamTls> {
    let Some(common) = &message.common_tls_context else {
        report.error_at("common_tls_context", "is missing; a server needs a certificate");
        return None;
    };
    let require_client_certificate = message.require_client_certificate.unwrap_or(false);
    report.field("common_tls_context", |report| {
        let common = common_tls(report, common)?;
        if common.certificates.is_empty() {
            report.error_at("tls_certificates", "is empty; a server needs a certificate, from files or from SDS");
        }
        if require_client_certificate && !verifies(&common) {
            report.error_at("validation_context", "has no trusted_ca, but require_client_certificate is set");
        }
        Some(DownstreamTls { common, require_client_certificate })
    })
}

fn upstream(report: &mut Report, message: &api::UpstreamTlsContext) -> Option<UpstreamTls> {
    let sni = match message.sni.as_str() {
        "" => None,
        sni if sni.len() <= 255 && sni.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) => {
            Some(Arc::from(sni))
        }
        sni => {
            report.error_at("sni", format!("{:?} is not a host name", clip(sni)));
            return None;
        }
    };
    let default = api::CommonTlsContext::default();
    let common = message.common_tls_context.as_ref().unwrap_or(&default);
    let common = report.field("common_tls_context", |report| {
        let common = common_tls(report, common)?;
        if common.validation.is_none() {
            // Envoy's behaviour, kept; it is the one thing in TLS that everybody gets wrong once.
            report
                .warn_at("validation_context", "is missing: the server's certificate is not verified; set trusted_ca");
        }
        Some(common)
    })?;
    if message.auto_sni_san_validation && sni.is_none() && !message.auto_host_sni {
        report.error_at("auto_sni_san_validation", "needs a name to validate; set sni or auto_host_sni");
    }
    Some(UpstreamTls {
        common,
        sni,
        auto_host_sni: message.auto_host_sni,
        auto_sni_san_validation: message.auto_sni_san_validation,
    })
}

/// Whether a peer's certificate is checked against roots.
fn verifies(common: &CommonTls) -> bool {
    match &common.validation {
        Some(SecretRef::Inline(context)) => context.trusted_ca.is_some() || context.system_roots,
        Some(SecretRef::Sds { .. }) => true,
        None => false,
    }
}

#[expect(deprecated, reason = "what is refused is named too")]
fn common_tls(report: &mut Report, message: &api::CommonTlsContext) -> Option<CommonTls> {
    use api::common_tls_context::ValidationContextType as Context;
    let (min, max) = message.tls_params.as_ref().map_or((TlsVersion::V1_2, TlsVersion::V1_3), |parameters| {
        report.field("tls_params", |report| versions(report, parameters))
    });
    let mut certificates = report.items("tls_certificates", &message.tls_certificates, |report, message| {
        certificate(report, message).map(SecretRef::Inline)
    });
    certificates.extend(report.items(
        "tls_certificate_sds_secret_configs",
        &message.tls_certificate_sds_secret_configs,
        sds,
    ));
    let alpn = report.items("alpn_protocols", &message.alpn_protocols, |report, protocol: &String| {
        if protocol.is_empty() || protocol.len() > 255 {
            report.error(format!("has {} bytes; an ALPN protocol has 1 to 255", protocol.len()));
            return None;
        }
        Some(Arc::from(protocol.as_bytes()))
    });
    let mut validation_default = None;
    let validation = match message.validation_context_type.as_ref() {
        Some(Context::ValidationContext(context)) => {
            let context = report.field("validation_context", |report| {
                let context = validation(report, context)?;
                roots_for_the_rest(report, &context);
                Some(context)
            })?;
            Some(SecretRef::Inline(context))
        }
        Some(Context::ValidationContextSdsSecretConfig(config)) => {
            Some(report.field("validation_context_sds_secret_config", |report| sds(report, config))?)
        }
        Some(Context::CombinedValidationContext(combined)) => {
            let (default, config) =
                report.field("combined_validation_context", |report| combined_validation(report, combined))?;
            validation_default = Some(default);
            Some(config)
        }
        // The coverage tables have refused them.
        Some(
            Context::ValidationContextCertificateProvider(_) | Context::ValidationContextCertificateProviderInstance(_),
        ) => {
            return None;
        }
        None => None,
    };
    Some(CommonTls { certificates, validation, validation_default, alpn, min, max })
}

type Combined = (ValidationContext, SecretRef<ValidationContext>);

fn combined_validation(
    report: &mut Report,
    message: &api::common_tls_context::CombinedCertificateValidationContext,
) -> Option<Combined> {
    let Some(default) = &message.default_validation_context else {
        report.error_at("default_validation_context", "is missing");
        return None;
    };
    let default = report.field("default_validation_context", |report| validation(report, default));
    let Some(config) = &message.validation_context_sds_secret_config else {
        report.error_at("validation_context_sds_secret_config", "is missing");
        return None;
    };
    let config = report.field("validation_context_sds_secret_config", |report| sds(report, config));
    default.zip(config)
}

fn versions(report: &mut Report, message: &api::TlsParameters) -> (TlsVersion, TlsVersion) {
    use api::tls_parameters::TlsProtocol;
    let min = scalar::enumeration(report, "tls_minimum_protocol_version", message.tls_minimum_protocol_version);
    let max = scalar::enumeration(report, "tls_maximum_protocol_version", message.tls_maximum_protocol_version);
    let min = match min {
        Some(TlsProtocol::TlSv13) => TlsVersion::V1_3,
        Some(TlsProtocol::TlSv10 | TlsProtocol::TlSv11) => {
            report.warn_at("tls_minimum_protocol_version", "TLS 1.2 is the least that is spoken");
            TlsVersion::V1_2
        }
        Some(TlsProtocol::TlsAuto | TlsProtocol::TlSv12) | None => TlsVersion::V1_2,
    };
    let max = match max {
        Some(TlsProtocol::TlSv12) => TlsVersion::V1_2,
        Some(TlsProtocol::TlSv10 | TlsProtocol::TlSv11) => {
            report.error_at("tls_maximum_protocol_version", "TLS 1.2 is the least that is spoken; raise it");
            TlsVersion::V1_2
        }
        Some(TlsProtocol::TlsAuto | TlsProtocol::TlSv13) | None => TlsVersion::V1_3,
    };
    if min > max {
        report.error("the minimum version is above the maximum");
    }
    (min, max)
}

fn sds<T>(report: &mut Report, message: &api::SdsSecretConfig) -> Option<SecretRef<T>> {
    let name = scalar::name(report, "name", &message.name);
    let config = match &message.sds_config {
        Some(config) => Some(report.field("sds_config", |report| source::config_source(report, config))?),
        None => None,
    };
    Some(SecretRef::Sds { name: name?, config })
}

/// Parses the `TlsCertificate` at hand.
pub(crate) fn certificate(report: &mut Report, message: &api::TlsCertificate) -> Option<TlsCertificate> {
    let watched = message.watched_directory.as_ref();
    let mut read = |field: &'static str, data: Option<&core::DataSource>| match data {
        Some(data) => report.field(field, |report| source::data_source(report, data, watched)),
        None => {
            report.error_at(field, "is missing; a certificate needs its chain and its key");
            None
        }
    };
    let chain = read("certificate_chain", message.certificate_chain.as_ref());
    let key = read("private_key", message.private_key.as_ref());
    Some(TlsCertificate { chain: chain?, key: key? })
}

/// Parses the `CertificateValidationContext` at hand.
pub(crate) fn validation(
    report: &mut Report,
    message: &api::CertificateValidationContext,
) -> Option<ValidationContext> {
    use api::certificate_validation_context::TrustChainVerification;
    let errors = report.errors.len();
    let chain = scalar::enumeration::<TrustChainVerification>(
        report,
        "trust_chain_verification",
        message.trust_chain_verification,
    );
    if chain == Some(TrustChainVerification::AcceptUntrusted) {
        report.error_at(
            "trust_chain_verification",
            "ACCEPT_UNTRUSTED is not done; give trusted_ca, or no context at all",
        );
    }
    let watched = message.watched_directory.as_ref();
    let mut read = |field: &'static str, data: Option<&core::DataSource>| {
        data.and_then(|data| report.field(field, |report| source::data_source(report, data, watched)))
    };
    let trusted_ca = read("trusted_ca", message.trusted_ca.as_ref());
    let crl = read("crl", message.crl.as_ref());
    let san_matchers =
        report.items("match_typed_subject_alt_names", &message.match_typed_subject_alt_names, san_matcher);
    let system_roots = message.system_root_certs.is_some();
    (report.errors.len() == errors).then_some(ValidationContext { trusted_ca, system_roots, san_matchers, crl })
}

/// Envoy: names are worth nothing in certificates that anybody can issue.
fn roots_for_the_rest(report: &mut Report, context: &ValidationContext) {
    if context.trusted_ca.is_some() || context.system_roots {
        return;
    }
    let missing = "needs trusted_ca or system_root_certs beside it: else anybody can issue such a certificate";
    if !context.san_matchers.is_empty() {
        report.error_at("match_typed_subject_alt_names", missing);
    } else if context.crl.is_some() {
        report.error_at("crl", missing);
    } else {
        report.error("checks nothing; give trusted_ca or system_root_certs");
    }
}

fn san_matcher(report: &mut Report, message: &api::SubjectAltNameMatcher) -> Option<SanMatcher> {
    use api::subject_alt_name_matcher::SanType;
    let kind = match scalar::enumeration::<SanType>(report, "san_type", message.san_type)? {
        SanType::Email => SanKind::Email,
        SanType::Dns => SanKind::Dns,
        SanType::Uri => SanKind::Uri,
        SanType::IpAddress => SanKind::Ip,
        other @ (SanType::Unspecified | SanType::OtherName) => {
            report.error_at(
                "san_type",
                format!("{} is not matched; use EMAIL, DNS, URI or IP_ADDRESS", other.as_str_name()),
            );
            return None;
        }
    };
    let Some(matcher) = &message.matcher else {
        report.error_at("matcher", "is missing");
        return None;
    };
    let matcher = report.field("matcher", |report| matcher::string(report, matcher))?;
    Some(SanMatcher { kind, matcher })
}

/// Envoy's well-known name of plaintext, which needs no configuration.
const RAW_BUFFER: &str = "envoy.transport_sockets.raw_buffer";
