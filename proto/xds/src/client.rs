//! The data plane's half: what it wants, what it holds, and the next thing to say about it.

mod receive;
mod subscription;
#[cfg(test)]
mod tests;
mod update;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use culvert_api::envoy::config::core::v3::Node;
use culvert_api::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use culvert_api::google::rpc;
use culvert_api::type_url;

use self::receive::Content;
use self::subscription::Subscription;
pub use self::update::{Failure, Received, Rejection, Update};
use crate::resource::TypeUrl;
use crate::{Name, PARTIAL_ACK, RESOURCE_ERRORS, RESOURCE_IN_SOTW, Variant};

/// Settings of a [`Client`].
#[derive(Debug, Clone)]
pub struct ClientConfig {
    pub variant: Variant,
    pub node: Node,
    /// `set_node_on_first_message_only`. Delta streams carry it once in any case.
    pub node_on_first_message_only: bool,
    pub resource_timer: ResourceTimer,
    /// gRFC A88: what the control plane says not to exist, or to be denied, is given up also if it is held, and so is what is
    /// refused in its new content. Otherwise it stays.
    pub fail_on_data_errors: bool,
}

/// What it means that a named resource stays unanswered on a connected stream, and after which time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ResourceTimer {
    /// It does not exist: gRFC A53, Envoy.
    #[default]
    DoesNotExist,
    /// The control plane is slow: it says what does not exist, and this it did not say. gRFC A88
    /// (`resource_timer_is_transient_error`).
    TransientError,
}

impl ResourceTimer {
    /// For how long it runs.
    #[must_use]
    pub fn time(self) -> Duration {
        Duration::from_secs(match self {
            Self::DoesNotExist => 15,
            Self::TransientError => 30,
        })
    }

    fn end(self) -> Absence {
        match self {
            Self::DoesNotExist => Absence::Unanswered,
            Self::TransientError => Absence::Unavailable,
        }
    }
}

/// What of a type is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interest {
    pub wildcard: bool,
    pub names: BTreeSet<Name>,
}

impl Interest {
    /// Everything there is.
    #[must_use]
    pub fn everything() -> Self {
        Self { wildcard: true, names: BTreeSet::new() }
    }

    /// These and no others.
    #[must_use]
    pub fn named(names: impl IntoIterator<Item = Name>) -> Self {
        Self { wildcard: false, names: names.into_iter().collect() }
    }

    #[must_use]
    pub fn covers(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.wildcard && self.names.is_empty()
    }
}

/// A request to send.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    Sotw(DiscoveryRequest),
    Delta(DeltaDiscoveryRequest),
}

/// A resource whose time is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    pub type_url: TypeUrl,
    pub name: Name,
    pub why: Absence,
}

/// Why a resource is [`Missing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// It is named, and the control plane did not deliver it in time: it does not exist until it does.
    Unanswered,
    /// The same, and whether it exists is not known.
    Unavailable,
    /// Its TTL is over, and neither it nor its heartbeat came.
    Expired,
}

/// Why a response cannot be answered at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// To be ignored, and the stream kept: see [`Client::refuse_unrequested`].
    #[error("a response of type {type_url:?}, which was never asked for on this stream")]
    NeverRequested { type_url: String, nonce: String },
    #[error("a response of type {type_url:?} without a nonce")]
    NoNonce { type_url: String },
    #[error("a response of the other variant of the protocol, or on no stream")]
    NoStream,
}

/// Subscriptions to one control plane over one stream at a time.
///
/// **Invariant:** a resource counts as held only when it was accepted, and what a cache brought is never said to be
/// held: the control plane would not send it.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    /// In push order.
    subscriptions: Vec<Subscription>,
    connected: bool,
    node_sent: bool,
    /// `control_plane.identifier` of the latest response.
    control_plane: String,
    /// Types that came on the present stream though they were never asked for, with the latest nonce of each.
    unrequested: BTreeMap<TypeUrl, String>,
}

impl Client {
    /// A client without a stream and without subscriptions. It announces what it does and others may not.
    #[must_use]
    pub fn new(mut config: ClientConfig) -> Self {
        let announced = &mut config.node.client_features;
        for feature in [PARTIAL_ACK, RESOURCE_ERRORS, RESOURCE_IN_SOTW] {
            if !announced.iter().any(|known| known == feature) {
                announced.push(feature.to_owned());
            }
        }
        Self {
            config,
            subscriptions: Vec::new(),
            connected: false,
            node_sent: false,
            control_plane: String::new(),
            unrequested: BTreeMap::new(),
        }
    }

    /// Says what is wanted of a type from now on. Names no longer wanted are forgotten at once: should they be wanted
    /// again, they are asked for anew.
    pub fn watch(&mut self, type_url: &str, interest: Interest) {
        if let Some(subscription) = self.find(type_url) {
            subscription.want(interest);
        } else if !interest.is_empty() {
            self.insert(type_url, interest);
        }
    }

    /// Names that a cache has: no timer runs for them. They do not count as held.
    pub fn expect_cached(&mut self, type_url: &str, names: impl IntoIterator<Item = Name>) {
        if self.find(type_url).is_none() {
            self.insert(type_url, Interest::default());
        }
        if let Some(subscription) = self.find(type_url) {
            subscription.cached.extend(names);
        }
    }

    /// A stream is open: [`Client::poll_request`] yields the first request of every type, in push order.
    pub fn on_connected(&mut self) {
        self.on_disconnected();
        self.connected = true;
    }

    /// The stream is gone. Everything held stays held; no timer runs.
    pub fn on_disconnected(&mut self) {
        self.connected = false;
        self.node_sent = false;
        self.unrequested.clear();
        for subscription in &mut self.subscriptions {
            subscription.disconnect();
        }
    }

    /// Of the server to which the next streams go.
    pub fn set_resource_timer(&mut self, timer: ResourceTimer) {
        self.config.resource_timer = timer;
    }

    /// The next stream goes to another server, to which versions of this one say nothing. What is held stays held, and is
    /// named without its versions, so that the other server can say what of it does not exist.
    pub fn forget_versions(&mut self) {
        for subscription in &mut self.subscriptions {
            subscription.accepted_version.clear();
            subscription.beyond_accepted = false;
            subscription.held.values_mut().for_each(String::clear);
        }
    }

    /// Whether anything that is wanted was never received, and no cache stands in for it (gRFC A71: a reason to ask another
    /// server). What the control plane said does not exist is not lacking.
    #[must_use]
    pub fn lacks_anything(&self) -> bool {
        self.subscriptions.iter().any(Subscription::lacks_anything)
    }

    /// The next request to send, `now` being when it is sent.
    pub fn poll_request(&mut self, now: Duration) -> Option<Request> {
        if !self.connected {
            return None;
        }
        let variant = self.config.variant;
        self.subscriptions.iter_mut().for_each(|subscription| subscription.look_at_clock(now));
        let deadline = now + self.config.resource_timer.time();
        let request = self.subscriptions.iter_mut().find_map(|subscription| subscription.next(variant, deadline))?;
        Some(self.with_node(request))
    }

    /// Takes a state-of-the-world response.
    ///
    /// # Errors
    /// It cannot be answered. But for [`ResponseError::NeverRequested`] the stream is to be closed.
    pub fn on_response(&mut self, response: DiscoveryResponse) -> Result<Update<'_>, ResponseError> {
        let index = self.check(Variant::Sotw, &response.type_url, &response.nonce)?;
        self.control_plane = response.control_plane.map(|sender| sender.identifier).unwrap_or_default();
        let content = Content::of_sotw(&response.type_url, &response.version_info, response.resources)
            .with_failures(response.resource_errors);
        Ok(self.update(index, response.version_info, response.nonce, content))
    }

    /// Takes a delta response.
    ///
    /// # Errors
    /// See [`Client::on_response`].
    pub fn on_delta_response(&mut self, response: DeltaDiscoveryResponse) -> Result<Update<'_>, ResponseError> {
        let index = self.check(Variant::Delta, &response.type_url, &response.nonce)?;
        self.control_plane = response.control_plane.map(|sender| sender.identifier).unwrap_or_default();
        let content = Content::of_delta(&response.type_url, response.resources, &response.removed_resources)
            .with_failures(response.resource_errors);
        Ok(self.update(index, response.system_version_info, response.nonce, content))
    }

    /// The refusal of a response of a type that was never asked for on this stream, to be sent where other types may be
    /// spoken of. `None`: the type was refused before. To many servers the refusal is the first request of its type, which asks
    /// for everything; what they send then is no longer answered.
    pub fn refuse_unrequested(&mut self, type_url: &str, nonce: &str) -> Option<Request> {
        const INVALID_ARGUMENT: i32 = 3;
        let known = self.unrequested.contains_key(type_url);
        if !known && self.unrequested.len() >= MAX_UNREQUESTED {
            return None;
        }
        self.unrequested.insert(type_url.into(), nonce.to_owned());
        if let Some(subscription) = self.find(type_url) {
            nonce.clone_into(&mut subscription.nonce);
        }
        if known {
            return None;
        }
        let mut refused = Subscription::new(type_url.into(), Interest::default());
        nonce.clone_into(&mut refused.nonce);
        let message = format!("{}: was never asked for on this stream", type_url::short_name(type_url));
        let error = Some(rpc::Status { code: INVALID_ARGUMENT, message, ..rpc::Status::default() });
        let mut request = refused.answer(self.config.variant);
        match &mut request {
            Request::Sotw(request) => request.error_detail = error,
            Request::Delta(request) => request.error_detail = error,
        }
        Some(self.with_node(request))
    }

    /// Who sent the latest response, in its own words (`control_plane.identifier`); empty if it did not say.
    #[must_use]
    pub fn control_plane(&self) -> &str {
        &self.control_plane
    }

    /// When [`Client::poll_timeout`] has something to say next.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Duration> {
        let timers = self.subscriptions.iter().flat_map(|subscription| subscription.timers.values().copied());
        let lives = self.subscriptions.iter().flat_map(|subscription| subscription.lives.values());
        timers.chain(lives.filter_map(|(_, until)| *until)).min()
    }

    /// The next resource whose time is up.
    pub fn poll_timeout(&mut self, now: Duration) -> Option<Missing> {
        let late = self.config.resource_timer.end();
        self.subscriptions.iter_mut().find_map(|subscription| {
            subscription.look_at_clock(now);
            let unanswered = subscription.timers.iter().find(|(_, deadline)| **deadline <= now);
            let expired = subscription.lives.iter().find(|(_, (_, until))| until.is_some_and(|until| until <= now));
            let (name, why) = match (unanswered, expired) {
                (Some((name, _)), _) => (Name::clone(name), late),
                (None, Some((name, _))) => (Name::clone(name), Absence::Expired),
                (None, None) => return None,
            };
            match why {
                Absence::Unanswered => {
                    subscription.timers.remove(&name);
                    subscription.absent.insert(Name::clone(&name));
                }
                Absence::Unavailable => _ = subscription.timers.remove(&name),
                Absence::Expired => {
                    subscription.lives.remove(&name);
                    // Should it be sent again unchanged, it is news.
                    subscription.held.remove(&name);
                    subscription.beyond_accepted = true;
                }
            }
            Some(Missing { type_url: subscription.type_url.clone(), name, why })
        })
    }

    /// What is wanted of a type; `None`: it was never wanted.
    #[must_use]
    pub fn interest(&self, type_url: &str) -> Option<&Interest> {
        let subscription = self.subscriptions.iter().find(|subscription| &*subscription.type_url == type_url)?;
        Some(&subscription.wanted)
    }

    /// `version_info` of the response of this type that was accepted last; `None` before there was one.
    #[must_use]
    pub fn accepted_version(&self, type_url: &str) -> Option<&str> {
        let subscription = self.subscriptions.iter().find(|subscription| &*subscription.type_url == type_url)?;
        (!subscription.accepted_version.is_empty()).then_some(&*subscription.accepted_version)
    }

    /// The resources of this type that were accepted and still exist, with the version of each.
    pub fn held<'a>(&'a self, type_url: &'a str) -> impl Iterator<Item = (&'a Name, &'a str)> {
        self.subscriptions
            .iter()
            .filter(move |subscription| &*subscription.type_url == type_url)
            .flat_map(|subscription| subscription.held.iter().map(|(name, version)| (name, version.as_str())))
    }

    fn insert(&mut self, type_url: &str, wanted: Interest) {
        let order = type_url::push_order(type_url);
        let at = self.subscriptions.partition_point(|other| type_url::push_order(&other.type_url) <= order);
        let mut subscription = Subscription::new(type_url.into(), wanted);
        // Servers ignore requests with another nonce than the one they sent last.
        subscription.nonce = self.unrequested.get(type_url).cloned().unwrap_or_default();
        self.subscriptions.insert(at, subscription);
    }

    fn find(&mut self, type_url: &str) -> Option<&mut Subscription> {
        self.subscriptions.iter_mut().find(|subscription| &*subscription.type_url == type_url)
    }

    /// The subscription that a response belongs to.
    fn check(&self, variant: Variant, type_url: &str, nonce: &str) -> Result<usize, ResponseError> {
        if !self.connected || variant != self.config.variant {
            return Err(ResponseError::NoStream);
        }
        if nonce.is_empty() {
            return Err(ResponseError::NoNonce { type_url: type_url.to_owned() });
        }
        self.subscriptions
            .iter()
            .position(|subscription| &*subscription.type_url == type_url && subscription.is_announced())
            .ok_or_else(|| ResponseError::NeverRequested { type_url: type_url.to_owned(), nonce: nonce.to_owned() })
    }

    fn update(&mut self, index: usize, version: String, nonce: String, content: Content) -> Update<'_> {
        Update::new(self, index, version, nonce, content)
    }

    /// xDS: only the first message of a stream must carry the node; some servers want it on every one.
    fn with_node(&mut self, mut request: Request) -> Request {
        let wanted =
            !self.node_sent || (self.config.variant == Variant::Sotw && !self.config.node_on_first_message_only);
        self.node_sent = true;
        if wanted {
            let node = Some(self.config.node.clone());
            match &mut request {
                Request::Sotw(request) => request.node = node,
                Request::Delta(request) => request.node = node,
            }
        }
        request
    }
}

/// Types that are refused on one stream though they were never asked for; more are ignored.
const MAX_UNREQUESTED: usize = 16;
