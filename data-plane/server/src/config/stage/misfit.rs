//! What is wrong with a resource only beside others.

use std::sync::Arc;

use culvert_model::Name;
use culvert_model::extension::Asked;
use culvert_model::listener::NetworkFilter;
use culvert_model::resource::Resource;
use culvert_model::source::{ConfigSource, ConfigSourceKind};

use super::Stage;
use crate::apply::Kind;
use crate::config::references::{self, ScopeSources};

impl Stage {
    /// Why `resource` cannot be used beside what is there. `scopes` are the sources that others of its response name, and
    /// then also its own.
    pub(crate) fn misfit(&self, resource: &Resource, scopes: &mut Option<ScopeSources>) -> Option<String> {
        self.unasked(resource)
            .or_else(|| self.unknown_cluster(resource))
            .or_else(|| self.needs_delta(resource))
            .or_else(|| self.other_scopes(resource, scopes))
    }

    /// Somebody who asks for the configuration of a filter cannot use it.
    fn unasked(&self, resource: &Resource) -> Option<String> {
        let Resource::Extension(extension) = resource else { return None };
        let candidates = self.slots.values().flat_map(|slot| slot.wanted.iter().chain(&slot.active));
        let misfit = |asked: Asked<'_>| asked.misfit(extension);
        let misfit = candidates.flat_map(|candidate| references::asked(&candidate.resource)).find_map(misfit);
        misfit.map(|misfit| misfit.to_string())
    }

    /// Routes that want it checked (`validate_clusters`) lead to a cluster that is not there.
    fn unknown_cluster(&self, resource: &Resource) -> Option<String> {
        let Resource::Routes(routes) = resource else { return None };
        let is_there = |name: &Name| {
            let slot = self.slots.get(&(Kind::Cluster, Arc::clone(name)));
            slot.is_some_and(|slot| slot.wanted.is_some())
        };
        let mut named = references::clusters(resource).into_iter().filter(|_| routes.validate_clusters);
        let unknown = named.find(|name| !is_there(name))?;
        Some(format!(
            "validate_clusters: no cluster is named {unknown}; send the cluster first, or leave validate_clusters out"
        ))
    }

    /// Single names are asked for on a stream that cannot say of one that it does not exist.
    fn needs_delta(&self, resource: &Resource) -> Option<String> {
        let needs = |source: &ConfigSource| source.kind == ConfigSourceKind::Ads && !self.ads_is_delta;
        let reason =
            |field: &str| format!("{field}: is ads, and ads_config is not DELTA_GRPC: single names are asked for");
        if let Resource::Routes(routes) = resource {
            return routes.vhds.as_ref().filter(|vhds| needs(vhds)).map(|_| reason("vhds.config_source"));
        }
        let Resource::Listener(listener) = resource else { return None };
        let managers = listener.chains().filter_map(|chain| match chain.filter.known() {
            Some(NetworkFilter::Http(manager)) => Some(manager),
            _ => None,
        });
        let mut clusters = managers.filter_map(|manager| manager.on_demand.as_ref()?.clusters.as_ref());
        clusters.find(|clusters| needs(&clusters.source)).map(|_| reason("http_filters.odcds.source"))
    }

    /// Scopes are one set for all listeners.
    fn other_scopes(&self, resource: &Resource, scopes: &mut Option<ScopeSources>) -> Option<String> {
        for own in references::scope_sources(resource) {
            let known = scopes.get_or_insert_with(|| {
                let name = references::key_of(resource).1;
                self.scope_sources(Some(&name)).unwrap_or_else(|| own.clone())
            });
            if *known != own {
                return Some(
                    "scoped_routes: names other sources than another one does; all take their scopes from one".into(),
                );
            }
        }
        None
    }
}
