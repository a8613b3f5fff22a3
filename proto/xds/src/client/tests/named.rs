//! Further names of resources: aliases, and other spellings of one name.

use culvert_api::type_url::{ROUTE_CONFIGURATION, SCOPED_ROUTE_CONFIGURATION, VIRTUAL_HOST};

use super::*;

#[test]
fn what_is_asked_for_by_an_alias_is_answered_by_its_resource() {
    let mut client = client(Variant::Delta);
    client.watch(VIRTUAL_HOST, Interest { wildcard: true, names: [Name::from("r/x"), Name::from("r/y")].into() });
    next_delta(&mut client);
    let mut response = delta(VIRTUAL_HOST, "1", &[("r/host", "v1")], &[]);
    response.resources[0].aliases = vec!["r/host".into(), "r/x".into()];
    let update = client.on_delta_response(response).unwrap();
    assert_eq!(listed(update.aliases()), ["r/x"], "its own name is none");
    let _ack = update.ack();
    assert!(client.lacks_anything(), "nothing was said of the other");
    let hollow = delta(VIRTUAL_HOST, "2", &[], &["r/y"]);
    let _ack = client.on_delta_response(hollow).unwrap().ack();
    assert!(!client.lacks_anything(), "one is there, of the other it was said that it is not");
    client.on_disconnected();
    client.on_connected();
    let again = next_delta(&mut client);
    assert_eq!(again.initial_resource_versions.into_keys().collect::<Vec<_>>(), ["r/host"]);
    assert_eq!(again.resource_names_subscribe, ["*", "r/x", "r/y"]);
    let late = client.next_timeout().expect("of the one that is not there");
    assert_eq!(client.poll_timeout(late).map(|missing| missing.name), Some("r/y".into()));
    assert_eq!(client.poll_timeout(late), None, "what is held under an alias is not waited for");
}

#[test]
fn names_that_differ_in_the_order_of_their_parameters_are_one() {
    let (asked, sent) = ("xdstp://a/t/x?a=1&b=2", "xdstp://a/t/x?b=2&a=1");
    let mut client = client(Variant::Delta);
    client.watch(ROUTE_CONFIGURATION, Interest::named([asked.into()]));
    next_delta(&mut client);
    let update = client.on_delta_response(delta(ROUTE_CONFIGURATION, "1", &[(sent, "v1")], &[])).unwrap();
    assert_eq!(&*update.resources()[0].name, asked);
    let _ack = update.ack();
    let update = client.on_delta_response(delta(ROUTE_CONFIGURATION, "2", &[], &[sent])).unwrap();
    assert_eq!(listed(update.removed()), [asked]);
    let _ack = update.ack();
    let twice = delta(ROUTE_CONFIGURATION, "3", &[(sent, "v1"), (asked, "v1")], &[]);
    let answer = as_delta(client.on_delta_response(twice).unwrap().ack()).error_detail.expect("it stands there twice");
    assert!(answer.message.contains("occurs more than once"), "{}", answer.message);
}

#[test]
fn a_scope_that_is_absent_from_a_full_state_is_gone() {
    let mut client = client(Variant::Sotw);
    client.watch(SCOPED_ROUTE_CONFIGURATION, Interest::everything());
    assert_eq!(next_sotw(&mut client).resource_names, [] as [&str; 0], "everything, as Envoy asks for it");
    let scopes = vec![any(SCOPED_ROUTE_CONFIGURATION, "a"), any(SCOPED_ROUTE_CONFIGURATION, "b")];
    let _ack = client.on_response(sotw(SCOPED_ROUTE_CONFIGURATION, "1", "1", scopes)).unwrap().ack();
    let left = vec![any(SCOPED_ROUTE_CONFIGURATION, "b")];
    let update = client.on_response(sotw(SCOPED_ROUTE_CONFIGURATION, "2", "2", left)).unwrap();
    assert_eq!(listed(update.removed()), ["a"]);
    let _ack = update.ack();
}
