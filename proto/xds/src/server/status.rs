//! What a node holds, for CSDS and for the admin page.

use std::sync::Arc;
use std::time::Duration;

use super::memory::{Memory, Refusal};
use super::subscription::Subscription;
use crate::resource::{Resource, TypeUrl, Version};
use crate::snapshot::TypeSet;
use crate::{Name, Variant};

/// `envoy.service.status.v3.ConfigStatus`, per resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResourceState {
    /// Sent and accepted.
    Synced,
    /// Sent and not answered yet, or newer than what was sent.
    Stale,
    /// Sent and refused.
    Error,
    /// Served, and neither asked for by name nor by wildcard.
    NotSent,
}

/// One resource of a node.
#[derive(Debug, Clone)]
pub struct ResourceStatus {
    pub name: Name,
    pub state: ResourceState,
    /// Of the content served now; `None`: it is no longer served, and the node was not told or did not answer yet.
    pub version: Option<Version>,
    /// Of the content that the node accepted last.
    pub accepted: Option<Version>,
    /// What the node said when it refused.
    pub error: Option<Arc<str>>,
    /// When it was accepted or refused, or sent and not answered, as the session was told the time. `None`: none of these.
    pub at: Option<Duration>,
}

/// All resources of one type, as one subscription sees them.
#[derive(Debug, Clone)]
pub struct TypeStatus {
    pub type_url: TypeUrl,
    /// `None`: no stream of the node asks for this type now.
    pub variant: Option<Variant>,
    pub wildcard: bool,
    /// Resources subscribed to by name, whether they exist or not.
    pub names: usize,
    /// Responses sent, accepted and refused on the present stream.
    pub sent: u64,
    pub acked: u64,
    pub nacked: u64,
    /// A response is on its way or being looked at.
    pub outstanding: bool,
    /// `version_info` of the response that was accepted last.
    pub accepted_version: Option<Version>,
    /// What the node said at its latest refusal, until it accepts a response.
    pub error: Option<Arc<str>>,
    pub resources: Vec<ResourceStatus>,
}

/// What a subscription and the set behind it amount to.
pub(crate) fn of_subscription(subscription: &Subscription, set: &TypeSet) -> TypeStatus {
    let mut resources = Vec::new();
    let stand_ins = subscription.interest.names.iter().filter(|name| set.get_listed(name).is_none());
    let stand_ins = stand_ins.filter_map(|name| Some((name, set.get(name)?)));
    for (name, resource) in set.resources().map(|resource| (resource.name(), resource)).chain(stand_ins) {
        resources.push(of_resource(subscription, name, resource));
    }
    for name in subscription.sent.iter().map(|(name, _)| name).filter(|name| subscription.lookup(set, name).is_none()) {
        let accepted = subscription.memory.accepted(name).map(|accepted| accepted.version());
        resources.push(ResourceStatus {
            name: Arc::clone(name),
            state: ResourceState::Stale,
            version: None,
            accepted,
            error: None,
            at: subscription.outstanding.as_ref().map(|outstanding| outstanding.at),
        });
    }
    TypeStatus {
        type_url: Arc::clone(&subscription.type_url),
        variant: Some(subscription.variant),
        wildcard: subscription.interest.wildcard,
        names: subscription.interest.names.len(),
        sent: subscription.counts.sent,
        acked: subscription.counts.acked,
        nacked: subscription.counts.nacked,
        outstanding: subscription.outstanding.is_some(),
        accepted_version: subscription.memory.accepted_version,
        error: subscription.error.clone(),
        resources,
    }
}

/// A type that no stream asks for.
pub(crate) fn of_parked(type_url: &TypeUrl, set: &TypeSet, memory: Option<&Memory>) -> TypeStatus {
    let resources = set.resources().map(|resource| {
        let accepted = memory.and_then(|memory| memory.accepted(resource.name()));
        let refusal = memory.and_then(|memory| memory.refusal(resource.name(), resource));
        let state = if refusal.is_some() { ResourceState::Error } else { ResourceState::NotSent };
        let at = refusal.map(|refusal| refusal.at);
        status(resource.name(), resource, state, accepted, refusal, at)
    });
    TypeStatus {
        type_url: Arc::clone(type_url),
        variant: None,
        wildcard: false,
        names: 0,
        sent: 0,
        acked: 0,
        nacked: 0,
        outstanding: false,
        accepted_version: memory.and_then(|memory| memory.accepted_version),
        error: None,
        resources: resources.collect(),
    }
}

fn of_resource(subscription: &Subscription, name: &Name, resource: &Arc<Resource>) -> ResourceStatus {
    let accepted = subscription.memory.accepted(name);
    let refusal = subscription.memory.refusal(name, resource);
    let waits = subscription
        .outstanding
        .as_ref()
        .is_some_and(|outstanding| outstanding.items.binary_search_by(|(item, _)| item.cmp(name)).is_ok());
    let sent = subscription.sent.get(name) == Some(&resource.version());
    let state = if !subscription.interest.covers(name) {
        ResourceState::NotSent
    } else if refusal.is_some() {
        ResourceState::Error
    } else if sent && !waits && accepted.is_some_and(|accepted| accepted.version() == resource.version()) {
        ResourceState::Synced
    } else {
        ResourceState::Stale
    };
    let at = match state {
        ResourceState::Synced => subscription.memory.accepted_at(name),
        ResourceState::Error => refusal.map(|refusal| refusal.at),
        ResourceState::Stale if waits => subscription.outstanding.as_ref().map(|outstanding| outstanding.at),
        ResourceState::Stale | ResourceState::NotSent => None,
    };
    status(name, resource, state, accepted, refusal, at)
}

fn status(
    name: &Name,
    resource: &Resource,
    state: ResourceState,
    accepted: Option<&Arc<Resource>>,
    refusal: Option<&Refusal>,
    at: Option<Duration>,
) -> ResourceStatus {
    ResourceStatus {
        name: Arc::clone(name),
        state,
        version: Some(resource.version()),
        accepted: accepted.map(|accepted| accepted.version()),
        error: refusal.map(|refusal| Arc::clone(&refusal.reason)),
        at,
    }
}
