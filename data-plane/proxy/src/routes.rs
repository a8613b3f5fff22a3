//! Route tables: a `RouteConfiguration`, compiled when it is pushed into what answers in the length of the path.
//!
//! A [`RouteSlot`] is the place of a route configuration's name; it outlives every table that is published into it. A
//! request reads the table through a cache per worker, so a push costs the requests nothing.

mod action;
mod conditions;
mod domains;
mod paths;
mod scopes;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use crate::shares::{BoundShare, Shares};
use arc_swap::ArcSwapOption;
use culvert_model::Name;
use culvert_model::route::{HeaderMutations, RequireTls, Route, RouteConfiguration, VirtualHost};
use culvert_upstream::Clusters;
use parking_lot::Mutex;
use smallvec::SmallVec;

pub(crate) use action::{CompiledAction, CompiledPathRewrite, CompiledRedirect, Forward, Target, Targets};
pub(crate) use conditions::{Subject, field_matches, header_matches, is_grpc, split_path};
pub(crate) use domains::without_port;
pub(crate) use scopes::Scoped;
pub use scopes::{ScopeSlot, ScopeTable};

use self::domains::Domains;
use self::paths::Paths;
use crate::source::SourceError;

/// Why a route configuration cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error("regular expression {pattern}: {reason}")]
    Regex { pattern: String, reason: String },
    #[error("body of a direct response: {0}")]
    Body(#[from] SourceError),
}

/// A compiled route configuration. Immutable; holds the slots of the clusters that it names.
#[derive(Debug)]
pub struct RouteTable {
    config: Arc<RouteConfiguration>,
    domains: Domains,
    hosts: Vec<Host>,
    clusters: Arc<Clusters>,
}

#[derive(Debug)]
struct Host {
    paths: Paths,
    routes: Vec<CompiledRoute>,
}

/// One route, ready to serve.
#[derive(Debug)]
pub(crate) struct CompiledRoute {
    /// Whether anything besides the path must hold.
    conditional: bool,
    share: Option<BoundShare>,
    pub(crate) action: CompiledAction,
    /// Header mutations below the weighted cluster's, in the order in which they are applied.
    pub(crate) headers: SmallVec<[Arc<HeaderMutations>; 3]>,
}

/// What a request matched.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Found<'t> {
    /// The virtual host demands TLS: the request is redirected there.
    NeedsTls(&'t VirtualHost),
    Route(Matched<'t>),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Matched<'t> {
    pub(crate) host: &'t VirtualHost,
    /// As configured.
    pub(crate) route: &'t Route,
    pub(crate) compiled: &'t CompiledRoute,
}

impl RouteTable {
    /// Compiles `config`; the clusters that it names get slots in `clusters` if they have none yet. Reads the files of
    /// direct responses, so it is not to be called on a worker.
    ///
    /// # Errors
    /// See [`CompileError`].
    pub fn compile(
        config: Arc<RouteConfiguration>,
        clusters: &Arc<Clusters>,
        shares: &Shares,
    ) -> Result<Arc<Self>, CompileError> {
        let domains = Domains::compile(
            config
                .virtual_hosts
                .iter()
                .zip(0..)
                .flat_map(|(host, index)| host.domains.iter().map(move |d| (&**d, index))),
        );
        let global = action::mutations(&config.headers);
        let hosts = config
            .virtual_hosts
            .iter()
            .map(|host| Host::compile(host, &config, global.as_ref(), clusters, shares))
            .collect::<Result<_, _>>()?;
        Ok(Arc::new(Self { domains, hosts, clusters: Arc::clone(clusters), config }))
    }

    /// What was compiled.
    #[must_use]
    pub fn config(&self) -> &Arc<RouteConfiguration> {
        &self.config
    }

    pub(crate) fn clusters(&self) -> &Clusters {
        &self.clusters
    }

    /// Whether there is a virtual host for requests to `authority`.
    pub(crate) fn has_host(&self, authority: &str) -> bool {
        self.domains.find(authority.as_bytes(), self.config.ignore_port_in_host).is_some()
    }

    /// The first route, in configuration order, of the request's virtual host that matches.
    pub(crate) fn find(&self, subject: &Subject<'_>) -> Option<Found<'_>> {
        let index = self.domains.find(subject.head.authority.as_bytes(), self.config.ignore_port_in_host)?;
        let host = self.config.virtual_hosts.get(index as usize)?;
        let compiled = self.hosts.get(index as usize)?;
        let is_internal = || subject.head.fields.get(b"x-envoy-internal").is_some_and(|value| value == b"true");
        if subject.head.scheme != "https"
            && match host.require_tls {
                RequireTls::None => false,
                RequireTls::ExternalOnly => !is_internal(),
                RequireTls::All => true,
            }
        {
            return Some(Found::NeedsTls(host));
        }
        let index = compiled.paths.find(subject, |index| {
            compiled.routes.get(index as usize).zip(host.routes.get(index as usize)).is_some_and(|(compiled, route)| {
                !compiled.conditional || conditions::hold(&route.matches, compiled.share.as_ref(), subject)
            })
        })? as usize;
        let (route, compiled) = (host.routes.get(index)?, compiled.routes.get(index)?);
        Some(Found::Route(Matched { host, route, compiled }))
    }
}

impl Host {
    fn compile(
        host: &VirtualHost,
        config: &RouteConfiguration,
        global: Option<&Arc<HeaderMutations>>,
        clusters: &Clusters,
        shares: &Shares,
    ) -> Result<Self, CompileError> {
        let own = action::mutations(&host.headers);
        let routes = host
            .routes
            .iter()
            .map(|route| {
                let mut headers: SmallVec<[Arc<HeaderMutations>; 3]> =
                    action::mutations(&route.headers).into_iter().chain(own.clone()).chain(global.cloned()).collect();
                if config.most_specific_header_mutations_wins {
                    headers.reverse();
                }
                Ok(CompiledRoute {
                    conditional: conditions::any(&route.matches),
                    share: route.matches.runtime_fraction.as_ref().map(|share| shares.bind(share)),
                    action: CompiledAction::compile(
                        &route.action,
                        host.retry.as_ref(),
                        clusters,
                        config.max_direct_response_body,
                    )?,
                    headers,
                })
            })
            .collect::<Result<_, CompileError>>()?;
        Ok(Self { paths: Paths::compile(host.routes.iter().map(|route| &route.matches)), routes })
    }
}

/// The place of one route configuration. Empty until the first publication: requests are then answered 404.
#[derive(Debug)]
pub struct RouteSlot {
    name: Name,
    pub(crate) table: Arc<ArcSwapOption<RouteTable>>,
}

impl RouteSlot {
    #[must_use]
    pub fn new(name: Name) -> Arc<Self> {
        Arc::new(Self { name, table: Arc::new(ArcSwapOption::empty()) })
    }

    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Requests that arrive from now on see `table`. Returns the one before, to be freed off the workers.
    pub fn publish(&self, table: Arc<RouteTable>) -> Option<Arc<RouteTable>> {
        self.table.swap(Some(table))
    }

    /// What is published now.
    #[must_use]
    pub fn current(&self) -> Option<Arc<RouteTable>> {
        self.table.load_full()
    }
}

/// The slots of all route configurations that come by name (RDS), shared by listeners.
#[derive(Debug, Default)]
pub struct RouteSlots {
    slots: Mutex<HashMap<Name, Arc<RouteSlot>>>,
}

impl RouteSlots {
    /// The slot of that name, made when it is asked for first.
    #[must_use]
    pub fn slot(&self, name: &Name) -> Arc<RouteSlot> {
        Arc::clone(self.slots.lock().entry(Arc::clone(name)).or_insert_with(|| RouteSlot::new(Arc::clone(name))))
    }

    /// Forgets slots that nobody else holds.
    pub fn prune(&self) {
        self.slots.lock().retain(|_, slot| Arc::strong_count(slot) > 1);
    }

    /// All slots, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<RouteSlot>> {
        let mut slots: Vec<_> = self.slots.lock().values().cloned().collect();
        slots.sort_by(|a, b| a.name.cmp(&b.name));
        slots
    }
}
