//! What gRPC refuses: each mistake by its field, where the nodes are gRPC's.

use super::*;

const AT: &str = "\"@type\": type.googleapis.com/envoy";
const ROUTER: &str =
    "{name: r, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}";

fn manager(more: &str) -> String {
    format!(
        "{{{AT}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: s, {more}}}"
    )
}

fn rds(source: &str) -> String {
    format!("rds: {{route_config_name: r, config_source: {{{source}: {{}}}}}}, http_filters: [{ROUTER}]")
}

fn target(manager: &str) -> String {
    format!("{{{AT}.config.listener.v3.Listener, name: shop, api_listener: {{api_listener: {manager}}}}}")
}

/// A server's listener at port 50051.
fn server(port: u16, manager: &str, more: &str) -> String {
    format!(
        "{{{AT}.config.listener.v3.Listener, name: \"grpc/server?xds.resource.listening_address=127.0.0.1:50051\", \
         address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, \
         filter_chains: [{{filters: [{{name: m, typed_config: {manager}}}]}}]{more}}}"
    )
}

fn served(action: &str) -> String {
    let route = format!("{{match: {{prefix: /}}, {action}}}");
    format!(
        "route_config: {{virtual_hosts: [{{name: v, domains: ['*'], routes: [{route}]}}]}}, http_filters: [{ROUTER}]"
    )
}

fn assignment(endpoints: &str) -> String {
    format!("{{{AT}.config.endpoint.v3.ClusterLoadAssignment, cluster_name: c, endpoints: [{endpoints}]}}")
}

/// A locality with one endpoint.
fn locality(zone: &str, priority: u8, port: u16) -> String {
    format!(
        "{{locality: {{zone: {zone}}}, priority: {priority}, load_balancing_weight: 1, lb_endpoints: [{{endpoint: \
         {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}"
    )
}

fn eds(source: &str) -> String {
    format!("{{{AT}.config.cluster.v3.Cluster, name: c, type: EDS, eds_cluster_config: {{eds_config: {{{source}}}}}}}")
}

/// The mistakes of a resource for gRPC's nodes.
fn mistakes(resource: &str) -> Vec<String> {
    Folder::new(&[("a.yaml", &format!("node: grpc\nresources:\n- {resource}\n"))]).errors()
}

#[test]
fn what_grpc_takes_is_no_mistake() {
    let non_forwarding = server(50051, &manager(&served("non_forwarding_action: {}")), "");
    let aggregate = format!(
        "{{{AT}.config.cluster.v3.Cluster, name: c, lb_policy: CLUSTER_PROVIDED, cluster_type: {{name: a, typed_config: \
         {{{AT}.extensions.clusters.aggregate.v3.ClusterConfig, clusters: [d]}}}}}}"
    );
    let dns = format!(
        "{{{AT}.config.cluster.v3.Cluster, name: c, type: LOGICAL_DNS, load_assignment: {{cluster_name: c, endpoints: [{}]}}}}",
        locality("a", 0, 1)
    );
    // Outlier detection (A50), ring hash (A42), circuit breakers (A32), a proxy on the way (A86).
    let rich = eds("ads: {}").replace(
        "type: EDS",
        &format!(
            "type: EDS, lb_policy: RING_HASH, ring_hash_lb_config: {{minimum_ring_size: 8}}, outlier_detection: {{interval: 5s}}, \
             circuit_breakers: {{thresholds: [{{max_requests: 9}}]}}, transport_socket: {{name: p, typed_config: \
             {{{AT}.extensions.transport_sockets.http_11_proxy.v3.Http11ProxyUpstreamTransport}}}}"
        ),
    );
    // Policies of load balancing (A48, A52, A58).
    let balanced = |policy: &str| {
        let policy = format!(
            "{{typed_extension_config: {{name: p, typed_config: {{{AT}.extensions.load_balancing_policies.{policy}}}}}}}"
        );
        eds("ads: {}").replace("type: EDS", &format!("type: EDS, load_balancing_policy: {{policies: [{policy}]}}"))
    };
    // Time-outs and retries (A31, A44), weights (A28).
    let routes = format!(
        "{{{AT}.config.route.v3.RouteConfiguration, name: r, virtual_hosts: [{{name: v, domains: [shop], routes: [{{match: {{prefix: /}}, \
         route: {{weighted_clusters: {{clusters: [{{name: c, weight: 1}}]}}, max_stream_duration: {{grpc_timeout_header_max: 9s}}, \
         retry_policy: {{retry_on: unavailable, num_retries: 2}}}}}}]}}]}}"
    );
    // Session affinity (A55); another address of the same endpoint (A61).
    let session =
        format!("{{name: s, typed_config: {{{AT}.extensions.filters.http.stateful_session.v3.StatefulSession}}}}");
    let sticky = target(&manager(&rds("ads").replace("http_filters: [", &format!("http_filters: [{session}, "))));
    let dual = locality("a", 0, 1).replace(
        "port_value: 1}}",
        "port_value: 1}}, additional_addresses: [{address: {socket_address: {address: \"::1\", port_value: 1}}}]",
    );
    let localities = [locality("a", 0, 1), locality("b", 0, 2), locality("a", 1, 3)].join(", ");
    for good in [
        target(&manager(&rds("ads"))),
        target(&manager(&rds("self"))),
        non_forwarding,
        eds("ads: {}"),
        aggregate,
        dns,
        assignment(&localities),
        assignment(""),
        rich,
        balanced("client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin"),
        balanced("least_request.v3.LeastRequest"),
        balanced("wrr_locality.v3.WrrLocality, endpoint_picking_policy: {policies: []}"),
        routes,
        sticky,
        assignment(&dual),
    ] {
        check(&mistakes(&good), &[]);
    }
}

#[test]
fn what_grpc_refuses_is_an_error_for_its_nodes() {
    let fault =
        "{name: f, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault}}";
    let cors = |more: &str| format!("{{name: c{more}, typed_config: {{{AT}.extensions.filters.http.cors.v3.Cors}}}}");
    let filters = |filters: &[&str]| {
        let routes = "rds: {route_config_name: r, config_source: {ads: {}}}";
        target(&manager(&format!("{routes}, http_filters: [{}]", filters.join(", "))))
    };
    let manager_path = "api_listener.api_listener";
    let chain = "filter_chains[0].filters[0]";
    let tcp = format!("{{{AT}.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: c}}");
    let good = manager(&served("non_forwarding_action: {}"));
    let inspector = format!(
        ", listener_filters: [{{name: i, typed_config: {{{AT}.extensions.filters.listener.tls_inspector.v3.TlsInspector}}}}]"
    );
    let dual = |other: &str, of: &str, port: u16| {
        locality(of, 0, port).replace(
            &format!("port_value: {port}}}}}"),
            &format!("port_value: {port}}}}}, additional_addresses: [{{address: {{socket_address: {{address: \"{other}\", port_value: 1}}}}}}]"),
        )
    };
    let two = |a: String, b: String| assignment(&format!("{a}, {b}"));
    let weightless = locality("a", 0, 1).replace(" load_balancing_weight: 1,", "");
    for (resource, expected) in [
        (format!("{{{AT}.config.listener.v3.Listener, name: shop}}"), "has no api_listener".to_owned()),
        (target(&tcp), format!("{manager_path}: has to be an HttpConnectionManager")),
        (
            target(&manager(&rds("api_config_source").replace("api_config_source: {}", "path: /x"))),
            format!("{manager_path}.rds.config_source: has to be ads or self"),
        ),
        (
            target(&manager(&format!("xff_num_trusted_hops: 1, {}", rds("ads")))),
            format!("{manager_path}.xff_num_trusted_hops: "),
        ),
        (filters(&[]), format!("{manager_path}.http_filters: the last filter has to be a Router")),
        (filters(&[fault]), format!("{manager_path}.http_filters[0]: a Router has to be the last")),
        (filters(&[ROUTER, ROUTER]), format!("{manager_path}.http_filters[0]: a Router has to be the last")),
        (filters(&[&cors(""), ROUTER]), format!("{manager_path}.http_filters[0]: gRPC may not know this filter")),
        (server(50052, &good, ""), "address: is not 127.0.0.1:50051, which the name says".to_owned()),
        (server(50051, &good, &inspector), "listener_filters: gRPC has none".to_owned()),
        (server(50051, &good, ", use_original_dst: true"), "use_original_dst: gRPC cannot".to_owned()),
        (server(50051, &tcp, ""), format!("{chain}: has to be an HttpConnectionManager")),
        (
            server(50051, &manager(&served("direct_response: {status: 200}")), ""),
            format!("{chain}.typed_config.route_config.virtual_hosts[0].routes[0]: a server answers only by"),
        ),
        (eds("path: /x"), "eds_cluster_config.eds_config: has to be ads or self".to_owned()),
        (cluster("c", ""), "type: gRPC has clusters of type EDS".to_owned()),
        (assignment(&weightless), "endpoints[0]: gRPC leaves out a locality without load_balancing_weight".to_owned()),
        (two(locality("a", 0, 1), locality("a", 0, 2)), "endpoints[1].locality: stands here twice".to_owned()),
        (
            two(locality("a", 0, 1), locality("b", 0, 1)),
            "endpoints[1].lb_endpoints[0]: its address 127.0.0.1:1 stands here twice".to_owned(),
        ),
        // Other addresses of an endpoint (A61) count as its own.
        (assignment(&dual("127.0.0.1", "a", 1)), "endpoints[0].lb_endpoints[0]: its address 127.0.0.1:1".to_owned()),
        (
            two(dual("::1", "a", 1), dual("::1", "b", 2)),
            "endpoints[1].lb_endpoints[0]: its address [::1]:1 stands here twice".to_owned(),
        ),
        (two(locality("a", 0, 1), locality("a", 2, 2)), "endpoints: there is no locality of priority 1".to_owned()),
    ] {
        check(&mistakes(&resource), &[&expected]);
    }
    check(&mistakes(&filters(&[&cors(", is_optional: true"), fault, ROUTER])), &[]);
}

/// A server's routes may be a resource of their own, which others may ask for too.
#[test]
fn routes_that_a_server_asks_for_are_checked_as_what_it_serves() {
    let routes = |action: &str| {
        format!(
            "{{{AT}.config.route.v3.RouteConfiguration, name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: \
             [{{match: {{prefix: /}}, {action}}}]}}]}}"
        )
    };
    let found = "virtual_hosts[0].routes[0]: a server answers only by non_forwarding_action; others fail (gRFC A36)";
    let server = server(50051, &manager(&rds("ads")), "");
    for (listener, action, expected) in [
        (&server, "non_forwarding_action: {}", &[][..]),
        (&server, "direct_response: {status: 200}", &[found]),
        (&target(&manager(&rds("ads"))), "direct_response: {status: 200}", &[]),
    ] {
        let text = format!("node: grpc\nresources:\n- {listener}\n- {}\n", routes(action));
        check(&Folder::new(&[("a.yaml", &text)]).errors(), expected);
    }
    // Of whatever nodes: a warning.
    let folder = Folder::new(&[("a.yaml", &server), ("b.yaml", &routes("direct_response: {status: 200}"))]);
    let load = folder.load(Options::default());
    assert!(load.directory.is_some(), "warnings do not refuse a directory: {:?}", load.errors);
    let shown = folder.shown(&load.warnings);
    assert!(shown.iter().any(|one| one.contains("b.yaml") && one.contains(found)), "{shown:#?}");
}

/// Nobody but gRPC asks for these.
#[test]
fn what_is_visibly_grpcs_is_warned_about_whatever_the_nodes_are() {
    let hops = manager(&format!("xff_num_trusted_hops: 1, {}", rds("ads")));
    let folder = Folder::new(&[("a.yaml", &target(&hops)), ("b.yaml", &cluster("c", ""))]);
    let load = folder.load(Options::default());
    assert!(load.directory.is_some(), "warnings do not refuse a directory: {:?}", load.errors);
    let shown = folder.shown(&load.warnings);
    let of_grpc: Vec<_> = shown.iter().filter(|one| one.contains("gRFC")).collect();
    assert!(of_grpc.len() == 1 && of_grpc[0].contains("xff_num_trusted_hops"), "{shown:#?}");
}
