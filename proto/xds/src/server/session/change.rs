//! What a node's answers mean for a change that is on its way to it ([`Progress`]).

use std::sync::Arc;
use std::time::Duration;

use culvert_api::type_url;

use super::super::Heard;
use super::super::memory::Memory;
use super::super::staging::{Answers, Progress};
use super::super::subscription::{Held, Subscription};
use super::{Parked, Session};
use crate::resource::TypeUrl;
use crate::snapshot::is_referred_to;

impl Session {
    /// Goes on to the next step of a change if the present one is over. True: what is served changed.
    pub(super) fn advance(&mut self, now: Duration) -> bool {
        let Some(limits) = self.config.staging else { return false };
        if self.staging.bridge().is_none() {
            return false;
        }
        let answers = self.answers();
        if self.staging.is_late(&limits, now) {
            tracing::warn!(node = self.node.id, progress = ?self.progress(), "a change goes on without the node's answer");
            self.parked.values_mut().for_each(|parked| parked.awaited = false);
        }
        let keeps = self.subscriptions().any(Subscription::withholds_any);
        let advanced = self.staging.advance(&answers, keeps, &limits, now);
        self.steps += u64::from(advanced);
        if advanced && self.progress() == Progress::Settled {
            let all = self.streams.values_mut().flat_map(|stream| &mut stream.subscriptions);
            all.for_each(Subscription::remove_withheld);
        }
        if let Progress::Halted { type_url, reason } = self.staging.progress() {
            self.log_halt(&type_url, &reason);
        }
        advanced
    }

    /// A node came with what is gone: removals wait from now on.
    pub(super) fn hold_back(&mut self) {
        if let Some(limits) = self.config.staging {
            self.staging.hold_back(&limits, self.now);
            // Each stream may be the one that ends the wait.
            self.steps += 1;
        }
    }

    /// A node comes of which nothing is known but that it holds something. Nobody knows what it will ask for: whatever refers
    /// to something else and is served is waited for, as of a node that was here before.
    pub(super) fn meet(&mut self) {
        if self.config.staging.is_some() {
            self.staging.meet(self.now);
            self.steps += 1;
        }
        const REFERRING: [&str; 4] = [
            type_url::CLUSTER,
            type_url::LISTENER,
            type_url::SCOPED_ROUTE_CONFIGURATION,
            type_url::ROUTE_CONFIGURATION,
        ];
        for of in REFERRING {
            let is_served = self.staging.target().of_type(of).is_some_and(|set| !set.is_empty());
            if is_served && !self.subscriptions().any(|one| &*one.type_url == of) {
                self.parked.entry(of.into()).or_insert(Parked { memory: Memory::default(), awaited: true });
            }
        }
    }

    /// Whether the node answered all that the present step of a change sent it.
    fn answers(&self) -> Answers {
        let adding = self.progress() == Progress::Adding;
        let counts = |type_url: &str| !adding || is_referred_to(type_url);
        let is_in = |subscription: &Subscription| {
            let set = self.staging.served().of_type(&subscription.type_url).unwrap_or(&self.nothing);
            !counts(&subscription.type_url) || subscription.is_answered(set)
        };
        let returns = |(type_url, parked): (&TypeUrl, &Parked)| parked.awaited && counts(type_url);
        if !self.subscriptions().all(is_in) || self.parked.iter().any(returns) || (adding && self.lacks_assignments()) {
            return Answers::Awaited;
        }
        // While adding: what the node does not have in any version. While switching: what it has in an older one, which
        // may refer to what is to be removed.
        let refused = self.subscriptions().filter(|one| is_referred_to(&one.type_url) == adding).find_map(|one| {
            let set = self.staging.target().of_type(&one.type_url)?;
            let reason = one.refused_and(set, if adding { Held::Never } else { Held::Older })?;
            Some(Answers::Refused { type_url: Arc::clone(&one.type_url), reason })
        });
        refused.unwrap_or(Answers::In)
    }

    /// Whether clusters are new to a node that takes all clusters and did not ask for their assignments yet: on streams
    /// of their own, its answer for the clusters may arrive before.
    fn lacks_assignments(&self) -> bool {
        let takes_all = |one: &Subscription| &*one.type_url == type_url::CLUSTER && one.interest.wildcard;
        if !self.subscriptions().any(takes_all) {
            return false;
        }
        let asked = |name: &str| {
            let mut all = self.subscriptions().filter(|one| &*one.type_url == type_url::CLUSTER_LOAD_ASSIGNMENT);
            all.any(|one| one.interest.covers(name))
        };
        !self.staging.new_assignments().all(|name| asked(name))
    }

    /// What an answer means for the change that is under way.
    pub(super) fn after(&mut self, heard: Heard, (type_url, reason): (TypeUrl, Arc<str>)) {
        if heard != Heard::Nack {
            return;
        }
        tracing::warn!(node = self.node.id, type_url = &*type_url, message = &*reason, "the node refused a response");
        // A late answer may be about something that there is no more.
        let target = Arc::clone(self.staging.target().of_type(&type_url).unwrap_or(&self.nothing));
        let all = self.streams.values_mut().flat_map(|stream| &mut stream.subscriptions);
        let counts = all.filter(|one| one.type_url == type_url).any(|one| {
            one.release(&target);
            one.refuses_any(&target)
        });
        if counts && self.staging.on_refusal(&type_url, &reason) {
            self.log_halt(&type_url, &reason);
        }
    }

    pub(super) fn halted_by(&self, by: &TypeUrl) -> bool {
        matches!(self.progress(), Progress::Halted { type_url, .. } if type_url == *by)
    }

    fn log_halt(&self, type_url: &str, reason: &str) {
        let node = &self.node.id;
        tracing::error!(node, type_url, reason, "the change ends here for this node, until there is another one");
    }
}
