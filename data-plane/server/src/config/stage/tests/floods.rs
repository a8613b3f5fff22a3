//! Much of the same.

use super::*;

#[test]
fn the_same_content_again_changes_nothing_however_often_it_comes() {
    let mut world = World::new();
    world.receive(Kind::Cluster, &[&eds("c")]);
    world.receive(Kind::Endpoints, &[&assignment("c", 1)]);
    assert_eq!(world.publish(), "+Cluster c +Endpoints c");
    let referred = world.stage.referred();
    for _ in 0..1000 {
        world.receive(Kind::Cluster, &[&eds("c")]);
        world.receive(Kind::Endpoints, &[&assignment("c", 1)]);
        let publication = world.stage.publish(world.now);
        assert_eq!((publication.steps.len(), publication.confirmed.len()), (0, 2));
    }
    assert_eq!(world.stage.referred(), referred, "and nobody has to look what to subscribe to");
}

#[test]
fn all_updates_of_a_cluster_since_the_last_push_are_one_change() {
    let mut world = World::new();
    for port in 1..=100 {
        world.receive(Kind::Cluster, &[&eds("c").replace("1s", &format!("{port}s"))]);
        world.receive(Kind::Endpoints, &[&assignment("c", port)]);
    }
    assert_eq!(world.publish(), "+Cluster c +Endpoints c");
}

#[test]
fn a_push_looks_at_what_changes_and_not_at_what_there_is() {
    let mut world = World::new();
    let names: Vec<String> = (0..200).map(|index| format!("c{index}")).collect();
    let clusters: Vec<String> = names.iter().map(|name| eds(name)).collect();
    let assignments: Vec<String> = names.iter().map(|name| assignment(name, 1)).collect();
    world.receive(Kind::Cluster, &clusters.iter().map(String::as_str).collect::<Vec<_>>());
    world.receive(Kind::Endpoints, &assignments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(world.publish().split(' ').count(), 800);
    assert_eq!(world.stage.busy.len(), 0, "everything is in force");
    let referred = world.stage.referred();
    world.receive_batch(Kind::Cluster, &[&eds("c7").replace("1s", "2s")], &[], false);
    assert_eq!((world.stage.busy.len(), world.publish()), (1, "+Cluster c7".to_owned()));
    assert_eq!((world.stage.busy.len(), world.stage.referred()), (0, referred), "the same is referred to");
}
