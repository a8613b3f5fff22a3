//! Type URLs of the xDS resource types.

/// What every type URL of the xDS API begins with.
pub const PREFIX: &str = "type.googleapis.com/";

pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub const ROUTE_CONFIGURATION: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
pub const SCOPED_ROUTE_CONFIGURATION: &str = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration";
pub const VIRTUAL_HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub const CLUSTER_LOAD_ASSIGNMENT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub const LOCALITY_ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.LbEndpoint";
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
pub const RUNTIME: &str = "type.googleapis.com/envoy.service.runtime.v3.Runtime";
pub const EXTENSION_CONFIG: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
/// `Resource`, the wrapper that may carry a resource in a state-of-the-world response.
pub const RESOURCE: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";
/// Ours: an agent that dials out to tunnel servers.
pub const TUNNEL_AGENT: &str = "type.googleapis.com/culvert.tunnel.v1.TunnelAgent";
/// Ours: who may open tunnels, and as what.
pub const TUNNEL_POLICY: &str = "type.googleapis.com/culvert.tunnel.v1.TunnelPolicy";

/// The type URL of the message with this full name.
#[must_use]
pub fn of_name(full_name: &str) -> String {
    [PREFIX, full_name].concat()
}

/// The full message name of a type URL: what stands behind the last `/`.
#[must_use]
pub fn message_name(type_url: &str) -> &str {
    type_url.rsplit_once('/').map_or(type_url, |(_, name)| name)
}

/// Where a type stands when resources of several types are sent on one stream: what is referred to goes before what
/// refers to it when it is added (xDS: "Eventual consistency considerations": CDS, EDS, LDS, RDS).
#[must_use]
pub fn push_order(type_url: &str) -> u8 {
    match type_url {
        SECRET => 0,
        CLUSTER => 1,
        CLUSTER_LOAD_ASSIGNMENT => 2,
        LOCALITY_ENDPOINT => 3,
        LISTENER => 4,
        SCOPED_ROUTE_CONFIGURATION => 5,
        ROUTE_CONFIGURATION => 6,
        VIRTUAL_HOST => 7,
        EXTENSION_CONFIG => 8,
        RUNTIME => 9,
        _ => 10,
    }
}

/// A short name for messages to people: `Listener`, `Cluster`; the whole type URL where it has no dot.
#[must_use]
pub fn short_name(type_url: &str) -> &str {
    let name = message_name(type_url);
    name.rsplit_once('.').map_or(name, |(_, short)| short)
}
