//! Verdicts over the messages of listeners.

use super::{Covered, carried, covered, honoured, refused, warned};

pub(super) const TABLE: &[Covered] = &[
    covered(
        "envoy.config.listener.v3.Listener",
        &[
            honoured(&[
                "name",
                "additional_addresses",
                "address",
                "filter_chains",
                "default_filter_chain",
                "per_connection_buffer_limit_bytes",
                "deprecated_v1",
                "drain_type",
                "listener_filters",
                "listener_filters_timeout",
                "access_log",
                "tcp_backlog_size",
                "max_connections_to_accept_per_socket_event",
                "bind_to_port",
                "enable_reuse_port",
                "udp_listener_config",
            ]),
            carried(&[
                "metadata",
                "traffic_direction",
                "reuse_port",
                "ignore_global_conn_limit",
                "bypass_overload_manager",
            ]),
            warned(&["stat_prefix", "stats_matcher"], "statistics carry the address"),
            warned(
                &[
                    "per_connection_buffer_high_watermark_timeout",
                    "freebind",
                    "socket_options",
                    "tcp_fast_open_queue_length",
                    "enable_mptcp",
                    "tcp_keepalive",
                ],
                "",
            ),
            warned(&["connection_balance_config"], "the kernel spreads connections over the workers"),
            refused(
                &["fcds_config", "filter_chain_matcher", "continue_on_listener_filters_timeout"],
                "it decides which filter chain a connection gets; use filter_chain_match",
            ),
            refused(&["use_original_dst", "transparent"], "it decides where traffic goes"),
            refused(
                &["api_listener"],
                "culvert-proxy serves sockets; an api_listener is for gRPC clients without a proxy",
            ),
            refused(
                &["internal_listener"],
                "connections come from sockets and tunnels only; use bind_to_port false for a listener that hosts a tunnel",
            ),
        ],
    ),
    covered("envoy.config.listener.v3.Listener.DeprecatedV1", &[honoured(&["bind_to_port"])]),
    covered(
        "envoy.config.listener.v3.AdditionalAddress",
        &[honoured(&["address"]), warned(&["socket_options", "tcp_keepalive"], "")],
    ),
    covered(
        "envoy.config.listener.v3.FilterChain",
        &[
            honoured(&[
                "filter_chain_match",
                "filters",
                "transport_socket",
                "transport_socket_connect_timeout",
                "name",
            ]),
            carried(&["metadata"]),
            refused(&["use_proxy_proto"], "it decides which source address is believed"),
        ],
    ),
    covered(
        "envoy.config.listener.v3.FilterChainMatch",
        &[
            honoured(&[
                "destination_port",
                "prefix_ranges",
                "direct_source_prefix_ranges",
                "source_type",
                "source_prefix_ranges",
                "source_ports",
                "server_names",
                "transport_protocol",
                "application_protocols",
            ]),
            refused(&["address_suffix", "suffix_len"], "it decides which filter chain a connection gets"),
        ],
    ),
    covered("envoy.config.listener.v3.Filter", &[honoured(&["name", "typed_config", "config_discovery"])]),
    covered(
        "envoy.config.listener.v3.ListenerFilter",
        &[
            honoured(&["typed_config"]),
            carried(&["name"]),
            refused(&["config_discovery", "filter_disabled"], "it decides what a connection passes through"),
        ],
    ),
    covered(
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
        &[
            carried(&["initial_read_buffer_size"]),
            warned(&["enable_ja3_fingerprinting", "enable_ja4_fingerprinting", "max_client_hello_size"], ""),
            refused(&["close_connection_on_client_hello_parsing_errors"], "it decides who may connect"),
        ],
    ),
    covered(
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        &[
            honoured(&[
                "stat_prefix",
                "cluster",
                "weighted_clusters",
                "metadata_match",
                "idle_timeout",
                "access_log",
                "max_connect_attempts",
                "max_downstream_connection_duration",
            ]),
            warned(&["downstream_idle_timeout", "upstream_idle_timeout"], "idle_timeout counts both directions"),
            warned(
                &[
                    "backoff_options",
                    "max_downstream_connection_duration_jitter_percentage",
                    "access_log_flush_interval",
                    "flush_access_log_on_connected",
                    "access_log_options",
                    "proxy_protocol_tlvs",
                    "proxy_protocol_tlv_merge_policy",
                    "max_early_data_bytes",
                    "check_drain_close",
                ],
                "",
            ),
            warned(&["upstream_connect_mode"], "the upstream connection is made at once"),
            warned(&["hash_policy"], "no balancer here hashes"),
            refused(&["on_demand", "tunneling_config"], "it decides where traffic goes"),
        ],
    ),
    covered("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster", &[honoured(&["clusters"])]),
    covered(
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight",
        &[honoured(&["name", "weight", "metadata_match"])],
    ),
    covered(
        "envoy.config.listener.v3.UdpListenerConfig",
        &[
            honoured(&["downstream_socket_config"]),
            refused(&["quic_options"], "HTTP/3 is not served"),
            warned(&["udp_packet_packet_writer_config"], "datagrams are sent one by one"),
        ],
    ),
    covered(
        "envoy.config.core.v3.UdpSocketConfig",
        &[honoured(&["max_rx_datagram_size"]), warned(&["prefer_gro"], "datagrams are received one by one")],
    ),
    covered(
        "envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig",
        &[
            honoured(&[
                "stat_prefix",
                "cluster",
                "matcher",
                "idle_timeout",
                "upstream_socket_config",
                "access_log",
                "session_filters",
                "tunneling_config",
            ]),
            warned(&["hash_policies"], "no balancer here hashes"),
            warned(&["proxy_access_log", "access_log_options"], "sessions are logged when they end, by access_log"),
            refused(&["use_original_src_ip"], "it decides which source hosts see"),
            refused(
                &["use_per_packet_load_balancing"],
                "it decides where traffic goes; a session keeps to the host of its first datagram",
            ),
        ],
    ),
    covered(
        "envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig.SessionFilter",
        &[
            honoured(&["typed_config"]),
            carried(&["name"]),
            refused(&["config_discovery"], "it decides what a session passes through"),
        ],
    ),
    covered("envoy.extensions.filters.udp.udp_proxy.v3.Route", &[honoured(&["cluster"])]),
    covered(
        "envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig.UdpTunnelingConfig",
        &[
            honoured(&[
                "proxy_host",
                "proxy_port",
                "target_host",
                "default_target_port",
                "retry_options",
                "headers_to_add",
                "buffer_options",
            ]),
            refused(&["use_post", "post_path"], "a POST names no target, and hosts would not know it as UDP"),
            warned(&["propagate_response_headers", "propagate_response_trailers"], "no session filter could read them"),
        ],
    ),
    covered(
        "envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig.UdpTunnelingConfig.RetryOptions",
        &[honoured(&["max_connect_attempts"]), warned(&["backoff_options"], "attempts follow each other at once")],
    ),
    covered(
        "envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig.UdpTunnelingConfig.BufferOptions",
        &[honoured(&["max_buffered_datagrams", "max_buffered_bytes"])],
    ),
    covered(
        "xds.type.matcher.v3.Matcher",
        &[
            honoured(&["on_no_match"]),
            refused(&["matcher_list", "matcher_tree"], "it decides where traffic goes; only on_no_match is read"),
        ],
    ),
    covered(
        "xds.type.matcher.v3.Matcher.OnMatch",
        &[
            honoured(&["action"]),
            refused(&["matcher"], "it decides where traffic goes; let action name the cluster"),
            carried(&["keep_matching"]),
        ],
    ),
    covered("xds.core.v3.TypedExtensionConfig", &[honoured(&["typed_config"]), carried(&["name"])]),
];
