//! Responses that are given up, and requests that wait: for a connection, for its agent to come back.

use super::*;

/// A tunnel whose agent the test plays.
async fn scripted(clusters: &Clusters, claim: TunnelClaim) -> (Tunnel, DuplexStream) {
    let lease = clusters.register(claim).await.unwrap();
    let (near, far) = tokio::io::duplex(1 << 20);
    let tunnel = attach(lease, near, spawn_local(async {}));
    eventually("it is attached", || clusters.tunnels().iter().all(|tunnel| tunnel.state == "idle")).await;
    (tunnel, far)
}

/// What the agent reads, up to an empty line.
async fn read_head(far: &mut DuplexStream) -> String {
    use tokio::io::AsyncReadExt;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(far.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_a_short_response_is_read_and_the_tunnel_lives_on() {
    use tokio::io::AsyncWriteExt;
    // What has come of the response when the request is given up, what comes then, and whether that can be waited for.
    let cases: [(&str, &str, bool); 9] = [
        ("", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", true),
        ("HTTP/1.1 200 OK\r\ncontent-le", "ngth: 5\r\n\r\nhello", true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe", "llo", true),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhe", "llo\r\n0\r\n\r\n", true),
        ("HTTP/1.1 103 Early Hints\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 70000\r\n\r\nhe", "", false),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhe", "llo", false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhe", "llo", false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", "", false),
    ];
    for (before, after, lives) in cases {
        on_worker(async {
            let (clusters, pools, slot) = edge();
            let (tunnel, mut far) = scripted(&clusters, claim("edge", "a")).await;
            let mut given_up = checkout(&pools, &slot).await;
            send(&mut given_up, "/given-up").await.unwrap();
            read_head(&mut far).await;
            far.write_all(before.as_bytes()).await.unwrap();
            let reading = receive(&mut given_up);
            assert!(tokio::time::timeout(Duration::from_millis(1), reading).await.is_err(), "{before:?}: not whole");
            let began = tokio::time::Instant::now();
            drop(given_up);
            let next = {
                let (pools, slot) = (Rc::clone(&pools), Arc::clone(&slot));
                spawn_local(async move {
                    Ok::<_, UpstreamFailure>({
                        let mut checkout = pools.checkout(&slot, &any()).await?;
                        get(&mut checkout, "/next").await.unwrap()
                    })
                })
            };
            tokio::task::yield_now().await;
            // The tunnel may be closed already.
            drop(far.write_all(after.as_bytes()).await);
            if lives {
                assert!(read_head(&mut far).await.starts_with("GET /next "), "{before:?}: the next request");
                far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnext").await.unwrap();
                assert_eq!(next.await.unwrap().unwrap(), "200 next", "{before:?}: its own response");
            } else {
                assert_eq!(tunnel.end().await, TunnelEnd::Closed, "{before:?}: cut");
                assert!(began.elapsed() <= Duration::from_secs(1), "{before:?}: after {:?}", began.elapsed());
                assert!(next.await.unwrap().is_err(), "{before:?}: nobody is left");
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_request_that_was_not_sent_whole_ends_its_tunnel() {
    on_worker(async {
        let (clusters, pools, slot) = edge();
        let (tunnel, _far) = scripted(&clusters, claim("edge", "a")).await;
        let mut broken = checkout(&pools, &slot).await;
        let body = culvert_http::BodyKind::Length(10);
        broken.exchange().send_head(&crate::fixture::request("/"), body).await.unwrap();
        drop(broken);
        assert_eq!(tunnel.end().await, TunnelEnd::Closed, "the next request would be its body");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_an_agent_that_is_expected_back() {
    for protocol in [TunnelProtocol::Http1, TunnelProtocol::Http2] {
        on_worker(async {
            let (clusters, pools, slot) = edge();
            let window = TunnelClaim { protocol, reconnect_window: Duration::from_secs(3), ..claim("edge", "a") };
            let start = |context: PickContext<'static>| {
                let (pools, slot) = (Rc::clone(&pools), Arc::clone(&slot));
                spawn_local(async move {
                    let began = tokio::time::Instant::now();
                    let outcome = match pools.checkout(&slot, &context).await {
                        Ok(mut checkout) => Ok(get(&mut checkout, "/").await.unwrap()),
                        Err(failure) => Err(failure),
                    };
                    (outcome, began.elapsed())
                })
            };
            let tunnel = open(&clusters, window.clone()).await;
            eventually("it is attached", || clusters.tunnels()[0].state != "pending").await;
            tunnel.agent.abort();
            tunnel.end().await;
            let (by_name, unnamed) = (start(agent("a")), start(any()));
            let (unknown, waited) = start(agent("b")).await.unwrap();
            assert_eq!((unknown, waited), (Err(UpstreamFailure::AgentUnknown), Duration::ZERO), "a stranger");
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert!(!by_name.is_finished() && !unnamed.is_finished(), "{protocol:?}: they wait");
            let back = open(&clusters, window).await;
            for request in [by_name, unnamed] {
                let (outcome, waited) = request.await.unwrap();
                assert_eq!(outcome, Ok("200 a /".to_owned()), "{protocol:?}: by the new tunnel");
                assert!(waited < Duration::from_millis(2100), "{protocol:?}: waited {waited:?}");
            }
            assert_eq!(slot.stats().read(ClusterMetric::TunnelParked), 2, "{protocol:?}: parked");
            back.agent.abort();
            back.end().await;
            let (gone, waited) = start(agent("a")).await.unwrap();
            assert_eq!(gone, Err(UpstreamFailure::AgentOffline { seconds: 3 }), "{protocol:?}: it stays away");
            assert!(waited >= Duration::from_secs(3), "{protocol:?}: waited only {waited:?}");
            assert!(!slot.queue().has_waiters(), "{protocol:?}: who gave up leaves the queue");
            let (gone, waited) = start(any()).await.unwrap();
            assert_eq!(gone, Err(UpstreamFailure::NoHealthyHost), "{protocol:?}: after the window");
            assert_eq!(waited, Duration::ZERO, "{protocol:?}: at once");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_successor_has_requests_wait_for_agents_that_it_never_saw() {
    on_worker(async {
        let (clusters, pools, slot) = edge();
        slot.queue().expect(tokio::time::Instant::now() + Duration::from_secs(10));
        let start = |context: PickContext<'static>| {
            let (pools, slot) = (Rc::clone(&pools), Arc::clone(&slot));
            spawn_local(async move {
                match pools.checkout(&slot, &context).await {
                    Ok(mut checkout) => Ok(get(&mut checkout, "/").await.unwrap()),
                    Err(failure) => Err(failure),
                }
            })
        };
        let (by_name, unnamed, nobody) = (start(agent("a")), start(any()), start(agent("bogus")));
        let left = start(agent("left"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!by_name.is_finished() && !unnamed.is_finished() && !nobody.is_finished(), "they wait");
        left.abort();
        let tunnel = open(&clusters, claim("edge", "a")).await;
        for request in [by_name, unnamed] {
            assert_eq!(request.await.unwrap(), Ok("200 a /".to_owned()), "by the agent that has come");
        }
        assert_eq!(nobody.await.unwrap(), Err(UpstreamFailure::AgentUnknown), "it has not come");
        assert!(!slot.queue().has_waiters(), "who gave up, or left, leaves nothing behind");
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(start(agent("bogus")).await.unwrap(), Err(UpstreamFailure::AgentUnknown), "at once");
        tunnel.agent.abort();
        tunnel.end().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_tcp_has_taken_is_missed_when_the_connection_ends() {
    on_worker(async {
        let (clusters, pools, slot) = edge();
        let claim = TunnelClaim { reconnect_window: Duration::from_secs(3), ..claim("edge", "a") };
        let tunnel = Box::pin(open(&clusters, claim.clone())).await;
        eventually("it is attached", || clusters.tunnels()[0].state == "idle").await;
        let taken = pools.checkout_tcp(&slot, &any()).await.unwrap();
        let (other, at) = (Rc::clone(&pools), Arc::clone(&slot));
        let next = spawn_local(async move { other.checkout_tcp(&at, &any()).await.map(drop) });
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(!next.is_finished(), "as for any connection that is in use");
        drop(taken);
        assert_eq!(tunnel.end().await, TunnelEnd::Taken, "it was a host for that long");
        let _again = Box::pin(open(&clusters, claim)).await;
        assert_eq!(next.await.unwrap(), Ok(()), "the agent dialled again");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_slow_leaves_room_in_the_queue_for_others() {
    on_worker(async {
        let (clusters, pools, slot) = edge();
        let mut held = Vec::new();
        let mut tunnels = Vec::new();
        for name in ["slow", "good"] {
            let claim = TunnelClaim { max_queued_requests: 10, ..claim("edge", name) };
            tunnels.push(open(&clusters, claim).await);
            eventually("it is attached", || clusters.tunnels().iter().all(|tunnel| tunnel.state != "pending")).await;
            let context = PickContext { agent: Some(name), ..any() };
            let mut checkout = pools.checkout(&slot, &context).await.unwrap();
            send(&mut checkout, "/").await.unwrap();
            held.push(checkout);
        }
        let wait = |name: &'static str| {
            let (pools, slot) = (Rc::clone(&pools), Arc::clone(&slot));
            spawn_local(async move {
                let context = PickContext { agent: Some(name), ..any() };
                pools.checkout(&slot, &context).await.map(|checkout| checkout.host().hostname().to_string())
            })
        };
        let slow: Vec<_> = (0..20).map(|_| wait("slow")).collect();
        tokio::task::yield_now().await;
        assert_eq!(slow.iter().filter(|task| task.is_finished()).count(), 10, "ten have a place, ten have none");
        let good: Vec<_> = (0..20).map(|_| wait("good")).collect();
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        let waiting = |tasks: &[JoinHandle<_>]| tasks.iter().filter(|task| !task.is_finished()).count();
        assert_eq!((waiting(&slow), waiting(&good)), (5, 5), "half of the places each");
        let mut good_one = held.pop().unwrap();
        receive(&mut good_one).await.unwrap();
        drop(good_one);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(waiting(&good), 0, "all that had a place were served one after the other");
        for task in good.into_iter().take(5) {
            assert_eq!(task.await.unwrap(), Ok("good".to_owned()), "the first ones, by their agent");
        }
        assert_eq!(waiting(&slow), 5, "the slow ones wait on");
    })
    .await;
}
