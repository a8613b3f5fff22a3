//! Any resource of xDS, parsed out of its bytes.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use culvert_api::type_url;
use prost::{Message, Name};

use crate::agent::{self, TunnelAgent};
use crate::cluster::{self, Cluster};
use crate::coverage;
use crate::endpoint::{self, Endpoints};
use crate::extension::{self, Extension};
use crate::listener::{self, Listener};
use crate::report::{Parsed, Report, clip};
use crate::route::{self, RouteConfiguration, VirtualHost};
use crate::runtime::{self, Runtime};
use crate::scope::{self, Scope};
use crate::secret::{self, Secret};
use crate::tunnel::policy::{self, TunnelPolicy};

/// A parsed resource of one of the types that culvert-proxy subscribes to.
#[derive(Debug, Clone)]
pub enum Resource {
    Listener(Arc<Listener>),
    Routes(Arc<RouteConfiguration>),
    Cluster(Arc<Cluster>),
    Endpoints(Arc<Endpoints>),
    Secret(Arc<Secret>),
    Agent(Arc<TunnelAgent>),
    Policy(Arc<TunnelPolicy>),
    Extension(Arc<Extension>),
    Runtime(Arc<Runtime>),
    Scope(Arc<Scope>),
    /// Of the route configuration whose name stands before the last `/` of its own.
    VirtualHost(Arc<VirtualHost>),
}

impl PartialEq for Resource {
    /// What is shared is not looked into: it may be ten thousand routes.
    fn eq(&self, other: &Self) -> bool {
        fn same<T: PartialEq>(one: &Arc<T>, other: &Arc<T>) -> bool {
            Arc::ptr_eq(one, other) || one == other
        }
        match (self, other) {
            (Self::Listener(one), Self::Listener(other)) => same(one, other),
            (Self::Routes(one), Self::Routes(other)) => same(one, other),
            (Self::Cluster(one), Self::Cluster(other)) => same(one, other),
            (Self::Endpoints(one), Self::Endpoints(other)) => same(one, other),
            (Self::Secret(one), Self::Secret(other)) => same(one, other),
            (Self::Agent(one), Self::Agent(other)) => same(one, other),
            (Self::Policy(one), Self::Policy(other)) => same(one, other),
            (Self::Extension(one), Self::Extension(other)) => same(one, other),
            (Self::Runtime(one), Self::Runtime(other)) => same(one, other),
            (Self::Scope(one), Self::Scope(other)) => same(one, other),
            (Self::VirtualHost(one), Self::VirtualHost(other)) => same(one, other),
            _ => false,
        }
    }
}

/// Parses the resource that stands in `bytes`. Bytes that do not decode, and types that are not served by
/// culvert-proxy, are refusals like any other.
#[must_use]
pub fn parse_any(type_url: &str, bytes: &[u8]) -> Parsed<Resource> {
    parse_any_after(type_url, bytes, None)
}

/// [`parse_any`] where a resource takes the place of another one: the bytes of that, and what it was parsed to. The result is
/// the same; what has not changed of a route configuration costs next to nothing.
#[must_use]
pub fn parse_any_after(type_url: &str, bytes: &[u8], before: Option<(&[u8], &Resource)>) -> Parsed<Resource> {
    match type_url {
        type_url::LISTENER => parse(bytes, listener::listener).map(|value| Resource::Listener(Arc::new(value))),
        type_url::ROUTE_CONFIGURATION => {
            let before = before.and_then(|(bytes, resource)| match resource {
                Resource::Routes(routes) => Some((bytes, &**routes)),
                _ => None,
            });
            route::discovered(bytes, before).map(|value| Resource::Routes(Arc::new(value)))
        }
        type_url::CLUSTER => parse(bytes, cluster::cluster).map(|value| Resource::Cluster(Arc::new(value))),
        type_url::CLUSTER_LOAD_ASSIGNMENT => {
            let endpoints =
                |report: &mut Report, message: &_| endpoint::assignment(report, message, endpoint::Names::Refused);
            parse(bytes, endpoints).map(|value| Resource::Endpoints(Arc::new(value)))
        }
        type_url::SECRET => parse(bytes, secret::secret).map(|value| Resource::Secret(Arc::new(value))),
        type_url::TUNNEL_AGENT => parse(bytes, agent::agent).map(|value| Resource::Agent(Arc::new(value))),
        type_url::TUNNEL_POLICY => {
            let policy = |report: &mut Report, message: &_| policy::policy(report, message, policy::Place::Xds);
            parse(bytes, policy).map(|value| Resource::Policy(Arc::new(value)))
        }
        type_url::EXTENSION_CONFIG => {
            parse(bytes, extension::extension).map(|value| Resource::Extension(Arc::new(value)))
        }
        type_url::SCOPED_ROUTE_CONFIGURATION => {
            parse(bytes, scope::scope).map(|value| Resource::Scope(Arc::new(value)))
        }
        type_url::VIRTUAL_HOST => {
            parse(bytes, route::discovered_host).map(|value| Resource::VirtualHost(Arc::new(value)))
        }
        type_url::RUNTIME => parse(bytes, runtime::runtime).map(|value| Resource::Runtime(Arc::new(value))),
        other => {
            let mut report = Report::default();
            report.error(format!("resources of type {:?} are not served by culvert-proxy", clip(other)));
            report.finish(None)
        }
    }
}

/// Decodes a message and parses it. What is not honoured is looked for in the bytes as they came, where fields of a
/// newer API still stand.
pub(crate) fn parse<M: Message + Name + Default, T>(
    bytes: &[u8],
    value: impl FnOnce(&mut Report, &M) -> Option<T>,
) -> Parsed<T> {
    let mut report = Report::default();
    let value = match M::decode(bytes) {
        Ok(message) => {
            coverage::walk(&mut report, &M::full_name(), bytes);
            value(&mut report, &message)
        }
        Err(error) => {
            report.error(format!("does not decode as {}: {error}", M::full_name()));
            None
        }
    };
    report.finish(value)
}
