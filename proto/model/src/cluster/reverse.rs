//! Envoy's `reverse_connection` cluster: its hosts are the agents that dialled in.

use culvert_api::Any;
use culvert_api::envoy::config::cluster::v3 as api;
use culvert_api::envoy::extensions::clusters::reverse_connection::v3::ReverseConnectionClusterConfig;

use crate::report::Report;
use crate::tls::UpstreamTls;
use crate::tunnel::id_format::{IdFormat, Place};

/// Checks the TLS context that is spoken inside of tunnels: one tunnel has one, whatever its requests ask for.
pub(super) fn inside(report: &mut Report, tls: &UpstreamTls, auto_sni: bool) {
    if auto_sni {
        let reason = "stands in auto_sni, and tunnels are opened for the requests of all hosts; set sni";
        report.error_at("typed_extension_protocol_options", reason);
    }
    if tls.auto_host_sni && tls.sni.is_none() {
        let reason = "has auto_host_sni, and agents have no host names; set sni, or a validation_context that says whose certificates are good";
        report.error_at("transport_socket", reason);
    }
}

/// Which agent a request goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReverseConnection {
    /// Yields a node id, or a cluster id whose nodes take turns.
    pub host_id: IdFormat,
    /// Ids count within the tenant that it yields.
    pub tenant_id: Option<IdFormat>,
}

/// Parses the `cluster_type` at hand, whose `config` is a `ReverseConnectionClusterConfig`.
pub(super) fn discovery(report: &mut Report, cluster: &api::Cluster, config: &Any) -> Option<ReverseConnection> {
    if cluster.load_assignment.is_some() || cluster.eds_cluster_config.is_some() {
        report.error("stands beside endpoints: the agents that dial in are its only ones");
    }
    if cluster.lb_policy() != api::cluster::LbPolicy::ClusterProvided {
        report.error_at("name", "needs `lb_policy: CLUSTER_PROVIDED` in the cluster");
    }
    report.field("typed_config", |report| {
        let message: ReverseConnectionClusterConfig = report.unpack(config)?;
        let host_id = IdFormat::report(report, "host_id_format", &message.host_id_format, Place::Request);
        let tenant_id = IdFormat::report(report, "tenant_id_format", &message.tenant_id_format, Place::Request);
        if tenant_id.is_none() && !message.tenant_id_format.is_empty() {
            return None;
        }
        Some(ReverseConnection { host_id: host_id?, tenant_id })
    })
}
