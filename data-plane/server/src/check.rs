//! What parsing cannot know of a bootstrap: whether its files are there, its certificates fit, its expressions compile and
//! its routes lead somewhere. Every mistake is found in one run, before anything is bound.

mod tls;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use culvert_api::culvert::tunnel::v1::TunnelAgents;
use culvert_api::envoy::config::core::v3::address::Address;
use culvert_api::envoy::config::core::v3::socket_address::PortSpecifier;
use culvert_api::envoy::config::listener::v3::Listener as ListenerMessage;
use culvert_model::extension::{Defaults, Unresolved};
use culvert_model::http::RouteSource;
use culvert_model::listener::{FilterChain, Listener, NetworkFilter};
use culvert_model::report::Finding;
use culvert_model::route::{Action, ClusterChoice, RouteConfiguration};
use culvert_proxy::{ListenerSlot, Process};

use self::tls::Statics;
use crate::apply::compile_for_check;
use crate::bootstrap::Started;
use crate::overview::Overview;
use crate::secrets::Secrets;
use crate::tls::check_secret;

/// Every mistake in the static resources, with the path of what it is about.
#[must_use]
pub(crate) fn statics(started: &Started, process: &Process, secrets: &Secrets) -> Vec<Finding> {
    let (bootstrap, message) = (&started.bootstrap, &started.message);
    let default = Default::default();
    let given = message.static_resources.as_ref().unwrap_or(&default);
    let secrets_at = Places::new("secrets", given.secrets.iter().map(|secret| secret.name.clone()));
    let clusters_at = Places::new("clusters", given.clusters.iter().map(|cluster| cluster.name.clone()));
    let listeners_at = Places::new("listeners", given.listeners.iter().map(listener_name));
    let tls = Statics { secrets, given: given.secrets.iter().map(|secret| secret.name.as_str()).collect() };
    let mut findings = Vec::new();
    for secret in &bootstrap.secrets {
        if let Err(error) = check_secret(secret) {
            findings.push(Finding { path: secrets_at.path(&secret.name), reason: error.to_string() });
        }
    }
    for cluster in &bootstrap.clusters {
        if let Some(context) = &cluster.tls {
            let path = clusters_at.path(&cluster.name) + ".transport_socket";
            findings.extend(tls.upstream(&path, context));
        }
    }
    let agents = agent_names(started);
    for agent in &bootstrap.agents {
        let path = agents.iter().find(|(name, _)| **name == *agent.name).map_or("", |(_, path)| path);
        let path = format!("{path}.transport_socket");
        findings.extend(agent.tls.iter().flat_map(|context| tls.upstream(&path, context)));
    }
    // A cluster whose very name is broken could be any.
    let clusters: HashSet<&str> = given.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
    let known = (!clusters.contains("")).then_some(&clusters);
    for listener in &bootstrap.listeners {
        let path = listeners_at.path(&listener.name);
        findings.extend(listener_findings(&path, listener, process, &tls, known));
    }
    findings
}

/// Where the resources of a list stand. What was refused is missing in the bootstrap, so places are those in the message.
struct Places {
    list: &'static str,
    first: HashMap<String, usize>,
}

impl Places {
    fn new(list: &'static str, names: impl DoubleEndedIterator<Item = String> + ExactSizeIterator) -> Self {
        // Of a name that occurs twice, the first place counts.
        Self { list, first: names.enumerate().rev().map(|(index, name)| (name, index)).collect() }
    }

    fn path(&self, name: &str) -> String {
        format!("static_resources.{}[{}]", self.list, self.first.get(name).copied().unwrap_or_default())
    }
}

/// A static listener without a name goes by its address.
fn listener_name(message: &ListenerMessage) -> String {
    match message.address.as_ref().and_then(|address| address.address.as_ref()) {
        Some(Address::SocketAddress(socket)) if message.name.is_empty() => {
            let port = match socket.port_specifier {
                Some(PortSpecifier::PortValue(port)) => port,
                _ => 0,
            };
            format!("{}:{port}", socket.address)
        }
        _ => message.name.clone(),
    }
}

/// The names of the bootstrap's agents, each with its path.
fn agent_names(started: &Started) -> Vec<(String, String)> {
    let mut names = Vec::new();
    for (at, extension) in started.message.bootstrap_extensions.iter().enumerate() {
        let Some(Ok(agents)) = extension.typed_config.as_ref().map(|config| config.unpack::<TunnelAgents>()) else {
            continue;
        };
        let path = |index| format!("bootstrap_extensions[{at}].typed_config.agents[{index}]");
        names.extend(agents.agents.into_iter().enumerate().map(|(index, agent)| (agent.name, path(index))));
    }
    names
}

/// Each chain is tried alone, so that one mistake does not hide another.
fn listener_findings(
    path: &str,
    listener: &Arc<Listener>,
    process: &Process,
    tls: &Statics<'_>,
    clusters: Option<&HashSet<&str>>,
) -> Vec<Finding> {
    let slot = ListenerSlot::new(Arc::clone(&listener.name), listener.address, process);
    let overview = Overview::default();
    let compile = |listener: Listener| {
        // What comes by name is judged when it does; its default stands there until then.
        match Arc::new(listener).resolve(&HashMap::new(), Defaults::All) {
            Ok(listener) => {
                compile_for_check(&listener, &slot, process, &overview, tls.secrets).map_err(|error| error.to_string())
            }
            Err(Unresolved::Awaited(_)) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    };
    let bare = || Listener {
        filter_chains: Vec::new(),
        default_filter_chain: None,
        access_log: Vec::new(),
        ..Listener::clone(listener)
    };
    let mut findings = Vec::new();
    let chains = listener
        .filter_chains
        .iter()
        .enumerate()
        .map(|(index, chain)| (format!("{path}.filter_chains[{index}]"), chain));
    let default = listener.default_filter_chain.iter().map(|chain| (format!("{path}.default_filter_chain"), chain));
    for (path, chain) in chains.chain(default) {
        let broken: Vec<Finding> =
            chain.tls.iter().flat_map(|context| tls.downstream(&format!("{path}.transport_socket"), context)).collect();
        let tried = if broken.is_empty() {
            FilterChain::clone(chain)
        } else {
            FilterChain { tls: None, ..FilterChain::clone(chain) }
        };
        findings.extend(broken);
        if let Err(reason) = compile(Listener { filter_chains: vec![Arc::new(tried)], ..bare() }) {
            findings.push(Finding { path: format!("{path}.filters"), reason });
        }
        let routes = inline_routes(chain).into_iter();
        let unknown =
            routes.flat_map(|routes| {
                let names = clusters.map(|known| unknown_clusters(routes, known)).unwrap_or_default();
                names.into_iter().map(|name| format!(
                "route configuration '{}' leads to cluster '{name}', which is not among static_resources.clusters; \
                 add it, or set validate_clusters to false if it comes by CDS",
                routes.name
            ))
            });
        findings.extend(unknown.map(|reason| Finding { path: format!("{path}.filters"), reason }));
    }
    if let Err(reason) = compile(Listener { access_log: listener.access_log.clone(), ..bare() }) {
        findings.push(Finding { path: format!("{path}.access_log"), reason });
    }
    findings
}

/// The inline route configuration of a chain, if it asks for its clusters to be checked.
fn inline_routes(chain: &FilterChain) -> Option<&RouteConfiguration> {
    match chain.filter.known() {
        Some(NetworkFilter::Http(manager)) => match &manager.routes {
            RouteSource::Inline(routes) if routes.validate_clusters => Some(routes),
            RouteSource::Inline(_) | RouteSource::Rds { .. } | RouteSource::Scoped(_) => None,
        },
        _ => None,
    }
}

fn unknown_clusters(routes: &RouteConfiguration, known: &HashSet<&str>) -> Vec<String> {
    let actions = routes.virtual_hosts.iter().flat_map(|host| &host.routes).map(|route| &route.action);
    let mut unknown: Vec<String> = actions
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
        .filter(|name| !known.contains(&***name))
        .map(ToString::to_string)
        .collect();
    unknown.sort();
    unknown.dedup();
    unknown
}

#[cfg(test)]
mod tests;
