//! What resources refer to by name.

use culvert_api::{pool, type_url};
use prost_reflect::{DynamicMessage, ReflectMessage, Value};

use crate::file::Draft;

/// How deep messages and `Any`s are followed: a bound on the stack.
const MAX_DEPTH: usize = 100;

/// A name in a resource that stands for another resource.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// Where: proto field names.
    pub(crate) path: String,
    /// It is to a cluster that agents name when they dial in.
    pub(crate) is_registration: bool,
    pub(crate) type_url: &'static str,
    pub(crate) name: String,
}

const REGISTRATION: &str = "culvert.tunnel.v1.TunnelSource.registered_as";

/// Fields that hold the name of a resource, or a list of such names. A third entry is the field beside it that says where the resource comes from:
/// only what comes from us (ADS, or gRPC) can be missing here.
const FIELDS: &[(&str, &str, Option<&str>)] = &[
    ("envoy.config.route.v3.RouteAction.cluster", type_url::CLUSTER, None),
    ("envoy.config.route.v3.RouteAction.RequestMirrorPolicy.cluster", type_url::CLUSTER, None),
    ("envoy.config.route.v3.WeightedCluster.ClusterWeight.name", type_url::CLUSTER, None),
    ("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.cluster", type_url::CLUSTER, None),
    (
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight.name",
        type_url::CLUSTER,
        None,
    ),
    ("envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig.cluster", type_url::CLUSTER, None),
    ("envoy.extensions.filters.udp.udp_proxy.v3.Route.cluster", type_url::CLUSTER, None),
    (
        "envoy.extensions.filters.network.http_connection_manager.v3.Rds.route_config_name",
        type_url::ROUTE_CONFIGURATION,
        Some("config_source"),
    ),
    ("envoy.config.route.v3.ScopedRouteConfiguration.route_configuration_name", type_url::ROUTE_CONFIGURATION, None),
    ("envoy.extensions.clusters.aggregate.v3.ClusterConfig.clusters", type_url::CLUSTER, None),
    ("envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig.name", type_url::SECRET, Some("sds_config")),
    ("culvert.tunnel.v1.EdsServers.service_name", type_url::CLUSTER_LOAD_ASSIGNMENT, Some("eds_config")),
    ("culvert.tunnel.v1.TunnelAgent.hosting_listener", type_url::LISTENER, None),
    (REGISTRATION, type_url::CLUSTER, None),
];

/// Everything that a resource refers to.
pub(crate) fn of(draft: &Draft) -> Vec<Reference> {
    let mut walk = Walk { path: String::new(), depth: 0, found: Vec::new() };
    walk.any(&draft.type_url, &draft.value);
    walk.found
}

struct Walk {
    path: String,
    depth: usize,
    found: Vec<Reference>,
}

impl Walk {
    fn any(&mut self, type_url: &str, value: &[u8]) {
        let decoded = pool::message(type_url).and_then(|descriptor| DynamicMessage::decode(descriptor, value).ok());
        if let Some(message) = decoded.filter(|_| self.depth < MAX_DEPTH) {
            self.depth += 1;
            self.message(&message);
            self.depth -= 1;
        }
    }

    fn message(&mut self, message: &DynamicMessage) {
        let descriptor = message.descriptor();
        match descriptor.full_name() {
            "google.protobuf.Any" => {
                let (url, value) = (message.get_field_by_number(1), message.get_field_by_number(2));
                if let (Some(url), Some(value)) = (&url, &value)
                    && let (Some(url), Some(value)) = (url.as_str(), value.as_bytes())
                {
                    self.any(url, value);
                }
                return;
            }
            "envoy.config.cluster.v3.Cluster" => self.assignment(message),
            _ => {}
        }
        for (field, value) in message.fields() {
            if let Some((full_name, target, source)) = FIELDS.iter().find(|(name, ..)| *name == field.full_name()) {
                if source.is_none_or(|source| comes_from_us(message, source)) {
                    self.at(field.name(), |walk| walk.references(full_name, target, value));
                }
                continue;
            }
            match value {
                Value::Message(inner) => self.at(field.name(), |walk| walk.nested(inner)),
                Value::List(items) => {
                    for (index, item) in items.iter().enumerate() {
                        if let Value::Message(inner) = item {
                            self.at(&format!("{}[{index}]", field.name()), |walk| walk.nested(inner));
                        }
                    }
                }
                Value::Map(map) => {
                    for (key, item) in map {
                        if let Value::Message(inner) = item {
                            let key = key.as_str().map_or(quoted(&format!("{key:?}")), quoted);
                            self.at(&format!("{}[{key}]", field.name()), |walk| walk.nested(inner));
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn nested(&mut self, message: &DynamicMessage) {
        if self.depth < MAX_DEPTH {
            self.depth += 1;
            self.message(message);
            self.depth -= 1;
        }
    }

    /// A cluster of type EDS refers to an assignment, by its service name or its own.
    fn assignment(&mut self, cluster: &DynamicMessage) {
        const EDS: i32 = 3;
        let is_eds = cluster.has_field_by_name("type")
            && cluster.get_field_by_name("type").and_then(|kind| kind.as_enum_number()) == Some(EDS);
        let config = cluster.get_field_by_name("eds_cluster_config");
        let Some(config) = config.as_ref().and_then(|config| config.as_message()).filter(|_| is_eds) else { return };
        if !comes_from_us(config, "eds_config") {
            return;
        }
        let text = |message: &DynamicMessage, field: &str| {
            message.get_field_by_name(field).and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
        };
        let service = text(config, "service_name");
        let name = if service.is_empty() { text(cluster, "name") } else { service };
        self.at("eds_cluster_config", |walk| walk.reference(type_url::CLUSTER_LOAD_ASSIGNMENT, &name));
    }

    /// The names that a known field holds.
    fn references(&mut self, field: &str, target: &'static str, value: &Value) {
        match value {
            Value::String(name) if !name.is_empty() => {
                self.reference(target, name);
                if let Some(found) = self.found.last_mut() {
                    found.is_registration = field == REGISTRATION;
                }
            }
            Value::List(names) => {
                for (index, name) in names.iter().enumerate() {
                    // A list of names has no lists in it.
                    let length = self.path.len();
                    self.path.push_str(&format!("[{index}]"));
                    self.references(field, target, name);
                    self.path.truncate(length);
                }
            }
            _ => {}
        }
    }

    fn reference(&mut self, target: &'static str, name: &str) {
        let (path, name) = (self.path.clone(), name.to_owned());
        self.found.push(Reference { path, type_url: target, name, is_registration: false });
    }

    fn at(&mut self, step: &str, f: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(step);
        f(self);
        self.path.truncate(length);
    }
}

/// Whether a `ConfigSource` is set and is ADS, the same server, or gRPC.
fn comes_from_us(message: &DynamicMessage, source: &str) -> bool {
    let source = message.get_field_by_name(source);
    let source = source.as_ref().and_then(|source| source.as_message());
    source.is_some_and(|source| ["ads", "self", "api_config_source"].iter().any(|kind| source.has_field_by_name(kind)))
}

fn quoted(key: &str) -> String {
    format!("{key:?}")
}
