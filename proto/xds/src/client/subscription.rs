//! What is wanted of one type, what the stream was told, and what is held.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use culvert_api::type_url;

use super::{Interest, Request};
use crate::resource::{TypeUrl, may_be_asked_for_without_names};
use crate::{Name, Variant};

#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) type_url: TypeUrl,
    pub(super) wanted: Interest,
    /// What the present stream was told; `None`: nothing.
    announced: Option<Interest>,
    /// Names or `*` were given on the present stream: an empty list no longer means everything.
    named: bool,
    /// Given up while the stream still lists them: they are taken off its list before they are asked for again.
    dropped: BTreeSet<Name>,
    dropped_wildcard: bool,
    /// State of the world: taken off the list with a nonce that a response may have overtaken, in which case the server
    /// ignored it and will not send the name again.
    unconfirmed: BTreeSet<Name>,
    /// Accepted resources that still exist, with the version of each.
    pub(super) held: BTreeMap<Name, String>,
    /// Further names that what is held was asked for by, with its own.
    pub(super) aliases: BTreeMap<Name, Name>,
    /// Names for which a cache stands in.
    pub(super) cached: BTreeSet<Name>,
    /// Names that do not exist, as far as is known.
    pub(super) absent: BTreeSet<Name>,
    /// There was a response.
    pub(super) answered: bool,
    /// When a named resource that was asked for counts as missing.
    pub(super) timers: BTreeMap<Name, Duration>,
    /// How long what is held of a name lives, and until when: `None` until the clock is looked at next. Goes on without
    /// a stream.
    pub(super) lives: BTreeMap<Name, (Duration, Option<Duration>)>,
    /// `version_info` of the response accepted last.
    pub(super) accepted_version: String,
    /// Good resources of a later, refused response are held too.
    pub(super) beyond_accepted: bool,
    /// Of the latest response on the present stream.
    pub(super) nonce: String,
}

impl Subscription {
    pub(super) fn new(type_url: TypeUrl, wanted: Interest) -> Self {
        Self {
            type_url,
            wanted,
            announced: None,
            named: false,
            dropped: BTreeSet::new(),
            dropped_wildcard: false,
            unconfirmed: BTreeSet::new(),
            held: BTreeMap::new(),
            aliases: BTreeMap::new(),
            cached: BTreeSet::new(),
            absent: BTreeSet::new(),
            answered: false,
            timers: BTreeMap::new(),
            lives: BTreeMap::new(),
            accepted_version: String::new(),
            beyond_accepted: false,
            nonce: String::new(),
        }
    }

    pub(super) fn is_announced(&self) -> bool {
        self.announced.is_some()
    }

    /// xDS: every state-of-the-world response of LDS and CDS holds all that there is; what is absent is removed.
    pub(super) fn is_full_state(&self, variant: Variant) -> bool {
        // Envoy takes scopes so, too.
        let full = [type_url::LISTENER, type_url::CLUSTER, type_url::SCOPED_ROUTE_CONFIGURATION];
        variant == Variant::Sotw && full.contains(&&*self.type_url)
    }

    pub(super) fn want(&mut self, interest: Interest) {
        let announced = self.announced.as_ref();
        for name in self.wanted.names.difference(&interest.names) {
            self.timers.remove(name);
            self.cached.remove(name);
            self.absent.remove(name);
            if announced.is_some_and(|announced| announced.names.contains(name)) {
                self.dropped.insert(Name::clone(name));
            }
        }
        if self.wanted.wildcard && !interest.wildcard {
            self.dropped_wildcard = announced.is_some_and(|announced| announced.wildcard);
            // Were everything asked for again with this version, an equal set would not be sent.
            self.accepted_version.clear();
            self.beyond_accepted = false;
        }
        self.wanted = interest;
        self.held.retain(|name, _| self.wanted.covers(name));
        self.aliases.retain(|alias, name| self.wanted.names.contains(alias) && self.held.contains_key(name));
        self.lives.retain(|name, _| self.held.contains_key(name));
    }

    pub(super) fn lacks_anything(&self) -> bool {
        let is_known = |name: &Name| self.holds(name) || self.cached.contains(name) || self.absent.contains(name);
        (self.wanted.wildcard && !self.answered && self.cached.is_empty()) || !self.wanted.names.iter().all(is_known)
    }

    /// Whether what was asked for by this name is held.
    fn holds(&self, name: &Name) -> bool {
        self.held.contains_key(self.aliases.get(name).unwrap_or(name))
    }

    /// Starts the clocks of what arrived since.
    pub(super) fn look_at_clock(&mut self, now: Duration) {
        for (life, until) in self.lives.values_mut() {
            until.get_or_insert(now.saturating_add(*life));
        }
    }

    pub(super) fn disconnect(&mut self) {
        self.announced = None;
        self.named = false;
        self.dropped.clear();
        self.dropped_wildcard = false;
        self.unconfirmed.clear();
        self.timers.clear();
        self.nonce.clear();
    }

    /// The next request of this type, if the stream has to be told something.
    pub(super) fn next(&mut self, variant: Variant, deadline: Duration) -> Option<Request> {
        let target = self.target();
        let request = match (&self.announced, variant) {
            // An empty first request would ask for everything.
            (None, _) if target.is_empty() => return None,
            (Some(announced), _) if *announced == target => return None,
            (announced, Variant::Sotw) => Request::Sotw(self.sotw_request(&target, announced.is_none())),
            (None, Variant::Delta) => Request::Delta(self.first_delta_request(&target)),
            (Some(announced), Variant::Delta) => Request::Delta(self.delta_request(announced, &target)),
        };
        for name in &target.names {
            let known = self.announced.as_ref().is_some_and(|announced| announced.names.contains(name));
            if !known && !self.holds(name) && !self.cached.contains(name) {
                self.timers.insert(Name::clone(name), deadline);
            }
        }
        self.named |= !target.names.is_empty() || (target.wildcard && !self.asks_without_names(&target));
        let dropped = std::mem::take(&mut self.dropped);
        if variant == Variant::Sotw {
            self.unconfirmed.extend(dropped);
        }
        self.dropped_wildcard = false;
        self.announced = Some(target);
        Some(request)
    }

    /// A response came: what was given up and is wanted again without being in it is given up once more, now with a
    /// nonce that counts.
    pub(super) fn confirm(&mut self, present: &BTreeSet<Name>) {
        for name in std::mem::take(&mut self.unconfirmed) {
            if self.wanted.names.contains(&name) && !self.held.contains_key(&name) && !present.contains(&name) {
                self.dropped.insert(name);
            }
        }
    }

    /// The answer to the response at hand, in the terms of what the stream was told.
    pub(super) fn answer(&self, variant: Variant) -> Request {
        match variant {
            Variant::Sotw => {
                let announced = self.announced.clone().unwrap_or_default();
                Request::Sotw(self.sotw_request(&announced, false))
            }
            Variant::Delta => Request::Delta(DeltaDiscoveryRequest {
                type_url: self.type_url.to_string(),
                response_nonce: self.nonce.clone(),
                ..DeltaDiscoveryRequest::default()
            }),
        }
    }

    /// What the stream is to be told next: what is wanted, less what it must first hear was given up.
    fn target(&self) -> Interest {
        let announced = self.announced.as_ref();
        let stale = |name: &Name| {
            self.dropped.contains(name) && announced.is_some_and(|announced| announced.names.contains(name))
        };
        Interest {
            wildcard: self.wanted.wildcard && !self.dropped_wildcard,
            names: self.wanted.names.iter().filter(|name| !stale(name)).cloned().collect(),
        }
    }

    /// Whether everything can be asked for as all servers understand it: by an empty list.
    fn asks_without_names(&self, target: &Interest) -> bool {
        target.wildcard && target.names.is_empty() && !self.named && may_be_asked_for_without_names(&self.type_url)
    }

    fn list(&self, target: &Interest) -> Vec<String> {
        if self.asks_without_names(target) {
            return Vec::new();
        }
        let wildcard = target.wildcard.then(|| "*".to_owned());
        wildcard.into_iter().chain(target.names.iter().map(ToString::to_string)).collect()
    }

    fn sotw_request(&self, target: &Interest, first: bool) -> DiscoveryRequest {
        let mut version_info = self.accepted_version.clone();
        if first && self.beyond_accepted {
            // Should the server be back at that version, it may not take it for what we hold.
            version_info.push_str("+partial");
        }
        DiscoveryRequest {
            version_info,
            type_url: self.type_url.to_string(),
            resource_names: self.list(target),
            response_nonce: self.nonce.clone(),
            ..DiscoveryRequest::default()
        }
    }

    fn first_delta_request(&self, target: &Interest) -> DeltaDiscoveryRequest {
        let held = self.held.iter().map(|(name, version)| (name.to_string(), version.clone()));
        DeltaDiscoveryRequest {
            type_url: self.type_url.to_string(),
            resource_names_subscribe: self.list(target),
            initial_resource_versions: held.collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn delta_request(&self, announced: &Interest, target: &Interest) -> DeltaDiscoveryRequest {
        let list = |wildcard: bool, more: &Interest, less: &Interest| {
            let names = more.names.difference(&less.names).map(ToString::to_string);
            wildcard.then(|| "*".to_owned()).into_iter().chain(names).collect()
        };
        DeltaDiscoveryRequest {
            type_url: self.type_url.to_string(),
            resource_names_subscribe: list(target.wildcard && !announced.wildcard, target, announced),
            resource_names_unsubscribe: list(announced.wildcard && !target.wildcard, announced, target),
            ..DeltaDiscoveryRequest::default()
        }
    }
}
