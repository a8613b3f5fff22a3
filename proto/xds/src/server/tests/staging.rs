//! Make before break: what is sent when, and what ends a change.

use std::sync::Arc;
use std::time::Duration;

use culvert_api::type_url::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, ROUTE_CONFIGURATION};

use super::*;

const LATE: Duration = Duration::from_secs(5);
const REMOVAL: Duration = Duration::from_millis(100);

/// A delta peer on ADS that has all of `entries`.
fn synced(entries: &[(&str, &str)]) -> Peer {
    let mut peer = Peer::new(Variant::Delta, snapshot(entries));
    for (of, names) in [(CLUSTER, vec![]), (LISTENER, vec![]), (ROUTE_CONFIGURATION, vec!["r", "s"])] {
        peer.delta(of, &names, &[]);
        while let Some((_, nonce)) = peer.poll() {
            peer.delta_answer(of, &nonce, None);
        }
    }
    assert_eq!(peer.session.progress(), Progress::Settled);
    peer
}

impl Peer {
    fn publish_next(&mut self, entries: &[(&str, &str)]) {
        let mut builder = self.session.snapshot().successor();
        for (of, entry) in entries {
            builder.insert(resource(of, entry));
        }
        self.publish(builder.build());
    }

    #[track_caller]
    fn expect_at(&mut self, now: Duration, expected: &str) -> String {
        let response = self.session.poll_stream(self.stream, now);
        let response = response.unwrap_or_else(|| panic!("expected {expected:?} at {now:?}, nothing was sent"));
        let mut seen = vec![type_url::short_name(response.type_url()).to_owned()];
        seen.extend(response.resources().iter().map(|resource| show(resource)));
        seen.extend(response.removed().iter().map(|name| format!("-{name}")));
        assert_eq!(seen.join(" "), expected);
        response.nonce().to_string()
    }

    #[track_caller]
    fn expect_silence_at(&mut self, now: Duration) {
        let response = self.session.poll_stream(self.stream, now);
        assert!(response.is_none(), "expected silence at {now:?}, saw {response:?}");
    }
}

#[test]
fn a_swap_adds_then_switches_then_removes() {
    let mut peer = synced(&[(CLUSTER, "old=1"), (ROUTE_CONFIGURATION, "r=old")]);
    peer.publish_next(&[(CLUSTER, "new=1"), (ROUTE_CONFIGURATION, "r=new")]);
    let nonce = peer.expect("Cluster new=1");
    peer.expect_silence();
    assert_eq!(peer.session.progress(), Progress::Adding);
    peer.delta_answer(CLUSTER, &nonce, None);
    let nonce = peer.expect("RouteConfiguration r=new");
    peer.expect_silence();
    assert_eq!(peer.session.progress(), Progress::Switching);
    peer.delta_answer(ROUTE_CONFIGURATION, &nonce, None);
    peer.expect_silence();
    assert_eq!(peer.session.poll_timeout(peer.stream), Some(REMOVAL), "the removal has its delay");
    peer.expect_at(REMOVAL, "Cluster -old");
    assert_eq!(peer.session.progress(), Progress::Settled);
    assert_eq!(peer.session.poll_timeout(peer.stream), None);
}

#[test]
fn a_full_state_holds_old_and_new_until_the_routes_are_switched() {
    let mut peer = Peer::new(Variant::Sotw, snapshot(&[(CLUSTER, "old=1"), (ROUTE_CONFIGURATION, "r=old")]));
    peer.sotw(CLUSTER, &[], "", "");
    let nonce = peer.expect("Cluster old=1");
    peer.sotw(CLUSTER, &[], "", &nonce);
    peer.sotw(ROUTE_CONFIGURATION, &["r"], "", "");
    let routes = peer.expect("RouteConfiguration r=old");
    peer.sotw(ROUTE_CONFIGURATION, &["r"], "", &routes);
    peer.publish_next(&[(CLUSTER, "new=1"), (ROUTE_CONFIGURATION, "r=new")]);
    let nonce = peer.expect("Cluster new=1 old=1");
    peer.expect_silence();
    peer.sotw(CLUSTER, &[], "", &nonce);
    let routes = peer.expect("RouteConfiguration r=new");
    peer.sotw(ROUTE_CONFIGURATION, &["r"], "", &routes);
    peer.expect_silence();
    peer.expect_at(REMOVAL, "Cluster new=1");
}

#[test]
fn assignments_never_wait_for_the_answer_about_their_clusters() {
    let mut peer = synced(&[(CLUSTER, "old=1"), (ROUTE_CONFIGURATION, "r=old")]);
    peer.delta(CLUSTER_LOAD_ASSIGNMENT, &["other"], &[]);
    let nonce = peer.expect("ClusterLoadAssignment -other");
    peer.delta_answer(CLUSTER_LOAD_ASSIGNMENT, &nonce, None);
    let mut builder = peer.session.snapshot().successor();
    builder.insert(eds_cluster("e"));
    builder.insert(resource(ROUTE_CONFIGURATION, "r=e"));
    peer.publish(builder.build());
    let clusters = peer.poll().expect("the cluster").1;
    // Envoy: the request for the assignment comes before the answer for the cluster, and that waits for it.
    peer.delta(CLUSTER_LOAD_ASSIGNMENT, &["e"], &[]);
    let assignments = peer.poll().expect("the empty assignment").1;
    peer.delta_answer(CLUSTER, &clusters, None);
    peer.expect_silence();
    peer.delta_answer(CLUSTER_LOAD_ASSIGNMENT, &assignments, None);
    peer.expect("RouteConfiguration r=e");
}

#[test]
fn on_streams_of_one_type_each_a_new_cluster_waits_for_its_assignment() {
    let mut peer = synced(&[(CLUSTER, "old=1"), (ROUTE_CONFIGURATION, "r=old")]);
    let mut builder = peer.session.snapshot().successor();
    builder.insert(eds_cluster("e"));
    builder.insert(resource(ROUTE_CONFIGURATION, "r=e"));
    peer.publish(builder.build());
    let clusters = peer.poll().expect("the cluster").1;
    peer.delta_answer(CLUSTER, &clusters, None);
    peer.expect_silence();
    assert_eq!(peer.session.progress(), Progress::Adding, "nobody asked for the assignment yet");
    peer.delta(CLUSTER_LOAD_ASSIGNMENT, &["e"], &[]);
    let assignments = peer.poll().expect("the empty assignment").1;
    peer.delta_answer(CLUSTER_LOAD_ASSIGNMENT, &assignments, None);
    peer.expect("RouteConfiguration r=e");
}

/// From a file, or from another control plane as far as can be seen: then nothing is waited for but the answer for the cluster.
#[test]
#[expect(deprecated, reason = "path is still used")]
fn an_assignment_that_comes_from_elsewhere_is_not_waited_for() {
    let by_api = || ConfigSourceSpecifier::ApiConfigSource(ApiConfigSource::default());
    for (source, assigned, waits) in [
        (ConfigSourceSpecifier::Path("/eds.json".to_owned()), false, false),
        (ConfigSourceSpecifier::PathConfigSource(PathConfigSource::default()), false, false),
        (by_api(), false, false),
        (by_api(), true, true),
        (ConfigSourceSpecifier::Ads(AggregatedConfigSource::default()), false, true),
    ] {
        let mut peer = synced(&[(CLUSTER, "old=1"), (ROUTE_CONFIGURATION, "r=old")]);
        let mut builder = peer.session.snapshot().successor();
        builder.insert(eds_cluster_by("e", Some(source.clone())));
        builder.insert(resource(ROUTE_CONFIGURATION, "r=e"));
        if assigned {
            builder.insert(resource(CLUSTER_LOAD_ASSIGNMENT, "e=1"));
        }
        peer.publish(builder.build());
        let clusters = peer.poll().expect("the cluster").1;
        peer.delta_answer(CLUSTER, &clusters, None);
        let waited = peer.session.poll_stream(peer.stream, Duration::ZERO).is_none();
        assert_eq!(waited, waits, "{source:?}, and the assignment is here: {assigned}");
    }
}

/// Envoy would hold back its answer for the cluster for as long as it hears nothing.
#[test]
fn of_a_denied_assignment_a_cluster_gets_an_empty_one() {
    let mut builder = Snapshot::builder();
    builder.insert(eds_cluster("e"));
    builder.deny(CLUSTER_LOAD_ASSIGNMENT.into(), "e".into());
    let mut peer = Peer::new(Variant::Delta, builder.build());
    peer.delta(CLUSTER_LOAD_ASSIGNMENT, &["e"], &[]);
    // `cluster_name`, and nothing else.
    let empty = vec![10, 1, b'e'];
    let response = peer.session.poll_stream(peer.stream, Duration::ZERO).expect("an answer");
    let seen: Vec<_> = response.resources().iter().map(|resource| resource.value()).collect();
    assert_eq!((seen, response.removed().len()), (vec![empty.into()], 0));
}

#[test]
fn a_new_cluster_that_goes_and_comes_back_during_the_change_still_waits_for_its_assignment() {
    let mut peer = synced(&[(CLUSTER, "old=1"), (ROUTE_CONFIGURATION, "r=old")]);
    let with_e = |peer: &Peer, routes: &str| {
        let mut builder = peer.session.snapshot().successor();
        builder.insert(eds_cluster("e"));
        builder.insert(resource(ROUTE_CONFIGURATION, routes));
        builder.build()
    };
    peer.publish(with_e(&peer, "r=e"));
    let clusters = peer.poll().expect("the cluster").1;
    // While its answer is awaited, the cluster is withdrawn and published again: the node still lacks the assignment.
    peer.publish_next(&[(CLUSTER, "old=1"), (ROUTE_CONFIGURATION, "r=older")]);
    peer.publish(with_e(&peer, "r=e2"));
    peer.delta_answer(CLUSTER, &clusters, None);
    peer.expect_silence();
    assert_eq!(peer.session.progress(), Progress::Adding, "nobody asked for the assignment yet");
    peer.delta(CLUSTER_LOAD_ASSIGNMENT, &["e"], &[]);
    let assignments = peer.poll().expect("the empty assignment").1;
    peer.delta_answer(CLUSTER_LOAD_ASSIGNMENT, &assignments, None);
    peer.expect("RouteConfiguration r=e2");
}

#[test]
fn a_refused_cluster_ends_the_change_before_routes_lead_to_it() {
    let mut peer = synced(&[(CLUSTER, "old=1"), (ROUTE_CONFIGURATION, "r=old")]);
    peer.publish_next(&[(CLUSTER, "new=bad"), (ROUTE_CONFIGURATION, "r=new")]);
    let nonce = peer.expect("Cluster new=bad");
    peer.delta_answer(CLUSTER, &nonce, Some("no"));
    peer.expect_silence_at(10 * LATE);
    assert!(matches!(peer.session.progress(), Progress::Halted { reason, .. } if &*reason == "no"));
    // Another change with the same cluster: still nothing leads to it.
    peer.publish_next(&[(CLUSTER, "new=bad"), (ROUTE_CONFIGURATION, "r=newer")]);
    peer.expect_silence_at(20 * LATE);
    // Mended: all of it goes through.
    peer.publish_next(&[(CLUSTER, "new=2"), (ROUTE_CONFIGURATION, "r=newer")]);
    let nonce = peer.expect_at(20 * LATE, "Cluster new=2");
    peer.delta_answer(CLUSTER, &nonce, None);
    peer.expect_at(20 * LATE, "RouteConfiguration r=newer");
}

#[test]
fn refused_routes_keep_the_clusters_that_the_accepted_ones_lead_to() {
    let mut peer = synced(&[(CLUSTER, "old=1"), (ROUTE_CONFIGURATION, "r=old")]);
    peer.publish_next(&[(CLUSTER, "new=1"), (ROUTE_CONFIGURATION, "r=bad")]);
    let nonce = peer.expect("Cluster new=1");
    peer.delta_answer(CLUSTER, &nonce, None);
    let nonce = peer.expect("RouteConfiguration r=bad");
    peer.delta_answer(ROUTE_CONFIGURATION, &nonce, Some("no"));
    peer.expect_silence_at(10 * LATE);
    // A later change does not take the old cluster either while the old routes are in use.
    peer.publish_next(&[(CLUSTER, "new=2"), (ROUTE_CONFIGURATION, "r=bad")]);
    let nonce = peer.expect_at(10 * LATE, "Cluster new=2");
    peer.delta_answer(CLUSTER, &nonce, None);
    peer.expect_silence_at(20 * LATE);
    peer.publish_next(&[(CLUSTER, "new=2"), (ROUTE_CONFIGURATION, "r=good")]);
    let nonce = peer.expect_at(20 * LATE, "RouteConfiguration r=good");
    peer.delta_answer(ROUTE_CONFIGURATION, &nonce, None);
    peer.expect_silence_at(20 * LATE);
    peer.expect_at(20 * LATE + REMOVAL, "Cluster -old");
}

#[test]
fn a_change_does_not_wait_for_ever() {
    let mut peer = synced(&[(CLUSTER, "old=1"), (ROUTE_CONFIGURATION, "r=old")]);
    peer.publish_next(&[(CLUSTER, "new=1"), (ROUTE_CONFIGURATION, "r=new")]);
    let clusters = peer.expect("Cluster new=1");
    assert_eq!(peer.session.poll_timeout(peer.stream), Some(LATE));
    peer.expect_at(LATE, "RouteConfiguration r=new");
    peer.expect_silence_at(2 * LATE);
    assert_eq!(peer.session.progress(), Progress::Settled, "the removal waits only for the answer about the clusters");
    peer.delta_answer(CLUSTER, &clusters, None);
    peer.expect_at(2 * LATE, "Cluster -old");
}

#[test]
fn a_change_in_the_middle_of_another_starts_over_and_keeps_what_is_in_use() {
    let mut peer = synced(&[(CLUSTER, "one=1"), (ROUTE_CONFIGURATION, "r=one")]);
    peer.publish_next(&[(CLUSTER, "two=1"), (ROUTE_CONFIGURATION, "r=two")]);
    let nonce = peer.expect("Cluster two=1");
    peer.publish_next(&[(CLUSTER, "three=1"), (ROUTE_CONFIGURATION, "r=three")]);
    peer.delta_answer(CLUSTER, &nonce, None);
    let nonce = peer.expect("Cluster three=1");
    peer.delta_answer(CLUSTER, &nonce, None);
    let nonce = peer.expect("RouteConfiguration r=three");
    peer.delta_answer(ROUTE_CONFIGURATION, &nonce, None);
    peer.expect_silence();
    peer.expect_at(REMOVAL, "Cluster -one -two");
}

#[test]
fn listeners_are_swapped_in_one_response_and_routes_are_kept_meanwhile() {
    let mut peer = synced(&[(LISTENER, "a=1"), (ROUTE_CONFIGURATION, "r=1")]);
    peer.publish_next(&[(LISTENER, "b=1"), (ROUTE_CONFIGURATION, "s=1")]);
    // Two listeners of one address never meet.
    let listeners = peer.expect("Listener b=1 -a");
    let routes = peer.expect("RouteConfiguration s=1");
    peer.delta_answer(LISTENER, &listeners, None);
    peer.delta_answer(ROUTE_CONFIGURATION, &routes, None);
    peer.expect_silence();
    peer.expect_at(REMOVAL, "RouteConfiguration -r");
}

/// A node that this session has never seen, and that comes with what was served before: `old`, and routes that lead there.
fn stranger() -> Peer {
    let mut peer =
        Peer::new(Variant::Delta, snapshot(&[(CLUSTER, "new=1"), (LISTENER, "l=1"), (ROUTE_CONFIGURATION, "r=new")]));
    peer.delta_with(CLUSTER, &["*"], &[("old", &version_of(CLUSTER, "old=1"))]);
    let nonce = peer.expect("Cluster new=1");
    peer.delta_answer(CLUSTER, &nonce, None);
    peer.expect_silence();
    assert_eq!(peer.session.progress(), Progress::Switching);
    peer
}

impl Peer {
    /// The stranger asks for its listener, which is as it was, and for its routes, which lead elsewhere now.
    fn ask_for_what_refers(&mut self, now: Duration) -> String {
        self.delta_with(LISTENER, &["*"], &[("l", &version_of(LISTENER, "l=1"))]);
        let listeners = self.expect_at(now, "Listener");
        self.delta_answer(LISTENER, &listeners, None);
        self.expect_silence_at(now + 2 * REMOVAL);
        self.delta_with(ROUTE_CONFIGURATION, &["r"], &[("r", &version_of(ROUTE_CONFIGURATION, "r=old"))]);
        self.expect_at(now + 2 * REMOVAL, "RouteConfiguration r=new")
    }
}

#[test]
fn what_a_stranger_holds_is_removed_after_its_routes_lead_elsewhere() {
    let mut peer = stranger();
    let second = Duration::from_secs(1);
    // Its other subscriptions come when they come.
    peer.expect_silence_at(second);
    let routes = peer.ask_for_what_refers(second);
    peer.expect_silence_at(2 * second);
    peer.delta_answer(ROUTE_CONFIGURATION, &routes, None);
    peer.expect_silence_at(2 * second);
    assert_eq!(peer.session.poll_timeout(peer.stream), Some(2 * second + REMOVAL), "the removal has its delay");
    let nonce = peer.expect_at(2 * second + REMOVAL, "Cluster -old");
    assert_eq!(peer.session.progress(), Progress::Settled);
    peer.delta_answer(CLUSTER, &nonce, None);
    peer.expect_silence_at(3 * second);
    assert_eq!(peer.session.poll_timeout(peer.stream), None);
}

#[test]
fn what_a_stranger_holds_is_removed_at_last_though_it_asks_for_nothing_else() {
    let mut peer = stranger();
    assert_eq!(peer.session.poll_timeout(peer.stream), Some(LATE));
    peer.expect_silence_at(LATE - REMOVAL);
    peer.expect_at(LATE, "Cluster -old");
}

#[test]
fn a_stranger_that_refuses_its_new_routes_keeps_what_the_old_ones_lead_to() {
    let mut peer = stranger();
    let nonce = peer.ask_for_what_refers(Duration::ZERO);
    peer.delta_answer(ROUTE_CONFIGURATION, &nonce, Some("no"));
    peer.expect_silence_at(10 * LATE);
    assert!(matches!(peer.session.progress(), Progress::Halted { .. }), "{:?}", peer.session.progress());
    peer.publish_next(&[(CLUSTER, "new=1"), (LISTENER, "l=1"), (ROUTE_CONFIGURATION, "r=newer")]);
    let nonce = peer.expect_at(10 * LATE, "RouteConfiguration r=newer");
    peer.delta_answer(ROUTE_CONFIGURATION, &nonce, None);
    peer.expect_silence_at(10 * LATE);
    peer.expect_at(10 * LATE + REMOVAL, "Cluster -old");
}

#[test]
fn a_stranger_keeps_what_its_own_routes_lead_to_also_when_others_come_between_those_that_it_refuses() {
    let mut peer = stranger();
    let nonce = peer.ask_for_what_refers(Duration::ZERO);
    peer.delta_answer(ROUTE_CONFIGURATION, &nonce, Some("no"));
    for routes in ["r=newer", "r=new"] {
        peer.publish_next(&[(CLUSTER, "new=1"), (LISTENER, "l=1"), (ROUTE_CONFIGURATION, routes)]);
    }
    peer.expect_silence_at(10 * LATE);
    assert!(matches!(peer.session.progress(), Progress::Halted { .. }), "{:?}", peer.session.progress());
}

#[test]
fn a_change_while_a_stranger_is_waited_for_goes_through_and_takes_the_old_with_it() {
    let mut peer = stranger();
    let nonce = peer.ask_for_what_refers(Duration::ZERO);
    peer.publish_next(&[(CLUSTER, "newest=1"), (LISTENER, "l=1"), (ROUTE_CONFIGURATION, "r=newest")]);
    peer.delta_answer(ROUTE_CONFIGURATION, &nonce, None);
    let nonce = peer.expect("Cluster newest=1");
    peer.delta_answer(CLUSTER, &nonce, None);
    let nonce = peer.expect("RouteConfiguration r=newest");
    peer.delta_answer(ROUTE_CONFIGURATION, &nonce, None);
    peer.expect_silence();
    peer.expect_at(REMOVAL, "Cluster -new -old");
}

/// All that a stranger asks for at once, what refers to others first.
fn ask_for_all(peer: &mut Peer, clusters: &str, routes: &str) {
    peer.delta_with(ROUTE_CONFIGURATION, &["r"], &[("r", &version_of(ROUTE_CONFIGURATION, routes))]);
    peer.delta_with(LISTENER, &["*"], &[("l", &version_of(LISTENER, "l=1"))]);
    let name = clusters.split_once('=').unwrap().0;
    peer.delta_with(CLUSTER, &["*"], &[(name, &version_of(CLUSTER, clusters))]);
}

#[test]
fn what_is_new_to_a_stranger_comes_before_what_refers_to_it() {
    let mut peer =
        Peer::new(Variant::Delta, snapshot(&[(CLUSTER, "new=1"), (LISTENER, "l=1"), (ROUTE_CONFIGURATION, "r=new")]));
    ask_for_all(&mut peer, "old=1", "r=old");
    let clusters = peer.expect("Cluster new=1");
    peer.expect_silence();
    peer.delta_answer(CLUSTER, &clusters, None);
    let listeners = peer.expect("Listener");
    let routes = peer.expect("RouteConfiguration r=new");
    peer.delta_answer(LISTENER, &listeners, None);
    peer.delta_answer(ROUTE_CONFIGURATION, &routes, None);
    peer.expect_silence();
    peer.expect_at(REMOVAL, "Cluster -old");
}

#[test]
fn a_stranger_asks_for_the_assignments_of_new_clusters_before_its_routes_lead_there() {
    let mut builder = Snapshot::builder();
    builder.insert(eds_cluster("new"));
    builder.insert(resource(CLUSTER_LOAD_ASSIGNMENT, "new=1"));
    builder.insert(resource(ROUTE_CONFIGURATION, "r=new"));
    let mut peer = Peer::new(Variant::Delta, builder.build());
    ask_for_all(&mut peer, "old=1", "r=old");
    let clusters = peer.expect("Cluster new=");
    // On a stream of its own the request for the assignments may come later.
    peer.delta_answer(CLUSTER, &clusters, None);
    peer.expect_silence();
    peer.delta(CLUSTER_LOAD_ASSIGNMENT, &["new"], &[]);
    let assignments = peer.expect("ClusterLoadAssignment new=1");
    peer.expect_silence();
    peer.delta_answer(CLUSTER_LOAD_ASSIGNMENT, &assignments, None);
    peer.expect("Listener -l");
    peer.expect("RouteConfiguration r=new");
}

#[test]
fn a_stranger_that_refuses_a_new_cluster_keeps_its_routes() {
    let mut peer =
        Peer::new(Variant::Delta, snapshot(&[(CLUSTER, "new=1"), (LISTENER, "l=1"), (ROUTE_CONFIGURATION, "r=new")]));
    ask_for_all(&mut peer, "old=1", "r=old");
    let clusters = peer.expect("Cluster new=1");
    peer.delta_answer(CLUSTER, &clusters, Some("no"));
    peer.expect_silence_at(10 * LATE);
    assert!(matches!(peer.session.progress(), Progress::Halted { .. }), "{:?}", peer.session.progress());
    peer.publish_next(&[(CLUSTER, "newer=1"), (LISTENER, "l=1"), (ROUTE_CONFIGURATION, "r=newer")]);
    let clusters = peer.expect("Cluster newer=1");
    peer.expect_silence();
    peer.delta_answer(CLUSTER, &clusters, None);
    peer.expect("Listener");
    peer.expect("RouteConfiguration r=newer");
}

#[test]
fn a_stranger_that_does_not_answer_for_clusters_is_waited_for_so_long() {
    let mut peer =
        Peer::new(Variant::Delta, snapshot(&[(CLUSTER, "new=1"), (LISTENER, "l=1"), (ROUTE_CONFIGURATION, "r=new")]));
    peer.delta_with(ROUTE_CONFIGURATION, &["r"], &[("r", &version_of(ROUTE_CONFIGURATION, "r=old"))]);
    peer.expect_silence_at(LATE - REMOVAL);
    assert_eq!(peer.session.poll_timeout(peer.stream), Some(LATE));
    peer.expect_at(LATE, "RouteConfiguration r=new");
}

#[test]
fn types_that_refer_to_nothing_known_do_not_wait_for_a_strangers_clusters() {
    const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
    let mut peer = Peer::new(Variant::Delta, snapshot(&[(CLUSTER, "new=1"), (ADDRESS, "a=2")]));
    peer.delta_with(ADDRESS, &["*"], &[("a", &version_of(ADDRESS, "a=1"))]);
    peer.expect("Address a=2");
}

#[test]
fn a_stranger_that_holds_what_there_is_waits_for_its_own_answers_and_for_nothing_else() {
    let same = [(CLUSTER, "c=1"), (LISTENER, "l=1"), (ROUTE_CONFIGURATION, "r=c")];
    let mut peer = Peer::new(Variant::Delta, snapshot(&same));
    ask_for_all(&mut peer, "c=1", "r=c");
    for (of, seen) in [(CLUSTER, "Cluster"), (LISTENER, "Listener"), (ROUTE_CONFIGURATION, "RouteConfiguration")] {
        let nonce = peer.expect(seen);
        peer.delta_answer(of, &nonce, None);
    }
    peer.expect_silence();
    peer.expect_silence_at(REMOVAL);
    assert_eq!(peer.session.progress(), Progress::Settled);
    assert_eq!(peer.session.poll_timeout(peer.stream), None);
}

#[test]
fn nodes_on_the_same_way_share_its_snapshots() {
    let start = Arc::new(snapshot(&[(CLUSTER, "old=1"), (ROUTE_CONFIGURATION, "r=old")]));
    let mut builder = start.successor();
    builder.insert(resource(CLUSTER, "new=1"));
    builder.insert(resource(ROUTE_CONFIGURATION, "r=new"));
    let end = builder.build();
    assert!(Arc::ptr_eq(&end.bridge_from(&start), &end.bridge_from(&start)));
    let reached = &end.bridge_from(&start).reached;
    assert_eq!(reached.version(), end.version(), "the way leads where it should");
    let before = end.bridge_from(&start).switched.of_type(CLUSTER).unwrap().clone();
    let changed = reached.of_type(CLUSTER).unwrap().changed_since(&before);
    assert_eq!(changed.map(|names| names.len()), Some(1), "each step knows what it changes");
}

#[test]
fn a_change_of_clusters_alone_has_no_steps() {
    let mut peer = synced(&[(CLUSTER, "a=1"), (CLUSTER, "b=1"), (ROUTE_CONFIGURATION, "r=1")]);
    peer.publish_next(&[(CLUSTER, "b=2"), (ROUTE_CONFIGURATION, "r=1")]);
    peer.expect("Cluster b=2 -a");
}
