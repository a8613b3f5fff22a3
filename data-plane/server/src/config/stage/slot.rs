//! The place of one resource: what was accepted, what of it is in force, and what is to be done about it.

use std::sync::Arc;
use std::time::Duration;

use culvert_model::resource::Resource;

use crate::config::references::Reference;
use crate::inventory::Given;

#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Of the bootstrap.
    pub(super) fixed: bool,
    /// Accepted last, if it is to exist.
    pub(super) wanted: Option<Candidate>,
    /// In force.
    pub(super) active: Option<Candidate>,
    /// When `wanted` became `None`.
    pub(super) gone: Duration,
    /// A cluster that is on its way out: when traffic in force was last seen to go there.
    pub(super) used: Option<Duration>,
    /// Since when nothing refers to it any more, where that decides whether it stays.
    pub(super) unreferenced: Option<Duration>,
    /// `wanted` comes from the cache, and no control plane has confirmed it.
    pub(super) cached: bool,
    /// Not among what the control plane has: removed when its time has come.
    pub(super) leftover: Option<Duration>,
    /// It is left over only because of the deletion guard.
    pub(super) guarded: bool,
    /// `wanted` differs from `active`. Kept, since comparing ten thousand routes takes its time.
    pub(super) pending: bool,
    /// `wanted` is `active` under another version, which nobody was told yet.
    pub(super) confirmed: bool,
    /// Applying `wanted` failed; it is not tried again.
    pub(super) failed: bool,
    /// Applying `wanted` failed for what may pass: when it is tried again.
    pub(super) retry: Option<Retry>,
    /// It was said that `wanted` waits.
    pub(super) told: bool,
}

impl Slot {
    /// In force as it is wanted, or of no use until it is sent again: nothing is to be done about it.
    pub(super) fn is_idle(&self) -> bool {
        let waits = self.leftover.is_some() || self.retry.is_some() || self.unreferenced.is_some();
        self.fixed || (self.wanted.is_some() && !waits && !self.confirmed && !self.is_pending())
    }

    /// Accepted, not in force, and worth a try now.
    pub(super) fn is_pending(&self) -> bool {
        self.pending && self.wanted.is_some() && !self.fixed && !self.failed && !self.waits_for_retry()
    }

    /// In force, and no longer to be.
    pub(super) fn is_leaving(&self) -> bool {
        self.wanted.is_none() && self.active.is_some() && !self.fixed
    }

    /// Whether a cluster that is leaving has to stay for now, `used` being whether routes in force lead to it.
    pub(super) fn is_needed(&self, used: bool, now: Duration) -> bool {
        let last = self.used.unwrap_or_default().max(self.gone);
        now < if used { self.gone + IN_USE_TIME } else { last + LINGER }
    }

    fn waits_for_retry(&self) -> bool {
        self.retry.is_some_and(|retry| !retry.at.is_zero())
    }

    /// Whether `resource` is what was accepted last.
    pub(super) fn holds(&self, resource: &Resource) -> bool {
        self.wanted.as_ref().is_some_and(|wanted| wanted.resource == *resource)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Retry {
    pub(super) at: Duration,
    /// Doubled with each failure.
    pub(super) delay: Duration,
}

#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) resource: Resource,
    pub(super) given: Option<Given>,
    pub(super) since: Duration,
    /// Of `resource`; kept, since all of them are looked at together.
    pub(super) references: Arc<[Reference]>,
}

impl Candidate {
    /// `references` are those of `resource`: see [`super::Stage::references_of`].
    pub(super) fn new(resource: Resource, given: Option<Given>, since: Duration, references: Arc<[Reference]>) -> Self {
        Self { resource, given, since, references }
    }
}

pub(super) fn references_of(candidate: Option<&Candidate>) -> &[Reference] {
    candidate.map_or(&[], |candidate| &candidate.references)
}

/// How long a removed cluster stays while routes in force still lead to it: a control plane that sends clusters before
/// routes would otherwise break traffic in between.
pub(super) const IN_USE_TIME: Duration = Duration::from_secs(15);

/// How long a removed cluster stays at least, and any other resource after its last use. **A request that found its route
/// before a switch may choose a host after it**: its worker may be interrupted in between.
pub(super) const LINGER: Duration = Duration::from_secs(1);
