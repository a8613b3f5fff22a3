//! Any resource of xDS, parsed out of its bytes.

use std::sync::Arc;

use crate::agent::TunnelAgent;
use crate::cluster::Cluster;
use crate::endpoint::Endpoints;
use crate::listener::Listener;
use crate::report::Parsed;
use crate::route::RouteConfiguration;
use crate::secret::Secret;

/// A parsed resource of one of the types that culvert-proxy subscribes to.
#[derive(Debug, Clone, PartialEq)]
pub enum Resource {
    Listener(Arc<Listener>),
    Routes(Arc<RouteConfiguration>),
    Cluster(Arc<Cluster>),
    Endpoints(Arc<Endpoints>),
    Secret(Arc<Secret>),
    Agent(Arc<TunnelAgent>),
}

/// Parses the resource that stands in `bytes`. Bytes that do not decode, and types that are not served by
/// culvert-proxy, are refusals like any other.
#[must_use]
pub fn parse_any(type_url: &str, bytes: &[u8]) -> Parsed<Resource> {
    let _ = (type_url, bytes);
    todo!()
}
