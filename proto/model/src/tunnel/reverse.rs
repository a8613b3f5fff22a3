//! Envoy's `reverse_tunnel` network filter: what a listener demands of Envoy's initiators.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use culvert_api::envoy::config::core::v3::RequestMethod;
use culvert_api::envoy::extensions::filters::common::jwks::v3::JwtHandshakeValidator;
use culvert_api::envoy::extensions::filters::common::jwks::v3::jwt_handshake_validator::JwksSourceSpecifier;
use culvert_api::envoy::extensions::filters::network::reverse_tunnel::v3 as api;

use super::id_format::{IdFormat, Place};
use super::jwks::{self, Jwks};
use super::policy::TokenRules;
use super::{
    HANDSHAKES_PER_SECOND, PENDING_PER_SOURCE, ProtocolChoice, RECONNECT_WINDOW, TunnelProtocol, TunnelServer,
};
use crate::report::Report;
use crate::scalar;
use crate::source;

/// How Envoy's handshake is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReverseTunnel {
    pub method: Arc<str>,
    pub path: Arc<str>,
    pub mode: HandshakeMode,
    pub ping_interval: Duration,
    pub required_cluster: Option<Arc<str>>,
    pub node_format: Option<IdFormat>,
    pub cluster_format: Option<IdFormat>,
    pub tenant_format: Option<IdFormat>,
    pub jwt: Option<JwtValidator>,
    /// `enable_connection_limit`: the bootstrap's `max_connections_per_node` holds.
    pub limited: bool,
    /// Whether an initiator over TLS may go on without TLS after the handshake, as every Envoy 1.40 does.
    pub leaves_tls: bool,
    /// Whether tunnels join the cluster that their cluster id names, besides those of Envoy's `reverse_connection` type.
    pub joins_named_cluster: bool,
}

/// 200 or 101.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeMode {
    /// As the request asks.
    Either,
    /// `upgrade` is ignored.
    Plain,
    /// `upgrade` is demanded.
    Upgrade,
}

/// `JwtHandshakeValidator`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtValidator {
    pub expected: TokenRules,
    pub jwks: Jwks,
    /// In lower case.
    pub token_header: Arc<str>,
    /// Where `%DYNAMIC_METADATA%` finds the claims.
    pub claims_namespace: Arc<str>,
    /// Audit: what would be denied is counted and let in.
    pub allow_missing_or_failed: bool,
}

impl Default for ReverseTunnel {
    /// What holds where nothing is said: Envoy's path and method, in either mode, TLS kept.
    fn default() -> Self {
        Self {
            method: "GET".into(),
            path: DEFAULT_PATH.into(),
            mode: HandshakeMode::Either,
            ping_interval: PING_INTERVAL,
            required_cluster: None,
            node_format: None,
            cluster_format: None,
            tenant_format: None,
            jwt: None,
            limited: false,
            leaves_tls: false,
            joins_named_cluster: true,
        }
    }
}

/// Parses the filter at hand. Such a listener takes Envoy's dialect only.
pub(crate) fn filter(report: &mut Report, message: &api::ReverseTunnel) -> Option<TunnelServer> {
    let handshake_timeout =
        scalar::positive(report, "handshake_timeout", message.handshake_timeout.as_ref(), HANDSHAKE);
    if handshake_timeout > HANDSHAKE_LIMIT {
        report.error_at("handshake_timeout", "is more than 300 s");
    }
    let reverse = ReverseTunnel { leaves_tls: true, joins_named_cluster: false, ..reverse(report, message)? };
    Some(TunnelServer {
        stat_prefix: "reverse_tunnel".into(),
        policies: Vec::new(),
        allowed_clusters: Arc::default(),
        handshake_timeout,
        max_handshake_bytes: 64 * 1024,
        max_pending_handshakes: 1024,
        max_connections_per_agent: usize::MAX,
        protocol: ProtocolChoice::Fixed(TunnelProtocol::Http2),
        queue_timeout: Duration::from_secs(5),
        max_queued_requests: 1024,
        reconnect_window: RECONNECT_WINDOW,
        max_pending_handshakes_per_source: super::size(PENDING_PER_SOURCE),
        max_handshakes_per_second_per_source: NonZeroU32::new(HANDSHAKES_PER_SECOND),
        ping_interval: super::PING_INTERVAL,
        policy: None,
        mosn: false,
        reverse: Box::new(reverse),
    })
}

/// Parses the `ReverseTunnel` at hand, but for what a [`TunnelServer`] says itself.
pub(super) fn reverse(report: &mut Report, message: &api::ReverseTunnel) -> Option<ReverseTunnel> {
    let method = scalar::enumeration::<RequestMethod>(report, "request_method", message.request_method)?;
    let method = if method == RequestMethod::MethodUnspecified { RequestMethod::Get } else { method };
    let path = if message.request_path.is_empty() { DEFAULT_PATH } else { &message.request_path };
    if path.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        report.error_at("request_path", "has white space or control characters, which a path cannot hold");
    }
    let ping_interval = scalar::positive(report, "ping_interval", message.ping_interval.as_ref(), PING_INTERVAL);
    let (mut node_format, mut cluster_format, mut tenant_format) = (None, None, None);
    if let Some(validation) = &message.validation {
        report.field("validation", |report| {
            let mut format = |field, text| IdFormat::report(report, field, text, Place::Handshake);
            node_format = format("node_id_format", &validation.node_id_format);
            cluster_format = format("cluster_id_format", &validation.cluster_id_format);
            tenant_format = format("tenant_id_format", &validation.tenant_id_format);
        });
    }
    let jwt = match &message.jwt_validator {
        Some(message) => Some(report.field("jwt_validator", |report| jwt(report, message))?),
        None => None,
    };
    let required = Some(message.required_cluster_name.as_str()).filter(|name| !name.is_empty());
    Some(ReverseTunnel {
        method: method.as_str_name().into(),
        path: path.into(),
        mode: if message.use_http_upgrade { HandshakeMode::Upgrade } else { HandshakeMode::Plain },
        ping_interval,
        required_cluster: required.map(Arc::from),
        node_format,
        cluster_format,
        tenant_format,
        jwt,
        limited: message.enable_connection_limit,
        ..ReverseTunnel::default()
    })
}

fn jwt(report: &mut Report, message: &JwtHandshakeValidator) -> Option<JwtValidator> {
    let issuer = scalar::name(report, "issuer", &message.issuer);
    let jwks = match &message.jwks_source_specifier {
        Some(JwksSourceSpecifier::LocalJwks(source)) => {
            report.field("local_jwks", |report| source::data_source(report, source, None)).map(Jwks::Local)
        }
        Some(JwksSourceSpecifier::RemoteJwks(remote)) => {
            report.field("remote_jwks", |report| jwks::remote(report, remote)).map(Jwks::Remote)
        }
        None => {
            report.error_at("local_jwks", "is missing; a validator without keys would let nobody in");
            None
        }
    };
    let header = if message.token_header.is_empty() { "authorization" } else { &message.token_header };
    let token_header = scalar::header_name(report, "token_header", header);
    let namespace = if message.claims_metadata_namespace.is_empty() {
        CLAIMS_NAMESPACE
    } else {
        &message.claims_metadata_namespace
    };
    let skew = if message.clock_skew_seconds == 0 { CLOCK_SKEW } else { message.clock_skew_seconds };
    Some(JwtValidator {
        expected: TokenRules {
            issuer: issuer?,
            audiences: message.audiences.iter().map(|audience| audience.as_str().into()).collect(),
            clock_skew: Duration::from_secs(skew.into()),
        },
        jwks: jwks?,
        token_header: token_header?,
        claims_namespace: namespace.into(),
        allow_missing_or_failed: message.allow_missing_or_failed,
    })
}

/// Envoy's defaults.
const DEFAULT_PATH: &str = "/reverse_connections/request";
const PING_INTERVAL: Duration = Duration::from_secs(2);
const HANDSHAKE: Duration = Duration::from_secs(10);
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(300);
const CLAIMS_NAMESPACE: &str = "envoy.filters.network.reverse_tunnel.jwt";
const CLOCK_SKEW: u32 = 60;

#[cfg(test)]
mod tests;
