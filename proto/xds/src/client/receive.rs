//! Reads a response apart: what it carries, and what it got wrong.

use std::collections::{BTreeMap, BTreeSet};

use culvert_api::envoy::service::discovery::v3::Resource;
use culvert_api::{Any, type_url};
use prost::Message;

use super::{Received, Rejection};
use crate::Name;
use crate::wire::name_of;

/// What a response carries.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) resources: Vec<Received>,
    /// `removed_resources`.
    pub(super) removed: Vec<Name>,
    /// What the response itself got wrong.
    pub(super) rejections: Vec<Rejection>,
    /// Every name in the response, usable or not: none of them is absent.
    pub(super) present: BTreeSet<Name>,
    /// A resource did not even yield a name: no absence can be told.
    pub(super) unnamed: bool,
}

impl Content {
    pub(super) fn of_sotw(type_url: &str, version: &str, resources: Vec<Any>) -> Self {
        let mut content = Self::default();
        for (index, any) in resources.into_iter().enumerate() {
            let (name, body) = match unwrap(any) {
                Ok(unwrapped) => unwrapped,
                Err(reason) => {
                    content.refuse_unnamed(index, &reason);
                    continue;
                }
            };
            let Some(body) = body else {
                // TTL: a heartbeat says that the resource is still there.
                content.present.insert(name.into());
                continue;
            };
            let name = match if name.is_empty() { name_of(body.value.clone()) } else { Ok(name) } {
                Ok(name) => Name::from(name),
                Err(unnamed) => {
                    content.refuse_unnamed(index, &unnamed.to_string());
                    continue;
                }
            };
            content.take(type_url, name, version.to_owned(), body);
        }
        content.without_duplicates()
    }

    pub(super) fn of_delta(type_url: &str, resources: Vec<Resource>, removed: Vec<String>) -> Self {
        let mut content = Self::default();
        for (index, resource) in resources.into_iter().enumerate() {
            if resource.name.is_empty() {
                content.refuse_unnamed(index, "it has no name");
                continue;
            }
            let name = Name::from(resource.name);
            match resource.resource {
                Some(body) => content.take(type_url, name, resource.version, body),
                None if resource.ttl.is_some() => {
                    content.present.insert(name);
                }
                // On-demand: a resource without a body does not exist.
                None => content.removed.push(name),
            }
        }
        content.removed.extend(removed.into_iter().map(Name::from));
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

    fn refuse_unnamed(&mut self, index: usize, reason: &str) {
        self.unnamed = true;
        self.rejections.push(Rejection { name: String::new(), reason: format!("resources[{index}]: {reason}") });
    }

    /// Of a name that occurs twice, which one is meant cannot be told: neither is taken.
    fn without_duplicates(mut self) -> Self {
        let mut times: BTreeMap<&Name, usize> = BTreeMap::new();
        for name in self.resources.iter().map(|received| &received.name).chain(&self.removed) {
            *times.entry(name).or_default() += 1;
        }
        let twice: BTreeSet<Name> =
            times.into_iter().filter(|(_, times)| *times > 1).map(|(name, _)| Name::clone(name)).collect();
        self.resources.retain(|received| !twice.contains(&received.name));
        self.removed.retain(|name| !twice.contains(name));
        self.rejections.extend(
            twice.iter().map(|name| Rejection { name: name.to_string(), reason: "occurs more than once".to_owned() }),
        );
        self.present.extend(twice);
        self
    }
}

/// Takes a resource out of the `Resource` that may wrap it (with its name), in which it may be missing.
fn unwrap(any: Any) -> Result<(String, Option<Any>), String> {
    if any.type_url != type_url::RESOURCE {
        return Ok((String::new(), Some(any)));
    }
    let wrapper = Resource::decode(any.value).map_err(|error| format!("does not decode: {error}"))?;
    if wrapper.resource.is_none() && wrapper.name.is_empty() {
        return Err("a wrapper without a resource and without a name".to_owned());
    }
    Ok((wrapper.name, wrapper.resource))
}
