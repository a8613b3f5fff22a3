//! The TCP proxy out of its message.

use std::time::Duration;

use culvert_api::envoy::extensions::filters::network::tcp_proxy::v3 as api;

use super::TcpProxy;
use crate::access_log;
use crate::metadata;
use crate::report::Report;
use crate::route::{
    AgentChoice, AgentSelector, ClusterChoice, ClusterRef, HeaderMutations, WeightedCluster, total_weight,
};
use crate::scalar;

/// Parses the `TcpProxy` at hand.
pub(super) fn parse(report: &mut Report, message: &api::TcpProxy) -> Option<TcpProxy> {
    let stat_prefix = scalar::name(report, "stat_prefix", &message.stat_prefix);
    let agent = metadata::agent_of_match(report, message.metadata_match.as_ref());
    if matches!(&agent, Some(AgentChoice { selector: AgentSelector::Header(_), .. })) {
        report
            .error_at("metadata_match", "agent_header: a TCP connection has no headers; use agent or agent_host_label");
    }
    let clusters = clusters(report, message, agent.as_ref());
    let idle = scalar::limit(report, "idle_timeout", message.idle_timeout.as_ref(), Some(IDLE_TIMEOUT));
    let field = "max_downstream_connection_duration";
    let duration = message.max_downstream_connection_duration.as_ref();
    let max_downstream_connection_duration = scalar::limit(report, field, duration, None);
    let attempts = scalar::at_least(report, "max_connect_attempts", message.max_connect_attempts, 1, 1);
    let access_log = access_log::list(report, "access_log", &message.access_log);
    Some(TcpProxy {
        stat_prefix: stat_prefix?,
        clusters: clusters?,
        idle_timeout: idle,
        max_connect_attempts: attempts,
        max_downstream_connection_duration,
        access_log,
    })
}

fn clusters(report: &mut Report, message: &api::TcpProxy, agent: Option<&AgentChoice>) -> Option<ClusterChoice> {
    use api::tcp_proxy::ClusterSpecifier;
    match &message.cluster_specifier {
        Some(ClusterSpecifier::Cluster(cluster)) => {
            let cluster = scalar::name(report, "cluster", cluster)?;
            Some(ClusterChoice::One(ClusterRef { cluster, agent: agent.cloned() }))
        }
        Some(ClusterSpecifier::WeightedClusters(weighted)) => report.field("weighted_clusters", |report| {
            let clusters = report.items("clusters", &weighted.clusters, |report, message| {
                let cluster = scalar::name(report, "name", &message.name);
                let weight = scalar::at_least(report, "weight", Some(message.weight), 1, 1);
                let own = metadata::agent_of_match(report, message.metadata_match.as_ref());
                let target = ClusterRef { cluster: cluster?, agent: own.or_else(|| agent.cloned()) };
                Some(WeightedCluster { target, weight, headers: HeaderMutations::default(), host_rewrite: None })
            });
            let total = total_weight(report, &clusters)?;
            Some(ClusterChoice::Weighted { clusters, total })
        }),
        None => {
            report.error("names no cluster; set cluster or weighted_clusters");
            None
        }
    }
}

/// Envoy's default.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
