//! Envoy's two bootstrap extensions of reverse tunnels.

use std::sync::Arc;
use std::time::Duration;

use culvert_api::envoy::extensions::bootstrap::reverse_tunnel::downstream_socket_interface::v3::{
    DownstreamReverseConnectionSocketInterface, downstream_reverse_connection_socket_interface::HttpHandshakeConfig,
};
use culvert_api::envoy::extensions::bootstrap::reverse_tunnel::upstream_socket_interface::v3::UpstreamReverseConnectionSocketInterface;

use crate::access_log::{self, AccessLog, Subject};
use crate::agent::{EnvoyInitiator, initiator};
use crate::report::Report;
use crate::scalar;

/// What holds for all tunnels of Envoy's configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct ReverseTunnels {
    /// What every `rc://` address says besides its own names, which are empty here.
    pub handshake: EnvoyInitiator,
    /// Default 10 s.
    pub handshake_timeout: Duration,
    /// Default 30 s.
    pub max_reconnect_backoff: Duration,
    /// Pings without an answer after which an unused tunnel is closed. Default 3.
    pub ping_failure_threshold: u32,
    pub tenant_isolation: bool,
    /// Where a listener enables the limit.
    pub max_connections_per_node: u32,
    /// Of the life of agents' connections, in every dialect.
    pub agent_logs: Vec<Arc<AccessLog>>,
    /// Of the life of registered tunnels, in every dialect.
    pub server_logs: Vec<Arc<AccessLog>>,
}

impl Default for ReverseTunnels {
    fn default() -> Self {
        let handshake = initiator::of_handshake(&mut Report::default(), &HttpHandshakeConfig::default());
        Self {
            handshake: handshake.unwrap_or_default(),
            handshake_timeout: HANDSHAKE,
            max_reconnect_backoff: BACKOFF,
            ping_failure_threshold: THRESHOLD,
            tenant_isolation: false,
            max_connections_per_node: 0,
            agent_logs: Vec::new(),
            server_logs: Vec::new(),
        }
    }
}

impl ReverseTunnels {
    /// Takes in what the initiators' extension says.
    pub(super) fn downstream(&mut self, report: &mut Report, message: &DownstreamReverseConnectionSocketInterface) {
        let limit = message.max_reconnect_backoff.as_ref();
        self.max_reconnect_backoff = scalar::positive(report, "max_reconnect_backoff", limit, BACKOFF);
        self.agent_logs = access_log::of_subject(report, "access_log", &message.access_log, Subject::Tunnel);
        let Some(handshake) = &message.http_handshake else { return };
        report.field("http_handshake", |report| {
            let timeout = handshake.handshake_timeout.as_ref();
            self.handshake_timeout = scalar::positive(report, "handshake_timeout", timeout, HANDSHAKE);
            if let Some(handshake) = initiator::of_handshake(report, handshake) {
                self.handshake = handshake;
            }
        });
    }

    /// Takes in what the responders' extension says.
    pub(super) fn upstream(&mut self, report: &mut Report, message: &UpstreamReverseConnectionSocketInterface) {
        let threshold = message.ping_failure_threshold;
        self.ping_failure_threshold = scalar::at_least(report, "ping_failure_threshold", threshold, 1, THRESHOLD);
        self.tenant_isolation = message.enable_tenant_isolation.unwrap_or(false);
        self.max_connections_per_node = message.max_connections_per_node;
        self.server_logs = access_log::of_subject(report, "access_log", &message.access_log, Subject::Tunnel);
    }
}

/// Envoy's defaults.
const HANDSHAKE: Duration = Duration::from_secs(10);
const BACKOFF: Duration = Duration::from_secs(30);
const THRESHOLD: u32 = 3;
