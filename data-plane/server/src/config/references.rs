//! What a resource refers to, and where that comes from.

use std::collections::BTreeSet;
use std::sync::Arc;

use culvert_api::type_url;
use culvert_model::Name;
use culvert_model::agent::ServerSource;
use culvert_model::cluster::Discovery;
use culvert_model::http::RouteSource;
use culvert_model::listener::{Listener, NetworkFilter};
use culvert_model::resource::Resource;
use culvert_model::route::{Action, ClusterChoice, RouteConfiguration};
use culvert_model::source::ConfigSource;
use culvert_model::tls::{CommonTls, SecretRef};
use culvert_runtime::telemetry::ScopePath;

use crate::apply::Kind;

/// A resource that is fetched because another one names it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reference {
    pub(crate) kind: Kind,
    pub(crate) name: Name,
    pub(crate) source: ConfigSource,
}

/// Every assignment, route configuration and secret that `resource` takes from a source.
pub(crate) fn of(resource: &Resource) -> Vec<Reference> {
    let mut references = Vec::new();
    match resource {
        Resource::Cluster(cluster) => {
            if let Discovery::Eds { service_name, config } = &cluster.discovery {
                references.push(Reference {
                    kind: Kind::Endpoints,
                    name: Arc::clone(service_name),
                    source: config.clone(),
                });
            }
            if let Some(tls) = &cluster.tls {
                secrets(&tls.common, &mut references);
            }
        }
        Resource::Listener(listener) => of_listener(listener, &mut references),
        Resource::Agent(agent) => {
            for server in &agent.servers {
                if let ServerSource::Eds { service_name, config } = server {
                    references.push(Reference {
                        kind: Kind::Endpoints,
                        name: Arc::clone(service_name),
                        source: config.clone(),
                    });
                }
            }
            if let Some(tls) = &agent.tls {
                secrets(&tls.common, &mut references);
            }
        }
        Resource::Routes(_) | Resource::Endpoints(_) | Resource::Secret(_) | Resource::Policy(_) => {}
    }
    references
}

fn of_listener(listener: &Listener, references: &mut Vec<Reference>) {
    for chain in listener.filter_chains.iter().chain(&listener.default_filter_chain) {
        if let Some(tls) = &chain.tls {
            secrets(&tls.common, references);
        }
        if let NetworkFilter::Http(manager) = &chain.filter
            && let RouteSource::Rds { name, config } = &manager.routes
        {
            references.push(Reference { kind: Kind::Routes, name: Arc::clone(name), source: config.clone() });
        }
    }
}

fn secrets(tls: &CommonTls, references: &mut Vec<Reference>) {
    let mut add = |name: &Name, config: &Option<ConfigSource>| {
        // Without a source it is one of the bootstrap's.
        if let Some(source) = config {
            references.push(Reference { kind: Kind::Secret, name: Arc::clone(name), source: source.clone() });
        }
    };
    for certificate in &tls.certificates {
        if let SecretRef::Sds { name, config } = certificate {
            add(name, config);
        }
    }
    if let Some(SecretRef::Sds { name, config }) = &tls.validation {
        add(name, config);
    }
}

/// The scopes in which the updates of what `resource` refers to are counted, as Envoy names them.
pub(crate) fn scopes(resource: &Resource) -> Vec<(Kind, Name, ScopePath)> {
    let scope = |Reference { kind, name, .. }: Reference| {
        let path = match (kind, resource) {
            (Kind::Endpoints, Resource::Cluster(cluster)) => ScopePath::cluster(Arc::clone(&cluster.stat_name)),
            (Kind::Endpoints, _) => ScopePath::named("tunnel_agent", "culvert_tunnel_agent", key_of(resource).1)
                .with_inner("eds", "culvert_service_name", Arc::clone(&name)),
            (Kind::Secret, _) => ScopePath::named("sds", "envoy_xds_resource_name", Arc::clone(&name)),
            (Kind::Routes, Resource::Listener(listener)) => return of_routes_in(listener, &name),
            (Kind::Cluster | Kind::Routes | Kind::Listener | Kind::Agent | Kind::Policy, _) => return Vec::new(),
        };
        vec![(kind, name, path)]
    };
    of(resource).into_iter().flat_map(scope).collect()
}

/// Every connection manager that goes by these routes counts them.
fn of_routes_in(listener: &Listener, name: &Name) -> Vec<(Kind, Name, ScopePath)> {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    let managers = chains.filter_map(|chain| match &chain.filter {
        NetworkFilter::Http(manager) => match &manager.routes {
            RouteSource::Rds { name: routes, .. } if routes == name => Some(&manager.stat_prefix),
            RouteSource::Rds { .. } | RouteSource::Inline(_) => None,
        },
        NetworkFilter::Tcp(_) | NetworkFilter::Tunnel(_) => None,
    });
    let scope = |prefix: &Name| {
        let path = ScopePath::http(Arc::clone(prefix));
        (Kind::Routes, Arc::clone(name), path.with_inner("rds", "envoy_rds_route_config", Arc::clone(name)))
    };
    managers.map(scope).collect()
}

/// The clusters that traffic through `resource` may go to, as far as they stand in it.
pub(crate) fn clusters(resource: &Resource) -> BTreeSet<Name> {
    let mut names = BTreeSet::new();
    match resource {
        Resource::Routes(routes) => of_routes(routes, &mut names),
        Resource::Listener(listener) => {
            for chain in listener.filter_chains.iter().chain(&listener.default_filter_chain) {
                match &chain.filter {
                    NetworkFilter::Tcp(proxy) => of_choice(&proxy.clusters, &mut names),
                    NetworkFilter::Http(manager) => {
                        if let RouteSource::Inline(routes) = &manager.routes {
                            of_routes(routes, &mut names);
                        }
                    }
                    NetworkFilter::Tunnel(_) => {}
                }
            }
        }
        Resource::Cluster(_)
        | Resource::Endpoints(_)
        | Resource::Secret(_)
        | Resource::Agent(_)
        | Resource::Policy(_) => {}
    }
    names
}

fn of_routes(routes: &RouteConfiguration, names: &mut BTreeSet<Name>) {
    for route in routes.virtual_hosts.iter().flat_map(|host| &host.routes) {
        if let Action::Forward(action) = &route.action {
            of_choice(&action.clusters, names);
        }
    }
}

fn of_choice(choice: &ClusterChoice, names: &mut BTreeSet<Name>) {
    match choice {
        ClusterChoice::One(one) => {
            names.insert(Arc::clone(&one.cluster));
        }
        ClusterChoice::Weighted { clusters, .. } => {
            names.extend(clusters.iter().map(|weighted| Arc::clone(&weighted.target.cluster)));
        }
        // Any cluster may be named at run time.
        ClusterChoice::Header(_) => {}
    }
}

/// The kind of the resources of a type.
pub(crate) fn kind_of(type_url: &str) -> Option<Kind> {
    Some(match type_url {
        type_url::SECRET => Kind::Secret,
        type_url::CLUSTER => Kind::Cluster,
        type_url::CLUSTER_LOAD_ASSIGNMENT => Kind::Endpoints,
        type_url::ROUTE_CONFIGURATION => Kind::Routes,
        type_url::LISTENER => Kind::Listener,
        type_url::TUNNEL_AGENT => Kind::Agent,
        type_url::TUNNEL_POLICY => Kind::Policy,
        _ => return None,
    })
}

/// The type of the resources of a kind.
pub(crate) fn type_url_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Secret => type_url::SECRET,
        Kind::Cluster => type_url::CLUSTER,
        Kind::Endpoints => type_url::CLUSTER_LOAD_ASSIGNMENT,
        Kind::Routes => type_url::ROUTE_CONFIGURATION,
        Kind::Listener => type_url::LISTENER,
        Kind::Agent => type_url::TUNNEL_AGENT,
        Kind::Policy => type_url::TUNNEL_POLICY,
    }
}

/// The kind and the name of a resource.
pub(crate) fn key_of(resource: &Resource) -> (Kind, Name) {
    match resource {
        Resource::Secret(secret) => (Kind::Secret, Arc::clone(&secret.name)),
        Resource::Cluster(cluster) => (Kind::Cluster, Arc::clone(&cluster.name)),
        Resource::Endpoints(endpoints) => (Kind::Endpoints, Arc::clone(&endpoints.cluster)),
        Resource::Routes(routes) => (Kind::Routes, Arc::clone(&routes.name)),
        Resource::Listener(listener) => (Kind::Listener, Arc::clone(&listener.name)),
        Resource::Agent(agent) => (Kind::Agent, Arc::clone(&agent.name)),
        Resource::Policy(policy) => (Kind::Policy, Arc::clone(&policy.name)),
    }
}
