//! State of the world.

use culvert_api::type_url::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT as EDS, LISTENER, ROUTE_CONFIGURATION as RDS, SECRET};

use culvert_api::envoy::service::discovery::v3::{DiscoveryResponse, ResourceError};

use super::*;
use crate::{PARTIAL_ACK, RESOURCE_ERRORS};

fn clusters(entries: &[&str]) -> Snapshot {
    snapshot(&entries.iter().map(|entry| (CLUSTER, *entry)).collect::<Vec<_>>())
}

fn peer(snapshot: Snapshot) -> Peer {
    Peer::new(Variant::Sotw, snapshot)
}

#[test]
fn an_empty_first_list_of_clusters_or_listeners_is_a_wildcard() {
    for of in [CLUSTER, LISTENER, type_url::VIRTUAL_HOST, "type.googleapis.com/istio.workload.Address"] {
        let mut peer = peer(snapshot(&[(of, "a=1"), (of, "b=1")]));
        peer.sotw(of, &[], "", "");
        peer.expect(&format!("{} a=1 b=1", type_url::short_name(of)));
    }
}

#[test]
fn an_empty_first_list_of_a_type_that_goes_by_name_means_nothing() {
    for of in [EDS, RDS, SECRET] {
        let mut peer = peer(snapshot(&[(of, "a=1")]));
        peer.sotw(of, &[], "", "");
        peer.expect_silence();
    }
}

#[test]
fn a_star_is_a_wildcard_and_a_list_without_it_drops_the_wildcard() {
    let mut peer = peer(clusters(&["a=1", "b=1"]));
    peer.sotw(CLUSTER, &["*", "a"], "", "");
    let nonce = peer.expect("Cluster a=1 b=1");
    peer.sotw(CLUSTER, &["a"], "", &nonce);
    peer.publish(clusters(&["a=1", "b=2"]));
    peer.expect_silence();
    peer.publish(clusters(&["a=2", "b=2"]));
    peer.expect("Cluster a=2");
}

#[test]
fn after_names_an_empty_list_unsubscribes_from_everything() {
    let mut peer = peer(clusters(&["a=1", "b=1"]));
    peer.sotw(CLUSTER, &["a"], "", "");
    let nonce = peer.expect("Cluster a=1");
    peer.sotw(CLUSTER, &[], "", &nonce);
    peer.publish(clusters(&["a=2", "b=2"]));
    peer.expect_silence();
}

#[test]
fn duplicate_names_collapse_and_no_name_is_sent_twice() {
    let mut peer = peer(clusters(&["a=1", "b=1"]));
    peer.sotw(CLUSTER, &["a", "a", "*", "a"], "", "");
    peer.expect("Cluster a=1 b=1");
}

#[test]
fn the_legacy_wildcard_can_be_turned_off_and_grpc_has_none() {
    for (legacy_wildcard, user_agent) in [(false, "envoy"), (true, "gRPC C-core linux")] {
        let config = SessionConfig { legacy_wildcard, ..SessionConfig::default() };
        let node = NodeIdentity { user_agent: user_agent.into(), ..NodeIdentity::default() };
        let mut session = Session::new(config, Arc::new(node), Arc::new(clusters(&["a=1"])));
        session.open(StreamId(0), StreamKind { variant: Variant::Sotw, type_url: None }).unwrap();
        session.on_request(StreamId(0), &sotw(CLUSTER, &[], "", "")).unwrap();
        let response = session.poll_response(Duration::ZERO);
        assert!(response.is_none(), "an empty list of {user_agent} asked for everything: {response:?}");
    }
}

#[test]
fn an_ack_draws_nothing_and_a_repeated_one_neither() {
    let mut peer = peer(clusters(&["a=1"]));
    peer.sotw(CLUSTER, &[], "", "");
    let nonce = peer.expect("Cluster a=1");
    assert_eq!(peer.status(CLUSTER), "a=Stale");
    assert_eq!(peer.sotw(CLUSTER, &[], "v", &nonce), Heard::Ack);
    peer.expect_silence();
    // MOSN repeats its request every 10 s.
    assert_eq!(peer.sotw(CLUSTER, &[], "v", &nonce), Heard::Subscription);
    peer.expect_silence();
    assert_eq!(peer.status(CLUSTER), "a=Synced");
}

#[test]
fn a_refused_content_is_not_sent_again_and_the_next_change_is() {
    let mut peer = peer(clusters(&["a=1"]));
    peer.sotw(CLUSTER, &[], "", "");
    let nonce = peer.expect("Cluster a=1");
    peer.sotw(CLUSTER, &[], "", &nonce);
    peer.publish(clusters(&["a=bad"]));
    let nonce = peer.expect("Cluster a=bad");
    for _ in 0..3 {
        peer.sotw_nack(CLUSTER, &[], &nonce, "a: bad");
        peer.expect_silence();
    }
    assert_eq!(peer.status(CLUSTER), "a=Error");
    // The same set in a new snapshot is no change.
    peer.publish(clusters(&["a=bad"]));
    peer.expect_silence();
    peer.publish(clusters(&["a=2"]));
    let nonce = peer.expect("Cluster a=2");
    peer.sotw(CLUSTER, &[], "", &nonce);
    assert_eq!(peer.status(CLUSTER), "a=Synced");
}

#[test]
fn a_rollback_to_the_accepted_content_is_sent_and_clears_the_error() {
    let mut peer = peer(clusters(&["a=1"]));
    peer.sotw(CLUSTER, &[], "", "");
    let nonce = peer.expect("Cluster a=1");
    peer.sotw(CLUSTER, &[], "", &nonce);
    peer.publish(clusters(&["a=bad"]));
    let nonce = peer.expect("Cluster a=bad");
    peer.sotw_nack(CLUSTER, &[], &nonce, "bad");
    peer.publish(clusters(&["a=1"]));
    let nonce = peer.expect("Cluster a=1");
    peer.sotw(CLUSTER, &[], "", &nonce);
    assert_eq!(peer.status(CLUSTER), "a=Synced");
}

#[test]
fn a_full_state_carries_the_accepted_content_of_what_was_refused_and_leaves_out_what_never_was_accepted() {
    let mut peer = peer(clusters(&["a=1", "b=1"]));
    peer.sotw(CLUSTER, &[], "", "");
    let nonce = peer.expect("Cluster a=1 b=1");
    peer.sotw(CLUSTER, &[], "", &nonce);
    peer.publish(clusters(&["a=bad", "b=1", "new=bad"]));
    let nonce = peer.expect("Cluster a=bad b=1 new=bad");
    peer.sotw_nack(CLUSTER, &[], &nonce, "who knows");
    peer.publish(clusters(&["a=bad", "b=2", "new=bad"]));
    let nonce = peer.expect("Cluster a=1 b=2");
    peer.sotw(CLUSTER, &[], "", &nonce);
    assert_eq!(peer.status(CLUSTER), "a=Error b=Synced new=Error");
    // One of those that were refused together changes: the other may have been refused because of it.
    peer.publish(clusters(&["a=3", "b=2", "new=bad"]));
    let nonce = peer.expect("Cluster a=3 b=2 new=bad");
    peer.sotw_nack(CLUSTER, &[], &nonce, "Error adding/updating cluster(s) new: no such thing");
    assert_eq!(peer.status(CLUSTER), "a=Synced b=Synced new=Error", "the node named the one it refused");
    peer.publish(clusters(&["a=4", "b=2", "new=bad"]));
    peer.expect("Cluster a=4 b=2");
}

/// What might have been sent again, and was not when the node should have something else, is refused as before.
#[test]
fn what_was_refused_together_stays_refused_until_a_part_of_it_was_taken() {
    let mut peer = peer(clusters(&["a=1", "b=1"]));
    peer.sotw(CLUSTER, &[], "", "");
    let nonce = peer.expect("Cluster a=1 b=1");
    peer.sotw(CLUSTER, &[], "", &nonce);
    peer.publish(clusters(&["a=bad", "b=bad"]));
    let nonce = peer.expect("Cluster a=bad b=bad");
    peer.sotw_nack(CLUSTER, &[], &nonce, "who knows");
    // Each of the two is looked at again, and is replaced before it could be sent.
    for content in [["a=bad", "b=2"], ["a=2", "b=bad"]] {
        peer.publish(clusters(&content));
    }
    peer.publish(clusters(&["a=bad", "b=bad"]));
    let nonce = peer.expect("Cluster a=1 b=1");
    peer.sotw(CLUSTER, &[], "", &nonce);
    assert_eq!(peer.status(CLUSTER), "a=Error b=Error", "it has what it had");
    peer.publish(clusters(&["a=bad", "b=2"]));
    peer.expect("Cluster a=bad b=2");
}

#[test]
fn a_client_that_names_what_it_refuses_keeps_the_rest() {
    let mut peer = Peer::with_features(Variant::Sotw, clusters(&["a=1", "b=bad"]), &[PARTIAL_ACK]);
    peer.sotw(CLUSTER, &[], "", "");
    let nonce = peer.expect("Cluster a=1 b=bad");
    peer.sotw_nack(CLUSTER, &[], &nonce, "Cluster/b: path: reason");
    assert_eq!(peer.status(CLUSTER), "a=Synced b=Error");
    peer.publish(clusters(&["a=1", "b=bad", "c=1"]));
    peer.expect("Cluster a=1 c=1");
}

#[test]
fn a_refusal_outlives_the_stream_until_a_client_starts_from_nothing() {
    let mut peer = peer(clusters(&["a=1", "b=1"]));
    peer.sotw(CLUSTER, &[], "", "");
    let nonce = peer.expect("Cluster a=1 b=1");
    peer.sotw(CLUSTER, &[], "", &nonce);
    let accepted = clusters(&["a=1", "b=1"]).of_type(CLUSTER).unwrap().version().to_string();
    peer.publish(clusters(&["a=bad", "b=1"]));
    let nonce = peer.expect("Cluster a=bad b=1");
    peer.sotw_nack(CLUSTER, &[], &nonce, "bad");
    peer.reconnect(Variant::Sotw);
    peer.sotw(CLUSTER, &[], &accepted, "");
    peer.expect("Cluster a=1 b=1");
    peer.reconnect(Variant::Sotw);
    peer.sotw(CLUSTER, &[], "", "");
    peer.expect("Cluster a=bad b=1");
}

#[test]
fn a_node_that_holds_what_we_do_not_know_loses_nothing_by_a_refusal() {
    let mut peer = peer(clusters(&["a=1", "b=bad"]));
    peer.sotw(CLUSTER, &[], "another server's", "");
    let nonce = peer.expect("Cluster a=1 b=bad");
    peer.sotw_nack(CLUSTER, &[], &nonce, "bad");
    peer.expect_silence();
    peer.publish(clusters(&["a=1", "b=bad", "c=1"]));
    peer.expect("Cluster a=1 b=bad c=1");
}

#[test]
fn a_request_with_a_stale_or_empty_nonce_is_ignored_once_a_response_is_out() {
    let mut peer = peer(snapshot(&[(EDS, "a=1"), (EDS, "b=1")]));
    peer.sotw(EDS, &["a"], "", "");
    let first = peer.expect("ClusterLoadAssignment a=1");
    for nonce in ["", "other"] {
        assert_eq!(peer.sotw(EDS, &["a", "b"], "", nonce), Heard::Stale);
        peer.expect_silence();
    }
    peer.sotw(EDS, &["a"], "", &first);
    peer.publish(snapshot(&[(EDS, "a=2"), (EDS, "b=1")]));
    peer.expect("ClusterLoadAssignment a=2");
    assert_eq!(peer.sotw_nack(EDS, &["a"], &first, "late"), Heard::Stale);
}

#[test]
fn a_nonce_of_an_earlier_stream_answers_nothing_though_as_many_responses_came() {
    let mut peer = peer(clusters(&["a=1"]));
    peer.sotw(CLUSTER, &["a"], "", "");
    let old = peer.expect("Cluster a=1");
    peer.reconnect(Variant::Sotw);
    // MOSN goes on with the nonce that it saw last, on its first request and after.
    assert_eq!(peer.sotw(CLUSTER, &["a"], "1", &old), Heard::Subscription);
    let nonce = peer.expect("Cluster a=1");
    assert_eq!(peer.sotw(CLUSTER, &["a"], "1", &old), Heard::Stale);
    assert_eq!(peer.sotw(CLUSTER, &["a"], "1", &nonce), Heard::Ack);
}

#[test]
fn the_first_request_on_a_stream_is_new_whatever_its_nonce() {
    let mut peer = peer(clusters(&["a=1"]));
    peer.sotw(CLUSTER, &["a"], "old", "nonce of another stream");
    peer.expect("Cluster a=1");
}

#[test]
fn a_new_name_at_an_unchanged_version_is_answered() {
    let mut peer = peer(snapshot(&[(EDS, "a=1"), (EDS, "b=1")]));
    peer.sotw(EDS, &["a"], "", "");
    let nonce = peer.expect("ClusterLoadAssignment a=1");
    peer.sotw(EDS, &["a"], "v", &nonce);
    peer.sotw(EDS, &["a", "b"], "v", &nonce);
    peer.expect("ClusterLoadAssignment b=1");
}

#[test]
fn what_is_given_up_and_asked_for_again_is_sent_again() {
    let mut peer = peer(snapshot(&[(EDS, "a=1"), (EDS, "b=1")]));
    peer.sotw(EDS, &["a", "b"], "", "");
    let nonce = peer.expect("ClusterLoadAssignment a=1 b=1");
    peer.sotw(EDS, &["a"], "v", &nonce);
    peer.sotw(EDS, &["a", "b"], "v", &nonce);
    peer.expect("ClusterLoadAssignment b=1");
}

#[test]
fn types_that_may_be_answered_in_part_get_what_changed_and_others_are_left_alone() {
    let mut peer = peer(snapshot(&[(EDS, "a=1"), (EDS, "b=1"), (EDS, "c=1")]));
    peer.sotw(EDS, &["a", "b"], "", "");
    let nonce = peer.expect("ClusterLoadAssignment a=1 b=1");
    peer.sotw(EDS, &["a", "b"], "v", &nonce);
    peer.publish(snapshot(&[(EDS, "a=1"), (EDS, "b=1"), (EDS, "c=2")]));
    peer.expect_silence();
    peer.publish(snapshot(&[(EDS, "a=1"), (EDS, "b=2"), (EDS, "c=2")]));
    peer.expect("ClusterLoadAssignment b=2");
}

#[test]
fn a_removed_cluster_is_absent_and_the_last_removal_is_an_empty_response() {
    let mut peer = peer(clusters(&["a=1", "b=1"]));
    peer.sotw(CLUSTER, &[], "", "");
    let nonce = peer.expect("Cluster a=1 b=1");
    peer.sotw(CLUSTER, &[], "v", &nonce);
    peer.publish(clusters(&["b=1"]));
    let nonce = peer.expect("Cluster b=1");
    peer.sotw(CLUSTER, &[], "v", &nonce);
    peer.publish(clusters(&[]));
    let nonce = peer.expect("Cluster");
    peer.sotw(CLUSTER, &[], "v", &nonce);
    peer.expect_silence();
}

#[test]
fn an_empty_wildcard_gets_an_empty_response() {
    let mut peer = peer(clusters(&[]));
    peer.sotw(LISTENER, &[], "", "");
    peer.expect("Listener");
}

#[test]
fn an_unknown_name_is_remembered_and_sent_when_it_comes_to_be() {
    let mut peer = peer(snapshot(&[]));
    peer.sotw(RDS, &["r"], "", "");
    peer.expect_silence();
    peer.publish(snapshot(&[(RDS, "r=1")]));
    peer.expect("RouteConfiguration r=1");
}

#[test]
fn a_grpc_client_is_told_once_what_does_not_exist_or_is_denied() {
    is_told_once(NodeIdentity { user_agent: "gRPC C-core linux".into(), ..NodeIdentity::default() });
    is_told_once(NodeIdentity { client_features: vec![RESOURCE_ERRORS.to_owned()], ..NodeIdentity::default() });
}

fn is_told_once(node: NodeIdentity) {
    let denied = |entries: &[(&str, &str)]| {
        let mut builder = Snapshot::builder();
        for (of, entry) in entries {
            builder.insert(resource(of, entry));
        }
        builder.deny(RDS.into(), "secret".into());
        Arc::new(builder.build())
    };
    let mut session = Session::new(SessionConfig::default(), Arc::new(node), denied(&[(RDS, "a=1")]));
    let stream = StreamId(1);
    session.open(stream, StreamKind { variant: Variant::Sotw, type_url: None }).unwrap();
    let errors = |response: &DiscoveryResponse| {
        let one = |error: &ResourceError| {
            (error.resource_name.clone().unwrap().name, error.error_detail.clone().unwrap().code)
        };
        (response.resources.len(), response.resource_errors.iter().map(one).collect::<Vec<_>>())
    };
    let ask = |session: &mut Session, names: &[&str], nonce: &str| {
        session.on_request(stream, &sotw(RDS, names, "", nonce)).unwrap();
        session.poll_stream(stream, Duration::ZERO).map(|response| {
            let mut bytes = Vec::new();
            response.encode(&mut bytes);
            let decoded = DiscoveryResponse::decode(bytes.as_slice()).unwrap();
            assert_eq!(decoded, response.to_sotw(), "both ways to say it are the same");
            assert_eq!(bytes.len(), response.encoded_len());
            decoded
        })
    };
    let names = ["a", "none", "secret"];
    let first = ask(&mut session, &names, "").unwrap();
    assert_eq!(errors(&first), (1, vec![("none".into(), 5), ("secret".into(), 7)]));
    assert!(ask(&mut session, &names, &first.nonce).is_none(), "it is said once");
    session.on_snapshot(denied(&[(RDS, "a=1"), (RDS, "none=1")]), Duration::ZERO);
    let second = session.poll_stream(stream, Duration::ZERO).unwrap().to_sotw();
    assert_eq!(errors(&second), (1, vec![]), "it exists by now");
    session.on_request(stream, &sotw(RDS, &names, "", &second.nonce)).unwrap();
    session.on_snapshot(denied(&[(RDS, "a=1")]), Duration::ZERO);
    let mut times = (0..10).map(|step| Duration::from_secs(6 * step));
    let third = times.find_map(|now| session.poll_stream(stream, now)).map(|response| response.to_sotw());
    let third = third.unwrap_or_else(|| panic!("nothing was said; {:?}", session.progress()));
    assert_eq!(errors(&third), (0, vec![("none".into(), 5)]), "and is gone again");
}

#[test]
fn an_assignment_of_a_served_cluster_that_has_none_is_empty() {
    let mut builder = Snapshot::builder();
    builder.insert(eds_cluster("c"));
    let mut peer = peer(builder.build());
    peer.sotw(EDS, &["c", "other"], "", "");
    let nonce = peer.expect("ClusterLoadAssignment c=");
    peer.sotw(EDS, &["c", "other"], "", &nonce);
    // The real one takes its place, and the empty one comes back when it goes.
    let mut builder = peer.session.snapshot().successor();
    builder.insert(eds_cluster("c"));
    builder.insert(resource(EDS, "c=1"));
    peer.publish(builder.build());
    let nonce = peer.expect("ClusterLoadAssignment c=1");
    peer.sotw(EDS, &["c", "other"], "", &nonce);
    let mut builder = peer.session.snapshot().successor();
    builder.insert(eds_cluster("c"));
    peer.publish(builder.build());
    peer.expect("ClusterLoadAssignment c=");
}

#[test]
fn a_wildcard_that_comes_back_with_the_present_version_is_sent_nothing() {
    let present = clusters(&["a=1", "b=1"]);
    let version = present.of_type(CLUSTER).unwrap().version().to_string();
    let mut peer = peer(present);
    peer.sotw(CLUSTER, &[], &version, "");
    peer.expect_silence();
    assert_eq!(peer.status(CLUSTER), "a=Synced b=Synced");
    peer.publish(clusters(&["a=1", "b=2"]));
    peer.expect("Cluster a=1 b=2");
}

#[test]
fn names_that_come_back_with_the_present_version_are_sent_again() {
    let present = snapshot(&[(RDS, "r=1")]);
    let version = present.of_type(RDS).unwrap().version().to_string();
    let mut peer = peer(present);
    peer.sotw(RDS, &["r"], &version, "");
    peer.expect("RouteConfiguration r=1");
}

#[test]
fn versions_follow_from_content_and_not_from_history() {
    let direct = clusters(&["a=2", "b=1"]);
    let mut builder = clusters(&["a=1"]).successor();
    builder.insert(resource(CLUSTER, "b=1"));
    builder.insert(resource(CLUSTER, "a=2"));
    assert_eq!(direct.of_type(CLUSTER).unwrap().version(), builder.build().of_type(CLUSTER).unwrap().version());
}

#[test]
fn a_hundred_changes_while_a_response_is_unanswered_make_one_more_response() {
    let mut peer = peer(clusters(&["a=0"]));
    peer.sotw(CLUSTER, &[], "", "");
    let nonce = peer.expect("Cluster a=0");
    for change in 1..=100 {
        let mut builder = peer.session.snapshot().successor();
        builder.insert(resource(CLUSTER, &format!("a={change}")));
        peer.publish(builder.build());
        peer.expect_silence();
    }
    peer.sotw(CLUSTER, &[], "", &nonce);
    let nonce = peer.expect("Cluster a=100");
    peer.sotw(CLUSTER, &[], "", &nonce);
    peer.expect_silence();
}

#[test]
fn types_go_out_in_the_order_in_which_they_refer_to_each_other() {
    let types = [RDS, LISTENER, EDS, CLUSTER, SECRET];
    let mut peer = peer(snapshot(&types.map(|of| (of, "a=1"))));
    for of in types {
        peer.sotw(of, &["a"], "", "");
    }
    for of in ["Secret", "Cluster", "ClusterLoadAssignment", "Listener", "RouteConfiguration"] {
        peer.expect(&format!("{of} a=1"));
    }
}

#[test]
fn every_response_says_version_nonce_type_and_who_sent_it() {
    let mut peer = peer(clusters(&["a=1"]));
    peer.sotw(CLUSTER, &[], "", "");
    let response = peer.session.poll_stream(peer.stream, Duration::ZERO).unwrap();
    let mut bytes = Vec::new();
    response.encode(&mut bytes);
    let decoded = DiscoveryResponse::decode(&*bytes).unwrap();
    assert_eq!(decoded, response.to_sotw());
    assert_eq!(decoded.type_url, CLUSTER);
    assert!(!decoded.nonce.is_empty() && !decoded.version_info.is_empty(), "{decoded:?}");
    assert_eq!(decoded.control_plane.unwrap().identifier, "culvert-control");
    assert!(decoded.resources.iter().all(|any| any.type_url == CLUSTER));
}
