use clap::Parser;
use culvert_runtime::log::LogControl;
use http::{Method, StatusCode};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::*;
use crate::inventory::Given;
use crate::lifecycle::State;
use crate::overview::{ListenerView, Overview};
use crate::testing::process;

fn log() -> LogControl {
    static LOG: std::sync::OnceLock<LogControl> = std::sync::OnceLock::new();
    LOG.get_or_init(|| culvert_runtime::log::init(culvert_runtime::log::Level::Error).unwrap()).clone()
}

/// An interface over nothing but a bootstrap.
fn admin(bootstrap: &str) -> Arc<Admin> {
    let options = Options::try_parse_from(["culvert-proxy", "--config-yaml", bootstrap]).unwrap();
    let started = crate::bootstrap::load(&options).unwrap();
    let (process, _drain) = process();
    let looked = Looked {
        logs: process.logs.clone(),
        process,
        overview: Arc::new(Overview::default()),
        log: log(),
        concurrency: 2,
        started: Instant::now(),
        state: Arc::new(State::default()),
    };
    let (queue, _) = mpsc::channel(1);
    Admin::new(&options, None, &started, looked, Inventory::default(), ApplyHandle::new(queue), Duration::from_secs(1))
}

async fn get(admin: &Admin, path: &str) -> (StatusCode, String) {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let page = admin.page(&Method::GET, path, query).await;
    (page.status, page.body)
}

#[tokio::test]
async fn a_get_changes_nothing_and_a_post_shows_nothing() {
    let admin = admin("{node: {id: a}}");
    for path in ["/quitquitquit", "/drain_listeners", "/healthcheck/fail", "/reopen_logs"] {
        assert_eq!(get(&admin, path).await.0, StatusCode::METHOD_NOT_ALLOWED, "GET {path}");
    }
    let posted = admin.page(&Method::POST, "/config_dump", "").await;
    assert_eq!(posted.status, StatusCode::METHOD_NOT_ALLOWED, "POST /config_dump");
    let (status, help) = get(&admin, "/nowhere").await;
    assert!(status == StatusCode::NOT_FOUND && help.contains("/stats/prometheus"), "a page that is not there: {help}");
}

#[tokio::test]
async fn readiness_is_told_with_what_is_waited_for() {
    let admin = admin("{node: {id: a}}");
    let state = Arc::clone(&admin.looked.state);
    let blocker = state.readiness.block("cluster edge");
    let (status, text) = get(&admin, "/ready").await;
    assert_eq!((status.as_u16(), text.as_str()), (503, "PRE_INITIALIZING\nwaits for cluster edge\n"), "not ready");
    drop(blocker);
    assert_eq!(get(&admin, "/ready").await, (StatusCode::OK, "LIVE\n".to_owned()), "ready");
    admin.page(&Method::POST, "/healthcheck/fail", "").await;
    assert_eq!(get(&admin, "/ready").await.0.as_u16(), 503, "failed by an operator");
    admin.page(&Method::POST, "/healthcheck/ok", "").await;
    assert_eq!(get(&admin, "/ready").await.0, StatusCode::OK, "healed by an operator");
}

#[tokio::test]
async fn log_levels_are_shown_and_set() {
    let admin = admin("{node: {id: a}}");
    let set = admin.page(&Method::POST, "/logging", "level=warning&culvert_http=off").await;
    assert!(set.body.contains("default: warning") && set.body.contains("culvert_http: off"), "got {}", set.body);
    let refused = admin.page(&Method::POST, "/logging", "level=loud").await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "an unknown level: {}", refused.body);
    assert!(get(&admin, "/logging").await.1.contains("default: warning"), "a bad request changes nothing");
}

#[tokio::test]
async fn the_dump_holds_bootstrap_and_dynamic_resources_without_secrets() {
    let admin = admin(
        "{node: {id: a}, static_resources: {clusters: [{name: c1, type: STATIC}], \
         secrets: [{name: s1, tls_certificate: {private_key: {inline_string: very-private}, \
         certificate_chain: {inline_string: chain}}}]}}",
    );
    let cluster = culvert_api::envoy::config::cluster::v3::Cluster { name: "d1".to_owned(), ..Default::default() };
    let any = culvert_api::Any::pack(&cluster);
    admin.inventory.active(culvert_api::type_url::CLUSTER, &"d1".into(), Given::now("v7", any.clone()));
    admin.inventory.refused(culvert_api::type_url::CLUSTER, &"d1".into(), Given::now("v8", any), "no such thing");

    let (status, text) = get(&admin, "/config_dump").await;
    assert_eq!(status, StatusCode::OK, "{text}");
    assert!(!text.contains("very-private"), "a private key is shown:\n{text}");
    let dump: serde_json::Value = serde_json::from_str(&text).unwrap();
    let clusters = &dump["configs"][1];
    assert_eq!(clusters["static_clusters"][0]["cluster"]["name"], "c1", "static cluster in {clusters}");
    let dynamic = &clusters["dynamic_active_clusters"][0];
    assert_eq!((&dynamic["version_info"], &dynamic["cluster"]["name"]), (&"v7".into(), &"d1".into()), "{dynamic}");
    assert_eq!(dynamic["error_state"]["details"], "no such thing", "why v8 is not in force: {dynamic}");
    let one: serde_json::Value =
        serde_json::from_str(&get(&admin, "/config_dump?resource=static_clusters&name_regex=%5Ec").await.1).unwrap();
    assert_eq!(one["configs"].as_array().map(Vec::len), Some(1), "one resource list: {one}");
}

#[tokio::test]
async fn listeners_are_listed_with_their_real_ports() {
    let admin = admin("{node: {id: a}}");
    let view = ListenerView { bound: Some("127.0.0.1:4711".parse().unwrap()), active: true, awaiting: Vec::new() };
    admin.looked.overview.listeners.lock().insert("gateway".into(), view);
    assert_eq!(get(&admin, "/listeners").await.1, "gateway::127.0.0.1:4711\n", "text");
    let json: serde_json::Value = serde_json::from_str(&get(&admin, "/listeners?format=json").await.1).unwrap();
    let port = &json["listener_statuses"][0]["local_address"]["socket_address"]["port_value"];
    assert_eq!(*port, 4711, "port in {json}");
}

#[tokio::test]
async fn server_info_and_stats_are_served() {
    let admin = admin("{node: {id: edge-7, cluster: edge}}");
    let info: serde_json::Value = serde_json::from_str(&get(&admin, "/server_info").await.1).unwrap();
    assert_eq!((&info["node"]["id"], &info["state"]), (&"edge-7".into(), &"LIVE".into()), "{info}");
    let looked = admin.looked.clone();
    admin.looked.process.registry.add_source(move |samples| looked.samples(samples));
    let (_, stats) = get(&admin, "/stats?filter=%5Eserver%5C.").await;
    assert!(stats.contains("server.live: 1\n") && !stats.contains("listener_manager"), "filtered: {stats}");
    let (_, exposed) = get(&admin, "/stats/prometheus").await;
    assert!(exposed.contains("envoy_server_concurrency{} 2\n"), "for Prometheus: {exposed}");
    assert_eq!(get(&admin, "/stats?filter=(").await.0, StatusCode::BAD_REQUEST, "a bad expression");
}

/// Reads a page strictly as a message of Envoy's, as its own tools do.
fn strictly(message: &str, page: &str) {
    let typed = page.replacen('{', &format!("{{\"@type\": \"type.googleapis.com/{message}\","), 1);
    let limits = culvert_api::document::Limits::default();
    let tree = culvert_api::document::parse(typed.as_bytes(), culvert_api::document::Syntax::Json, &limits).unwrap();
    let mut problems = culvert_api::document::load_any(&tree[0]).err().unwrap_or_default();
    // What stands in the resources themselves is whoever's who sent them.
    problems.retain(|problem| {
        !["xds_config.", "failed_configuration.", "scoped_route_configs[0]."]
            .iter()
            .any(|part| problem.path.contains(part))
    });
    assert_eq!(problems, [], "expected {message}, saw\n{typed}");
}

#[tokio::test]
async fn pages_in_json_are_envoys_messages_and_nothing_else() {
    let admin = admin(
        "{node: {id: a, cluster: b}, static_resources: {clusters: [{name: c1, type: STATIC, load_assignment: \
         {cluster_name: c1, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, \
         port_value: 1}}}}]}]}}], secrets: [{name: s1, tls_certificate: {private_key: {inline_bytes: c2VjcmV0}, \
         certificate_chain: {inline_string: chain}}}]}}",
    );
    let looked = &admin.looked;
    for cluster in &crate::bootstrap::load(&admin.options).unwrap().bootstrap.clusters {
        looked.process.clusters.apply(Arc::clone(cluster), None);
    }
    let listener = ListenerView { bound: Some("[::1]:4711".parse().unwrap()), active: true, awaiting: Vec::new() };
    let hosting = ListenerView { bound: None, active: false, awaiting: vec!["Secret s".to_owned()] };
    looked.overview.listeners.lock().extend([("gateway".into(), listener), ("hosting".into(), hosting)]);
    let (pem, key) = crate::testing::certificate("edge.test");
    let identity = culvert_runtime::tls::Identity::from_pem(pem.as_bytes(), key.as_bytes()).unwrap();
    let details = vec![identity.details().clone()];
    looked.overview.show_certificates(
        "listener gateway".to_owned(),
        crate::overview::CertificateView { presented: details.clone(), trusted: details, chain: None },
    );
    use culvert_api::type_url;
    for (type_url, name) in [
        (type_url::CLUSTER, "c"),
        (type_url::CLUSTER_LOAD_ASSIGNMENT, "e"),
        (type_url::LISTENER, "l"),
        (type_url::ROUTE_CONFIGURATION, "r"),
        (type_url::SECRET, "s"),
        (type_url::TUNNEL_AGENT, "a"),
        (type_url::SCOPED_ROUTE_CONFIGURATION, "scope"),
    ] {
        let any = culvert_api::Any { type_url: type_url.to_owned(), value: vec![10, 1, b'x'].into() };
        for (suffix, state) in [("active", 0), ("warming", 1), ("refused", 2)] {
            let (name, given) = (format!("{name}-{suffix}").as_str().into(), Given::now("v", any.clone()));
            match state {
                0 => admin.inventory.active(type_url, &name, given),
                1 => admin.inventory.warming(type_url, &name, given, vec!["Secret s".to_owned()]),
                _ => admin.inventory.refused(type_url, &name, given, "no"),
            }
        }
    }
    for (path, message) in [
        ("/listeners?format=json", "envoy.admin.v3.Listeners"),
        ("/server_info", "envoy.admin.v3.ServerInfo"),
        ("/certs", "envoy.admin.v3.Certificates"),
        ("/clusters?format=json", "envoy.admin.v3.Clusters"),
        ("/init_dump", "envoy.admin.v3.UnreadyTargetsDumps"),
        ("/config_dump?include_eds", "envoy.admin.v3.ConfigDump"),
        ("/config_dump?resource=dynamic_listeners", "envoy.admin.v3.ConfigDump"),
        ("/config_dump?resource=dynamic_active_secrets", "envoy.admin.v3.ConfigDump"),
        ("/config_dump?resource=static_clusters", "envoy.admin.v3.ConfigDump"),
        ("/config_dump?resource=dynamic_scoped_route_configs", "envoy.admin.v3.ConfigDump"),
        ("/xds", "envoy.service.status.v3.ClientConfig"),
    ] {
        let (status, page) = get(&admin, path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {page}");
        strictly(message, &page);
    }
    let waiting = get(&admin, "/init_dump").await.1;
    assert!(waiting.contains("Listener hosting") && waiting.contains("Cluster c-warming"), "{waiting}");
    assert!(get(&admin, "/certs/usage").await.1.contains("listener gateway"), "who uses a certificate");
    let xds: serde_json::Value = serde_json::from_str(&get(&admin, "/xds").await.1).unwrap();
    let agent = |suffix: &str| {
        let all = xds["generic_xds_configs"].as_array().unwrap();
        all.iter().find(|one| one["name"] == format!("a-{suffix}")).unwrap()["client_status"].clone()
    };
    assert_eq!((agent("active"), agent("refused")), ("ACKED".into(), "NACKED".into()), "{xds}");
}

#[tokio::test]
async fn scopes_are_dumped_with_their_versions_and_refusals() {
    let admin = admin("{node: {id: a}}");
    let type_url = culvert_api::type_url::SCOPED_ROUTE_CONFIGURATION;
    let given = || Given::now("v", culvert_api::Any { type_url: type_url.to_owned(), value: vec![10, 1, b'x'].into() });
    admin.inventory.active(type_url, &"scope-active".into(), given());
    admin.inventory.warming(type_url, &"scope-warming".into(), given(), vec!["RouteConfiguration r".to_owned()]);
    admin.inventory.refused(type_url, &"scope-refused".into(), given(), "no");
    let scopes = get(&admin, "/config_dump?resource=dynamic_scoped_route_configs").await.1;
    let scopes: serde_json::Value = serde_json::from_str(&scopes).unwrap();
    let [active, refused] = scopes["configs"].as_array().unwrap().as_slice() else { panic!("not two: {scopes}") };
    for (scope, name, status) in [(active, "scope-active", "ACKED"), (refused, "scope-refused", "NACKED")] {
        let seen = (
            &scope["name"],
            &scope["client_status"],
            &scope["version_info"],
            &scope["scoped_route_configs"][0]["name"],
        );
        assert_eq!(seen, (&name.into(), &status.into(), &"v".into(), &"x".into()), "{scopes}");
    }
    assert_eq!(refused["error_state"]["details"], "no", "{scopes}");
}

#[tokio::test]
async fn what_the_control_plane_cannot_give_is_shown_with_its_words() {
    const NOT_FOUND: i32 = 5;
    const PERMISSION_DENIED: i32 = 7;
    let admin = admin("{node: {id: a}}");
    let type_url = culvert_api::type_url::CLUSTER;
    let any = culvert_api::Any { type_url: type_url.to_owned(), value: vec![10, 1, b'x'].into() };
    for name in ["denied", "held"] {
        admin.inventory.failed(type_url, &name.into(), PERMISSION_DENIED, "not yours");
    }
    admin.inventory.active(type_url, &"held".into(), Given::now("v", any));
    admin.inventory.failed(type_url, &"held".into(), PERMISSION_DENIED, "not yours");
    admin.inventory.failed(type_url, &"gone".into(), NOT_FOUND, "no such thing");
    let page = get(&admin, "/xds").await.1;
    strictly("envoy.service.status.v3.ClientConfig", &page);
    let xds: serde_json::Value = serde_json::from_str(&page).unwrap();
    for (name, status, details, version) in [
        ("gone", "DOES_NOT_EXIST", "the control plane says: no such thing (code 5)", None),
        ("denied", "RECEIVED_ERROR", "the control plane says: not yours (code 7)", None),
        ("held", "RECEIVED_ERROR", "the control plane says: not yours (code 7)", Some("v")),
    ] {
        let all = xds["generic_xds_configs"].as_array().unwrap();
        let one = all.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name} in {xds}"));
        let seen = (&one["client_status"], &one["error_state"]["details"], one["version_info"].as_str());
        assert_eq!(seen, (&status.into(), &details.into(), version), "{name}");
    }
    let dump: serde_json::Value = serde_json::from_str(&get(&admin, "/config_dump").await.1).unwrap();
    let held = &dump["configs"][1]["dynamic_active_clusters"];
    let names: Vec<_> = held.as_array().unwrap().iter().map(|one| &one["version_info"]).collect();
    assert_eq!(names, ["v"], "what was accepted stays, and nothing else is in force: {held}");
}

#[tokio::test]
async fn a_client_that_says_nothing_or_reads_nothing_is_let_go() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let admin = admin("{node: {id: a}}");
    let cluster = culvert_api::envoy::config::cluster::v3::Cluster { name: "x".repeat(32 << 20), ..Default::default() };
    admin.inventory.active(
        culvert_api::type_url::CLUSTER,
        &"x".into(),
        Given::now("v", culvert_api::Any::pack(&cluster)),
    );
    let bounds = server::Bounds {
        head: Duration::from_millis(300),
        life: Duration::from_millis(600),
        last_answer: Duration::from_millis(300),
    };
    for (request, why) in [
        ("", "says nothing"),
        ("GET /ready HT", "stops in the middle of a head"),
        ("GET /config_dump HTTP/1.1\r\nhost: localhost\r\n\r\n", "does not read its answer"),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let served = server::connection(stream, Arc::clone(&admin), bounds);
        let ended = tokio::time::timeout(Duration::from_secs(20), served).await;
        assert!(ended.is_ok(), "a client that {why} is served for ever");
        let mut rest = Vec::new();
        let read = client.read_to_end(&mut rest).await;
        assert!(read.is_err() || rest.len() < 32 << 20, "a client that {why} got {} bytes", rest.len());
    }
}
