//! Warm and publish: which accepted resources may come into force now, in which order, and what the others wait for.
//!
//! Make before break: what is referred to comes into force before what refers to it, and goes after it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use culvert_api::envoy::config::route::v3::RouteConfiguration;
use culvert_model::Name;
use culvert_model::resource::{Resource, parse_any};
use prost::Message;

use super::slot::{Candidate, IN_USE_TIME, LINGER, Retry, Slot, references_of};
use super::{Key, Stage};
use crate::apply::{Change, Kind};
use crate::config::references::{self, Patience, type_url_of};
use crate::inventory::Given;

/// What is to be applied, in its order.
#[derive(Debug, Default)]
pub(crate) struct Publication {
    pub(crate) steps: Vec<Step>,
    /// In force already under another version.
    pub(crate) confirmed: Vec<(Key, Given)>,
    /// Newly known to wait, and for what (`secret edge-cert`).
    pub(crate) waiting: Vec<(Key, Given, Vec<String>)>,
    /// Given up before they came into force.
    pub(crate) swept: Vec<Key>,
}

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Went {
    Well,
    /// The same would go wrong again.
    Wrong,
    /// It may go well later.
    ForNow,
}

/// One change and where it came from.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) key: Key,
    pub(crate) change: Change,
    /// As it came. `None`: a removal, or a stand-in for what did not come.
    pub(crate) given: Option<Given>,
    since: Duration,
}

impl Stage {
    /// What may come into force now. The caller applies it and says how that went with [`Stage::applied`] before it asks
    /// again.
    pub(crate) fn publish(&mut self, now: Duration) -> Publication {
        self.try_again(now);
        self.settle_leftovers(now);
        let mut publication = Publication { swept: self.sweep(now), ..Publication::default() };
        let mut coming = BTreeSet::new();
        let missing: Vec<Key> = self.missing.iter().filter(|key| key.0 == Kind::Routes).cloned().collect();
        for key in missing {
            self.stand_in(&key, now, &mut coming, &mut publication);
        }
        for kind in ORDER {
            self.publish_kind(kind, now, &mut coming, &mut publication);
        }
        let used = self.note_use(&coming, now);
        for kind in ORDER.into_iter().rev() {
            for (key, slot) in self.busy_of(kind).filter(|(_, slot)| slot.is_leaving()) {
                if kind != Kind::Cluster || !slot.is_needed(used.contains(&key.1), now) {
                    let change = Change::Remove { kind, name: Arc::clone(&key.1) };
                    publication.steps.push(Step { key: key.clone(), change, given: None, since: now });
                }
            }
        }
        let slots = &self.slots;
        self.busy.retain(|key| slots.get(key).is_some_and(|slot| !slot.is_idle()));
        publication
    }

    /// Notes to which clusters that are on their way out traffic still goes; returns those to which it will once `coming`
    /// is in force.
    fn note_use(&mut self, coming: &BTreeSet<Key>, now: Duration) -> BTreeSet<Name> {
        let leaving = self.busy_of(Kind::Cluster).filter(|(_, slot)| slot.is_leaving());
        let leaving: Vec<Key> = leaving.map(|(key, _)| key.clone()).collect();
        if leaving.is_empty() {
            return BTreeSet::new();
        }
        let before = self.clusters_in_use(&BTreeSet::new());
        for key in leaving.iter().filter(|key| before.contains(&key.1)) {
            if let Some(slot) = self.slots.get_mut(key) {
                slot.used = Some(now);
            }
        }
        self.clusters_in_use(coming)
    }

    /// How a step went. A failure keeps what was in force.
    pub(crate) fn applied(&mut self, step: &Step, went: Went, now: Duration) {
        let references = match &step.change {
            Change::Set(resource) => self.references_of(resource),
            Change::Remove { .. } => Arc::default(),
        };
        let Some(slot) = self.touch(&step.key) else { return };
        let mut changes = false;
        match (&step.change, went) {
            (Change::Set(resource), Went::Well) => {
                // Another one may have been accepted meanwhile.
                slot.pending = slot.wanted.as_ref().is_some_and(|wanted| wanted.resource != *resource);
                slot.confirmed = false;
                slot.retry = None;
                let applied = Candidate::new(resource.clone(), step.given.clone(), step.since, references);
                changes = references_of(slot.active.as_ref()) != references_of(Some(&applied));
                slot.active = Some(applied);
            }
            (Change::Set(resource), Went::Wrong) => slot.failed = slot.holds(resource),
            (Change::Set(resource), Went::ForNow) if slot.holds(resource) => {
                let delay = slot.retry.map_or(RETRY_BASE, |retry| (retry.delay * 2).min(RETRY_MAX));
                slot.retry = Some(Retry { at: now + delay, delay });
            }
            // Another one was accepted meanwhile.
            (Change::Set(_), Went::ForNow) => {}
            // Whatever went wrong with a removal, it is not asked for twice. What came back meanwhile is not in force.
            (Change::Remove { .. }, _) => {
                changes = !references_of(slot.active.as_ref()).is_empty();
                (slot.active, slot.used, slot.confirmed) = (None, None, false);
                slot.pending = slot.wanted.is_some();
            }
        }
        if slot.active.is_none() && slot.wanted.is_none() {
            self.slots.remove(&step.key);
        }
        self.referred += u64::from(changes);
    }

    /// When [`Stage::publish`] has to look again although nothing arrived.
    pub(crate) fn next_look(&self, now: Duration) -> Option<Duration> {
        let nothing = BTreeSet::new();
        let busy = || self.busy().map(|(_, slot)| slot);
        let pending = busy().filter(|slot| slot.is_pending()).filter_map(|slot| slot.wanted.as_ref());
        let timeouts = pending.flat_map(|candidate| {
            let waits = self.waits(candidate, now, &nothing);
            waits.into_iter().filter_map(|(_, until)| until)
        });
        let leftovers = busy().filter_map(|slot| slot.leftover);
        let leaving = busy().filter(|slot| slot.is_leaving());
        let removals = leaving
            .flat_map(|slot| [slot.gone + IN_USE_TIME, slot.gone + LINGER, slot.used.unwrap_or_default() + LINGER]);
        let sweeps = busy().filter_map(|slot| slot.unreferenced).map(|since| since + LINGER);
        let retries = busy().filter_map(|slot| slot.retry).map(|retry| retry.at);
        timeouts.chain(leftovers).chain(removals).chain(sweeps).chain(retries).filter(|at| *at > now).min()
    }

    /// Whether everything accepted is in force, or failed to be.
    pub(crate) fn is_settled(&self) -> bool {
        !self.busy().any(|(_, slot)| slot.is_pending())
    }

    /// Everything that waits now, and for what.
    pub(crate) fn warming(&self, now: Duration) -> Vec<(Key, Vec<String>)> {
        let nothing = BTreeSet::new();
        let pending = self.busy().filter(|(_, slot)| slot.is_pending());
        pending
            .filter_map(|(key, slot)| {
                let waits = self.waits(slot.wanted.as_ref()?, now, &nothing);
                let names: Vec<String> = waits.into_iter().map(|(what, _)| what).collect();
                (!names.is_empty()).then(|| (key.clone(), names))
            })
            .collect()
    }

    fn publish_kind(&mut self, kind: Kind, now: Duration, coming: &mut BTreeSet<Key>, publication: &mut Publication) {
        let news = self.busy_of(kind).filter(|(_, slot)| slot.confirmed || slot.is_pending());
        let keys: Vec<Key> = news.map(|(key, _)| key.clone()).collect();
        for key in keys {
            let Some(slot) = self.slots.get_mut(&key) else { continue };
            let Some(wanted) = slot.wanted.clone() else { continue };
            let Some(given) = wanted.given.clone() else { continue };
            if std::mem::take(&mut slot.confirmed) {
                slot.active = Some(wanted);
                publication.confirmed.push((key, given));
                continue;
            }
            let waits = self.waits(&wanted, now, coming);
            if waits.is_empty() {
                for reference in wanted.references.iter().filter(|reference| reference.kind == Kind::Routes) {
                    self.stand_in(&(Kind::Routes, Arc::clone(&reference.name)), now, coming, publication);
                }
                let change = Change::Set(wanted.resource);
                publication.steps.push(Step { key: key.clone(), change, given: Some(given), since: wanted.since });
                coming.insert(key);
            } else if let Some(slot) = self.slots.get_mut(&key).filter(|slot| !slot.told) {
                slot.told = true;
                publication.waiting.push((key, given, waits.into_iter().map(|(what, _)| what).collect()));
            }
        }
    }

    /// Routes that were waited for in vain are none: their listener answers 404 until they come (as Envoy's does).
    fn stand_in(&mut self, key: &Key, now: Duration, coming: &mut BTreeSet<Key>, publication: &mut Publication) {
        if coming.contains(key)
            || self.slots.get(key).is_some_and(|slot| slot.active.is_some() || slot.wanted.is_some())
        {
            return;
        }
        let empty = RouteConfiguration { name: key.1.to_string(), ..RouteConfiguration::default() };
        let Ok(resource) = parse_any(type_url_of(Kind::Routes), &empty.encode_to_vec()).value else { return };
        let candidate = Candidate::new(resource.clone(), None, now, Arc::default());
        self.busy.insert(key.clone());
        let slot = self.slots.entry(key.clone()).or_default();
        slot.wanted = Some(candidate);
        slot.pending = true;
        publication.steps.push(Step { key: key.clone(), change: Change::Set(resource), given: None, since: now });
        coming.insert(key.clone());
    }

    /// What a candidate waits for, each with the time at which it no longer does.
    fn waits(&self, candidate: &Candidate, now: Duration, coming: &BTreeSet<Key>) -> Vec<(String, Option<Duration>)> {
        let mut waits = Vec::new();
        for reference in candidate.references.iter() {
            let key = (reference.kind, Arc::clone(&reference.name));
            let timeout = reference.source.initial_fetch_timeout;
            let until = (!timeout.is_zero()).then(|| candidate.since + timeout);
            let all = references::is_collection(key.0, &key.1);
            let is_there = (all && self.has_all(&key, coming))
                || self.slots.get(&key).is_some_and(|slot| match key.0 {
                    // A route configuration may itself wait for a cluster, and a filter for its routes.
                    Kind::Routes | Kind::Extension => slot.active.is_some() || coming.contains(&key),
                    _ => slot.active.is_some() || slot.wanted.is_some(),
                });
            match reference.patience {
                _ if is_there => {}
                Patience::None => {}
                Patience::Endless => waits.push((describe(&key), None)),
                Patience::Timeout => {
                    if !self.missing.contains(&key) && until.is_none_or(|until| now < until) {
                        waits.push((describe(&key), until));
                    }
                }
            }
        }
        for cluster in references::clusters(&candidate.resource) {
            let key = (Kind::Cluster, cluster);
            let until = match self.slots.get(&key) {
                Some(slot) if slot.is_pending() && slot.active.is_none() => Some(candidate.since + CLUSTER_TIME),
                Some(_) => None,
                // It may never come.
                None => self.unannounced.get(&key.1).map(|since| *since + ANNOUNCEMENT_TIME),
            };
            if until.is_some_and(|until| now < until) && !coming.contains(&key) {
                waits.push((describe(&key), until));
            }
        }
        waits
    }

    /// Whether a control plane has said what there is of a collection, and all of that is in force or is about to be.
    fn has_all(&self, all: &Key, coming: &BTreeSet<Key>) -> bool {
        let mut pending = self.busy_of(all.0).filter(|(key, slot)| slot.is_pending() && !coming.contains(*key));
        let is_member = |key: &Key| references::collection(key.0, &key.1).is_some_and(|of| of == *all);
        self.answered.contains(&all.0) && !pending.any(|(key, _)| is_member(key))
    }

    /// What failed for a while is due.
    fn try_again(&mut self, now: Duration) {
        for key in &self.busy {
            let retry = self.slots.get_mut(key).and_then(|slot| slot.retry.as_mut());
            if let Some(retry) = retry.filter(|retry| retry.at <= now) {
                retry.at = Duration::ZERO;
            }
        }
    }

    /// Removes what nobody refers to any more. Not at once: what is referred to again before the control plane was told
    /// that it is no longer wanted would not be sent again. Returns what was never in force and is to be forgotten.
    fn sweep(&mut self, now: Duration) -> Vec<Key> {
        let mut gone = Vec::new();
        // What is given up may have been all that refers to something else.
        while self.sweep_once(now, &mut gone) {
            self.referred += 1;
        }
        if !self.unannounced.is_empty() {
            let candidates = self.slots.values().filter_map(|slot| slot.wanted.as_ref());
            let named: BTreeSet<Name> = candidates.flat_map(|one| references::clusters(&one.resource)).collect();
            self.unannounced.retain(|name, _| named.contains(name));
        }
        gone
    }

    /// True: what is referred to is no longer what it was.
    fn sweep_once(&mut self, now: Duration, gone: &mut Vec<Key>) -> bool {
        let referred = self.take_referred();
        self.missing.retain(|key| referred.contains(key));
        let Self { slots, busy, .. } = self;
        let is_gone = |key: &Key| slots.get(key).is_none_or(|slot| slot.wanted.is_none() && slot.active.is_none());
        let empty: Vec<Key> = busy.iter().filter(|key| is_gone(key)).cloned().collect();
        for key in &empty {
            slots.remove(key);
            busy.remove(key);
        }
        gone.extend(empty);
        let mut changes = false;
        for key in busy.iter().filter(|key| is_by_reference(key.0)) {
            let Some(slot) = slots.get_mut(key) else { continue };
            if slot.fixed || slot.wanted.is_none() || is_referred(&referred, key) {
                slot.unreferenced = None;
            } else if now >= *slot.unreferenced.get_or_insert(now) + LINGER {
                changes |= references_of(slot.wanted.as_ref()) != references_of(slot.active.as_ref());
                (slot.wanted, slot.gone, slot.unreferenced) = (None, now, None);
            }
        }
        self.known.1 = referred;
        changes
    }

    /// What is referred to now. Whoever takes it puts it back.
    fn take_referred(&mut self) -> BTreeSet<Key> {
        if self.known.0 == self.referred {
            return std::mem::take(&mut self.known.1);
        }
        self.known.0 = self.referred;
        let referred: BTreeSet<Key> =
            self.references().map(|reference| (reference.kind, Arc::clone(&reference.name))).collect();
        // Whatever is no longer referred to is looked at.
        let unreferred = self.slots.keys().filter(|key| is_by_reference(key.0) && !is_referred(&referred, key));
        self.busy.extend(unreferred.cloned());
        referred
    }

    /// Cached resources that the control plane does not have go: clusters only when live listeners and routes have
    /// taken the place of cached ones.
    fn settle_leftovers(&mut self, now: Duration) {
        let left = self.busy().filter(|(_, slot)| slot.leftover.is_some_and(|due| due <= now));
        let left: Vec<Key> = left.map(|(key, _)| key.clone()).collect();
        if left.is_empty() {
            return;
        }
        let referred = self.take_referred();
        let cached_routes = self.slots.iter().any(|(key, slot)| {
            key.0 == Kind::Routes && slot.cached && referred.contains(key) && !self.missing.contains(key)
        });
        self.known.1 = referred;
        let live = self.is_answered(Kind::Listener) && !cached_routes;
        for key in left.iter().filter(|key| key.0 != Kind::Cluster || live) {
            if self.slots.get(key).is_some_and(|slot| slot.guarded) {
                tracing::warn!("{}: its deletion was held back long enough; it goes", describe(key));
            }
            self.give_up(key, now);
        }
    }

    /// The clusters to which traffic goes once `coming` is in force.
    fn clusters_in_use(&self, coming: &BTreeSet<Key>) -> BTreeSet<Name> {
        let in_force = self.slots.iter().filter_map(|(key, slot)| {
            let candidate = if coming.contains(key) { &slot.wanted } else { &slot.active };
            candidate.as_ref()
        });
        let routes = in_force.filter(|candidate| leads_to_clusters(&candidate.resource));
        routes.flat_map(|candidate| references::clusters(&candidate.resource)).collect()
    }

    /// Those of one kind, without a look at the others: ten thousand of them may come at once.
    pub(super) fn busy_of(&self, kind: Kind) -> impl Iterator<Item = (&Key, &Slot)> {
        let first: Key = (kind, "".into());
        let of_kind = self.busy.range(first..).take_while(move |(k, _)| *k == kind);
        of_kind.filter_map(|key| Some((key, self.slots.get(key)?)))
    }
}

fn is_referred(referred: &BTreeSet<Key>, key: &Key) -> bool {
    referred.contains(key) || references::collection(key.0, &key.1).is_some_and(|all| referred.contains(&all))
}

fn leads_to_clusters(resource: &Resource) -> bool {
    matches!(
        resource,
        Resource::Routes(_)
            | Resource::Listener(_)
            | Resource::Extension(_)
            | Resource::Scope(_)
            | Resource::VirtualHost(_)
    )
}

fn is_by_reference(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Endpoints
            | Kind::Routes
            | Kind::Secret
            | Kind::Extension
            | Kind::Runtime
            | Kind::Scope
            | Kind::VirtualHost
    )
}

fn describe((kind, name): &Key) -> String {
    let short = culvert_api::type_url::short_name(type_url_of(*kind));
    let all = if references::is_collection(*kind, name) { "*" } else { "" };
    format!("{short} {name}{all}")
}

/// What is referred to stands before what refers to it.
const ORDER: [Kind; 11] = [
    Kind::Runtime,
    Kind::Secret,
    Kind::Cluster,
    Kind::Endpoints,
    Kind::VirtualHost,
    Kind::Routes,
    Kind::Scope,
    Kind::Policy,
    Kind::Extension,
    Kind::Listener,
    Kind::Agent,
];

/// How long routes wait for a cluster that is announced and still warming. Envoy: `initial_fetch_timeout`.
const CLUSTER_TIME: Duration = Duration::from_secs(15);

/// How long routes that replace others wait for a cluster that nobody has announced: a control plane may send routes before
/// clusters.
const ANNOUNCEMENT_TIME: Duration = Duration::from_secs(2);

/// Delays before an address that was in use is tried again.
const RETRY_BASE: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
