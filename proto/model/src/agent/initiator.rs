//! What an agent in Envoy's dialect says.

use std::sync::Arc;

use culvert_api::culvert::tunnel::v1 as own_api;
use culvert_api::envoy::config::core::v3::HeaderValueOption;
use culvert_api::envoy::extensions::bootstrap::reverse_tunnel::downstream_socket_interface::v3::downstream_reverse_connection_socket_interface::HttpHandshakeConfig;

use crate::report::Report;
use crate::scalar;
use crate::source;

/// An agent in Envoy's dialect; its node id is the agent's host name, its cluster id the agent's cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnvoyInitiator {
    pub tenant: Arc<str>,
    /// What this side calls the server's cluster.
    pub upstream_cluster: Arc<str>,
    pub path: Arc<str>,
    /// 101 instead of 200.
    pub upgrade: bool,
    /// Names in lower case, and constant values.
    pub additional_headers: Vec<(Arc<str>, Arc<str>)>,
    /// Whether a server may go on without TLS after the handshake, as every Envoy 1.40 does.
    pub leaves_tls: bool,
}

/// Parses the `EnvoyInitiator` at hand.
pub(super) fn own(report: &mut Report, message: &own_api::EnvoyInitiator) -> Option<EnvoyInitiator> {
    let tenant = id(report, "tenant_id", &message.tenant_id);
    let upstream_cluster = scalar::header_value(report, "upstream_cluster_name", &message.upstream_cluster_name);
    let default = HttpHandshakeConfig::default();
    let handshake = message.http_handshake.as_ref().unwrap_or(&default);
    report.field("http_handshake", |report| {
        if handshake.handshake_timeout.is_some() {
            report.error_at("handshake_timeout", "stands in the agent's connect_timeout");
        }
    });
    let initiator = report.field("http_handshake", |report| of_handshake(report, handshake))?;
    Some(EnvoyInitiator {
        tenant: tenant?,
        upstream_cluster: upstream_cluster?,
        leaves_tls: message.allow_envoy_to_leave_tls,
        ..initiator
    })
}

/// What the `HttpHandshakeConfig` at hand says, for an agent whose names stand elsewhere.
pub(crate) fn of_handshake(report: &mut Report, message: &HttpHandshakeConfig) -> Option<EnvoyInitiator> {
    let path = if message.request_path.is_empty() { DEFAULT_PATH } else { &message.request_path };
    if !path.starts_with('/') || path.bytes().any(|byte| byte <= b' ' || byte >= 0x7f) {
        report.error_at("request_path", "is not a path: it begins with / and has no white space");
    }
    let additional_headers = report.items("additional_headers", &message.additional_headers, header);
    Some(EnvoyInitiator {
        tenant: Arc::default(),
        upstream_cluster: Arc::default(),
        path: path.into(),
        upgrade: message.use_http_upgrade,
        additional_headers,
        leaves_tls: true,
    })
}

/// An id that can stand in a header.
pub(crate) fn id(report: &mut Report, field: &'static str, text: &str) -> Option<Arc<str>> {
    scalar::name(report, field, text)?;
    scalar::header_value(report, field, text)
}

fn header(report: &mut Report, message: &HeaderValueOption) -> Option<(Arc<str>, Arc<str>)> {
    let Some(header) = &message.header else {
        report.error_at("header", "is missing");
        return None;
    };
    report.field("header", |report| {
        let name = scalar::header_name(report, "key", &header.key)?;
        let value = source::header_value(report, header)?;
        // Of an HTTP message, and of the handshake itself: two of them would say two things.
        if OWN.contains(&&*name) || name.contains("-reverse-tunnel-") {
            report.error_at("key", format!("{name} is the handshake's own"));
            return None;
        }
        if value.replace("%%", "").contains('%') {
            report.error_at("value", "has an operator: values are constant text; %% is a percent sign");
            return None;
        }
        Some((name, value.replace("%%", "%").into()))
    })
}

const DEFAULT_PATH: &str = "/reverse_connections/request";
const OWN: &[&str] = &["host", "connection", "upgrade", "content-length", "transfer-encoding", "culvert-tunnel-tls"];
