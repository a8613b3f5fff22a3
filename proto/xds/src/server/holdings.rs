//! What a node has of one type, mostly told by a set that it shares with other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::Name;
use crate::resource::{Resource, Version};
use crate::snapshot::TypeSet;

/// What is remembered of a resource by its name.
pub(crate) trait Remembered: Clone {
    /// Of a resource that a set lists.
    fn of(resource: &Arc<Resource>) -> &Self;
    fn version(&self) -> Version;
}

impl Remembered for Arc<Resource> {
    fn of(resource: &Arc<Resource>) -> &Self {
        resource
    }

    fn version(&self) -> Version {
        Resource::version(self)
    }
}

impl Remembered for Version {
    fn of(resource: &Arc<Resource>) -> &Self {
        resource.version_ref()
    }

    fn version(&self) -> Version {
        *self
    }
}

/// A map by name: **what a set lists, but for the differences**. A thousand nodes that have the same thousand resources
/// cost one set and no entry each.
#[derive(Debug)]
pub(crate) struct Holdings<V> {
    base: Option<Arc<TypeSet>>,
    /// What differs from the base; `None`: there is nothing of this name.
    differences: BTreeMap<Name, Option<V>>,
}

impl<V> Default for Holdings<V> {
    fn default() -> Self {
        Self { base: None, differences: BTreeMap::new() }
    }
}

impl<V: Remembered> Holdings<V> {
    /// All that a set lists.
    pub(crate) fn all_of(set: &Arc<TypeSet>) -> Self {
        Self { base: Some(Arc::clone(set)), differences: BTreeMap::new() }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&V> {
        match self.differences.get(name) {
            Some(own) => own.as_ref(),
            None => self.listed(name).map(V::of),
        }
    }

    /// The name itself, if there is something of it.
    pub(crate) fn name(&self, name: &str) -> Option<&Name> {
        match self.differences.get_key_value(name) {
            Some((name, own)) => own.is_some().then_some(name),
            None => self.listed(name).map(|resource| resource.name()),
        }
    }

    pub(crate) fn insert(&mut self, name: Name, value: V) {
        if self.listed(&name).is_some_and(|listed| listed.version() == value.version()) {
            self.differences.remove(&name);
        } else {
            self.differences.insert(name, Some(value));
        }
    }

    /// Whether there was something.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        let known = self.get(name).is_some();
        match self.listed(name).map(|resource| Arc::clone(resource.name())) {
            Some(name) => self.differences.insert(name, None),
            None => self.differences.remove(name),
        };
        known
    }

    /// In no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Name, &V)> {
        let listed = self.base.iter().flat_map(|base| base.resources());
        let alike = listed.filter(|resource| !self.differences.contains_key(resource.name()));
        let own = self.differences.iter().filter_map(|(name, own)| Some((name, own.as_ref()?)));
        alike.map(|resource| (resource.name(), V::of(resource))).chain(own)
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&str, &V) -> bool) {
        let kept = self.iter().filter(|(name, value)| keep(name, value));
        self.differences = kept.map(|(name, value)| (Arc::clone(name), Some(value.clone()))).collect();
        self.base = None;
    }

    /// Says the same by what differs from `set`, if that is shorter. `news`: so many entries are new since the last time. Costs
    /// what is new, or changed between the sets, as long as `set` knows that.
    pub(crate) fn rebase(&mut self, set: &Arc<TypeSet>, news: usize) {
        let changed = match &self.base {
            Some(base) if Arc::ptr_eq(base, set) => return,
            Some(base) => set.changed_since(base),
            None if news * 2 < set.len() => return,
            None => None,
        };
        let differs =
            |name: &Name, own: Option<&V>| own.map(V::version) != set.get_listed(name).map(|listed| listed.version());
        let entry = |name: &Name| {
            let own = self.get(name);
            differs(name, own).then(|| (Arc::clone(name), own.cloned()))
        };
        if let Some(changed) = changed {
            let told_by_base = changed.iter().filter(|name| !self.differences.contains_key(*name));
            let new: Vec<_> = told_by_base.filter_map(entry).collect();
            self.differences.retain(|name, own| differs(name, own.as_ref()));
            self.differences.extend(new);
        } else {
            let own = self.iter().map(|(name, _)| name);
            let names: BTreeSet<&Name> = set.resources().map(|resource| resource.name()).chain(own).collect();
            self.differences = names.into_iter().filter_map(entry).collect();
        }
        self.base = Some(Arc::clone(set));
        if self.differences.len() * 2 > set.len() {
            self.retain(|_, _| true);
        } else if self.differences.is_empty() {
            // An empty map may hold memory.
            self.differences = BTreeMap::new();
        }
    }

    fn listed(&self, name: &str) -> Option<&Arc<Resource>> {
        self.base.as_ref()?.get_listed(name)
    }
}

#[cfg(test)]
mod tests {
    use culvert_api::type_url;
    use proptest::prelude::*;

    use super::*;
    use crate::Snapshot;
    use crate::snapshot::SnapshotBuilder;

    fn resource(name: u8, content: u8) -> Arc<Resource> {
        Arc::new(Resource::new(&type_url::CLUSTER.into(), format!("{name}"), &[content]))
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u8, u8),
        Remove(u8),
        Keep(u8),
        /// The set changes so, and the holdings are told by it.
        Rebase(Vec<(u8, u8)>, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let name = 0u8..12;
        prop_oneof![
            4 => (name.clone(), 0u8..3).prop_map(|(name, content)| Step::Insert(name, content)),
            2 => name.clone().prop_map(Step::Remove),
            1 => name.clone().prop_map(Step::Keep),
            3 => (prop::collection::vec((name, 0u8..3), 0..12), 0usize..12)
                .prop_map(|(content, news)| Step::Rebase(content, news)),
        ]
    }

    proptest! {
        /// However it is told, it is the same map.
        #[test]
        fn holdings_are_a_map_whatever_set_they_are_told_by(steps in prop::collection::vec(step(), 0..40)) {
            let (mut holdings, mut map) = (Holdings::<Arc<Resource>>::default(), BTreeMap::new());
            let mut snapshot = Snapshot::default();
            for step in steps {
                match step {
                    Step::Insert(name, content) => {
                        let one = resource(name, content);
                        map.insert(Arc::clone(one.name()), one.version());
                        holdings.insert(Arc::clone(one.name()), one);
                    }
                    Step::Remove(name) => {
                        let name = name.to_string();
                        prop_assert_eq!(holdings.remove(&name), map.remove(name.as_str()).is_some());
                    }
                    Step::Keep(up_to) => {
                        let keep = |name: &str| name.parse::<u8>().is_ok_and(|name| name < up_to);
                        holdings.retain(|name, _| keep(name));
                        map.retain(|name, _| keep(name));
                    }
                    Step::Rebase(content, news) => {
                        let mut next: SnapshotBuilder = snapshot.successor();
                        for (name, content) in content {
                            next.insert(resource(name, content));
                        }
                        snapshot = next.build();
                        if let Some(set) = snapshot.of_type(type_url::CLUSTER) {
                            holdings.rebase(set, news);
                        }
                    }
                }
                let told: BTreeMap<_, _> =
                    holdings.iter().map(|(name, resource)| (Arc::clone(name), resource.version())).collect();
                prop_assert_eq!(&told, &map);
                for name in (0u8..12).map(|name| name.to_string()) {
                    let version = map.get(name.as_str()).copied();
                    prop_assert_eq!(holdings.get(&name).map(|resource| resource.version()), version);
                    prop_assert_eq!(holdings.name(&name).map(|name| &**name), version.map(|_| name.as_str()));
                }
            }
        }
    }

    #[test]
    fn who_has_what_a_set_lists_has_no_entries_of_its_own() {
        let build = |before: &Snapshot, changed: u8| {
            let mut next = before.successor();
            for name in 0..100 {
                next.insert(resource(name, if name == 7 { changed } else { 0 }));
            }
            next.build()
        };
        let first = build(&Snapshot::default(), 0);
        let set = first.of_type(type_url::CLUSTER).unwrap();
        let mut holdings = Holdings::<Version>::default();
        for one in set.resources() {
            holdings.insert(Arc::clone(one.name()), one.version());
        }
        holdings.rebase(set, 100);
        assert_eq!(holdings.differences.len(), 0, "it has all of it");
        let second = build(&first, 1);
        let set = second.of_type(type_url::CLUSTER).unwrap();
        holdings.rebase(set, 0);
        assert_eq!(holdings.differences.len(), 1, "it has the first content of one");
        let now = set.get_listed("7").unwrap();
        holdings.insert(Arc::clone(now.name()), now.version());
        assert_eq!(holdings.differences.len(), 0, "it has all of it again");
    }
}
