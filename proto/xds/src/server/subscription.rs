//! One stream's subscription to one type: what is asked for, what was sent, what waits for its answer.

mod build;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use culvert_api::google::rpc;
use culvert_api::type_url;

use super::holdings::Holdings;
use super::interest::{Interest, InterestChange, check_count};
use super::memory::{Item, Memory, blamed, mentioned};
use super::response::{Absent, Nonce};
use super::{Heard, RequestError};
use crate::resource::{Resource, TypeUrl, Version};
use crate::snapshot::{TypeSet, is_removed_last};
use crate::{Name, Variant, xdstp};

/// **Invariants:** at most one response is unanswered; what the node holds (`memory`) moves only when it answers; a
/// name is in `due` only if its content may have to be sent.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) variant: Variant,
    pub(crate) type_url: TypeUrl,
    pub(crate) interest: Interest,
    pub(crate) memory: Memory,
    /// The content last put on this stream, accepted or not. Absent: nothing, or a removal.
    pub(crate) sent: Holdings<Version>,
    /// The set that `due` was brought up to.
    seen: Option<Arc<TypeSet>>,
    /// Names to look at when the next response is built.
    due: BTreeSet<Name>,
    /// Those of `due` that are answered whatever was sent before.
    forced: BTreeSet<Name>,
    /// What the node came with and is gone: not removed before the change that it missed is over.
    withheld: BTreeSet<Name>,
    /// Names that the node was told to have no resource, and why.
    absent: BTreeMap<Name, Absent>,
    /// In state of the world the node is told what does not exist.
    pub(crate) tells_absence: bool,
    /// In state of the world the node takes resources with a TTL.
    pub(crate) takes_ttl: bool,
    /// When to say again that resources with a TTL are as they were.
    beat_at: Option<Duration>,
    /// When that was said last on this stream.
    beaten_at: Option<Duration>,
    /// A response is owed even if it is empty.
    owed: bool,
    pub(crate) outstanding: Option<Outstanding>,
    /// Of the latest response.
    nonce: Nonce,
    /// The node came with a state that we cannot know: what it refuses is not left out of a full state.
    holds_unknown: bool,
    started: bool,
    pub(crate) counts: Counts,
    pub(crate) error: Option<Arc<str>>,
}

#[derive(Debug)]
pub(crate) struct Outstanding {
    nonce: Nonce,
    version: Version,
    pub(crate) at: Duration,
    /// What differs from what the node had accepted, sorted by name.
    pub(crate) items: Vec<Item>,
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) sent: u64,
    pub(crate) acked: u64,
    pub(crate) nacked: u64,
}

impl Subscription {
    pub(crate) fn new(variant: Variant, type_url: TypeUrl, memory: Memory) -> Self {
        Self {
            variant,
            type_url,
            interest: Interest::default(),
            memory,
            sent: Holdings::default(),
            seen: None,
            due: BTreeSet::new(),
            forced: BTreeSet::new(),
            withheld: BTreeSet::new(),
            absent: BTreeMap::new(),
            tells_absence: false,
            takes_ttl: false,
            beat_at: None,
            beaten_at: None,
            owed: false,
            outstanding: None,
            nonce: Nonce::default(),
            holds_unknown: false,
            started: false,
            counts: Counts::default(),
            error: None,
        }
    }

    /// xDS: every response of LDS and CDS holds all resources subscribed to; those absent are removed. Envoy reads SRDS so, too.
    /// All other types may be answered in part.
    fn is_full_state(&self) -> bool {
        let full = [type_url::LISTENER, type_url::CLUSTER, type_url::SCOPED_ROUTE_CONFIGURATION];
        self.variant == Variant::Sotw && full.contains(&&*self.type_url)
    }

    /// What the subscription is served under this name.
    pub(crate) fn lookup<'s>(&self, set: &'s TypeSet, name: &str) -> Option<&'s Arc<Resource>> {
        if self.interest.names.contains(name) {
            // xDS: in state of the world a resource has no other name than its own.
            set.get(name).filter(|resource| self.variant == Variant::Delta || &**resource.name() == name)
        } else if self.interest.wildcard || self.interest.collection(name).is_some() {
            set.get_listed(name)
        } else {
            None
        }
    }

    /// When to look again although nothing was heard.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.beat_at.filter(|_| self.outstanding.is_none())
    }

    /// Whether the node was sent all of `set` that it asked for, and answered.
    pub(crate) fn is_answered(&self, set: &Arc<TypeSet>) -> bool {
        let looked = self.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, set)) && self.due.is_empty() && !self.owed;
        !self.started || (looked && self.outstanding.is_none())
    }

    /// Why the node refused a resource as it is in `set`, of one that it has as `held` says.
    pub(crate) fn refused_and(&self, set: &TypeSet, held: Held) -> Option<Arc<str>> {
        let is_held_so = |name: &Name| match held {
            Held::Never => self.memory.accepted(name).is_none() && !self.memory.is_foreign(name),
            Held::Older => self.memory.accepted_once(name).is_some() || self.memory.is_foreign(name),
        };
        self.memory.refused_names().find_map(|name| {
            let refusal = self.memory.refusal(name, self.lookup(set, name)?)?;
            is_held_so(name).then(|| Arc::clone(&refusal.reason))
        })
    }

    /// The node should have `set` now: what was refused together with something else is looked at again.
    pub(crate) fn release(&mut self, set: &TypeSet) {
        for name in self.memory.release(set) {
            if self.interest.covers(&name) {
                self.forced.insert(Arc::clone(&name));
                self.due.insert(name);
            }
        }
    }

    /// Whether a request began it.
    pub(crate) fn is_started(&self) -> bool {
        self.started
    }

    /// The resources of `set` that the node does not have as they are.
    pub(crate) fn news<'a>(&self, set: &'a TypeSet) -> impl Iterator<Item = &'a Arc<Resource>> {
        set.resources().filter(|resource| self.sent.get(resource.name()) != Some(&resource.version()))
    }

    /// Whether removals wait for what refers to them.
    pub(crate) fn withholds_any(&self) -> bool {
        !self.withheld.is_empty()
    }

    /// Nothing refers any more to what was withheld.
    pub(crate) fn remove_withheld(&mut self) {
        self.due.append(&mut self.withheld);
    }

    /// What the resources of the unanswered response refer to.
    pub(crate) fn referred_names(&self) -> impl Iterator<Item = &Name> {
        let items = self.outstanding.iter().flat_map(|outstanding| &outstanding.items);
        items.filter_map(|(_, resource)| resource.as_ref()?.referred())
    }

    /// Sends these again, of those that the node has and does not refuse.
    pub(crate) fn repeat<'a>(&mut self, names: impl Iterator<Item = &'a Name>) {
        for name in names.filter(|name| self.sent.get(name).is_some() && self.memory.refused_version(name).is_none()) {
            self.forced.insert(Arc::clone(name));
            self.due.insert(Arc::clone(name));
        }
    }

    /// Whether the node refused something as it is in `set`.
    pub(crate) fn refuses_any(&self, set: &TypeSet) -> bool {
        let refused = |name| Some(self.memory.refusal(name, self.lookup(set, name)?)?.version);
        self.memory.refused_names().any(|name| refused(name).is_some())
    }

    pub(crate) fn refuses_nothing(&self) -> bool {
        self.memory.refused_names().len() == 0
    }

    /// What is refused at its latest refusal, and why, for messages.
    pub(crate) fn refused(&self) -> (TypeUrl, Arc<str>) {
        (Arc::clone(&self.type_url), self.error.clone().unwrap_or_default())
    }

    pub(crate) fn on_request(
        &mut self,
        request: &DiscoveryRequest,
        set: &Arc<TypeSet>,
        settings: RequestSettings,
    ) -> Result<Heard, RequestError> {
        // xDS: the first request of a type on a stream is new, whatever nonce it carries (MOSN keeps the old one).
        let first = !self.started;
        // xDS: a request that does not carry the nonce of the latest response crossed it on the wire; the client
        // answers that response too, with its full list.
        if self.nonce != Nonce::default() && !self.nonce.is(&request.response_nonce) {
            tracing::trace!(type_url = %self.type_url, "request with a stale nonce ignored");
            return Ok(Heard::Stale);
        }
        let change = self.interest.replace(&self.type_url, &request.resource_names, set, settings.legacy_wildcard)?;
        self.started = true;
        if first {
            if self.start_sotw(&request.version_info, set) {
                return Ok(Heard::Subscription);
            }
            self.apply(change, set);
            return Ok(Heard::Subscription);
        }
        let heard = self.answer(&request.response_nonce, request.error_detail.as_ref(), settings);
        self.apply(change, set);
        Ok(heard)
    }

    pub(crate) fn on_delta_request(
        &mut self,
        request: &DeltaDiscoveryRequest,
        set: &Arc<TypeSet>,
        settings: RequestSettings,
    ) -> Result<Heard, RequestError> {
        let first = !self.started;
        check_count(&self.type_url, request.initial_resource_versions.len())?;
        let lists = (request.resource_names_subscribe.as_slice(), request.resource_names_unsubscribe.as_slice());
        let mut change = self.interest.update(&self.type_url, lists, set, first, settings.legacy_wildcard)?;
        self.started = true;
        if first {
            self.start_delta(request, set, &mut change);
            if settings.staged && is_removed_last(&self.type_url) {
                self.withhold(set);
            }
            self.apply(change, set);
            // Members of a collection that the node holds are looked at, and no more.
            for held in request.initial_resource_versions.keys() {
                self.forced.remove(held.as_str());
            }
            self.owed = true;
            return Ok(Heard::Subscription);
        }
        // xDS: in delta a nonce only says what is answered; changes of the subscription count on any nonce.
        let heard = self.answer(&request.response_nonce, request.error_detail.as_ref(), settings);
        self.apply(change, set);
        Ok(heard)
    }

    /// Takes what a node that opens a stream says that it holds. True: it holds all that there is.
    fn start_sotw(&mut self, version: &str, set: &Arc<TypeSet>) -> bool {
        if version.is_empty() {
            // It starts from nothing, maybe as another build: what it refused before deserves another look.
            self.memory.forget_refusals();
        } else if self.interest.is_pure_wildcard() && Version::parse(version) == set.version() {
            self.sent = Holdings::all_of(set);
            self.memory.accept_all(set);
            self.memory.accepted_version = Some(set.version());
            self.seen = Some(Arc::clone(set));
            self.beat_at_once(set);
            return true;
        } else if self.memory.accepted_version != Some(Version::parse(version)) {
            self.holds_unknown = true;
            self.memory.accepted_version = None;
            self.memory.confirm(|_, _| false);
        }
        false
    }

    /// Takes `initial_resource_versions`: equal contents are held, others are replaced, vanished ones removed.
    fn start_delta(&mut self, request: &DeltaDiscoveryRequest, set: &Arc<TypeSet>, change: &mut InterestChange) {
        let held = &request.initial_resource_versions;
        if held.is_empty() {
            self.memory.forget_refusals();
        }
        self.memory.confirm(|name, version| held.get(name).is_some_and(|held| Version::parse(held) == version));
        change.added.retain(|name| !held.contains_key(&**name));
        let mut foreign = BTreeSet::new();
        for (name, version) in held {
            if !self.interest.covers(name) {
                continue;
            }
            let version = Version::parse(version);
            let name = set.name(name);
            self.memory.hold(&name, version);
            self.sent.insert(Arc::clone(&name), version);
            if let Some(resource) = self.lookup(set, &name).filter(|resource| resource.version() == version) {
                self.memory.accept((name, Some(Arc::clone(resource))));
            } else {
                foreign.insert(name);
            }
        }
        if !held.is_empty() {
            self.beat_at_once(set);
        }
        self.memory.set_foreign(foreign);
        self.sent.rebase(set, held.len());
        self.memory.rebase(set, held.len());
    }

    /// Of what the node came with keeps back what is gone. What `set` only retains is another change's to remove.
    fn withhold(&mut self, set: &TypeSet) {
        let gone = self.sent.iter().filter(|(name, _)| self.lookup(set, name).is_none());
        self.withheld = gone.map(|(name, _)| Arc::clone(name)).collect();
    }

    /// Puts a changed subscription into what is due.
    fn apply(&mut self, change: InterestChange, set: &TypeSet) {
        if change.wildcard_off || change.dropped.iter().any(|name| xdstp::is_glob(name)) {
            let interest = &self.interest;
            self.sent.retain(|name, _| interest.covers(name));
            self.memory.retain(|name| interest.covers(name));
            self.due.retain(|name| interest.covers(name));
            self.forced.retain(|name| interest.covers(name));
        }
        for name in change.dropped {
            if self.interest.covers(&name) {
                // xDS: who gives up a name under a wildcard is told what the wildcard has under it.
                if self.variant == Variant::Delta {
                    self.forced.insert(Arc::clone(&name));
                }
                self.due.insert(name);
                continue;
            }
            self.sent.remove(&name);
            self.absent.remove(&name);
            self.memory.forget(&name);
            self.due.remove(&name);
            self.forced.remove(&name);
        }
        for name in change.added {
            self.absent.remove(&name);
            let mut asked: Vec<Name> = Vec::new();
            if xdstp::is_glob(&name) {
                asked.extend(set.members(&name).map(|resource| Arc::clone(resource.name())));
            }
            if asked.is_empty() {
                // xDS TP1: of an empty collection it is the glob that does not exist.
                asked.push(name);
            }
            self.forced.extend(asked.iter().cloned());
            self.due.extend(asked);
        }
        if change.wildcard_on {
            // Everything is looked at again, and answered even if there is nothing.
            self.seen = None;
            self.owed = true;
        }
    }

    /// Takes the answer to the outstanding response, if the request is one.
    fn answer(&mut self, nonce: &str, error: Option<&rpc::Status>, settings: RequestSettings) -> Heard {
        let Some(outstanding) = self.outstanding.take_if(|outstanding| outstanding.nonce.is(nonce)) else {
            if error.is_some() {
                tracing::debug!(type_url = %self.type_url, nonce, "refusal of a response that is not outstanding");
            }
            return Heard::Subscription;
        };
        let news = outstanding.items.len();
        self.regain(&outstanding.items);
        let Some(error) = error else {
            self.counts.acked += 1;
            self.error = None;
            self.memory.accepted_version = Some(outstanding.version);
            for item in outstanding.items {
                self.accept(item);
            }
            self.rebase(news);
            return Heard::Ack;
        };
        self.counts.nacked += 1;
        let reason = shorten(&error.message);
        self.refuse(outstanding.items, &reason, settings);
        self.error = Some(reason);
        self.rebase(news);
        Heard::Nack
    }

    /// What was given up and asked for again while the response was on its way, the node has from there: it is looked at, or
    /// nobody would say that it is gone since.
    fn regain(&mut self, items: &[Item]) {
        for (name, resource) in items {
            let Some(resource) = resource.as_ref().filter(|_| self.interest.covers(name)) else { continue };
            if self.sent.get(name).is_none() {
                self.sent.insert(Arc::clone(name), resource.version());
                self.due.insert(Arc::clone(name));
            }
        }
    }

    /// What was sent and accepted is mostly what the set has of which it was made.
    fn rebase(&mut self, news: usize) {
        if let Some(seen) = &self.seen {
            self.sent.rebase(seen, news);
            self.memory.rebase(seen, news);
        }
    }

    fn accept(&mut self, item: Item) {
        if self.interest.covers(&item.0) {
            self.memory.accept(item);
        }
    }

    fn refuse(&mut self, items: Vec<Item>, reason: &Arc<str>, settings: RequestSettings) {
        let known = |name: &str| self.sent.name(name);
        let blamed = match settings.partial_ack {
            true => blamed(reason, &self.type_url, known),
            // Envoy applies the good clusters and listeners of a response that it refuses, and names the others.
            false if may_be_applied_in_part(&self.type_url) => mentioned(reason, &items),
            false => None,
        };
        let Some(blamed) = blamed else {
            self.memory.refuse_all(items, reason);
            return;
        };
        for item in items {
            if !blamed.contains_key(&item.0) {
                self.accept(item);
            }
        }
        for (name, reason) in blamed {
            if let Some(version) = self.sent.get(&name) {
                self.memory.blame(name, *version, &reason);
            }
        }
    }
}

/// Whether a node has a resource whose present content it refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    Never,
    /// In the content that it accepted last, maybe.
    Older,
}

/// What of the session matters to a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestSettings {
    pub(crate) legacy_wildcard: bool,
    pub(crate) partial_ack: bool,
    /// Changes go in steps.
    pub(crate) staged: bool,
}

fn may_be_applied_in_part(type_url: &str) -> bool {
    matches!(type_url, type_url::LISTENER | type_url::CLUSTER)
}

/// At most 64 KiB of what a node said.
fn shorten(message: &str) -> Arc<str> {
    const LIMIT: usize = 64 * 1024;
    let end = (0..=message.len().min(LIMIT)).rev().find(|&end| message.is_char_boundary(end)).unwrap_or(0);
    Arc::from(message.get(..end).unwrap_or_default())
}
