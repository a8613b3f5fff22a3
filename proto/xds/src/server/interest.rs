//! What one subscription covers: everything, some names, or both.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::RequestError;
use crate::resource::may_be_asked_for_without_names;
use crate::snapshot::TypeSet;
use crate::{Name, xdstp};

/// The subscription of one stream to one type.
#[derive(Debug, Default)]
pub(crate) struct Interest {
    pub(crate) wildcard: bool,
    /// Globs of collections (xDS TP1) among them.
    pub(crate) names: BTreeSet<Name>,
    /// How many of the names are globs.
    globs: usize,
    /// Names (or `*`) were given on this stream: an empty list no longer means everything.
    named: bool,
}

/// What a request changed.
#[derive(Debug, Default)]
pub(crate) struct InterestChange {
    /// Newly asked for by name, or asked for again: answered even when known.
    pub(crate) added: Vec<Name>,
    /// No longer asked for by name.
    pub(crate) dropped: Vec<Name>,
    /// The wildcard is new.
    pub(crate) wildcard_on: bool,
    /// The wildcard is gone.
    pub(crate) wildcard_off: bool,
}

impl Interest {
    /// Most names that one subscription may hold.
    pub(crate) const MAX_NAMES: usize = 100_000;

    /// Most collections among them: each is looked for in what there is.
    pub(crate) const MAX_GLOBS: usize = 1000;

    /// Longest name, in bytes.
    const MAX_NAME: usize = 16 * 1024;

    pub(crate) fn covers(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name) || self.collection(name).is_some()
    }

    /// The collection that is asked for and has the name.
    pub(crate) fn collection(&self, name: &str) -> Option<&Name> {
        if self.globs == 0 {
            return None;
        }
        self.names.get(xdstp::collection_of(name)?.as_str())
    }

    /// The collections that are asked for.
    pub(crate) fn globs(&self) -> impl Iterator<Item = &Name> {
        self.names.iter().filter(|name| self.globs > 0 && xdstp::is_glob(name))
    }

    /// Everything, and nothing by name.
    pub(crate) fn is_pure_wildcard(&self) -> bool {
        self.wildcard && self.names.is_empty()
    }

    /// Takes the list of a state-of-the-world request; names that `set` has too are shared with it.
    ///
    /// xDS, "How the client specifies what resources to return": an empty list is a wildcard only as long as no name
    /// was given on the stream (for types that may be asked for so); later it unsubscribes from everything. A list
    /// that no longer has `*` drops the wildcard.
    pub(crate) fn replace(
        &mut self,
        type_url: &str,
        list: &[String],
        set: &TypeSet,
        legacy: bool,
    ) -> Result<InterestChange, RequestError> {
        let wildcard = if list.is_empty() {
            !self.named && legacy && may_be_asked_for_without_names(type_url)
        } else {
            list.iter().any(|name| name == "*")
        };
        let mut names = BTreeSet::new();
        for name in list.iter().filter(|name| *name != "*") {
            check_name(name)?;
            let name = &*xdstp::canonical(name);
            if !names.contains(name) {
                names.insert(self.names.get(name).map_or_else(|| set.name(name), Arc::clone));
                check_count(type_url, names.len())?;
            }
        }
        let change = InterestChange {
            added: names.difference(&self.names).cloned().collect(),
            dropped: self.names.difference(&names).cloned().collect(),
            wildcard_on: wildcard && !self.wildcard,
            wildcard_off: !wildcard && self.wildcard,
        };
        self.named |= !list.is_empty();
        self.wildcard = wildcard;
        self.names = names;
        self.globs = count_globs(type_url, &self.names)?;
        Ok(change)
    }

    /// Takes the lists of a delta request; names that `set` has too are shared with it. `first` is the first request of the type on the stream.
    ///
    /// xDS, "Unsubscribing from resources": a name in both lists ends unsubscribed (ztunnel opens with `*` in both:
    /// nothing yet).
    pub(crate) fn update(
        &mut self,
        type_url: &str,
        lists: (&[String], &[String]),
        set: &TypeSet,
        first: bool,
        legacy: bool,
    ) -> Result<InterestChange, RequestError> {
        let (subscribe, unsubscribe) = lists;
        let had_wildcard = self.wildcard;
        let mut change = InterestChange::default();
        if first && subscribe.is_empty() && unsubscribe.is_empty() {
            self.wildcard = legacy && may_be_asked_for_without_names(type_url);
        }
        let mut added = BTreeSet::new();
        for name in subscribe {
            if name == "*" {
                self.wildcard = true;
                continue;
            }
            check_name(name)?;
            let name = &*xdstp::canonical(name);
            let name = self.names.get(name).map_or_else(|| set.name(name), Arc::clone);
            self.names.insert(Arc::clone(&name));
            check_count(type_url, self.names.len())?;
            added.insert(name);
        }
        for name in unsubscribe {
            if name == "*" {
                self.wildcard = false;
            } else if let Some(name) = self.names.take(&*xdstp::canonical(name)) {
                added.remove(&name);
                change.dropped.push(name);
            }
        }
        self.globs = count_globs(type_url, &self.names)?;
        change.added = added.into_iter().collect();
        change.wildcard_on = self.wildcard && !had_wildcard;
        change.wildcard_off = !self.wildcard && had_wildcard;
        Ok(change)
    }
}

fn check_name(name: &str) -> Result<(), RequestError> {
    if name.len() > Interest::MAX_NAME {
        return Err(RequestError::NameTooLong { found: name.len(), limit: Interest::MAX_NAME });
    }
    Ok(())
}

fn count_globs(type_url: &str, names: &BTreeSet<Name>) -> Result<usize, RequestError> {
    let globs = names.iter().filter(|name| xdstp::is_glob(name)).count();
    if globs > Interest::MAX_GLOBS {
        return Err(RequestError::TooManyGlobs { type_url: type_url.to_owned(), limit: Interest::MAX_GLOBS });
    }
    Ok(globs)
}

pub(crate) fn check_count(type_url: &str, count: usize) -> Result<(), RequestError> {
    if count > Interest::MAX_NAMES {
        return Err(RequestError::TooManyNames { type_url: type_url.to_owned(), limit: Interest::MAX_NAMES });
    }
    Ok(())
}
