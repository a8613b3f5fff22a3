//! `cluster_type`: where endpoints come from, said by an extension.

use culvert_api::Any;
use culvert_api::culvert::tunnel::v1::TunnelCluster;
use culvert_api::envoy::config::cluster::v3::{self as api, cluster::CustomClusterType};
use culvert_api::envoy::extensions::clusters::dns::v3::DnsCluster;
use culvert_api::envoy::extensions::clusters::reverse_connection::v3::ReverseConnectionClusterConfig;
use prost::Name as _;

use super::{Discovery, dns, reverse, shared};
use crate::report::{Report, clip};

/// Parses the `cluster_type` of the cluster at hand.
pub(super) fn discovery(report: &mut Report, cluster: &api::Cluster, message: &CustomClusterType) -> Option<Discovery> {
    match &message.typed_config {
        Some(config) if config.is::<DnsCluster>() => dns::custom(report, cluster, config),
        Some(config) if config.is::<ReverseConnectionClusterConfig>() => {
            report.field("cluster_type", |report| reverse::discovery(report, cluster, config)).map(Discovery::Reverse)
        }
        Some(config) if config.is::<TunnelCluster>() => {
            report.field("cluster_type", |report| shared::discovery(report, cluster, config)).map(Discovery::Tunnels)
        }
        other => {
            report.field("cluster_type", |report| report.error_at("typed_config", unknown(other.as_ref())));
            None
        }
    }
}

fn unknown(config: Option<&Any>) -> String {
    let Some(config) = config else { return "is missing".to_owned() };
    let (dns, reverse) = (DnsCluster::full_name(), ReverseConnectionClusterConfig::full_name());
    let ours = TunnelCluster::full_name();
    format!(
        "{} is not there: it decides where endpoints come from; use {ours}, {dns}, {reverse}, or type STATIC, STRICT_DNS, LOGICAL_DNS or EDS",
        clip(config.type_name())
    )
}
