//! Delta.

use culvert_api::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use culvert_api::type_url::{
    CLUSTER, CLUSTER_LOAD_ASSIGNMENT as EDS, LISTENER, ROUTE_CONFIGURATION as RDS, VIRTUAL_HOST,
};

use super::*;

fn clusters(entries: &[&str]) -> Snapshot {
    snapshot(&entries.iter().map(|entry| (CLUSTER, *entry)).collect::<Vec<_>>())
}

fn peer(snapshot: Snapshot) -> Peer {
    Peer::new(Variant::Delta, snapshot)
}

#[test]
fn an_empty_first_request_is_a_wildcard_and_a_name_keeps_it() {
    let mut peer = peer(clusters(&["a=1", "b=1"]));
    peer.delta(CLUSTER, &[], &[]);
    let nonce = peer.expect("Cluster a=1 b=1");
    peer.delta_answer(CLUSTER, &nonce, None);
    peer.delta(CLUSTER, &["a"], &[]);
    let nonce = peer.expect("Cluster a=1");
    peer.delta_answer(CLUSTER, &nonce, None);
    peer.publish(clusters(&["a=1", "b=2"]));
    peer.expect("Cluster b=2");
}

#[test]
fn giving_up_the_star_keeps_the_names() {
    let mut peer = peer(clusters(&["a=1", "b=1"]));
    peer.delta(CLUSTER, &["*", "a"], &[]);
    let nonce = peer.expect("Cluster a=1 b=1");
    peer.delta_answer(CLUSTER, &nonce, None);
    peer.delta(CLUSTER, &[], &["*"]);
    peer.expect_silence();
    peer.publish(clusters(&["a=2", "b=2"]));
    peer.expect("Cluster a=2");
}

#[test]
fn after_names_an_empty_request_is_no_wildcard() {
    let mut peer = peer(clusters(&["a=1", "b=1"]));
    peer.delta(CLUSTER, &["a"], &[]);
    let nonce = peer.expect("Cluster a=1");
    peer.delta_answer(CLUSTER, &nonce, None);
    peer.delta(CLUSTER, &[], &["a"]);
    peer.delta(CLUSTER, &[], &[]);
    peer.publish(clusters(&["a=2", "b=2"]));
    peer.expect_silence();
}

#[test]
fn a_star_in_both_lists_means_nothing_yet_and_is_answered() {
    let mut peer = peer(clusters(&["a=1"]));
    peer.delta(CLUSTER, &["*"], &["*"]);
    let nonce = peer.expect("Cluster");
    peer.delta_answer(CLUSTER, &nonce, None);
    peer.delta(CLUSTER, &["a"], &[]);
    peer.expect("Cluster a=1");
}

#[test]
fn only_changes_are_sent_and_deletions_are_named_for_wildcard_and_names() {
    for subscribe in [&[][..], &["a", "b", "c"]] {
        let mut peer = peer(clusters(&["a=1", "b=1", "c=1"]));
        peer.delta(CLUSTER, subscribe, &[]);
        let nonce = peer.expect("Cluster a=1 b=1 c=1");
        peer.delta_answer(CLUSTER, &nonce, None);
        peer.publish(clusters(&["a=1", "b=2"]));
        let nonce = peer.expect("Cluster b=2 -c");
        peer.delta_answer(CLUSTER, &nonce, None);
        peer.expect_silence();
    }
}

#[test]
fn an_unknown_name_is_said_to_be_missing_once_and_sent_when_it_comes_to_be() {
    let mut peer = peer(snapshot(&[]));
    peer.delta(RDS, &["r"], &[]);
    let nonce = peer.expect("RouteConfiguration -r");
    peer.delta_answer(RDS, &nonce, None);
    peer.publish(snapshot(&[(RDS, "other=1")]));
    peer.expect_silence();
    peer.publish(snapshot(&[(RDS, "other=1"), (RDS, "r=1")]));
    peer.expect("RouteConfiguration r=1");
}

#[test]
fn an_unknown_virtual_host_is_a_resource_without_a_body() {
    let mut peer = peer(snapshot(&[]));
    peer.delta(VIRTUAL_HOST, &["routes/host"], &[]);
    let response = peer.session.poll_stream(peer.stream, Duration::ZERO).unwrap();
    let mut bytes = Vec::new();
    response.encode(&mut bytes);
    let decoded = DeltaDiscoveryResponse::decode(&*bytes).unwrap();
    assert_eq!(decoded, response.to_delta());
    assert_eq!(decoded.removed_resources, Vec::<String>::new());
    let [hollow] = &decoded.resources[..] else { panic!("one resource expected, saw {decoded:?}") };
    assert_eq!((hollow.name.as_str(), &hollow.aliases[..]), ("routes/host", &["routes/host".to_owned()][..]));
    assert!(hollow.resource.is_none());
}

#[test]
fn a_name_subscribed_to_again_is_sent_again() {
    let mut peer = peer(snapshot(&[(EDS, "a=1")]));
    peer.delta(EDS, &["a"], &[]);
    let nonce = peer.expect("ClusterLoadAssignment a=1");
    peer.delta_answer(EDS, &nonce, None);
    peer.delta(EDS, &["a"], &[]);
    let nonce = peer.expect("ClusterLoadAssignment a=1");
    peer.delta_answer(EDS, &nonce, None);
    peer.delta(EDS, &[], &["a"]);
    peer.delta(EDS, &["a"], &[]);
    peer.expect("ClusterLoadAssignment a=1");
}

#[test]
fn initial_versions_leave_out_what_is_held_send_what_changed_and_remove_what_vanished() {
    for subscribe in [&["*"][..], &["same", "changed", "gone", "foreign"]] {
        // What others refer to is removed later: see `staging`.
        let mut peer = peer(snapshot(&[(LISTENER, "same=1"), (LISTENER, "changed=2"), (LISTENER, "foreign=1")]));
        let same = version_of(LISTENER, "same=1");
        let changed = version_of(LISTENER, "changed=1");
        let held = [("same", same.as_str()), ("changed", &changed), ("gone", &changed), ("foreign", "v1")];
        peer.delta_with(LISTENER, subscribe, &held);
        peer.expect("Listener changed=2 foreign=1 -gone");
        assert_eq!(peer.session.progress(), Progress::Settled, "nothing is waited for");
    }
}

#[test]
fn a_reconnect_without_any_change_is_answered_without_resources() {
    let mut peer = peer(clusters(&["a=1"]));
    peer.delta_with(CLUSTER, &[], &[("a", &version_of(CLUSTER, "a=1"))]);
    let nonce = peer.expect("Cluster");
    peer.delta_answer(CLUSTER, &nonce, None);
    assert_eq!(peer.status(CLUSTER), "a=Synced");
}

#[test]
fn a_refusal_is_followed_by_silence_then_by_a_change_or_a_rollback() {
    for next in ["a=2", "a=1"] {
        let mut peer = peer(clusters(&["a=1"]));
        peer.delta(CLUSTER, &[], &[]);
        let nonce = peer.expect("Cluster a=1");
        peer.delta_answer(CLUSTER, &nonce, None);
        peer.publish(clusters(&["a=bad"]));
        let nonce = peer.expect("Cluster a=bad");
        assert_eq!(peer.delta_answer(CLUSTER, &nonce, Some("bad")), Heard::Nack);
        peer.expect_silence();
        assert_eq!(peer.status(CLUSTER), "a=Error");
        peer.publish(clusters(&[next]));
        let nonce = peer.expect(&format!("Cluster {next}"));
        peer.delta_answer(CLUSTER, &nonce, None);
        assert_eq!(peer.status(CLUSTER), "a=Synced");
    }
}

#[test]
fn a_subscription_change_counts_on_any_nonce_and_only_the_right_one_answers() {
    let mut peer = peer(snapshot(&[(EDS, "a=1"), (EDS, "b=1")]));
    peer.delta(EDS, &["a"], &[]);
    let nonce = peer.expect("ClusterLoadAssignment a=1");
    let mut request = delta(EDS, &["b"], &[]);
    request.response_nonce = "stale".into();
    assert_eq!(peer.session.on_delta_request(peer.stream, &request).unwrap(), Heard::Subscription);
    // The first response is still unanswered.
    peer.expect_silence();
    assert_eq!(peer.delta_answer(EDS, &nonce, None), Heard::Ack);
    peer.expect("ClusterLoadAssignment b=1");
}

#[test]
fn a_name_given_up_is_not_updated_and_one_never_asked_for_is_ignored() {
    let mut peer = peer(snapshot(&[(EDS, "a=1"), (EDS, "b=1")]));
    peer.delta(EDS, &["a", "b"], &[]);
    let nonce = peer.expect("ClusterLoadAssignment a=1 b=1");
    peer.delta_answer(EDS, &nonce, None);
    peer.delta(EDS, &[], &["b", "phantom"]);
    peer.publish(snapshot(&[(EDS, "a=1"), (EDS, "b=2")]));
    peer.expect_silence();
}

#[test]
fn a_name_given_up_under_a_wildcard_is_answered_with_what_the_wildcard_has() {
    let mut peer = peer(clusters(&["a=1"]));
    peer.delta(CLUSTER, &["*", "a", "missing"], &[]);
    let nonce = peer.expect("Cluster a=1 -missing");
    peer.delta_answer(CLUSTER, &nonce, None);
    peer.delta(CLUSTER, &[], &["a", "missing"]);
    peer.expect("Cluster a=1 -missing");
}

#[test]
fn a_change_costs_what_changed_and_not_what_there_is() {
    // Seen from outside: only the changed resource is looked at, so an unchanged one is not even compared.
    let entries: Vec<String> = (0..1000).map(|index| format!("c{index}=1")).collect();
    let mut peer = peer(clusters(&entries.iter().map(String::as_str).collect::<Vec<_>>()));
    peer.delta(CLUSTER, &[], &[]);
    let (_, nonce) = peer.poll().unwrap();
    peer.delta_answer(CLUSTER, &nonce, None);
    let mut builder = peer.session.snapshot().successor();
    for entry in &entries[1..] {
        builder.insert(resource(CLUSTER, entry));
    }
    builder.insert(resource(CLUSTER, "c0=2"));
    let next = builder.build();
    let before = Arc::clone(peer.session.snapshot().of_type(CLUSTER).unwrap());
    let changed = next.of_type(CLUSTER).unwrap().changed_since(&before).expect("a successor knows what changed");
    assert_eq!(changed.iter().map(|name| &**name).collect::<Vec<_>>(), ["c0"]);
    peer.publish(next);
    peer.expect("Cluster c0=2");
}

#[test]
fn what_came_while_the_wildcard_was_given_up_and_taken_again_is_removed_once_it_is_gone() {
    let mut peer = peer(clusters(&["a=1", "b=1"]));
    peer.delta(CLUSTER, &["*"], &[]);
    let nonce = peer.expect("Cluster a=1 b=1");
    peer.delta(CLUSTER, &[], &["*"]);
    peer.delta(CLUSTER, &["*"], &[]);
    peer.publish(clusters(&["b=1"]));
    peer.delta_answer(CLUSTER, &nonce, None);
    let (seen, nonce) = peer.poll().expect("the wildcard is answered");
    assert!(seen.contains("-a"), "expected the removal of a, saw {seen:?}");
    peer.delta_answer(CLUSTER, &nonce, None);
    peer.expect_silence();
}

/// xDS: a server cannot know what of a refused response a client has applied (Envoy applies the good part), and a client ignores
/// the removal of what it does not have.
#[test]
fn what_was_refused_and_never_held_is_removed_by_name_once_it_is_gone() {
    for features in [&[][..], &[crate::PARTIAL_ACK]] {
        for subscribe in [&[][..], &["a", "b"]] {
            let mut peer = Peer::with_features(Variant::Delta, clusters(&["a=bad", "b=1"]), features);
            peer.delta(CLUSTER, subscribe, &[]);
            let nonce = peer.expect("Cluster a=bad b=1");
            assert_eq!(peer.delta_answer(CLUSTER, &nonce, Some("Cluster/a: type: wrong")), Heard::Nack);
            peer.expect_silence();
            peer.publish(clusters(&["b=1"]));
            let mut seen = Vec::new();
            while let Some((response, nonce)) = peer.poll() {
                peer.delta_answer(CLUSTER, &nonce, None);
                seen.push(response);
            }
            assert!(seen.join(" ").contains("-a"), "{features:?}, {subscribe:?}: expected -a, saw {seen:?}");
            assert_eq!(peer.status(CLUSTER), "b=Synced", "{features:?}, {subscribe:?}: nothing is left of the refusal");
            // Who comes back without it is not told that it is gone, unless it asks for the name.
            peer.reconnect(Variant::Delta);
            peer.delta_with(CLUSTER, subscribe, &[("b", &version_of(CLUSTER, "b=1"))]);
            peer.expect(if subscribe.is_empty() { "Cluster" } else { "Cluster -a" });
        }
    }
}
