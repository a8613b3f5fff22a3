//! Verdicts over the messages of the bootstrap.

use super::{Covered, carried, covered, honoured, refused, warned};

pub(super) const TABLE: &[Covered] = &[
    covered(
        "envoy.config.bootstrap.v3.Bootstrap",
        &[
            warned(&["header_prefix"], "it is x-envoy"),
            honoured(&[
                "node",
                "static_resources",
                "dynamic_resources",
                "cluster_manager",
                "admin",
                "bootstrap_extensions",
                "layered_runtime",
            ]),
            carried(&["inline_headers"]),
            warned(&["overload_manager"], "the limits of listeners and clusters hold"),
            warned(&["tracing"], "nothing is traced"),
            warned(
                &[
                    "stats_sinks",
                    "stats_config",
                    "stats_flush_interval",
                    "stats_flush_on_admin",
                    "stats_eviction_interval",
                    "deferred_stat_options",
                    "stats_server_version_override",
                    "enable_dispatcher_stats",
                ],
                "statistics are read from the admin interface",
            ),
            warned(
                &[
                    "node_context_params",
                    "hds_config",
                    "flags_path",
                    "watchdog",
                    "watchdogs",
                    "use_tcp_for_dns_lookups",
                    "fatal_actions",
                    "perf_tracing_file_path",
                    "xds_delegate_extension",
                    "xds_config_tracker_extension",
                    "application_log_config",
                    "grpc_async_client_manager_config",
                    "memory_allocator_manager",
                    "enable_worker_cpu_affinity",
                ],
                "",
            ),
            warned(&["default_regex_engine"], "regular expressions are linear in time as RE2's are"),
            refused(
                &["dns_resolution_config", "typed_dns_resolver_config"],
                "it decides where names lead; the system's resolver is used",
            ),
            refused(
                &["config_sources", "default_config_source"],
                "it decides where configuration comes from; name the source in dynamic_resources",
            ),
            refused(&["default_socket_interface"], "it decides how connections are made"),
            refused(
                &["certificate_provider_instances"],
                "it decides which certificates are presented and trusted; use files or SDS",
            ),
            refused(&["listener_manager"], "it decides which listeners serve"),
        ],
    ),
    covered("envoy.config.bootstrap.v3.Bootstrap.StaticResources", &[honoured(&["listeners", "clusters", "secrets"])]),
    covered(
        "envoy.config.bootstrap.v3.Bootstrap.DynamicResources",
        &[
            honoured(&["lds_config", "cds_config", "ads_config"]),
            refused(
                &["lds_resources_locator", "cds_resources_locator"],
                "xdstp collections are not subscribed to; leave it out to get the wildcard subscription",
            ),
        ],
    ),
    covered(
        "envoy.config.bootstrap.v3.Admin",
        &[
            honoured(&["access_log", "access_log_path", "address"]),
            carried(&["ignore_global_conn_limit"]),
            warned(&["profile_path", "socket_options"], ""),
            refused(&["allow_paths"], "it restricts who may ask what; bind the admin interface to loopback"),
        ],
    ),
    covered(
        "envoy.config.bootstrap.v3.ClusterManager",
        &[
            warned(&["local_cluster_name"], "there is no zone-aware routing"),
            warned(&["outlier_detection", "load_stats_config", "enable_deferred_cluster_creation"], ""),
            refused(&["upstream_bind_config"], "it decides from where connections are made; set it on each cluster"),
        ],
    ),
    covered(
        "envoy.config.core.v3.Node",
        &[
            honoured(&["id", "cluster"]),
            carried(&[
                "metadata",
                "dynamic_parameters",
                "locality",
                "user_agent_name",
                "user_agent_version",
                "user_agent_build_version",
                "extensions",
                "client_features",
                "listening_addresses",
            ]),
        ],
    ),
    covered("envoy.config.bootstrap.v3.LayeredRuntime", &[honoured(&["layers"])]),
    covered(
        "envoy.config.bootstrap.v3.RuntimeLayer",
        &[
            honoured(&["name", "static_layer", "admin_layer", "rtds_layer"]),
            refused(&["disk_layer"], "it may decide where traffic goes; use static_layer or rtds_layer"),
        ],
    ),
    covered("envoy.config.bootstrap.v3.RuntimeLayer.AdminLayer", &[]),
    covered("envoy.config.bootstrap.v3.RuntimeLayer.RtdsLayer", &[honoured(&["name", "rtds_config"])]),
    covered("envoy.service.runtime.v3.Runtime", &[honoured(&["name", "layer"])]),
];
