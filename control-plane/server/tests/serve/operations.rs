//! What operators do: poll, look at a change on its way, go back.

use std::time::Duration;

use culvert_api::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use culvert_api::envoy::service::route::v3::virtual_host_discovery_service_client::VirtualHostDiscoveryServiceClient;
use culvert_api::google::rpc::Status as Refusal;
use culvert_api::type_url::CLUSTER;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{Daemon, Folder, Stream, asks, cluster, cluster_names, node, seconds};

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

#[tokio::test]
async fn a_client_that_polls_gets_everything_once() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let (status, body) = daemon.post("/v3/discovery:clusters", "", "{\"node\": {\"id\": \"n\"}}").await;
    let answer = parse(&body);
    assert_eq!((status, &answer["resources"][0]["name"]), (200, &json!("a")), "{body}");
    let version = answer["version_info"].as_str().unwrap();
    let again = format!("{{\"node\": {{\"id\": \"n\"}}, \"version_info\": \"{version}\"}}");
    let of_a = |text: &str| {
        let node = &parse(text)[0];
        assert_eq!((&node["id"], &node["peer"]), (&json!("n"), &json!("polls")), "{text}");
        let clusters = &node["types"][0]["resources"];
        assert_eq!(clusters[0]["name"], "a", "{text}");
        (clusters[0]["state"].as_str().unwrap().to_owned(), clusters.as_array().unwrap().len())
    };
    assert_eq!(of_a(&daemon.get("/nodes").await), ("STALE".to_owned(), 1), "it has not said that it took it");
    assert_eq!(daemon.post("/v3/discovery:clusters", "", &again).await, (304, String::new()));
    assert_eq!(of_a(&daemon.get("/nodes").await), ("SYNCED".to_owned(), 1));
    let refusal = json!({ "node": { "id": "n" }, "error_detail": { "code": 13, "message": "not this one" } });
    daemon.post("/v3/discovery:clusters", "", &refusal.to_string()).await;
    let shown = daemon.get("/nodes").await;
    assert_eq!(of_a(&shown), ("ERROR".to_owned(), 1));
    assert!(shown.contains("not this one"), "{shown}");
    folder.write("b.yaml", &cluster("b", 1));
    daemon.eventually("/config", |text| text.contains("\"generation\": 2")).await;
    let (status, body) = daemon.post("/v3/discovery:clusters", "", &again).await;
    assert_eq!((status, parse(&body)["resources"].as_array().map(Vec::len)), (200, Some(2)), "{body}");
    assert_eq!(of_a(&daemon.get("/nodes").await), ("STALE".to_owned(), 2), "it has the content of before");
    for (path, body, expected) in [
        ("/v3/discovery:clusters", "{\"node\": 7}", 400),
        // A newer client may say more than is known here.
        ("/v3/discovery:clusters", "{\"node\": {\"id\": \"n\", \"newer\": []}, \"newest\": 1}", 200),
        ("/v3/discovery:clusters", "{}", 400),
        ("/v3/discovery:nothing", "{}", 404),
    ] {
        let (status, text) = daemon.post(path, "", body).await;
        assert_eq!(status, expected, "{path} {body}: {text}");
    }
    daemon.terminate().await;
}

/// The version is that of what was asked for: Envoy names it with whatever it asks for next.
#[tokio::test]
async fn who_polls_for_other_names_is_answered_and_what_it_did_not_ask_for_changes_nothing() {
    let assignment = |name: &str, port: u16| {
        format!(
            "{{\"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: {name}, endpoints: [
              {{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}\n"
        )
    };
    let folder = Folder::new(&[("a.yaml", &assignment("a", 1)), ("b.yaml", &assignment("b", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let poll = async |names: &[&str], version: &str| {
        let request = json!({ "node": { "id": "n" }, "resource_names": names, "version_info": version });
        let (status, body) = daemon.post("/v3/discovery:endpoints", "", &request.to_string()).await;
        let answer = if status == 200 { parse(&body) } else { Value::Null };
        let seen = answer["resources"].as_array().map(Vec::len);
        (status, seen, answer["version_info"].as_str().unwrap_or_default().to_owned())
    };
    let (status, seen, version) = poll(&["a"], "").await;
    assert_eq!((status, seen), (200, Some(1)));
    assert_eq!(poll(&["a"], &version).await.0, 304, "nothing has changed");
    let (status, seen, _) = poll(&["a", "b"], &version).await;
    assert_eq!((status, seen), (200, Some(2)), "another name at the version of before");
    folder.write("b.yaml", &assignment("b", 2));
    daemon.eventually("/config", |text| text.contains("\"generation\": 2")).await;
    assert_eq!(poll(&["a"], &version).await.0, 304, "what it did not ask for has changed");
    folder.write("a.yaml", &assignment("a", 2));
    daemon.eventually("/config", |text| text.contains("\"generation\": 3")).await;
    assert_eq!(poll(&["a"], &version).await.0, 200, "what it asked for has changed");
    daemon.terminate().await;
}

#[tokio::test]
async fn who_polls_gets_routes_when_it_has_accepted_the_clusters_that_they_lead_to() {
    let route = |cluster: &str| {
        format!(
            "{{\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: r, virtual_hosts: [
              {{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}]}}\n"
        )
    };
    let files = |cluster_name: &str| cluster(cluster_name, 1) + "---\n" + &route(cluster_name);
    let folder = Folder::new(&[("a.yaml", &files("a"))]);
    let daemon = Daemon::start(&folder, &["--rest-refresh", "1"]).await;
    // The version of the answer, or the one that the client has already.
    let poll = async |what: &str, version: &str| {
        let names: &[&str] = if what == "routes" { &["r"] } else { &[] };
        let request = json!({ "node": { "id": "n" }, "resource_names": names, "version_info": version });
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (status, body) = daemon.post(&format!("/v3/discovery:{what}"), "", &request.to_string()).await;
        if status == 304 { version.to_owned() } else { parse(&body)["version_info"].as_str().unwrap().to_owned() }
    };
    let (clusters, routes) = (poll("clusters", "").await, poll("routes", "").await);
    folder.write("a.yaml", &files("b"));
    daemon.eventually("/config", |text| text.contains("\"generation\": 2")).await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        assert_ne!(poll("clusters", &clusters).await, clusters, "what is new comes at once");
        assert_eq!(poll("routes", &routes).await, routes, "it has not accepted where they would lead");
    }
    let (mut has, mut seen) = ([clusters, routes], Vec::new());
    let deadline = Instant::now() + Duration::from_secs(60);
    while seen.len() < 3 {
        for (of, what) in ["clusters", "routes"].into_iter().enumerate() {
            let version = poll(what, &has[of]).await;
            if version != has[of] {
                seen.push(what);
                has[of] = version;
            }
        }
        assert!(Instant::now() < deadline, "expected a change of routes between two of clusters, saw {seen:?}");
    }
    assert_eq!(seen, ["clusters", "routes", "clusters"], "what the routes led to goes last");
    daemon.terminate().await;
}

/// gRFCs A36, A47, A81, A88.
#[tokio::test]
async fn the_bootstrap_of_grpc_says_what_this_control_plane_does_and_which_authorities_it_has() {
    let folder = Folder::new(&[("a.yaml", &cluster("\"xdstp://one.test/envoy.config.cluster.v3.Cluster/a\"", 1))]);
    let node = ["--mode", "grpc-bootstrap", "--listen", "10.0.0.7:18000", "--export-node", "{id: n}"];
    let feature = ["--grpc-server-feature", "trusted_xds_server"];
    let (code, text) = folder.run(&[&node[..], &feature].concat()).await;
    assert_eq!(code, Some(0), "{text}");
    let bootstrap = parse(&text);
    let server = &bootstrap["xds_servers"][0];
    assert_eq!((&server["server_uri"], &bootstrap["node"]["id"]), (&json!("10.0.0.7:18000"), &json!("n")), "{text}");
    let features = ["xds_v3", "resource_timer_is_transient_error", "trusted_xds_server"];
    assert_eq!(server["server_features"], json!(features), "{text}");
    let template = "xdstp://one.test/envoy.config.listener.v3.Listener/%s";
    assert_eq!(
        bootstrap["authorities"],
        json!({ "one.test": { "client_listener_resource_name_template": template } }),
        "{text}"
    );
    folder.write("b.yaml", "]");
    let (code, text) = folder.run(&node).await;
    assert_eq!((code, text.contains("b.yaml:1:1")), (Some(2), true), "a bootstrap of a broken directory: {text}");
}

#[tokio::test]
async fn a_push_is_watched_until_each_node_has_answered() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let mut stream = daemon.sotw().await;
    stream.send(asks("n", CLUSTER)).await;
    let first = stream.next().await;
    let open = parse(&daemon.get("/push").await);
    assert_eq!((&open["pending"], &open["nodes"][0]["state"]), (&json!(1), &json!("pending")), "{open}");
    stream.answer(&first, None).await;
    let settled = parse(&daemon.get("/push?wait=20").await);
    assert_eq!((&settled["pending"], &settled["nodes"][0]["state"]), (&json!(0), &json!("settled")), "{settled}");
    folder.write("a.yaml", &cluster("a", 2));
    let second = stream.next().await;
    let refusal = Refusal { code: 13, message: "no such thing".into(), ..Default::default() };
    stream.answer(&second, Some(refusal)).await;
    let refused = parse(&daemon.get("/push?wait=20").await);
    let shown = &refused["nodes"][0];
    assert_eq!((&refused["generation"], &shown["state"]), (&json!(2), &json!("refused")), "{refused}");
    assert_eq!(shown["differs"][0]["error"], json!("no such thing"), "{refused}");
    daemon.terminate().await;
}

/// A node that polls is where its latest requests say; a refusal holds up its step, and a metric counts such nodes.
#[tokio::test]
async fn a_push_is_watched_until_those_that_poll_have_it_too() {
    let listener = |name: &str| {
        format!(
            "{{\"@type\": type.googleapis.com/envoy.config.listener.v3.Listener, name: {name},
              address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}}}\n"
        )
    };
    let folder = Folder::new(&[("a.yaml", &(cluster("a", 1) + "---\n" + &listener("a")))]);
    let daemon = Daemon::start(&folder, &["--rest-refresh", "1"]).await;
    let poll = async |what: &str, version: &str, refusal: Option<&str>| {
        let error = refusal.map(|message| json!({ "code": 13, "message": message }));
        let mut request = json!({ "node": { "id": "p" }, "version_info": version });
        error.into_iter().for_each(|error| request["error_detail"] = error);
        let (status, body) = daemon.post(&format!("/v3/discovery:{what}"), "", &request.to_string()).await;
        if status == 304 { version.to_owned() } else { parse(&body)["version_info"].as_str().unwrap().to_owned() }
    };
    let of_p = |text: &str| {
        let push = parse(text);
        assert_eq!(push["nodes"][0]["id"], "p", "{push}");
        (push["pending"].as_u64().unwrap(), push["nodes"][0]["state"].as_str().unwrap().to_owned())
    };
    let (clusters, listeners) = (poll("clusters", "", None).await, poll("listeners", "", None).await);
    assert_eq!(of_p(&daemon.get("/push").await), (1, "pending".to_owned()), "it has not said that it took it");
    poll("clusters", &clusters, None).await;
    poll("listeners", &listeners, None).await;
    assert_eq!(of_p(&daemon.get("/push?wait=20").await), (0, "settled".to_owned()));
    let held = "culvert_control_nodes_polling_held";
    assert!(daemon.get("/metrics").await.contains(&format!("{held} 0\n")));

    folder.write("a.yaml", &(cluster("b", 1) + "---\n" + &listener("b")));
    daemon.eventually("/config", |text| text.contains("\"generation\": 2")).await;
    assert_eq!(of_p(&daemon.get("/push").await), (1, "pending".to_owned()), "it has not asked since");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !daemon.get("/metrics").await.contains(&format!("{held} 1\n")) {
        poll("clusters", &clusters, Some("no such thing")).await;
        poll("listeners", &listeners, None).await;
        assert!(Instant::now() < deadline, "a step that is held is not counted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let refused = daemon.get("/push?wait=20").await;
    assert_eq!(of_p(&refused), (0, "refused".to_owned()), "{refused}");
    let node = &parse(&refused)["nodes"][0];
    assert_eq!((&node["progress"]["step"], &node["progress"]["reason"]), (&json!("halted"), &json!("no such thing")));
    daemon.terminate().await;
}

#[tokio::test]
async fn what_was_in_force_comes_back_until_the_directory_changes() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let (mut stream, first) = daemon.settled("n").await;
    folder.write("a.yaml", &cluster("a", 2));
    let second = stream.next().await;
    stream.answer(&second, None).await;
    let history = parse(&daemon.get("/history").await);
    assert_eq!(history[0]["changes"]["changed"]["first"][0], json!("Cluster/a (all nodes)"), "{history}");

    let origin = "origin: http://evil.example\r\n";
    assert_eq!(daemon.post("/rollback?to=1", origin, "").await.0, 403, "a web page rolls nothing back");
    assert_eq!(daemon.post("/rollback?to=77", "", "").await.0, 404);
    assert_eq!(daemon.post("/rollback", "", "").await.0, 400);
    assert_eq!(daemon.post("/rollback?to=1", "", "").await.0, 200);
    let third = stream.next().await;
    assert_eq!(seconds(&third.resources[0]), 1, "the former content is pushed");
    assert_eq!(third.version_info, first.version_info, "and it is what it was");
    stream.answer(&third, None).await;
    let config = parse(&daemon.get("/config").await);
    assert_eq!((&config["generation"], &config["rolled_back_to"]), (&json!(3), &json!(1)), "{config}");

    folder.write("a.yaml", &cluster("a", 5));
    let fourth = stream.next().await;
    assert_eq!(seconds(&fourth.resources[0]), 5, "the directory is followed again");
    assert_eq!(parse(&daemon.get("/config").await)["rolled_back_to"], Value::Null);
    daemon.terminate().await;
}

#[tokio::test]
async fn virtual_hosts_have_a_service_of_their_own() {
    let virtual_host =
        "{\"@type\": type.googleapis.com/envoy.config.route.v3.VirtualHost, name: r/known, domains: [known]}\n";
    let folder = Folder::new(&[("v.yaml", virtual_host), ("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let (mut stream, queue) = Stream::queue();
    let responses = VirtualHostDiscoveryServiceClient::new(daemon.channel().await).delta_virtual_hosts(queue).await;
    stream.responses = Some(responses.unwrap().into_inner());
    let names = ["r/known", "r/unknown"].map(str::to_owned).to_vec();
    stream.send(DeltaDiscoveryRequest { node: node("n"), resource_names_subscribe: names, ..Default::default() }).await;
    let response = stream.next().await;
    let seen: Vec<_> = response.resources.iter().map(|one| (one.name.as_str(), one.resource.is_some())).collect();
    assert_eq!(seen, [("r/known", true), ("r/unknown", false)], "what does not exist is a resource without a body");
    let mut clusters = daemon.sotw().await;
    clusters.send(asks("m", CLUSTER)).await;
    assert_eq!(cluster_names(&clusters.next().await.resources), ["a"]);
    daemon.terminate().await;
}

#[tokio::test]
async fn a_change_goes_to_one_node_first_and_comes_back_if_that_refuses_it() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let args = ["--canary-nodes", "1", "--canary-quiet", "1", "--canary-timeout", "30"];
    let daemon = Daemon::start(&folder, &args).await;
    let (mut first, mut other) = (daemon.sotw().await, daemon.sotw().await);
    for (stream, id) in [(&mut first, "n1"), (&mut other, "n2")] {
        stream.send(asks(id, CLUSTER)).await;
        let response = stream.next().await;
        stream.answer(&response, None).await;
    }
    daemon.eventually("/push", |text| parse(text)["pending"] == 0).await;

    folder.write("a.yaml", &cluster("a", 2));
    let tried = first.next().await;
    assert_eq!(seconds(&tried.resources[0]), 2);
    assert!(other.is_quiet().await, "the others wait for the first");
    assert_eq!(parse(&daemon.get("/config").await)["canary"], json!(["n1"]));
    first.answer(&tried, Some(Refusal { code: 13, message: "no such thing".into(), ..Default::default() })).await;
    daemon.eventually("/metrics", |text| text.contains("culvert_control_canaries_taken_back_total 1\n")).await;
    let history = parse(&daemon.get("/history").await);
    assert_eq!(history[0]["taken_back"], json!("node \"n1\" refused it: no such thing"), "{history}");
    let back = first.next().await;
    assert_eq!(seconds(&back.resources[0]), 1, "it gets what it had");
    first.answer(&back, None).await;
    assert!(other.is_quiet().await, "the others never saw it");
    daemon.eventually("/push", |text| parse(text)["pending"] == 0).await;

    folder.write("a.yaml", &cluster("a", 3));
    let tried = first.next().await;
    first.answer(&tried, None).await;
    let all = other.next().await;
    assert_eq!(seconds(&all.resources[0]), 3, "what the first accepted goes to all");
    assert_eq!(parse(&daemon.get("/config").await)["canary"], json!([]));
    daemon.terminate().await;
}
