//! What is counted about the control plane, under Envoy's names.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use culvert_model::Name;
use culvert_runtime::telemetry::{Registry, Sample, ScopePath, Value};
use parking_lot::Mutex;

use crate::apply::Kind;
use crate::config::Configuration;

/// Counters of all subscriptions. Written by any task of the control runtime.
#[derive(Debug)]
pub(crate) struct Metrics {
    connected: AtomicU64,
    /// Of those, to servers that are not the first of their list.
    fallen_back: AtomicU64,
    ignored: AtomicU64,
    /// Who sent the latest response, in its own words.
    identifier: Mutex<String>,
    /// Of what is subscribed to as a whole.
    kinds: [Subscription; KINDS.len()],
    /// Of what is subscribed to by name.
    resources: Mutex<Resources>,
    configuration: Configuration,
}

/// By name, also of some that nothing refers to any more.
#[derive(Debug, Default)]
struct Resources {
    by_name: HashMap<(Kind, Name), Subscription>,
    /// How many were left when the others were last forgotten.
    swept: usize,
}

#[derive(Debug, Default)]
struct Subscription {
    attempt: AtomicU64,
    success: AtomicU64,
    rejected: AtomicU64,
    failure: AtomicU64,
    init_fetch_timeout: AtomicU64,
}

/// What became of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A request was sent.
    Attempt,
    Success,
    Rejected,
    /// The stream or the file failed.
    Failure,
    InitFetchTimeout,
}

impl Metrics {
    /// Counters that `registry` shows.
    pub(crate) fn new(registry: &Registry, configuration: Configuration) -> Arc<Self> {
        let metrics = Arc::new(Self {
            connected: AtomicU64::default(),
            fallen_back: AtomicU64::default(),
            ignored: AtomicU64::default(),
            identifier: Mutex::default(),
            kinds: Default::default(),
            resources: Mutex::default(),
            configuration,
        });
        let shown = Arc::clone(&metrics);
        registry.add_source(move |samples| shown.samples(samples));
        metrics
    }

    /// A stream was opened to the server of this number.
    pub(crate) fn connected(&self, server: usize) {
        self.connected.fetch_add(1, Ordering::Relaxed);
        self.fallen_back.fetch_add(u64::from(server > 0), Ordering::Relaxed);
    }

    /// A stream that was opened to the server of this number is gone.
    pub(crate) fn disconnected(&self, server: usize) {
        self.connected.fetch_sub(1, Ordering::Relaxed);
        self.fallen_back.fetch_sub(u64::from(server > 0), Ordering::Relaxed);
    }

    /// A response of a type that was never asked for.
    pub(crate) fn ignored(&self) {
        self.ignored.fetch_add(1, Ordering::Relaxed);
    }

    /// A response came from a control plane that calls itself so.
    pub(crate) fn heard_from(&self, identifier: &str) {
        let mut known = self.identifier.lock();
        if *known != identifier {
            tracing::info!(identifier, "responses come from this control plane now");
            identifier.clone_into(&mut known);
        }
    }

    pub(crate) fn count(&self, kind: Kind, outcome: Outcome) {
        if let Some(subscription) = self.kinds.get(kind as usize) {
            subscription.count(outcome);
        }
    }

    /// Counts for one resource that is subscribed to by its name.
    pub(crate) fn count_for(&self, kind: Kind, name: &Name, outcome: Outcome) {
        if matches!(kind, Kind::Endpoints | Kind::Routes | Kind::Secret | Kind::Extension) {
            let mut resources = self.resources.lock();
            if resources.by_name.len() > 2 * resources.swept + 64 {
                resources.forget_others(&self.configuration.scopes());
            }
            resources.by_name.entry((kind, Arc::clone(name))).or_insert_with(Subscription::asked).count(outcome);
        }
    }

    /// Where what is in use comes from. The age is that of the cache as long as anything of it is in use.
    fn origins(&self, samples: &mut Vec<Sample>) {
        let (live, cached) = self.configuration.origins();
        for (source, resources) in [("live", live), ("cache", cached)] {
            let path = ScopePath::process("control_plane").with_inner("config_source", "config_source", source);
            samples.push(Sample::gauge(path, "resources", u64::try_from(resources).unwrap_or(u64::MAX)));
        }
        let age = self.configuration.cache_age().unwrap_or_default().as_secs();
        samples.push(Sample::gauge(ScopePath::process("control_plane"), "cache_age_seconds", age));
    }

    fn samples(&self, samples: &mut Vec<Sample>) {
        let connected = u64::from(self.connected.load(Ordering::Relaxed) > 0);
        samples.push(Sample::gauge(ScopePath::process("control_plane"), "connected_state", connected));
        let fallen_back = u64::from(self.fallen_back.load(Ordering::Relaxed) > 0);
        samples.push(Sample::gauge(ScopePath::process("control_plane"), "fallback_active", fallen_back));
        let ignored = self.ignored.load(Ordering::Relaxed);
        samples.push(Sample::counter(ScopePath::process("control_plane"), "unrequested_responses", ignored));
        let identifier = Value::Text(self.identifier.lock().clone());
        let path = ScopePath::process("control_plane");
        samples.push(Sample { path, name: "identifier".into(), value: identifier });
        self.origins(samples);
        let held = u64::try_from(self.configuration.held_deletions()).unwrap_or(u64::MAX);
        samples.push(Sample::gauge(ScopePath::process("control_plane"), "deletions_held_back", held));
        for (kind, subscription) in KINDS.iter().zip(&self.kinds) {
            subscription.samples(&ScopePath::process(kind), samples);
        }
        let scopes = self.configuration.scopes();
        let mut resources = self.resources.lock();
        resources.forget_others(&scopes);
        for (kind, name, path) in &scopes {
            let subscription = resources.by_name.entry((*kind, Arc::clone(name))).or_insert_with(Subscription::asked);
            subscription.samples(path, samples);
        }
    }
}

impl Resources {
    /// Forgets all but those that are referred to.
    fn forget_others(&mut self, scopes: &[(Kind, Name, ScopePath)]) {
        let referred: HashSet<(Kind, &Name)> = scopes.iter().map(|(kind, name, _)| (*kind, name)).collect();
        self.by_name.retain(|(kind, name), _| referred.contains(&(*kind, name)));
        self.swept = self.by_name.len();
    }
}

impl Subscription {
    /// Envoy: that it is asked for is the first attempt, and each answer is another one.
    fn asked() -> Self {
        Self { attempt: AtomicU64::new(1), ..Self::default() }
    }

    fn count(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Attempt => &self.attempt,
            Outcome::Success => &self.success,
            Outcome::Rejected => &self.rejected,
            Outcome::Failure => &self.failure,
            Outcome::InitFetchTimeout => &self.init_fetch_timeout,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn samples(&self, path: &ScopePath, samples: &mut Vec<Sample>) {
        let mut add = |name: &'static str, counter: &AtomicU64| {
            samples.push(Sample::counter(path.clone(), name, counter.load(Ordering::Relaxed)));
        };
        add("update_attempt", &self.attempt);
        add("update_success", &self.success);
        add("update_rejected", &self.rejected);
        add("update_failure", &self.failure);
        add("init_fetch_timeout", &self.init_fetch_timeout);
    }
}

/// In the order of [`Kind`]. Secrets, assignments, routes and filters' configurations are counted one by one, as Envoy does, and here together.
const KINDS: [&str; 11] = [
    "sds",
    "cluster_manager.cds",
    "eds",
    "rds",
    "listener_manager.lds",
    "culvert.tunnel_agents",
    "culvert.tunnel_policies",
    "ecds",
    "rtds",
    "srds",
    "vhds",
];
