//! Clusters whose hosts are what names lead to: `STRICT_DNS`, `LOGICAL_DNS`, and the extension that is both.

use std::time::Duration;

use culvert_api::Any;
use culvert_api::envoy::config::cluster::v3 as api;
use culvert_api::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily;
use culvert_api::envoy::extensions::clusters::dns::v3::DnsCluster;

use super::parse::load_assignment;
use super::{Discovery, DnsFamily, DnsOptions};
use crate::endpoint::Names;
use crate::report::Report;
use crate::scalar;

/// A cluster in which every address of every name is a host.
pub(super) fn strict(report: &mut Report, cluster: &api::Cluster, dns: Option<DnsOptions>) -> Option<Discovery> {
    let endpoints = load_assignment(report, cluster, Names::Resolved)?;
    Some(Discovery::StrictDns { endpoints, dns: dns? })
}

/// A cluster of one name.
pub(super) fn logical(report: &mut Report, cluster: &api::Cluster, dns: Option<DnsOptions>) -> Option<Discovery> {
    let endpoints = load_assignment(report, cluster, Names::Resolved)?;
    let count: usize = endpoints.localities.iter().map(|locality| locality.endpoints.len()).sum();
    if count != 1 {
        report.error_at("load_assignment", format!("has {count} endpoints; a LOGICAL_DNS cluster has one"));
    }
    Some(Discovery::LogicalDns { endpoints, dns: dns? })
}

/// What the cluster's own fields say.
#[expect(deprecated, reason = "dns_refresh_rate and respect_dns_ttl are what configurations use")]
pub(super) fn options(report: &mut Report, message: &api::Cluster) -> Option<DnsOptions> {
    use api::cluster::DnsLookupFamily;
    let refresh = scalar::positive(report, "dns_refresh_rate", message.dns_refresh_rate.as_ref(), REFRESH);
    let family = match scalar::enumeration(report, "dns_lookup_family", message.dns_lookup_family)? {
        DnsLookupFamily::Auto => DnsFamily::Auto,
        DnsLookupFamily::V4Only => DnsFamily::V4Only,
        DnsLookupFamily::V6Only => DnsFamily::V6Only,
        DnsLookupFamily::V4Preferred => DnsFamily::V4Preferred,
        DnsLookupFamily::All => DnsFamily::All,
    };
    Some(DnsOptions { refresh, respect_ttl: message.respect_dns_ttl, family })
}

/// A cluster whose `cluster_type` has `config`, a `DnsCluster`: its own DNS fields do not count then, as in Envoy.
pub(super) fn custom(report: &mut Report, cluster: &api::Cluster, config: &Any) -> Option<Discovery> {
    if cluster.lb_policy() == api::cluster::LbPolicy::ClusterProvided {
        report.error_at(
            "lb_policy",
            "is CLUSTER_PROVIDED, and a DnsCluster chooses no host; use ROUND_ROBIN, LEAST_REQUEST or RANDOM",
        );
    }
    if cluster.eds_cluster_config.is_some() {
        report.error_at("eds_cluster_config", "stands beside a DnsCluster, whose endpoints are in load_assignment");
    }
    let (message, dns) = report.field("cluster_type", |report| {
        report.field("typed_config", |report| {
            let message: DnsCluster = report.unpack(config)?;
            let dns = extension_options(report, &message);
            Some((message, dns))
        })
    })?;
    if message.all_addresses_in_single_endpoint { logical(report, cluster, dns) } else { strict(report, cluster, dns) }
}

fn extension_options(report: &mut Report, message: &DnsCluster) -> Option<DnsOptions> {
    let refresh = scalar::positive(report, "dns_refresh_rate", message.dns_refresh_rate.as_ref(), REFRESH);
    let family = match scalar::enumeration(report, "dns_lookup_family", message.dns_lookup_family)? {
        DnsLookupFamily::Unspecified | DnsLookupFamily::Auto => DnsFamily::Auto,
        DnsLookupFamily::V4Only => DnsFamily::V4Only,
        DnsLookupFamily::V6Only => DnsFamily::V6Only,
        DnsLookupFamily::V4Preferred => DnsFamily::V4Preferred,
        DnsLookupFamily::All => DnsFamily::All,
    };
    Some(DnsOptions { refresh, respect_ttl: message.respect_dns_ttl, family })
}

/// Envoy's default.
const REFRESH: Duration = Duration::from_secs(5);
