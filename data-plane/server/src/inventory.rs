//! What the process was given, as it was given: for `/config_dump` and for those who ask why something is not in force.
//!
//! Written by whoever receives configuration; **nothing is decided here**.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use culvert_api::Any;
use culvert_model::Name;
use parking_lot::Mutex;

/// Every dynamic resource that was received, by type URL and name. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inventory {
    types: Arc<Mutex<BTreeMap<String, BTreeMap<Name, Entry>>>>,
}

/// One resource. What few have is behind a pointer: there may be ten thousand.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entry {
    /// In force.
    pub active: Option<Given>,
    /// Accepted, and waits for what is named here.
    pub warming: Option<Box<(Given, Vec<String>)>>,
    /// The last one that was refused, while it is refused.
    pub refused: Option<Box<(Given, String)>>,
    /// What the control plane said in place of a resource: gRPC's code and its words.
    pub failed: Option<(i32, String)>,
}

impl Entry {
    /// Nothing is known but that the control plane cannot give it.
    pub(crate) fn is_failure(&self) -> bool {
        self.failed.is_some() && self.active.is_none() && self.warming.is_none() && self.refused.is_none()
    }
}

/// A resource as it came.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    pub version: Arc<str>,
    pub resource: Any,
    pub at: SystemTime,
    /// It came with a TTL.
    pub temporary: bool,
}

impl Given {
    /// A resource that came just now.
    #[must_use]
    pub(crate) fn now(version: impl Into<Arc<str>>, resource: Any) -> Self {
        Self { version: version.into(), resource, at: SystemTime::now(), temporary: false }
    }
}

impl Inventory {
    /// The resource is in force.
    pub(crate) fn active(&self, type_url: &str, name: &Name, given: Given) {
        self.change(type_url, name, |entry| *entry = Entry { active: Some(given), ..Entry::default() });
    }

    /// The resource was accepted and waits for something; what was in force stays.
    pub(crate) fn warming(&self, type_url: &str, name: &Name, given: Given, on: Vec<String>) {
        self.change(type_url, name, |entry| {
            entry.warming = Some(Box::new((given, on)));
            (entry.refused, entry.failed) = (None, None);
        });
    }

    /// The resource was refused; what was in force stays.
    pub(crate) fn refused(&self, type_url: &str, name: &Name, given: Given, reason: impl Into<String>) {
        let reason = reason.into();
        self.change(type_url, name, |entry| entry.refused = Some(Box::new((given, reason))));
    }

    /// The control plane cannot give the resource; what was in force stays. Of names of which nothing else is known only so
    /// many are kept: clients may have chosen them.
    pub(crate) fn failed(&self, type_url: &str, name: &Name, code: i32, message: &str) {
        let most = self.types.lock().get(type_url).is_some_and(|entries| {
            !entries.contains_key(name) && entries.values().filter(|entry| entry.is_failure()).count() >= MOST_FAILURES
        });
        if !most {
            self.change(type_url, name, |entry| entry.failed = Some((code, message.to_owned())));
        }
    }

    /// The control plane has no such resource any more; it may be in force for a while.
    pub(crate) fn withdrawn(&self, type_url: &str, name: &str) {
        if let Some(entry) = self.types.lock().get_mut(type_url).and_then(|entries| entries.get_mut(name)) {
            entry.refused = None;
        }
    }

    /// The resource is no longer in force. Why another content of it is refused is still worth knowing.
    pub(crate) fn out_of_force(&self, type_url: &str, name: &str) {
        if let Some(entries) = self.types.lock().get_mut(type_url)
            && let Some(entry) = entries.get_mut(name)
        {
            (entry.active, entry.warming) = (None, None);
            if entry.refused.is_none() {
                entries.remove(name);
            }
        }
    }

    /// The resource is gone.
    pub(crate) fn removed(&self, type_url: &str, name: &str) {
        if let Some(entries) = self.types.lock().get_mut(type_url) {
            entries.remove(name);
        }
    }

    /// Forgets what of a type is not worth knowing any more.
    pub(crate) fn retain(&self, type_url: &str, mut keep: impl FnMut(&Name, &Entry) -> bool) {
        if let Some(entries) = self.types.lock().get_mut(type_url) {
            entries.retain(|name, entry| keep(name, entry));
        }
    }

    /// The types of which anything is known.
    pub(crate) fn type_urls(&self) -> Vec<String> {
        self.types.lock().keys().cloned().collect()
    }

    /// All resources of a type, by name.
    #[must_use]
    pub(crate) fn entries(&self, type_url: &str) -> Vec<(Name, Entry)> {
        let types = self.types.lock();
        let entries = types.get(type_url).into_iter().flatten();
        entries.map(|(name, entry)| (Arc::clone(name), entry.clone())).collect()
    }

    /// Everything that waits, and for what: `Listener edge` for `Secret edge-cert`.
    #[must_use]
    pub(crate) fn waiting(&self) -> Vec<(String, Vec<String>)> {
        let types = self.types.lock();
        let entries = types.iter().flat_map(|(type_url, entries)| entries.iter().map(move |entry| (type_url, entry)));
        let waiting = entries.filter_map(|(type_url, (name, entry))| {
            let (_, on) = entry.warming.as_deref()?;
            Some((format!("{} {name}", culvert_api::type_url::short_name(type_url)), on.clone()))
        });
        waiting.collect()
    }

    fn change(&self, type_url: &str, name: &Name, change: impl FnOnce(&mut Entry)) {
        let mut types = self.types.lock();
        let entries = match types.get_mut(type_url) {
            Some(entries) => entries,
            None => types.entry(type_url.to_owned()).or_default(),
        };
        change(entries.entry(Arc::clone(name)).or_default());
    }
}

/// Names of one type that the control plane cannot give.
const MOST_FAILURES: usize = 1000;
