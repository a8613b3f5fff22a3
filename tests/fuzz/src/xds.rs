//! Responses of a control plane, until they are values. How they go on from there is no library's: it is judged with seeds, in
//! the tests of the proxy's stage (`config/stage/tests/hostile.rs`).

use std::collections::BTreeMap;
use std::time::Duration;

use culvert_api::Any;
use culvert_api::envoy::config::cluster::v3::Cluster;
use culvert_api::envoy::config::core::v3::Node;
use culvert_api::envoy::config::route::v3::RouteConfiguration;
use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource as Wrapper};
use culvert_api::type_url;
use culvert_xds::client::Received;
use culvert_xds::{Client, ClientConfig, Interest, Name, Rejection, Request, ResourceTimer, Update, Variant};
use prost::Message;

const TYPES: [&str; 7] = [
    type_url::CLUSTER,
    type_url::CLUSTER_LOAD_ASSIGNMENT,
    type_url::LISTENER,
    type_url::ROUTE_CONFIGURATION,
    type_url::SECRET,
    type_url::TUNNEL_AGENT,
    type_url::TUNNEL_POLICY,
];

/// What a stream of responses leaves: the first byte says which variant; then, for each response, a byte for its type (or
/// the type that stands in it), two for its length, and its bytes.
///
/// What the client holds is what a plain map holds that obeys the answers, and every answer carries its nonce.
pub(crate) fn responses(data: &[u8]) {
    let Some((&how, mut rest)) = data.split_first() else { return };
    let variant = if how & 1 == 0 { Variant::Sotw } else { Variant::Delta };
    let mut client = Client::new(ClientConfig {
        variant,
        node: Node { id: "n".into(), ..Node::default() },
        node_on_first_message_only: true,
        resource_timer: ResourceTimer::DoesNotExist,
        fail_on_data_errors: false,
    });
    for of in TYPES {
        let named = Interest::named(["a".into(), "b".into()]);
        client.watch(of, if how & 2 == 0 { Interest::everything() } else { named });
    }
    client.on_connected();
    let mut now = Duration::ZERO;
    while client.poll_request(now).is_some() {}
    let mut held: BTreeMap<(String, Name), ()> = BTreeMap::new();
    while let Some((&[kind, high, low], behind)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(behind.len());
        let (bytes, behind) = behind.split_at(length);
        rest = behind;
        take(&mut client, variant, kind, bytes, &mut held);
        now += Duration::from_secs(1);
        while client.poll_request(now).is_some() {}
        while let Some(missing) = client.poll_timeout(now) {
            held.remove(&(missing.type_url.to_string(), missing.name));
        }
        check(&client, &held);
    }
}

fn check(client: &Client, held: &BTreeMap<(String, Name), ()>) {
    let seen: BTreeMap<(String, Name), ()> =
        TYPES.iter().flat_map(|of| client.held(of).map(|(name, _)| ((of.to_string(), name.clone()), ()))).collect();
    assert_eq!(&seen, held, "what is held");
}

fn take(client: &mut Client, variant: Variant, kind: u8, bytes: &[u8], held: &mut BTreeMap<(String, Name), ()>) {
    let of = TYPES.get(usize::from(kind)).copied();
    let (update, nonce) = match variant {
        Variant::Sotw => {
            let Ok(mut response) = DiscoveryResponse::decode(bytes) else { return };
            if let Some(of) = of {
                (response.type_url, response.nonce) = (of.to_owned(), "n".to_owned());
            }
            let nonce = response.nonce.clone();
            (client.on_response(response), nonce)
        }
        Variant::Delta => {
            let Ok(mut response) = DeltaDiscoveryResponse::decode(bytes) else { return };
            if let Some(of) = of {
                (response.type_url, response.nonce) = (of.to_owned(), "n".to_owned());
            }
            let nonce = response.nonce.clone();
            (client.on_delta_response(response), nonce)
        }
    };
    let Ok(update) = update else { return };
    let of = update.type_url().to_string();
    let answer = judge(update, &of, held);
    let (answered, named) = match &answer {
        Request::Sotw(request) => (&request.response_nonce, &request.type_url),
        Request::Delta(request) => (&request.response_nonce, &request.type_url),
    };
    assert_eq!((answered, named), (&nonce, &of), "what is answered");
}

/// Refuses what does not parse, and accepts the rest.
fn judge(update: Update<'_>, of: &str, held: &mut BTreeMap<(String, Name), ()>) -> Request {
    for name in update.removed() {
        held.remove(&(of.to_owned(), name.clone()));
    }
    let mut rejections = Vec::new();
    for Received { name, body, .. } in update.resources() {
        assert_eq!(body.type_url, of, "{name}: a resource of another type");
        match culvert_model::parse_any(of, &body.value).value {
            Ok(_) => {
                held.insert((of.to_owned(), name.clone()), ());
            }
            Err(errors) => {
                assert!(!errors.is_empty(), "{name} is refused without a reason");
                rejections.push(Rejection { name: name.to_string(), reason: format!("{:?}", errors[0]) });
            }
        }
    }
    let bad = !rejections.is_empty() || !update.rejections().is_empty();
    let answer = if rejections.is_empty() { update.ack() } else { update.nack(rejections) };
    let detail = match &answer {
        Request::Sotw(request) => request.error_detail.is_some(),
        Request::Delta(request) => request.error_detail.is_some(),
    };
    assert_eq!(detail, bad, "an answer names what it refuses");
    answer
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let cluster = |name: &str| Any::pack(&Cluster { name: name.into(), ..Cluster::default() });
    let routes = Any::pack(&RouteConfiguration { name: "a".into(), ..RouteConfiguration::default() });
    let sotw = |of: &str, resources: Vec<Any>| {
        DiscoveryResponse {
            version_info: "1".into(),
            nonce: "n".into(),
            type_url: of.into(),
            resources,
            ..DiscoveryResponse::default()
        }
        .encode_to_vec()
    };
    let wrapped = |name: &str, body: Any| Wrapper {
        name: name.into(),
        version: "1".into(),
        resource: Some(body),
        ..Wrapper::default()
    };
    let delta = |of: &str, resources: Vec<Wrapper>, removed: &[&str]| {
        DeltaDiscoveryResponse {
            nonce: "n".into(),
            type_url: of.into(),
            resources,
            removed_resources: removed.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryResponse::default()
        }
        .encode_to_vec()
    };
    let stream = |how: u8, responses: &[(u8, Vec<u8>)]| {
        let mut bytes = vec![how];
        for (kind, response) in responses {
            bytes.push(*kind);
            bytes.extend(u16::try_from(response.len()).expect("a short response").to_be_bytes());
            bytes.extend(response);
        }
        bytes
    };
    let both = || vec![cluster("a"), cluster("b")];
    vec![
        stream(0, &[(0, sotw(type_url::CLUSTER, both())), (0, sotw(type_url::CLUSTER, vec![cluster("b")]))]),
        stream(
            2,
            &[(9, sotw(type_url::CLUSTER, both())), (3, sotw(type_url::ROUTE_CONFIGURATION, vec![routes.clone()]))],
        ),
        stream(0, &[(9, sotw(type_url::CLUSTER, [both(), both()].concat())), (9, sotw(type_url::CLUSTER, Vec::new()))]),
        stream(
            1,
            &[
                (0, delta(type_url::CLUSTER, vec![wrapped("a", cluster("a")), wrapped("b", cluster("a"))], &["c"])),
                (0, delta(type_url::CLUSTER, Vec::new(), &["a"])),
            ],
        ),
        stream(3, &[(3, delta(type_url::ROUTE_CONFIGURATION, vec![wrapped("a", routes)], &["b"]))]),
    ]
}
