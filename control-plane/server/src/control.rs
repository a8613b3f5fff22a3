//! What is in force, and what everybody here shares.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_store::{Catalog, Directory, Finding, Load, Options, Placement, Selector, load};
use culvert_xds::{NodeIdentity, Snapshot};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use crate::access::Access;
use crate::args::Args;
use crate::canary;
use crate::identity::Identities;
use crate::inventory::Inventory;
use crate::loads::Loads;
use crate::metrics::Metrics;
use crate::nodes::{NodeStatus, Nodes};
use crate::polling::PollingNodes;
use crate::wildcards::NamedOnly;

/// Former contents that are remembered.
const MAX_HISTORY: usize = 20;

/// The process's state. One per process.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) folder: PathBuf,
    pub(crate) options: Options,
    /// Held by whoever changes what is in force, from first to last: the directory's reader, operators, the canary's end.
    changing: Mutex<()>,
    catalog: Mutex<Catalog>,
    canary: Mutex<Option<Canary>>,
    /// Nodes that get a change before all others.
    canary_limit: usize,
    canary_selector: Option<Selector>,
    /// Counts what was put in force. Only [`Self::begin`] changes it, which has every discovery stream look again.
    generation: watch::Sender<u64>,
    latest: Mutex<Arc<Latest>>,
    /// What was in force, the present last.
    history: Mutex<VecDeque<Past>>,
    pub(crate) nodes: Nodes,
    pub(crate) polling: PollingNodes,
    pub(crate) metrics: Metrics,
    /// The tunnels that servers report.
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) loads: Loads,
    /// Whether clients prove who they are: then secrets leave only through TLS.
    pub(crate) secured: bool,
    /// Which certificate may be which node.
    pub(crate) identities: Identities,
    pub(crate) access: Access,
    pub(crate) named_only: NamedOnly,
    /// Nodes that are sent their first response at once.
    pub(crate) first_pushes: Arc<Semaphore>,
    /// For how long a node may wait to be one of them.
    pub(crate) admission_wait: Duration,
    /// For how long a stream may take nothing more of a response.
    pub(crate) send_timeout: Duration,
    /// Whether the process takes work: from the start until it drains.
    ready: watch::Sender<bool>,
}

/// What came of reading the directory last, and when.
#[derive(Debug)]
pub(crate) struct Latest {
    pub(crate) at: SystemTime,
    pub(crate) accepted: bool,
    pub(crate) errors: Vec<Finding>,
    pub(crate) warnings: Vec<Finding>,
    pub(crate) files: usize,
    /// When what is in force was read.
    pub(crate) in_force_since: SystemTime,
    /// What is in force is not what was read last, but what was this generation.
    pub(crate) rolled_back_to: Option<u64>,
}

/// Something that was put in force.
#[derive(Debug, Clone)]
pub(crate) struct Past {
    pub(crate) generation: u64,
    pub(crate) at: SystemTime,
    pub(crate) directory: Arc<Directory>,
    /// It was put in force again, and was this generation before.
    pub(crate) again: Option<u64>,
    /// Only some nodes had it, and why they no longer have it.
    pub(crate) taken_back: Option<String>,
    /// Who put it in force if that was not the directory.
    pub(crate) reason: Option<String>,
}

/// What some nodes have before all get it.
#[derive(Debug)]
struct Canary {
    catalog: Catalog,
    generation: u64,
    /// By id.
    nodes: BTreeSet<String>,
}

impl Control {
    /// Starts with a directory that was read and is good.
    pub(crate) fn new(args: &Args, access: Access, first: Load) -> Self {
        let now = SystemTime::now();
        let none = Latest {
            at: now,
            accepted: false,
            errors: Vec::new(),
            warnings: Vec::new(),
            files: 0,
            in_force_since: now,
            rolled_back_to: None,
        };
        let named_only = NamedOnly(args.no_legacy_wildcard.clone());
        let control = Self {
            folder: args.config.clone(),
            options: args.options(),
            changing: Mutex::default(),
            catalog: Mutex::default(),
            canary: Mutex::default(),
            canary_limit: args.canary_nodes,
            canary_selector: args.canary_selector.clone(),
            generation: watch::Sender::new(0),
            latest: Mutex::new(Arc::new(none)),
            history: Mutex::default(),
            nodes: Nodes::new(SystemTime::now()),
            polling: PollingNodes::new(Duration::from_secs(args.rest_refresh), named_only.clone()),
            metrics: Metrics::default(),
            inventory: Arc::default(),
            loads: Loads::default(),
            secured: args.tls_cert.is_some(),
            identities: Identities::new(&args.client_identity),
            access,
            named_only,
            first_pushes: Arc::new(Semaphore::new(first_pushes())),
            admission_wait: Duration::from_secs(args.admission_wait),
            send_timeout: Duration::from_secs(args.send_timeout),
            ready: watch::Sender::new(true),
        };
        control.apply(first);
        control
    }

    /// Reads the directory and puts it in force if it is good. Takes as long as that takes: not on a thread that serves.
    pub(crate) fn reload(&self) {
        let canary = self.canary.lock().as_ref().map(|canary| Arc::clone(canary.catalog.directory()));
        let before = canary.unwrap_or_else(|| self.directory());
        self.apply(load(&self.folder, self.options, &before));
    }

    fn apply(&self, load: Load) {
        let _one_at_a_time = self.changing.lock();
        let accepted = load.directory.is_some();
        self.count(&load);
        for warning in &load.warnings {
            tracing::warn!("{warning}");
        }
        for error in &load.errors {
            tracing::error!("{error}");
        }
        let Load { directory, errors, warnings, files } = load;
        let now = SystemTime::now();
        let before = self.latest();
        let in_force_since = match &directory {
            Some(directory) if !self.is_in_force(directory) => now,
            _ => before.in_force_since,
        };
        let rolled_back_to = if accepted { None } else { before.rolled_back_to };
        // Before it is in force: who sees the new content finds what came of reading it.
        *self.latest.lock() =
            Arc::new(Latest { at: now, accepted, errors, warnings, files, in_force_since, rolled_back_to });
        if let Some(directory) = directory {
            self.metrics.resources.set(directory.len());
            self.take(directory);
        } else {
            tracing::error!("{} is refused; what was good last stays", self.folder.display());
        }
    }

    /// Puts a directory in force, or gives it to some nodes first, if it says anything new.
    fn take(&self, directory: Arc<Directory>) {
        if let Some(canary) = self.canary.lock().as_mut()
            && canary.catalog.directory().gives_the_same_as(&directory)
        {
            tracing::info!(
                generation = canary.generation,
                "nothing in the directory differs from what some nodes have first"
            );
            return canary.catalog.restate(directory);
        }
        if self.is_in_force(&directory) {
            tracing::info!("nothing in {} differs from what is in force", self.folder.display());
            self.catalog.lock().restate(directory);
            self.take_back(None, "the directory says again what is in force");
        } else if !self.try_on_canary(&directory) {
            tracing::info!(resources = directory.len(), "{} is in force", self.folder.display());
            self.put_in_force(directory, None, None);
        }
    }

    fn is_in_force(&self, directory: &Directory) -> bool {
        self.generation() > 0 && self.directory().gives_the_same_as(directory)
    }

    fn put_in_force(&self, directory: Arc<Directory>, again: Option<u64>, reason: Option<String>) {
        let generation = self.generation() + 1;
        self.remember(Past {
            generation,
            at: SystemTime::now(),
            directory: Arc::clone(&directory),
            again,
            taken_back: None,
            reason,
        });
        *self.catalog.lock() = Catalog::new(directory);
        self.begin(generation);
    }

    /// Says that there is another content: after it is there, so that who sees the new number finds it.
    fn begin(&self, generation: u64) {
        self.generation.send_replace(generation);
        self.nodes.look_again();
    }

    fn remember(&self, past: Past) {
        let mut history = self.history.lock();
        while history.len() >= MAX_HISTORY {
            history.pop_front();
        }
        history.push_back(past);
    }

    /// Gives a directory to some nodes that have all of what is in force. False: there are none, or none are wanted.
    fn try_on_canary(&self, directory: &Arc<Directory>) -> bool {
        let now = self.generation();
        if (self.canary_limit == 0 && self.canary_selector.is_none()) || now == 0 {
            return false;
        }
        let mut nodes = self.canary_nodes();
        if nodes.is_empty() {
            nodes = self.choose(now);
        }
        if nodes.is_empty() {
            tracing::warn!("no connected node has all of what is in force: the change goes to all at once");
            return false;
        }
        let generation = now + 1;
        tracing::info!(generation, ?nodes, "a change goes to some nodes first");
        let canary = Canary { catalog: Catalog::new(Arc::clone(directory)), generation, nodes };
        let before = self.canary.lock().replace(canary);
        if let Some(before) = before {
            self.remember_canary(&before, format!("superseded by generation {generation}"));
        }
        self.begin(generation);
        true
    }

    /// The nodes that get a change first: of those that have all of what is in force, over streams or by polling.
    fn choose(&self, now: u64) -> BTreeSet<String> {
        let known = self.node_status();
        let connected = || known.iter().filter(|node| node.connected);
        let behind: BTreeSet<&str> =
            connected().filter(|node| !canary::has_all(node, now)).map(|node| node.key.id.as_str()).collect();
        let selected = connected()
            .filter(|node| self.canary_selector.as_ref().is_none_or(|selector| selector.matches(&node.identity)))
            .filter(|node| !behind.contains(node.key.id.as_str()));
        let ids: BTreeSet<String> = selected.map(|node| node.key.id.clone()).collect();
        let limit = if self.canary_limit == 0 { usize::MAX } else { self.canary_limit };
        ids.into_iter().take(limit).collect()
    }

    /// Remembers what became of something that only some nodes had.
    fn remember_canary(&self, canary: &Canary, taken_back: String) {
        tracing::error!(generation = canary.generation, reason = taken_back, "a change does not go to all nodes");
        self.remember(Past {
            generation: canary.generation,
            at: SystemTime::now(),
            directory: Arc::clone(canary.catalog.directory()),
            again: None,
            taken_back: Some(taken_back),
            reason: None,
        });
    }

    /// The number of what some nodes have before all others, and which nodes.
    pub(crate) fn canary(&self) -> Option<(u64, BTreeSet<String>)> {
        self.canary.lock().as_ref().map(|canary| (canary.generation, canary.nodes.clone()))
    }

    /// Which nodes have something before all others.
    pub(crate) fn canary_nodes(&self) -> BTreeSet<String> {
        self.canary.lock().as_ref().map(|canary| canary.nodes.clone()).unwrap_or_default()
    }

    /// Gives what some nodes have, if it is that generation or none is named, to all; or, with a reason, takes it back from them.
    /// False: there is no such thing.
    pub(crate) fn end_canary(&self, of: Option<u64>, taken_back: Option<&str>) -> bool {
        let _one_at_a_time = self.changing.lock();
        if let Some(reason) = taken_back {
            return self.take_back(of, reason);
        }
        let Some(canary) = self.take_canary(of) else { return false };
        tracing::info!(generation = canary.generation, "some nodes accepted the change: it goes to all");
        self.put_in_force(Arc::clone(canary.catalog.directory()), None, None);
        true
    }

    /// Has some nodes go back to what all others have. False: there is no such thing.
    fn take_back(&self, of: Option<u64>, reason: &str) -> bool {
        let Some(canary) = self.take_canary(of) else { return false };
        self.metrics.canaries_taken_back.add();
        self.remember_canary(&canary, reason.to_owned());
        self.begin(self.generation() + 1);
        true
    }

    fn take_canary(&self, of: Option<u64>) -> Option<Canary> {
        self.canary.lock().take_if(|canary| of.is_none_or(|of| of == canary.generation))
    }

    /// What was in force, the present last.
    pub(crate) fn history(&self) -> Vec<Past> {
        self.history.lock().iter().cloned().collect()
    }

    /// Puts in force what was a former generation, until the directory is read again. `None`: it is not known any more.
    pub(crate) fn roll_back(&self, to: u64, reason: Option<String>) -> Option<u64> {
        let _one_at_a_time = self.changing.lock();
        let past = self.history.lock().iter().find(|past| past.generation == to).cloned()?;
        let before = self.latest();
        *self.latest.lock() = Arc::new(Latest {
            in_force_since: SystemTime::now(),
            rolled_back_to: Some(to),
            errors: before.errors.clone(),
            warnings: before.warnings.clone(),
            ..*before
        });
        if let Some(canary) = self.take_canary(None) {
            self.metrics.canaries_taken_back.add();
            let by = reason.as_deref().unwrap_or("an operator");
            self.remember_canary(&canary, format!("{by} went back to generation {to}"));
        }
        self.put_in_force(past.directory, Some(to), reason);
        tracing::warn!(generation = to, "rolled back, until the directory changes");
        Some(self.generation())
    }

    fn count(&self, load: &Load) {
        let outcome = if load.directory.is_some() { &self.metrics.loads_accepted } else { &self.metrics.loads_refused };
        outcome.add();
        self.metrics.load_errors.set(load.errors.len());
        self.metrics.load_warnings.set(load.warnings.len());
        self.metrics.files.set(load.files);
    }

    /// What is in force.
    pub(crate) fn directory(&self) -> Arc<Directory> {
        Arc::clone(self.catalog.lock().directory())
    }

    /// Every node that has, or had lately, a stream, and every one that polls.
    pub(crate) fn node_status(&self) -> Vec<NodeStatus> {
        let mut all = self.nodes.status();
        all.extend(self.polling.status());
        all
    }

    /// The same of the nodes with these ids alone.
    pub(crate) fn status_of(&self, ids: &BTreeSet<String>) -> Vec<NodeStatus> {
        let sessions = self.nodes.all().into_iter().filter(|session| ids.contains(session.id()));
        let streams = sessions.map(|session| session.status());
        streams.chain(self.polling.status_of(|key| ids.contains(&key.id))).collect()
    }

    pub(crate) fn latest(&self) -> Arc<Latest> {
        Arc::clone(&self.latest.lock())
    }

    /// Snapshots that differ, of the nodes that were placed in this generation.
    pub(crate) fn snapshots(&self) -> usize {
        self.catalog.lock().snapshots()
    }

    /// What a node gets now.
    pub(crate) fn place(&self, node: &NodeIdentity, before: &Snapshot) -> Arc<Placement> {
        if let Some(canary) = self.canary.lock().as_mut().filter(|canary| canary.nodes.contains(&node.id)) {
            return canary.catalog.place(node, before);
        }
        self.catalog.lock().place(node, before)
    }

    /// Changes whenever there is something new in force.
    pub(crate) fn generations(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// The number of what is in force.
    pub(crate) fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    pub(crate) fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Whether the process takes work, and every change of it.
    pub(crate) fn readiness(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// The process takes no more work.
    pub(crate) fn stop(&self) {
        self.ready.send_replace(false);
    }
}

/// As many as istiod fills up at a time.
fn first_pushes() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (15 + 5 * cores).min(100)
}
