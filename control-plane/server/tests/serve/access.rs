//! Tokens, identities, limits, plaintext; discovery by polling on a socket of its own.

use std::any::Any;

use culvert_api::culvert::control::v1 as api;
use culvert_api::culvert::control::v1::control_service_client::ControlServiceClient;
use culvert_api::envoy::extensions::reverse_tunnel_reporters::v3alpha::clients::grpc_client::reverse_tunnel_reporting_service_client::ReverseTunnelReportingServiceClient;
use culvert_api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use culvert_api::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use culvert_api::envoy::extensions::reverse_tunnel_reporters::v3alpha::clients::grpc_client::StreamReverseTunnelsResponse;
use culvert_api::envoy::service::load_stats::v3::LoadStatsResponse;
use culvert_api::envoy::service::load_stats::v3::load_reporting_service_client::LoadReportingServiceClient;
use culvert_api::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use culvert_api::envoy::service::status::v3::{ClientStatusRequest, ClientStatusResponse};
use culvert_api::type_url::{CLUSTER, SECRET};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{Daemon, Folder, Stream, asks, cluster, cluster_names, node};

#[derive(Clone)]
pub(crate) struct Bearer(Option<&'static str>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = self.0 {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        Ok(request)
    }
}

pub(crate) async fn with(daemon: &Daemon, token: Option<&'static str>) -> InterceptedService<Channel, Bearer> {
    InterceptedService::new(daemon.channel().await, Bearer(token))
}

/// Opens a stream as a node and asks for clusters.
pub(crate) async fn open(
    daemon: &Daemon,
    token: Option<&'static str>,
    id: &str,
) -> Result<Stream<DiscoveryRequest, DiscoveryResponse>, Status> {
    let (mut stream, queue) = Stream::queue();
    let request = asks(id, CLUSTER);
    stream.send(request).await;
    let mut client = AggregatedDiscoveryServiceClient::new(with(daemon, token).await);
    stream.responses = Some(client.stream_aggregated_resources(queue).await?.into_inner());
    Ok(stream)
}

pub(crate) fn tokens(folder: &Folder) -> String {
    let line = |name: &str, token: &str| format!("spiffe://culvert.test/{name} {}\n", sha256(token));
    let text = line("node/n", "secret-n") + &line("node/m", "secret-m") + &line("operator/o", "secret-o");
    folder.beside("tokens", &text)
}

fn sha256(text: &str) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn who_has_a_token_is_who_the_token_says() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let file = tokens(&folder);
    let rules = ["--client-identity", "spiffe://culvert.test/node/{id}"];
    let operators = ["--operator-identity", "spiffe://culvert.test/operator/*"];
    let args = [&["--tokens", file.as_str()][..], &rules, &operators].concat();
    let daemon = Daemon::start(&folder, &args).await;
    for (token, id, expected) in [
        (None, "n", Err(Code::Unauthenticated)),
        (Some("nonsense"), "n", Err(Code::Unauthenticated)),
        (Some("secret-n"), "n", Ok(())),
        (Some("secret-n"), "m", Err(Code::PermissionDenied)),
        (Some("secret-m"), "m", Ok(())),
    ] {
        let seen = match open(&daemon, token, id).await {
            Err(status) => Err(status.code()),
            Ok(mut stream) if expected.is_err() => Err(stream.failure().await.code()),
            Ok(mut stream) => {
                assert_eq!(cluster_names(&stream.next().await.resources), ["a"]);
                Ok(())
            }
        };
        assert_eq!(seen, expected, "{token:?} as {id}");
    }
    for (token, expected) in [
        (None, Err(Code::Unauthenticated)),
        (Some("secret-n"), Err(Code::PermissionDenied)),
        (Some("secret-o"), Ok(())),
    ] {
        let mut client = ControlServiceClient::new(with(&daemon, token).await);
        let answer = client.get_history(api::GetHistoryRequest::default()).await;
        assert_eq!(answer.map(drop).map_err(|status| status.code()), expected, "{token:?} as an operator");
    }
    let mut health = HealthClient::new(daemon.channel().await);
    health.check(HealthCheckRequest::default()).await.expect("health is nobody's secret");

    // A token that is taken back opens nothing more, and what it opened ends; others go on.
    let (mut ending, mut lasting) =
        (open(&daemon, Some("secret-n"), "n").await.unwrap(), open(&daemon, Some("secret-m"), "m").await.unwrap());
    for stream in [&mut ending, &mut lasting] {
        let first = stream.next().await;
        stream.answer(&first, None).await;
    }
    let (asking, questions) = Stream::<ClientStatusRequest, ClientStatusResponse>::queue();
    let mut watching = ClientStatusDiscoveryServiceClient::new(with(&daemon, Some("secret-n")).await);
    let mut watching = watching.stream_client_status(questions).await.unwrap().into_inner();
    asking.send(ClientStatusRequest::default()).await;
    assert!(watching.message().await.unwrap().is_some(), "client status is streamed");
    folder.beside("tokens", &format!("spiffe://culvert.test/node/m {}\n", sha256("secret-m")));
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    let status = ending.failure().await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    let status = watching.message().await.expect_err("another service's stream ends too");
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(lasting.is_quiet().await, "whose token is known goes on");
    while open(&daemon, Some("secret-n"), "n").await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline, "the token is still good");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    daemon.terminate().await;
}

#[tokio::test]
async fn streams_of_one_identity_are_limited() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let file = tokens(&folder);
    let args = ["--tokens", &file, "--max-streams-per-identity", "2"];
    let daemon = Daemon::start(&folder, &args).await;
    let mut first = open(&daemon, Some("secret-n"), "n1").await.unwrap();
    first.next().await;
    let mut second = open(&daemon, Some("secret-n"), "n2").await.unwrap();
    second.next().await;
    let refused = open(&daemon, Some("secret-n"), "n3").await.err().map(|status| status.code());
    assert_eq!(refused, Some(Code::ResourceExhausted));
    open(&daemon, Some("secret-m"), "n3").await.expect("others have their own").next().await;
    drop(second);
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while open(&daemon, Some("secret-n"), "n3").await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the place of an ended stream is not free");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    daemon.terminate().await;
}

/// Whether a stream of discovery has no place beside another one of the same identity.
async fn has_no_place(daemon: &Daemon) -> bool {
    open(daemon, Some("secret-n"), "n").await.is_err_and(|status| status.code() == Code::ResourceExhausted)
}

#[tokio::test]
async fn streams_of_every_kind_count() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let file = tokens(&folder);
    let operators = ["--operator-identity", "spiffe://culvert.test/node/n"];
    let args = [&["--tokens", file.as_str(), "--max-streams-per-identity", "1"][..], &operators].concat();
    let daemon = Daemon::start(&folder, &args).await;
    for kind in ["client status", "a push", "tunnel reports", "load reports"] {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
        let channel = with(&daemon, Some("secret-n")).await;
        let (opened, kept): (Box<dyn Any>, Box<dyn Any>) = loop {
            let channel = channel.clone();
            let (opened, kept): (Result<Box<dyn Any>, Status>, Box<dyn Any>) = match kind {
                "client status" => {
                    let (requests, queue) = Stream::<ClientStatusRequest, ClientStatusResponse>::queue();
                    let mut client = ClientStatusDiscoveryServiceClient::new(channel);
                    (client.stream_client_status(queue).await.map(|open| Box::new(open) as _), Box::new(requests))
                }
                "a push" => {
                    let request = api::WatchPushRequest { follow: true, ..Default::default() };
                    let mut client = ControlServiceClient::new(channel);
                    (client.watch_push(request).await.map(|open| Box::new(open) as _), Box::new(()))
                }
                "tunnel reports" => {
                    let (requests, queue) = Stream::<_, StreamReverseTunnelsResponse>::queue();
                    let mut client = ReverseTunnelReportingServiceClient::new(channel);
                    (client.stream_reverse_tunnels(queue).await.map(|open| Box::new(open) as _), Box::new(requests))
                }
                _ => {
                    let (requests, queue) = Stream::<_, LoadStatsResponse>::queue();
                    let mut client = LoadReportingServiceClient::new(channel);
                    (client.stream_load_stats(queue).await.map(|open| Box::new(open) as _), Box::new(requests))
                }
            };
            match opened {
                Ok(opened) => break (opened, kept),
                // The place of the one before is free soon.
                Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{kind}: {status:?}"),
            }
            assert!(tokio::time::Instant::now() < deadline, "{kind}: the place of the stream before is not free");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        };
        assert!(has_no_place(&daemon).await, "{kind} does not count");
        drop((opened, kept));
    }
    daemon.terminate().await;
}

#[tokio::test]
async fn plaintext_beyond_this_machine_has_to_be_asked_for() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    for (args, expected) in [
        (&["--listen", "0.0.0.0:0"][..], "--allow-plaintext"),
        (&["--rest", "0.0.0.0:0"], "--allow-plaintext"),
        (&["--client-identity", "{id}"], "clients prove nothing"),
        (&["--operator-identity", "*"], "clients prove nothing"),
        (&["--tokens", "/no/such/file"], "cannot read /no/such/file"),
        (&["--mode", "export"], "--export-node"),
    ] {
        let (code, text) = folder.run(args).await;
        assert_eq!(code, Some(2), "{args:?}: {text}");
        assert!(text.contains(expected), "{args:?}: {text}");
    }
    let daemon = Daemon::start(&folder, &["--rest", "0.0.0.0:0", "--allow-plaintext"]).await;
    daemon.terminate().await;
}

#[tokio::test]
async fn clients_that_poll_have_a_socket_with_the_same_authentication() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let (file, rest) = (tokens(&folder), folder.beside("rest", ""));
    let rule = ["--client-identity", "spiffe://culvert.test/node/{id}"];
    let args = [&["--tokens", &file, "--rest", "127.0.0.1:0", "--rest-address-path", &rest][..], &rule].concat();
    let daemon = Daemon::start(&folder, &args).await;
    let address = std::fs::read_to_string(&rest).unwrap();
    let request = "{\"node\": {\"id\": \"n\"}}";
    for (path, headers, expected) in [
        ("/v3/discovery:clusters", "", 401),
        ("/v3/discovery:clusters", "authorization: Bearer nonsense\r\n", 401),
        ("/v3/discovery:clusters", "authorization: Bearer secret-m\r\n", 403),
        ("/v3/discovery:clusters", "authorization: Bearer secret-n\r\n", 200),
        ("/v3/discovery:nothing", "authorization: Bearer secret-n\r\n", 404),
        ("/rollback?to=1", "authorization: Bearer secret-n\r\n", 404),
        ("/config_dump", "authorization: Bearer secret-n\r\n", 404),
    ] {
        let (status, body) = Daemon::post_to(&address, path, headers, request).await;
        assert_eq!(status, expected, "{path} {headers:?}: {body}");
        assert_eq!(body.contains("\"name\":\"a\""), expected == 200, "{body}");
    }
    daemon.terminate().await;
}

#[tokio::test]
async fn a_node_gets_only_what_it_is_granted() {
    let secret = |name: &str| {
        format!(
            "- {{\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret, name: {name}, \
               generic_secret: {{secret: {{inline_string: x}}}}}}\n"
        )
    };
    let secrets =
        format!("selector: {{node_id: [n, m, o]}}\nresources:\n{}{}", secret("edge-key"), secret("cloud-key"));
    let access = "access:\n- {selector: {node_id: n}, secrets: [\"edge-*\"]}\n- {selector: {node_id: m}, types: [Cluster], \
                  secrets: [cloud-key]}\n- {selector: {node_id: m}, types: []}\n";
    let route = "{\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: r}\n";
    let folder =
        Folder::new(&[("a.yaml", &cluster("a", 1)), ("s.yaml", &secrets), ("r.yaml", route), ("x.yaml", access)]);
    let daemon = Daemon::start(&folder, &[]).await;
    let mut client = ControlServiceClient::new(daemon.channel().await);
    let mut granted = async |id: &str| {
        let node = Some(api::NodeSelector { id: id.to_owned(), ..Default::default() });
        let request = api::GetResourcesRequest { node, without_contents: true, ..Default::default() };
        let mut stream = client.get_resources(request).await.unwrap().into_inner();
        let mut names = Vec::new();
        while let Some(resource) = stream.message().await.unwrap() {
            names.push(resource.name);
        }
        names.sort();
        names
    };
    assert_eq!(granted("n").await, ["a", "edge-key", "r"], "all types, and the secrets that it may have");
    assert_eq!(granted("m").await, ["a", "cloud-key"], "these types alone");
    assert!(granted("o").await.is_empty(), "whom no rule grants anything gets nothing");

    let (mut stream, queue) = Stream::queue();
    let names = ["cloud-key", "edge-key", "no-key"].map(str::to_owned).to_vec();
    let request = DeltaDiscoveryRequest {
        node: node("n"),
        type_url: SECRET.into(),
        resource_names_subscribe: names,
        ..Default::default()
    };
    stream.send(request).await;
    let mut ads = AggregatedDiscoveryServiceClient::new(daemon.channel().await);
    stream.responses = Some(ads.delta_aggregated_resources(queue).await.unwrap().into_inner());
    let response: DeltaDiscoveryResponse = stream.next().await;
    assert_eq!(crate::harness::names(&response), ["edge-key"]);
    assert_eq!(response.removed_resources, ["cloud-key", "no-key"], "for clients that know no errors");
    let errors: Vec<_> = response
        .resource_errors
        .iter()
        .map(|one| (one.resource_name.as_ref().unwrap().name.as_str(), one.error_detail.as_ref().unwrap().code))
        .collect();
    assert_eq!(errors, [("cloud-key", 7)], "denied is not the same as absent");

    folder.write("x.yaml", "access: [{selector: {node_id: n}, types: [Secret], secret: [a]}]\n");
    daemon
        .eventually("/config", |text| text.contains("secrets are granted by name") && text.contains("unknown key"))
        .await;
    daemon.terminate().await;
}
