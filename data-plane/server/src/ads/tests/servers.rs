//! Several servers in order of preference (gRFC A71).

use super::*;

/// A port on which nobody listens for now.
async fn free_port() -> u16 {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn another_server_is_asked_while_something_is_lacking_and_the_first_one_when_it_answers_again() {
    for delta in [false, true] {
        let (first, second) = (ControlPlane::new(), ControlPlane::new());
        first.publish(&[("a", 2), ("b", 1)]);
        second.publish(&[("a", 1), ("only-here", 1)]);
        let port = free_port().await;
        let data = DataPlane::under(&[port, second.serve().await], delta, None).await;
        eventually("+a +only-here".to_owned(), || data.applied()).await;
        assert_eq!(data.metric("control_plane.fallback_active"), "1", "the first server is away");

        let (_, serving) = first.serve_at(port).await;
        eventually("0".to_owned(), || data.metric("control_plane.fallback_active")).await;
        // Whatever version it has from the second server, it takes what the first one has.
        eventually("+a +only-here +a +b -only-here".to_owned(), || data.applied()).await;
        eventually("1".to_owned(), || data.metric("control_plane.connected_state")).await;

        serving.abort();
        first.hang_up.notify_one();
        eventually("0".to_owned(), || data.metric("control_plane.connected_state")).await;
        let failures = || data.metric("cluster_manager.cds.update_failure").parse::<u64>().unwrap();
        let before = failures();
        eventually(true, || failures() >= before + 2).await;
        assert_eq!(
            data.metric("control_plane.fallback_active"),
            "0",
            "nothing is lacking: the first one is waited for"
        );
        assert_eq!(data.applied(), "+a +only-here +a +b -only-here", "what is in force stays");
    }
}

#[tokio::test]
async fn what_a_cache_has_is_not_lacking() {
    let dir = tempfile::tempdir().unwrap();
    let control = ControlPlane::new();
    control.publish(&[("a", 1)]);
    let (port, serving) = control.serve_at(0).await;
    let data = DataPlane::start(port, true, Some(dir.path().to_owned())).await;
    eventually("+a".to_owned(), || data.applied()).await;
    eventually(true, || kept_in(dir.path())).await;
    let copy = tempfile::tempdir().unwrap();
    copy_all(dir.path(), copy.path());
    serving.abort();
    let second = ControlPlane::new();
    second.publish(&[("b", 1)]);
    let cold = DataPlane::under(&[free_port().await, second.serve().await], true, Some(copy.path().to_owned())).await;
    eventually(true, || cold.metric("cluster_manager.cds.update_failure").parse::<u64>().unwrap() >= 2).await;
    assert_eq!((cold.applied(), cold.metric("control_plane.fallback_active")), ("+a".to_owned(), "0".to_owned()));
}
