//! What parsing cannot know of a bootstrap: whether its files are there, its certificates fit, its expressions compile and
//! its routes lead somewhere. Every mistake is found in one run, before anything is bound.

use std::collections::HashSet;
use std::sync::Arc;

use culvert_model::Name;
use culvert_model::http::RouteSource;
use culvert_model::listener::{FilterChain, Listener, NetworkFilter};
use culvert_model::report::Finding;
use culvert_model::route::{Action, ClusterChoice, RouteConfiguration};
use culvert_proxy::{ListenerSlot, Process};

use crate::apply::compile_for_check;
use crate::bootstrap::Started;
use crate::overview::Overview;
use crate::secrets::Secrets;
use crate::tls::{MaterialError, check_secret, gather};

/// Every mistake in the static resources, with the path of what it is about.
#[must_use]
pub(crate) fn statics(started: &Started, process: &Process, secrets: &Secrets) -> Vec<Finding> {
    let bootstrap = &started.bootstrap;
    let extensions = &started.message.bootstrap_extensions;
    let agents = extensions.iter().position(|extension| extension.name == AGENTS_EXTENSION).unwrap_or_default();
    let agents = format!("bootstrap_extensions[{agents}].typed_config");
    let mut findings = Vec::new();
    let mut add = |path: String, reason: String| findings.push(Finding { path, reason });
    for (index, secret) in bootstrap.secrets.iter().enumerate() {
        if let Err(error) = check_secret(secret) {
            add(format!("static_resources.secrets[{index}]"), error.to_string());
        }
    }
    for (index, cluster) in bootstrap.clusters.iter().enumerate() {
        if let Some(tls) = &cluster.tls
            && let Err(error) = client_material(tls, secrets)
        {
            add(format!("static_resources.clusters[{index}].transport_socket"), error.to_string());
        }
    }
    for (index, agent) in bootstrap.agents.iter().enumerate() {
        if let Some(tls) = &agent.tls
            && let Err(error) = client_material(tls, secrets)
        {
            add(format!("{agents}.agents[{index}].transport_socket"), error.to_string());
        }
    }
    let clusters: HashSet<&Name> = bootstrap.clusters.iter().map(|cluster| &cluster.name).collect();
    let overview = Overview::default();
    for (index, listener) in bootstrap.listeners.iter().enumerate() {
        let path = format!("static_resources.listeners[{index}]");
        let slot = ListenerSlot::new(Arc::clone(&listener.name), listener.address, process);
        if let Err(error) = compile_for_check(listener, &slot, process, &overview, secrets) {
            add(path.clone(), error.to_string());
        }
        for (chain_path, routes) in inline_routes(listener) {
            for name in unknown_clusters(routes, &clusters) {
                let reason = format!(
                    "route configuration '{}' leads to cluster '{name}', which is not among static_resources.clusters; \
                     add it, or set validate_clusters to false if it comes by CDS",
                    routes.name
                );
                add(format!("{path}.{chain_path}"), reason);
            }
        }
    }
    findings
}

fn client_material(tls: &culvert_model::tls::UpstreamTls, secrets: &Secrets) -> Result<(), MaterialError> {
    if let crate::tls::Gathered::Complete(material) = gather(&tls.common, secrets)? {
        material.client(tls, None)?;
    }
    Ok(())
}

/// The inline route configurations of a listener that ask for their clusters to be checked.
fn inline_routes(listener: &Listener) -> impl Iterator<Item = (String, &RouteConfiguration)> {
    let chains =
        listener.filter_chains.iter().enumerate().map(|(index, chain)| (format!("filter_chains[{index}]"), chain));
    let default = listener.default_filter_chain.iter().map(|chain| ("default_filter_chain".to_owned(), chain));
    chains.chain(default).filter_map(|(path, chain): (String, &Arc<FilterChain>)| match &chain.filter {
        NetworkFilter::Http(manager) => match &manager.routes {
            RouteSource::Inline(routes) if routes.validate_clusters => Some((path, &**routes)),
            RouteSource::Inline(_) | RouteSource::Rds { .. } => None,
        },
        NetworkFilter::Tcp(_) | NetworkFilter::Tunnel(_) => None,
    })
}

fn unknown_clusters<'a>(routes: &'a RouteConfiguration, known: &HashSet<&Name>) -> Vec<&'a Name> {
    let actions = routes.virtual_hosts.iter().flat_map(|host| &host.routes).map(|route| &route.action);
    let mut unknown: Vec<&Name> = actions
        .filter_map(|action| match action {
            Action::Forward(forward) => Some(&forward.clusters),
            Action::Redirect(_) | Action::Direct(_) | Action::NonForwarding => None,
        })
        .flat_map(|choice| match choice {
            ClusterChoice::One(target) => vec![&target.cluster],
            ClusterChoice::Weighted { clusters, .. } => {
                clusters.iter().map(|weighted| &weighted.target.cluster).collect()
            }
            ClusterChoice::Header(_) => Vec::new(),
        })
        .filter(|name| !known.contains(name))
        .collect();
    unknown.sort();
    unknown.dedup();
    unknown
}

/// The bootstrap extension in which static agents stand.
const AGENTS_EXTENSION: &str = "culvert.tunnel_agents";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::options::Options;
    use crate::testing::process;

    #[tokio::test]
    async fn every_mistake_that_parsing_cannot_know_is_found_in_one_run() {
        let yaml = r#"{node: {id: a}, static_resources: {
            clusters: [{name: c1, type: STATIC, transport_socket: {name: tls, typed_config: {
                "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext,
                common_tls_context: {validation_context: {trusted_ca: {filename: /nonexistent/ca.pem}}}}}}],
            listeners: [
                {name: l1, address: {socket_address: {address: 127.0.0.1, port_value: 4711}}, filter_chains: [{filters: [
                    {name: t, typed_config: {"@type": type.googleapis.com/culvert.tunnel.v1.TunnelServer, stat_prefix: t,
                        credential_policies: [{name: p, tokens: [{filename: /nonexistent/token}]}]}}]}]}]}}"#;
        let options = Options::try_parse_from(["culvert-proxy", "--config-yaml", yaml]).unwrap();
        let started = crate::bootstrap::load(&options).unwrap();
        let (process, _drain) = process();
        let findings = statics(&started, &process, &Secrets::new(&started.bootstrap.secrets));
        let found = |path: &str, reason: &str| {
            findings.iter().any(|finding| finding.path.starts_with(path) && finding.reason.contains(reason))
        };
        for (path, reason) in [
            ("static_resources.clusters[0].transport_socket", "/nonexistent/ca.pem"),
            ("static_resources.listeners[0]", "/nonexistent/token"),
        ] {
            assert!(found(path, reason), "{path}: {reason} is missing in {findings:#?}");
        }
        assert_eq!(findings.len(), 2, "and nothing else: {findings:#?}");
    }
}
