//! The deletion guard: a control plane that comes back without its data says "there is nothing", and says it well-formed.
//!
//! What the first response of a type on a new stream would delete is kept for a while if (nearly) nothing would be left.
//! **Only deletions are held back**: what the response brings is taken as always, and a name that comes again is no longer
//! on its way out.

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
#[derive(Debug, Clone, Copy)]
pub(super) struct Watched {
    /// How many resources there were.
    before: usize,
    /// A delta server may spread what it has to say over several responses.
    until: Duration,
}

impl Stage {
    /// How many resources are kept although the control plane no longer has them.
    pub(crate) fn held_deletions(&self) -> usize {
        self.busy().filter(|(_, slot)| slot.guarded).count()
    }

    /// How many dynamic resources of a kind are accepted.
    pub(super) fn count(&self, kind: Kind) -> usize {
        let slots = self.slots.iter().filter(|((k, _), _)| *k == kind);
        slots.filter(|(_, slot)| !slot.fixed && slot.wanted.is_some()).count()
    }

    /// The first response of a kind on a stream has come; `before` resources were there.
    pub(super) fn watch_deletions(&mut self, kind: Kind, before: usize, whole: bool, now: Duration) {
        let until = if whole { now } else { now + LEFTOVER_TIME };
        self.watched.insert(kind, Watched { before, until });
    }

    /// Whether `going` are kept for now. Says so, once for each response.
    pub(super) fn holds_back(&self, kind: Kind, going: &BTreeSet<Name>, now: Duration) -> bool {
        if going.is_empty() {
            return false;
        }
        let Some(watched) = self.watched.get(&kind).filter(|watched| now <= watched.until) else { return false };
        let DeletionGuard { hold, percent } = self.guard;
        let left = self.count(kind).saturating_sub(going.len());
        let spared = usize::from(100_u8.saturating_sub(percent));
        let hold_back = !hold.is_zero() && left * 100 <= watched.before * spared;
        if hold_back {
            let short = culvert_api::type_url::short_name(type_url_of(kind));
            tracing::error!(
                resources = going.len(),
                of = watched.before,
                "{short}: what the control plane says first on a new stream would delete nearly everything; it is kept \
                 for {hold:?} (--deletion-guard-s) unless it comes again"
            );
        }
        hold_back
    }
}
