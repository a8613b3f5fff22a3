//! Reads a response apart: what it carries, and what it got wrong.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use culvert_api::envoy::service::discovery::v3::{Resource, ResourceError};
use culvert_api::{Any, type_url};
use prost::Message;

use super::{Failure, Received, Rejection};
use crate::wire::name_of;
use crate::{Name, xdstp};

/// What a response carries.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) resources: Vec<Received>,
    /// `removed_resources`.
    pub(super) removed: Vec<Name>,
    /// What the response itself got wrong.
    pub(super) rejections: Vec<Rejection>,
    /// Names of resources that came more than once. The rejection that says so leaves the first of each to be judged.
    pub(super) repeated: BTreeSet<Name>,
    /// Further names of resources, each with its own.
    pub(super) aliases: Vec<(Name, Name)>,
    /// Every name in the response, usable or not: none of them is absent.
    pub(super) present: BTreeSet<Name>,
    /// How long resources live unless they are sent again or their heartbeat comes.
    pub(super) ttls: BTreeMap<Name, Duration>,
    /// Names that came without a body: what is held of them lives on.
    pub(super) heartbeats: Vec<Name>,
    /// What the control plane says it cannot give.
    pub(super) failures: Vec<Failure>,
    /// A resource did not even yield a name: no absence can be told.
    pub(super) unnamed: bool,
}

impl Content {
    pub(super) fn of_sotw(type_url: &str, version: &str, resources: Vec<Any>) -> Self {
        let mut content = Self::default();
        for (index, any) in resources.into_iter().enumerate() {
            let (name, ttl, body) = match unwrap(any) {
                Ok(unwrapped) => unwrapped,
                Err(reason) => {
                    content.refuse_unnamed(index, &reason);
                    continue;
                }
            };
            let Some(body) = body else {
                // TTL: a heartbeat says that the resource is still there.
                content.heartbeat(named(&name), ttl);
                continue;
            };
            let name = match if name.is_empty() { name_of(body.value.clone()) } else { Ok(name) } {
                Ok(name) => named(&name),
                Err(unnamed) => {
                    content.refuse_unnamed(index, &unnamed.to_string());
                    continue;
                }
            };
            content.live(&name, ttl);
            content.take(type_url, name, version.to_owned(), body);
        }
        content.without_duplicates()
    }

    /// xDS TP3: a resource of which something is said is not absent.
    pub(super) fn with_failures(mut self, errors: Vec<ResourceError>) -> Self {
        for ResourceError { resource_name, error_detail } in errors {
            let Some(name) = resource_name.map(|name| named(&name.name)).filter(|name| !name.is_empty()) else {
                continue;
            };
            let status = error_detail.unwrap_or_default();
            self.present.insert(Name::clone(&name));
            self.failures.push(Failure { name, code: status.code, message: status.message });
        }
        self
    }

    pub(super) fn of_delta(type_url: &str, resources: Vec<Resource>, removed: &[String]) -> Self {
        let mut content = Self::default();
        for (index, resource) in resources.into_iter().enumerate() {
            if resource.name.is_empty() {
                content.refuse_unnamed(index, "it has no name");
                continue;
            }
            let name = named(&resource.name);
            let ttl = resource.ttl.and_then(|ttl| Duration::try_from(ttl).ok());
            match resource.resource {
                Some(body) => {
                    content.live(&name, ttl);
                    for alias in resource.aliases.iter().map(|alias| named(alias)).filter(|alias| *alias != name) {
                        content.present.insert(Name::clone(&alias));
                        content.aliases.push((alias, Name::clone(&name)));
                    }
                    content.take(type_url, name, resource.version, body);
                }
                None if resource.ttl.is_some() => content.heartbeat(name, ttl),
                // On-demand: a resource without a body does not exist.
                None => content.removed.push(name),
            }
        }
        content.removed.extend(removed.iter().map(|name| named(name)));
        content.without_duplicates()
    }

    fn take(&mut self, type_url: &str, name: Name, version: String, body: Any) {
        self.present.insert(Name::clone(&name));
        if body.type_url == type_url {
            self.resources.push(Received { name, version, body });
        } else {
            let reason = format!("type_url: {:?} in a response of another type", body.type_url);
            self.rejections.push(Rejection { name: name.to_string(), reason });
        }
    }

    fn live(&mut self, name: &Name, ttl: Option<Duration>) {
        self.ttls.extend(ttl.map(|ttl| (Name::clone(name), ttl)));
    }

    fn heartbeat(&mut self, name: Name, ttl: Option<Duration>) {
        self.live(&name, ttl);
        self.present.insert(Name::clone(&name));
        self.heartbeats.push(name);
    }

    fn refuse_unnamed(&mut self, index: usize, reason: &str) {
        self.unnamed = true;
        self.rejections.push(Rejection { name: String::new(), reason: format!("resources[{index}]: {reason}") });
    }

    /// Of a name that occurs twice the first one counts, as in Envoy. Of one that is also removed, or that also occurs with
    /// another type, what is meant cannot be told: it would be applied, and as something refused not be held.
    fn without_duplicates(mut self) -> Self {
        let refused: BTreeSet<&str> = self.rejections.iter().map(|rejection| &*rejection.name).collect();
        self.resources.retain(|received| !refused.contains(&*received.name));
        self.removed.retain(|name| !refused.contains(&**name));
        let added: HashSet<&Name> = self.resources.iter().map(|received| &received.name).collect();
        let both: BTreeSet<Name> = self.removed.iter().filter(|name| added.contains(name)).cloned().collect();
        self.removed.retain(|name| !both.contains(name));
        let mut seen = HashSet::with_capacity(self.resources.len());
        self.resources.retain(|received| {
            let first = seen.insert(Name::clone(&received.name));
            if !first && !both.contains(&received.name) {
                self.repeated.insert(Name::clone(&received.name));
            }
            first && !both.contains(&received.name)
        });
        let reject = |name: &Name, reason: &str| Rejection { name: name.to_string(), reason: reason.to_owned() };
        self.rejections.extend(both.iter().map(|name| reject(name, "is added and removed at once")));
        self.rejections
            .extend(self.repeated.iter().map(|name| reject(name, "occurs more than once; the first one counts")));
        self.present.extend(both);
        self
    }
}

/// A name in its one spelling: what is asked for by another one is the same (xDS TP1).
fn named(name: &str) -> Name {
    xdstp::canonical(name).into()
}

/// Takes a resource out of the `Resource` that may wrap it (with its name and TTL), in which it may be missing.
fn unwrap(any: Any) -> Result<(String, Option<Duration>, Option<Any>), String> {
    if any.type_url != type_url::RESOURCE {
        return Ok((String::new(), None, Some(any)));
    }
    let wrapper = Resource::decode(any.value).map_err(|error| format!("does not decode: {error}"))?;
    if wrapper.resource.is_none() && wrapper.name.is_empty() {
        return Err("a wrapper without a resource and without a name".to_owned());
    }
    let ttl = wrapper.ttl.and_then(|ttl| Duration::try_from(ttl).ok());
    Ok((wrapper.name, ttl, wrapper.resource))
}
