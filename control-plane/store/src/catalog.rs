//! What each node gets, shared between nodes that get the same.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use culvert_xds::resource::TypeUrl;
use culvert_xds::{Name, NodeIdentity, Snapshot};

use crate::directory::{Conflict, Directory, Matches, Resolved};

/// What one node gets.
#[derive(Debug, Default)]
pub struct Placement {
    pub snapshot: Arc<Snapshot>,
    /// What it gets as it was before, or not at all, because two files tie for it.
    pub conflicts: Vec<Conflict>,
}

/// Addresses of resources, and what is denied.
type Content = (Vec<usize>, BTreeSet<(TypeUrl, Name)>);

/// Says what a node gets of a directory. **Nodes that get equal sets get one snapshot.**
#[derive(Debug, Default)]
pub struct Catalog {
    directory: Arc<Directory>,
    /// By matching selectors: the common way, without looking at resources.
    by_matches: HashMap<Matches, Arc<Placement>>,
    /// By the addresses of the resources, which the snapshots keep alive, and by what is denied.
    by_content: HashMap<Content, Arc<Snapshot>>,
}

impl Catalog {
    /// A catalog of a directory; what was shared under another one is forgotten.
    #[must_use]
    pub fn new(directory: Arc<Directory>) -> Self {
        Self { directory, ..Self::default() }
    }

    #[must_use]
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// Takes a directory that [gives the same](Directory::gives_the_same_as), from other places: who has something keeps it.
    pub fn restate(&mut self, directory: Arc<Directory>) {
        self.directory = directory;
        // By indices of the former one.
        self.by_matches.clear();
    }

    /// Snapshots that differ, of the nodes asked for until now.
    #[must_use]
    pub fn snapshots(&self) -> usize {
        self.by_content.len()
    }

    /// What `node` gets. `before` is what it has: the new snapshot knows what changed since, and a resource that two files
    /// tie for stays as it was.
    pub fn place(&mut self, node: &NodeIdentity, before: &Snapshot) -> Arc<Placement> {
        let matches = self.directory.matches(node);
        if let Some(placement) = self.by_matches.get(&matches) {
            return Arc::clone(placement);
        }
        let had = |type_url: &str, name: &str| before.of_type(type_url)?.get_listed(name).cloned();
        let resolved = self.directory.resolve(&matches, had);
        let shared = resolved.conflicts.is_empty();
        let placement = Arc::new(self.snapshot_of(resolved, before));
        // With a conflict it depends on what the node had before.
        if shared {
            self.by_matches.insert(matches, Arc::clone(&placement));
        }
        placement
    }

    fn snapshot_of(&mut self, resolved: Resolved, before: &Snapshot) -> Placement {
        // A resource that did not change is the same allocation, here and in every later directory.
        let key = (resolved.resources.iter().map(|one| Arc::as_ptr(one).addr()).collect(), resolved.denied.clone());
        let snapshot = self.by_content.entry(key).or_insert_with(|| {
            let mut builder = before.successor();
            for resource in resolved.resources {
                builder.insert(resource);
            }
            for (type_url, name) in resolved.denied {
                builder.deny(type_url, name);
            }
            Arc::new(builder.build())
        });
        Placement { snapshot: Arc::clone(snapshot), conflicts: resolved.conflicts }
    }
}
