//! A response that waits for its answer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use culvert_api::google::rpc;
use culvert_api::{Any, type_url};

use super::receive::Content;
use super::subscription::Subscription;
use super::{Client, Interest, Request};
use crate::Name;
use crate::resource::TypeUrl;

/// One resource of a response.
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    pub name: Name,
    /// Delta: the resource's version. State of the world: the response's.
    pub version: String,
    pub body: Any,
}

/// A resource that the control plane has no good news of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub name: Name,
    /// gRPC's: [`Failure::NOT_FOUND`] says that it does not exist.
    pub code: i32,
    pub message: String,
}

impl Failure {
    pub const NOT_FOUND: i32 = 5;
    pub const PERMISSION_DENIED: i32 = 7;
    /// Of a control plane that does not deliver what it should.
    pub const UNAVAILABLE: i32 = 14;

    /// gRFC A88: an error of the data. Others are of the control plane, and pass.
    fn is_of_data(&self) -> bool {
        matches!(self.code, Self::NOT_FOUND | Self::PERMISSION_DENIED)
    }
}

/// A refused resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Empty: the resource did not even yield a name.
    pub name: String,
    /// `path: reason`, or several of them separated by `; `.
    pub reason: String,
}

/// A response that waits for its answer. Only [`Update::ack`] and [`Update::nack`] answer it; until then nothing of it
/// counts as held.
#[must_use = "a response that is neither accepted nor refused stops its type"]
#[derive(Debug)]
pub struct Update<'c> {
    client: &'c mut Client,
    index: usize,
    type_url: TypeUrl,
    version: String,
    resources: Vec<Received>,
    removed: Vec<Name>,
    rejections: Vec<Rejection>,
    /// Of these the first one is among the resources.
    repeated: BTreeSet<Name>,
    ttls: BTreeMap<Name, Duration>,
    failures: Vec<Failure>,
    aliases: Vec<Name>,
}

impl<'c> Update<'c> {
    pub(super) fn new(client: &'c mut Client, index: usize, version: String, nonce: String, content: Content) -> Self {
        let (variant, fail_on_data_errors) = (client.config.variant, client.config.fail_on_data_errors);
        let mut update = Update {
            client,
            index,
            type_url: TypeUrl::from(""),
            version,
            resources: content.resources,
            removed: content.removed,
            rejections: content.rejections,
            repeated: content.repeated,
            ttls: content.ttls,
            failures: content.failures,
            aliases: content.aliases.iter().map(|(alias, _)| Name::clone(alias)).collect(),
        };
        let Some(subscription) = update.client.subscriptions.get_mut(index) else { return update };
        update.type_url = subscription.type_url.clone();
        subscription.nonce = nonce;
        subscription.answered = true;
        subscription.confirm(&content.present);
        for name in content.present.iter().chain(&update.removed) {
            subscription.timers.remove(name);
            subscription.cached.remove(name);
            subscription.absent.remove(name);
        }
        let missing = update.failures.iter().filter(|failure| failure.code == Failure::NOT_FOUND);
        let absent = update.removed.iter().chain(missing.map(|failure| &failure.name));
        subscription.absent.extend(absent.filter(|name| subscription.wanted.names.contains(*name)).cloned());
        let named = &subscription.wanted.names;
        subscription.aliases.extend(content.aliases.into_iter().filter(|(alias, _)| named.contains(alias)));
        for name in content.heartbeats {
            // Of what is not held there is nothing to keep alive.
            if let Some(ttl) = update.ttls.get(&name).filter(|_| subscription.held.contains_key(&name)) {
                subscription.lives.insert(name, (*ttl, None));
            }
        }
        if fail_on_data_errors {
            let lost = update.failures.iter().filter(|failure| failure.is_of_data()).map(|failure| &failure.name);
            update.removed.extend(lost.filter(|name| subscription.held.contains_key(*name)).cloned());
            // A server may say both of one name: that it is removed, and why.
            update.removed.sort_unstable();
            update.removed.dedup();
        }
        let wanted = &subscription.wanted;
        if subscription.is_full_state(variant) && !content.unnamed {
            // xDS: what is absent from a full state does not exist. gRFC A53: what was never received may have been
            // asked for after this was sent; its timer decides.
            update.removed.extend(subscription.held.keys().filter(|name| !content.present.contains(*name)).cloned());
        }
        // What was given up meanwhile may still be on its way.
        update.resources.retain(|received| wanted.covers(&received.name));
        update.removed.retain(|name| wanted.covers(name));
        update.failures.retain(|failure| wanted.covers(&failure.name));
        update
    }

    #[must_use]
    pub fn type_url(&self) -> &TypeUrl {
        &self.type_url
    }

    #[must_use]
    pub fn version_info(&self) -> &str {
        &self.version
    }

    /// Resources to judge, each of a name that was asked for and that occurs once.
    #[must_use]
    pub fn resources(&self) -> &[Received] {
        &self.resources
    }

    /// Names that no longer exist; in delta also those that were asked for and never did. Holds whatever the answer is.
    #[must_use]
    pub fn removed(&self) -> &[Name] {
        &self.removed
    }

    /// What the control plane says it cannot give (xDS TP3). Nothing is held against what was accepted before.
    #[must_use]
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// Further names of [`Update::resources`] (delta): who asked for one of them has its answer.
    #[must_use]
    pub fn aliases(&self) -> &[Name] {
        &self.aliases
    }

    /// Whether the response gives a resource for some time only (TTL).
    #[must_use]
    pub fn is_temporary(&self, name: &str) -> bool {
        self.ttls.contains_key(name)
    }

    /// What the response itself got wrong: duplicates, other types, bytes without a name. Refused in any case.
    #[must_use]
    pub fn rejections(&self) -> &[Rejection] {
        &self.rejections
    }

    /// Says what is wanted of another type because of this response, before it is answered: a server may wait for the
    /// request for assignments before it takes the answer to the clusters for final.
    pub fn watch(&mut self, type_url: &str, interest: Interest) {
        self.client.watch(type_url, interest);
        // The list may have grown in front of our subscription.
        let ours = |subscription: &Subscription| subscription.type_url == self.type_url;
        self.index = self.client.subscriptions.iter().position(ours).unwrap_or(self.index);
    }

    /// Every resource is accepted: the request that says so. (It refuses all the same what [`Update::rejections`]
    /// lists.)
    #[must_use = "the answer has to be sent"]
    pub fn ack(self) -> Request {
        self.answer(Vec::new())
    }

    /// The named resources are refused, the others accepted: the request that says so.
    #[must_use = "the answer has to be sent"]
    pub fn nack(self, rejections: Vec<Rejection>) -> Request {
        self.answer(rejections)
    }

    fn answer(mut self, judged: Vec<Rejection>) -> Request {
        let (variant, fail_on_data_errors) = (self.client.config.variant, self.client.config.fail_on_data_errors);
        let Some(subscription) = self.client.subscriptions.get_mut(self.index) else {
            // Subscriptions are never taken away; an empty request of this type changes nothing.
            return self.client.with_node(Subscription::new(self.type_url, Interest::default()).answer(variant));
        };
        let beyond_first = |rejection: &&Rejection| self.repeated.contains(&*rejection.name);
        let own = self.rejections.iter().filter(|rejection| !beyond_first(rejection));
        let refused: BTreeSet<&str> = own.chain(&judged).map(|rejection| rejection.name.as_str()).collect();
        let mut changed = !self.removed.is_empty();
        for name in &self.removed {
            subscription.held.remove(name);
            subscription.lives.remove(name);
        }
        for received in self.resources {
            if !refused.contains(&*received.name) && subscription.wanted.covers(&received.name) {
                // A resource that comes without a TTL lives for ever, whatever it came with before.
                match self.ttls.get(&received.name) {
                    Some(ttl) => _ = subscription.lives.insert(Name::clone(&received.name), (*ttl, None)),
                    None => _ = subscription.lives.remove(&received.name),
                }
                subscription.held.insert(received.name, received.version);
                changed = true;
            }
        }
        for rejection in judged.iter().filter(|_| fail_on_data_errors) {
            subscription.held.remove(&*rejection.name);
            subscription.lives.remove(&*rejection.name);
        }
        self.rejections.extend(judged);
        let error = if self.rejections.is_empty() {
            subscription.accepted_version = self.version;
            subscription.beyond_accepted = false;
            None
        } else {
            subscription.beyond_accepted |= changed;
            Some(error_detail(&self.type_url, &self.rejections))
        };
        let mut request = subscription.answer(variant);
        match &mut request {
            Request::Sotw(request) => request.error_detail = error,
            Request::Delta(request) => request.error_detail = error,
        }
        self.client.with_node(request)
    }
}

/// Every refusal on a line of its own, `Type/name: path: reason`.
fn error_detail(type_url: &str, rejections: &[Rejection]) -> rpc::Status {
    const INTERNAL: i32 = 13;
    const LIMIT: usize = 60 * 1024;
    let short = type_url::short_name(type_url);
    let mut message = String::new();
    for (index, Rejection { name, reason }) in rejections.iter().enumerate() {
        if message.len() > LIMIT {
            // Not a line that names a resource: the server then takes the whole response for refused.
            let _written = write!(message, "and {} more", rejections.len() - index);
            break;
        }
        let separator = if name.is_empty() { "" } else { "/" };
        let reason = reason.replace(['\n', '\r'], " ");
        let _written = writeln!(message, "{short}{separator}{name}: {reason}");
    }
    rpc::Status { code: INTERNAL, message: message.trim_end().to_owned(), ..rpc::Status::default() }
}
