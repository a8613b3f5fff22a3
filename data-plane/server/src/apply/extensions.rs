//! Configurations of filters that come by name (ECDS), and the listeners that ask for them.
//!
//! A dynamic listener comes here when what it asks for has come, or when the time of its defaults has: the stage waits for
//! that. A static one is there from the beginning, and waits here. **A listener that lacks a filter does not serve**, and
//! one that serves goes on as it is.

use std::collections::HashMap;
use std::sync::Arc;

use culvert_model::Name;
use culvert_model::extension::{Defaults, Extension, Unresolved};
use culvert_model::listener::Listener;
use culvert_model::resource::Resource;
use culvert_proxy::ListenerSlot;
use tokio::time::Instant;

use super::applier::Applier;
use super::listeners::compile_for_check;
use super::{Applied, ApplyError};
use crate::overview::{ListenerView, Overview};

#[derive(Debug, Default)]
pub(super) struct Extensions {
    /// What came, by name.
    known: HashMap<Name, Arc<Extension>>,
    /// Listeners that ask for something, as configured.
    users: HashMap<Name, Arc<Listener>>,
    /// Static ones that cannot serve yet.
    lacking: HashMap<Name, Lacking>,
}

#[derive(Debug)]
struct Lacking {
    listener: Arc<Listener>,
    /// When its defaults hold. `None`: something has none, or has time without end.
    until: Option<Instant>,
}

impl Extensions {
    /// The listener with what came; from now on it is told of what comes.
    pub(super) fn resolve(&mut self, listener: &Arc<Listener>) -> Result<Arc<Listener>, Unresolved> {
        let resolved = listener.resolve(&self.known, Defaults::All)?;
        self.forget(&listener.name);
        if !listener.asked().is_empty() {
            self.users.insert(Arc::clone(&listener.name), Arc::clone(listener));
        }
        Ok(resolved)
    }

    /// The listener with what came. `None`: it has to wait, and there is nothing to say about it before.
    pub(super) fn try_resolve(&self, listener: &Arc<Listener>) -> Result<Option<Arc<Listener>>, Unresolved> {
        match listener.resolve(&self.known, Defaults::All) {
            Ok(resolved) => Ok(Some(resolved)),
            Err(Unresolved::Awaited(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn forget(&mut self, listener: &Name) {
        self.users.remove(listener);
        self.lacking.remove(listener);
    }

    pub(super) fn forget_all(&mut self) {
        self.users.clear();
        self.lacking.clear();
    }

    pub(super) fn remove(&mut self, name: &Name) {
        self.known.remove(name);
    }

    /// Returns when the defaults of a static listener hold; never, if none waits for that.
    pub(super) async fn due(&self) {
        match self.lacking.values().filter_map(|lacking| lacking.until).min() {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Static listeners that may serve now.
    fn complete(&self) -> Vec<Arc<Listener>> {
        let now = Instant::now();
        let complete = self.lacking.values().filter(|lacking| {
            let over = lacking.until.is_some_and(|until| until <= now);
            let defaults = if over { Defaults::All } else { Defaults::AtOnce };
            lacking.listener.resolve(&self.known, defaults).is_ok()
        });
        complete.map(|lacking| Arc::clone(&lacking.listener)).collect()
    }
}

impl Applier {
    /// Puts static listeners in force, but for those that lack the configuration of a filter: they wait for it.
    ///
    /// # Errors
    /// What could not be put in force, and why.
    pub(crate) async fn set_static(&mut self, listeners: &[Arc<Listener>]) -> Result<(), Vec<String>> {
        let (mut whole, mut lacking) = (Vec::new(), Vec::new());
        for listener in listeners {
            match listener.resolve(&self.extensions.known, Defaults::AtOnce) {
                Err(Unresolved::Awaited(names)) => lacking.push((listener, names)),
                Ok(_) | Err(Unresolved::Type { .. }) => whole.push(Resource::Listener(Arc::clone(listener))),
            }
        }
        self.set_all(whole.into_iter()).await?;
        for (listener, names) in lacking {
            let awaited = listener.asked().into_iter().filter(|asked| names.contains(asked.name));
            let times = awaited.map(|asked| {
                let time = asked.source.initial_fetch_timeout;
                Some(time).filter(|time| asked.has_default && !time.is_zero())
            });
            let longest = times.collect::<Option<Vec<_>>>().and_then(|times| times.into_iter().max());
            let until = longest.map(|time| Instant::now() + time);
            tracing::info!(listener = %listener.name, ?names, "waits for the configuration of its filters");
            let awaiting = names.iter().map(|name| format!("filter configuration {name}")).collect();
            let view = ListenerView { bound: None, active: false, awaiting };
            self.overview.listeners.lock().insert(Arc::clone(&listener.name), view);
            let listener = Arc::clone(listener);
            self.extensions.lacking.insert(Arc::clone(&listener.name), Lacking { listener, until });
        }
        Ok(())
    }

    /// Gives a configuration to whoever asks for it.
    pub(super) async fn set_extension(&mut self, extension: Arc<Extension>) -> Result<Applied, ApplyError> {
        self.rehearse_extension(&extension)?;
        self.extensions.known.insert(Arc::clone(&extension.name), extension);
        let users: Vec<Arc<Listener>> = self.extensions.users.values().cloned().collect();
        for listener in users {
            let in_force = self.listeners.newest(&listener.name);
            let changes = match listener.resolve(&self.extensions.known, Defaults::All) {
                Ok(resolved) => in_force.is_none_or(|in_force| *in_force != *resolved),
                // What came for one filter may ask for another one, which is on its way.
                Err(Unresolved::Awaited(_)) => false,
                Err(Unresolved::Type { .. }) => true,
            };
            if changes {
                self.set_user(listener).await;
            }
        }
        self.complete_listeners().await;
        Ok(Applied::Active)
    }

    /// Static listeners that lacked a configuration serve with what came, or with their defaults.
    pub(super) async fn complete_listeners(&mut self) {
        for listener in self.extensions.complete() {
            self.extensions.forget(&listener.name);
            self.set_user(listener).await;
        }
    }

    async fn set_user(&mut self, listener: Arc<Listener>) {
        let name = Arc::clone(&listener.name);
        match self.set_configured(listener).await {
            Ok(Applied::Active) => tracing::info!(listener = %name, "serves with what came for its filters"),
            Ok(Applied::Warming(awaited)) => tracing::info!(listener = %name, ?awaited, "waits"),
            Err(error) => {
                tracing::error!(listener = %name, %error, "cannot use what came for its filters; it stays as it was");
            }
        }
    }

    /// # Errors
    /// A listener that asks for the configuration could not use it.
    pub(super) fn rehearse_extension(&self, extension: &Arc<Extension>) -> Result<(), ApplyError> {
        let mut known = self.extensions.known.clone();
        known.insert(Arc::clone(&extension.name), Arc::clone(extension));
        let lacking = self.extensions.lacking.values().map(|lacking| &lacking.listener);
        for listener in self.extensions.users.values().chain(lacking) {
            let tried = match listener.resolve(&known, Defaults::All) {
                Ok(resolved) => self.compiles(&resolved),
                Err(Unresolved::Awaited(_)) => Ok(()),
                Err(error) => Err(error.into()),
            };
            tried
                .map_err(|error| ApplyError::User { listener: Arc::clone(&listener.name), source: Box::new(error) })?;
        }
        Ok(())
    }

    fn compiles(&self, listener: &Arc<Listener>) -> Result<(), ApplyError> {
        let slot = self.listeners.slot_in_place(listener);
        let slot =
            slot.unwrap_or_else(|| ListenerSlot::new(Arc::clone(&listener.name), listener.address, &self.process));
        compile_for_check(listener, &slot, &self.process, &Overview::default(), &self.secrets)
    }
}
