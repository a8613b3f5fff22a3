//! Deletions that are not believed at once.

use super::*;

/// A response of listeners on a new stream.
fn reconnect(world: &mut World, listeners: &[&str], removed: &[&str], whole: bool) {
    let batch = Batch {
        kind: Kind::Listener,
        resources: listeners.iter().map(|name| judged(Kind::Listener, &listener(name, "r"))).collect(),
        removed: removed.iter().map(|name| Name::from(*name)).collect(),
        aliases: Vec::new(),
        malformed: Vec::new(),
        whole,
        first: true,
    };
    world.stage.receive(batch, world.now);
}

fn with_three_listeners(percent: u8) -> World {
    let mut world = World::new();
    world.stage.guard.percent = percent;
    world.receive(Kind::Listener, &["a", "b", "c"].map(|name| listener(name, "r")).each_ref().map(String::as_str));
    world.receive(Kind::Routes, &[&routes("r", "x")]);
    assert_eq!(world.publish(), "+Routes r +Listener a +Listener b +Listener c");
    world
}

#[test]
fn a_control_plane_that_comes_back_empty_is_not_believed_at_once() {
    for whole in [true, false] {
        let mut world = with_three_listeners(100);
        reconnect(&mut world, &[], &["a", "b", "c"], whole);
        assert_eq!((world.publish().as_str(), world.stage.held_deletions()), ("", 3), "held back");
        assert_eq!(world.stage.next_look(world.now), Some(world.now + Duration::from_secs(60)));
        world.pass(59);
        assert_eq!(world.publish(), "");
        // One of them comes again: its deletion is forgotten.
        world.receive(Kind::Listener, &[&listener("b", "r")]);
        world.pass(1);
        assert_eq!(world.publish(), "-Listener a -Listener c");
        assert_eq!(world.stage.held_deletions(), 0);
        // On the same stream a deletion is a deletion.
        world.pass(60);
        world.receive_batch(Kind::Listener, &[], &["b"], whole);
        assert_eq!(world.publish_all(), "-Listener b | -Routes r");
    }
}

#[test]
fn deletions_are_held_back_only_when_too_little_would_be_left() {
    for (percent, sent, removed, held) in [
        (100, &["a"][..], &["b", "c"][..], 0),
        (100, &["new"], &["a", "b", "c"], 0),
        (66, &["a"], &["b", "c"], 2),
        (67, &["a"], &["b", "c"], 0),
        (1, &["a", "b"], &["c"], 1),
        (1, &["a", "b", "c"], &[], 0),
    ] {
        let mut world = with_three_listeners(percent);
        reconnect(&mut world, sent, removed, true);
        assert_eq!(world.stage.held_deletions(), held, "{percent} %: {sent:?} sent, {removed:?} removed");
    }
    let mut world = with_three_listeners(100);
    world.stage.guard.hold = Duration::ZERO;
    reconnect(&mut world, &[], &["a", "b", "c"], true);
    assert_eq!(world.publish_all(), "-Listener a -Listener b -Listener c | -Routes r", "without a guard");
}

#[test]
fn a_delta_server_cannot_empty_everything_piece_by_piece_either() {
    let mut world = with_three_listeners(100);
    reconnect(&mut world, &[], &["a"], false);
    assert_eq!(world.publish(), "-Listener a");
    world.receive_batch(Kind::Listener, &[], &["b", "c"], false);
    assert_eq!((world.publish().as_str(), world.stage.held_deletions()), ("", 2), "the rest is held back");
}

/// What has come on the stream, for the first time or again, is not what the control plane may have lost.
#[test]
fn what_a_stream_has_brought_it_may_take_away_at_once() {
    let mut world = World::new();
    reconnect(&mut world, &["a"], &[], false);
    world.receive(Kind::Routes, &[&routes("r", "x")]);
    assert_eq!(world.publish(), "+Routes r +Listener a");
    world.receive_batch(Kind::Listener, &[], &["a"], false);
    assert_eq!(world.publish_all(), "-Listener a | -Routes r", "it came on this stream");
    let mut world = with_three_listeners(100);
    reconnect(&mut world, &["a", "b"], &[], false);
    world.receive_batch(Kind::Listener, &[], &["a", "b", "c"], false);
    assert_eq!(world.stage.held_deletions(), 1, "c was never heard of again");
    assert_eq!(world.publish(), "-Listener a -Listener b");
}

#[test]
fn the_first_live_response_after_a_start_from_the_cache_is_guarded_too() {
    for whole in [true, false] {
        let mut world = World::new();
        let cached = [judged(Kind::Listener, &listener("l", "r")), judged(Kind::Routes, &routes("r", "c"))];
        world.stage.load_cached(cached.into());
        assert_eq!(world.publish(), "+Routes r +Listener l");
        reconnect(&mut world, &[], &[], whole);
        world.pass(59);
        assert_eq!(world.publish(), "");
        world.pass(1);
        assert_eq!(world.publish_all(), "-Listener l | -Routes r");
    }
}
