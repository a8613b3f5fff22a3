use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_drain_ends_when_the_last_blocker_is_dropped() {
    let (trigger, watch) = channel();
    let blocker = watch.block();
    let work = tokio::spawn({
        let watch = watch.clone();
        async move {
            watch.draining().await;
            tokio::time::sleep(SECOND).await;
            drop(blocker);
        }
    });
    assert!(!watch.is_draining(), "no drain has started");
    trigger.start(30 * SECOND);
    let begun = Instant::now();
    assert_eq!(trigger.drained().await, Drained::Idle, "the work ended within the deadline");
    assert_eq!(begun.elapsed(), SECOND, "the drain lasts as long as the work");
    work.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_drain_gives_up_at_its_deadline_which_a_second_start_brings_forward() {
    let (trigger, watch) = channel();
    let _blocker = watch.block();
    trigger.start(30 * SECOND);
    let begun = Instant::now();
    let expired = tokio::spawn(async move { watch.expired().await });
    let (outcome, ()) = tokio::join!(trigger.drained(), async {
        tokio::time::sleep(SECOND).await;
        trigger.start(Duration::ZERO);
        trigger.start(60 * SECOND);
    });
    assert_eq!(outcome, Drained::DeadlinePassed(1), "one blocker is left");
    assert_eq!(begun.elapsed(), SECOND, "the deadline was brought forward to one second");
    expired.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn children_drain_with_the_parent_and_block_it() {
    let (trigger, watch) = channel();
    let (child_trigger, child) = watch.child();
    let (_, grandchild) = child.child();
    let (_, sibling) = watch.child();
    let blocker = grandchild.block();
    assert_eq!(trigger.blockers(), 1, "a grandchild's blocker counts at the top");

    child_trigger.start(SECOND);
    grandchild.draining().await;
    assert!(!watch.is_draining() && !sibling.is_draining(), "a child's drain stays below it");

    trigger.start(SECOND);
    sibling.draining().await;
    let (_, late) = watch.child();
    assert!(late.is_draining(), "a child that is made during a drain drains at once");
    drop(blocker);
    assert_eq!(trigger.drained().await, Drained::Idle, "nothing is left");
}

#[tokio::test]
async fn a_wait_that_is_dropped_leaves_nothing_behind() {
    let (_trigger, watch) = channel();
    for _ in 0..100 {
        let mut draining = watch.draining();
        let polled = futures_poll(&mut draining).await;
        assert!(polled.is_pending(), "no drain has started");
    }
    assert_eq!(watch.node.wakers.lock().len(), 0, "wakers of dropped waits are removed");
}

async fn futures_poll(draining: &mut Draining) -> Poll<()> {
    std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *draining).poll(cx))).await
}
