//! What a node accepted and refused of one type. Outlives the stream on which it did.

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_api::type_url;

use crate::Name;
use crate::resource::{Resource, Version};

/// Accepted contents, and refused ones by hash.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    accepted: BTreeMap<Name, Arc<Resource>>,
    refused: BTreeMap<Name, Refusal>,
    /// `version_info` of the response accepted last.
    pub(crate) accepted_version: Option<String>,
}

/// A content that the node does not want to see again.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) version: Version,
    pub(crate) reason: Arc<str>,
}

/// One resource, or removal, of a response that waits for its answer.
pub(crate) type Item = (Name, Option<Arc<Resource>>);

impl Memory {
    pub(crate) fn accepted(&self, name: &str) -> Option<&Arc<Resource>> {
        self.accepted.get(name)
    }

    /// The refusal of exactly this content.
    pub(crate) fn refusal(&self, resource: &Resource) -> Option<&Refusal> {
        self.refused.get(resource.name()).filter(|refusal| refusal.version == resource.version())
    }

    pub(crate) fn refused_names(&self) -> impl ExactSizeIterator<Item = &Name> {
        self.refused.keys()
    }

    pub(crate) fn accept(&mut self, item: Item) {
        let (name, resource) = item;
        self.refused.remove(&name);
        match resource {
            Some(resource) => self.accepted.insert(name, resource),
            None => self.accepted.remove(&name),
        };
    }

    /// A content that was accepted before is not refused because something else in its response was.
    pub(crate) fn refuse(&mut self, item: Item, reason: &Arc<str>) {
        let (name, Some(resource)) = item else { return self.accept(item) };
        if self.accepted.get(&name).is_none_or(|accepted| accepted.version() != resource.version()) {
            self.refused.insert(name, Refusal { version: resource.version(), reason: Arc::clone(reason) });
        }
    }

    /// Remembers that the node named this resource as refused.
    pub(crate) fn blame(&mut self, name: Name, version: Version, reason: &Arc<str>) {
        self.refused.insert(name, Refusal { version, reason: Arc::clone(reason) });
    }

    pub(crate) fn forget(&mut self, name: &str) {
        self.accepted.remove(name);
        self.refused.remove(name);
    }

    /// Keeps of the accepted contents those that the node confirms to hold. It may have spoken to another session
    /// since.
    pub(crate) fn confirm(&mut self, holds: impl Fn(&str, Version) -> bool) {
        self.accepted.retain(|name, resource| holds(name, resource.version()));
    }

    pub(crate) fn forget_refusals(&mut self) {
        self.refused.clear();
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.accepted.retain(|name, _| keep(name));
        self.refused.retain(|name, _| keep(name));
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
