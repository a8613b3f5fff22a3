//! The client half, one test per rule.

mod data_errors;
mod named;
mod timers;
mod versions;

use culvert_api::Any;
use culvert_api::envoy::service::discovery::v3::{Resource as Wrapper, ResourceError, ResourceName};
use culvert_api::type_url::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT as EDS, LISTENER, RESOURCE, ROUTE_CONFIGURATION as RDS};
use prost::Message;

use super::*;

const NOW: Duration = Duration::from_secs(100);

fn client(variant: Variant) -> Client {
    let mut client = Client::new(ClientConfig {
        variant,
        node: Node { id: "n".into(), ..Node::default() },
        node_on_first_message_only: true,
        resource_timer: ResourceTimer::DoesNotExist,
        fail_on_data_errors: false,
    });
    client.on_connected();
    client
}

fn names(names: &[&str]) -> Interest {
    Interest::named(names.iter().map(|name| Name::from(*name)))
}

fn any(of: &str, name: &str) -> Any {
    let mut value = Vec::new();
    crate::resource::put_field(&mut value, 1, name.as_bytes());
    Any { type_url: of.into(), value: value.into() }
}

fn sotw(of: &str, version: &str, nonce: &str, resources: Vec<Any>) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: version.into(),
        nonce: nonce.into(),
        type_url: of.into(),
        resources,
        ..DiscoveryResponse::default()
    }
}

fn delta(of: &str, nonce: &str, resources: &[(&str, &str)], removed: &[&str]) -> DeltaDiscoveryResponse {
    let resource = |(name, version): &(&str, &str)| Wrapper {
        name: (*name).into(),
        version: (*version).into(),
        resource: Some(any(of, name)),
        ..Wrapper::default()
    };
    DeltaDiscoveryResponse {
        nonce: nonce.into(),
        type_url: of.into(),
        resources: resources.iter().map(resource).collect(),
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

#[track_caller]
fn next_sotw(client: &mut Client) -> DiscoveryRequest {
    let Some(Request::Sotw(request)) = client.poll_request(NOW) else { panic!("no request of the variant") };
    request
}

#[track_caller]
fn next_delta(client: &mut Client) -> DeltaDiscoveryRequest {
    let Some(Request::Delta(request)) = client.poll_request(NOW) else { panic!("no request of the variant") };
    request
}

fn as_sotw(request: Request) -> DiscoveryRequest {
    let Request::Sotw(request) = request else { panic!("a delta request") };
    request
}

fn as_delta(request: Request) -> DeltaDiscoveryRequest {
    let Request::Delta(request) = request else { panic!("a state-of-the-world request") };
    request
}

fn listed(list: &[Name]) -> Vec<&str> {
    list.iter().map(|name| &**name).collect()
}

fn reject(name: &str) -> Vec<Rejection> {
    vec![Rejection { name: name.into(), reason: "path: reason".into() }]
}

#[test]
fn first_requests_go_out_in_order_without_nonce_and_with_the_node_once() {
    let mut client = client(Variant::Sotw);
    client.watch(RDS, names(&["r"]));
    client.watch(LISTENER, Interest::everything());
    client.watch(CLUSTER, Interest::everything());
    let requests: Vec<_> = (0..3).map(|_| next_sotw(&mut client)).collect();
    assert_eq!(requests.iter().map(|request| &*request.type_url).collect::<Vec<_>>(), [CLUSTER, LISTENER, RDS]);
    assert_eq!(requests.iter().map(|request| request.node.is_some()).collect::<Vec<_>>(), [true, false, false]);
    assert!(requests.iter().all(|request| request.response_nonce.is_empty() && request.version_info.is_empty()));
    assert_eq!(requests[2].resource_names, ["r"]);
    assert!(client.poll_request(NOW).is_none(), "nothing more to ask");
}

#[test]
fn the_node_goes_on_every_message_where_a_server_wants_it() {
    let mut client = client(Variant::Sotw);
    client.config.node_on_first_message_only = false;
    client.watch(CLUSTER, Interest::everything());
    client.watch(LISTENER, Interest::everything());
    assert!(next_sotw(&mut client).node.is_some() && next_sotw(&mut client).node.is_some());
}

#[test]
fn an_accepted_version_is_said_on_the_ack_and_on_the_next_stream_without_nonce() {
    let mut client = client(Variant::Sotw);
    client.watch(CLUSTER, Interest::everything());
    next_sotw(&mut client);
    let update = client.on_response(sotw(CLUSTER, "v1", "n1", vec![any(CLUSTER, "a")])).unwrap();
    let ack = as_sotw(update.ack());
    assert_eq!((&*ack.version_info, &*ack.response_nonce, ack.error_detail), ("v1", "n1", None));
    client.on_disconnected();
    assert!(client.poll_request(NOW).is_none(), "a request without a stream");
    client.on_connected();
    let request = next_sotw(&mut client);
    assert_eq!((&*request.version_info, &*request.response_nonce), ("v1", ""));
    assert!(request.node.is_some(), "a new stream needs the node");
}

#[test]
fn a_refusal_names_every_resource_and_keeps_the_accepted_version() {
    let mut client = client(Variant::Sotw);
    client.watch(CLUSTER, Interest::everything());
    next_sotw(&mut client);
    let _ack = client.on_response(sotw(CLUSTER, "v1", "n1", vec![any(CLUSTER, "a")])).unwrap().ack();
    let resources = vec![any(CLUSTER, "a"), any(CLUSTER, "b"), any(CLUSTER, "c")];
    let update = client.on_response(sotw(CLUSTER, "v2", "n2", resources)).unwrap();
    let nack = as_sotw(update.nack([reject("b"), reject("c")].concat()));
    let error = nack.error_detail.unwrap();
    assert_eq!((&*nack.version_info, &*nack.response_nonce, error.code), ("v1", "n2", 13));
    assert_eq!(error.message, "Cluster/b: path: reason\nCluster/c: path: reason");
    // What was good of it is held, so v1 is not what we hold.
    assert_eq!(client.held(CLUSTER).collect::<Vec<_>>(), [(&Name::from("a"), "v2")]);
    client.on_connected();
    assert_eq!(next_sotw(&mut client).version_info, "v1+partial");
}

#[test]
fn what_is_absent_from_a_full_state_is_removed_and_from_a_partial_one_is_not() {
    for (of, removed) in [(CLUSTER, &["b"][..]), (LISTENER, &["b"]), (EDS, &[]), (RDS, &[])] {
        let mut client = client(Variant::Sotw);
        client.watch(of, names(&["a", "b"]));
        next_sotw(&mut client);
        let _ack = client.on_response(sotw(of, "v1", "n1", vec![any(of, "a"), any(of, "b")])).unwrap().ack();
        let update = client.on_response(sotw(of, "v2", "n2", vec![any(of, "a")])).unwrap();
        assert_eq!(listed(update.removed()), removed, "{of}");
        let _ack = update.ack();
    }
}

#[test]
fn what_does_not_decode_is_refused_and_deletes_nothing() {
    let mut client = client(Variant::Sotw);
    client.watch(CLUSTER, Interest::everything());
    next_sotw(&mut client);
    let _ack = client.on_response(sotw(CLUSTER, "v1", "n1", vec![any(CLUSTER, "a"), any(CLUSTER, "b")])).unwrap().ack();
    let garbage = Any { type_url: CLUSTER.into(), value: b"\xff\xff"[..].into() };
    let update = client.on_response(sotw(CLUSTER, "v2", "n2", vec![any(CLUSTER, "a"), garbage])).unwrap();
    assert_eq!(update.removed(), [] as [Name; 0], "b may be the one that does not decode");
    let nack = as_sotw(update.ack());
    let message = nack.error_detail.expect("garbage is refused even by an ack").message;
    assert!(message.starts_with("Cluster: resources[1]: "), "{message}");
    assert_eq!(client.held(CLUSTER).count(), 2);
}

#[test]
fn of_a_name_that_occurs_twice_the_first_counts_foreign_types_are_refused_and_the_rest_applies() {
    let mut client = client(Variant::Delta);
    client.watch(CLUSTER, Interest::everything());
    next_delta(&mut client);
    let mut response = delta(CLUSTER, "n1", &[("a", "1"), ("b", "1"), ("a", "2"), ("c", "1"), ("d", "1")], &["c"]);
    response.resources[4].resource = Some(any(LISTENER, "d"));
    let update = client.on_delta_response(response).unwrap();
    let taken: Vec<_> =
        update.resources().iter().map(|received| format!("{}@{}", received.name, received.version)).collect();
    assert_eq!(taken, ["a@1", "b@1"]);
    let message = as_delta(update.ack()).error_detail.unwrap().message;
    for expected in
        ["Cluster/a: occurs more than once", "Cluster/c: is added and removed at once", "Cluster/d: type_url: "]
    {
        assert!(message.contains(expected), "{expected:?} is not in {message:?}");
    }
    let held = client.held(CLUSTER).map(|(name, version)| format!("{name}@{version}"));
    assert_eq!(held.collect::<Vec<_>>(), ["a@1", "b@1"]);
    // The first may be bad itself.
    let update = client.on_delta_response(delta(CLUSTER, "n2", &[("a", "3"), ("a", "4")], &[])).unwrap();
    let bad = Rejection { name: "a".into(), reason: "bad".into() };
    assert_eq!(as_delta(update.nack(vec![bad])).error_detail.unwrap().message.lines().count(), 2);
    assert_eq!(client.held(CLUSTER).map(|(_, version)| version).collect::<Vec<_>>(), ["1", "1"], "a is held as it was");
}

/// What is applied is held, so that its end is noticed.
#[test]
fn a_name_that_also_occurs_with_another_type_is_not_applied() {
    let mut client = client(Variant::Sotw);
    client.watch(CLUSTER, Interest::everything());
    next_sotw(&mut client);
    let resources = vec![any(LISTENER, "a"), any(CLUSTER, "a"), any(CLUSTER, "b")];
    let update = client.on_response(sotw(CLUSTER, "1", "1", resources)).unwrap();
    assert_eq!(update.resources().iter().map(|received| &*received.name).collect::<Vec<_>>(), ["b"]);
    let _nack = update.ack();
    assert_eq!(client.held(CLUSTER).map(|(name, _)| &**name).collect::<Vec<_>>(), ["b"]);
}

#[test]
fn a_wrapped_resource_goes_by_the_wrappers_name_and_one_without_a_body_stays() {
    let mut client = client(Variant::Sotw);
    client.watch(CLUSTER, Interest::everything());
    next_sotw(&mut client);
    let wrap = |name: &str, resource| {
        let wrapper = Wrapper { name: name.into(), resource, ..Wrapper::default() };
        Any { type_url: RESOURCE.into(), value: wrapper.encode_to_vec().into() }
    };
    let update = client.on_response(sotw(CLUSTER, "v", "1", vec![wrap("w", Some(any(CLUSTER, "inner")))])).unwrap();
    assert_eq!(&*update.resources()[0].name, "w");
    let _ack = update.ack();
    let update = client.on_response(sotw(CLUSTER, "v", "2", vec![wrap("w", None)])).unwrap();
    assert_eq!((update.resources().len(), update.removed().len()), (0, 0), "a heartbeat changes nothing");
    let _ack = update.ack();
}

#[test]
fn delta_says_what_it_holds_on_the_first_request_of_a_stream_only() {
    let mut client = client(Variant::Delta);
    client.watch(EDS, names(&["a", "b"]));
    let first = next_delta(&mut client);
    assert_eq!(first.resource_names_subscribe, ["a", "b"]);
    assert!(first.initial_resource_versions.is_empty());
    let update = client.on_delta_response(delta(EDS, "n1", &[("a", "1"), ("b", "1")], &[])).unwrap();
    let nack = as_delta(update.nack(reject("b")));
    assert_eq!((&*nack.response_nonce, nack.resource_names_subscribe.len()), ("n1", 0));
    client.on_connected();
    let first = next_delta(&mut client);
    let held: Vec<_> = first.initial_resource_versions.into_iter().collect();
    assert_eq!(held, [("a".to_owned(), "1".to_owned())], "a refused resource is not held");
}

#[test]
fn delta_subscriptions_travel_as_differences_without_a_nonce() {
    let mut client = client(Variant::Delta);
    client.watch(EDS, names(&["a", "b"]));
    next_delta(&mut client);
    client.watch(EDS, names(&["b", "c"]));
    let request = next_delta(&mut client);
    assert_eq!(request.resource_names_subscribe, ["c"]);
    assert_eq!(request.resource_names_unsubscribe, ["a"]);
    assert_eq!(request.response_nonce, "");
    assert!(client.poll_request(NOW).is_none());
}

#[test]
fn what_was_given_up_and_is_wanted_again_is_asked_for_anew() {
    let mut sotw_client = client(Variant::Sotw);
    sotw_client.watch(EDS, names(&["a", "b"]));
    next_sotw(&mut sotw_client);
    let _ack = sotw_client.on_response(sotw(EDS, "v", "1", vec![any(EDS, "a"), any(EDS, "b")])).unwrap().ack();
    sotw_client.watch(EDS, names(&["b"]));
    sotw_client.watch(EDS, names(&["a", "b"]));
    assert_eq!(next_sotw(&mut sotw_client).resource_names, ["b"]);
    assert_eq!(next_sotw(&mut sotw_client).resource_names, ["a", "b"]);
    let mut delta_client = client(Variant::Delta);
    delta_client.watch(EDS, names(&["a"]));
    next_delta(&mut delta_client);
    delta_client.watch(EDS, names(&[]));
    delta_client.watch(EDS, names(&["a"]));
    assert_eq!(next_delta(&mut delta_client).resource_names_unsubscribe, ["a"]);
    assert_eq!(next_delta(&mut delta_client).resource_names_subscribe, ["a"]);
}

#[test]
fn names_nobody_wants_are_never_asked_for_with_an_empty_first_list() {
    for variant in [Variant::Sotw, Variant::Delta] {
        let mut client = client(variant);
        client.watch(CLUSTER, names(&["a"]));
        client.watch(CLUSTER, names(&[]));
        assert_eq!(client.poll_request(NOW), None, "an empty first list would ask for everything");
    }
}

#[test]
fn everything_of_a_type_that_goes_by_name_is_asked_for_with_a_star() {
    let mut client = client(Variant::Sotw);
    client.watch(EDS, Interest::everything());
    assert_eq!(next_sotw(&mut client).resource_names, ["*"]);
}

#[test]
fn other_types_can_be_asked_for_before_a_response_is_answered() {
    let mut client = client(Variant::Sotw);
    client.watch(CLUSTER, Interest::everything());
    client.watch(LISTENER, Interest::everything());
    while client.poll_request(NOW).is_some() {}
    let mut update = client.on_response(sotw(LISTENER, "v", "1", vec![any(LISTENER, "l")])).unwrap();
    update.watch(EDS, names(&["e"]));
    assert_eq!(as_sotw(update.ack()).type_url, LISTENER);
    assert_eq!(next_sotw(&mut client).type_url, EDS);
}

#[test]
fn what_nobody_asked_for_is_ignored() {
    let mut client = client(Variant::Sotw);
    client.watch(EDS, names(&["a"]));
    next_sotw(&mut client);
    let update = client.on_response(sotw(EDS, "v", "1", vec![any(EDS, "a"), any(EDS, "other")])).unwrap();
    assert_eq!(update.resources().len(), 1);
    assert_eq!(as_sotw(update.ack()).error_detail, None);
}

#[test]
fn a_type_that_is_unknown_or_was_never_asked_for_is_ignored_and_refused_once() {
    for variant in [Variant::Sotw, Variant::Delta] {
        let mut client = client(variant);
        client.watch(EDS, names(&["a"]));
        assert!(client.poll_request(NOW).is_some(), "what is asked for");
        for (type_url, nonce, refused) in [
            ("type.googleapis.com/nobody.knows.Me", "1", true),
            (RDS, "2", true),
            (RDS, "3", false),
            ("type.googleapis.com/nobody.knows.Me", "4", false),
        ] {
            let came = match variant {
                Variant::Sotw => client.on_response(sotw(type_url, "v", nonce, vec![])).map(drop),
                Variant::Delta => client.on_delta_response(delta(type_url, nonce, &[], &[])).map(drop),
            };
            assert_eq!(came, Err(ResponseError::NeverRequested { type_url: type_url.into(), nonce: nonce.into() }));
            let (of, answered, error) = match client.refuse_unrequested(type_url, nonce) {
                Some(Request::Sotw(request)) => (request.type_url, request.response_nonce, request.error_detail),
                Some(Request::Delta(request)) => (request.type_url, request.response_nonce, request.error_detail),
                None => {
                    assert!(!refused, "{variant:?}: {type_url} {nonce} is not refused");
                    continue;
                }
            };
            assert!(refused, "{variant:?}: {type_url} {nonce} is refused again");
            assert_eq!((&*of, &*answered, error.map(|error| error.code)), (type_url, nonce, Some(3)));
        }
        assert_eq!(client.poll_request(NOW), None, "nothing more is asked for");
        let refusals = (0..100).filter_map(|index| client.refuse_unrequested(&format!("t{index}"), "5"));
        assert_eq!(refusals.count(), MAX_UNREQUESTED - 2, "of very many types only some are");
    }
    let mut client = client(Variant::Sotw);
    assert!(client.on_response(sotw(RDS, "v", "7", vec![])).is_err(), "never asked for");
    assert!(client.refuse_unrequested(RDS, "7").is_some(), "the first is refused");
    client.watch(RDS, names(&["r"]));
    assert_eq!(next_sotw(&mut client).response_nonce, "7", "a server ignores other nonces than its last one");
}

#[test]
fn a_response_that_cannot_be_answered_ends_the_stream() {
    let mut client = client(Variant::Sotw);
    let never = client.on_response(sotw(CLUSTER, "v", "1", vec![])).map(|_| ());
    assert_eq!(never, Err(ResponseError::NeverRequested { type_url: CLUSTER.into(), nonce: "1".into() }));
    client.watch(CLUSTER, Interest::everything());
    next_sotw(&mut client);
    let no_nonce = client.on_response(sotw(CLUSTER, "v", "", vec![])).map(|_| ());
    assert_eq!(no_nonce, Err(ResponseError::NoNonce { type_url: CLUSTER.into() }));
    let other = client.on_delta_response(delta(CLUSTER, "1", &[], &[])).map(|_| ());
    assert_eq!(other, Err(ResponseError::NoStream));
}

#[test]
fn a_refusal_of_very_much_is_cut_and_then_blames_the_whole_response() {
    let mut client = client(Variant::Sotw);
    client.watch(CLUSTER, Interest::everything());
    next_sotw(&mut client);
    let update = client.on_response(sotw(CLUSTER, "v", "1", vec![])).unwrap();
    let rejections = (0..100).map(|n| Rejection { name: format!("c{n}"), reason: "x".repeat(1000) }).collect();
    let message = as_sotw(update.nack(rejections)).error_detail.unwrap().message;
    assert!(message.len() < 64 * 1024, "{} bytes", message.len());
    assert!(message.ends_with(" more"), "{}", &message[message.len() - 40..]);
}

#[test]
fn what_the_control_plane_cannot_give_is_neither_absent_nor_waited_for() {
    let error = |name: &str, code: i32| ResourceError {
        resource_name: Some(ResourceName { name: name.into(), ..ResourceName::default() }),
        error_detail: Some(rpc::Status { code, message: "why".into(), ..Default::default() }),
    };
    let mut client = client(Variant::Sotw);
    client.watch(CLUSTER, Interest::everything());
    client.watch(EDS, names(&["x", "y"]));
    while client.poll_request(NOW).is_some() {}
    let _ack = client.on_response(sotw(CLUSTER, "1", "1", vec![any(CLUSTER, "a"), any(CLUSTER, "b")])).unwrap().ack();
    let mut response = sotw(CLUSTER, "2", "2", vec![any(CLUSTER, "b")]);
    response.resource_errors = vec![error("a", 14), ResourceError::default()];
    let update = client.on_response(response).unwrap();
    assert_eq!(update.removed(), [] as [Name; 0], "a is not said to be gone");
    assert_eq!(update.failures(), [Failure { name: "a".into(), code: 14, message: "why".into() }]);
    let _ack = update.ack();
    let mut response = sotw(EDS, "1", "3", vec![]);
    response.resource_errors = vec![error("x", Failure::NOT_FOUND), error("other", Failure::NOT_FOUND)];
    let update = client.on_response(response).unwrap();
    assert_eq!(update.failures().len(), 1, "only what was asked for: {:?}", update.failures());
    let _ack = update.ack();
    let late = NOW + Duration::from_secs(3600);
    let missing: Vec<Name> = std::iter::from_fn(|| client.poll_timeout(late)).map(|missing| missing.name).collect();
    assert_eq!(missing, ["y".into()], "nothing is waited for that was answered");
}

/// gRFC A88: data errors and others, with and without the switch, of what is held and what is not.
#[test]
fn what_is_held_survives_data_errors_unless_it_is_to_fail_on_them() {
    for (code, switched, lost) in
        [(5, false, false), (7, false, false), (14, false, false), (5, true, true), (7, true, true), (14, true, false)]
    {
        for variant in [Variant::Sotw, Variant::Delta] {
            let mut client = client(variant);
            client.config.fail_on_data_errors = switched;
            client.watch(EDS, names(&["x", "never"]));
            while client.poll_request(NOW).is_some() {}
            let said = |name: &str| ResourceError {
                resource_name: Some(ResourceName { name: name.into(), ..ResourceName::default() }),
                error_detail: Some(rpc::Status { code, ..Default::default() }),
            };
            let errors = vec![said("x"), said("never"), said("other")];
            let first = match variant {
                Variant::Sotw => client.on_response(sotw(EDS, "1", "1", vec![any(EDS, "x")])),
                Variant::Delta => client.on_delta_response(delta(EDS, "1", &[("x", "1")], &[])),
            };
            let _ack = first.unwrap().ack();
            let update = match variant {
                Variant::Sotw => {
                    let response = DiscoveryResponse { resource_errors: errors, ..sotw(EDS, "2", "2", vec![]) };
                    client.on_response(response)
                }
                Variant::Delta => {
                    // A server may say of a name that is denied both that it is removed, and why.
                    let removed: &[&str] = if lost && code == 7 { &["x"] } else { &[] };
                    let response = DeltaDiscoveryResponse { resource_errors: errors, ..delta(EDS, "2", &[], removed) };
                    client.on_delta_response(response)
                }
            };
            let update = update.unwrap();
            let expected: &[Name] = if lost { &["x".into()] } else { &[] };
            assert_eq!(update.removed(), expected, "{variant:?}: code {code}, switched on: {switched}");
            let _ack = update.ack();
            let holds = client.held(EDS).any(|(name, _)| &**name == "x");
            assert_eq!(holds, !lost, "{variant:?}: code {code}, switched on: {switched}");
        }
    }
}

#[test]
fn something_is_lacking_until_it_was_received_or_said_not_to_exist() {
    for variant in [Variant::Sotw, Variant::Delta] {
        let mut client = client(variant);
        client.watch(CLUSTER, Interest::everything());
        client.watch(EDS, names(&["x", "y"]));
        client.expect_cached(EDS, ["x".into()]);
        while client.poll_request(NOW).is_some() {}
        assert!(client.lacks_anything(), "{variant:?}: nothing came");
        let nothing = match variant {
            Variant::Sotw => client.on_response(sotw(CLUSTER, "1", "1", vec![])),
            Variant::Delta => client.on_delta_response(delta(CLUSTER, "1", &[], &[])),
        };
        let _ack = nothing.unwrap().ack();
        assert!(client.lacks_anything(), "{variant:?}: y is missing, a cache stands in for x");
        client.poll_timeout(NOW + Duration::from_secs(15)).expect("y counts as missing");
        assert!(!client.lacks_anything(), "{variant:?}: that nothing exists is known");
        client.watch(EDS, names(&["x", "y", "z"]));
        assert!(client.lacks_anything(), "{variant:?}: z is new");
    }
}
