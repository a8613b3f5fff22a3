//! What versions and nonces say, and what they do not.

use super::*;

#[test]
fn another_server_is_told_what_is_held_and_not_in_which_version() {
    let mut client = client(Variant::Delta);
    client.watch(CLUSTER, Interest::everything());
    next_delta(&mut client);
    let _ack = client.on_delta_response(delta(CLUSTER, "1", &[("a", "v1")], &[])).unwrap().ack();
    client.on_disconnected();
    client.forget_versions();
    client.on_connected();
    let held = next_delta(&mut client).initial_resource_versions;
    assert_eq!(held.into_iter().collect::<Vec<_>>(), [("a".to_owned(), String::new())]);
    let mut client = self::client(Variant::Sotw);
    client.watch(CLUSTER, Interest::everything());
    next_sotw(&mut client);
    let _ack = client.on_response(sotw(CLUSTER, "v1", "1", vec![any(CLUSTER, "a")])).unwrap().ack();
    client.on_disconnected();
    client.forget_versions();
    client.on_connected();
    assert_eq!(next_sotw(&mut client).version_info, "");
    let update = client.on_response(sotw(CLUSTER, "other", "1", vec![])).unwrap();
    assert_eq!(listed(update.removed()), ["a"], "what the other server does not have goes");
    let _ack = update.ack();
}

#[test]
fn versions_are_names_and_an_answer_carries_the_nonce_that_came() {
    let mut client = client(Variant::Sotw);
    client.watch(CLUSTER, Interest::everything());
    next_sotw(&mut client);
    // Back to an older version, the same version with something else in it, nonces that repeat.
    for (version, nonce, name) in [("9", "n9", "a"), ("1", "n1", "b"), ("1", "n1", "c"), ("1", "n0", "c")] {
        let update = client.on_response(sotw(CLUSTER, version, nonce, vec![any(CLUSTER, name)])).unwrap();
        let ack = as_sotw(update.ack());
        assert_eq!((&*ack.version_info, &*ack.response_nonce, ack.error_detail), (version, nonce, None));
        let held: Vec<&str> = client.held(CLUSTER).map(|(name, _)| &**name).collect();
        assert_eq!(held, [name], "the content counts");
        assert!(client.poll_request(NOW).is_none(), "one answer, and nothing more");
    }
}

#[test]
fn what_nobody_holds_may_be_removed_and_what_is_added_and_removed_at_once_is_refused() {
    let mut client = client(Variant::Delta);
    client.watch(CLUSTER, Interest::everything());
    next_delta(&mut client);
    let update = client.on_delta_response(delta(CLUSTER, "1", &[("a", "1")], &["never-seen"])).unwrap();
    assert_eq!(as_delta(update.ack()).error_detail, None);
    let update = client.on_delta_response(delta(CLUSTER, "2", &[("a", "2"), ("b", "1")], &["a"])).unwrap();
    let answer = as_delta(update.ack()).error_detail.expect("a is refused");
    assert_eq!(answer.message, "Cluster/a: is added and removed at once");
    assert_eq!(
        client.held(CLUSTER).map(|(name, version)| format!("{name}@{version}")).collect::<Vec<_>>(),
        ["a@1", "b@1"]
    );
}
