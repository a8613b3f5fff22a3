//! The deletion guard: a control plane that comes back without its data says "there is nothing", and says it well-formed.
//!
//! What the first response of a type on a new stream would delete is kept for a while if (nearly) nothing would be left.
//! **Only deletions are held back**, of what was there before: what the response brings is taken as always, and a name that has
//! come on the stream is the control plane's to take away.

use std::collections::BTreeSet;
use std::time::Duration;

use culvert_model::Name;

use super::{LEFTOVER_TIME, Stage};
use crate::apply::Kind;
use crate::config::references::type_url_of;

/// When deletions are held back, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeletionGuard {
    /// Zero: never.
    pub(crate) hold: Duration,
    /// Of the resources of a type, the percentage that a response must at least take away to be held back.
    pub(crate) percent: u8,
}

impl Default for DeletionGuard {
    fn default() -> Self {
        Self { hold: Duration::from_secs(60), percent: 100 }
    }
}

/// A type whose control plane has just come (back).
#[derive(Debug)]
pub(super) struct Watched {
    /// How many resources there were.
    before: usize,
    /// Those of them that it has not sent again.
    unseen: BTreeSet<Name>,
    /// A delta server may spread what it has to say over several responses.
    until: Duration,
}

impl Stage {
    /// How many resources are kept although the control plane no longer has them.
    pub(crate) fn held_deletions(&self) -> usize {
        self.busy().filter(|(_, slot)| slot.guarded).count()
    }

    /// The dynamic resources of a kind that are accepted.
    fn dynamic_names(&self, kind: Kind) -> impl Iterator<Item = &Name> {
        let slots = self.slots.iter().filter(move |((k, _), _)| *k == kind);
        slots.filter(|(_, slot)| !slot.fixed && slot.wanted.is_some()).map(|((_, name), _)| name)
    }

    /// The first response of a kind on a stream has come.
    pub(super) fn watch_deletions(&mut self, kind: Kind, whole: bool, now: Duration) {
        let unseen: BTreeSet<Name> = self.dynamic_names(kind).cloned().collect();
        let until = if whole { now } else { now + LEFTOVER_TIME };
        self.watched.insert(kind, Watched { before: unseen.len(), unseen, until });
    }

    /// The stream has brought these.
    pub(super) fn note_seen(&mut self, kind: Kind, present: &BTreeSet<Name>, now: Duration) {
        if self.watched.get(&kind).is_some_and(|watched| now > watched.until) {
            self.watched.remove(&kind);
        }
        if let Some(watched) = self.watched.get_mut(&kind) {
            watched.unseen.retain(|name| !present.contains(name));
        }
    }

    /// Which of those that are `going` are kept for now. Says so, once for each response.
    pub(super) fn held_back(&self, kind: Kind, going: &BTreeSet<Name>) -> BTreeSet<Name> {
        let Some(watched) = self.watched.get(&kind) else { return BTreeSet::new() };
        let held: BTreeSet<Name> = going.intersection(&watched.unseen).cloned().collect();
        let DeletionGuard { hold, percent } = self.guard;
        if held.is_empty() || hold.is_zero() {
            return BTreeSet::new();
        }
        let left = self.dynamic_names(kind).count().saturating_sub(going.len());
        let spared = usize::from(100_u8.saturating_sub(percent));
        if left * 100 > watched.before * spared {
            return BTreeSet::new();
        }
        let short = culvert_api::type_url::short_name(type_url_of(kind));
        tracing::error!(
            resources = held.len(),
            of = watched.before,
            "{short}: what the control plane says first on a new stream would delete nearly everything; it is kept \
             for {hold:?} (--deletion-guard-s) unless it comes again"
        );
        held
    }
}
