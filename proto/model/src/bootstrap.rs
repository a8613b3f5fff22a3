//! `envoy.config.bootstrap.v3.Bootstrap`.

mod parse;
mod references;
pub mod reverse;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use culvert_api::envoy::config::bootstrap::v3 as api;

use self::reverse::ReverseTunnels;
use crate::Name;
use crate::agent::TunnelAgent;
use crate::cluster::Cluster;
use crate::listener::Listener;
use crate::report::{Finding, Parsed, Report};
use crate::runtime::Layer;
use crate::secret::Secret;
use crate::source::{ConfigSource, GrpcSource};
use crate::tunnel::policy::TunnelPolicy;

#[derive(Debug, Clone, PartialEq)]
pub struct Bootstrap {
    pub node: Node,
    pub admin: Option<Admin>,
    pub listeners: Vec<Arc<Listener>>,
    pub clusters: Vec<Arc<Cluster>>,
    pub secrets: Vec<Arc<Secret>>,
    pub dynamic: Dynamic,
    /// Agents of the extension `culvert.tunnel_agents`.
    pub agents: Vec<Arc<TunnelAgent>>,
    pub agents_config: Option<ConfigSource>,
    /// Policies of the extension `culvert.tunnel_policies`.
    pub policies: Vec<Arc<TunnelPolicy>>,
    pub policies_config: Option<ConfigSource>,
    /// Envoy's extensions of reverse tunnels.
    pub reverse: ReverseTunnels,
    /// `layered_runtime`: later layers stand above earlier ones.
    pub runtime: Vec<Layer>,
    /// Header prefix for internal headers. Default `x-envoy`.
    pub header_prefix: Arc<str>,
}

/// Who we are towards the control plane.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Node {
    pub id: Name,
    pub cluster: Name,
    /// The whole message as it was given, encoded: metadata and locality go to the control plane unchanged.
    pub encoded: bytes::Bytes,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Admin {
    pub address: SocketAddr,
    pub access_log: Vec<Arc<crate::access_log::AccessLog>>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dynamic {
    pub ads: Option<GrpcSource>,
    pub cds: Option<ConfigSource>,
    pub lds: Option<ConfigSource>,
}

/// Parses a bootstrap; every finding of everything in it is reported in one run.
#[must_use]
pub fn parse(message: &api::Bootstrap) -> Parsed<Bootstrap> {
    let Examined { bootstrap, errors, warnings } = examine(message);
    Parsed { value: if errors.is_empty() { Ok(bootstrap) } else { Err(errors) }, warnings }
}

/// What could be parsed of a bootstrap, and everything that was found in it.
#[derive(Debug)]
pub struct Examined {
    /// Without what was refused. Where there are errors it is for nothing but further checks.
    pub bootstrap: Bootstrap,
    pub errors: Vec<Finding>,
    pub warnings: Vec<Finding>,
}

/// [`parse`] that gives what is good in spite of errors, so that later checks can name their findings in the same run.
#[must_use]
pub fn examine(message: &api::Bootstrap) -> Examined {
    let mut report = Report::default();
    report.check(message);
    let bootstrap = parse::bootstrap(&mut report, message);
    Examined { bootstrap, errors: report.errors, warnings: report.warnings }
}
