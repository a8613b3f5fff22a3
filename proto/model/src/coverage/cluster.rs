//! Verdicts over the messages of clusters and endpoints.

use super::{Covered, carried, covered, honoured, refused, warned};

pub(super) const TABLE: &[Covered] = &[
    covered(
        "envoy.config.cluster.v3.Cluster",
        &[
            honoured(&[
                "name",
                "alt_stat_name",
                "type",
                "cluster_type",
                "eds_cluster_config",
                "connect_timeout",
                "per_connection_buffer_limit_bytes",
                "lb_policy",
                "load_assignment",
                "max_requests_per_connection",
                "circuit_breakers",
                "upstream_http_protocol_options",
                "common_http_protocol_options",
                "http_protocol_options",
                "http2_protocol_options",
                "typed_extension_protocol_options",
                "dns_refresh_rate",
                "respect_dns_ttl",
                "dns_lookup_family",
                "upstream_bind_config",
                "least_request_lb_config",
                "round_robin_lb_config",
                "common_lb_config",
                "transport_socket",
                "transport_socket_matches",
                "protocol_selection",
                "upstream_connection_options",
                "load_balancing_policy",
                "wait_for_warm_on_init",
            ]),
            carried(&["metadata", "cleanup_interval"]),
            warned(
                &[
                    "health_checks",
                    "outlier_detection",
                    "close_connections_on_host_health_failure",
                    "ignore_health_on_host_removal",
                ],
                "hosts count as healthy unless their health_status says otherwise",
            ),
            warned(
                &[
                    "stats_matcher",
                    "track_timeout_budgets",
                    "track_cluster_stats",
                    "lrs_server",
                    "lrs_report_endpoint_metrics",
                ],
                "no such statistics are kept",
            ),
            warned(
                &[
                    "per_connection_buffer_high_watermark_timeout",
                    "dns_jitter",
                    "dns_failure_refresh_rate",
                    "use_tcp_for_dns_lookups",
                    "preconnect_policy",
                    "queuing_policies",
                ],
                "",
            ),
            refused(&["transport_socket_matcher"], "it decides which endpoints get TLS; use transport_socket_matches"),
            refused(
                &["lb_subset_config", "ring_hash_lb_config", "maglev_lb_config", "original_dst_lb_config"],
                "it decides which endpoint a request goes to",
            ),
            refused(
                &["dns_resolvers", "dns_resolution_config", "typed_dns_resolver_config"],
                "it decides where names lead; the system's resolver is used",
            ),
            refused(&["filters", "upstream_config"], "it decides what a connection passes through"),
            refused(
                &["connection_pool_per_downstream_connection"],
                "it keeps clients apart; connections are shared here",
            ),
        ],
    ),
    covered(
        "envoy.config.cluster.v3.Cluster.TransportSocketMatch",
        &[honoured(&["match", "transport_socket"]), carried(&["name"])],
    ),
    covered("envoy.config.cluster.v3.Cluster.EdsClusterConfig", &[honoured(&["eds_config", "service_name"])]),
    covered("envoy.config.cluster.v3.Cluster.CustomClusterType", &[honoured(&["typed_config"]), carried(&["name"])]),
    covered("envoy.config.cluster.v3.Cluster.RoundRobinLbConfig", &[warned(&["slow_start_config"], "")]),
    covered(
        "envoy.config.cluster.v3.Cluster.LeastRequestLbConfig",
        &[honoured(&["choice_count"]), warned(&["active_request_bias", "slow_start_config"], "")],
    ),
    covered(
        "envoy.config.cluster.v3.Cluster.CommonLbConfig",
        &[
            honoured(&[
                "healthy_panic_threshold",
                "locality_weighted_lb_config",
                "close_connections_on_host_set_change",
            ]),
            warned(&["zone_aware_lb_config"], "localities of one priority share its traffic by their endpoints"),
            warned(
                &[
                    "update_merge_window",
                    "ignore_new_hosts_until_first_hc",
                    "consistent_hashing_lb_config",
                    "override_host_status",
                ],
                "",
            ),
        ],
    ),
    covered("envoy.config.cluster.v3.Cluster.CommonLbConfig.LocalityWeightedLbConfig", &[]),
    covered(
        "envoy.extensions.clusters.dns.v3.DnsCluster",
        &[
            honoured(&["dns_refresh_rate", "respect_dns_ttl", "dns_lookup_family", "all_addresses_in_single_endpoint"]),
            warned(&["dns_failure_refresh_rate", "dns_jitter", "dns_min_refresh_rate"], ""),
            refused(&["typed_dns_resolver_config"], "it decides where names lead; the system's resolver is used"),
        ],
    ),
    covered(
        "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin",
        &[honoured(&["locality_lb_config"]), warned(&["slow_start_config"], "")],
    ),
    covered(
        "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
        &[
            honoured(&["choice_count", "locality_lb_config"]),
            warned(&["active_request_bias", "slow_start_config", "enable_full_scan", "selection_method"], ""),
        ],
    ),
    covered("envoy.extensions.load_balancing_policies.random.v3.Random", &[honoured(&["locality_lb_config"])]),
    covered(
        "envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig",
        &[
            honoured(&["locality_weighted_lb_config"]),
            warned(&["zone_aware_lb_config"], "localities of one priority share its traffic by their endpoints"),
        ],
    ),
    covered("envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig.LocalityWeightedLbConfig", &[]),
    covered("envoy.config.cluster.v3.LoadBalancingPolicy", &[honoured(&["policies"])]),
    covered("envoy.config.cluster.v3.LoadBalancingPolicy.Policy", &[honoured(&["typed_extension_config"])]),
    covered(
        "envoy.config.cluster.v3.UpstreamConnectionOptions",
        &[
            honoured(&["tcp_keepalive"]),
            warned(&["set_local_interface_name_on_upstream_connections", "happy_eyeballs_config"], ""),
        ],
    ),
    covered(
        "envoy.config.cluster.v3.CircuitBreakers",
        &[honoured(&["thresholds"]), warned(&["per_host_thresholds"], "the thresholds of the cluster hold")],
    ),
    covered(
        "envoy.config.cluster.v3.CircuitBreakers.Thresholds",
        &[
            honoured(&[
                "priority",
                "max_connections",
                "max_pending_requests",
                "max_requests",
                "max_retries",
                "retry_budget",
                "track_remaining",
            ]),
            warned(&["max_connection_pools"], ""),
        ],
    ),
    covered(
        "envoy.config.cluster.v3.CircuitBreakers.Thresholds.RetryBudget",
        &[
            honoured(&["budget_percent", "min_retry_concurrency"]),
            warned(&["budget_interval"], "the budget counts requests in flight"),
        ],
    ),
    covered(
        "envoy.config.endpoint.v3.ClusterLoadAssignment",
        &[
            honoured(&["cluster_name", "endpoints", "policy"]),
            refused(&["named_endpoints"], "it decides where traffic goes; put endpoints in lb_endpoints"),
        ],
    ),
    covered(
        "envoy.config.endpoint.v3.ClusterLoadAssignment.Policy",
        &[
            honoured(&["drop_overloads", "overprovisioning_factor"]),
            warned(&["endpoint_stale_after", "weighted_priority_health"], ""),
        ],
    ),
    covered(
        "envoy.config.endpoint.v3.ClusterLoadAssignment.Policy.DropOverload",
        &[honoured(&["category", "drop_percentage"])],
    ),
    covered(
        "envoy.config.endpoint.v3.LocalityLbEndpoints",
        &[
            honoured(&["locality", "lb_endpoints", "load_balancing_weight", "priority"]),
            carried(&["metadata"]),
            warned(&["proximity"], ""),
            refused(
                &["load_balancer_endpoints", "leds_cluster_locality_config"],
                "it decides where traffic goes; put endpoints in lb_endpoints",
            ),
        ],
    ),
    covered(
        "envoy.config.endpoint.v3.LbEndpoint",
        &[
            honoured(&["endpoint", "health_status", "metadata", "load_balancing_weight"]),
            refused(&["endpoint_name"], "it decides where traffic goes; put the endpoint itself here"),
        ],
    ),
    covered(
        "envoy.config.endpoint.v3.Endpoint",
        &[
            honoured(&["address", "hostname"]),
            carried(&["observability_name"]),
            warned(&["health_check_config"], "hosts are not probed"),
            warned(&["additional_addresses"], "only the first address is dialled"),
        ],
    ),
];
