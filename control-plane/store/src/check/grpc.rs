//! What gRPC's own clients and servers refuse, and what of it they leave out of account.

use std::collections::BTreeSet;

use culvert_api::envoy::config::cluster::v3::Cluster;
use culvert_api::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use culvert_api::envoy::config::core::v3::address::Address as Kind;
use culvert_api::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use culvert_api::envoy::config::core::v3::socket_address::PortSpecifier;
use culvert_api::envoy::config::core::v3::{Address, ConfigSource};
use culvert_api::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use culvert_api::envoy::config::endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints};
use culvert_api::envoy::config::listener::v3::filter::ConfigType;
use culvert_api::envoy::config::listener::v3::{FilterChain, Listener};
use culvert_api::envoy::config::route::v3::RouteConfiguration;
use culvert_api::envoy::config::route::v3::route::Action;
use culvert_api::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use culvert_api::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use culvert_api::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType as HttpConfig;
use culvert_api::{Any, type_url};

use crate::file::Draft;

/// A field, and what is wrong with it.
pub(super) type Mistake = (String, String);

/// What a gRPC server asks for ends with its address (gRFC A36).
const SERVER: &str = "grpc/server?xds.resource.listening_address=";

const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";

/// HTTP filters that gRPC has (A33, A41, A55, A83); versions of it differ.
const FILTERS: [&str; 5] = [
    ROUTER,
    "envoy.extensions.filters.http.fault.v3.HTTPFault",
    "envoy.extensions.filters.http.rbac.v3.RBAC",
    "envoy.extensions.filters.http.stateful_session.v3.StatefulSession",
    "envoy.extensions.filters.http.gcp_authn.v3.GcpAuthnFilterConfig",
];

/// Every mistake in a resource that gRPC asks for.
pub(super) fn mistakes(draft: &Draft) -> Vec<Mistake> {
    let any = Any { type_url: draft.type_url.clone(), value: draft.value.clone() };
    let mut found = Found::default();
    match draft.type_url.as_str() {
        type_url::LISTENER => any.unpack().iter().for_each(|listener| found.listener(listener)),
        type_url::CLUSTER => any.unpack().iter().for_each(|cluster| found.cluster(cluster)),
        type_url::CLUSTER_LOAD_ASSIGNMENT => {
            any.unpack().iter().for_each(|assignment| found.assignment(assignment));
        }
        _ => {}
    }
    found.0
}

/// Every mistake in routes that a server serves.
pub(super) fn mistakes_of_served(routes: &Draft) -> Vec<Mistake> {
    let any = Any { type_url: routes.type_url.clone(), value: routes.value.clone() };
    let mut found = Found::default();
    any.unpack().iter().for_each(|routes| found.served(routes, ""));
    found.0
}

/// Whether a gRPC server asks for it.
pub(super) fn is_for_server(draft: &Draft) -> bool {
    draft.type_url == type_url::LISTENER && draft.name.starts_with(SERVER)
}

/// Whether nobody but gRPC asks for it.
pub(super) fn is_for_grpc(draft: &Draft) -> bool {
    let any = Any { type_url: draft.type_url.clone(), value: draft.value.clone() };
    let has_api_listener = || any.unpack::<Listener>().is_ok_and(|listener| listener.api_listener.is_some());
    is_for_server(draft) || (draft.type_url == type_url::LISTENER && has_api_listener())
}

#[derive(Default)]
struct Found(Vec<Mistake>);

impl Found {
    fn add(&mut self, path: impl Into<String>, reason: impl Into<String>) {
        self.0.push((path.into(), reason.into()));
    }

    fn listener(&mut self, listener: &Listener) {
        if let Some(address) = listener.name.strip_prefix(SERVER) {
            return self.server(listener, address);
        }
        // A27: a client asks for it by the name of its target.
        let Some(api) = &listener.api_listener else {
            return self.add("", format!("has no api_listener, and is no server's: {SERVER}ADDRESS:PORT"));
        };
        match api.api_listener.as_ref().map(Any::unpack::<HttpConnectionManager>) {
            Some(Ok(manager)) => self.manager(&manager, "api_listener.api_listener", false),
            _ => self.add("api_listener.api_listener", "has to be an HttpConnectionManager (gRFC A27)"),
        }
    }

    /// A36.
    fn server(&mut self, listener: &Listener, address: &str) {
        if listener.address.as_ref().and_then(shown).is_none_or(|shown| shown != address) {
            self.add(
                "address",
                format!("is not {address}, which the name says: the server would not serve (gRFC A36)"),
            );
        }
        if !listener.listener_filters.is_empty() {
            self.add("listener_filters", "gRPC has none (gRFC A36)");
        }
        if listener.use_original_dst == Some(true) {
            self.add("use_original_dst", "gRPC cannot (gRFC A36)");
        }
        let chains = listener.filter_chains.iter().enumerate();
        let chains = chains.map(|(index, chain)| (format!("filter_chains[{index}]"), chain));
        let default = listener.default_filter_chain.iter().map(|chain| ("default_filter_chain".to_owned(), chain));
        for (path, chain) in chains.chain(default) {
            self.chain(chain, &path);
        }
    }

    fn chain(&mut self, chain: &FilterChain, path: &str) {
        let [filter] = chain.filters.as_slice() else {
            return self.add(format!("{path}.filters"), "has to be one HttpConnectionManager (gRFC A36)");
        };
        match &filter.config_type {
            Some(ConfigType::TypedConfig(any)) if any.unpack::<HttpConnectionManager>().is_ok() => {
                if let Ok(manager) = any.unpack() {
                    self.manager(&manager, &format!("{path}.filters[0].typed_config"), true);
                }
            }
            _ => self.add(format!("{path}.filters[0]"), "has to be an HttpConnectionManager (gRFC A36)"),
        }
    }

    fn manager(&mut self, manager: &HttpConnectionManager, path: &str, serves: bool) {
        match &manager.route_specifier {
            Some(RouteSpecifier::Rds(rds)) if !rds.config_source.as_ref().is_some_and(is_ours) => {
                self.add(format!("{path}.rds.config_source"), "has to be ads or self (gRFC A28)");
            }
            Some(RouteSpecifier::ScopedRoutes(_)) => self.add(format!("{path}.scoped_routes"), "gRPC has none"),
            Some(RouteSpecifier::RouteConfig(routes)) if serves => self.served(routes, &format!("{path}.route_config")),
            _ => {}
        }
        if manager.xff_num_trusted_hops > 0 {
            self.add(format!("{path}.xff_num_trusted_hops"), "gRPC trusts none (gRFC A41)");
        }
        if !manager.original_ip_detection_extensions.is_empty() {
            self.add(format!("{path}.original_ip_detection_extensions"), "gRPC has none (gRFC A41)");
        }
        self.filters(manager, path);
    }

    /// A39.
    fn filters(&mut self, manager: &HttpConnectionManager, path: &str) {
        let last = manager.http_filters.len().saturating_sub(1);
        if manager.http_filters.is_empty() {
            self.add(format!("{path}.http_filters"), "the last filter has to be a Router (gRFC A39)");
        }
        for (index, filter) in manager.http_filters.iter().enumerate() {
            let path = format!("{path}.http_filters[{index}]");
            let of = match &filter.config_type {
                Some(HttpConfig::TypedConfig(any)) => type_url::message_name(&any.type_url),
                _ => "",
            };
            if (of == ROUTER) != (index == last) {
                self.add(&path, "a Router has to be the last filter, and is nowhere else (gRFC A39)");
            } else if !FILTERS.contains(&of) && !filter.is_optional {
                self.add(&path, "gRPC may not know this filter, and refuses it unless it is_optional (gRFC A39)");
            }
        }
    }

    /// What a server serves itself.
    fn served(&mut self, routes: &RouteConfiguration, path: &str) {
        for (host_index, host) in routes.virtual_hosts.iter().enumerate() {
            for (index, route) in host.routes.iter().enumerate() {
                if !matches!(route.action, Some(Action::NonForwardingAction(_))) {
                    let separator = if path.is_empty() { "" } else { "." };
                    let path = format!("{path}{separator}virtual_hosts[{host_index}].routes[{index}]");
                    self.add(path, "a server answers only by non_forwarding_action; others fail (gRFC A36)");
                }
            }
        }
    }

    /// A27, A37.
    fn cluster(&mut self, cluster: &Cluster) {
        match &cluster.cluster_discovery_type {
            Some(ClusterDiscoveryType::Type(kind)) if *kind == DiscoveryType::Eds as i32 => {
                let source = cluster.eds_cluster_config.as_ref().and_then(|config| config.eds_config.as_ref());
                if !source.is_some_and(is_ours) {
                    self.add("eds_cluster_config.eds_config", "has to be ads or self (gRFC A27)");
                }
            }
            Some(ClusterDiscoveryType::Type(kind)) if *kind == DiscoveryType::LogicalDns as i32 => {
                let localities = cluster.load_assignment.iter().flat_map(|assignment| &assignment.endpoints);
                if localities.map(|locality| locality.lb_endpoints.len()).collect::<Vec<_>>() != [1] {
                    self.add("load_assignment", "has to be one locality with one endpoint (gRFC A37)");
                }
            }
            Some(ClusterDiscoveryType::ClusterType(custom))
                if custom.typed_config.as_ref().is_some_and(|config| config.type_url.ends_with(AGGREGATE)) => {}
            _ => self.add("type", "gRPC has clusters of type EDS and LOGICAL_DNS, and aggregates (gRFC A27, A37)"),
        }
        if cluster.lrs_server.as_ref().is_some_and(|source| !is_self(source)) {
            self.add("lrs_server", "has to be self (gRFC A27)");
        }
    }

    /// A27.
    fn assignment(&mut self, assignment: &ClusterLoadAssignment) {
        let mut localities = BTreeSet::new();
        let mut addresses = BTreeSet::new();
        let mut priorities = BTreeSet::new();
        for (index, group) in assignment.endpoints.iter().enumerate() {
            let path = format!("endpoints[{index}]");
            if group.load_balancing_weight.is_none() {
                self.add(&path, "gRPC leaves out a locality without load_balancing_weight (gRFC A27)");
                continue;
            }
            priorities.insert(group.priority);
            if !localities.insert((group.priority, place(group))) {
                self.add(format!("{path}.locality"), "stands here twice with one priority (gRFC A27)");
            }
            for (index, endpoint) in group.lb_endpoints.iter().enumerate() {
                let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else { continue };
                let others = endpoint.additional_addresses.iter().filter_map(|other| other.address.as_ref());
                let mut all = endpoint.address.iter().chain(others).filter_map(shown);
                if let Some(address) = all.find(|address| !addresses.insert(address.clone())) {
                    let path = format!("{path}.lb_endpoints[{index}]");
                    self.add(path, format!("its address {address} stands here twice (gRFCs A27, A61)"));
                }
            }
        }
        let gap = (0u32..).zip(&priorities).find(|(expected, priority)| expected != *priority);
        if let Some((missing, _)) = gap {
            self.add("endpoints", format!("there is no locality of priority {missing}, but one below it (gRFC A27)"));
        }
    }
}

const AGGREGATE: &str = "/envoy.extensions.clusters.aggregate.v3.ClusterConfig";

fn is_ours(source: &ConfigSource) -> bool {
    matches!(source.config_source_specifier, Some(ConfigSourceSpecifier::Ads(_))) || is_self(source)
}

fn is_self(source: &ConfigSource) -> bool {
    matches!(source.config_source_specifier, Some(ConfigSourceSpecifier::Self_(_)))
}

/// `ADDRESS:PORT`, of IPv6 in brackets.
fn shown(address: &Address) -> Option<String> {
    let Some(Kind::SocketAddress(socket)) = &address.address else { return None };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else { return None };
    let host = &socket.address;
    Some(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
}

fn place(group: &LocalityLbEndpoints) -> (&str, &str, &str) {
    let of = group.locality.as_ref();
    of.map_or(("", "", ""), |locality| (&*locality.region, &*locality.zone, &*locality.sub_zone))
}
