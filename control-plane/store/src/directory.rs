//! A directory that is good as a whole: resources and the nodes they are for. Immutable.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use culvert_xds::resource::TypeUrl;
use culvert_xds::{Name, NodeIdentity, Resource};

use crate::access::Grant;
use crate::selector::{Rank, Selector};

/// A resource and the nodes that it is for.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) resource: Arc<Resource>,
    /// Index of its selector.
    pub(crate) selector: usize,
    /// `FILE:LINE:COLUMN`, for messages.
    pub(crate) origin: String,
}

/// Everything that a directory held when it was last good.
#[derive(Debug, Default)]
pub struct Directory {
    selectors: Vec<Selector>,
    placed: Vec<Placed>,
    /// Candidates of each resource, the most specific first.
    candidates: BTreeMap<(TypeUrl, Name), Vec<usize>>,
    /// Empty: every node may have what is placed on it.
    grants: Vec<Grant>,
    /// Files that hold nothing else.
    endpoint_files: BTreeSet<Arc<Path>>,
}

/// What decides what a node gets: nodes with equal matches get equal sets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Matches {
    /// Selectors, by index.
    selectors: Vec<usize>,
    /// Grants, by index.
    grants: Vec<usize>,
}

/// Two files give one node the same resource, and neither is more specific.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    pub type_url: TypeUrl,
    pub name: Name,
    /// `FILE:LINE:COLUMN` of each.
    pub origins: Vec<String>,
    /// Whether the node has the content that it had before; else it does not get the resource.
    pub kept: bool,
}

/// What one node gets.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// In order of type and name. Indices into the directory, or what the node had before.
    pub(crate) resources: Vec<Arc<Resource>>,
    pub(crate) conflicts: Vec<Conflict>,
    /// What is placed on the node and not granted to it.
    pub(crate) denied: BTreeSet<(TypeUrl, Name)>,
}

impl Directory {
    pub(crate) fn new(
        selectors: Vec<Selector>,
        placed: Vec<Placed>,
        grants: Vec<Grant>,
        endpoint_files: BTreeSet<Arc<Path>>,
    ) -> Self {
        let mut candidates: BTreeMap<(TypeUrl, Name), Vec<usize>> = BTreeMap::new();
        for (index, one) in placed.iter().enumerate() {
            let key = (Arc::clone(one.resource.type_url()), Arc::clone(one.resource.name()));
            candidates.entry(key).or_default().push(index);
        }
        let mut directory = Self { selectors, placed, candidates: BTreeMap::new(), grants, endpoint_files };
        for indices in candidates.values_mut() {
            indices.sort_by_key(|index| std::cmp::Reverse(directory.rank(*index)));
        }
        directory.candidates = candidates;
        directory
    }

    /// How many resources there are, for whatever nodes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.placed.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.placed.is_empty()
    }

    /// Whether a file held endpoints and nothing else.
    #[must_use]
    pub fn holds_endpoints_only(&self, file: &Path) -> bool {
        self.endpoint_files.contains(file)
    }

    /// Whether every node gets the same of both, from whatever places in whatever files.
    #[must_use]
    pub fn gives_the_same_as(&self, other: &Self) -> bool {
        let same = |ours: &[usize], theirs: &[usize]| {
            ours.len() == theirs.len()
                && ours.iter().zip(theirs).all(|(our, their)| match (self.at(*our), other.at(*their)) {
                    (Some((one, for_one, _)), Some((another, for_another, _))) => {
                        one.version() == another.version() && for_one == for_another
                    }
                    _ => false,
                })
        };
        self.grants == other.grants
            && self.candidates.len() == other.candidates.len()
            && self
                .candidates
                .iter()
                .zip(&other.candidates)
                .all(|(ours, theirs)| ours.0 == theirs.0 && same(ours.1, theirs.1))
    }

    /// Each resource with the nodes that it is for and where it stands.
    pub fn resources(&self) -> impl Iterator<Item = (&Arc<Resource>, &Selector, &str)> {
        self.placed
            .iter()
            .filter_map(|one| Some((&one.resource, self.selectors.get(one.selector)?, one.origin.as_str())))
    }

    /// The resource at this place of [`Directory::resources`].
    #[must_use]
    pub fn at(&self, place: usize) -> Option<(&Arc<Resource>, &Selector, &str)> {
        let one = self.placed.get(place)?;
        Some((&one.resource, self.selectors.get(one.selector)?, one.origin.as_str()))
    }

    pub(crate) fn matches(&self, node: &NodeIdentity) -> Matches {
        let selectors = self.selectors.iter().enumerate().filter(|(_, selector)| selector.matches(node));
        let grants = self.grants.iter().enumerate().filter(|(_, grant)| grant.matches(node));
        Matches {
            selectors: selectors.map(|(index, _)| index).collect(),
            grants: grants.map(|(index, _)| index).collect(),
        }
    }

    fn grants(&self, matches: &Matches, resource: &Resource) -> bool {
        let mut matching = matches.grants.iter().filter_map(|index| self.grants.get(*index));
        self.grants.is_empty() || matching.any(|grant| grant.covers(resource))
    }

    /// What a node gets whose matches are these. `before`: what it had.
    pub(crate) fn resolve(&self, matches: &Matches, before: impl Fn(&str, &str) -> Option<Arc<Resource>>) -> Resolved {
        let mut resolved = Resolved { resources: Vec::new(), conflicts: Vec::new(), denied: BTreeSet::new() };
        for ((type_url, name), candidates) in &self.candidates {
            let mut matching = candidates
                .iter()
                .filter_map(|index| self.placed.get(*index).map(|one| (*index, one)))
                .filter(|(_, one)| matches.selectors.binary_search(&one.selector).is_ok());
            let Some((best, placed)) = matching.next() else { continue };
            if !self.grants(matches, &placed.resource) {
                resolved.denied.insert((Arc::clone(type_url), Arc::clone(name)));
                continue;
            }
            let rank = self.rank(best);
            let rivals: Vec<&Placed> =
                matching.take_while(|(index, _)| self.rank(*index) == rank).map(|(_, rival)| rival).collect();
            if rivals.iter().all(|rival| rival.resource.version() == placed.resource.version()) {
                resolved.resources.push(Arc::clone(&placed.resource));
                continue;
            }
            let kept = before(type_url, name);
            resolved.conflicts.push(Conflict {
                type_url: Arc::clone(type_url),
                name: Arc::clone(name),
                origins: std::iter::once(placed).chain(rivals).map(|one| one.origin.clone()).collect(),
                kept: kept.is_some(),
            });
            resolved.resources.extend(kept);
        }
        resolved
    }

    fn rank(&self, index: usize) -> Option<Rank> {
        self.selectors.get(self.placed.get(index)?.selector).map(Selector::rank)
    }
}
