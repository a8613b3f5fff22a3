//! Verdicts over the messages of what all resources share.

use super::{Covered, carried, covered, honoured, refused, warned};

pub(super) const TABLE: &[Covered] = &[
    covered(
        "envoy.config.core.v3.Address",
        &[
            honoured(&["socket_address", "pipe"]),
            refused(
                &["envoy_internal_address"],
                "internal addresses are neither served nor dialled; use a socket_address",
            ),
        ],
    ),
    covered(
        "envoy.config.core.v3.SocketAddress",
        &[
            honoured(&["protocol", "address", "port_value", "resolver_name", "ipv4_compat"]),
            refused(&["named_port"], "it decides where the address leads; give an address and a port_value"),
            refused(&["network_namespace_filepath"], "it decides who may connect"),
        ],
    ),
    covered("envoy.config.core.v3.Pipe", &[honoured(&["path"]), carried(&["mode"])]),
    covered("envoy.config.core.v3.CidrRange", &[honoured(&["address_prefix", "prefix_len"])]),
    covered(
        "envoy.config.core.v3.BindConfig",
        &[
            honoured(&["source_address"]),
            warned(&["freebind", "socket_options", "validate_network_namespaces"], ""),
            refused(
                &["extra_source_addresses", "additional_source_addresses", "local_address_selector"],
                "it decides from where connections are made",
            ),
        ],
    ),
    covered(
        "envoy.config.core.v3.TcpKeepalive",
        &[honoured(&["keepalive_probes", "keepalive_time", "keepalive_interval"])],
    ),
    covered("envoy.config.core.v3.TransportSocket", &[honoured(&["typed_config"]), carried(&["name"])]),
    covered("envoy.config.core.v3.TypedExtensionConfig", &[honoured(&["typed_config"]), carried(&["name"])]),
    covered(
        "envoy.config.core.v3.ExtensionConfigSource",
        &[honoured(&["config_source", "default_config", "apply_default_config_without_warming", "type_urls"])],
    ),
    covered("envoy.config.core.v3.Metadata", &[honoured(&["filter_metadata"]), carried(&["typed_filter_metadata"])]),
    covered("envoy.config.core.v3.Locality", &[honoured(&["region", "zone", "sub_zone"])]),
    covered(
        "envoy.config.core.v3.DataSource",
        &[honoured(&["filename", "inline_bytes", "inline_string", "environment_variable", "watched_directory"])],
    ),
    covered("envoy.config.core.v3.WatchedDirectory", &[honoured(&["path"]), carried(&["watch_modify"])]),
    covered(
        "envoy.config.core.v3.ConfigSource",
        &[
            honoured(&[
                "path",
                "path_config_source",
                "api_config_source",
                "ads",
                "initial_fetch_timeout",
                "resource_api_version",
            ]),
            refused(
                &["authorities", "self"],
                "it decides where configuration comes from; use ads, api_config_source or path_config_source",
            ),
        ],
    ),
    covered(
        "envoy.config.core.v3.PathConfigSource",
        &[
            honoured(&["path", "watched_directory"]),
            warned(&["poll_interval"], "changes are noticed by the file system"),
        ],
    ),
    covered("envoy.config.core.v3.AggregatedConfigSource", &[]),
    covered(
        "envoy.config.core.v3.ApiConfigSource",
        &[
            honoured(&["api_type", "transport_api_version", "grpc_services", "set_node_on_first_message_only"]),
            warned(&["refresh_delay", "request_timeout", "rate_limit_settings"], ""),
            refused(&["cluster_names"], "it decides where configuration comes from; use grpc_services"),
            refused(&["config_validators"], "it decides which configuration is accepted"),
        ],
    ),
    covered(
        "envoy.config.core.v3.GrpcService",
        &[
            honoured(&["envoy_grpc", "initial_metadata"]),
            warned(&["timeout", "retry_policy"], "streams are opened again with back-off, without end"),
            refused(
                &["google_grpc"],
                "it decides where configuration comes from; use envoy_grpc with a static cluster",
            ),
        ],
    ),
    covered(
        "envoy.config.core.v3.GrpcService.EnvoyGrpc",
        &[
            honoured(&["cluster_name", "authority"]),
            carried(&["skip_envoy_headers"]),
            warned(&["retry_policy", "max_receive_message_length"], ""),
        ],
    ),
    covered("envoy.config.core.v3.HeaderValue", &[honoured(&["key", "value", "raw_value"])]),
    covered(
        "envoy.config.core.v3.HeaderValueOption",
        &[honoured(&["header", "append", "append_action", "keep_empty_value"])],
    ),
    covered(
        "envoy.config.core.v3.RuntimeUInt32",
        &[honoured(&["default_value"]), warned(&["runtime_key"], "default values of runtime keys hold")],
    ),
    covered("envoy.config.core.v3.RuntimeFractionalPercent", &[honoured(&["default_value", "runtime_key"])]),
    covered("envoy.type.v3.Percent", &[honoured(&["value"])]),
    covered("envoy.type.v3.FractionalPercent", &[honoured(&["numerator", "denominator"])]),
];
