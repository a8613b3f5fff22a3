//! What a node accepted and refused of one type. Outlives the stream on which it did.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use culvert_api::type_url;

use super::holdings::Holdings;
use crate::Name;
use crate::resource::{Resource, Version};
use crate::snapshot::TypeSet;

/// Accepted contents, and refused ones by hash.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    accepted: Holdings<Arc<Resource>>,
    /// When the first of them was.
    since: Duration,
    /// When others were, of those that were accepted later.
    accepted_at: BTreeMap<Name, Duration>,
    /// The time of what is being heard.
    pub(crate) now: Duration,
    /// What it accepted before it came back without saying so: it may still refer to it.
    doubtful: BTreeMap<Name, Arc<Resource>>,
    /// What it said to hold in contents that are not known here.
    foreign: BTreeSet<Name>,
    refused: BTreeMap<Name, Refusal>,
    /// Refusals of whole responses.
    together: u64,
    /// What was released since the node should have what it should have now: one more try is enough.
    released: BTreeMap<Name, Released>,
    /// `version_info` of the response accepted last.
    pub(crate) accepted_version: Option<Version>,
}

/// A content that the node does not want to see again.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) version: Version,
    pub(crate) reason: Arc<str>,
    /// When.
    pub(crate) at: Duration,
    /// The refusal was one of a whole response: once one of its resources is another, the others may be sent again.
    together: Option<Group>,
}

/// A refused content that may be sent again.
#[derive(Debug)]
struct Released {
    refusal: Refusal,
    /// It was: the node may have taken it.
    sent: bool,
}

/// What was refused together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    number: u64,
    size: usize,
}

/// One resource, or removal, of a response that waits for its answer.
pub(crate) type Item = (Name, Option<Arc<Resource>>);

impl Memory {
    pub(crate) fn accepted(&self, name: &str) -> Option<&Arc<Resource>> {
        self.accepted.get(name)
    }

    pub(crate) fn all_accepted(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.accepted.iter().map(|(_, resource)| resource)
    }

    /// What the node accepted last, as far as is known.
    pub(crate) fn accepted_once(&self, name: &str) -> Option<&Arc<Resource>> {
        self.accepted.get(name).or_else(|| self.doubtful.get(name))
    }

    /// Whether the node came with a content of its own under this name.
    pub(crate) fn is_foreign(&self, name: &str) -> bool {
        self.foreign.contains(name)
    }

    /// The node says what it holds: of these it has contents of its own.
    pub(crate) fn set_foreign(&mut self, names: BTreeSet<Name>) {
        self.foreign = names;
    }

    pub(crate) fn accepted_at(&self, name: &str) -> Option<Duration> {
        self.accepted.get(name).map(|_| self.accepted_at.get(name).copied().unwrap_or(self.since))
    }

    /// The refusal of exactly this content under this name, its own or an alias.
    pub(crate) fn refusal(&self, name: &str, resource: &Resource) -> Option<&Refusal> {
        self.refused.get(name).filter(|refusal| refusal.version == resource.version())
    }

    /// The content of this name that was refused last, if no other was accepted since.
    pub(crate) fn refused_version(&self, name: &str) -> Option<Version> {
        self.refused.get(name).map(|refusal| refusal.version)
    }

    pub(crate) fn refused_names(&self) -> impl ExactSizeIterator<Item = &Name> {
        self.refused.keys()
    }

    pub(crate) fn accept(&mut self, item: Item) {
        let (name, resource) = item;
        self.refused.remove(&name);
        self.released.remove(&name);
        self.doubtful.remove(&name);
        self.foreign.remove(&name);
        if let Some(resource) = resource {
            if self.accepted.iter().next().is_none() {
                self.since = self.now;
            }
            if self.now == self.since {
                self.accepted_at.remove(&name);
            } else {
                self.accepted_at.insert(Arc::clone(&name), self.now);
            }
            self.accepted.insert(name, resource);
        } else {
            self.accepted_at.remove(&name);
            self.accepted.remove(&name);
        }
    }

    /// The node has all that a set lists and nothing else.
    pub(crate) fn accept_all(&mut self, set: &Arc<TypeSet>) {
        self.accepted = Holdings::all_of(set);
        self.since = self.now;
        self.accepted_at.clear();
        self.doubtful.clear();
        self.foreign.clear();
        self.forget_refusals();
    }

    /// What was accepted is mostly what this set lists. `news`: so much was accepted since the last time.
    pub(crate) fn rebase(&mut self, set: &Arc<TypeSet>, news: usize) {
        self.accepted.rebase(set, news);
    }

    /// The node refused all of a response. A content that was accepted before is not refused because something else in its
    /// response was.
    pub(crate) fn refuse_all(&mut self, items: Vec<Item>, reason: &Arc<str>) {
        self.together += 1;
        let mut new = Vec::new();
        for item in items {
            match item {
                (name, Some(resource)) => {
                    let accepted = self.accepted.get(&name).map(|accepted| accepted.version());
                    if accepted != Some(resource.version()) {
                        new.push((name, resource.version()));
                    }
                }
                removal => self.accept(removal),
            }
        }
        let together = Some(Group { number: self.together, size: new.len() });
        for (name, version) in new {
            let refusal = Refusal { version, reason: Arc::clone(reason), at: self.now, together };
            self.refused.insert(name, refusal);
        }
    }

    /// Remembers that the node named this resource as refused.
    pub(crate) fn blame(&mut self, name: Name, version: Version, reason: &Arc<str>) {
        let refusal = Refusal { version, reason: Arc::clone(reason), at: self.now, together: None };
        self.refused.insert(name, refusal);
    }

    /// The node should have something else from now on. What was released for what it should have had, and was not sent, is as
    /// refused as before.
    pub(crate) fn new_target(&mut self) {
        for (name, released) in std::mem::take(&mut self.released) {
            if !released.sent {
                self.refused.entry(name).or_insert(released.refusal);
            }
        }
    }

    /// These are on their way to the node.
    pub(crate) fn on_sent(&mut self, items: &[Item]) {
        if self.released.is_empty() {
            return;
        }
        for (name, resource) in items {
            let version = resource.as_ref().map(|resource| resource.version());
            if let Some(released) = self.released.get_mut(name) {
                released.sent |= version == Some(released.refusal.version);
            }
        }
    }

    /// Forgets refusals of what was refused together with something that the node should no longer have, now that it should
    /// have `set`; returns what may be sent again.
    pub(crate) fn release(&mut self, set: &TypeSet) -> Vec<Name> {
        let is_as_refused =
            |name: &str, refusal: &Refusal| set.get(name).is_some_and(|resource| resource.version() == refusal.version);
        let mut whole: BTreeMap<Group, usize> = BTreeMap::new();
        for (name, refusal) in &self.refused {
            let count = refusal.together.map(|group| whole.entry(group).or_default());
            if let Some(count) = count.filter(|_| is_as_refused(name, refusal)) {
                *count += 1;
            }
        }
        let is_free = |(name, refusal): &(&Name, &Refusal)| {
            let broken =
                refusal.together.is_some_and(|group| whole.get(&group).is_some_and(|count| *count < group.size));
            let same = |released: &Released| released.sent && released.refusal.version == refusal.version;
            broken && is_as_refused(name, refusal) && !self.released.get(*name).is_some_and(same)
        };
        let free: Vec<Name> = self.refused.iter().filter(is_free).map(|(name, _)| Arc::clone(name)).collect();
        for name in &free {
            if let Some(refusal) = self.refused.remove(name) {
                self.released.insert(Arc::clone(name), Released { refusal, sent: false });
            }
        }
        free
    }

    pub(crate) fn forget(&mut self, name: &str) {
        self.accepted.remove(name);
        self.accepted_at.remove(name);
        self.doubtful.remove(name);
        self.foreign.remove(name);
        self.refused.remove(name);
        self.released.remove(name);
    }

    /// Keeps of the accepted contents those that the node confirms to hold. It may have spoken to another session
    /// since.
    pub(crate) fn confirm(&mut self, holds: impl Fn(&str, Version) -> bool) {
        let lost = self.accepted.iter().filter(|(name, resource)| !holds(name, resource.version()));
        let lost: Vec<_> = lost.map(|(name, resource)| (Arc::clone(name), Arc::clone(resource))).collect();
        if lost.is_empty() {
            return;
        }
        self.accepted.retain(|name, resource| holds(name, resource.version()));
        self.accepted_at.retain(|name, _| self.accepted.get(name).is_some());
        self.doubtful.extend(lost);
    }

    /// Forgets refusals of contents that the node says it holds: what it refused was something else in their response.
    pub(crate) fn hold(&mut self, name: &str, version: Version) {
        if self.refused.get(name).is_some_and(|refusal| refusal.version == version) {
            self.refused.remove(name);
        }
        if self.released.get(name).is_some_and(|released| released.refusal.version == version) {
            self.released.remove(name);
        }
    }

    pub(crate) fn forget_refusals(&mut self) {
        self.refused.clear();
        self.released.clear();
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.accepted.retain(|name, _| keep(name));
        self.accepted_at.retain(|name, _| keep(name));
        self.doubtful.retain(|name, _| keep(name));
        self.foreign.retain(|name| keep(name));
        self.refused.retain(|name, _| keep(name));
        self.released.retain(|name, _| keep(name));
    }
}

/// The resources that a refusal names line by line as `Type/name: reason`, with their reasons. `None`: a line does
/// not name one of `names`, so that the refusal is one of the whole response.
pub(crate) fn blamed<'a>(
    message: &str,
    type_url: &str,
    known: impl Fn(&str) -> Option<&'a Name>,
) -> Option<BTreeMap<Name, Arc<str>>> {
    let prefix = format!("{}/", type_url::short_name(type_url));
    let mut blamed = BTreeMap::new();
    for line in message.lines() {
        let rest = line.strip_prefix(&prefix)?;
        // A name may itself hold ": ": the first prefix that is a name counts.
        let (name, reason) = rest
            .match_indices(": ")
            .take(16)
            .find_map(|(at, separator)| Some((known(rest.get(..at)?)?, rest.get(at + separator.len()..)?)))?;
        blamed.insert(Arc::clone(name), Arc::from(reason));
    }
    (!blamed.is_empty()).then_some(blamed)
}

/// The items that a refusal mentions as `NAME: `, with the whole of it as their reason. `None`: it mentions none.
pub(crate) fn mentioned(message: &Arc<str>, items: &[Item]) -> Option<BTreeMap<Name, Arc<str>>> {
    let says = |name: &str| {
        message.match_indices(name).any(|(at, _)| {
            let before = message.get(..at).and_then(|text| text.chars().next_back());
            let after = message.get(at + name.len()..).unwrap_or_default();
            before.is_none_or(|before| before == ' ' || before == '\n') && after.starts_with(": ")
        })
    };
    let added = items.iter().filter(|(_, resource)| resource.is_some());
    let names = added.filter(|(name, _)| !name.is_empty() && says(name));
    let mentioned: BTreeMap<_, _> = names.map(|(name, _)| (Arc::clone(name), Arc::clone(message))).collect();
    (!mentioned.is_empty()).then_some(mentioned)
}
