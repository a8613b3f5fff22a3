//! What a bootstrap refers to within itself: the clusters of control planes, the ADS stream, static secrets.

use std::collections::HashSet;

use culvert_api::envoy::config::bootstrap::v3 as api;

use super::Bootstrap;
use crate::cluster::UpstreamProtocol;
use crate::report::{Report, clip};
use crate::runtime::LayerSource;
use crate::source::{ConfigSource, ConfigSourceKind, GrpcSource};
use crate::tls::{CommonTls, SecretRef};

/// Reports every reference that leads nowhere.
pub(super) fn check(report: &mut Report, message: &api::Bootstrap, bootstrap: &Bootstrap) {
    // Where a static cluster was refused, its absence is not worth a second finding.
    let names = message.static_resources.iter().flat_map(|statics| &statics.clusters);
    let clusters: HashSet<&str> = names.map(|cluster| cluster.name.as_str()).collect();
    let dynamic = &bootstrap.dynamic;
    let ads_given = message.dynamic_resources.as_ref().is_some_and(|dynamic| dynamic.ads_config.is_some());
    report.field("dynamic_resources", |report| {
        if let Some(ads) = &dynamic.ads {
            report.field("ads_config", |report| grpc(report, ads, &clusters, bootstrap));
        }
        for (field, source) in [("cds_config", &dynamic.cds), ("lds_config", &dynamic.lds)] {
            if let Some(config) = source {
                report.field(field, |report| source_of(report, config, &clusters, bootstrap, ads_given));
            }
        }
    });
    for (field, source) in
        [("agents_config", &bootstrap.agents_config), ("policies_config", &bootstrap.policies_config)]
    {
        if let Some(config) = source {
            report.field("bootstrap_extensions", |report| {
                report.field(field, |report| source_of(report, config, &clusters, bootstrap, ads_given));
            });
        }
    }
    for (index, layer) in bootstrap.runtime.iter().enumerate() {
        if let LayerSource::Rtds { source, .. } = &layer.source {
            report.field("layered_runtime", |report| {
                report.item("layers", index, |report| {
                    let field = "rtds_layer";
                    report.field(field, |report| source_of(report, source, &clusters, bootstrap, ads_given));
                });
            });
        }
    }
    static_secrets(report, message, bootstrap);
}

fn source_of(
    report: &mut Report,
    config: &ConfigSource,
    clusters: &HashSet<&str>,
    bootstrap: &Bootstrap,
    ads_given: bool,
) {
    match &config.kind {
        ConfigSourceKind::Ads if !ads_given => {
            report.error_at("ads", "refers to dynamic_resources.ads_config, which is missing");
        }
        ConfigSourceKind::Ads | ConfigSourceKind::Path { .. } => {}
        ConfigSourceKind::Grpc(source) => {
            report.field("api_config_source", |report| grpc(report, source, clusters, bootstrap));
        }
    }
}

/// Envoy: a control plane is reached through static clusters; gRPC is HTTP/2.
fn grpc(report: &mut Report, source: &GrpcSource, clusters: &HashSet<&str>, bootstrap: &Bootstrap) {
    for (index, name) in source.clusters.iter().enumerate() {
        let cluster = bootstrap.clusters.iter().find(|cluster| cluster.name == *name);
        report.item("grpc_services", index, |report| {
            report.field("envoy_grpc", |report| {
                if !clusters.contains(&**name) {
                    report.error_at("cluster_name", format!("{:?} is not a static cluster", clip(name)));
                } else if cluster.is_some_and(|cluster| cluster.protocol == UpstreamProtocol::Http1) {
                    let reason = "speaks HTTP/1, but gRPC needs HTTP/2; set http2_protocol_options";
                    report.warn_at("cluster_name", format!("{:?} {reason}", clip(name)));
                }
            });
        });
    }
}

/// Secrets without an `sds_config` are static ones.
fn static_secrets(report: &mut Report, message: &api::Bootstrap, bootstrap: &Bootstrap) {
    let names = message.static_resources.iter().flat_map(|statics| &statics.secrets);
    let secrets: HashSet<&str> = names.map(|secret| secret.name.as_str()).collect();
    let mut check = |place: String, tls: &CommonTls| {
        let missing = |name: &str| !secrets.contains(name);
        for name in named(tls).filter(|name| missing(name)) {
            let reason = format!("{place} names the secret {:?}, which is not among them", clip(name));
            report.field("static_resources", |report| report.error_at("secrets", reason));
        }
    };
    for cluster in &bootstrap.clusters {
        if let Some(tls) = &cluster.tls {
            check(format!("cluster {:?}", clip(&cluster.name)), &tls.common);
        }
    }
    for listener in &bootstrap.listeners {
        for chain in listener.filter_chains.iter().chain(&listener.default_filter_chain) {
            if let Some(tls) = &chain.tls {
                check(format!("listener {:?}", clip(&listener.name)), &tls.common);
            }
        }
    }
    for agent in &bootstrap.agents {
        if let Some(tls) = &agent.tls {
            check(format!("tunnel agent {:?}", clip(&agent.name)), &tls.common);
        }
    }
}

/// The names of the static secrets that a context refers to.
fn named(tls: &CommonTls) -> impl Iterator<Item = &str> {
    let certificates = tls.certificates.iter().filter_map(static_name);
    certificates.chain(tls.validation.iter().filter_map(static_name))
}

fn static_name<T>(secret: &SecretRef<T>) -> Option<&str> {
    match secret {
        SecretRef::Sds { name, config: None } => Some(name),
        SecretRef::Sds { config: Some(_), .. } | SecretRef::Inline(_) => None,
    }
}
