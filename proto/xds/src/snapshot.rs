//! What a node (or many nodes with equal sets) should hold: immutable, shared, and knowing what changed.

mod bridge;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use culvert_api::envoy::config::endpoint::v3::ClusterLoadAssignment;
use culvert_api::type_url;
use prost::Message;

use crate::resource::{Resource, TypeUrl, Version, put_field};
use crate::{Name, xdstp};

use bridge::Bridges;
pub(crate) use bridge::{Bridge, is_referred_to, is_removed_last, refers};

/// Everything that is served to a node, by type. Immutable; nodes with equal sets share one.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    types: BTreeMap<TypeUrl, Arc<TypeSet>>,
    /// Ways from earlier snapshots to this one, made when first needed and shared by all nodes that go them.
    bridges: Bridges,
}

impl Snapshot {
    /// Starts a snapshot without a predecessor.
    #[must_use]
    pub fn builder() -> SnapshotBuilder {
        SnapshotBuilder::default()
    }

    /// Starts the successor of this snapshot: types whose content stays equal keep their identity, and the others
    /// know what changed, so that a push costs what changed and not what there is.
    #[must_use]
    pub fn successor(&self) -> SnapshotBuilder {
        SnapshotBuilder { previous: self.clone(), ..SnapshotBuilder::default() }
    }

    /// The resources of a type; `None` where there never was one.
    #[must_use]
    pub fn of_type(&self, type_url: &str) -> Option<&Arc<TypeSet>> {
        self.types.get(type_url)
    }

    /// Every type that has, or had, resources.
    pub fn types(&self) -> impl Iterator<Item = (&TypeUrl, &Arc<TypeSet>)> {
        self.types.iter()
    }

    /// A version of the whole, for people and for comparing replicas.
    #[must_use]
    pub fn version(&self) -> Version {
        Version::of_set(self.types.values().flat_map(|set| set.resources.values().map(|resource| &**resource)))
    }
}

/// The resources of one type.
#[derive(Debug, Default)]
pub struct TypeSet {
    resources: BTreeMap<Name, Arc<Resource>>,
    /// Served to who asks by name, never to a wildcard: the empty assignments of clusters that have none, and resources under
    /// their aliases.
    stand_ins: BTreeMap<Name, Arc<Resource>>,
    /// Those of both that the node should no longer have, but may keep while something refers to them.
    pub(crate) retained: BTreeSet<Name>,
    /// What there is and the node may not have.
    denied: Arc<BTreeSet<Name>>,
    /// Nothing of it is news: a node is shown what it accepted of it, if it asks.
    pub(crate) frozen: bool,
    version: Option<Version>,
    /// What changed since each of the latest predecessors, newest first.
    history: Vec<Changes>,
    /// `resources` as the repeated field of a `DiscoveryResponse`, encoded when first needed.
    encoded: OnceLock<Bytes>,
    /// What its history is looked up by, found when first needed.
    identity: OnceLock<Arc<Identity>>,
    /// The shortest TTL of all resources, found when first needed.
    shortest_ttl: OnceLock<Option<Duration>>,
}

/// Names whose content differs between the set that holds this and an earlier one.
#[derive(Debug, Clone)]
struct Changes {
    since: Arc<Identity>,
    names: Arc<BTreeSet<Name>>,
}

/// What a set holds, stand-ins included, and what of it is only kept.
type Identity = (Option<Version>, Version, BTreeSet<Name>, Arc<BTreeSet<Name>>);

impl TypeSet {
    /// How many predecessors' changes a set knows. A stream that is further behind compares whole sets.
    const HISTORY: usize = 12;

    /// What a wildcard subscription gets, in name order.
    pub fn resources(&self) -> impl ExactSizeIterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    /// What a subscription by name gets.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.resources.get(name).or_else(|| self.stand_ins.get(name))
    }

    /// The name itself where it is known, so that it is shared, or else a copy.
    pub(crate) fn name(&self, name: &str) -> Name {
        let known = self.resources.get_key_value(name).or_else(|| self.stand_ins.get_key_value(name));
        known.map_or_else(|| Name::from(name), |(name, _)| Arc::clone(name))
    }

    /// What a wildcard subscription gets under this name.
    #[must_use]
    pub fn get_listed(&self, name: &str) -> Option<&Arc<Resource>> {
        self.resources.get(name)
    }

    /// Whether there is a resource of this name that the node may not have.
    #[must_use]
    pub fn is_denied(&self, name: &str) -> bool {
        self.denied.contains(name)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.resources.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// The hash over all names and versions.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version.unwrap_or_else(|| Version::of_set(std::iter::empty()))
    }

    /// The names whose content may differ from `earlier`; `None`: not known, look at all of them.
    pub(crate) fn changed_since(&self, earlier: &Self) -> Option<&BTreeSet<Name>> {
        let since = earlier.identity();
        self.history.iter().find(|changes| changes.since == *since).map(|changes| &*changes.names)
    }

    /// All of `resources` as field 2 of a `DiscoveryResponse`.
    pub(crate) fn encoded(&self) -> &Bytes {
        self.encoded.get_or_init(|| {
            let mut buf = BytesMut::new();
            for resource in self.resources.values() {
                put_field(&mut buf, 2, resource.any_wire());
            }
            buf.freeze()
        })
    }

    /// The shortest TTL of a resource; `None`: none has one.
    pub(crate) fn shortest_ttl(&self) -> Option<Duration> {
        *self.shortest_ttl.get_or_init(|| self.resources.values().filter_map(|resource| resource.ttl()).min())
    }

    /// The resources of a collection (xDS TP1), in name order.
    pub(crate) fn members<'a>(&'a self, glob: &'a str) -> impl Iterator<Item = &'a Arc<Resource>> {
        let prefix = xdstp::prefix_of_members(glob);
        let from = self.resources.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let named = from.take_while(move |(name, _)| name.starts_with(prefix));
        named.filter(move |(name, _)| xdstp::collection_of(name).as_deref() == Some(glob)).map(|(_, resource)| resource)
    }

    fn identity(&self) -> &Arc<Identity> {
        self.identity.get_or_init(|| {
            let stand_ins = Version::of_named(self.stand_ins.iter().map(|(name, resource)| (name, &**resource)));
            Arc::new((self.version, stand_ins, self.retained.clone(), Arc::clone(&self.denied)))
        })
    }

    /// The same content, but with the changes since `previous` and since its predecessors.
    fn follow(mut self, previous: &Self) -> Self {
        let mut names = BTreeSet::new();
        for name in previous.names().chain(self.names()) {
            if self.versions_of(name) != previous.versions_of(name) {
                names.insert(Arc::clone(name));
            }
        }
        let older = previous.history.iter().take(Self::HISTORY - 1).map(|changes| Changes {
            since: Arc::clone(&changes.since),
            names: Arc::new(changes.names.union(&names).cloned().collect()),
        });
        let newest = Changes { since: Arc::clone(previous.identity()), names: Arc::new(names.clone()) };
        self.history = std::iter::once(newest).chain(older).collect();
        self
    }

    /// What a wildcard subscription and what a subscription by name sees, and whether for good.
    fn versions_of(&self, name: &str) -> (Option<Version>, Option<Version>, bool, bool) {
        let listed = self.get_listed(name).map(|resource| resource.version());
        (listed, self.get(name).map(|resource| resource.version()), self.retained.contains(name), self.is_denied(name))
    }

    fn names(&self) -> impl Iterator<Item = &Name> {
        self.resources.keys().chain(self.stand_ins.keys()).chain(self.denied.iter())
    }
}

/// Collects the resources of a [`Snapshot`].
#[derive(Debug, Default)]
pub struct SnapshotBuilder {
    previous: Snapshot,
    types: BTreeMap<TypeUrl, BTreeMap<Name, Arc<Resource>>>,
    denied: BTreeMap<TypeUrl, BTreeSet<Name>>,
}

impl SnapshotBuilder {
    /// Adds a resource; the one that had its type and name before is returned.
    pub fn insert(&mut self, resource: Arc<Resource>) -> Option<Arc<Resource>> {
        let of_type = self.types.entry(Arc::clone(resource.type_url())).or_default();
        of_type.insert(Arc::clone(resource.name()), resource)
    }

    /// Says that there is a resource which the node may not have.
    pub fn deny(&mut self, type_url: TypeUrl, name: Name) {
        self.types.entry(Arc::clone(&type_url)).or_default();
        self.denied.entry(type_url).or_default().insert(name);
    }

    /// The finished snapshot. A type whose content equals the predecessor's is the predecessor's, by pointer.
    #[must_use]
    pub fn build(mut self) -> Snapshot {
        for type_url in self.previous.types.keys() {
            self.types.entry(Arc::clone(type_url)).or_default();
        }
        let mut stand_ins = self.stand_ins();
        if !stand_ins.is_empty() {
            self.types.entry(type_url::CLUSTER_LOAD_ASSIGNMENT.into()).or_default();
        }
        let mut types = BTreeMap::new();
        for (type_url, resources) in std::mem::take(&mut self.types) {
            let mut stand_ins = if &*type_url == type_url::CLUSTER_LOAD_ASSIGNMENT {
                std::mem::take(&mut stand_ins)
            } else {
                BTreeMap::new()
            };
            for resource in resources.values() {
                // A resource's own name comes before another one's alias.
                let aliases = resource.aliases().iter().filter(|alias| !resources.contains_key(*alias));
                stand_ins.extend(aliases.map(|alias| (Arc::clone(alias), Arc::clone(resource))));
            }
            let version = Some(Version::of_set(resources.values().map(|resource| &**resource)));
            let denied = Arc::new(self.denied.remove(&type_url).unwrap_or_default());
            let set = TypeSet { resources, stand_ins, version, denied, ..TypeSet::default() };
            let set = match self.previous.types.get(&type_url) {
                Some(previous) if previous.identity() == set.identity() => Arc::clone(previous),
                Some(previous) => Arc::new(set.follow(previous)),
                None => Arc::new(set),
            };
            types.insert(type_url, set);
        }
        Snapshot { types, bridges: Bridges::default() }
    }

    /// An empty assignment for every EDS name of a cluster that has none: Envoy withholds its acknowledgement of the
    /// clusters until every new one got an assignment, for `initial_fetch_timeout` (15 s) if one stays unanswered.
    fn stand_ins(&self) -> BTreeMap<Name, Arc<Resource>> {
        let type_url: TypeUrl = type_url::CLUSTER_LOAD_ASSIGNMENT.into();
        let assigned = self.types.get(&type_url);
        let clusters = self.types.get(type_url::CLUSTER).into_iter().flat_map(BTreeMap::values);
        let mut stand_ins = BTreeMap::new();
        for name in clusters.filter_map(|resource| resource.referred()) {
            if !assigned.is_some_and(|assigned| assigned.contains_key(name)) {
                let empty =
                    ClusterLoadAssignment { cluster_name: name.to_string(), ..ClusterLoadAssignment::default() };
                let resource = Arc::new(Resource::new(&type_url, Arc::clone(name), &empty.encode_to_vec()));
                stand_ins.insert(Arc::clone(resource.name()), resource);
            }
        }
        stand_ins
    }
}
