//! Streams, nodes and limits.

use culvert_api::envoy::config::core::v3::Node;
use culvert_api::type_url::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER};

use super::*;

fn kind(variant: Variant, of: Option<&str>) -> StreamKind {
    StreamKind { variant, type_url: of.map(Into::into) }
}

fn session() -> Session {
    Session::new(
        SessionConfig::default(),
        Arc::new(NodeIdentity { id: "n".into(), ..NodeIdentity::default() }),
        Arc::new(snapshot(&[(CLUSTER, "a=1"), (LISTENER, "l=1")])),
    )
}

#[test]
fn a_second_stream_of_the_same_types_needs_a_session_of_its_own() {
    let mut session = session();
    session.open(StreamId(1), kind(Variant::Sotw, None)).unwrap();
    assert_eq!(session.open(StreamId(2), kind(Variant::Delta, None)), Err(Occupied));
    session.open(StreamId(3), kind(Variant::Sotw, Some(CLUSTER))).unwrap();
    assert_eq!(session.open(StreamId(4), kind(Variant::Sotw, Some(CLUSTER))), Err(Occupied));
    session.on_close(StreamId(1));
    session.open(StreamId(5), kind(Variant::Delta, None)).unwrap();
}

#[test]
fn streams_of_one_name_each_are_streams_of_one_node() {
    let mut session = session();
    for stream in [StreamId(1), StreamId(2)] {
        session.open(stream, kind(Variant::Sotw, Some(CLUSTER_LOAD_ASSIGNMENT))).unwrap();
        let name = format!("a{}", stream.0);
        assert_eq!(session.on_request(stream, &sotw("", &[&name], "", "")), Ok(Heard::Subscription));
    }
    session.on_close(StreamId(1));
    let of_type = |session: &Session| {
        let status = session.status();
        status.iter().filter(|status| &*status.type_url == CLUSTER_LOAD_ASSIGNMENT).count()
    };
    assert_eq!(of_type(&session), 1, "one of two streams is left");
}

#[test]
fn an_aggregated_request_without_a_type_is_refused_and_on_the_stream_of_one_type_it_is_implied() {
    let mut session = session();
    session.open(StreamId(1), kind(Variant::Sotw, None)).unwrap();
    let refused = session.on_request(StreamId(1), &sotw("", &[], "", ""));
    assert_eq!(refused, Err(RequestError::MissingTypeUrl));
    assert_eq!(RequestError::MissingTypeUrl.code(), 3);
    session.open(StreamId(2), kind(Variant::Sotw, Some(LISTENER))).unwrap();
    session.on_request(StreamId(2), &sotw("", &[], "", "")).unwrap();
    let (stream, response) = session.poll_response(Duration::ZERO).unwrap();
    assert_eq!((stream, &**response.type_url()), (StreamId(2), LISTENER));
    let other = session.on_request(StreamId(2), &sotw(CLUSTER, &[], "", ""));
    assert!(matches!(other, Err(RequestError::WrongType { .. })), "{other:?}");
}

#[test]
fn an_unknown_type_keeps_the_stream() {
    let mut session = session();
    session.open(StreamId(1), kind(Variant::Delta, None)).unwrap();
    session.on_delta_request(StreamId(1), &delta("type.googleapis.com/no.such.Type", &["x"], &[])).unwrap();
    let (_, response) = session.poll_response(Duration::ZERO).unwrap();
    assert_eq!(response.removed().iter().map(|name| &**name).collect::<Vec<_>>(), ["x"]);
    session.on_delta_request(StreamId(1), &delta(CLUSTER, &[], &[])).unwrap();
    assert!(session.poll_response(Duration::ZERO).is_some(), "the stream still serves clusters");
    assert_eq!(session.unknown_types(), 1, "that there are no clusters is no mistake of who asks for them");
}

#[test]
fn types_have_nonces_and_subscriptions_of_their_own() {
    let mut session = session();
    session.open(StreamId(1), kind(Variant::Sotw, None)).unwrap();
    session.on_request(StreamId(1), &sotw(CLUSTER, &[], "", "")).unwrap();
    session.on_request(StreamId(1), &sotw(LISTENER, &[], "", "")).unwrap();
    let (_, clusters) = session.poll_response(Duration::ZERO).unwrap();
    let (_, listeners) = session.poll_response(Duration::ZERO).unwrap();
    assert_ne!(clusters.nonce(), listeners.nonce(), "a nonce is unique on its stream");
    // An answer with the nonce of another type answers nothing.
    assert_eq!(
        session.on_request(StreamId(1), &sotw(CLUSTER, &[], "", &listeners.nonce().to_string())),
        Ok(Heard::Stale)
    );
    assert!(session.is_outstanding(CLUSTER));
    for text in [format!("0{}", clusters.nonce()), format!("+{}", clusters.nonce()), "x".to_owned()] {
        assert_eq!(session.on_request(StreamId(1), &sotw(CLUSTER, &[], "", &text)), Ok(Heard::Stale), "{text}");
    }
    assert_eq!(session.on_request(StreamId(1), &sotw(CLUSTER, &[], "", &clusters.nonce().to_string())), Ok(Heard::Ack));
    assert!(!session.is_outstanding(CLUSTER) && session.is_outstanding(LISTENER));
}

#[test]
fn a_later_node_may_be_missing_or_the_same_but_not_another() {
    let mut session = session();
    session.open(StreamId(1), kind(Variant::Sotw, None)).unwrap();
    for (id, expected) in [("n", true), ("other", false)] {
        let mut request = sotw(CLUSTER, &[], "", "");
        request.node = Some(Node { id: id.into(), ..Node::default() });
        let heard = session.on_request(StreamId(1), &request);
        assert_eq!(heard.is_ok(), expected, "node {id:?}: {heard:?}");
    }
}

#[test]
fn names_and_types_are_limited() {
    let mut session = session();
    session.open(StreamId(1), kind(Variant::Sotw, None)).unwrap();
    let names: Vec<String> = (0..=100_000).map(|index| format!("c{index}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    session.on_request(StreamId(1), &sotw(CLUSTER, &names[..100_000], "", "")).unwrap();
    let refused = session.on_request(StreamId(1), &sotw(LISTENER, &names, "", "")).unwrap_err();
    assert!(matches!(refused, RequestError::TooManyNames { limit: 100_000, .. }), "{refused}");
    assert_eq!(refused.code(), 3, "INVALID_ARGUMENT");
    let long = "x".repeat(20_000);
    let refused = session.on_request(StreamId(1), &sotw(LISTENER, &[&long], "", "")).unwrap_err();
    assert!(matches!(refused, RequestError::NameTooLong { .. }), "{refused}");
    let refused =
        (0..100).find_map(|index| session.on_request(StreamId(1), &sotw(&format!("t{index}"), &[], "", "")).err());
    assert_eq!(refused, Some(RequestError::TooManyTypes { limit: 64 }));
}

#[test]
fn of_a_node_only_what_is_needed_is_kept_and_it_is_limited() {
    let extension = culvert_api::envoy::config::core::v3::Extension::default();
    let node = Node { id: "n".into(), extensions: vec![extension; 500], ..Node::default() };
    assert_eq!(NodeIdentity::new(Some(node)).unwrap(), NodeIdentity { id: "n".into(), ..NodeIdentity::default() });
    assert_eq!(NodeIdentity::new(None), Err(NodeRefused::Missing));
    let value = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue("x".repeat(70_000))) };
    let metadata = prost_types::Struct { fields: [("k".to_owned(), value)].into() };
    let refused = NodeIdentity::new(Some(Node { metadata: Some(metadata), ..Node::default() }));
    assert!(matches!(refused, Err(NodeRefused::MetadataTooLarge { .. })), "{refused:?}");
}

#[test]
fn what_is_served_and_not_asked_for_is_listed_as_not_sent() {
    let mut session = session();
    session.open(StreamId(1), kind(Variant::Sotw, None)).unwrap();
    session.on_request(StreamId(1), &sotw(CLUSTER, &["a"], "", "")).unwrap();
    let status = session.status();
    let of = |of: &str| status.iter().find(|status| &*status.type_url == of).unwrap();
    assert_eq!(of(CLUSTER).resources[0].state, ResourceState::Stale);
    assert_eq!((of(LISTENER).variant, of(LISTENER).resources[0].state), (None, ResourceState::NotSent));
}
