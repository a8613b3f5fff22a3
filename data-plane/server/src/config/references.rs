//! What a resource refers to, and where that comes from.

use std::collections::BTreeSet;
use std::sync::Arc;

use culvert_api::type_url;
use culvert_model::Name;
use culvert_model::agent::ServerSource;
use culvert_model::bootstrap::Bootstrap;
use culvert_model::cluster::Discovery;
use culvert_model::extension::{Asked, Extension, Filter};
use culvert_model::http::RouteSource;
use culvert_model::listener::{Listener, NetworkFilter};
use culvert_model::resource::Resource;
use culvert_model::route::{Action, ClusterChoice, RouteConfiguration, VirtualHost};
use culvert_model::runtime::LayerSource;
use culvert_model::scope::{Scope, ScopeRoutes, Scopes};
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
    pub(crate) patience: Patience,
}

/// How long whoever refers to something waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Something else holds from the beginning.
    None,
    /// Until the `initial_fetch_timeout` of its source is over; something stands in for it then.
    Timeout,
    /// Nothing stands in for it, however long it takes.
    Endless,
}

impl Reference {
    fn new(kind: Kind, name: &Name, source: &ConfigSource, patience: Patience) -> Self {
        Self { kind, name: Arc::clone(name), source: source.clone(), patience }
    }
}

/// What a bootstrap itself takes from a source by its name: layers of the runtime.
pub(crate) fn of_bootstrap(bootstrap: &Bootstrap) -> Vec<Reference> {
    let layers = bootstrap.runtime.iter().filter_map(|layer| match &layer.source {
        LayerSource::Rtds { name, source } => Some(Reference::new(Kind::Runtime, name, source, Patience::Timeout)),
        LayerSource::Static(_) | LayerSource::Admin => None,
    });
    layers.collect()
}

/// Every assignment, route configuration, secret and filter configuration that `resource` takes from a source.
pub(crate) fn of(resource: &Resource) -> Vec<Reference> {
    let mut references = Vec::new();
    match resource {
        Resource::Cluster(cluster) => {
            if let Discovery::Eds { service_name, config } = &cluster.discovery {
                references.push(Reference::new(Kind::Endpoints, service_name, config, Patience::Timeout));
            }
            if let Some(tls) = &cluster.tls {
                secrets(&tls.common, &mut references);
            }
        }
        Resource::Listener(listener) => of_listener(listener, &mut references),
        Resource::Agent(agent) => {
            for server in &agent.servers {
                if let ServerSource::Eds { service_name, config } = server {
                    references.push(Reference::new(Kind::Endpoints, service_name, config, Patience::Timeout));
                }
            }
            if let Some(tls) = &agent.tls {
                secrets(&tls.common, &mut references);
            }
        }
        Resource::Extension(extension) => {
            if let Filter::Network(filter) = &extension.filter {
                of_filter(filter, &mut references);
            }
        }
        Resource::Routes(routes) => {
            let hosts = collection(Kind::VirtualHost, &format!("{}/", routes.name)).zip(routes.vhds.as_ref());
            references.extend(hosts.map(|((kind, all), source)| Reference::new(kind, &all, source, Patience::Timeout)));
        }
        // Where a scope's routes come from its listener says: see `of_scope`.
        Resource::Scope(_)
        | Resource::VirtualHost(_)
        | Resource::Endpoints(_)
        | Resource::Secret(_)
        | Resource::Policy(_)
        | Resource::Runtime(_) => {}
    }
    references
}

/// The routes that a scope names; they come from `source`.
pub(crate) fn of_scope(scope: &Scope, source: &ConfigSource) -> Vec<Reference> {
    match &scope.routes {
        ScopeRoutes::Named(name) => vec![Reference::new(Kind::Routes, name, source, Patience::Timeout)],
        ScopeRoutes::Inline(_) => Vec::new(),
    }
}

/// What a resource belongs to that is not referred to by its own name, but with all of its kind: scopes, and the virtual
/// hosts of one route configuration. No resource has such a name: it is empty, or ends behind a `/`.
pub(crate) fn collection(kind: Kind, name: &str) -> Option<(Kind, Name)> {
    match kind {
        Kind::Scope => Some((kind, "".into())),
        Kind::VirtualHost => name.rfind('/').and_then(|end| name.get(..=end)).map(|all| (kind, all.into())),
        _ => None,
    }
}

/// Whether a reference of this kind and name is to a [`collection`].
pub(crate) fn is_collection(kind: Kind, name: &str) -> bool {
    collection(kind, name).is_some_and(|(_, all)| &*all == name)
}

/// Where the scopes of a connection manager come from, and the routes that they name.
pub(crate) type ScopeSources = (ConfigSource, ConfigSource);

/// The sources of scopes that `resource` asks for.
pub(crate) fn scope_sources(resource: &Resource) -> Vec<ScopeSources> {
    let of_filter = |filter: &NetworkFilter| match filter.known() {
        Some(NetworkFilter::Http(manager)) => match &manager.routes {
            RouteSource::Scoped(scoped) => match &scoped.scopes {
                Scopes::Discovered { source, routes } => Some((source.clone(), routes.clone())),
                Scopes::Listed(_) => None,
            },
            RouteSource::Rds { .. } | RouteSource::Inline(_) => None,
        },
        _ => None,
    };
    match resource {
        Resource::Listener(listener) => listener.chains().filter_map(|chain| of_filter(&chain.filter)).collect(),
        Resource::Extension(extension) => network(extension).and_then(of_filter).into_iter().collect(),
        _ => Vec::new(),
    }
}

fn of_listener(listener: &Listener, references: &mut Vec<Reference>) {
    for chain in listener.filter_chains.iter().chain(&listener.default_filter_chain) {
        if let Some(tls) = &chain.tls {
            secrets(&tls.common, references);
        }
        of_filter(&chain.filter, references);
    }
}

fn of_filter(filter: &NetworkFilter, references: &mut Vec<Reference>) {
    for Asked { name, source, has_default, at_once, .. } in filter.asked() {
        let patience = match (at_once, has_default) {
            (true, _) => Patience::None,
            (false, true) => Patience::Timeout,
            (false, false) => Patience::Endless,
        };
        references.push(Reference::new(Kind::Extension, name, source, patience));
    }
    let Some(NetworkFilter::Http(manager)) = filter.known() else { return };
    match &manager.routes {
        RouteSource::Rds { name, config } => {
            references.push(Reference::new(Kind::Routes, name, config, Patience::Timeout));
        }
        RouteSource::Scoped(scoped) => {
            if let (Scopes::Discovered { source, .. }, Some((kind, all))) =
                (&scoped.scopes, collection(Kind::Scope, ""))
            {
                references.push(Reference::new(kind, &all, source, Patience::Timeout));
            }
        }
        RouteSource::Inline(_) => {}
    }
}

fn secrets(tls: &CommonTls, references: &mut Vec<Reference>) {
    let mut add = |name: &Name, config: &Option<ConfigSource>| {
        // Without a source it is one of the bootstrap's.
        if let Some(source) = config {
            references.push(Reference::new(Kind::Secret, name, source, Patience::Endless));
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

/// The configurations of filters that `resource` asks for.
pub(crate) fn asked(resource: &Resource) -> Vec<Asked<'_>> {
    match resource {
        Resource::Listener(listener) => listener.asked(),
        Resource::Extension(extension) => network(extension).map(NetworkFilter::asked).unwrap_or_default(),
        _ => Vec::new(),
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
            (Kind::Extension, _) => {
                ScopePath::named("extension_config_discovery", "envoy_extension_config_name", Arc::clone(&name))
            }
            (Kind::Routes, Resource::Listener(listener)) => {
                return of_routes_in(listener.chains().map(|chain| &chain.filter), &name);
            }
            (Kind::Routes, Resource::Extension(extension)) => return of_routes_in(network(extension), &name),
            (
                Kind::Cluster
                | Kind::Routes
                | Kind::Listener
                | Kind::Agent
                | Kind::Policy
                | Kind::Runtime
                | Kind::Scope
                | Kind::VirtualHost,
                _,
            ) => return Vec::new(),
        };
        vec![(kind, name, path)]
    };
    of(resource).into_iter().flat_map(scope).collect()
}

/// Every connection manager that goes by these routes counts them.
fn of_routes_in<'f>(filters: impl IntoIterator<Item = &'f NetworkFilter>, name: &Name) -> Vec<(Kind, Name, ScopePath)> {
    let managers = filters.into_iter().filter_map(|filter| match filter.known() {
        Some(NetworkFilter::Http(manager)) => match &manager.routes {
            RouteSource::Rds { name: routes, .. } if routes == name => Some(&manager.stat_prefix),
            RouteSource::Rds { .. } | RouteSource::Inline(_) | RouteSource::Scoped(_) => None,
        },
        _ => None,
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
            listener.chains().for_each(|chain| through(&chain.filter, &mut names));
        }
        Resource::Extension(extension) => network(extension).into_iter().for_each(|filter| through(filter, &mut names)),
        Resource::VirtualHost(host) => of_host(host, &mut names),
        Resource::Scope(scope) => {
            if let ScopeRoutes::Inline(routes) = &scope.routes {
                of_routes(routes, &mut names);
            }
        }
        Resource::Cluster(_)
        | Resource::Endpoints(_)
        | Resource::Secret(_)
        | Resource::Agent(_)
        | Resource::Policy(_)
        | Resource::Runtime(_) => {}
    }
    names
}

fn network(extension: &Extension) -> Option<&NetworkFilter> {
    match &extension.filter {
        Filter::Network(filter) => Some(filter),
        Filter::Router(_) => None,
    }
}

fn through(filter: &NetworkFilter, names: &mut BTreeSet<Name>) {
    match filter.known() {
        Some(NetworkFilter::Tcp(proxy)) => of_choice(&proxy.clusters, names),
        Some(NetworkFilter::Http(manager)) => match &manager.routes {
            RouteSource::Inline(routes) => of_routes(routes, names),
            RouteSource::Scoped(scoped) => {
                let Scopes::Listed(scopes) = &scoped.scopes else { return };
                for scope in scopes {
                    if let ScopeRoutes::Inline(routes) = &scope.routes {
                        of_routes(routes, names);
                    }
                }
            }
            RouteSource::Rds { .. } => {}
        },
        Some(NetworkFilter::Tunnel(_) | NetworkFilter::Discovered(_)) | None => {}
    }
}

fn of_routes(routes: &RouteConfiguration, names: &mut BTreeSet<Name>) {
    routes.virtual_hosts.iter().for_each(|host| of_host(host, names));
}

fn of_host(host: &VirtualHost, names: &mut BTreeSet<Name>) {
    for route in &host.routes {
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
        type_url::EXTENSION_CONFIG => Kind::Extension,
        type_url::RUNTIME => Kind::Runtime,
        type_url::SCOPED_ROUTE_CONFIGURATION => Kind::Scope,
        type_url::VIRTUAL_HOST => Kind::VirtualHost,
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
        Kind::Extension => type_url::EXTENSION_CONFIG,
        Kind::Runtime => type_url::RUNTIME,
        Kind::Scope => type_url::SCOPED_ROUTE_CONFIGURATION,
        Kind::VirtualHost => type_url::VIRTUAL_HOST,
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
        Resource::Extension(extension) => (Kind::Extension, Arc::clone(&extension.name)),
        Resource::Runtime(runtime) => (Kind::Runtime, Arc::clone(&runtime.name)),
        Resource::Scope(scope) => (Kind::Scope, Arc::clone(&scope.name)),
        Resource::VirtualHost(host) => (Kind::VirtualHost, Arc::clone(&host.name)),
    }
}
