//! A listener with the filters that came put in their places.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Discovery, Extension, Filter};
use crate::Name;
use crate::http::HttpConnectionManager;
use crate::listener::{FilterChain, Listener, NetworkFilter};
use crate::source::ConfigSource;

/// One configuration that a listener, or another configuration, asks for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'l> {
    pub name: &'l Name,
    pub source: &'l ConfigSource,
    /// Something holds if it does not come in time.
    pub has_default: bool,
    /// ... and already before.
    pub at_once: bool,
    types: &'l [Arc<str>],
}

impl Asked<'_> {
    /// Why the configuration cannot be used, if it is the one that is asked for.
    #[must_use]
    pub fn misfit(&self, extension: &Extension) -> Option<Unresolved> {
        let fits = *self.name != extension.name || self.types.contains(&extension.type_name);
        (!fits).then(|| Unresolved::misfit(extension, self.types))
    }
}

impl<'l, T> From<&'l Discovery<T>> for Asked<'l> {
    fn from(discovery: &'l Discovery<T>) -> Self {
        let Discovery { name, source, default, at_once, types } = discovery;
        Self { name, source, has_default: default.is_some(), at_once: *at_once, types }
    }
}

/// Which defaults hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defaults {
    /// Those that need no waiting: `apply_default_config_without_warming`.
    AtOnce,
    /// All of them: the time to wait is over.
    All,
}

/// Why a listener cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    #[error("no configuration came for the filters {}", .0.join(", "))]
    Awaited(Vec<Name>),
    #[error("the configuration {name:?} is a {came}, and type_urls of its filter has only {}", .expected.join(", "))]
    Type { name: Name, came: Arc<str>, expected: Vec<Arc<str>> },
}

impl Unresolved {
    fn misfit(extension: &Extension, expected: &[Arc<str>]) -> Self {
        let (name, came) = (Arc::clone(&extension.name), Arc::clone(&extension.type_name));
        Self::Type { name, came, expected: expected.to_vec() }
    }
}

impl NetworkFilter {
    /// The configurations that it asks for by name.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked<'_>> {
        match self {
            Self::Discovered(discovery) => {
                let inner = discovery.default.as_ref().map(Self::asked).unwrap_or_default();
                [Asked::from(&**discovery)].into_iter().chain(inner).collect()
            }
            Self::Http(manager) => manager.router_discovery.iter().map(|discovery| Asked::from(&**discovery)).collect(),
            Self::Tcp(_) | Self::Tunnel(_) => Vec::new(),
        }
    }

    /// What serves connections in the end, as far as the configuration at hand says: itself, or its default.
    #[must_use]
    pub fn known(&self) -> Option<&Self> {
        match self {
            Self::Discovered(discovery) => discovery.default.as_ref(),
            Self::Http(_) | Self::Tcp(_) | Self::Tunnel(_) => Some(self),
        }
    }
}

impl Listener {
    /// Every filter chain, the default one last.
    pub fn chains(&self) -> impl Iterator<Item = &Arc<FilterChain>> {
        self.filter_chains.iter().chain(&self.default_filter_chain)
    }

    /// The configurations that its filters ask for by name.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked<'_>> {
        self.chains().flat_map(|chain| chain.filter.asked()).collect()
    }

    /// The listener with what came in the places of its [`Discovery`]s; itself if there are none.
    ///
    /// # Errors
    /// Something has not come and nothing stands in for it, or it is of a type that the filter does not allow.
    pub fn resolve(
        self: &Arc<Self>,
        extensions: &HashMap<Name, Arc<Extension>>,
        defaults: Defaults,
    ) -> Result<Arc<Self>, Unresolved> {
        if self.asked().is_empty() {
            return Ok(Arc::clone(self));
        }
        let mut resolution = Resolution { extensions, defaults, awaited: Vec::new() };
        let mut chains = Vec::with_capacity(self.filter_chains.len());
        for chain in &self.filter_chains {
            chains.push(resolution.chain(chain)?);
        }
        let default = self.default_filter_chain.as_ref().map(|chain| resolution.chain(chain)).transpose()?;
        if !resolution.awaited.is_empty() {
            return Err(Unresolved::Awaited(resolution.awaited));
        }
        Ok(Arc::new(Self { filter_chains: chains, default_filter_chain: default, ..Self::clone(self) }))
    }
}

struct Resolution<'e> {
    extensions: &'e HashMap<Name, Arc<Extension>>,
    defaults: Defaults,
    awaited: Vec<Name>,
}

impl Resolution<'_> {
    fn chain(&mut self, chain: &Arc<FilterChain>) -> Result<Arc<FilterChain>, Unresolved> {
        if chain.filter.asked().is_empty() {
            return Ok(Arc::clone(chain));
        }
        let filter = self.filter(&chain.filter)?;
        Ok(Arc::new(FilterChain { filter, asked: Some(Arc::clone(chain)), ..FilterChain::clone(chain) }))
    }

    /// What is awaited stays as it is, and is noted.
    fn filter(&mut self, filter: &NetworkFilter) -> Result<NetworkFilter, Unresolved> {
        match filter {
            NetworkFilter::Discovered(discovery) => {
                let of = |filter: &Filter| match filter {
                    Filter::Network(filter) => Some(filter.clone()),
                    Filter::Router(_) => None,
                };
                match self.find(discovery, of)? {
                    // One that came asks for no further network filter: those are never nested.
                    Some(found) => self.filter(&found),
                    None => Ok(filter.clone()),
                }
            }
            NetworkFilter::Http(manager) => self.manager(manager).map(NetworkFilter::Http),
            NetworkFilter::Tcp(_) | NetworkFilter::Tunnel(_) => Ok(filter.clone()),
        }
    }

    fn manager(&mut self, manager: &Arc<HttpConnectionManager>) -> Result<Arc<HttpConnectionManager>, Unresolved> {
        let Some(discovery) = &manager.router_discovery else { return Ok(Arc::clone(manager)) };
        let of = |filter: &Filter| match filter {
            Filter::Router(options) => Some(options.clone()),
            Filter::Network(_) => None,
        };
        let Some(router) = self.find(discovery, of)? else { return Ok(Arc::clone(manager)) };
        Ok(Arc::new(HttpConnectionManager { router, ..HttpConnectionManager::clone(manager) }))
    }

    fn find<T: Clone>(
        &mut self,
        discovery: &Discovery<T>,
        of: impl FnOnce(&Filter) -> Option<T>,
    ) -> Result<Option<T>, Unresolved> {
        let Discovery { name, types, default, at_once, .. } = discovery;
        if let Some(extension) = self.extensions.get(name) {
            let found = of(&extension.filter).filter(|_| types.contains(&extension.type_name));
            return found.map(Some).ok_or_else(|| Unresolved::misfit(extension, types));
        }
        let stands_in = default.as_ref().filter(|_| *at_once || self.defaults == Defaults::All);
        if stands_in.is_none() {
            self.awaited.push(Arc::clone(name));
        }
        Ok(stands_in.cloned())
    }
}
