//! The operators' service.

use std::time::Duration;

use culvert_api::culvert::control::v1 as api;
use culvert_api::culvert::control::v1::control_service_client::ControlServiceClient;
use culvert_api::culvert::control::v1::node_push::State;
use culvert_api::culvert::control::v1::resource_diff::Change;
use culvert_api::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use culvert_api::google::rpc::Status as Refusal;
use culvert_api::type_url::CLUSTER;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::harness::{Daemon, Folder, Stream, cluster, node, seconds};

type Client = ControlServiceClient<Channel>;

async fn all<T>(answer: Result<tonic::Response<Streaming<T>>, tonic::Status>) -> Vec<T> {
    let mut stream = answer.unwrap().into_inner();
    let mut items = Vec::new();
    while let Some(item) = stream.message().await.unwrap() {
        items.push(item);
    }
    items
}

/// A daemon with one cluster, and a node that has it.
async fn settled(folder: &Folder, args: &[&str]) -> (Daemon, Client, Stream<DiscoveryRequest, DiscoveryResponse>) {
    let daemon = Daemon::start(folder, args).await;
    let (stream, _) = daemon.settled("n").await;
    daemon.eventually("/push", |text| text.contains("\"pending\": 0")).await;
    let client = ControlServiceClient::new(daemon.channel().await);
    (daemon, client, stream)
}

fn refusal(message: &str) -> Option<Refusal> {
    Some(Refusal { code: 13, message: message.to_owned(), ..Default::default() })
}

fn selected(id: &str) -> Option<api::NodeSelector> {
    Some(api::NodeSelector { id: id.to_owned(), ..Default::default() })
}

#[tokio::test]
async fn resources_are_shown_with_their_nodes_and_without_secrets() {
    let secret = "selector: {node_id: n}\nresources: {\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret, \
                  name: s, generic_secret: {secret: {inline_string: hunter2}}}\n";
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1)), ("s.yaml", secret)]);
    let (daemon, mut client, _stream) = settled(&folder, &[]).await;
    let shown = all(client.get_resources(api::GetResourcesRequest::default()).await).await;
    let titles: Vec<_> = shown.iter().map(|one| (one.name.as_str(), one.nodes.as_str())).collect();
    assert_eq!(titles, [("a", "all nodes"), ("s", "node_id n")]);
    assert!(shown.iter().all(|one| one.content.is_some() && !one.origin.is_empty()), "{shown:?}");
    assert!(!format!("{shown:?}").contains("hunter2"), "a secret is shown: {shown:?}");

    for (types, names, id, expected) in [
        (vec![], vec![], "n", vec!["s", "a"]),
        (vec![], vec![], "stranger", vec!["a"]),
        (vec!["Cluster"], vec![], "n", vec!["a"]),
        (vec!["envoy.config.cluster.v3.Cluster"], vec!["a*"], "n", vec!["a"]),
        (vec![CLUSTER], vec!["b*"], "n", vec![]),
    ] {
        let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        let filter = Some(api::ResourceFilter { types: owned(&types), names: owned(&names) });
        let request = api::GetResourcesRequest { node: selected(id), filter, without_contents: true };
        let mut shown: Vec<_> =
            all(client.get_resources(request).await).await.into_iter().map(|one| one.name).collect();
        shown.sort();
        let mut expected = expected;
        expected.sort_unstable();
        assert_eq!(shown, expected, "{types:?} {names:?} of {id}");
    }
    daemon.terminate().await;
}

/// What it is by its own words decides what it should have, also of a node that has no stream.
#[tokio::test]
async fn a_node_that_polls_is_known_by_its_id_alone() {
    let of_eu = format!("selector: {{cluster: eu}}\nresources: {}", cluster("of-eu", 1));
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1)), ("eu.yaml", &of_eu)]);
    let daemon = Daemon::start(&folder, &[]).await;
    let request = "{\"node\": {\"id\": \"p\", \"cluster\": \"eu\"}}";
    let (status, body) = daemon.post("/v3/discovery:clusters", "", request).await;
    assert_eq!(status, 200, "{body}");
    let mut client = ControlServiceClient::new(daemon.channel().await);
    for (id, expected) in [("p", vec!["a", "of-eu"]), ("stranger", vec!["a"])] {
        let request = api::GetResourcesRequest { node: selected(id), without_contents: true, ..Default::default() };
        let mut shown: Vec<_> =
            all(client.get_resources(request).await).await.into_iter().map(|one| one.name).collect();
        shown.sort();
        assert_eq!(shown, expected, "of {id}");
        let request = api::ExportSnapshotRequest { node: selected(id), folder: "/x".to_owned(), with_secrets: false };
        let export = client.export_snapshot(request).await.unwrap().into_inner();
        let exported = export.files.iter().any(|file| String::from_utf8_lossy(&file.content).contains("of-eu"));
        assert_eq!(exported, expected.len() == 2, "of {id}: {:?}", export.files);
    }
    daemon.terminate().await;
}

#[tokio::test]
async fn files_are_validated_and_compared_without_being_served() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let (daemon, mut client, mut stream) = settled(&folder, &[]).await;
    let file = |path: &str, text: &str| api::File { path: path.to_owned(), content: text.as_bytes().to_vec().into() };

    let own = client.validate(api::ValidateRequest::default()).await.unwrap().into_inner();
    assert_eq!((own.accepted, own.files, own.resources), (true, 1, 1), "{own:?}");
    let bad = vec![file("b.yaml", "{\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster, nme: b}\n")];
    let refused =
        client.validate(api::ValidateRequest { files: bad.clone(), strict: false }).await.unwrap().into_inner();
    assert!(!refused.accepted && refused.errors[0].file == "b.yaml" && refused.errors[0].line == 1, "{refused:?}");
    let twice = vec![file("b.yaml", ""), file("b.yaml", ""), file("b.txt", "")];
    let refused = client.validate(api::ValidateRequest { files: twice, strict: false }).await.unwrap().into_inner();
    assert_eq!((refused.accepted, refused.errors.len()), (false, 2), "{refused:?}");
    let status = client.diff(api::DiffRequest { files: bad, ..Default::default() }).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");

    let none = all(client.diff(api::DiffRequest::default()).await).await;
    assert_eq!((none.len(), none[0].node_id.as_str(), none[0].resources.len()), (1, "n", 0), "{none:?}");
    let files = vec![file("x.yaml", &(cluster("a", 2) + "---\n" + &cluster("b", 1)))];
    let diff = all(client.diff(api::DiffRequest { files: files.clone(), ..Default::default() }).await).await;
    let changes: Vec<_> = diff[0].resources.iter().map(|one| (one.name.as_str(), one.change())).collect();
    assert_eq!(changes, [("a", Change::Changed), ("b", Change::Added)], "{diff:?}");
    assert!(diff[0].resources[0].has.is_some() && diff[0].resources[0].wanted.is_some());
    let gone = vec![file("x.yaml", &cluster("b", 1))];
    let named = api::DiffRequest { files: gone, nodes: vec![selected("n").unwrap()], ..Default::default() };
    let diff = all(client.diff(named).await).await;
    let changes: Vec<_> = diff[0].resources.iter().map(|one| (one.name.as_str(), one.change())).collect();
    assert_eq!(changes, [("a", Change::Removed), ("b", Change::Added)], "{diff:?}");
    assert!(stream.is_quiet().await, "nothing of it is served");

    folder.write("a.yaml", &cluster("a", 2));
    let second = stream.next().await;
    stream.answer(&second, refusal("a: no such thing")).await;
    daemon.eventually("/push", |text| text.contains("refused")).await;
    let diff = all(client.diff(api::DiffRequest { without_contents: true, ..Default::default() }).await).await;
    let entry = &diff[0].resources[0];
    assert_eq!((entry.change(), entry.refusal.as_str()), (Change::Changed, "a: no such thing"), "{diff:?}");
    assert!(
        entry.has.is_none() && !entry.has_version.is_empty() && entry.has_version != entry.wanted_version,
        "{entry:?}"
    );
    daemon.terminate().await;
}

/// It has what it said last that it has, however much newer what it would be served now is.
#[tokio::test]
async fn a_node_that_polls_is_compared_by_what_it_said_last() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let (daemon, mut client, _stream) = settled(&folder, &[]).await;
    let poll = async |version: &str| {
        let request = format!("{{\"node\": {{\"id\": \"p\"}}, \"version_info\": \"{version}\"}}");
        let (_, body) = daemon.post("/v3/discovery:clusters", "", &request).await;
        let answer: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
        answer["version_info"].as_str().unwrap_or(version).to_owned()
    };
    let mut changes = async |nodes: &[&str]| {
        let nodes = nodes.iter().map(|id| selected(id).unwrap()).collect();
        let diff = all(client.diff(api::DiffRequest { nodes, ..Default::default() }).await).await;
        let of_p: Vec<_> = diff.iter().filter(|node| node.node_id == "p").collect();
        assert_eq!(of_p.len(), 1, "{diff:?}");
        assert!(of_p[0].connected, "{diff:?}");
        of_p[0].resources.iter().map(|one| (one.name.clone(), one.change())).collect::<Vec<_>>()
    };
    let first = poll("").await;
    assert_eq!(changes(&[]).await, [("a".to_owned(), Change::Added)], "it has not said that it took it");
    assert_eq!(poll(&first).await, first);
    assert_eq!(changes(&["p"]).await, [], "it has all of it");
    folder.write("a.yaml", &(cluster("a", 2) + "---\n" + &cluster("b", 1)));
    daemon.eventually("/config", |text| text.contains("\"generation\": 2")).await;
    let behind = [("a".to_owned(), Change::Changed), ("b".to_owned(), Change::Added)];
    assert_eq!(changes(&[]).await, behind, "it did not poll since");
    let second = poll(&first).await;
    assert_ne!(second, first);
    assert_eq!(changes(&["p"]).await, behind, "it was given it, and said nothing yet");
    poll(&second).await;
    assert_eq!(changes(&[]).await, [], "it says that it has it");
    daemon.terminate().await;
}

#[tokio::test]
async fn a_push_is_told_until_every_node_has_answered() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let (daemon, mut client, mut stream) = settled(&folder, &[]).await;
    let over = all(client.watch_push(api::WatchPushRequest::default()).await).await;
    assert_eq!((over.len(), over[0].settled, over[0].nodes.len()), (1, 1, 1), "all have answered: {over:?}");

    let wanted = api::WatchPushRequest { generation: 2, ..Default::default() };
    let mut watched = client.watch_push(wanted).await.unwrap().into_inner();
    folder.write("a.yaml", &cluster("a", 2));
    let first = watched.message().await.unwrap().unwrap();
    assert_eq!((first.generation, first.pending, first.nodes[0].state()), (2, 1, State::Pending), "{first:?}");
    let second = stream.next().await;
    stream.answer(&second, refusal("a: no such thing")).await;
    let mut last = first;
    while let Some(status) = watched.message().await.unwrap() {
        last = status;
    }
    assert_eq!((last.pending, last.refused, last.nodes[0].state()), (0, 1, State::Refused), "{last:?}");
    assert_eq!(last.nodes[0].refusal, "a: no such thing");
    assert_eq!(last.nodes[0].differs[0].name, "a");

    let short = Some(prost_types::Duration::try_from(Duration::from_millis(50)).unwrap());
    let follow = api::WatchPushRequest { follow: true, timeout: short, ..Default::default() };
    let mut watched = client.watch_push(follow).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().refused, 1);
    assert_eq!(watched.message().await.unwrap_err().code(), Code::DeadlineExceeded, "who follows is told no end");

    let mut watched =
        client.watch_push(api::WatchPushRequest { follow: true, ..Default::default() }).await.unwrap().into_inner();
    watched.message().await.unwrap().unwrap();
    drop(stream);
    let gone = watched.message().await.unwrap().unwrap();
    assert_eq!(gone.gone, ["n"], "{gone:?}");
    daemon.terminate().await;
}

#[tokio::test]
async fn a_push_is_told_of_those_that_poll() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let poll = async |version: &str| {
        let request = format!("{{\"node\": {{\"id\": \"p\"}}, \"version_info\": \"{version}\"}}");
        let (_, body) = daemon.post("/v3/discovery:clusters", "", &request).await;
        let answer = serde_json::from_str::<serde_json::Value>(&body).unwrap_or_default();
        answer["version_info"].as_str().unwrap_or(version).to_owned()
    };
    let first = poll("").await;
    poll(&first).await;
    let mut client = ControlServiceClient::new(daemon.channel().await);
    let over = all(client.watch_push(api::WatchPushRequest::default()).await).await;
    assert_eq!((over.len(), over[0].settled, over[0].nodes[0].node_id.as_str()), (1, 1, "p"), "{over:?}");

    let wanted = api::WatchPushRequest { generation: 2, ..Default::default() };
    let mut watched = client.watch_push(wanted).await.unwrap().into_inner();
    folder.write("a.yaml", &cluster("a", 2));
    let status = watched.message().await.unwrap().unwrap();
    assert_eq!((status.generation, status.pending, status.nodes[0].state()), (2, 1, State::Pending), "{status:?}");
    let second = poll(&first).await;
    assert_ne!(second, first, "it is given the change");
    poll(&second).await;
    let mut last = status;
    while let Some(status) = watched.message().await.unwrap() {
        last = status;
    }
    assert_eq!((last.pending, last.settled, last.nodes[0].state()), (0, 1, State::Settled), "{last:?}");
    daemon.terminate().await;
}

#[tokio::test]
async fn an_operator_looks_back_and_goes_back() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let (daemon, mut client, mut stream) = settled(&folder, &[]).await;
    folder.write("a.yaml", &cluster("a", 2));
    let second = stream.next().await;
    stream.answer(&second, None).await;
    let history = client.get_history(api::GetHistoryRequest::default()).await.unwrap().into_inner();
    assert_eq!((history.generation, history.entries.len()), (2, 2), "{history:?}");
    assert_eq!(history.entries[0].changed, ["Cluster/a (all nodes)"]);

    for (to, expected) in [(0, Code::FailedPrecondition), (77, Code::NotFound)] {
        let status = client.roll_back(api::RollBackRequest { to, ..Default::default() }).await.unwrap_err();
        assert_eq!(status.code(), expected, "to {to}: {status:?}");
    }
    let status = client.promote(api::PromoteRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    let request = api::RollBackRequest { to: 1, reason: "it was better".into() };
    assert_eq!(client.roll_back(request).await.unwrap().into_inner().generation, 3);
    assert_eq!(seconds(&stream.next().await.resources[0]), 1);
    let latest = api::GetHistoryRequest { limit: 1 };
    let history = client.get_history(latest).await.unwrap().into_inner();
    assert_eq!((history.entries.len(), history.entries[0].rolled_back_to), (1, 1), "{history:?}");
    assert!(history.entries[0].reason.ends_with("(it was better)"), "{history:?}");
    daemon.terminate().await;
}

#[tokio::test]
async fn an_operator_gives_to_all_what_only_some_have() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let args = ["--canary-nodes", "1", "--canary-quiet", "600", "--canary-timeout", "600"];
    let (daemon, mut client, mut first) = settled(&folder, &args).await;
    let (mut other, _) = daemon.settled("o").await;
    daemon.eventually("/push", |text| text.contains("\"pending\": 0")).await;
    folder.write("a.yaml", &cluster("a", 2));
    let tried = first.next().await;
    first.answer(&tried, None).await;
    let canary = client.get_history(api::GetHistoryRequest::default()).await.unwrap().into_inner().canary;
    assert_eq!(canary.map(|canary| canary.node_ids), Some(vec!["n".to_owned()]));
    assert!(other.is_quiet().await, "the others wait");
    client.promote(api::PromoteRequest {}).await.unwrap();
    assert_eq!(seconds(&other.next().await.resources[0]), 2, "and get it when the operator says so");
    daemon.terminate().await;
}

#[tokio::test]
async fn a_change_goes_first_to_the_nodes_that_are_selected() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let args = ["--canary-selector", "{node_id: [n, x]}", "--canary-quiet", "600", "--canary-timeout", "600"];
    let (daemon, mut client, mut first) = settled(&folder, &args).await;
    let mut other = daemon.sotw().await;
    other
        .send(DiscoveryRequest {
            node: node("a-node-that-comes-first-by-name"),
            type_url: CLUSTER.into(),
            ..Default::default()
        })
        .await;
    let response = other.next().await;
    other.answer(&response, None).await;
    daemon.eventually("/push", |text| text.contains("\"pending\": 0")).await;
    folder.write("a.yaml", &cluster("a", 2));
    let tried = first.next().await;
    first.answer(&tried, None).await;
    let canary = client.get_history(api::GetHistoryRequest::default()).await.unwrap().into_inner().canary;
    assert_eq!(canary.map(|canary| canary.node_ids), Some(vec!["n".to_owned()]));
    assert!(other.is_quiet().await, "the others wait");
    let request = api::RollBackRequest { to: 0, reason: "not good".into() };
    client.roll_back(request).await.unwrap();
    assert_eq!(seconds(&first.next().await.resources[0]), 1, "it gets back what it had");
    let history = client.get_history(api::GetHistoryRequest::default()).await.unwrap().into_inner();
    assert!(history.entries[0].taken_back.contains("not good"), "{history:?}");
    daemon.terminate().await;
}

#[tokio::test]
async fn nodes_are_no_operators() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let files = folder.certificates();
    let tls = ["--tls-cert", &files.cert, "--tls-key", &files.key, "--tls-client-ca", &files.authority];
    for (rule, expected) in [
        (None, Err(Code::PermissionDenied)),
        (Some("spiffe://culvert.test/operator/*"), Err(Code::PermissionDenied)),
        (Some("spiffe://culvert.test/node/*"), Ok(())),
    ] {
        let mut args = tls.to_vec();
        args.extend(rule.iter().flat_map(|rule| ["--operator-identity", *rule]));
        let daemon = Daemon::start(&folder, &args).await;
        let mut client = ControlServiceClient::new(daemon.tls_channel(&files, Some(())).await.unwrap());
        let answer = client.get_history(api::GetHistoryRequest::default()).await;
        assert_eq!(answer.map(drop).map_err(|status| status.code()), expected, "{rule:?}");
        daemon.terminate().await;
    }
}

#[tokio::test]
async fn a_node_is_exported_with_secrets_only_if_they_are_asked_for() {
    let tls = "{\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: \
               {validation_context_sds_secret_config: {name: ca, sds_config: {ads: {}, resource_api_version: V3}}}}";
    let resources = format!(
        "selector: {{node_id: n}}\nresources:\n\
         - {{\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: a/b, type: EDS, \
            eds_cluster_config: {{eds_config: {{ads: {{}}, resource_api_version: V3}}}}, \
            transport_socket: {{name: tls, typed_config: {tls}}}}}\n\
         - {{\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret, name: ca, \
            validation_context: {{trusted_ca: {{inline_string: hunter2}}}}}}\n\
         - {{\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret, name: key, \
            generic_secret: {{secret: {{inline_string: hunter3}}}}}}\n"
    );
    let folder = Folder::new(&[("n.yaml", &resources)]);
    let daemon = Daemon::start(&folder, &[]).await;
    let mut client = ControlServiceClient::new(daemon.channel().await);
    let request =
        |with_secrets| api::ExportSnapshotRequest { node: selected("n"), folder: "/etc/x".into(), with_secrets };
    let without = client.export_snapshot(request(false)).await.unwrap().into_inner();
    let paths =
        |export: &api::ExportSnapshotResponse| export.files.iter().map(|file| file.path.clone()).collect::<Vec<_>>();
    assert_eq!(paths(&without), ["endpoints/a%2Fb.json", "clusters.json", "listeners.json", "bootstrap.json"]);
    assert!(!format!("{without:?}").contains("hunter"), "{without:?}");
    assert_eq!(without.warnings.len(), 2, "secrets are left out, and something refers to them: {:?}", without.warnings);

    let with = client.export_snapshot(request(true)).await.unwrap().into_inner();
    let text = |name: &str| {
        let file = with.files.iter().find(|file| file.path == name).unwrap_or_else(|| panic!("no {name} in {with:?}"));
        String::from_utf8(file.content.to_vec()).unwrap()
    };
    assert!(with.warnings.is_empty(), "{:?}", with.warnings);
    assert!(text("secrets/ca.json").contains("hunter2") && text("secrets/key.json").contains("hunter3"));
    assert!(text("clusters.json").contains("\"/etc/x/secrets/ca.json\""), "{}", text("clusters.json"));
    assert!(text("clusters.json").contains("\"/etc/x/endpoints/a%2Fb.json\""), "{}", text("clusters.json"));
    assert!(text("bootstrap.json").contains("\"/etc/x/clusters.json\""));
    let nowhere = api::ExportSnapshotRequest { node: selected("n"), folder: "x".into(), with_secrets: false };
    assert_eq!(client.export_snapshot(nowhere).await.unwrap_err().code(), Code::InvalidArgument);
    daemon.terminate().await;
}
