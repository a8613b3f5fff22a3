//! How long a resource is waited for, and how long it lives.

use culvert_api::type_url::{EXTENSION_CONFIG, SCOPED_ROUTE_CONFIGURATION, TUNNEL_AGENT, TUNNEL_POLICY};

use super::*;

#[test]
fn a_named_resource_that_does_not_come_in_time_is_missing() {
    let mut client = client(Variant::Sotw);
    client.watch(RDS, names(&["came", "cached", "missing"]));
    client.expect_cached(RDS, [Name::from("cached")]);
    assert_eq!(client.next_timeout(), None, "no timer before the request is sent");
    next_sotw(&mut client);
    let _ack = client.on_response(sotw(RDS, "v", "1", vec![any(RDS, "came")])).unwrap().ack();
    let deadline = NOW + Duration::from_secs(15);
    assert_eq!(client.next_timeout(), Some(deadline));
    assert_eq!(client.poll_timeout(deadline - Duration::from_millis(1)), None);
    let missing = Missing { type_url: RDS.into(), name: "missing".into(), why: Absence::Unanswered };
    assert_eq!(client.poll_timeout(deadline), Some(missing));
    assert_eq!((client.poll_timeout(deadline), client.next_timeout()), (None, None));
}

/// gRFC A88, `resource_timer_is_transient_error`: who says what does not exist is slow if it says nothing.
#[test]
fn where_absence_is_said_a_named_resource_has_thirty_seconds_and_is_then_unavailable_and_not_missing() {
    for variant in [Variant::Sotw, Variant::Delta] {
        let mut client = client(variant);
        client.set_resource_timer(ResourceTimer::TransientError);
        client.watch(RDS, names(&["r"]));
        assert!(client.poll_request(NOW).is_some(), "the first request");
        let after = |seconds: u64| NOW + Duration::from_secs(seconds);
        assert_eq!(client.next_timeout(), Some(after(30)), "{variant:?}");
        assert_eq!(client.poll_timeout(after(30) - Duration::from_millis(1)), None, "{variant:?}");
        let late = Missing { type_url: RDS.into(), name: "r".into(), why: Absence::Unavailable };
        assert_eq!(client.poll_timeout(after(30)), Some(late), "{variant:?}");
        assert_eq!((client.poll_timeout(after(300)), client.next_timeout()), (None, None), "{variant:?}: said once");
        assert!(client.lacks_anything(), "{variant:?}: nobody said that it does not exist");
        // Another server that does not say so.
        client.set_resource_timer(ResourceTimer::DoesNotExist);
        client.on_connected();
        assert!(client.poll_request(NOW).is_some(), "the first request of another stream");
        let missing = Missing { type_url: RDS.into(), name: "r".into(), why: Absence::Unanswered };
        assert_eq!(client.poll_timeout(after(15)), Some(missing), "{variant:?}");
        assert!(!client.lacks_anything(), "{variant:?}: it does not exist");
    }
}

#[test]
fn no_timer_runs_without_a_stream_and_a_new_one_begins_with_the_next() {
    let mut client = client(Variant::Delta);
    client.watch(RDS, names(&["r"]));
    next_delta(&mut client);
    client.on_disconnected();
    assert_eq!(client.next_timeout(), None);
    client.on_connected();
    next_delta(&mut client);
    assert_eq!(client.next_timeout(), Some(NOW + Duration::from_secs(15)));
    let update = client.on_delta_response(delta(RDS, "1", &[], &["r"])).unwrap();
    assert_eq!(listed(update.removed()), ["r"], "said at once to be missing");
    let _ack = update.ack();
    assert_eq!(client.next_timeout(), None);
}

/// A wrapper with a TTL in seconds, in both variants.
fn with_ttl(name: &str, ttl: Option<i64>, body: Option<Any>) -> Wrapper {
    let ttl = ttl.map(|seconds| prost_types::Duration { seconds, nanos: 0 });
    Wrapper { name: name.into(), version: "1".into(), ttl, resource: body, ..Wrapper::default() }
}

#[test]
fn a_ttl_is_one_whatever_the_type() {
    for of in [TUNNEL_AGENT, TUNNEL_POLICY, SCOPED_ROUTE_CONFIGURATION, EXTENSION_CONFIG] {
        for variant in [Variant::Sotw, Variant::Delta] {
            let mut client = client(variant);
            client.watch(of, Interest { wildcard: of != EXTENSION_CONFIG, ..names(&["a", "b"]) });
            assert!(client.poll_request(NOW).is_some(), "the first request");
            let both = [with_ttl("a", Some(10), Some(any(of, "a"))), with_ttl("b", None, Some(any(of, "b")))];
            accept_of(of, &mut client, variant, "1", both.into());
            assert_eq!(client.poll_timeout(NOW), None, "{of}, {variant:?}: nothing has expired");
            let expired = Missing { type_url: of.into(), name: "a".into(), why: Absence::Expired };
            assert_eq!(client.poll_timeout(NOW + Duration::from_secs(10)), Some(expired), "{of}, {variant:?}");
            let held: Vec<&str> = client.held(of).map(|(name, _)| &**name).collect();
            assert_eq!(held, ["b"], "{of}, {variant:?}: what has expired is not held");
        }
    }
}

/// Takes wrapped resources as a response of the client's variant, and accepts them.
fn accept(client: &mut Client, variant: Variant, nonce: &str, wrappers: Vec<Wrapper>) {
    accept_of(EDS, client, variant, nonce, wrappers);
}

/// The same, of another type.
fn accept_of(of: &str, client: &mut Client, variant: Variant, nonce: &str, wrappers: Vec<Wrapper>) {
    let _ack = match variant {
        Variant::Sotw => {
            let wrap = |wrapper: Wrapper| Any { type_url: RESOURCE.into(), value: wrapper.encode_to_vec().into() };
            client.on_response(sotw(of, "v", nonce, wrappers.into_iter().map(wrap).collect())).unwrap().ack()
        }
        Variant::Delta => {
            let response = DeltaDiscoveryResponse { resources: wrappers, ..delta(of, nonce, &[], &[]) };
            client.on_delta_response(response).unwrap().ack()
        }
    };
}

#[test]
fn a_resource_lives_as_long_as_its_ttl_or_its_heartbeats_say() {
    let after = |seconds: u64| NOW + Duration::from_secs(seconds);
    for variant in [Variant::Sotw, Variant::Delta] {
        let mut client = client(variant);
        client.watch(EDS, names(&["a", "b", "c"]));
        assert!(client.poll_request(NOW).is_some(), "the first request");
        let body = |name: &str| Some(any(EDS, name));
        let first = vec![
            with_ttl("a", Some(10), body("a")),
            with_ttl("b", Some(10), body("b")),
            with_ttl("c", None, body("c")),
        ];
        accept(&mut client, variant, "1", first);
        assert_eq!(client.poll_timeout(NOW), None, "{variant:?}: nothing has expired");
        assert_eq!(client.next_timeout(), Some(after(10)));
        // A heartbeat of a, one of a name that is not held, and b for ever.
        let more =
            vec![with_ttl("a", Some(20), None), with_ttl("nobody", Some(20), None), with_ttl("b", None, body("b"))];
        accept(&mut client, variant, "2", more);
        assert_eq!(client.poll_timeout(after(10)), None, "{variant:?}: the heartbeat counts");
        // Without a stream the time goes on.
        client.on_disconnected();
        assert_eq!(client.next_timeout(), Some(after(30)), "{variant:?}: twenty seconds from when it was looked at");
        let expired = Missing { type_url: EDS.into(), name: "a".into(), why: Absence::Expired };
        assert_eq!(client.poll_timeout(after(30)), Some(expired), "{variant:?}");
        assert_eq!((client.poll_timeout(after(3000)), client.next_timeout()), (None, None));
        let held: Vec<&str> = client.held(EDS).map(|(name, _)| &**name).collect();
        assert_eq!(held, ["b", "c"], "{variant:?}: what has expired is not said to be held");
    }
}
