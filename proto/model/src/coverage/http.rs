//! Verdicts over the messages of the HTTP connection manager and of protocol options.

use super::{Covered, carried, covered, honoured, refused, warned};

pub(super) const TABLE: &[Covered] = &[
    covered(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &[
            honoured(&[
                "codec_type",
                "stat_prefix",
                "rds",
                "route_config",
                "scoped_routes",
                "http_filters",
                "common_http_protocol_options",
                "http_protocol_options",
                "http2_protocol_options",
                "server_name",
                "server_header_transformation",
                "scheme_header_transformation",
                "max_request_headers_kb",
                "stream_idle_timeout",
                "request_timeout",
                "request_headers_timeout",
                "drain_timeout",
                "delayed_close_timeout",
                "access_log",
                "use_remote_address",
                "xff_num_trusted_hops",
                "skip_xff_append",
                "via",
                "generate_request_id",
                "preserve_external_request_id",
                "always_set_request_id_in_response",
                "forward_client_cert_details",
                "set_current_client_cert_details",
                "upgrade_configs",
                "normalize_path",
                "merge_slashes",
                "path_with_escaped_slashes_action",
                "stream_error_on_invalid_http_message",
                "strip_matching_host_port",
                "strip_any_host_port",
                "strip_trailing_host_dot",
                "internal_address_config",
            ]),
            carried(&["add_proxy_protocol_connection_state"]),
            warned(&["tracing"], "nothing is traced"),
            warned(&["local_reply_config"], "local replies have Envoy's default form"),
            warned(
                &[
                    "add_user_agent",
                    "http1_safe_max_connection_duration",
                    "http3_protocol_options",
                    "stream_flush_timeout",
                    "drain_timeout_jitter",
                    "access_log_flush_interval",
                    "flush_access_log_on_new_request",
                    "access_log_options",
                    "proxy_100_continue",
                    "represent_ipv4_remote_address_as_ipv4_mapped_ipv6",
                    "request_id_extension",
                    "proxy_status_config",
                    "append_x_forwarded_port",
                    "append_local_overload",
                    "forward_proto_config",
                ],
                "",
            ),
            refused(
                &["original_ip_detection_extensions"],
                "it decides which source address is believed; use use_remote_address and xff_num_trusted_hops",
            ),
            refused(&["early_header_mutation_extensions"], "routes may match on what it changes"),
            refused(&["path_normalization_options"], "routes match on the path; use normalize_path"),
            refused(&["typed_header_validation_config"], "it decides which requests are accepted"),
            refused(
                &["forward_client_cert_matcher"],
                "it decides which identity upstreams see; use forward_client_cert_details",
            ),
        ],
    ),
    covered(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.InternalAddressConfig",
        &[honoured(&["cidr_ranges"]), warned(&["unix_sockets"], "no listener has a Unix socket")],
    ),
    covered(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.SetCurrentClientCertDetails",
        &[honoured(&["subject", "cert", "chain", "dns", "uri"]), warned(&["issuer", "format"], "")],
    ),
    covered(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig",
        &[
            honoured(&["upgrade_type", "enabled"]),
            refused(&["filters"], "it decides what an upgraded request passes through"),
        ],
    ),
    covered(
        "envoy.extensions.filters.network.http_connection_manager.v3.Rds",
        &[honoured(&["config_source", "route_config_name"])],
    ),
    covered(
        "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes",
        &[honoured(&[
            "name",
            "scope_key_builder",
            "rds_config_source",
            "scoped_route_configurations_list",
            "scoped_rds",
        ])],
    ),
    covered(
        "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRds",
        &[
            honoured(&["scoped_rds_config_source"]),
            refused(
                &["srds_resources_locator"],
                "xdstp collections are not subscribed to; leave it out to get the wildcard subscription",
            ),
        ],
    ),
    covered(
        "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRouteConfigurationsList",
        &[honoured(&["scoped_route_configurations"])],
    ),
    covered(
        "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes.ScopeKeyBuilder",
        &[honoured(&["fragments"])],
    ),
    covered(
        "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes.ScopeKeyBuilder.FragmentBuilder",
        &[honoured(&["header_value_extractor"])],
    ),
    covered(
        "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes.ScopeKeyBuilder.FragmentBuilder.HeaderValueExtractor",
        &[honoured(&["name", "element_separator", "index", "element"])],
    ),
    covered(
        "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes.ScopeKeyBuilder.FragmentBuilder.HeaderValueExtractor.KvElement",
        &[honoured(&["separator", "key"])],
    ),
    covered("envoy.extensions.filters.http.on_demand.v3.OnDemand", &[honoured(&["odcds"])]),
    covered("envoy.extensions.filters.http.on_demand.v3.PerRouteConfig", &[honoured(&["odcds"])]),
    covered(
        "envoy.extensions.filters.http.on_demand.v3.OnDemandCds",
        &[
            honoured(&["source", "timeout"]),
            refused(&["resources_locator"], "xdstp collections are not subscribed to; leave it out to ask by name"),
        ],
    ),
    covered(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
        &[honoured(&["name", "typed_config", "config_discovery", "is_optional", "disabled"])],
    ),
    covered(
        "envoy.extensions.filters.http.router.v3.Router",
        &[
            warned(&["respect_expected_rq_timeout"], "the timeouts of the route hold"),
            honoured(&["suppress_envoy_headers"]),
            carried(&["dynamic_stats"]),
            warned(
                &[
                    "start_child_span",
                    "upstream_log",
                    "upstream_log_options",
                    "suppress_grpc_request_failure_code_stats",
                    "reject_connect_request_early_data",
                ],
                "",
            ),
            refused(&["strict_check_headers"], "it decides which requests are accepted"),
            refused(&["upstream_http_filters"], "it decides what a request passes through"),
        ],
    ),
    covered(
        "envoy.config.core.v3.HttpProtocolOptions",
        &[
            honoured(&[
                "idle_timeout",
                "max_connection_duration",
                "max_headers_count",
                "headers_with_underscores_action",
                "max_requests_per_connection",
            ]),
            warned(&["max_connection_duration_jitter", "max_response_headers_kb", "max_stream_duration"], ""),
        ],
    ),
    covered(
        "envoy.config.core.v3.Http1ProtocolOptions",
        &[
            warned(&["allow_chunked_length"], "a message with both is always refused"),
            honoured(&["allow_absolute_url", "accept_http_10", "default_host_for_http_10", "allow_custom_methods"]),
            carried(&["enable_trailers"]),
            warned(
                &[
                    "header_key_format",
                    "override_stream_error_on_invalid_http_message",
                    "send_fully_qualified_url",
                    "use_balsa_parser",
                    "ignore_http_11_upgrade",
                ],
                "",
            ),
        ],
    ),
    covered(
        "envoy.config.core.v3.Http2ProtocolOptions",
        &[
            honoured(&[
                "max_concurrent_streams",
                "initial_stream_window_size",
                "initial_connection_window_size",
                "allow_connect",
                "connection_keepalive",
                "max_outbound_control_frames",
                "max_consecutive_inbound_frames_with_empty_payload",
                "max_inbound_priority_frames_per_stream",
                "max_inbound_window_update_frames_per_data_frame_sent",
            ]),
            warned(&["max_outbound_frames"], "what waits to be sent is bounded by windows and streams"),
            warned(
                &["stream_reset_burst", "stream_reset_rate"],
                "as with Envoy's own codec, half of 500 streams reset within a second are too many",
            ),
            warned(
                &[
                    "hpack_table_size",
                    "allow_metadata",
                    "stream_error_on_invalid_http_messaging",
                    "override_stream_error_on_invalid_http_message",
                    "custom_settings_parameters",
                    "use_oghttp2_codec",
                    "max_metadata_size",
                    "enable_huffman_encoding",
                    "max_header_field_size_kb",
                    "disallow_obs_text",
                ],
                "the built-in limits of the HTTP/2 codec hold",
            ),
        ],
    ),
    covered(
        "envoy.config.core.v3.KeepaliveSettings",
        &[honoured(&["interval", "timeout"]), warned(&["interval_jitter", "connection_idle_interval"], "")],
    ),
    covered(
        "envoy.config.core.v3.SchemeHeaderTransformation",
        &[honoured(&["scheme_to_overwrite"]), warned(&["match_upstream"], "")],
    ),
    covered(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        &[
            honoured(&[
                "common_http_protocol_options",
                "upstream_http_protocol_options",
                "explicit_http_config",
                "use_downstream_protocol_config",
                "auto_config",
                "http_filters",
            ]),
            warned(&["outlier_detection", "hash_policy"], ""),
            warned(&["retry_policy"], "set it on the route"),
            refused(&["header_validation_config"], "it decides which responses are accepted"),
            refused(&["request_mirror_policies"], "it decides where copies of requests go"),
        ],
    ),
    covered(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig",
        &[
            honoured(&["http_protocol_options", "http2_protocol_options"]),
            refused(&["http3_protocol_options"], "HTTP/3 is not spoken"),
        ],
    ),
    covered(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.UseDownstreamHttpConfig",
        &[
            honoured(&["http_protocol_options", "http2_protocol_options"]),
            warned(&["http3_protocol_options"], "HTTP/3 is not spoken"),
        ],
    ),
    covered(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.AutoHttpConfig",
        &[
            honoured(&["http_protocol_options", "http2_protocol_options"]),
            warned(&["http3_protocol_options", "alternate_protocols_cache_options"], "HTTP/3 is not spoken"),
        ],
    ),
    covered(
        "envoy.config.core.v3.UpstreamHttpProtocolOptions",
        &[honoured(&["auto_sni", "override_auto_sni_header", "auto_san_validation"])],
    ),
];
