//! Verdicts over the messages of tunnels.

use super::{Covered, covered, honoured};

pub(super) const TABLE: &[Covered] = &[
    covered(
        "culvert.tunnel.v1.TunnelAgent",
        &[honoured(&[
            "name",
            "cluster",
            "hosting_listener",
            "servers",
            "connection_num",
            "weight",
            "host_name",
            "credential",
            "transport_socket",
            "connect_timeout",
            "reconnect_base_interval",
            "reconnect_max_interval",
            "connect_retry_times",
            "graceful_close_max_wait",
            "protocol",
        ])],
    ),
    covered("culvert.tunnel.v1.ServerSource", &[honoured(&["address", "eds", "dns_refresh_rate"])]),
    covered("culvert.tunnel.v1.EdsServers", &[honoured(&["service_name", "eds_config"])]),
    covered("culvert.tunnel.v1.Credential", &[honoured(&["policy", "credential"])]),
    covered("culvert.tunnel.v1.TunnelAgents", &[honoured(&["agents", "agents_config"])]),
    covered(
        "culvert.tunnel.v1.TunnelServer",
        &[honoured(&[
            "stat_prefix",
            "credential_policies",
            "allowed_clusters",
            "handshake_timeout",
            "max_handshake_bytes",
            "max_pending_handshakes",
            "max_connections_per_agent",
            "protocol",
            "queue_timeout",
            "max_queued_requests",
        ])],
    ),
    covered("culvert.tunnel.v1.CredentialPolicy", &[honoured(&["name", "tokens", "clusters"])]),
];
