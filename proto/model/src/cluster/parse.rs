//! Clusters out of their messages.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_api::envoy::config::cluster::v3 as api;
use culvert_api::envoy::config::core::v3 as core;

use super::balancer::{self, Balancing};
use super::transport;
use super::{
    Breakers, Cluster, Discovery, RetryBudget, TcpKeepalive, custom, dns, protocol::protocol_options, reverse, shared,
};
use crate::Name;
use crate::endpoint::{self, Address, Endpoints, Names};
use crate::report::Report;
use crate::scalar;
use crate::source;
use crate::tls;

/// Parses the `Cluster` at hand.
pub(crate) fn cluster(report: &mut Report, message: &api::Cluster) -> Option<Cluster> {
    let name = scalar::name(report, "name", &message.name);
    let connect_timeout =
        scalar::positive(report, "connect_timeout", message.connect_timeout.as_ref(), CONNECT_TIMEOUT);
    let discovery = discovery(report, message);
    let balancing = balancer::balancing(report, message);
    let breakers = message.circuit_breakers.as_ref().map_or([Breakers::default(); 2], |message| {
        report.field("circuit_breakers", |report| breakers(report, message))
    });
    let tls = message.transport_socket.as_ref().and_then(|socket| tls::upstream_socket(report, socket));
    let (tls, transports) = transport::transports(report, message, tls);
    if let (Some(Discovery::Reverse(_) | Discovery::Tunnels(_)), false) = (&discovery, transports.is_empty()) {
        report.error_at(
            "transport_socket_matches",
            "is for endpoints, and this cluster has agents; use transport_socket",
        );
    }
    let options = protocol_options(report, message, tls.as_ref());
    if let (Some(Discovery::Reverse(_)), Some(tls)) = (&discovery, &tls) {
        reverse::inside(report, tls, options.auto_sni.is_some());
    }
    if let Some(Discovery::Tunnels(_)) = discovery {
        shared::connections(report, message);
    }
    let (panic_threshold_percent, close_connections_on_host_removal) =
        common_lb(report, message.common_lb_config.as_ref());
    let source_address = message
        .upstream_bind_config
        .as_ref()
        .and_then(|bind| report.field("upstream_bind_config", |report| bound(report, bind)));
    let connection = message.upstream_connection_options.as_ref();
    let tcp_keepalive = connection.and_then(|connection| connection.tcp_keepalive.as_ref()).map(keepalive);
    if message.wait_for_warm_on_init == Some(false) {
        report.warn_at("wait_for_warm_on_init", "is set, and culvert-proxy does not honour it: start waits");
    }
    let policy = message.load_assignment.as_ref().and_then(|assignment| assignment.policy.as_ref());
    let factor = policy.and_then(|policy| policy.overprovisioning_factor).unwrap_or(OVERPROVISIONING);
    let name = name?;
    let Balancing { balancer, locality_weighted } = balancing?;
    Some(Cluster {
        stat_name: if message.alt_stat_name.is_empty() { name.clone() } else { message.alt_stat_name.as_str().into() },
        name,
        discovery: discovery?,
        connect_timeout,
        balancer,
        breakers,
        tls,
        transports,
        auto_sni: options.auto_sni,
        protocol: options.protocol,
        http1: options.http1,
        http2: options.http2,
        idle_timeout: options.common.idle_timeout,
        max_connection_duration: options.common.max_connection_duration,
        max_requests_per_connection: options.common.max_requests_per_connection,
        buffer_limit: message.per_connection_buffer_limit_bytes.unwrap_or(BUFFER_LIMIT),
        tcp_keepalive,
        source_address,
        panic_threshold_percent,
        locality_weighted,
        overprovisioning_factor: factor,
        close_connections_on_host_removal,
    })
}

fn discovery(report: &mut Report, message: &api::Cluster) -> Option<Discovery> {
    use api::cluster::{ClusterDiscoveryType, DiscoveryType};
    let kind = match &message.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => scalar::enumeration::<DiscoveryType>(report, "type", *kind)?,
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return custom::discovery(report, message, custom);
        }
        None => DiscoveryType::Static,
    };
    if message.eds_cluster_config.is_some() && kind != DiscoveryType::Eds {
        report.error_at("eds_cluster_config", format!("stands in a cluster of type {}", kind.as_str_name()));
    }
    match kind {
        DiscoveryType::Static => Some(Discovery::Static(load_assignment(report, message, Names::Paths)?)),
        DiscoveryType::StrictDns => {
            let options = dns::options(report, message);
            dns::strict(report, message, options)
        }
        DiscoveryType::LogicalDns => {
            let options = dns::options(report, message);
            dns::logical(report, message, options)
        }
        DiscoveryType::Eds => eds(report, message),
        DiscoveryType::OriginalDst => {
            report.error_at("type", "ORIGINAL_DST is not there; use STATIC, STRICT_DNS, LOGICAL_DNS or EDS");
            None
        }
    }
}

fn eds(report: &mut Report, message: &api::Cluster) -> Option<Discovery> {
    if message.load_assignment.is_some() {
        report.error_at("load_assignment", "stands in a cluster of type EDS, whose endpoints come from elsewhere");
    }
    let eds = message.eds_cluster_config.as_ref();
    let Some(config) = eds.and_then(|eds| eds.eds_config.as_ref()) else {
        report.field("eds_cluster_config", |report| {
            report.error_at("eds_config", "is missing; a cluster of type EDS says where its endpoints come from");
        });
        return None;
    };
    let config = report.field("eds_cluster_config", |report| {
        report.field("eds_config", |report| source::config_source(report, config))
    })?;
    let service = eds.map(|eds| eds.service_name.as_str()).filter(|name| !name.is_empty());
    let service_name = culvert_api::xdstp::canonical(service.unwrap_or(&message.name)).into();
    Some(Discovery::Eds { service_name, config })
}

/// No assignment is a cluster without endpoints of its own: tunnels may bring some.
pub(super) fn load_assignment(report: &mut Report, message: &api::Cluster, names: Names) -> Option<Arc<Endpoints>> {
    let Some(assignment) = &message.load_assignment else {
        let cluster = Name::from(message.name.as_str());
        return Some(Arc::new(Endpoints {
            cluster,
            localities: Vec::new(),
            drops: Vec::new(),
            overprovisioning_factor: None,
        }));
    };
    report.field("load_assignment", |report| endpoint::assignment(report, assignment, names)).map(Arc::new)
}

fn breakers(report: &mut Report, message: &api::CircuitBreakers) -> [Breakers; 2] {
    let mut breakers: [Option<Breakers>; 2] = [None; 2];
    for (index, threshold) in message.thresholds.iter().enumerate() {
        report.item("thresholds", index, |report| {
            let Some(priority) = scalar::enumeration(report, "priority", threshold.priority) else { return };
            let [default, high] = &mut breakers;
            let slot = match priority {
                core::RoutingPriority::Default => default,
                core::RoutingPriority::High => high,
            };
            if slot.is_some() {
                report.warn("thresholds of this priority stand there already; the first ones count");
                return;
            }
            *slot = Some(thresholds(report, threshold));
        });
    }
    breakers.map(Option::unwrap_or_default)
}

fn thresholds(report: &mut Report, message: &api::circuit_breakers::Thresholds) -> Breakers {
    let default = Breakers::default();
    Breakers {
        max_connections: message.max_connections.unwrap_or(default.max_connections),
        max_pending_requests: message.max_pending_requests.unwrap_or(default.max_pending_requests),
        max_requests: message.max_requests.unwrap_or(default.max_requests),
        max_retries: message.max_retries.unwrap_or(default.max_retries),
        retry_budget: message.retry_budget.as_ref().map(|budget| {
            report.field("retry_budget", |report| RetryBudget {
                percent: scalar::percent(report, "budget_percent", budget.budget_percent.as_ref(), 20.0),
                min_concurrency: budget.min_retry_concurrency.unwrap_or(3),
            })
        }),
        track_remaining: message.track_remaining,
    }
}

/// Panic threshold, whether connections close when hosts go.
fn common_lb(report: &mut Report, message: Option<&api::cluster::CommonLbConfig>) -> (u8, bool) {
    let Some(message) = message else { return (PANIC_THRESHOLD, false) };
    let threshold = report.field("common_lb_config", |report| {
        let default = f64::from(PANIC_THRESHOLD);
        scalar::percent(report, "healthy_panic_threshold", message.healthy_panic_threshold.as_ref(), default)
    });
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is from 0 to 100")]
    let threshold = threshold.round() as u8;
    (threshold, message.close_connections_on_host_set_change)
}

fn bound(report: &mut Report, message: &core::BindConfig) -> Option<SocketAddr> {
    let source = message.source_address.as_ref()?;
    report.field("source_address", |report| match endpoint::socket_address(report, source, Names::Refused)? {
        Address::Ip(address) => Some(address),
        Address::Name { .. } | Address::Path(_) => None,
    })
}

fn keepalive(message: &core::TcpKeepalive) -> TcpKeepalive {
    let seconds = |value: Option<u32>| value.filter(|value| *value > 0).map(|value| Duration::from_secs(value.into()));
    TcpKeepalive {
        probes: message.keepalive_probes.filter(|probes| *probes > 0),
        time: seconds(message.keepalive_time),
        interval: seconds(message.keepalive_interval),
    }
}

/// Envoy's defaults.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const BUFFER_LIMIT: u32 = 1024 * 1024;
const OVERPROVISIONING: u32 = 140;
const PANIC_THRESHOLD: u8 = 50;
