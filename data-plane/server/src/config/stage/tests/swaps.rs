//! Clusters and routes that change while requests go through them.

use super::*;

#[test]
fn a_swap_of_clusters_adds_before_it_removes_whatever_order_it_arrives_in() {
    let mut world = World::new();
    world.receive(Kind::Cluster, &[&eds("old")]);
    world.receive(Kind::Endpoints, &[&assignment("old", 1)]);
    world.receive(Kind::Listener, &[&listener("l", "r")]);
    world.receive(Kind::Routes, &[&routes("r", "old")]);
    assert_eq!(world.publish(), "+Cluster old +Endpoints old +Routes r +Listener l");
    // Clusters come first and lack the old one, to which routes in force still lead.
    world.receive_batch(Kind::Cluster, &[&eds("new")], &["old"], true);
    assert_eq!(world.publish(), "", "the old cluster serves, the new one warms");
    world.receive(Kind::Routes, &[&routes("r", "new")]);
    assert_eq!(world.publish(), "", "the new routes wait for the new cluster");
    assert_eq!(world.interest(Kind::Endpoints), ["new", "old"]);
    world.receive(Kind::Endpoints, &[&assignment("new", 2)]);
    assert_eq!(world.publish(), "+Cluster new +Endpoints new +Routes r");
    assert_eq!(world.interest(Kind::Endpoints), ["new", "old"], "requests that found the old routes are under way");
    assert_eq!(world.stage.next_look(world.now), Some(world.now + Duration::from_secs(1)));
    assert_eq!(world.publish_all(), " | -Cluster old | -Endpoints old");
    assert_eq!(world.interest(Kind::Endpoints), ["new"]);
}

#[test]
fn a_cluster_that_routes_left_before_it_is_removed_outlives_the_requests_that_found_it() {
    let mut world = World::new();
    world.receive(Kind::Cluster, &[&eds("old"), &eds("new")]);
    world.receive(Kind::Endpoints, &[&assignment("old", 1), &assignment("new", 2)]);
    world.receive(Kind::Listener, &[&listener("l", "r")]);
    world.receive(Kind::Routes, &[&routes("r", "old")]);
    world.publish();
    world.receive(Kind::Routes, &[&routes("r", "new")]);
    assert_eq!(world.publish(), "+Routes r");
    world.receive_batch(Kind::Cluster, &[], &["old"], true);
    assert_eq!(world.publish_all(), " | -Cluster old | -Endpoints old");
}

#[test]
fn routes_that_come_before_their_cluster_wait_for_it_while_others_serve() {
    let mut world = World::new();
    world.receive(Kind::Cluster, &[&eds("old")]);
    world.receive(Kind::Endpoints, &[&assignment("old", 1)]);
    world.receive(Kind::Listener, &[&listener("l", "r")]);
    world.receive(Kind::Routes, &[&routes("r", "old")]);
    world.publish();
    world.receive(Kind::Routes, &[&routes("r", "new")]);
    assert_eq!((world.publish(), world.waits()), (String::new(), "Routes r: Cluster new".into()));
    world.receive_batch(Kind::Cluster, &[&eds("new")], &["old"], true);
    assert_eq!(world.publish(), "");
    world.pass(14);
    assert_eq!(world.publish(), "", "it is announced, and warms as long as any");
    world.receive(Kind::Endpoints, &[&assignment("new", 2)]);
    assert_eq!(world.publish(), "+Cluster new +Endpoints new +Routes r");

    world.receive(Kind::Routes, &[&routes("r", "never")]);
    assert_eq!(world.publish(), "");
    world.pass(1);
    world.receive(Kind::Routes, &[&routes("r", "never").replace("name: h", "name: i")]);
    assert_eq!(
        world.stage.next_look(world.now),
        Some(world.now + Duration::from_secs(1)),
        "no change prolongs the wait"
    );
    world.pass(1);
    assert!(world.publish().contains("+Routes r"), "nobody announced it: the control plane's routes count");
}

#[test]
fn what_is_referred_to_again_before_its_subscription_ended_is_still_there() {
    let mut world = World::new();
    world.receive(Kind::Cluster, &[&eds("c")]);
    world.receive(Kind::Endpoints, &[&assignment("c", 1)]);
    world.publish();
    world.receive_batch(Kind::Cluster, &[], &["c"], true);
    assert_eq!(world.publish(), "");
    world.pass(1);
    assert_eq!(world.publish(), "-Cluster c");
    // The control plane has not heard that its assignment is not wanted, and would not send it again.
    world.receive(Kind::Cluster, &[&eds("c")]);
    assert_eq!(world.publish(), "+Cluster c");
}

#[test]
fn what_comes_back_while_its_removal_is_applied_is_put_in_force_again() {
    let mut world = World::new();
    world.receive(Kind::Cluster, &[&eds("c")]);
    world.receive(Kind::Endpoints, &[&assignment("c", 1)]);
    world.publish();
    world.receive_batch(Kind::Cluster, &[], &["c"], true);
    world.pass(1);
    let publication = world.stage.publish(world.now);
    assert_eq!(publication.steps.len(), 1, "its removal");
    world.receive(Kind::Cluster, &[&eds("c")]);
    world.stage.applied(&publication.steps[0], Went::Well, world.now);
    assert_eq!(world.publish(), "+Cluster c");
}

#[test]
fn a_removed_cluster_that_routes_never_leave_goes_in_the_end() {
    let mut world = World::new();
    world.receive(Kind::Cluster, &[&eds("c")]);
    world.receive(Kind::Endpoints, &[&assignment("c", 1)]);
    world.receive(Kind::Listener, &[&listener("l", "r")]);
    world.receive(Kind::Routes, &[&routes("r", "c")]);
    world.publish();
    world.receive_batch(Kind::Cluster, &[], &["c"], true);
    assert_eq!(world.publish(), "");
    assert_eq!(world.stage.next_look(world.now), Some(world.now + Duration::from_secs(1)));
    world.pass(14);
    assert_eq!(world.publish(), "");
    world.pass(1);
    assert_eq!(world.publish_all(), "-Cluster c | -Endpoints c");
}

#[test]
fn routes_that_want_their_clusters_checked_do_not_fit_without_them() {
    let mut world = World::new();
    let checked = format!("{}\nvalidate_clusters: true", routes("r", "c"));
    let misfit =
        |world: &World, text: &str| world.stage.misfit(&judged(Kind::Routes, text).verdict.unwrap(), &mut None);
    assert_eq!(misfit(&world, &routes("r", "c")), None, "unless it is asked for, a cluster may come later");
    let reason = misfit(&world, &checked).expect("there is no cluster");
    assert!(reason.contains("no cluster is named c"), "{reason}");
    world.receive(Kind::Cluster, &[&eds("c")]);
    assert_eq!(misfit(&world, &checked), None, "a cluster that warms is there");
    world.receive_batch(Kind::Cluster, &[], &["c"], false);
    assert!(misfit(&world, &checked).is_some(), "one that leaves is not");
}
