//! What is in force, and what everybody here shares.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use culvert_store::{Catalog, Directory, Finding, Load, Options, Placement, load};
use culvert_xds::{NodeIdentity, Snapshot};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::args::Args;
use crate::identity::Identities;
use crate::metrics::Metrics;
use crate::nodes::Nodes;

/// Former contents that are remembered.
const MAX_HISTORY: usize = 20;

/// The process's state. One per process.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) folder: PathBuf,
    options: Options,
    catalog: Mutex<Catalog>,
    /// Counts what was put in force; streams look again when it changes.
    generation: watch::Sender<u64>,
    latest: Mutex<Arc<Latest>>,
    /// What was in force, the present last.
    history: Mutex<VecDeque<Past>>,
    pub(crate) nodes: Nodes,
    pub(crate) metrics: Metrics,
    /// Whether clients prove who they are: then secrets leave only through TLS.
    pub(crate) secured: bool,
    /// Which certificate may be which node.
    pub(crate) identities: Identities,
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
}

impl Control {
    /// Starts with a directory that was read and is good.
    pub(crate) fn new(args: &Args, first: Load) -> Self {
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
        let control = Self {
            folder: args.config.clone(),
            options: args.options(),
            catalog: Mutex::default(),
            generation: watch::Sender::new(0),
            latest: Mutex::new(Arc::new(none)),
            history: Mutex::default(),
            nodes: Nodes::default(),
            metrics: Metrics::default(),
            secured: args.tls_cert.is_some(),
            identities: Identities::new(&args.client_identity),
            ready: watch::Sender::new(true),
        };
        control.apply(first);
        control
    }

    /// Reads the directory and puts it in force if it is good. Takes as long as that takes: not on a thread that serves.
    pub(crate) fn reload(&self) {
        let before = self.directory();
        self.apply(load(&self.folder, self.options, &before));
    }

    fn apply(&self, load: Load) {
        let accepted = load.directory.is_some();
        self.count(&load);
        for warning in &load.warnings {
            tracing::warn!("{warning}");
        }
        for error in &load.errors {
            tracing::error!("{error}");
        }
        let now = SystemTime::now();
        let (in_force_since, rolled_back_to) =
            if accepted { (now, None) } else { (self.latest().in_force_since, self.latest().rolled_back_to) };
        let Load { directory, errors, warnings, files } = load;
        if let Some(directory) = directory {
            self.metrics.resources.set(directory.len());
            tracing::info!(resources = directory.len(), files, "{} is in force", self.folder.display());
            self.put_in_force(directory, None);
        } else {
            tracing::error!(errors = errors.len(), "{} is refused; what was good last stays", self.folder.display());
        }
        *self.latest.lock() =
            Arc::new(Latest { at: now, accepted, errors, warnings, files, in_force_since, rolled_back_to });
    }

    fn put_in_force(&self, directory: Arc<Directory>, again: Option<u64>) {
        let mut history = self.history.lock();
        while history.len() >= MAX_HISTORY {
            history.pop_front();
        }
        let generation = self.generation() + 1;
        let at = SystemTime::now();
        history.push_back(Past { generation, at, directory: Arc::clone(&directory), again });
        *self.catalog.lock() = Catalog::new(directory);
        // After the catalog: who sees the new number finds the new content.
        self.generation.send_replace(generation);
    }

    /// What was in force, the present last.
    pub(crate) fn history(&self) -> Vec<Past> {
        self.history.lock().iter().cloned().collect()
    }

    /// Puts in force what was a former generation, until the directory is read again. `None`: it is not known any more.
    pub(crate) fn roll_back(&self, to: u64) -> Option<u64> {
        let past = self.history.lock().iter().find(|past| past.generation == to).cloned()?;
        self.put_in_force(past.directory, Some(to));
        let mut latest = self.latest.lock();
        let before = Arc::clone(&latest);
        *latest = Arc::new(Latest {
            in_force_since: SystemTime::now(),
            rolled_back_to: Some(to),
            errors: before.errors.clone(),
            warnings: before.warnings.clone(),
            ..*before
        });
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

    pub(crate) fn latest(&self) -> Arc<Latest> {
        Arc::clone(&self.latest.lock())
    }

    /// Snapshots that differ, of the nodes that were placed in this generation.
    pub(crate) fn snapshots(&self) -> usize {
        self.catalog.lock().snapshots()
    }

    /// What a node gets now.
    pub(crate) fn place(&self, node: &NodeIdentity, before: &Snapshot) -> Arc<Placement> {
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
