//! Builds the next response of a subscription.

use std::collections::BTreeSet;
use std::sync::Arc;

use culvert_api::type_url;

use super::super::memory::Item;
use super::super::response::{Absent, Body, Nonce, Response};
use super::{Outstanding, Subscription};
use crate::resource::{Resource, Version};
use crate::snapshot::TypeSet;
use crate::{Name, Variant, xdstp};

impl Subscription {
    /// The next response, if one may be sent and there is something to say.
    pub(crate) fn next(
        &mut self,
        set: &Arc<TypeSet>,
        nonce: impl FnOnce() -> Nonce,
        control_plane: &Arc<str>,
    ) -> Option<Response> {
        if !self.started {
            return None;
        }
        self.observe(set);
        if self.outstanding.is_some() {
            return None;
        }
        let alive = self.alive(set);
        let beats = !alive.is_empty();
        // Its full state is what keeps a resource alive.
        self.owed |= !alive.is_empty() && self.is_full_state();
        let (due, forced) = if set.frozen { self.take_due_of_frozen(set) } else { self.take_due() };
        if due.is_empty() && alive.is_empty() && !self.owed {
            return None;
        }
        let errors = self.errors(set, &due);
        // An answer that holds nothing else.
        self.owed |= !errors.is_empty() && self.variant == Variant::Sotw;
        let (version, body, items) = match self.variant {
            Variant::Delta if !alive.is_empty() => (set.version(), Body::Alive(alive), Vec::new()),
            Variant::Delta => self.build_delta(set, due, &forced)?,
            Variant::Sotw if self.is_full_state() => self.build_full(set, due, &forced)?,
            Variant::Sotw if !alive.is_empty() => (self.version_of_part(set, &alive), Body::Sotw(alive), Vec::new()),
            Variant::Sotw => self.build_partial(set, due, &forced)?,
        };
        self.set_beat(set, beats);
        self.owed = false;
        self.counts.sent += 1;
        self.nonce = nonce();
        self.memory.on_sent(&items);
        self.outstanding = Some(Outstanding { nonce: self.nonce, version, at: self.memory.now, items });
        Some(Response {
            variant: self.variant,
            type_url: Arc::clone(&self.type_url),
            version,
            nonce: self.nonce,
            control_plane: Arc::clone(control_plane),
            body,
            errors,
            with_ttl: self.tells_ttl(),
        })
    }

    /// What is to be looked at, and what of it is answered whatever was sent before.
    fn take_due(&mut self) -> (BTreeSet<Name>, BTreeSet<Name>) {
        (std::mem::take(&mut self.due), std::mem::take(&mut self.forced))
    }

    /// Of a set that is about to be another one only what is asked for is shown, as the node has it, and looked at again later. What
    /// it refused, and has in no other content, is not shown again: its turn comes with the other set.
    fn take_due_of_frozen(&mut self, set: &TypeSet) -> (BTreeSet<Name>, BTreeSet<Name>) {
        let (due, forced) = self.take_due();
        let hidden = |name: &Name| {
            let refused = self.lookup(set, name).is_some_and(|resource| self.memory.refusal(name, resource).is_some());
            refused && self.memory.accepted(name).is_none() && !self.is_full_state()
        };
        let (later, now): (BTreeSet<Name>, BTreeSet<Name>) = forced.into_iter().partition(hidden);
        self.due = due;
        self.forced = later;
        (now.clone(), now)
    }

    fn tells_ttl(&self) -> bool {
        self.variant == Variant::Delta || self.takes_ttl
    }

    /// What the node has and keeps only if it hears of it again, once it is time for that and there is nothing else to say.
    fn alive(&mut self, set: &TypeSet) -> Vec<Arc<Resource>> {
        let now = self.memory.now;
        let Some(ttl) = set.shortest_ttl() else {
            self.beat_at = None;
            return Vec::new();
        };
        if self.beat_at.is_none_or(|at| now < at) {
            return Vec::new();
        }
        // Whatever comes of it: not due again at once, or the stream's driver would not rest.
        self.beat_at = Some(now + ttl / 12);
        // In delta a heartbeat has no body. One that is late may find the node without what it is about, and brings it back.
        let is_late = self.beaten_at.is_none_or(|at| now.saturating_sub(at) >= ttl * 2 / 3);
        let revives = is_late && self.variant == Variant::Delta;
        if !revives && (!self.due.is_empty() || self.owed) {
            return Vec::new();
        }
        let has = |resource: &Arc<Resource>| {
            let name = resource.name();
            let is_as_sent = self.sent.get(name) == Some(&resource.version());
            let is_held = is_as_sent && self.memory.refusal(name, resource).is_none();
            resource.ttl().is_some() && self.interest.covers(name) && is_held
        };
        let alive: Vec<_> = set.resources().filter(|resource| has(resource)).cloned().collect();
        if alive.is_empty() {
            self.beat_at = None;
        } else if revives {
            (self.beat_at, self.beaten_at) = (Some(now + ttl / 3), Some(now));
            let names = alive.iter().map(|resource| resource.name());
            self.forced.extend(names.clone().cloned());
            self.due.extend(names.cloned());
            return Vec::new();
        }
        alive
    }

    /// What the node came with may be about to be over: nobody knows since when it has that.
    pub(super) fn beat_at_once(&mut self, set: &TypeSet) {
        if self.tells_ttl() && set.shortest_ttl().is_some() {
            self.beat_at = Some(self.memory.now);
        }
    }

    /// Three times in the shortest TTL: two may come late. Other responses do not put it off: what they do not carry lives
    /// no longer for them.
    fn set_beat(&mut self, set: &TypeSet, beats: bool) {
        let ttl = set.shortest_ttl().filter(|_| self.tells_ttl());
        let next = ttl.map(|ttl| self.memory.now + ttl / 3);
        let before = self.beat_at.filter(|_| !beats);
        if before.is_none() {
            self.beaten_at = Some(self.memory.now);
        }
        self.beat_at = next.map(|next| before.map_or(next, |before| before.min(next)));
    }

    /// Why names that are asked for have no resource, once for each reason (xDS TP3). In delta what does not exist is said by
    /// `removed_resources`, and a virtual host by a resource without a body.
    fn errors(&mut self, set: &TypeSet, due: &BTreeSet<Name>) -> Vec<(Name, Absent)> {
        let mut errors = Vec::new();
        if self.variant == Variant::Sotw && !self.tells_absence {
            return errors;
        }
        for name in due.iter().filter(|name| self.interest.names.contains(*name)) {
            if self.withholds(name) {
                continue;
            }
            // What is frozen is not what the node will have.
            let absent = match set.get(name) {
                Some(_) => None,
                // A collection that has members is there.
                None if xdstp::is_glob(name) && set.members(name).next().is_some() => None,
                None if set.is_denied(name) => Some(Absent::Denied),
                None => (self.variant == Variant::Sotw && !set.frozen).then_some(Absent::NotFound),
            };
            let told = match absent {
                Some(absent) => self.absent.insert(Arc::clone(name), absent),
                None => self.absent.remove(name),
            };
            errors.extend(absent.filter(|absent| told != Some(*absent)).map(|absent| (Arc::clone(name), absent)));
        }
        errors
    }

    /// Brings `due` up to `set`: costs what changed where the set knows it, else what there is.
    fn observe(&mut self, set: &Arc<TypeSet>) {
        if self.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, set)) {
            return;
        }
        let changed = self.seen.as_ref().and_then(|seen| set.changed_since(seen));
        if let Some(changed) = changed {
            self.due.extend(changed.iter().filter(|name| self.interest.covers(name)).cloned());
            // Of which there may be no member any more.
            self.due.extend(changed.iter().filter_map(|name| self.interest.collection(name)).cloned());
        } else {
            if self.interest.wildcard {
                self.due.extend(set.resources().map(|resource| Arc::clone(resource.name())));
            }
            self.due.extend(self.interest.names.iter().cloned());
            for glob in self.interest.globs() {
                self.due.extend(set.members(glob).map(|resource| Arc::clone(resource.name())));
            }
            self.due.extend(self.sent.iter().map(|(name, _)| Arc::clone(name)));
        }
        self.seen = Some(Arc::clone(set));
    }

    /// Whether the node has this still, and its removal waits.
    fn withholds(&self, name: &Name) -> bool {
        self.withheld.contains(name) && self.sent.get(name).is_some()
    }

    /// Whether this content is news to the stream and not known to be refused.
    fn wants(&self, name: &Name, resource: &Resource) -> bool {
        self.memory.refusal(name, resource).is_none() && self.sent.get(name) != Some(&resource.version())
    }

    fn build_delta(
        &mut self,
        set: &TypeSet,
        due: BTreeSet<Name>,
        forced: &BTreeSet<Name>,
    ) -> Option<(Version, Body, Vec<Item>)> {
        let mut resources = Vec::new();
        let mut removed = Vec::new();
        let mut hollow = Vec::new();
        let mut items = Vec::new();
        for name in due {
            let forced = forced.contains(&name);
            let is_kept = set.retained.contains(&name);
            if is_kept && !forced {
                continue;
            }
            // What is only kept is shown as the node has it.
            let accepted = self.memory.accepted(&name).filter(|_| is_kept || set.frozen);
            if is_kept && accepted.is_none() && self.sent.get(&name).is_some() {
                // It came with a content of its own, and keeps that.
                continue;
            }
            match accepted.or_else(|| self.lookup(set, &name).filter(|_| !is_kept)) {
                Some(resource) if forced || self.wants(&name, resource) => {
                    self.sent.insert(Arc::clone(&name), resource.version());
                    // Asked for by two of its names it is sent once.
                    let aliased = !resource.aliases().is_empty();
                    if !aliased || !resources.iter().any(|sent| Arc::ptr_eq(sent, resource)) {
                        resources.push(Arc::clone(resource));
                    }
                    items.push((name, Some(Arc::clone(resource))));
                }
                Some(_) => {}
                // Its turn comes once nothing refers to it.
                None if self.withholds(&name) => {}
                None => {
                    let known = self.sent.remove(&name);
                    if !self.interest.covers(&name) || !(known || forced) {
                        continue;
                    }
                    // By which name the node has it, which may have asked by another.
                    let own = self.memory.accepted(&name).map(|held| Arc::clone(held.name()));
                    let own = own.filter(|own| known && set.get(own).is_none());
                    // An on-demand virtual host that is merely removed leaves Envoy's request hanging. One that Envoy has goes by
                    // its own name alone.
                    if &*self.type_url == type_url::VIRTUAL_HOST && own.as_ref() != Some(&name) {
                        hollow.push(Arc::clone(&name));
                    } else {
                        removed.push(Arc::clone(&name));
                    }
                    removed.extend(own);
                    items.push((name, None));
                }
            }
        }
        // By more than one of its names, maybe.
        removed.sort_unstable();
        removed.dedup();
        if resources.is_empty() && removed.is_empty() && hollow.is_empty() && !self.owed {
            return None;
        }
        Some((set.version(), Body::Delta { resources, removed, hollow }, items))
    }

    fn build_partial(
        &mut self,
        set: &TypeSet,
        due: BTreeSet<Name>,
        forced: &BTreeSet<Name>,
    ) -> Option<(Version, Body, Vec<Item>)> {
        let mut resources = Vec::new();
        let mut items = Vec::new();
        for name in due {
            let Some(resource) = self.lookup(set, &name) else {
                // There is no way to say that it is gone; should it come back, it is sent again, unless it was refused.
                if self.memory.refused_version(&name).as_ref() != self.sent.get(&name) {
                    self.sent.remove(&name);
                }
                continue;
            };
            let resource = self.memory.accepted(&name).filter(|_| set.frozen).unwrap_or(resource);
            let refused = self.memory.refusal(&name, resource).is_some();
            if set.retained.contains(&name) && !forced.contains(&name) {
                continue;
            }
            let is_news = self.wants(&name, resource) || (forced.contains(&name) && !refused);
            let resource = if is_news {
                resource
            } else if refused && self.sent.get(&name).is_none() {
                // A new stream of a node that refused the present content: it gets what it accepted.
                let Some(accepted) = self.memory.accepted(&name) else { continue };
                accepted
            } else {
                continue;
            };
            let resource = Arc::clone(resource);
            self.sent.insert(Arc::clone(&name), resource.version());
            if is_news {
                items.push((name, Some(Arc::clone(&resource))));
            }
            // Its answer to what it accepted before says nothing about what it refused since.
            resources.push(resource);
        }
        if resources.is_empty() && !self.owed {
            return None;
        }
        Some((self.version_of_part(set, &resources), Body::Sotw(resources), items))
    }

    /// `version_info` of a response that does not list all that the node has. A set's own version is for who has all of the
    /// set then: with it a node that comes back and asks for everything says that it needs nothing.
    fn version_of_part(&self, set: &TypeSet, resources: &[Arc<Resource>]) -> Version {
        if self.interest.is_pure_wildcard() && self.refuses_nothing() {
            return set.version();
        }
        Version::of_set(resources.iter().map(|resource| &**resource))
    }

    fn build_full(
        &mut self,
        set: &Arc<TypeSet>,
        due: BTreeSet<Name>,
        forced: &BTreeSet<Name>,
    ) -> Option<(Version, Body, Vec<Item>)> {
        let news = |name: &Name| match self.lookup(set, name) {
            Some(_) if set.retained.contains(name) => forced.contains(name),
            Some(resource) => forced.contains(name) || self.wants(name, resource),
            None => forced.contains(name) || self.sent.get(name).is_some(),
        };
        if !self.owed && !due.iter().any(news) {
            return None;
        }
        let is_accepted = |name: &Name| {
            let accepted = self.memory.accepted(name).map(|accepted| accepted.version());
            accepted == set.get_listed(name).map(|resource| resource.version())
        };
        let as_it_is = !set.frozen && self.memory.refused_names().len() == 0 && set.retained.iter().all(is_accepted);
        let mut items = Vec::new();
        let mut due = due;
        let others = self.memory.refused_names().chain(&set.retained);
        due.extend(others.filter(|name| self.interest.covers(name)).cloned());
        for name in due {
            let resource = self.lookup(set, &name);
            // Who takes it as it is now, or takes that it is gone, refuses nothing of it any more.
            let present = resource.map(|resource| resource.version());
            let ends_refusal = self.memory.refused_version(&name).is_some_and(|refused| present != Some(refused));
            let content = resource.and_then(|resource| self.content(set, resource)).cloned();
            match &content {
                Some(content) => self.sent.insert(Arc::clone(&name), content.version()),
                None => drop(self.sent.remove(&name)),
            }
            let accepted = self.memory.accepted(&name).map(|accepted| accepted.version());
            if ends_refusal || accepted != content.as_ref().map(|content| content.version()) {
                items.push((name, content));
            }
        }
        let has_ttl = self.takes_ttl && set.shortest_ttl().is_some();
        if self.interest.wildcard && as_it_is && !has_ttl {
            return Some((set.version(), Body::Whole(Arc::clone(set)), items));
        }
        let served: Vec<&Arc<Resource>> = if self.interest.wildcard {
            set.resources().collect()
        } else if self.interest.globs().next().is_some() {
            set.resources().filter(|resource| self.interest.covers(resource.name())).collect()
        } else {
            self.interest.names.iter().filter_map(|name| self.lookup(set, name)).collect()
        };
        let resources: Vec<_> =
            served.into_iter().filter_map(|resource| self.content(set, resource)).cloned().collect();
        let version = Version::of_set(resources.iter().map(|resource| &**resource));
        Some((version, Body::Sotw(resources), items))
    }

    /// What a full state carries for a resource: its content, but in place of a refused one the content that was
    /// accepted last, and nothing if there is none (unless the node came with a state that we do not know: leaving
    /// the resource out would remove what it holds).
    fn content<'a>(&'a self, set: &TypeSet, resource: &'a Arc<Resource>) -> Option<&'a Arc<Resource>> {
        if set.frozen || set.retained.contains(resource.name()) {
            return self.memory.accepted_once(resource.name());
        }
        if self.memory.refusal(resource.name(), resource).is_none() {
            return Some(resource);
        }
        self.memory.accepted_once(resource.name()).or(if self.holds_unknown { Some(resource) } else { None })
    }
}
