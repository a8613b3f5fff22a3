//! From the reply to the end.

use tokio::net::{TcpListener, TcpStream};

use super::*;

#[tokio::test(start_paused = true)]
async fn success_means_routable() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            fixture.registry.0.gated.set(true);
            let mut connected = fixture.connect(AGENT);
            connected.send(Frame::Init(init("edge"))).await;
            let early = tokio::time::timeout(Duration::from_secs(2), connected.agent.read_u8()).await;
            assert!(early.is_err(), "answered {early:?} before the host was published");
            fixture.registry.0.open.notify_one();
            assert_eq!(connected.response().await.status, Status::Success);
            assert_eq!(fixture.diary()[0], Event::Registered("edge".into()), "published before the reply was read");
        })
        .await;
}

/// Publishing takes too long: nothing is left of the host.
#[tokio::test(start_paused = true)]
async fn the_deadline_covers_the_registration() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            fixture.registry.0.gated.set(true);
            let mut connected = fixture.connect(AGENT);
            connected.send(Frame::Init(init("edge"))).await;
            let started = Instant::now();
            assert_eq!(connected.rest().await, b"");
            assert_eq!(started.elapsed().as_secs(), 5);
            assert_eq!(fixture.count(ServerMetric::Timeout), 1);
            assert!(fixture.tunnels.is_empty(), "something is left");
        })
        .await;
}

/// Only an agent of ours takes the first byte right behind the reply.
#[tokio::test(start_paused = true)]
async fn the_first_byte_waits_for_stock_agents_only() {
    LocalSet::new()
        .run_until(async {
            for (init, waits) in [(init("edge"), true), (capable("edge"), false)] {
                let fixture = Fixture::new(config(), Vec::new());
                *fixture.registry.0.greeting.borrow_mut() = b"GET".to_vec();
                let (mut connected, _) = fixture.join(AGENT, init).await;
                let replied = Instant::now();
                let mut first = [0; 3];
                connected.agent.read_exact(&mut first).await.unwrap();
                assert_eq!(&first, b"GET");
                let waited = replied.elapsed();
                assert_eq!(waited >= Duration::from_millis(20), waits, "the first byte came after {waited:?}");
            }
        })
        .await;
}

/// Over real TCP, to a reader that takes all there is: the reply comes alone, twenty bytes, and the request later.
#[tokio::test]
async fn the_reply_is_alone_in_its_segment() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            *fixture.registry.0.greeting.borrow_mut() = b"GET / HTTP/1.1\r\n\r\n".to_vec();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            for round in 0..20 {
                let mut agent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
                let (server, peer) = listener.accept().await.unwrap();
                let served = fixture.serve(Io::tcp(server), Peer { address: Some(peer), ..Peer::default() });
                agent.write_all(&Frame::Init(init("edge")).encode().unwrap()).await.unwrap();
                // A reader that is late, but not later than the 20 ms.
                tokio::time::sleep(Duration::from_millis(round % 10)).await;
                let mut buffer = [0; 1024];
                let read = agent.read(&mut buffer).await.unwrap();
                assert_eq!(
                    &buffer[..read],
                    b"\x20\x88\x01\x02\x02\x00\x00\x0c{\"status\":1}",
                    "round {round}: the reply"
                );
                let read = agent.read(&mut buffer).await.unwrap();
                assert_eq!(&buffer[..read], b"GET / HTTP/1.1\r\n\r\n", "round {round}: the first request");
                drop(agent);
                assert_eq!(finished(served).await, Ended::Tunnel);
            }
        })
        .await;
}

/// Over real TCP, unread bytes would make the kernel send a reset that overtakes the answer.
#[tokio::test]
async fn a_refusal_reaches_an_agent_that_keeps_on_sending() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            fixture.registry.0.refusal.set(Some(Refusal::ClusterUnknown));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            for round in 0..20 {
                let mut agent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
                let (server, peer) = listener.accept().await.unwrap();
                let served = fixture.serve(Io::tcp(server), Peer { address: Some(peer), ..Peer::default() });
                let mut bytes = Frame::Init(init("edge")).encode().unwrap();
                bytes.extend_from_slice(&[b'x'; 3000]);
                agent.write_all(&bytes).await.unwrap();
                let mut answer = Vec::new();
                agent.read_to_end(&mut answer).await.unwrap();
                assert_eq!(answer, b"\x20\x88\x01\x02\x02\x00\x00\x0c{\"status\":4}", "round {round}");
                drop(agent);
                assert_eq!(finished(served).await, Ended::Refused, "round {round}");
            }
        })
        .await;
}

/// What a refused agent still sends is taken for a moment, and no longer.
#[tokio::test(start_paused = true)]
async fn a_refused_agent_is_read_for_a_second() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            fixture.registry.0.refusal.set(Some(Refusal::ClusterUnknown));
            let (mut connected, response) = fixture.join(AGENT, init("edge")).await;
            assert_eq!(response.status, Status::ClusterNotFound);
            tokio::time::sleep(Duration::from_millis(900)).await;
            assert!(connected.agent.write_all(b"late").await.is_ok(), "closed before a second had passed");
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(connected.agent.write_all(b"later").await.is_err(), "still open after a second");
            assert_eq!(finished(connected.served).await, Ended::Refused);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_dropped_with_the_connection() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            let (connected, _) = fixture.join(AGENT, capable("edge")).await;
            tokio::task::yield_now().await;
            let id = fixture.registry.0.claims.borrow()[0].id;
            assert_eq!(connected.ended().await, Ended::Tunnel);
            let expected = [Event::Registered("edge".into()), Event::Attached(id), Event::Dropped(id)];
            assert_eq!(fixture.diary(), expected, "in this order");
            assert!(fixture.tunnels.is_empty(), "something is left");
            assert_eq!(fixture.count(ServerMetric::Active), 0);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_draining_listener_drains_its_tunnels_and_takes_no_others() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            let (idle, _) = fixture.join("192.0.2.1:1", capable("edge")).await;
            let pending = fixture.connect("192.0.2.1:2");
            let (mut asks, mut stock) = (fixture.connect("192.0.2.1:4"), fixture.connect("192.0.2.1:5"));
            tokio::task::yield_now().await;
            let started = Instant::now();
            fixture.trigger.start(Duration::from_secs(10));
            assert_eq!(finished(idle.served).await, Ended::Tunnel);
            // Who asks now, on a connection that was there or on a new one, is told when to come back.
            asks.send(Frame::Init(capable("edge"))).await;
            let refusal = Response { retry_after: Some(Duration::from_millis(500)), ..Response::default() };
            assert_eq!(asks.response().await, refusal, "a handshake under way");
            let (late, response) = fixture.join("192.0.2.1:3", capable("edge")).await;
            assert_eq!(response, refusal, "a new connection");
            assert_eq!(started.elapsed(), Duration::ZERO, "nothing was in flight");
            // A status other than 1 would end a stock agent for good: it is closed, and tries again.
            stock.send(Frame::Init(init("edge"))).await;
            let mut rest = Vec::new();
            stock.agent.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"", "what a stock agent is told");
            let mut envoy = fixture.connect("192.0.2.1:6");
            let request = "GET /reverse_connections/request HTTP/1.1\r\nhost: a\r\nx-envoy-reverse-tunnel-node-id: n\r\nx-envoy-reverse-tunnel-cluster-id: edge\r\nx-envoy-reverse-tunnel-tenant-id: t\r\n\r\n";
            envoy.agent.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            envoy.agent.read_to_end(&mut answer).await.unwrap();
            let answer = String::from_utf8(answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 1\r\n"), "{answer}");
            // One that says nothing is not waited for long.
            assert_eq!(finished(pending.served).await, Ended::Refused, "a handshake under way");
            assert!(started.elapsed() <= Duration::from_millis(500), "{:?}", started.elapsed());
            drop((asks.agent, late.agent));
            for served in [asks.served, late.served, stock.served, envoy.served] {
                assert_eq!(finished(served).await, Ended::Refused);
            }
            assert_eq!(fixture.count(ServerMetric::RefusedDraining), 5);
            assert!(fixture.tunnels.is_empty(), "a refused agent left something behind");
        })
        .await;
}

/// Its process ends, and a stock agent cannot be told: its connections go one after the other, so that what it dials anew
/// stands before the last one goes.
#[tokio::test(start_paused = true)]
async fn a_stock_agents_connections_leave_one_at_a_time_and_the_last_with_the_process() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            let mut connections = Vec::new();
            for port in 1..=4 {
                connections.push(fixture.join(&format!("192.0.2.1:{port}"), init("edge")).await.0);
            }
            let (alone, _) = fixture.join("192.0.2.2:1", init("edge")).await;
            // A stock agent gets its first byte a moment after the reply.
            tokio::time::sleep(Duration::from_secs(1)).await;
            fixture.tunnels.end();
            fixture.trigger.start(Duration::from_secs(60));
            let mut seen = Vec::new();
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                seen.push(connections.iter().filter(|connection| !connection.served.is_finished()).count());
            }
            assert!(seen.windows(2).all(|pair| pair[0] - pair[1] <= 1), "one at a time: {seen:?}");
            assert_eq!((seen[4], seen[8]), (2, 2), "two stay for what still comes: {seen:?}");
            assert_eq!(seen.last(), Some(&1), "the last one stays: {seen:?}");
            assert!(!alone.served.is_finished(), "the only one of another agent stays");
            fixture.tunnels.finish();
            for connection in connections.into_iter().chain([alone]) {
                assert_eq!(finished(connection.served).await, Ended::Tunnel);
            }
        })
        .await;
}

/// Nobody would be helped: it brings its agent no new one before it is free.
#[tokio::test(start_paused = true)]
async fn a_stock_agents_connection_that_is_in_use_does_not_leave_before_it_is_free() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            let (one, _) = fixture.join("192.0.2.1:1", init("edge")).await;
            let (two, _) = fixture.join("192.0.2.1:2", init("edge")).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            fixture.registry.0.busy.set(true);
            fixture.tunnels.end();
            fixture.trigger.start(Duration::from_secs(60));
            let drained = || [&one, &two].iter().filter(|connection| connection.served.is_finished()).count();
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(drained(), 0, "a request is in flight on both");
            fixture.registry.0.busy.set(false);
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(drained(), 1, "one is free to go");
            fixture.tunnels.finish();
            for connection in [one, two] {
                assert_eq!(finished(connection.served).await, Ended::Tunnel);
            }
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_in_flight_has_until_the_drains_deadline() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            fixture.registry.0.busy.set(true);
            let (busy, _) = fixture.join(AGENT, capable("edge")).await;
            let started = Instant::now();
            fixture.trigger.start(Duration::from_secs(10));
            assert_eq!(finished(busy.served).await, Ended::Tunnel);
            assert_eq!(started.elapsed().as_secs(), 10);
            assert!(matches!(fixture.diary()[..], [.., Event::Drained(_), Event::Dropped(_)]), "{:?}", fixture.diary());
        })
        .await;
}

/// A graceful close sets no deadline: the agent decides how long it waits.
#[tokio::test(start_paused = true)]
async fn after_a_graceful_close_what_is_in_flight_goes_on() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            fixture.registry.0.busy.set(true);
            let (busy, response) = fixture.join(AGENT, capable("edge")).await;
            let mut aside = fixture.connect("192.0.2.1:1");
            aside
                .send(Frame::GracefulClose(GracefulClose {
                    addresses: None,
                    cluster_name: "edge".into(),
                    connection_ids: vec![response.connection_id.unwrap()],
                }))
                .await;
            drop(aside.frame().await);
            tokio::time::sleep(Duration::from_secs(3600)).await;
            assert!(!busy.served.is_finished(), "cut off");
            assert!(fixture.tunnels.status()[0].draining, "shown as draining");
            fixture.trigger.start(Duration::from_secs(1));
            assert_eq!(finished(busy.served).await, Ended::Tunnel, "the listener's drain ends it still");
        })
        .await;
}

/// Reconnects leave nothing behind.
#[tokio::test(start_paused = true)]
async fn a_thousand_reconnects_leave_nothing() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            for round in 0..1000_u16 {
                let address = format!("192.0.2.{}:{}", round % 200, 1024 + round);
                let (connected, response) = fixture.join(&address, init("edge")).await;
                assert_eq!(response.status, Status::Success, "round {round}");
                assert_eq!(connected.ended().await, Ended::Tunnel, "round {round}");
            }
            assert!(fixture.tunnels.is_empty(), "something is left");
            assert_eq!(fixture.count(ServerMetric::Accepted), 1000);
            assert_eq!(fixture.count(ServerMetric::Active), 0);
        })
        .await;
}
