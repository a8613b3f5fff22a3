//! A gateway as Istio configures one: the bootstrap of its agent, which serves xDS and secrets on unix sockets, and the listeners,
//! routes, clusters and assignments of istiod's shape, with mutual TLS for the workloads that take it.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::ca::Authority;
use culvert_tests::client::get;
use culvert_tests::gateway::{Gateway, http_listener};
use culvert_tests::plane::{Plane, envoy};
use culvert_tests::process::{Daemon, ours};
use culvert_tests::wait::eventually;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpStream, UnixListener};
use tokio::task::JoinSet;

const NODE: &str = "router~127.0.0.1~gateway-1.shop~shop.svc.cluster.local";
const CLUSTER: &str = "outbound|80||shop.shop.svc.cluster.local";
const GATEWAY: &str = "spiffe://cluster.local/ns/shop/sa/gateway";
const WORKLOAD: &str = "spiffe://cluster.local/ns/shop/sa/shop";

/// Passes what comes on a unix socket on to the control plane, as Istio's agent does.
fn agent(sockets: &mut JoinSet<()>, path: &Path, control: SocketAddr) -> Result {
    let socket = UnixListener::bind(path).with_context(|| path.display().to_string())?;
    sockets.spawn(async move {
        let mut passed = JoinSet::new();
        while let Ok((mut near, _)) = socket.accept().await {
            passed.spawn(async move {
                let mut far = TcpStream::connect(control).await?;
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            });
        }
    });
    Ok(())
}

/// Of the agent.
fn bootstrap() -> Value {
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let by_path = |name: &str, path: &str| {
        json!({ "name": name, "alt_stat_name": format!("{name};"), "type": "STATIC", "connect_timeout": "1s",
            "lb_policy": "ROUND_ROBIN",
            "typed_extension_protocol_options": { options: { "@type": format!("type.googleapis.com/{options}"),
                "explicit_http_config": { "http2_protocol_options": {} } } },
            "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [
                { "endpoint": { "address": { "pipe": { "path": path } } } }] }] } })
    };
    let as_json = |kind: &str, value: Value| {
        json!({ "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
            "type_url": format!("type.googleapis.com/{kind}"), "value": value })
    };
    json!({
        "node": { "id": NODE, "cluster": "gateway.shop", "locality": { "region": "r", "zone": "z" },
            "metadata": { "NAMESPACE": "shop", "ISTIO_VERSION": "1.31.0", "LABELS": { "app": "gateway" } } },
        "layered_runtime": { "layers": [
            { "name": "global config", "static_layer": {
                "overload.global_downstream_max_connections": "2147483647",
                "re2.max_program_size.error_level": "32768" } },
            { "name": "admin", "admin_layer": {} }] },
        "bootstrap_extensions": [
            { "name": "metadata_discovery", "typed_config":
                as_json("istio.workload.BootstrapExtension", json!({ "config_source": { "ads": {} } })) },
            { "name": "envoy.bootstrap.internal_listener", "typed_config": as_json(
                "envoy.extensions.bootstrap.internal_listener.v3.InternalListener", json!({ "buffer_size_kb": 64 })) }],
        "stats_config": { "use_all_default_tags": false,
            "stats_tags": [{ "tag_name": "cluster_name", "regex": "^cluster(\\.(.+);)" }] },
        "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } } },
        "dynamic_resources": {
            "lds_config": { "ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3" },
            "cds_config": { "ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3" },
            "ads_config": { "api_type": "DELTA_GRPC", "set_node_on_first_message_only": true,
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds-grpc" } }] } },
        "static_resources": { "clusters": [by_path("sds-grpc", "./SDS"), by_path("xds-grpc", "./XDS")] },
    })
}

/// Where istiod says that secrets are.
fn secret(name: &str) -> Value {
    json!({ "name": name, "sds_config": { "resource_api_version": "V3", "initial_fetch_timeout": "0s",
        "api_config_source": { "api_type": "GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
            "grpc_services": [{ "envoy_grpc": { "cluster_name": "sds-grpc" } }] } } })
}

/// Of istiod, with automatic mutual TLS.
fn cluster() -> Value {
    let tls = json!({ "name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": envoy("extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
        "sni": "outbound_.80_._.shop.shop.svc.cluster.local",
        "common_tls_context": {
            "alpn_protocols": ["istio-peer-exchange", "istio"],
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3" },
            "tls_certificate_sds_secret_configs": [secret("default")],
            "combined_validation_context": {
                "default_validation_context": { "match_typed_subject_alt_names": [
                    { "san_type": "URI", "matcher": { "exact": WORKLOAD } }] },
                "validation_context_sds_secret_config": secret("ROOTCA") } } } });
    json!({ "@type": envoy("config.cluster.v3.Cluster"), "name": CLUSTER, "type": "EDS", "connect_timeout": "10s",
        "lb_policy": "LEAST_REQUEST",
        "eds_cluster_config": { "service_name": CLUSTER, "eds_config": {
            "ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3" } },
        "circuit_breakers": { "thresholds": [{ "max_connections": 4294967295u32, "max_pending_requests": 4294967295u32,
            "max_requests": 4294967295u32, "max_retries": 4294967295u32, "track_remaining": true }] },
        "common_lb_config": { "locality_weighted_lb_config": {} },
        "metadata": { "filter_metadata": { "istio": { "services": [{ "name": "shop", "namespace": "shop" }] } } },
        "transport_socket_matches": [
            { "name": "tlsMode-istio", "match": { "tlsMode": "istio" }, "transport_socket": tls },
            { "name": "tlsMode-disabled", "match": {}, "transport_socket": { "name": "envoy.transport_sockets.raw_buffer",
                "typed_config": { "@type": envoy("extensions.transport_sockets.raw_buffer.v3.RawBuffer") } } }] })
}

/// `secure` is in the mesh.
fn assignment(secure: SocketAddr, plain: SocketAddr) -> Value {
    let endpoint = |address: SocketAddr, metadata: Value| {
        json!({ "health_status": "HEALTHY", "load_balancing_weight": 1, "metadata": { "filter_metadata": metadata },
            "endpoint": { "address": { "socket_address": {
                "address": address.ip().to_string(), "port_value": address.port() } } } })
    };
    json!({ "@type": envoy("config.endpoint.v3.ClusterLoadAssignment"), "cluster_name": CLUSTER, "endpoints": [{
        "locality": { "region": "r", "zone": "z" }, "load_balancing_weight": 2, "lb_endpoints": [
            endpoint(secure, json!({ "envoy.transport_socket_match": { "tlsMode": "istio" }, "istio": { "workload": "shop;shop;;;" } })),
            endpoint(plain, json!({ "istio": { "workload": "old;shop;;;" } }))] }] })
}

/// What has no descriptor here: two of Istio's filters.
fn filters() -> Value {
    let bare = |kind: &str| json!({ "@type": format!("type.googleapis.com/{kind}") });
    let stats = json!({ "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
        "type_url": "type.googleapis.com/stats.PluginConfig", "value": { "disable_host_header_fallback": true } });
    json!([
        { "name": "istio.alpn", "typed_config":
            { "@type": "type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig", "value": "CgYIARICaDI=" } },
        { "name": "envoy.filters.http.fault", "typed_config": bare("envoy.extensions.filters.http.fault.v3.HTTPFault") },
        { "name": "envoy.filters.http.cors", "typed_config": bare("envoy.extensions.filters.http.cors.v3.Cors") },
        { "name": "istio.stats", "typed_config": stats },
        { "name": "envoy.filters.http.router", "typed_config": bare("envoy.extensions.filters.http.router.v3.Router") },
    ])
}

fn listener(address: SocketAddr) -> Value {
    json!({ "@type": envoy("config.listener.v3.Listener"), "name": "0.0.0.0_8080", "traffic_direction": "OUTBOUND",
        "address": { "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } },
        "max_connections_to_accept_per_socket_event": 1,
        "filter_chains": [{ "filters": [{ "name": "envoy.filters.network.http_connection_manager", "typed_config": {
            "@type": envoy("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": "outbound_0.0.0.0_8080;",
            "rds": { "route_config_name": "http.8080", "config_source": {
                "ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3" } },
            "http_filters": filters(),
            "http_protocol_options": {}, "server_name": "istio-envoy", "use_remote_address": true,
            "forward_client_cert_details": "SANITIZE_SET",
            "set_current_client_cert_details": { "subject": true, "cert": true, "dns": true, "uri": true },
            "upgrade_configs": [{ "upgrade_type": "websocket" }],
            "stream_idle_timeout": "0s", "normalize_path": true, "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
            "request_id_extension": { "typed_config": {
                "@type": envoy("extensions.request_id.uuid.v3.UuidRequestIdConfig"),
                "use_request_id_for_trace_sampling": true } },
        } }] }] })
}

fn routes() -> Value {
    json!({ "@type": envoy("config.route.v3.RouteConfiguration"), "name": "http.8080", "validate_clusters": false,
        "max_direct_response_body_size_bytes": 1048576, "ignore_port_in_host_matching": true,
        "virtual_hosts": [{ "name": "shop.example:80", "domains": ["shop.example"], "include_request_attempt_count": true,
            "routes": [{ "match": { "prefix": "/", "case_sensitive": true }, "decorator": { "operation": "shop:80/*" },
                "metadata": { "filter_metadata": { "istio": { "config": "/apis/networking.istio.io/v1/virtual-service/shop" } } },
                "route": { "cluster": CLUSTER, "timeout": "0s", "max_grpc_timeout": "0s", "retry_policy": {
                    "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
                    "num_retries": 2, "retry_host_predicate": [{ "name": "envoy.retry_host_predicates.previous_hosts",
                        "typed_config": { "@type": envoy("extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate") } }],
                    "host_selection_retry_max_attempts": "5", "retriable_status_codes": [503] } } }] }] })
}

/// The certificate and the root, as the agent has them from its authority.
fn secrets(ca: &Authority, folder: &Path) -> Result<Vec<Value>> {
    let text = |path: &Path| std::fs::read_to_string(path);
    let leaf = ca.issue(folder, "gateway", &[GATEWAY])?;
    let kind = envoy("extensions.transport_sockets.tls.v3.Secret");
    Ok(vec![
        json!({ "@type": kind, "name": "default", "tls_certificate": {
            "certificate_chain": { "inline_string": text(&leaf.certificate)? },
            "private_key": { "inline_string": text(&leaf.key)? } } }),
        json!({ "@type": kind, "name": "ROOTCA", "validation_context": {
            "trusted_ca": { "inline_string": text(&folder.join("ca.pem"))? } } }),
    ])
}

/// A workload in the mesh: it takes nobody without a certificate of the mesh.
async fn workload(ca: &Authority) -> Result<Gateway> {
    let folder = TempDir::with_prefix("culvert-")?;
    ca.write(folder.path())?;
    ca.issue(folder.path(), "shop", &[WORKLOAD])?;
    let file = |name: &str| format!("{{filename: \"{}\"}}", folder.path().join(name).display());
    let tls = format!(
        "transport_socket: {{name: tls, typed_config: {{\"@type\": {}, require_client_certificate: true, common_tls_context: {{tls_certificates: [{{certificate_chain: {}, private_key: {}}}], validation_context: {{trusted_ca: {}, match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: \"{GATEWAY}\"}}}}]}}}}}}}}\n",
        envoy("extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
        file("shop.pem"),
        file("shop-key.pem"),
        file("ca.pem"),
    );
    let answer = "[{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: in the mesh}}}]";
    let listener = http_listener("in", answer, "", &tls);
    Gateway::start_in(folder, &listener, "", "", 1).await
}

#[tokio::test]
async fn a_gateway_serves_under_istios_bootstrap_and_istiods_configuration() -> Result {
    let ca = Authority::new("mesh")?;
    let mut plane = Plane::start(&[]).await?;
    ca.write(plane.folder())?;
    let secure = workload(&ca).await?;
    let plain = Backend::start("outside of it").await?;
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let hosts = assignment(secure.listener("in")?, plain.address);
    let put = |file: &str, resources: &[Value]| {
        let text = json!({ "selector": { "node_id": NODE }, "resources": resources }).to_string();
        std::fs::write(plane.path("control").join(file), text)
    };
    put("mesh.json", &[listener(address), routes(), cluster(), hosts])?;
    put("secrets.json", &secrets(&ca, plane.folder())?)?;
    let mut sockets = JoinSet::new();
    agent(&mut sockets, &plane.path("XDS"), plane.xds)?;
    agent(&mut sockets, &plane.path("SDS"), plane.xds)?;

    std::fs::write(plane.path("envoy-rev.json"), bootstrap().to_string())?;
    let args = ["-c", "envoy-rev.json", "--concurrency", "2", "--admin-address-path", "admin.address"];
    let mut proxy = Daemon::start("proxy", &ours("culvert-proxy")?, &args, plane.folder())?;
    plane.admin = proxy.address(&plane.path("admin.address")).await?;
    plane.proxy = Some(proxy);
    plane.ready().await?;
    for expected in ["in the mesh", "outside of it"] {
        eventually(&format!("a host answers {expected:?}"), async || {
            let request = http::Request::get("/").header("host", "shop.example").body(Default::default())?;
            let answer = culvert_tests::client::send(address, request).await?;
            ensure!(answer.text().trim() == expected, "saw {} {:?}", answer.status, answer.text());
            Ok(())
        })
        .await
        .with_context(|| plane.proxy_log())?;
    }
    let (state, error) = plane.status("Listener", "0.0.0.0_8080").await?;
    ensure!((&*state, &*error) == ("SYNCED", ""), "expected that the proxy takes it, saw {state} {error}");
    let unknown = get(address, "/").await?;
    ensure!(unknown.status == 404, "expected 404 for a host that no one serves, saw {}", unknown.status);
    plane.stop_proxy().await?;
    secure.stop().await
}
