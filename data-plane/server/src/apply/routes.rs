//! Route tables: of what comes by RDS, with the virtual hosts that come for it by VHDS, and the scopes that lead to them.
//!
//! Virtual hosts and scopes come one by one, and a table is compiled as a whole: **what a push changes of them is compiled
//! once, at its end.**

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use culvert_model::Name;
use culvert_model::route::{RouteConfiguration, VirtualHost};
use culvert_model::scope::{Scope, ScopeRoutes};
use culvert_proxy::{RouteSlot, RouteTable, ScopeTable};

use super::applier::Applier;
use super::{Applied, ApplyError, Change, Kind};

/// Everything that tables are compiled from.
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// Keeps the slots of route configurations whose listeners are still to come.
    by_name: HashMap<Name, InForce>,
    /// Virtual hosts that came, by the route configuration that they are of.
    hosts: HashMap<Name, BTreeMap<Name, Arc<VirtualHost>>>,
    scopes: BTreeMap<Name, (Arc<Scope>, Arc<RouteSlot>)>,
    /// Route configurations of which virtual hosts have changed.
    outdated: BTreeSet<Name>,
    /// Scopes have changed.
    rescoped: bool,
}

#[derive(Debug)]
struct InForce {
    /// As it came.
    config: Arc<RouteConfiguration>,
    /// Kept, also where nobody uses it yet.
    _slot: Arc<RouteSlot>,
}

impl Routes {
    /// The configuration with the virtual hosts that came for it.
    fn whole(&self, config: &Arc<RouteConfiguration>) -> Arc<RouteConfiguration> {
        let hosts = self.hosts.get(&config.name).filter(|hosts| !hosts.is_empty() && config.vhds.is_some());
        let Some(hosts) = hosts else { return Arc::clone(config) };
        let mut whole = RouteConfiguration::clone(config);
        // Envoy: one that comes by VHDS takes the place of one of its name.
        whole.virtual_hosts.retain(|host| !hosts.contains_key(&host.name));
        whole.virtual_hosts.extend(hosts.values().map(|host| VirtualHost::clone(host)));
        Arc::new(whole)
    }
}

/// The route configuration of a virtual host of this name.
fn owner(name: &str) -> Option<Name> {
    name.rsplit_once('/').map(|(routes, _)| routes.into()).filter(|routes: &Name| !routes.is_empty())
}

impl Applier {
    pub(super) fn set_routes(&mut self, config: Arc<RouteConfiguration>) -> Result<Applied, ApplyError> {
        let name = Arc::clone(&config.name);
        let whole = self.routes.whole(&config);
        let table = RouteTable::compile(whole, &self.process.clusters, &self.process.shares)?;
        let slot = self.process.routes.slot(&name);
        // The table before is freed here and not on a worker, if no request holds it.
        drop(slot.publish(table));
        self.routes.outdated.remove(&name);
        self.routes.by_name.insert(name, InForce { config, _slot: slot });
        Ok(Applied::Active)
    }

    pub(super) fn remove_routes(&mut self, name: &Name) {
        self.routes.by_name.remove(name);
        self.process.routes.prune();
    }

    pub(super) fn set_virtual_host(&mut self, host: Arc<VirtualHost>) -> Result<Applied, ApplyError> {
        let owner = owner(&host.name).ok_or(ApplyError::NoRoutes)?;
        self.routes.hosts.entry(Arc::clone(&owner)).or_default().insert(Arc::clone(&host.name), host);
        self.routes.outdated.insert(owner);
        Ok(Applied::Active)
    }

    pub(super) fn remove_virtual_host(&mut self, name: &Name) {
        let Some(owner) = owner(name) else { return };
        if let Some(hosts) = self.routes.hosts.get_mut(&owner) {
            hosts.remove(name);
            if hosts.is_empty() {
                self.routes.hosts.remove(&owner);
            }
            self.routes.outdated.insert(owner);
        }
    }

    pub(super) fn set_scope(&mut self, scope: Arc<Scope>) -> Result<Applied, ApplyError> {
        let slot = match &scope.routes {
            ScopeRoutes::Named(name) => self.process.routes.slot(name),
            ScopeRoutes::Inline(routes) => {
                let table = RouteTable::compile(Arc::clone(routes), &self.process.clusters, &self.process.shares)?;
                let slot = RouteSlot::new(Arc::clone(&routes.name));
                drop(slot.publish(table));
                slot
            }
        };
        self.routes.scopes.insert(Arc::clone(&scope.name), (scope, slot));
        self.routes.rescoped = true;
        Ok(Applied::Active)
    }

    pub(super) fn remove_scope(&mut self, name: &Name) {
        self.routes.rescoped |= self.routes.scopes.remove(name).is_some();
    }

    /// Compiles what changes of virtual hosts and scopes have left to be compiled.
    pub(super) async fn complete_routes(&mut self) {
        for name in std::mem::take(&mut self.routes.outdated) {
            let Some(config) = self.routes.by_name.get(&name).map(|routes| Arc::clone(&routes.config)) else {
                continue;
            };
            if let Err(error) = self.set_routes(config) {
                tracing::error!(routes = %name, %error, "cannot take its virtual hosts into use; it stays as it was");
            }
        }
        if std::mem::take(&mut self.routes.rescoped) {
            self.process.scopes.publish(ScopeTable::compile(self.routes.scopes.values().cloned()));
            self.advance_all().await;
        }
    }

    /// Whether the keys of scopes would stay distinct; one answer for each scope among the changes, by its name.
    pub(super) fn rehearse_scopes(&self, changes: &[Change]) -> HashMap<Name, ApplyError> {
        let changed = changes.iter().map(Change::target).filter(|(kind, _)| *kind == Kind::Scope);
        let changed: BTreeSet<Name> = changed.map(|(_, name)| name).collect();
        if changed.is_empty() {
            return HashMap::new();
        }
        let staying =
            self.routes.scopes.values().map(|(scope, _)| scope).filter(|scope| !changed.contains(&scope.name));
        let mut keys: HashMap<&[Arc<str>], &Name> = staying.map(|scope| (&*scope.key, &scope.name)).collect();
        let mut conflicts = HashMap::new();
        for change in changes {
            let Change::Set(culvert_model::Resource::Scope(scope)) = change else { continue };
            match keys.get(&*scope.key) {
                Some(other) => {
                    conflicts.insert(Arc::clone(&scope.name), ApplyError::ScopeKey(Name::clone(other)));
                }
                None => drop(keys.insert(&scope.key, &scope.name)),
            }
        }
        conflicts
    }

    /// Whether the domains of the virtual hosts of each route configuration would stay distinct; as
    /// [`Self::rehearse_scopes`].
    pub(super) fn rehearse_hosts(&self, changes: &[Change]) -> HashMap<Name, ApplyError> {
        let changed = changes.iter().map(Change::target).filter(|(kind, _)| *kind == Kind::VirtualHost);
        let changed: BTreeSet<Name> = changed.map(|(_, name)| name).collect();
        let owners: BTreeSet<Name> = changed.iter().filter_map(|name| owner(name)).collect();
        let mut domains: HashMap<(&Name, &Arc<str>), &Name> = HashMap::new();
        for owner in &owners {
            let fixed = self.routes.by_name.get(owner).into_iter().flat_map(|routes| &routes.config.virtual_hosts);
            let came = self.routes.hosts.get(owner).into_iter().flat_map(BTreeMap::values).map(|host| &**host);
            for host in fixed.chain(came).filter(|host| !changed.contains(&host.name)) {
                domains.extend(host.domains.iter().map(|domain| ((owner, domain), &host.name)));
            }
        }
        let mut conflicts = HashMap::new();
        for change in changes {
            let Change::Set(culvert_model::Resource::VirtualHost(host)) = change else { continue };
            let Some(owner) = owner(&host.name).and_then(|owner| owners.get(&owner)) else {
                conflicts.insert(Arc::clone(&host.name), ApplyError::NoRoutes);
                continue;
            };
            let taken = host.domains.iter().find_map(|domain| Some((domain, domains.get(&(owner, domain))?)));
            if let Some((domain, other)) = taken {
                let error = ApplyError::Domain { domain: Arc::clone(domain), other: Name::clone(other) };
                conflicts.insert(Arc::clone(&host.name), error);
            } else {
                domains.extend(host.domains.iter().map(|domain| ((owner, domain), &host.name)));
            }
        }
        conflicts
    }
}
