//! What is in force, and what everybody here shares.

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

/// The process's state. One per process.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) folder: PathBuf,
    options: Options,
    catalog: Mutex<Catalog>,
    /// Counts what was put in force; streams look again when it changes.
    generation: watch::Sender<u64>,
    latest: Mutex<Arc<Latest>>,
    pub(crate) nodes: Nodes,
    pub(crate) metrics: Metrics,
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
        };
        let control = Self {
            folder: args.config.clone(),
            options: args.options(),
            catalog: Mutex::default(),
            generation: watch::Sender::new(0),
            latest: Mutex::new(Arc::new(none)),
            nodes: Nodes::default(),
            metrics: Metrics::default(),
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
        let in_force_since = if accepted { now } else { self.latest().in_force_since };
        let Load { directory, errors, warnings, files } = load;
        if let Some(directory) = directory {
            self.metrics.resources.set(directory.len());
            tracing::info!(resources = directory.len(), files, "{} is in force", self.folder.display());
            *self.catalog.lock() = Catalog::new(directory);
            // After the catalog: who sees the new number finds the new content.
            self.generation.send_modify(|generation| *generation += 1);
        } else {
            tracing::error!(errors = errors.len(), "{} is refused; what was good last stays", self.folder.display());
        }
        *self.latest.lock() = Arc::new(Latest { at: now, accepted, errors, warnings, files, in_force_since });
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
