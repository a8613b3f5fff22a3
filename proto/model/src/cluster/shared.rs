//! `culvert.tunnel.v1.TunnelCluster`: its hosts are agents that registered as other clusters.

use std::collections::HashSet;
use std::sync::Arc;

use culvert_api::Any;
use culvert_api::culvert::tunnel::v1 as tunnel;
use culvert_api::envoy::config::cluster::v3 as api;

use crate::Name;
use crate::report::{Report, clip};
use crate::scalar;
use crate::tunnel::{NamePattern, policy};

/// Some of the agents that serve the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelSource {
    /// The cluster that they name when they dial in; never the one at hand.
    pub registered_as: Name,
    /// Empty: all of them.
    pub host_names: Vec<NamePattern>,
    /// Those of a higher one serve while none of a lower one is there.
    pub priority: u32,
}

impl TunnelSource {
    /// Whether an agent that registered as `cluster` is one of them.
    #[must_use]
    pub fn has(&self, cluster: &str, host_name: &str) -> bool {
        let named = || self.host_names.iter().any(|pattern| pattern.matches(host_name));
        *self.registered_as == *cluster && (self.host_names.is_empty() || named())
    }
}

/// Parses the `cluster_type` at hand, whose `config` is a `TunnelCluster`.
pub(super) fn discovery(report: &mut Report, cluster: &api::Cluster, config: &Any) -> Option<Vec<TunnelSource>> {
    if cluster.load_assignment.is_some() || cluster.eds_cluster_config.is_some() {
        report.error("stands beside endpoints: the agents that dial in are its only ones");
    }
    report.field("typed_config", |report| {
        let message: tunnel::TunnelCluster = report.unpack(config)?;
        sources(report, &cluster.name, &message)
    })
}

/// Of sources that overlap the first one counts.
fn sources(report: &mut Report, cluster: &str, message: &tunnel::TunnelCluster) -> Option<Vec<TunnelSource>> {
    let sources = report.items("sources", &message.sources, |report, source| {
        let registered_as = scalar::name(report, "registered_as", &source.registered_as);
        if source.registered_as == cluster {
            let reason = format!(
                "{:?} is the cluster at hand, as which nobody registers; name the cluster that agents claim",
                clip(cluster)
            );
            report.error_at("registered_as", reason);
        }
        let host_names = report.items("host_names", &source.host_names, |report, text| policy::pattern(report, text));
        Some(TunnelSource { registered_as: registered_as?, host_names, priority: source.priority })
    });
    match message.sources.len() {
        0 => report.error_at("sources", "is empty; name a cluster that agents register as"),
        count if count > MOST => report.error_at("sources", format!("has {count} entries; {MOST} are the most")),
        _ => {}
    }
    let mut whole: HashSet<Name> = HashSet::new();
    for (index, source) in sources.iter().enumerate() {
        if whole.contains(&source.registered_as) {
            report.item("sources", index, |report| {
                report.warn_at("registered_as", "stands before it with all host names: this one has nobody left");
            });
        }
        if source.host_names.is_empty() {
            whole.insert(Arc::clone(&source.registered_as));
        }
    }
    Some(sources)
}

/// What a cluster cannot say of connections that it does not open.
pub(super) fn connections(report: &mut Report, message: &api::Cluster) {
    if message.lb_policy() == api::cluster::LbPolicy::ClusterProvided {
        report.error_at(
            "lb_policy",
            "CLUSTER_PROVIDED is not there for agents; use ROUND_ROBIN, LEAST_REQUEST or RANDOM",
        );
    }
    if message.transport_socket.is_some() {
        let reason = "stands in a cluster whose hosts are tunnels, which are TLS connections, or not, when they come; set it at the tunnel listener and its agents";
        report.error_at("transport_socket", reason);
    }
    let set = [
        ("typed_extension_protocol_options", !message.typed_extension_protocol_options.is_empty()),
        ("upstream_bind_config", message.upstream_bind_config.is_some()),
        ("upstream_connection_options", message.upstream_connection_options.is_some()),
    ];
    for (field, _) in set.into_iter().filter(|(_, is_set)| *is_set) {
        let reason = "is about connections that the cluster opens, and tunnels are opened by their agents: what holds for them is said by the tunnel listener and the cluster that they registered as";
        report.warn_at(field, reason);
    }
}

/// Sources of one cluster: each is looked at when a tunnel comes.
const MOST: usize = 64;

#[cfg(test)]
mod tests;
