//! Bad responses: each is refused by name with its reason, the good resource beside the bad one is taken, and what was held
//! of the bad one stays held. The table is beside this file: a resource, and what its refusal must say.

use std::time::Duration;

use culvert_api::document::{self, Syntax};
use culvert_api::envoy::config::cluster::v3::Cluster;
use culvert_api::envoy::config::core::v3::Node;
use culvert_api::envoy::config::endpoint::v3::ClusterLoadAssignment;
use culvert_api::envoy::config::listener::v3::Listener;
use culvert_api::envoy::config::route::v3::retry_policy::RetryBackOff;
use culvert_api::envoy::config::route::v3::{
    RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
};
use culvert_api::envoy::extensions::transport_sockets::tls::v3::Secret;
use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource};
use culvert_api::{Any, type_url};
use culvert_xds::Variant;
use culvert_xds::client::{Client, ClientConfig, Interest, Request, ResourceTimer, Update};
use prost::Message;
use serde_json::Value;

use crate::config::judge;

const NOW: Duration = Duration::from_secs(1);

/// The message, whatever rules it violates.
fn encode<M: prost::Name + Default>(resource: &Value) -> Any {
    let loaded = document::load_in_spite::<M>(resource.to_string().as_bytes(), Syntax::Json);
    Any::pack(&loaded.unwrap_or_else(|problems| panic!("{resource}: {problems:?}")).0.message)
}

fn any(kind: &str, resource: &Value) -> Any {
    match kind {
        "Cluster" => encode::<Cluster>(resource),
        "ClusterLoadAssignment" => encode::<ClusterLoadAssignment>(resource),
        "Listener" => encode::<Listener>(resource),
        "RouteConfiguration" => encode::<RouteConfiguration>(resource),
        "Secret" => encode::<Secret>(resource),
        other => panic!("no kind is called {other}"),
    }
}

/// A resource that nothing is wrong with.
fn good(of: &str) -> Any {
    let text = match of {
        type_url::CLUSTER => r#"{"name": "good", "type": "STATIC", "connect_timeout": "1s"}"#,
        type_url::CLUSTER_LOAD_ASSIGNMENT => r#"{"cluster_name": "good"}"#,
        type_url::LISTENER => {
            r#"{"name": "good", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}},
                "filter_chains": [{"filters": [{"name": "t", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": "t", "cluster": "c"}}]}]}"#
        }
        type_url::ROUTE_CONFIGURATION => r#"{"name": "good"}"#,
        _ => r#"{"name": "good", "generic_secret": {"secret": {"inline_string": "x"}}}"#,
    };
    any(type_url::short_name(of), &serde_json::from_str(text).unwrap())
}

/// Names that are held, and the words of the refusal.
fn outcome(variant: Variant, of: &str, name: &str, bad: Any) -> (Vec<String>, String) {
    let mut client = Client::new(ClientConfig {
        variant,
        node: Node::default(),
        node_on_first_message_only: true,
        resource_timer: ResourceTimer::DoesNotExist,
        fail_on_data_errors: false,
    });
    client.watch(of, Interest { wildcard: true, names: ["good".into(), name.into()].into() });
    client.on_connected();
    assert!(client.poll_request(NOW).is_some(), "the first request");
    let resources = |version: &str, bad: Any| -> Vec<Resource> {
        let named = [("good", good(of)), (name, bad)].into_iter();
        let wrap = |(name, any): (&str, Any)| Resource {
            name: name.to_owned(),
            version: version.to_owned(),
            resource: Some(any),
            ..Resource::default()
        };
        named.map(wrap).collect()
    };
    // What was good before comes first. The last value of a field counts.
    let mut before = good(of);
    let mut renamed = before.value.to_vec();
    prost::encoding::string::encode(1, &name.to_owned(), &mut renamed);
    before.value = renamed.into();
    let mut words = String::new();
    for (version, bad) in [("1", before), ("2", bad)] {
        let request = match variant {
            Variant::Delta => answer(client.on_delta_response(DeltaDiscoveryResponse {
                type_url: of.to_owned(),
                nonce: version.to_owned(),
                resources: resources(version, bad),
                ..DeltaDiscoveryResponse::default()
            })),
            Variant::Sotw => answer(
                client.on_response(DiscoveryResponse {
                    type_url: of.to_owned(),
                    nonce: version.to_owned(),
                    version_info: version.to_owned(),
                    resources: resources(version, bad)
                        .into_iter()
                        .map(|resource| Any {
                            type_url: type_url::RESOURCE.to_owned(),
                            value: resource.encode_to_vec().into(),
                        })
                        .collect(),
                    ..DiscoveryResponse::default()
                }),
            ),
        };
        let error = match request {
            Request::Sotw(request) => request.error_detail,
            Request::Delta(request) => request.error_detail,
        };
        words = error.map(|error| error.message).unwrap_or_default();
        assert!(version == "2" || words.is_empty(), "{name}: what comes first is good, got {words}");
    }
    let held = client.held(of).map(|(name, version)| format!("{name}@{version}"));
    (held.collect(), words)
}

fn answer(update: Result<Update<'_>, culvert_xds::ResponseError>) -> Request {
    let update = update.unwrap();
    let of = update.type_url().clone();
    let judged = update.resources().iter().map(|one| judge(&of, &one.name, &one.version, &one.body, None));
    let rejections: Vec<_> = judged.filter_map(|judged| judged.rejection()).collect();
    update.nack(rejections)
}

#[test]
fn every_bad_resource_is_refused_by_name_beside_a_good_one() {
    let table = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/ads/bad_responses.jsonl")).unwrap();
    let (mut responses, mut wrong) = (0, Vec::new());
    for line in table.lines().filter(|line| !line.is_empty()) {
        let row: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        let text = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
        let mut resource = row["resource"].clone();
        let key = if text("type") == "ClusterLoadAssignment" { "cluster_name" } else { "name" };
        resource[key] = "bad".into();
        let bad = any(&text("type"), &resource);
        for variant in [Variant::Sotw, Variant::Delta] {
            responses += 1;
            let (held, words) = outcome(variant, &bad.type_url.clone(), "bad", bad.clone());
            let lines: Vec<&str> = words.lines().collect();
            let named = format!("{}/bad: ", text("type"));
            let refused = lines.len() == 1 && lines[0].starts_with(&named) && lines[0].contains(&text("refused"));
            if held != ["bad@1", "good@2"] || !refused {
                wrong.push(format!(
                    "{variant:?} {}: expected {:?}, saw {words:?}, holds {held:?}",
                    text("case"),
                    text("refused")
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(responses >= 100, "{responses} bad responses are few");
}

/// JSON has none of these; bytes do.
#[test]
fn endless_and_negative_durations_are_refused_wherever_they_stand() {
    for seconds in [1_000_000_000_000_000_000, i64::MAX, i64::MIN, -1] {
        let time = Some(prost_types::Duration { seconds, nanos: 0 });
        let cluster = Cluster { name: "bad".to_owned(), connect_timeout: time, ..Cluster::default() };
        let back_off = RetryBackOff { base_interval: time, ..RetryBackOff::default() };
        let retries = RetryPolicy { retry_on: "5xx".to_owned(), retry_back_off: Some(back_off), ..Default::default() };
        for (field, bad) in [
            ("connect_timeout", Any::pack(&cluster)),
            ("timeout", routes(RouteAction { timeout: time, ..RouteAction::default() })),
            ("base_interval", routes(RouteAction { retry_policy: Some(retries.clone()), ..RouteAction::default() })),
        ] {
            for variant in [Variant::Sotw, Variant::Delta] {
                let (held, words) = outcome(variant, &bad.type_url.clone(), "bad", bad.clone());
                assert_eq!(held, ["bad@1", "good@2"], "{variant:?}: {field} of {seconds} s");
                assert!(words.contains(&format!("{field}: ")), "{variant:?}: {field} of {seconds} s: {words}");
            }
        }
    }
}

/// One route to the cluster `c`.
fn routes(action: RouteAction) -> Any {
    let cluster = Some(route_action::ClusterSpecifier::Cluster("c".to_owned()));
    let path = Some(route_match::PathSpecifier::Prefix("/".to_owned()));
    let route = Route {
        r#match: Some(RouteMatch { path_specifier: path, ..RouteMatch::default() }),
        action: Some(route::Action::Route(RouteAction { cluster_specifier: cluster, ..action })),
        ..Route::default()
    };
    let (domains, routes) = (vec!["*".to_owned()], vec![route]);
    let host = VirtualHost { name: "v".to_owned(), domains, routes, ..VirtualHost::default() };
    Any::pack(&RouteConfiguration { name: "bad".to_owned(), virtual_hosts: vec![host], ..Default::default() })
}

#[test]
fn bytes_that_are_no_resource_are_refused_and_the_good_one_is_taken() {
    let of = type_url::CLUSTER;
    let nested = (0..10_000).fold(Vec::new(), |inner: Vec<u8>, _| {
        let mut outer = Vec::new();
        // Field 33 of a Cluster is its load_assignment: a message within a message.
        prost::encoding::bytes::encode(33, &inner, &mut outer);
        if outer.len() > 64 << 10 { Vec::new() } else { outer }
    });
    let named = |rest: &[u8]| [&b"\x0a\x03bad"[..], rest].concat();
    for (case, bytes, type_url) in [
        ("a truncated varint", named(b"\xff\xff\xff"), of),
        ("a field that is longer than the message", named(b"\x12\x7f"), of),
        ("a wire type that does not exist", named(b"\x0f"), of),
        ("text that is not UTF-8", named(b"\x12\x02\xff\xfe"), of),
        ("messages within messages without end", named(&nested), of),
        ("another type than the response's", named(b""), type_url::LISTENER),
        ("a type that does not exist", named(b""), "type.googleapis.com/nobody.knows.Me"),
    ] {
        for variant in [Variant::Sotw, Variant::Delta] {
            let bad = Any { type_url: type_url.to_owned(), value: bytes.clone().into() };
            let (held, words) = outcome(variant, of, "bad", bad);
            assert_eq!(held, ["bad@1", "good@2"], "{variant:?}: {case}");
            assert!(words.starts_with("Cluster/bad: "), "{variant:?}: {case}: {words}");
        }
    }
}
