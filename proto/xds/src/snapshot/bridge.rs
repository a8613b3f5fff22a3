//! The way from what a node is served to what it should hold, in steps of which none breaks what refers to something.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock, Weak};

use culvert_api::type_url;

use super::{Snapshot, TypeSet};
use crate::Name;
use crate::resource::{Resource, TypeUrl, Version};

/// What is referred to by other types: added before them and removed after them.
pub(crate) fn is_referred_to(type_url: &str) -> bool {
    matches!(
        type_url,
        type_url::SECRET | type_url::CLUSTER | type_url::CLUSTER_LOAD_ASSIGNMENT | type_url::LOCALITY_ENDPOINT
    )
}

/// What leads requests to clusters, and decides over them by what it refers to.
pub(crate) fn refers(type_url: &str) -> bool {
    matches!(
        type_url,
        type_url::LISTENER
            | type_url::SCOPED_ROUTE_CONFIGURATION
            | type_url::ROUTE_CONFIGURATION
            | type_url::VIRTUAL_HOST
            | type_url::EXTENSION_CONFIG
    )
}

/// What a change takes away only in its last step.
pub(crate) fn is_removed_last(type_url: &str) -> bool {
    is_referred_to(type_url) || type_url == type_url::ROUTE_CONFIGURATION
}

/// Three snapshots, one after the other: everything new that is referred to beside what was there; what refers to it;
/// and without what nothing refers to any more. **The last has the content of the snapshot that it leads to.**
#[derive(Debug)]
pub(crate) struct Bridge {
    pub(crate) added: Arc<Snapshot>,
    pub(crate) switched: Arc<Snapshot>,
    pub(crate) reached: Arc<Snapshot>,
    /// Assignments of clusters that are new: their clusters are of no use before them.
    pub(crate) new_assignments: BTreeSet<Name>,
    /// What others refer to changes, or loses something, and so does what refers to it: the steps matter.
    pub(crate) staged: bool,
    /// See [`Bridge::unmarked`].
    unmarked: OnceLock<[Arc<Snapshot>; 2]>,
}

impl Bridge {
    fn new(from: &Snapshot, to: &Snapshot) -> Self {
        let mut added = BTreeMap::new();
        let mut switched = BTreeMap::new();
        let mut reached = BTreeMap::new();
        let (mut referred_change, mut referring_change, mut retained) = (false, false, false);
        let nothing = Arc::new(TypeSet::default());
        let types: BTreeSet<&TypeUrl> = from.types.keys().chain(to.types.keys()).collect();
        for type_url in types {
            let old = from.types.get(type_url).unwrap_or(&nothing);
            let new = to.types.get(type_url).unwrap_or(&nothing);
            let both = if Arc::ptr_eq(old, new) { None } else { old.with(new) };
            let last = both.as_ref().map_or_else(|| Arc::clone(new), |both| Arc::new(new.copy().follow(both)));
            let both = both.unwrap_or_else(|| Arc::clone(new));
            let changes = old.identity() != new.identity();
            let frozen = if changes { Arc::new(Self::frozen(old)) } else { Arc::clone(new) };
            retained |= !Arc::ptr_eq(&both, new);
            let mut put = |first: &Arc<TypeSet>, second: &Arc<TypeSet>, third: &Arc<TypeSet>| {
                for (types, set) in [(&mut added, first), (&mut switched, second), (&mut reached, third)] {
                    types.insert(Arc::clone(type_url), Arc::clone(set));
                }
            };
            if is_referred_to(type_url) {
                referred_change |= changes;
                put(&both, &both, &last);
            } else if &**type_url == type_url::ROUTE_CONFIGURATION {
                referring_change |= changes;
                put(&frozen, &both, &last);
            } else {
                // Two listeners of one address (or scopes of one key) must not meet: no both.
                referring_change |= changes;
                put(&frozen, new, new);
            }
        }
        let staged = referring_change && (referred_change || retained);
        let snapshot = |types| Arc::new(Snapshot { types, bridges: Bridges::default() });
        Self {
            new_assignments: new_assignments(from, to),
            added: snapshot(added),
            switched: snapshot(switched),
            reached: snapshot(reached),
            staged,
            unmarked: OnceLock::new(),
        }
    }

    /// A way that leads nowhere: all is there but the removals.
    pub(crate) fn over(target: &Arc<Snapshot>) -> Self {
        Self {
            added: Arc::clone(target),
            switched: Arc::clone(target),
            reached: Arc::clone(target),
            new_assignments: BTreeSet::new(),
            staged: true,
            unmarked: OnceLock::new(),
        }
    }

    /// See [`Bridge::over`].
    pub(crate) fn leads_nowhere(&self) -> bool {
        Arc::ptr_eq(&self.added, &self.reached)
    }

    /// `added` and `switched` for who answers nothing: without marks of what is new to it and what it only keeps.
    pub(crate) fn unmarked(&self) -> &[Arc<Snapshot>; 2] {
        self.unmarked.get_or_init(|| [self.added.unmarked(), self.switched.unmarked()])
    }

    fn frozen(set: &TypeSet) -> TypeSet {
        TypeSet { frozen: true, retained: set.retained.clone(), history: set.history.clone(), ..set.copy() }
    }
}

/// The assignments of the clusters that `from` does not have.
fn new_assignments(from: &Snapshot, to: &Snapshot) -> BTreeSet<Name> {
    let target = to;
    let Some(to) = target.of_type(type_url::CLUSTER) else { return BTreeSet::new() };
    let from = from.of_type(type_url::CLUSTER);
    let changed = from.and_then(|from| to.changed_since(from));
    let is_new = |name: &str| from.is_none_or(|from| from.get_listed(name).is_none());
    let names = match changed {
        Some(changed) => changed.iter().filter_map(|name| to.get_listed(name)).collect::<Vec<_>>(),
        None => to.resources().collect(),
    };
    let new = names.into_iter().filter(|resource| is_new(resource.name()));
    new.filter_map(|cluster| target.assignment_to_come(cluster)).cloned().collect()
}

impl TypeSet {
    /// `new`, and beside it what only `self` has; `None` if there is no such thing.
    fn with(&self, new: &Self) -> Option<Arc<Self>> {
        let only = |name: &Name| new.get(name).is_none();
        let mut resources = self.resources.iter().filter(|(name, _)| only(name)).peekable();
        let mut stand_ins = self.stand_ins.iter().filter(|(name, _)| only(name)).peekable();
        if resources.peek().is_none() && stand_ins.peek().is_none() {
            return None;
        }
        let served = self.resources.keys().chain(self.stand_ins.keys());
        let retained = served.filter(|name| only(name)).cloned().collect();
        let entry = |(name, resource): (&Name, &Arc<_>)| (Arc::clone(name), Arc::clone(resource));
        let resources: BTreeMap<_, _> = new.resources.iter().chain(resources).map(entry).collect();
        let stand_ins = new.stand_ins.iter().chain(stand_ins).map(entry).collect();
        let version = Some(Version::of_set(resources.values().map(|resource| &**resource)));
        let denied = Arc::clone(&new.denied);
        let both = Self { resources, stand_ins, retained, version, denied, ..Self::default() };
        Some(Arc::new(both.follow(self)))
    }

    /// The same content, without a past.
    fn copy(&self) -> Self {
        Self {
            resources: self.resources.clone(),
            stand_ins: self.stand_ins.clone(),
            version: self.version,
            denied: Arc::clone(&self.denied),
            ..Self::default()
        }
    }
}

impl Snapshot {
    /// The assignment that a node which takes this cluster has to ask for here. (Where the cluster names a source of its own, and
    /// there is none here, it is another control plane's.)
    pub(crate) fn assignment_to_come<'a>(&self, cluster: &'a Resource) -> Option<&'a Name> {
        let name = cluster.referred()?;
        let is_here =
            || self.of_type(type_url::CLUSTER_LOAD_ASSIGNMENT).is_some_and(|set| set.get_listed(name).is_some());
        (!cluster.may_refer_elsewhere() || is_here()).then_some(name)
    }

    fn unmarked(&self) -> Arc<Self> {
        let unmarked = |set: &Arc<TypeSet>| {
            let marked = set.frozen || !set.retained.is_empty();
            if marked { Arc::new(set.copy()) } else { Arc::clone(set) }
        };
        let types = self.types.iter().map(|(type_url, set)| (Arc::clone(type_url), unmarked(set)));
        Arc::new(Self { types: types.collect(), bridges: Bridges::default() })
    }

    /// The way from `from` to here.
    pub(crate) fn bridge_from(&self, from: &Arc<Self>) -> Arc<Bridge> {
        for slot in self.bridges.0.iter() {
            let (start, bridge) = slot.get_or_init(|| (Arc::downgrade(from), Arc::new(Bridge::new(from, self))));
            if std::ptr::eq(start.as_ptr(), Arc::as_ptr(from)) {
                return Arc::clone(bridge);
            }
        }
        // More than four ways lead here at once: nodes that each were in the middle of something else.
        Arc::new(Bridge::new(from, self))
    }
}

/// The first bridges that were asked for, with where each begins.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bridges(Arc<[OnceLock<Begun>; 4]>);

/// A weak start keeps its address from being used again.
type Begun = (Weak<Snapshot>, Arc<Bridge>);
