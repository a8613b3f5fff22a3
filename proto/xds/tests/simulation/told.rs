//! What a server was told of one type on one stream, and what it may and must say.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use culvert_api::envoy::service::discovery::v3 as discovery;
use culvert_api::type_url::{CLUSTER, LISTENER, RESOURCE, short_name};
use culvert_xds::Variant;
use prost::Message;

use crate::judge::NAMES;

/// A response, read without any of our code.
#[derive(Debug)]
pub(crate) struct Carried {
    pub(crate) nonce: String,
    version: String,
    resources: Vec<(String, String)>,
    removed: Vec<String>,
    /// Without a body: still there.
    alive: Vec<String>,
    /// Said with a TTL.
    timed: BTreeSet<String>,
}

impl Carried {
    pub(crate) fn of_sotw(response: &discovery::DiscoveryResponse, known: &BTreeMap<Bytes, (String, String)>) -> Self {
        let mut timed = BTreeSet::new();
        let resources = response.resources.iter().map(|any| {
            if any.type_url != RESOURCE {
                return known[&any.value].clone();
            }
            let wrapped = discovery::Resource::decode(any.value.clone()).expect("a wrapper");
            if wrapped.ttl.is_some() {
                timed.insert(wrapped.name.clone());
            }
            known[&wrapped.resource.expect("in state of the world a body").value].clone()
        });
        let resources = resources.collect();
        let (nonce, version) = (response.nonce.clone(), response.version_info.clone());
        assert!(!nonce.is_empty() && !version.is_empty(), "a response without nonce or version");
        Self { nonce, version, resources, removed: Vec::new(), alive: Vec::new(), timed }
    }

    pub(crate) fn of_delta(
        response: &discovery::DeltaDiscoveryResponse,
        known: &BTreeMap<Bytes, (String, String)>,
    ) -> Self {
        let (mut resources, mut alive, mut timed) = (Vec::new(), Vec::new(), BTreeSet::new());
        for resource in &response.resources {
            if resource.ttl.is_some() {
                timed.insert(resource.name.clone());
            }
            match &resource.resource {
                Some(body) => {
                    let (name, version) = known[&body.value].clone();
                    assert_eq!((&resource.name, &resource.version), (&name, &version), "name and version of a body");
                    resources.push((name, version));
                }
                None => alive.push(resource.name.clone()),
            }
        }
        let (nonce, removed) = (response.nonce.clone(), response.removed_resources.clone());
        assert!(!nonce.is_empty(), "a response without a nonce");
        Self { nonce, version: String::new(), resources, removed, alive, timed }
    }
}

/// What is published of a type, and versions that every client refuses.
type Contents<'a> = (&'a BTreeMap<String, String>, &'a BTreeSet<String>);

#[derive(Debug)]
pub(crate) struct Told {
    of: &'static str,
    pub(crate) started: bool,
    named: bool,
    wildcard: bool,
    names: BTreeSet<String>,
    /// The client's own list (state of the world).
    pub(crate) wanted: Vec<String>,
    heard: Vec<String>,
    /// The version last put on the stream.
    pub(crate) sent: BTreeMap<String, String>,
    /// To be answered even if it is as it was.
    must: BTreeSet<String>,
    /// A response is owed even if it is empty.
    pub(crate) owed: bool,
    outstanding: Option<Outstanding>,
    pub(crate) last_nonce: String,
    pub(crate) seen_nonce: String,
    /// Of the node: outlives streams.
    pub(crate) accepted: BTreeMap<String, String>,
    pub(crate) accepted_version: String,
    pub(crate) refused: BTreeMap<String, String>,
    /// What was taken back since it was sent.
    lapsed: BTreeSet<String>,
    /// When what has a TTL was last spoken of.
    spoken: BTreeMap<String, Duration>,
}

#[derive(Debug)]
struct Outstanding {
    version: String,
    resources: Vec<(String, String)>,
    removed: Vec<String>,
    /// What the node accepted once, in place of what it refused: that stays refused.
    substitutes: BTreeSet<String>,
}

impl Told {
    pub(crate) fn new(of: &'static str) -> Self {
        Self {
            of,
            started: false,
            named: false,
            wildcard: false,
            names: BTreeSet::new(),
            wanted: Vec::new(),
            heard: Vec::new(),
            sent: BTreeMap::new(),
            must: BTreeSet::new(),
            owed: false,
            outstanding: None,
            last_nonce: String::new(),
            seen_nonce: String::new(),
            accepted: BTreeMap::new(),
            accepted_version: String::new(),
            refused: BTreeMap::new(),
            lapsed: BTreeSet::new(),
            spoken: BTreeMap::new(),
        }
    }

    pub(crate) fn disconnect(&mut self) {
        let (accepted, refused) = (std::mem::take(&mut self.accepted), std::mem::take(&mut self.refused));
        let accepted_version = std::mem::take(&mut self.accepted_version);
        *self = Self { accepted, refused, accepted_version, ..Self::new(self.of) };
    }

    fn covers(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    pub(crate) fn is_pure_wildcard(&self) -> bool {
        self.wildcard && self.names.is_empty()
    }

    /// The server ignored the client's latest list, or the answer that carried it is still to come.
    pub(crate) fn is_misunderstood(&self) -> bool {
        self.started && self.wanted != self.heard && self.seen_nonce == self.last_nonce
    }

    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.of, CLUSTER | LISTENER)
    }

    /// The server takes the client's list.
    pub(crate) fn replace(&mut self) {
        let (list, covered) = (self.wanted.clone(), self.covered());
        let everything =
            if list.is_empty() { !self.named && self.is_whole() } else { list.iter().any(|name| name == "*") };
        let names: BTreeSet<String> = list.iter().filter(|name| *name != "*").cloned().collect();
        self.must.extend(names.difference(&self.names).cloned());
        self.owed |= everything && !self.wildcard;
        self.named |= !list.is_empty();
        (self.wildcard, self.names, self.heard, self.started) = (everything, names, list, true);
        self.forget(&covered);
    }

    /// The server takes the lists of a delta request.
    pub(crate) fn update(&mut self, subscribe: &[String], unsubscribe: &[String]) {
        // What is given up in the breath in which it is asked for is given up all the same.
        let mut covered = self.covered();
        covered.extend(subscribe.iter().cloned());
        if !self.started {
            self.wildcard = subscribe.is_empty() && unsubscribe.is_empty() && self.is_whole();
            self.owed = true;
        }
        self.started = true;
        let before = self.wildcard;
        for name in subscribe {
            if name == "*" {
                self.wildcard = true;
            } else {
                self.names.insert(name.clone());
                self.must.insert(name.clone());
            }
        }
        let mut dropped = Vec::new();
        for name in unsubscribe {
            if name == "*" {
                self.wildcard = false;
            } else if self.names.remove(name) {
                self.must.remove(name);
                dropped.push(name.clone());
            }
        }
        self.owed |= self.wildcard && !before;
        // What a wildcard still covers is answered.
        let still = dropped.into_iter().filter(|_| self.wildcard);
        self.must.extend(still);
        self.forget(&covered);
    }

    /// The node says what it holds.
    pub(crate) fn hold(&mut self, held: &BTreeMap<String, String>, published: &BTreeMap<String, String>) {
        if held.is_empty() {
            self.refused.clear();
        }
        let covered = self.covered();
        self.accepted = held.clone();
        self.accepted.retain(|name, _| covered.contains(name));
        let held: BTreeMap<_, _> = held.iter().filter(|(name, _)| self.covers(name)).collect();
        for (name, version) in held {
            self.must.remove(name);
            // Who holds what there is refuses nothing of it.
            let settled = published.get(name) == Some(version);
            self.refused.retain(|refused, what| refused != name || (what != version && !settled));
            self.sent.insert(name.clone(), version.clone());
        }
    }

    /// What is no longer subscribed to is not known.
    fn forget(&mut self, covered: &BTreeSet<String>) {
        let gone: Vec<&String> = covered.iter().filter(|name| !self.covers(name)).collect();
        for name in gone {
            self.sent.remove(name);
            self.must.remove(name);
            self.accepted.remove(name);
            self.refused.remove(name);
            self.spoken.remove(name);
            // Who gave something up has no version of everything.
            self.accepted_version.clear();
        }
    }

    /// What is subscribed to, of all names that there are.
    fn covered(&self) -> BTreeSet<String> {
        NAMES.into_iter().filter(|name| self.covers(name)).map(ToOwned::to_owned).collect()
    }

    pub(crate) fn judge(&mut self, variant: Variant, carried: Carried, (published, bad): Contents<'_>, now: Duration) {
        let at = format!("{} {:?}", short_name(self.of), carried.nonce);
        assert!(self.started, "{at}: was never asked for");
        assert!(self.outstanding.is_none(), "{at}: the one before is not answered yet");
        let all = carried.resources.iter().map(|(name, _)| name).chain(&carried.removed).chain(&carried.alive);
        let mut once = BTreeSet::new();
        for name in all {
            assert!(once.insert(name), "{at}: {name} occurs twice");
            assert!(self.covers(name), "{at}: {name} is not subscribed to");
        }
        for name in &carried.alive {
            assert_eq!(self.sent.get(name), published.get(name), "{at}: {name} is alive, and another one was sent");
            assert!(carried.timed.contains(name), "{at}: {name} has no TTL");
        }
        let beats = carried.resources.iter().any(|(name, _)| carried.timed.contains(name)) || !carried.alive.is_empty();
        let whole = variant == Variant::Sotw && self.is_whole();
        if whole {
            self.judge_whole(&at, &carried, (published, bad), beats);
        } else {
            self.judge_part(&at, &carried, (published, bad));
        }
        for name in &carried.removed {
            assert!(!published.contains_key(name), "{at}: {name} is there, and removed");
            assert!(self.sent.remove(name).is_some() || self.must.contains(name), "{at}: nobody asked for {name}");
        }
        let some = !carried.resources.is_empty() || !carried.removed.is_empty() || !carried.alive.is_empty();
        assert!(some || self.owed || whole, "{at}: says nothing");
        for name in carried.timed.iter().chain(&carried.alive) {
            self.spoken.insert(name.clone(), now);
        }
        let said: BTreeSet<&String> = once;
        self.must.retain(|name| !said.contains(name) && !whole);
        self.lapsed.retain(|name| !carried.resources.iter().any(|(sent, _)| sent == name));
        self.sent.extend(carried.resources.iter().cloned());
        self.owed = false;
        self.last_nonce = carried.nonce;
        let (version, resources, mut removed) = (carried.version, carried.resources, carried.removed);
        if whole {
            // A full state says what is gone by leaving it out.
            let gone = |name: &&String| self.covers(name) && !published.contains_key(*name);
            removed.extend(self.refused.keys().filter(gone).cloned());
        }
        let replaces = |(name, version): &&(String, String)| {
            let current = published.get(name);
            self.refused.get(name) == current && current != Some(version)
        };
        let substitutes = resources.iter().filter(replaces).map(|(name, _)| name.clone()).collect();
        self.outstanding = Some(Outstanding { version, resources, removed, substitutes });
    }

    /// All that there is, but for what the node refused: of that what it has.
    fn judge_whole(&mut self, at: &str, carried: &Carried, (published, bad): Contents<'_>, beats: bool) {
        let seen: BTreeMap<String, String> = carried.resources.iter().cloned().collect();
        for (name, version) in published.iter().filter(|(name, _)| self.covers(name)) {
            match seen.get(name) {
                Some(content) if self.refused.get(name) == Some(version) => {
                    assert!(
                        content != version && !bad.contains(content),
                        "{at}: {name} was refused, and is sent again"
                    );
                }
                None if self.refused.get(name) == Some(version) => {}
                content => assert_eq!(content, Some(version), "{at}: {name} is not as it is published"),
            }
        }
        for name in seen.keys() {
            assert!(published.contains_key(name), "{at}: {name} is not published");
        }
        let news = self.owed || !self.must.is_empty() || seen != self.sent || beats;
        assert!(news, "{at}: the same again, unasked");
        self.sent.clear();
    }

    fn judge_part(&self, at: &str, carried: &Carried, (published, bad): Contents<'_>) {
        for (name, version) in &carried.resources {
            let asked = self.must.contains(name);
            let kept_alive = carried.timed.contains(name);
            let refused = self.refused.contains_key(name) && self.refused.get(name) == published.get(name);
            if refused && published.get(name) != Some(version) {
                // In place of what was refused a new stream is sent what the node accepted once.
                assert!(!bad.contains(version), "{at}: {name} never was accepted");
                assert!(
                    !self.sent.contains_key(name) || asked,
                    "{at}: {name} is sent again in its old content, unasked"
                );
                continue;
            }
            assert!(!refused || asked, "{at}: {name} was refused, and is sent again");
            assert_eq!(published.get(name), Some(version), "{at}: {name} is not as it is published");
            let news = self.sent.get(name) != Some(version) || self.lapsed.contains(name);
            assert!(news || asked || kept_alive, "{at}: {name} is sent again, unasked");
        }
    }

    /// For a while it was not there: state of the world cannot say so, and it is sent when it comes back.
    pub(crate) fn lapse(&mut self, name: &str) {
        self.lapsed.insert(name.to_owned());
    }

    /// The client takes what is good of the response. Returns what it refuses.
    pub(crate) fn answer(&mut self, bad: &BTreeSet<String>) -> Vec<String> {
        let Some(outstanding) = self.outstanding.take() else { return Vec::new() };
        let mut blamed = Vec::new();
        outstanding.removed.iter().for_each(|name| drop((self.accepted.remove(name), self.refused.remove(name))));
        if !outstanding.version.is_empty() && self.is_whole() {
            let listed: BTreeSet<&String> = outstanding.resources.iter().map(|(name, _)| name).collect();
            // What is left out because it was refused is refused still.
            self.accepted.retain(|name, _| listed.contains(name));
        }
        for (name, version) in outstanding.resources {
            if !self.covers(&name) {
                continue;
            }
            // Given up and asked for again meanwhile: this is what the client has of it.
            self.sent.entry(name.clone()).or_insert_with(|| version.clone());
            if bad.contains(&version) && self.sent.contains_key(&name) {
                self.refused.insert(name.clone(), version);
                blamed.push(name);
            } else if !bad.contains(&version) {
                if !outstanding.substitutes.contains(&name) {
                    self.refused.remove(&name);
                }
                self.accepted.insert(name, version);
            }
        }
        if blamed.is_empty() {
            self.accepted_version = outstanding.version;
        }
        blamed
    }

    /// Nothing is left to be said.
    pub(crate) fn check(&self, variant: Variant, published: &BTreeMap<String, String>, now: Duration) {
        let at = short_name(self.of);
        if !self.started {
            return;
        }
        assert!(!self.owed, "{at}: an answer is owed: {self:?}");
        for (name, version) in published.iter().filter(|(name, _)| self.covers(name)) {
            let refused = self.refused.get(name) == Some(version);
            let has = self.accepted.get(name) == Some(version);
            assert!(has || refused, "{at}: {name} never came as it is: {self:?}");
        }
        let can_remove = variant == Variant::Delta || self.is_whole();
        for name in self.accepted.keys().filter(|name| can_remove && self.covers(name)) {
            assert!(published.contains_key(name), "{at}: {name} is gone, and nobody said so: {self:?}");
        }
        // In state of the world nobody is told again what it refused.
        let is_refused = |name: &String| variant == Variant::Sotw && self.refused.get(name) == published.get(name);
        let due = self.must.iter().filter(|name| (can_remove || published.contains_key(*name)) && !is_refused(name));
        let unanswered: Vec<_> = due.collect();
        assert!(unanswered.is_empty(), "{at}: {unanswered:?} were never answered: {self:?}");
        for (name, at_last) in &self.spoken {
            let alive = published.contains_key(name) && self.accepted.contains_key(name);
            assert!(!alive || now - *at_last <= Duration::from_secs(12), "{at}: {name} was not kept alive: {self:?}");
        }
    }
}
