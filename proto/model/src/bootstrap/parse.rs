//! The bootstrap out of its message.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use culvert_api::culvert::tunnel::v1::{TunnelAgents, TunnelPolicies};
use culvert_api::envoy::config::bootstrap::v3 as api;
use culvert_api::envoy::config::core::v3::ConfigSource as ConfigSourceMessage;
use culvert_api::envoy::config::core::v3::address::Address;
use culvert_api::envoy::config::core::v3::socket_address::PortSpecifier;
use culvert_api::envoy::config::listener::v3::Listener as ListenerMessage;
use culvert_api::envoy::extensions::bootstrap::reverse_tunnel::downstream_socket_interface::v3::DownstreamReverseConnectionSocketInterface;
use culvert_api::envoy::extensions::bootstrap::reverse_tunnel::upstream_socket_interface::v3::UpstreamReverseConnectionSocketInterface;
use prost::{Message as _, Name as _};

use super::reverse::ReverseTunnels;
use super::{Admin, Bootstrap, Dynamic, Node, references};
use crate::Name;
use crate::access_log;
use crate::agent::{self, TunnelAgent};
use crate::bystander;
use crate::cluster;
use crate::listener::{self, Listener, Place};
use crate::report::{Report, clip};
use crate::runtime;
use crate::scalar;
use crate::secret;
use crate::source::{self, ConfigSource};
use crate::tunnel::policy::{self, TunnelPolicy};

/// Parses the `Bootstrap` at hand.
pub(super) fn bootstrap(report: &mut Report, message: &api::Bootstrap) -> Bootstrap {
    let node = message.node.as_ref().map_or_else(Node::default, |node| Node {
        id: node.id.as_str().into(),
        cluster: node.cluster.as_str().into(),
        encoded: node.encode_to_vec().into(),
    });
    let admin = message.admin.as_ref().and_then(|message| report.field("admin", |report| admin(report, message)));
    let default = api::bootstrap::StaticResources::default();
    let statics = message.static_resources.as_ref().unwrap_or(&default);
    let (listeners, clusters, secrets) = report.field("static_resources", |report| {
        let clusters = report
            .items("clusters", &statics.clusters, |report, message| cluster::cluster(report, message).map(Arc::new));
        let secrets =
            report.items("secrets", &statics.secrets, |report, message| secret::secret(report, message).map(Arc::new));
        let listeners = report
            .items("listeners", &statics.listeners, |report, message| static_listener(report, message).map(Arc::new));
        distinct(report, "clusters", clusters.iter().map(|cluster| &cluster.name));
        distinct(report, "secrets", secrets.iter().map(|secret| &secret.name));
        distinct(report, "listeners", listeners.iter().map(|listener| &listener.name));
        distinct_addresses(report, &listeners);
        (listeners, clusters, secrets)
    });
    let dynamic = message.dynamic_resources.as_ref();
    let dynamic = dynamic.map_or_else(Dynamic::default, |message| {
        report.field("dynamic_resources", |report| dynamic_resources(report, message))
    });
    let runtime = report.field("layered_runtime", |report| runtime::layers(report, message.layered_runtime.as_ref()));
    let mut reverse = ReverseTunnels::default();
    let extensions = extensions(report, message, &mut reverse);
    let header_prefix = if message.header_prefix.is_empty() { HEADER_PREFIX } else { &message.header_prefix };
    let header_prefix = scalar::header_name(report, "header_prefix", header_prefix);
    let bootstrap = Bootstrap {
        node,
        admin,
        listeners,
        clusters,
        secrets,
        dynamic,
        agents: extensions.agents,
        agents_config: extensions.agents_config,
        policies: extensions.policies,
        policies_config: extensions.policies_config,
        reverse,
        runtime,
        header_prefix: header_prefix.unwrap_or_else(|| HEADER_PREFIX.into()),
    };
    references::check(report, message, &bootstrap);
    bootstrap
}

/// Envoy: a static listener may have no name. Its address then names it, so that logs and statistics can.
fn static_listener(report: &mut Report, message: &ListenerMessage) -> Option<Listener> {
    let address = message.address.as_ref().and_then(|address| address.address.as_ref());
    match address {
        Some(Address::SocketAddress(socket)) if message.name.is_empty() => {
            let port = match socket.port_specifier {
                Some(PortSpecifier::PortValue(port)) => port,
                _ => 0,
            };
            let name = format!("{}:{port}", socket.address);
            listener::listener(report, &ListenerMessage { name, ..message.clone() })
        }
        _ => listener::listener(report, message),
    }
}

#[expect(deprecated, reason = "access_log_path is still used")]
fn admin(report: &mut Report, message: &api::Admin) -> Option<Admin> {
    let mut access_log = access_log::list(report, "access_log", &message.access_log);
    if !message.access_log_path.is_empty() {
        access_log.push(Arc::new(access_log::to_file(&message.access_log_path)));
    }
    // Envoy: without an address there is no admin interface.
    let address = message.address.as_ref()?;
    let address = report.field("address", |report| listener::socket(report, address))?;
    Some(Admin { address, access_log })
}

fn dynamic_resources(report: &mut Report, message: &api::bootstrap::DynamicResources) -> Dynamic {
    let ads = message.ads_config.as_ref();
    let ads = ads.and_then(|config| report.field("ads_config", |report| source::grpc_source(report, config)));
    let cds = message.cds_config.as_ref();
    let cds = cds.and_then(|config| report.field("cds_config", |report| source::config_source(report, config)));
    let lds = message.lds_config.as_ref();
    let lds = lds.and_then(|config| report.field("lds_config", |report| source::config_source(report, config)));
    Dynamic { ads, cds, lds }
}

/// What our own extensions say.
#[derive(Default)]
struct Extensions {
    agents: Vec<Arc<TunnelAgent>>,
    agents_config: Option<ConfigSource>,
    policies: Vec<Arc<TunnelPolicy>>,
    policies_config: Option<ConfigSource>,
    seen: HashSet<String>,
}

impl Extensions {
    fn agents(&mut self, report: &mut Report, message: &TunnelAgents) {
        let agents = |report: &mut Report, message: &_| agent::agent(report, message).map(Arc::new);
        self.agents.extend(report.items("agents", &message.agents, agents));
        distinct(report, "agents", self.agents.iter().map(|agent| &agent.name));
        self.agents_config = config(report, "agents_config", message.agents_config.as_ref());
    }

    fn policies(&mut self, report: &mut Report, message: &TunnelPolicies) {
        let policies =
            |report: &mut Report, message: &_| policy::policy(report, message, policy::Place::Bootstrap).map(Arc::new);
        self.policies.extend(report.items("policies", &message.policies, policies));
        distinct(report, "policies", self.policies.iter().map(|policy| &policy.name));
        self.policies_config = config(report, "policies_config", message.policies_config.as_ref());
    }
}

fn config(report: &mut Report, field: &'static str, message: Option<&ConfigSourceMessage>) -> Option<ConfigSource> {
    report.field(field, |report| source::config_source(report, message?))
}

fn extensions(report: &mut Report, message: &api::Bootstrap, reverse: &mut ReverseTunnels) -> Extensions {
    let mut found = Extensions::default();
    report.items("bootstrap_extensions", &message.bootstrap_extensions, |report, extension| -> Option<()> {
        let Some(config) = &extension.typed_config else {
            report.error_at("typed_config", format!("is missing for {:?}", clip(&extension.name)));
            return None;
        };
        report.field("typed_config", |report| {
            if bystander::is(config) {
                bystander::warn(report, config);
                return None;
            }
            let name = config.type_name();
            if name == DownstreamReverseConnectionSocketInterface::full_name() {
                let message = report.unpack(config)?;
                reverse.downstream(report, &message);
                return None;
            }
            if name == UpstreamReverseConnectionSocketInterface::full_name() {
                let message = report.unpack(config)?;
                reverse.upstream(report, &message);
                return None;
            }
            let (agents, policies) = (TunnelAgents::full_name(), TunnelPolicies::full_name());
            if name != agents && name != policies {
                let reason = "is not there: it may decide where traffic goes; Envoy's two of reverse tunnels are, and";
                report.error(format!("{name} {reason} {agents} and {policies}"));
                return None;
            }
            if !found.seen.insert(name.to_owned()) {
                report.error("stands there twice; put everything into one");
            }
            if name == agents {
                let message = report.unpack(config)?;
                found.agents(report, &message);
            } else {
                let message = report.unpack(config)?;
                found.policies(report, &message);
            }
            None
        })
    });
    found
}

/// Names are what everything else refers to.
fn distinct<'n>(report: &mut Report, field: &'static str, names: impl Iterator<Item = &'n Name>) {
    let mut seen = HashMap::new();
    for (index, name) in names.enumerate() {
        let first = *seen.entry(name).or_insert(index);
        if first != index {
            report.error_at(field, format!("the name {:?} stands there twice", clip(name)));
        }
    }
}

fn distinct_addresses(report: &mut Report, listeners: &[Arc<Listener>]) {
    let mut seen = HashMap::new();
    for listener in listeners {
        let Some(Place { address, transport, .. }) = listener.place().filter(|place| place.address.port() != 0) else {
            continue;
        };
        if let Some(other) = seen.insert((address, transport), &listener.name) {
            let (one, other) = (clip(&listener.name), clip(other));
            report.error_at("listeners", format!("{one:?} and {other:?} have the same address, {address}"));
        }
    }
}

/// Envoy's default.
const HEADER_PREFIX: &str = "x-envoy";
