//! How a cluster chooses among its hosts.

use culvert_api::Any;
use culvert_api::envoy::config::cluster::v3 as api;
use culvert_api::envoy::extensions::load_balancing_policies::common::v3::{LocalityLbConfig, locality_lb_config};
use culvert_api::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use culvert_api::envoy::extensions::load_balancing_policies::random::v3::Random;
use culvert_api::envoy::extensions::load_balancing_policies::round_robin::v3::RoundRobin;

use super::Balancer;
use crate::report::Report;
use crate::scalar;

/// What `load_balancing_policy` or `lb_policy` comes to.
pub(super) struct Balancing {
    pub(super) balancer: Balancer,
    pub(super) locality_weighted: bool,
}

/// Of the cluster at hand: `load_balancing_policy` counts before `lb_policy` and what belongs to it, as in Envoy.
pub(super) fn balancing(report: &mut Report, message: &api::Cluster) -> Option<Balancing> {
    use api::cluster::{LbConfig, common_lb_config::LocalityConfigSpecifier};
    let choices = match &message.lb_config {
        Some(LbConfig::LeastRequestLbConfig(config)) => report.field("least_request_lb_config", |report| {
            scalar::at_least(report, "choice_count", config.choice_count, 2, CHOICES)
        }),
        _ => CHOICES,
    };
    if let Some(policy) = &message.load_balancing_policy {
        return report.field("load_balancing_policy", |report| extension(report, policy));
    }
    let common = message.common_lb_config.as_ref().and_then(|common| common.locality_config_specifier.as_ref());
    let locality_weighted = matches!(common, Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)));
    Some(Balancing { balancer: policy(report, message, choices)?, locality_weighted })
}

fn policy(report: &mut Report, message: &api::Cluster, choices: u32) -> Option<Balancer> {
    use api::cluster::{ClusterDiscoveryType, LbPolicy};
    match scalar::enumeration::<LbPolicy>(report, "lb_policy", message.lb_policy)? {
        LbPolicy::RoundRobin => Some(Balancer::RoundRobin),
        LbPolicy::LeastRequest => Some(Balancer::LeastRequest { choices }),
        LbPolicy::Random => Some(Balancer::Random),
        // The cluster type chooses; its parser says whether it does.
        LbPolicy::ClusterProvided
            if matches!(message.cluster_discovery_type, Some(ClusterDiscoveryType::ClusterType(_))) =>
        {
            Some(Balancer::RoundRobin)
        }
        LbPolicy::LoadBalancingPolicyConfig => {
            report.error_at("load_balancing_policy", "is missing, but lb_policy refers to it");
            None
        }
        other @ (LbPolicy::RingHash | LbPolicy::Maglev | LbPolicy::ClusterProvided) => {
            let name = other.as_str_name();
            report.error_at("lb_policy", format!("{name} is not there; use ROUND_ROBIN, LEAST_REQUEST or RANDOM"));
            None
        }
    }
}

/// The first policy of the list that is known, as in Envoy.
fn extension(report: &mut Report, message: &api::LoadBalancingPolicy) -> Option<Balancing> {
    for (index, policy) in message.policies.iter().enumerate() {
        let config = policy.typed_extension_config.as_ref().and_then(|extension| extension.typed_config.as_ref());
        let Some(config) = config else { continue };
        let parse = match config {
            config if config.is::<RoundRobin>() => round_robin,
            config if config.is::<LeastRequest>() => least_request,
            config if config.is::<Random>() => random,
            _ => continue,
        };
        return report.item("policies", index, |report| {
            report
                .field("typed_extension_config", |report| report.field("typed_config", |report| parse(report, config)))
        });
    }
    report.error_at("policies", "none is known; use round_robin, least_request or random");
    None
}

fn round_robin(report: &mut Report, config: &Any) -> Option<Balancing> {
    let message: RoundRobin = report.unpack(config)?;
    Some(Balancing { balancer: Balancer::RoundRobin, locality_weighted: weighted(message.locality_lb_config) })
}

fn least_request(report: &mut Report, config: &Any) -> Option<Balancing> {
    let message: LeastRequest = report.unpack(config)?;
    let choices = scalar::at_least(report, "choice_count", message.choice_count, 2, CHOICES);
    let locality_weighted = weighted(message.locality_lb_config);
    Some(Balancing { balancer: Balancer::LeastRequest { choices }, locality_weighted })
}

fn random(report: &mut Report, config: &Any) -> Option<Balancing> {
    let message: Random = report.unpack(config)?;
    Some(Balancing { balancer: Balancer::Random, locality_weighted: weighted(message.locality_lb_config) })
}

fn weighted(config: Option<LocalityLbConfig>) -> bool {
    use locality_lb_config::LocalityConfigSpecifier;
    let choice = config.and_then(|config| config.locality_config_specifier);
    matches!(choice, Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)))
}

/// Envoy's default of `choice_count`.
const CHOICES: u32 = 2;
