//! Every way to ask for resources: each service and path of the API, and types that nobody here knows.

use std::sync::Arc;

use culvert_api::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use culvert_api::pool::pool;
use culvert_api::type_url::CLUSTER;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::Request;
use tonic::client::Grpc;
use tonic_prost::ProstCodec;

use crate::harness::{Certificates, Daemon, Folder, Stream, asks, cluster, cluster_names, delta_asks, names, node};

/// A resource of each type that has a service, all of them named `r/x`.
const RESOURCES: &str = "selector: {node_id: n}
resources:
- {\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: r/x, type: STATIC}
- {\"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: r/x}
- {\"@type\": type.googleapis.com/envoy.config.listener.v3.Listener, name: r/x, address: {socket_address: {address: 127.0.0.1, port_value: 1}}}
- {\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: r/x}
- {\"@type\": type.googleapis.com/envoy.config.route.v3.VirtualHost, name: r/x, domains: [x]}
- \"@type\": type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration
  name: r/x
  key: {fragments: [{string_key: k}]}
  route_configuration_name: r/x
- {\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret, name: r/x, generic_secret: {secret: {inline_string: s}}}
- {\"@type\": type.googleapis.com/envoy.service.runtime.v3.Runtime, name: r/x, layer: {k: 1}}
- \"@type\": type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig
  name: r/x
  typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
- \"@type\": type.googleapis.com/envoy.service.discovery.v3.Resource
  name: r/x
  resource:
    \"@type\": type.googleapis.com/envoy.config.endpoint.v3.LbEndpoint
    endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}
";

const NAME: &str = "r/x";

/// A method of a discovery service, as the API describes it.
#[derive(Debug)]
struct Method {
    path: String,
    /// The type that its service is about; ADS says none.
    of: Option<String>,
    kind: Kind,
    /// Where clients poll for the same.
    rest: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stream,
    Delta,
    Fetch,
}

/// Every discovery service's methods of the API.
fn methods() -> Vec<Method> {
    let mut methods = Vec::new();
    // The rate limit service has one of its own, for itself.
    for service in pool().services().filter(|service| service.full_name().starts_with("envoy.service.")) {
        let options = service.options();
        let resource = options.extensions().find(|(field, _)| field.full_name() == "envoy.annotations.resource");
        let of = resource.and_then(|(_, value)| {
            let of = value.as_message()?.get_field_by_name("type")?;
            Some(format!("type.googleapis.com/{}", of.as_str()?))
        });
        for method in service.methods() {
            let kind = match (method.input().full_name(), method.is_server_streaming()) {
                ("envoy.service.discovery.v3.DiscoveryRequest", true) => Kind::Stream,
                ("envoy.service.discovery.v3.DiscoveryRequest", false) => Kind::Fetch,
                ("envoy.service.discovery.v3.DeltaDiscoveryRequest", _) => Kind::Delta,
                _ => continue,
            };
            let options = method.options();
            let http = options.extensions().find(|(field, _)| field.full_name() == "google.api.http");
            let rest = http.and_then(|(_, value)| {
                let post = value.as_message()?.get_field_by_name("post")?;
                Some(post.as_str()?.to_owned())
            });
            let path = format!("/{}/{}", service.full_name(), method.name());
            methods.push(Method { path, of: of.clone(), kind, rest: rest.filter(|path| !path.is_empty()) });
        }
    }
    methods
}

/// The types of the resources that come when a node asks by a method.
async fn types(daemon: &Daemon, method: &Method, asked: &str) -> Vec<String> {
    // Services of one type need not be told it.
    let type_url = if method.of.is_some() { String::new() } else { asked.to_owned() };
    let resource_names = vec![NAME.to_owned()];
    let mut grpc = Grpc::new(daemon.channel().await);
    grpc.ready().await.unwrap();
    let path = method.path.parse().unwrap();
    let sotw = DiscoveryRequest { node: node("n"), type_url: type_url.clone(), resource_names, ..Default::default() };
    let of_all = |response: DiscoveryResponse| {
        assert_eq!(response.type_url, asked, "{method:?}");
        response.resources.into_iter().map(|one| one.type_url).collect()
    };
    match method.kind {
        Kind::Fetch => {
            let codec = ProstCodec::<DiscoveryRequest, DiscoveryResponse>::default();
            let answer = grpc.unary(Request::new(sotw), path, codec).await;
            of_all(answer.unwrap_or_else(|status| panic!("{method:?}: {status}")).into_inner())
        }
        Kind::Stream => {
            let (mut stream, queue) = Stream::<DiscoveryRequest, DiscoveryResponse>::queue();
            stream.send(sotw).await;
            let responses = grpc.streaming(Request::new(queue), path, ProstCodec::default()).await;
            stream.responses = Some(responses.unwrap_or_else(|status| panic!("{method:?}: {status}")).into_inner());
            of_all(stream.next().await)
        }
        Kind::Delta => {
            let (mut stream, queue) = Stream::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>::queue();
            let resource_names_subscribe = vec![NAME.to_owned()];
            stream
                .send(DeltaDiscoveryRequest {
                    node: node("n"),
                    type_url,
                    resource_names_subscribe,
                    ..Default::default()
                })
                .await;
            let responses = grpc.streaming(Request::new(queue), path, ProstCodec::default()).await;
            stream.responses = Some(responses.unwrap_or_else(|status| panic!("{method:?}: {status}")).into_inner());
            let response = stream.next().await;
            assert_eq!((response.type_url.as_str(), names(&response)), (asked, vec![NAME]), "{method:?}");
            response.resources.into_iter().map(|one| one.resource.unwrap().type_url).collect()
        }
    }
}

#[tokio::test]
async fn every_discovery_method_and_path_of_the_api_is_answered_with_its_type() {
    let folder = Folder::new(&[("all.yaml", RESOURCES)]);
    let daemon = Daemon::start(&folder, &[]).await;
    let methods = methods();
    let shown: Vec<String> = methods.iter().map(|method| format!("{method:?}")).collect();
    let count = |kind| methods.iter().filter(|method| method.kind == kind).count();
    let polled = methods.iter().filter(|method| method.rest.is_some()).count();
    let counts = (count(Kind::Stream), count(Kind::Delta), count(Kind::Fetch), polled);
    assert_eq!(counts, (9, 11, 8, 8), "streams, deltas, fetches and paths: {}", shown.join("\n"));
    for method in &methods {
        let asked = method.of.as_deref().unwrap_or(CLUSTER);
        assert_eq!(types(&daemon, method, asked).await, [asked], "{method:?}");
        let Some(path) = &method.rest else { continue };
        let request = json!({ "node": { "id": "n" }, "resource_names": [NAME] });
        let (status, body) = daemon.post(path, "", &request.to_string()).await;
        assert_eq!(status, 200, "{path}: {body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        let types: Vec<_> = answer["resources"].as_array().unwrap().iter().map(|one| &one["@type"]).collect();
        assert_eq!((types, &answer["type_url"]), (vec![&json!(asked)], &json!(asked)), "{path}");
    }
    daemon.terminate().await;
}

/// The answer to a poll over TLS, with the client's certificate or without.
async fn poll_over_tls(
    address: &str,
    files: &Certificates,
    has_certificate: bool,
    id: &str,
) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&files.authority).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let config = if has_certificate {
        let certificate = CertificateDer::from_pem_file(&files.client_cert).unwrap();
        let key = PrivateKeyDer::from_pem_file(&files.client_key).unwrap();
        config.with_client_auth_cert(vec![certificate], key).unwrap()
    } else {
        config.with_no_client_auth()
    };
    let name = ServerName::try_from("control.culvert.test").unwrap();
    let socket = TcpStream::connect(address).await?;
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
    let body = json!({ "node": { "id": id } }).to_string();
    let head = "POST /v3/discovery:clusters HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length:";
    stream.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn who_polls_over_tls_is_who_its_certificate_says() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", 1))]);
    let (files, rest) = (folder.certificates(), folder.beside("rest", ""));
    let tls = ["--tls-cert", &files.cert, "--tls-key", &files.key, "--tls-client-ca", &files.authority];
    let more = ["--rest", "127.0.0.1:0", "--rest-address-path", &rest];
    let rule = ["--client-identity", "spiffe://culvert.test/node/{id}"];
    let daemon = Daemon::start(&folder, &[&tls[..], &more, &rule].concat()).await;
    let address = std::fs::read_to_string(&rest).unwrap();
    let own = poll_over_tls(&address, &files, true, "n").await.unwrap();
    assert!(own.starts_with("HTTP/1.1 200 ") && own.contains("\"name\":\"a\""), "{own}");
    let foreign = poll_over_tls(&address, &files, true, "m").await.unwrap();
    assert!(foreign.starts_with("HTTP/1.1 403 "), "{foreign}");
    let nobody = poll_over_tls(&address, &files, false, "n").await;
    assert!(nobody.is_err(), "expected no answer without a certificate, saw {nobody:?}");
    daemon.terminate().await;
}

/// A type that nobody here knows, given by its bytes.
#[tokio::test]
async fn a_type_that_nobody_knows_is_served_by_its_bytes_in_both_variants() {
    const TYPE: &str = "type.example.com/my.Type";
    let opaque = |name: &str, base64: &str| {
        format!(
            "{{\"@type\": type.googleapis.com/envoy.service.discovery.v3.Resource, name: {name}, \
             resource: {{\"@type\": {TYPE}, value: {base64}}}}}\n"
        )
    };
    let folder = Folder::new(&[("a.yaml", &opaque("a", "aGVsbG8=")), ("b.yaml", &opaque("b", "AAH/"))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let everything = vec!["*".to_owned()];
    let (mut sotw, mut delta) = (daemon.sotw().await, daemon.delta().await);
    let request = DiscoveryRequest { resource_names: everything.clone(), ..asks("s", TYPE) };
    sotw.send(request.clone()).await;
    let accepted = |response: &DiscoveryResponse| DiscoveryRequest {
        response_nonce: response.nonce.clone(),
        version_info: response.version_info.clone(),
        ..request.clone()
    };
    let whole = sotw.next().await;
    let seen: Vec<_> = whole.resources.iter().map(|one| (one.type_url.as_str(), &one.value[..])).collect();
    assert_eq!(seen, [(TYPE, &b"hello"[..]), (TYPE, b"\0\x01\xff")]);
    sotw.send(accepted(&whole)).await;
    delta.send(DeltaDiscoveryRequest { resource_names_subscribe: everything, ..delta_asks("d", TYPE) }).await;
    let first = delta.next().await;
    assert_eq!((first.type_url.as_str(), names(&first)), (TYPE, vec!["a", "b"]));
    let values = first.resources.iter().map(|one| one.resource.as_ref().unwrap());
    let values: Vec<_> = values.map(|one| (one.type_url.as_str(), &one.value[..])).collect();
    assert_eq!(values, seen, "the same in both variants");
    delta.answer(&first, None).await;

    folder.write("a.yaml", &opaque("a", "YnllLg=="));
    folder.remove("b.yaml");
    let mut last = whole;
    while last.resources.len() != 1 || &last.resources[0].value[..] != b"bye." {
        last = sotw.next().await;
        sotw.send(accepted(&last)).await;
    }
    let (mut changed, mut removed) = (Vec::new(), Vec::new());
    while changed.is_empty() || removed.is_empty() {
        let response = delta.next().await;
        delta.answer(&response, None).await;
        changed.extend(response.resources.into_iter().map(|one| one.resource.unwrap().value.to_vec()));
        removed.extend(response.removed_resources);
    }
    assert_eq!((changed, removed), (vec![b"bye.".to_vec()], vec!["b".to_owned()]), "changes of it are followed");
    daemon.eventually("/push", |text| text.contains("\"pending\": 0")).await;
    daemon.terminate().await;
}

/// `--no-legacy-wildcard`: as gRPC's clients do, some nodes mean nothing by an empty list.
#[tokio::test]
async fn an_empty_list_of_nodes_that_go_by_names_asks_for_nothing() {
    let folder = Folder::new(&[("clusters.yaml", &cluster("a", 1))]);
    let daemon = Daemon::start(&folder, &["--no-legacy-wildcard", "{node_id: named}"]).await;
    for (id, expected) in [("named", &[][..]), ("other", &["a"])] {
        let page = "/v3/discovery:clusters";
        let body = format!("{{\"node\": {{\"id\": {id:?}}}}}");
        let (status, polled) = daemon.post(page, "", &body).await;
        let has_it = polled.contains("\"name\":\"a\"");
        assert_eq!((status, has_it), (200, !expected.is_empty()), "{id} polls without names: {polled}");
        let mut delta = daemon.delta().await;
        delta.send(delta_asks(id, CLUSTER)).await;
        assert_eq!(names(&delta.next().await), expected, "{id} asks for nothing by name, in delta");
        let mut sotw = daemon.sotw().await;
        sotw.send(asks(id, CLUSTER)).await;
        if expected.is_empty() {
            assert!(sotw.is_quiet().await, "{id} asks for nothing by name");
            sotw.send(DiscoveryRequest { resource_names: vec!["*".to_owned()], ..asks(id, CLUSTER) }).await;
        }
        assert_eq!(cluster_names(&sotw.next().await.resources), ["a"], "{id} asks for everything");
    }
}
