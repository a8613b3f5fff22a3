//! What a route does: forward or redirect.

use std::sync::Arc;
use std::time::Duration;

use culvert_api::envoy::config::core::v3::RoutingPriority;
use culvert_api::envoy::config::route::v3 as api;

use super::{
    AgentChoice, ClusterChoice, ClusterRef, HostRewrite, PathRewrite, Priority, Redirect, RedirectPath, RouteAction,
    WeightedCluster, headers, retry,
};
use crate::http::{self, UpgradeConfig};
use crate::matcher;
use crate::metadata;
use crate::report::{Report, clip};
use crate::scalar;

/// Parses the `RouteAction` at hand; `agent` is what the metadata of its route names.
#[expect(deprecated, reason = "max_grpc_timeout is still used")]
pub(super) fn forward(
    report: &mut Report,
    message: &api::RouteAction,
    agent: Option<AgentChoice>,
) -> Option<RouteAction> {
    use api::route_action::ClusterNotFoundResponseCode as NotFound;
    let agent = metadata::agent_of_match(report, message.metadata_match.as_ref()).or(agent);
    let clusters = clusters(report, message, agent.as_ref());
    let field = "cluster_not_found_response_code";
    let cluster_not_found = match scalar::enumeration(report, field, message.cluster_not_found_response_code)? {
        NotFound::ServiceUnavailable => 503,
        NotFound::NotFound => 404,
        NotFound::InternalServerError => 500,
    };
    let priority = match scalar::enumeration(report, "priority", message.priority)? {
        RoutingPriority::Default => Priority::Default,
        RoutingPriority::High => Priority::High,
    };
    let timeout = scalar::duration(report, "timeout", message.timeout.as_ref());
    let idle_timeout = scalar::duration(report, "idle_timeout", message.idle_timeout.as_ref());
    let grpc_timeout_max = match &message.max_stream_duration {
        Some(durations) => report.field("max_stream_duration", |report| {
            scalar::duration(report, "grpc_timeout_header_max", durations.grpc_timeout_header_max.as_ref())
        }),
        None => scalar::duration(report, "max_grpc_timeout", message.max_grpc_timeout.as_ref()),
    };
    let retry = message.retry_policy.as_ref();
    let retry = retry.and_then(|message| report.field("retry_policy", |report| retry::policy(report, message)));
    let upgrades = report.items("upgrade_configs", &message.upgrade_configs, |report, upgrade| {
        let kind = scalar::name(report, "upgrade_type", &upgrade.upgrade_type)?.to_ascii_lowercase().into();
        let terminate_connect = upgrade.connect_config.is_some();
        Some(UpgradeConfig { kind, enabled: upgrade.enabled.unwrap_or(true), terminate_connect })
    });
    Some(RouteAction {
        clusters: clusters?,
        cluster_not_found,
        path_rewrite: path_rewrite(report, message),
        host_rewrite: host_rewrite(report, message),
        append_x_forwarded_host: message.append_x_forwarded_host,
        timeout: timeout.unwrap_or(TIMEOUT),
        idle_timeout,
        grpc_timeout_max,
        retry: retry.map(Arc::new),
        upgrades,
        priority,
    })
}

fn clusters(report: &mut Report, message: &api::RouteAction, agent: Option<&AgentChoice>) -> Option<ClusterChoice> {
    use api::route_action::ClusterSpecifier;
    match &message.cluster_specifier {
        Some(ClusterSpecifier::Cluster(cluster)) => {
            let cluster = scalar::name(report, "cluster", cluster)?;
            Some(ClusterChoice::One(ClusterRef { cluster, agent: agent.cloned() }))
        }
        Some(ClusterSpecifier::ClusterHeader(header)) => {
            if agent.is_some() {
                report.error_at("cluster_header", "an agent can be named beside cluster and weighted_clusters only");
            }
            Some(ClusterChoice::Header(scalar::field_name(report, "cluster_header", header)?))
        }
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            report.field("weighted_clusters", |report| weighted_clusters(report, weighted, agent))
        }
        // The coverage tables have refused them.
        Some(ClusterSpecifier::ClusterSpecifierPlugin(_) | ClusterSpecifier::InlineClusterSpecifierPlugin(_)) => None,
        None => {
            report.error("names no cluster; set cluster, weighted_clusters or cluster_header");
            None
        }
    }
}

#[expect(deprecated, reason = "total_weight is still sent")]
fn weighted_clusters(
    report: &mut Report,
    message: &api::WeightedCluster,
    agent: Option<&AgentChoice>,
) -> Option<ClusterChoice> {
    let clusters = report.items("clusters", &message.clusters, |report, message| {
        http::per_filter_config(report, &message.typed_per_filter_config);
        let cluster = scalar::name(report, "name", &message.name);
        if message.weight.is_none() {
            report.error_at("weight", "is missing; 0 sends nothing there");
        }
        let api::weighted_cluster::ClusterWeight { host_rewrite_specifier, .. } = message;
        let host_rewrite = match host_rewrite_specifier {
            Some(api::weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(host)) => {
                Some(scalar::header_value(report, "host_rewrite_literal", host)?)
            }
            None => None,
        };
        let own = metadata::agent_of_match(report, message.metadata_match.as_ref());
        Some(WeightedCluster {
            target: ClusterRef { cluster: cluster?, agent: own.or_else(|| agent.cloned()) },
            weight: message.weight.unwrap_or(0),
            headers: headers::of_cluster(report, message),
            host_rewrite,
        })
    });
    let total = total_weight(report, &clusters)?;
    if message.total_weight.is_some_and(|stated| stated != 0 && stated != total) {
        report.warn_at("total_weight", format!("is not the sum of the weights; their sum, {total}, counts"));
    }
    Some(ClusterChoice::Weighted { clusters, total })
}

/// The sum of the weights, which Envoy wants from 1 to 2^32 - 1.
pub(crate) fn total_weight(report: &mut Report, clusters: &[WeightedCluster]) -> Option<u32> {
    let sum: u64 = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
    let total = u32::try_from(sum).ok().filter(|total| *total > 0);
    if total.is_none() {
        report.error_at("clusters", format!("the weights add up to {sum}, which is not from 1 to {}", u32::MAX));
    }
    total
}

fn path_rewrite(report: &mut Report, message: &api::RouteAction) -> Option<PathRewrite> {
    let prefix = Some(message.prefix_rewrite.as_str()).filter(|prefix| !prefix.is_empty());
    match (prefix, &message.regex_rewrite) {
        (Some(_), Some(_)) => {
            report.error_at("regex_rewrite", "stands beside prefix_rewrite; set one of them");
            None
        }
        (Some(prefix), None) => Some(PathRewrite::Prefix(scalar::header_value(report, "prefix_rewrite", prefix)?)),
        (None, Some(rewrite)) => {
            let rewrite = report.field("regex_rewrite", |report| matcher::substitute(report, rewrite))?;
            Some(PathRewrite::Regex { pattern: rewrite.0, substitution: rewrite.1 })
        }
        (None, None) => None,
    }
}

fn host_rewrite(report: &mut Report, message: &api::RouteAction) -> Option<HostRewrite> {
    use api::route_action::HostRewriteSpecifier as Kind;
    match message.host_rewrite_specifier.as_ref()? {
        Kind::HostRewriteLiteral(host) if host.is_empty() => None,
        Kind::HostRewriteLiteral(host) => {
            Some(HostRewrite::Literal(scalar::header_value(report, "host_rewrite_literal", host)?))
        }
        Kind::AutoHostRewrite(auto) => auto.then_some(HostRewrite::Auto),
        Kind::HostRewriteHeader(header) => {
            Some(HostRewrite::Header(scalar::header_name(report, "host_rewrite_header", header)?))
        }
        Kind::HostRewritePathRegex(rewrite) => {
            let rewrite = report.field("host_rewrite_path_regex", |report| matcher::substitute(report, rewrite))?;
            Some(HostRewrite::PathRegex { pattern: rewrite.0, substitution: rewrite.1 })
        }
        // The coverage tables have refused it.
        Kind::HostRewrite(_) => None,
    }
}

/// Parses the `RedirectAction` at hand.
pub(super) fn redirect(report: &mut Report, message: &api::RedirectAction) -> Option<Redirect> {
    use api::redirect_action::{PathRewriteSpecifier as Path, RedirectResponseCode as Code, SchemeRewriteSpecifier};
    let scheme = match &message.scheme_rewrite_specifier {
        Some(SchemeRewriteSpecifier::HttpsRedirect(https)) => https.then(|| Arc::from("https")),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) if scheme.is_empty() => None,
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => {
            let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
            if !scheme.bytes().all(valid) {
                report.error_at("scheme_redirect", format!("{:?} is not a scheme", clip(scheme)));
                return None;
            }
            Some(scheme.to_ascii_lowercase().into())
        }
        None => None,
    };
    let port = match message.port_redirect {
        0 => None,
        port => Some(scalar::port(report, "port_redirect", port)?),
    };
    let path = match &message.path_rewrite_specifier {
        Some(Path::PathRedirect(path)) if path.is_empty() => RedirectPath::Keep,
        Some(Path::PathRedirect(path)) => RedirectPath::Full(scalar::header_value(report, "path_redirect", path)?),
        Some(Path::PrefixRewrite(prefix)) => {
            RedirectPath::Prefix(scalar::header_value(report, "prefix_rewrite", prefix)?)
        }
        Some(Path::RegexRewrite(rewrite)) => {
            let (pattern, substitution) =
                report.field("regex_rewrite", |report| matcher::substitute(report, rewrite))?;
            RedirectPath::Regex { pattern, substitution }
        }
        // The coverage tables have refused it.
        Some(Path::PathRewrite(_)) => return None,
        None => RedirectPath::Keep,
    };
    let status = match scalar::enumeration(report, "response_code", message.response_code)? {
        Code::MovedPermanently => 301,
        Code::Found => 302,
        Code::SeeOther => 303,
        Code::TemporaryRedirect => 307,
        Code::PermanentRedirect => 308,
    };
    let host = scalar::header_value(report, "host_redirect", &message.host_redirect)?;
    let host = Some(host).filter(|host| !host.is_empty());
    Some(Redirect { scheme, host, port, path, status, strip_query: message.strip_query })
}

/// Envoy's default.
const TIMEOUT: Duration = Duration::from_secs(15);
