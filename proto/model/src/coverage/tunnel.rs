//! Verdicts over the messages of tunnels.

use super::{Covered, carried, covered, honoured, refused, warned};

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
            "envoy",
            "max_servers",
            "locality",
            "max_connection_age",
            "ping_interval",
        ])],
    ),
    covered(
        "culvert.tunnel.v1.EnvoyInitiator",
        &[honoured(&["tenant_id", "upstream_cluster_name", "http_handshake", "allow_envoy_to_leave_tls"])],
    ),
    covered(
        "envoy.extensions.bootstrap.reverse_tunnel.downstream_socket_interface.v3.DownstreamReverseConnectionSocketInterface.HttpHandshakeConfig",
        &[
            honoured(&["request_path", "additional_headers", "use_http_upgrade", "handshake_timeout"]),
            refused(&["formatters"], "header values are constant text; a token is a TunnelAgent's credential"),
        ],
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
            "reverse_tunnel",
            "allow_envoy_to_leave_tls",
            "reconnect_window",
            "max_pending_handshakes_per_source",
            "max_handshakes_per_second_per_source",
            "ping_interval",
        ])],
    ),
    covered("culvert.tunnel.v1.CredentialPolicy", &[honoured(&["name", "tokens", "clusters"])]),
    covered(
        "envoy.extensions.filters.network.reverse_tunnel.v3.ReverseTunnel",
        &[
            honoured(&[
                "ping_interval",
                "request_path",
                "request_method",
                "validation",
                "required_cluster_name",
                "use_http_upgrade",
                "jwt_validator",
                "enable_connection_limit",
                "handshake_timeout",
            ]),
            carried(&["skip_rebalancing"]),
            warned(&["auto_close_connections"], "a tunnel closes when its agent or its listener goes"),
        ],
    ),
    covered(
        "envoy.extensions.filters.network.reverse_tunnel.v3.DrainAwareHttpConnectionManager",
        &[honoured(&["hcm_config"]), carried(&["enable_drain_with_goaway"])],
    ),
    covered(
        "envoy.extensions.upstreams.http.reverse_tunnel.v3.ReverseTunnelUpstreamCodecOptions",
        &[honoured(&["enable_drain_with_goaway"])],
    ),
    covered(
        "envoy.extensions.bootstrap.reverse_tunnel.downstream_socket_interface.v3.DownstreamReverseConnectionSocketInterface",
        &[
            honoured(&["http_handshake", "max_reconnect_backoff"]),
            carried(&["stat_prefix"]),
            warned(&["maintain_interval"], "a lost tunnel is noticed and dialled anew at once"),
            warned(&["enable_detailed_stats"], "each agent has its statistics"),
            warned(&["access_log"], "tunnels are logged and stand in /tunnels"),
        ],
    ),
    covered(
        "envoy.extensions.bootstrap.reverse_tunnel.upstream_socket_interface.v3.UpstreamReverseConnectionSocketInterface",
        &[
            honoured(&["ping_failure_threshold", "enable_tenant_isolation", "max_connections_per_node"]),
            carried(&["stat_prefix"]),
            warned(&["enable_detailed_stats"], "each listener has its statistics"),
            warned(&["reporter_config"], "tunnels stand in /tunnels"),
            warned(&["access_log"], "tunnels are logged and stand in /tunnels"),
        ],
    ),
    covered(
        "envoy.extensions.filters.network.reverse_tunnel.v3.Validation",
        &[
            honoured(&["node_id_format", "cluster_id_format", "tenant_id_format"]),
            warned(&["emit_dynamic_metadata"], "connections have no dynamic metadata"),
            carried(&["dynamic_metadata_namespace"]),
        ],
    ),
    covered(
        "envoy.extensions.clusters.reverse_connection.v3.ReverseConnectionClusterConfig",
        &[honoured(&["host_id_format", "tenant_id_format"]), carried(&["cleanup_interval"])],
    ),
    covered(
        "envoy.extensions.filters.common.jwks.v3.JwtHandshakeValidator",
        &[
            honoured(&[
                "issuer",
                "audiences",
                "local_jwks",
                "token_header",
                "claims_metadata_namespace",
                "allow_missing_or_failed",
                "clock_skew_seconds",
            ]),
            refused(&["remote_jwks"], "keys are not fetched; put them into local_jwks, a file of which is followed"),
        ],
    ),
];
