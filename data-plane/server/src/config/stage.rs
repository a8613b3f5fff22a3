//! Stage: what was accepted, what of it is in force, and what has to be fetched for it.
//!
//! A plain value: resources go in, changes come out ([`Stage::publish`]). It opens nothing and waits for nothing; time
//! is passed in.

mod demands;
mod guard;
mod misfit;
mod publish;
mod scopes;
mod slot;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::iter::repeat;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::Name;
use culvert_model::bootstrap::Bootstrap;
use culvert_model::resource::Resource;
use culvert_model::source::{ConfigSource, ConfigSourceKind};
use culvert_proxy::Wanted;
use culvert_runtime::telemetry::ScopePath;
use culvert_xds::client::Interest;

use self::demands::Demanded;
pub(crate) use self::guard::DeletionGuard;
use self::guard::Watched;
pub(crate) use self::publish::{Publication, Step, Went};
use self::slot::{Candidate, Slot, references_of};
use super::judge::Judged;
use super::references::{self, Reference, kind_of, type_url_of};
use crate::apply::Kind;
use crate::inventory::Given;

/// A resource's place.
pub(crate) type Key = (Kind, Name);

/// **Invariants:** static resources are never replaced or removed; a refusal changes nothing; what is in force stays
/// until what replaces it is ready.
#[derive(Debug)]
pub(crate) struct Stage {
    slots: BTreeMap<Key, Slot>,
    /// All slots that are not idle, and maybe some that are: what a push costs is what it changes, not what there is.
    busy: BTreeSet<Key>,
    /// Counts changes of what is referred to.
    referred: u64,
    /// What is referred to, as of a count of `referred`.
    known: (u64, BTreeSet<Key>),
    /// What the bootstrap itself takes by name.
    fixed: Vec<Reference>,
    /// What is subscribed to as a whole, and from where.
    roots: BTreeMap<Kind, ConfigSource>,
    /// Roots of which a control plane has said what there is.
    answered: BTreeSet<Kind>,
    /// Referred to, and said not to exist: nothing waits for it.
    missing: BTreeSet<Key>,
    /// Clusters that accepted routes lead to and nobody has announced, with the time since when.
    unannounced: BTreeMap<Name, Duration>,
    guard: DeletionGuard,
    watched: BTreeMap<Kind, Watched>,
    /// What requests have asked for.
    demanded: BTreeMap<(Wanted, Name), Demanded>,
    /// The bootstrap's ADS stream is asked for single names.
    ads_is_delta: bool,
}

/// What arrived of one kind at once.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) kind: Kind,
    pub(crate) resources: Vec<Judged>,
    pub(crate) removed: Vec<Name>,
    /// Further names under which some of `resources` were asked for.
    pub(crate) aliases: Vec<Name>,
    /// Names whose form alone was refused: they exist.
    pub(crate) malformed: Vec<Name>,
    /// Everything of the kind stands in it (state of the world).
    pub(crate) whole: bool,
    /// The first one of its kind on its stream.
    pub(crate) first: bool,
}

impl Stage {
    /// With the static resources of a bootstrap in force.
    pub(crate) fn new(bootstrap: &Bootstrap, guard: DeletionGuard) -> Self {
        let fixed = bootstrap.clusters.iter().cloned().map(Resource::Cluster);
        let fixed = fixed.chain(bootstrap.listeners.iter().cloned().map(Resource::Listener));
        let fixed = fixed.chain(bootstrap.agents.iter().cloned().map(Resource::Agent));
        let fixed = fixed.chain(bootstrap.policies.iter().cloned().map(Resource::Policy));
        let fixed = fixed.chain(bootstrap.secrets.iter().cloned().map(Resource::Secret));
        let mut slots = BTreeMap::new();
        for resource in fixed {
            let key = references::key_of(&resource);
            let references = references::of(&resource).into();
            let candidate = Candidate::new(resource, None, Duration::ZERO, references);
            let slot =
                Slot { fixed: true, wanted: Some(candidate.clone()), active: Some(candidate), ..Slot::default() };
            slots.insert(key, slot);
        }
        let roots = [
            (Kind::Cluster, &bootstrap.dynamic.cds),
            (Kind::Listener, &bootstrap.dynamic.lds),
            (Kind::Agent, &bootstrap.agents_config),
            (Kind::Policy, &bootstrap.policies_config),
        ];
        let roots = roots.into_iter().filter_map(|(kind, source)| Some((kind, source.clone()?))).collect();
        Self {
            slots,
            busy: BTreeSet::new(),
            referred: 1,
            known: (0, BTreeSet::new()),
            fixed: references::of_bootstrap(bootstrap),
            roots,
            answered: BTreeSet::new(),
            missing: BTreeSet::new(),
            unannounced: BTreeMap::new(),
            guard,
            watched: BTreeMap::new(),
            demanded: BTreeMap::new(),
            ads_is_delta: bootstrap.dynamic.ads.as_ref().is_some_and(|ads| ads.delta),
        }
    }

    /// Stages what a cache had. It was accepted once, and is judged again like anything else.
    pub(crate) fn load_cached(&mut self, resources: Vec<Judged>) {
        for judged in resources {
            match (kind_of(&judged.given.resource.type_url), judged.verdict) {
                (Some(kind), Ok(resource)) => {
                    self.accept((kind, judged.name), resource, judged.given, Duration::ZERO, true);
                }
                (_, Err(reason)) => tracing::warn!(name = %judged.name, reason, "a cached resource is no longer valid"),
                (None, Ok(_)) => {}
            }
        }
    }

    /// Stages what a control plane sent: good resources, and the last good ones in place of refused ones.
    pub(crate) fn receive(&mut self, batch: Batch, now: Duration) {
        self.answered_by(&batch);
        let Batch { kind, resources, removed, malformed, whole, first, .. } = batch;
        if first {
            self.watch_deletions(kind, whole, now);
        }
        let mut present: BTreeSet<Name> = malformed.into_iter().collect();
        for judged in resources {
            present.insert(Arc::clone(&judged.name));
            let key = (kind, judged.name);
            self.missing.remove(&key);
            if let Ok(resource) = judged.verdict {
                if judged.hindrance.is_none()
                    && let Some(slot) = self.slots.get_mut(&key)
                {
                    (slot.failed, slot.retry) = (false, None);
                }
                self.accept(key, resource, judged.given, now, false);
            }
        }
        self.note_seen(kind, &present, now);
        if !self.is_whole(kind) {
            // A layer of the runtime that is gone has no values (as in Envoy). What else is referred to by name keeps serving:
            // nothing else says what to do instead.
            for name in removed.iter().filter(|_| kind == Kind::Runtime) {
                self.give_up(&(kind, Arc::clone(name)), now);
            }
            self.missing.extend(removed.into_iter().map(|name| (kind, name)));
            return;
        }
        let mut going = self.dynamic(kind, removed);
        let leftovers = if self.answered.insert(kind) { self.leftovers(kind, &present) } else { BTreeSet::new() };
        going.extend(leftovers.iter().cloned());
        let held_back = self.held_back(kind, &going);
        for name in going {
            let held = held_back.contains(&name);
            // A delta server may spread its first answer over several responses.
            let grace = if whole || !leftovers.contains(&name) { Duration::ZERO } else { LEFTOVER_TIME };
            let hold = if held { self.guard.hold.max(grace) } else { grace };
            let is_left = held || leftovers.contains(&name);
            let key = (kind, name);
            if !is_left {
                self.give_up(&key, now);
            } else if let Some(slot) = self.touch(&key) {
                (slot.leftover, slot.guarded) = (Some(now + hold), held);
            }
        }
    }

    /// A control plane says that there is no such thing.
    pub(crate) fn not_found(&mut self, key: Key) {
        self.refuse_demand(&key);
        self.missing.insert(key);
    }

    /// A control plane was asked for a name for long. Whoever waits for it may have more patience (`initial_fetch_timeout`).
    pub(crate) fn unanswered(&mut self, key: Key, now: Duration) {
        self.refuse_demand(&key);
        let candidates = self.slots.values().flat_map(|slot| slot.wanted.iter().chain(&slot.active));
        let mut references =
            candidates.flat_map(|one| references::of(&one.resource).into_iter().zip(repeat(one.since)));
        let is_awaited = references.any(|(reference, since)| {
            let timeout = reference.source.initial_fetch_timeout;
            (reference.kind, &reference.name) == (key.0, &key.1) && (timeout.is_zero() || now < since + timeout)
        });
        if !is_awaited {
            self.missing.insert(key);
        }
    }

    /// A control plane was asked for a name for long, and whether there is such a thing is not known: whoever waits for it does so
    /// for its own time.
    pub(crate) fn unavailable(&mut self, key: &Key) {
        self.refuse_demand(key);
    }

    /// A resource's TTL is over. What is referred to by name keeps serving until another one comes, as in Envoy.
    pub(crate) fn expire(&mut self, key: Key, now: Duration) {
        if !self.is_whole(key.0) {
            self.missing.insert(key);
        } else {
            self.give_up(&key, now);
        }
    }

    /// Everything to subscribe to: by kind and source, with all names that are referred to.
    pub(crate) fn interests(&self) -> Vec<(Kind, ConfigSourceKind, Interest)> {
        let mut interests: Vec<(Kind, ConfigSourceKind, Interest)> =
            self.roots.iter().map(|(kind, source)| (*kind, source.kind.clone(), Interest::everything())).collect();
        let mut add = |kind: Kind, name: &Name, source: &ConfigSourceKind| {
            let found = interests.iter().position(|(k, s, _)| *k == kind && s == source);
            let index = found.unwrap_or_else(|| {
                interests.push((kind, source.clone(), Interest::default()));
                interests.len() - 1
            });
            let Some((_, _, interest)) = interests.get_mut(index) else { return };
            if references::is_collection(kind, name) {
                interest.wildcard = true;
            } else {
                interest.names.insert(Arc::clone(name));
            }
        };
        for Reference { kind, name, source, .. } in self.references() {
            add(*kind, name, &source.kind);
        }
        for (kind, name, source) in self.demanded_names() {
            add(kind, name, source);
        }
        interests
    }

    /// Whether what is not named among the resources of a kind is not there: it is not referred to by its own name, or not
    /// only.
    fn is_whole(&self, kind: Kind) -> bool {
        self.roots.contains_key(&kind) || matches!(kind, Kind::Scope | Kind::VirtualHost | Kind::Cluster)
    }

    /// Changes whenever [`Stage::interests`] may have.
    pub(crate) fn referred(&self) -> u64 {
        self.referred
    }

    /// Whether nothing would come of accepting `resource`: it is what was accepted last, and nothing was wrong with it.
    pub(crate) fn has(&self, kind: Kind, resource: &Resource) -> bool {
        let slot = self.slots.get(&(kind, references::key_of(resource).1));
        slot.is_some_and(|slot| {
            slot.fixed || (slot.holds(resource) && !slot.failed && slot.retry.is_none() && !slot.cached)
        })
    }

    /// Whether anything is in force under a name, or was accepted.
    pub(crate) fn knows(&self, key: &Key) -> bool {
        self.slots.get(key).is_some_and(|slot| slot.wanted.is_some() || slot.active.is_some())
    }

    /// Whether what was refused and is not named in a batch is not shown any more. Of agents and policies a response may be
    /// partial: that one is left out says nothing of what is in force, but nobody would ever say that a refused one is gone.
    pub(crate) fn is_all(&self, batch: &Batch) -> bool {
        let listed = [Kind::Listener, Kind::Cluster, Kind::Scope, Kind::Agent, Kind::Policy].contains(&batch.kind);
        batch.whole && listed && self.is_whole(batch.kind)
    }

    /// Resources in force that go with a batch: what it removes, what a live response does not have of what the cache had,
    /// and what is on its way out.
    pub(crate) fn leaving(&self, batch: &Batch) -> Vec<Name> {
        let first = batch.whole && self.is_whole(batch.kind) && !self.answered.contains(&batch.kind);
        let mut names = batch.removed.clone();
        let busy = self.busy().filter(|((kind, _), slot)| *kind == batch.kind && slot.is_leaving());
        names.extend(busy.map(|((_, name), _)| Arc::clone(name)));
        if first {
            let present = batch.resources.iter().map(|judged| Arc::clone(&judged.name)).collect();
            names.extend(self.leftovers(batch.kind, &present));
        }
        names
    }

    /// Names for which a cached resource stands in.
    pub(crate) fn cached(&self, kind: Kind) -> Vec<Name> {
        let of_kind = self.slots.iter().filter(|((k, _), slot)| *k == kind && slot.cached);
        of_kind.map(|((_, name), _)| Arc::clone(name)).collect()
    }

    /// How many accepted dynamic resources were given to this process, and how many are only what a cache had.
    pub(crate) fn origins(&self) -> (usize, usize) {
        let given = self.slots.values().filter(|slot| !slot.fixed && slot.wanted.is_some());
        given.fold((0, 0), |(live, cached), slot| (live + usize::from(!slot.cached), cached + usize::from(slot.cached)))
    }

    /// Whether a control plane has said what there is of a kind, or is not asked at all.
    pub(crate) fn is_answered(&self, kind: Kind) -> bool {
        !self.roots.contains_key(&kind) || self.answered.contains(&kind)
    }

    /// Accepted dynamic resources, without secrets: what the next cold start may begin with. Nor what has a TTL: without its
    /// control plane it is not to be.
    pub(crate) fn accepted(&self) -> Vec<(String, Given)> {
        let slots = self.slots.iter().filter(|((kind, _), slot)| *kind != Kind::Secret && !slot.fixed);
        let kept = slots.filter_map(|((_, name), slot)| {
            let wanted = slot.wanted.as_ref()?;
            // What could not be applied here and now would not serve a cold start either.
            let good = if slot.failed || slot.retry.is_some() { slot.active.as_ref()? } else { wanted };
            let given = good.given.as_ref().filter(|given| !given.temporary)?;
            Some((name.to_string(), given.clone()))
        });
        kept.collect()
    }

    /// What was accepted last under a name, as it came and as it was parsed: what comes next is mostly the same.
    pub(crate) fn accepted_last(&self, kind: Kind, name: &Name) -> Option<(Given, Resource)> {
        let wanted = self.slots.get(&(kind, Arc::clone(name)))?.wanted.as_ref()?;
        Some((wanted.given.clone()?, wanted.resource.clone()))
    }

    /// Whether what the bootstrap itself takes by name has come, or is known not to.
    pub(crate) fn has_fixed(&self) -> bool {
        self.fixed.iter().all(|reference| {
            let key = (reference.kind, Arc::clone(&reference.name));
            self.missing.contains(&key) || self.slots.get(&key).is_some_and(|slot| slot.active.is_some())
        })
    }

    /// Whether any listener is in force, whatever brought it.
    pub(crate) fn has_listener(&self) -> bool {
        self.slots.iter().any(|((kind, _), slot)| *kind == Kind::Listener && slot.active.is_some())
    }

    fn accept(&mut self, key: Key, resource: Resource, given: Given, now: Duration, cached: bool) {
        let (kind, name) = (key.0, Arc::clone(&key.1));
        let references = self.references_of(&resource);
        let asks_for_scopes = !references::scope_sources(&resource).is_empty();
        let slot = self.slots.entry(key.clone()).or_default();
        if slot.fixed {
            let short = culvert_api::type_url::short_name(type_url_of(kind));
            tracing::warn!("{short}/{name}: ignored, a static resource has that name");
            return;
        }
        let same = slot.holds(&resource);
        let replaces = slot.active.is_some();
        let since = slot.wanted.as_ref().filter(|_| same).map_or(now, |wanted| wanted.since);
        slot.failed &= same;
        slot.retry = slot.retry.filter(|_| same);
        slot.told &= same;
        slot.pending = slot.active.as_ref().is_none_or(|active| active.resource != resource);
        slot.confirmed = !slot.pending;
        let candidate = Candidate::new(resource, Some(given), since, references);
        self.referred += u64::from(*references_of(slot.wanted.as_ref()) != *candidate.references);
        slot.wanted = Some(candidate);
        self.busy.insert(key);
        slot.cached = cached;
        (slot.leftover, slot.guarded) = (None, false);
        if kind == Kind::Cluster {
            self.unannounced.remove(&name);
        } else if replaces && !cached && self.roots.contains_key(&Kind::Cluster) {
            self.note_unannounced(&(kind, name), now);
        }
        if asks_for_scopes {
            self.refer_scopes();
        }
    }

    /// Remembers since when clusters to which a resource leads are unheard of.
    fn note_unannounced(&mut self, key: &Key, now: Duration) {
        let wanted = self.slots.get(key).and_then(|slot| slot.wanted.as_ref());
        let named = wanted.map(|wanted| references::clusters(&wanted.resource)).unwrap_or_default();
        for name in named {
            let key = (Kind::Cluster, name);
            if !self.slots.contains_key(&key) {
                self.unannounced.entry(key.1).or_insert(now);
            }
        }
    }

    /// Those of `names` that a control plane has given, and may take.
    fn dynamic(&self, kind: Kind, names: Vec<Name>) -> BTreeSet<Name> {
        let known = |name: &Name| self.slots.get(&(kind, Arc::clone(name)));
        names.into_iter().filter(|name| known(name).is_some_and(|slot| !slot.fixed && slot.wanted.is_some())).collect()
    }

    /// What the cache had and the control plane has not named.
    fn leftovers(&self, kind: Kind, present: &BTreeSet<Name>) -> BTreeSet<Name> {
        let cached = self.slots.iter().filter(|((k, name), slot)| *k == kind && slot.cached && !present.contains(name));
        cached.map(|((_, name), _)| Arc::clone(name)).collect()
    }

    /// Every resource that is fetched by its name, and where its updates are counted.
    pub(crate) fn scopes(&self) -> Vec<(Kind, Name, ScopePath)> {
        let candidates = self.slots.values().flat_map(|slot| slot.wanted.iter().chain(&slot.active));
        let mut seen = HashSet::new();
        let all = candidates.flat_map(|candidate| references::scopes(&candidate.resource));
        all.filter(|(_, _, path)| seen.insert(path.clone())).collect()
    }

    fn references(&self) -> impl Iterator<Item = &Reference> {
        let candidates = self.slots.values().flat_map(|slot| slot.wanted.iter().chain(&slot.active));
        candidates.flat_map(|candidate| candidate.references.iter()).chain(&self.fixed)
    }

    /// A slot that is about to change.
    fn touch(&mut self, key: &Key) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(key)?;
        self.busy.insert(key.clone());
        Some(slot)
    }

    /// A slot that is no longer to exist.
    fn give_up(&mut self, key: &Key, now: Duration) {
        let Some(slot) = self.touch(key).filter(|slot| !slot.fixed) else { return };
        // What it has in force is referred from until it is removed.
        let changes = references_of(slot.wanted.as_ref()) != references_of(slot.active.as_ref());
        (slot.wanted, slot.gone, slot.leftover, slot.guarded) = (None, now, None, false);
        self.referred += u64::from(changes);
    }

    fn busy(&self) -> impl Iterator<Item = (&Key, &Slot)> {
        self.busy.iter().filter_map(|key| Some((key, self.slots.get(key)?)))
    }
}

/// How long a cached resource that a delta server did not send at once is kept.
const LEFTOVER_TIME: Duration = Duration::from_secs(15);
