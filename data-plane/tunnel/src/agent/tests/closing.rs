//! The graceful close, towards stock servers and our own.

use super::*;

#[tokio::test]
async fn a_stock_server_is_told_on_the_aside_connection() {
    LocalSet::new()
        .run_until(async {
            let server = Server::bind().await;
            let config = TunnelAgent { connection_num: 2, ..config(vec![fixed(server.address)]) };
            let fixture = Fixture::start(config, inputs(), 2);
            let (mut first, first_peer) = server.accept().await;
            let (mut second, second_peer) = server.accept().await;
            let (mut aside, _) = server.connection().await;
            eventually("the aside connection stands", || {
                fixture.agent.status().peers[0].aside == AsideState::Connected
            })
            .await;
            assert_eq!(fixture.agent.established(), 2, "the aside connection is no tunnel");
            let stopping = async {
                let Frame::GracefulClose(close) = read_frame(&mut aside).await else { panic!("another frame") };
                let mut addresses = close.addresses.clone().unwrap_or_default();
                addresses.sort();
                let mut expected = [first_peer.to_string(), second_peer.to_string()];
                expected.sort();
                assert_eq!(addresses, expected, "our ends of the connections");
                assert_eq!(close.cluster_name, "edge");
                assert_eq!(close.connection_ids, [""; 0], "a stock server gave no ids");
                assert_eq!(aside.read(&mut [0]).await.unwrap(), 0, "the aside connection is closed");
                // A request that was on its way when the server read the frame is still answered.
                first.write_all(b"late").await.unwrap();
                let mut echo = [0; 4];
                first.read_exact(&mut echo).await.unwrap();
                assert_eq!(&echo, b"late", "answered");
                assert_eq!(first.read(&mut [0]).await.unwrap(), 0, "then closed");
                assert_eq!(second.read(&mut [0]).await.unwrap(), 0, "then closed");
            };
            let (took, ()) = tokio::join!(fixture.stopped(), stopping);
            assert!(took < Duration::from_secs(5), "ended early, not after the 10 s of the maximum: {took:?}");
        })
        .await;
}

#[tokio::test]
async fn what_is_in_flight_has_until_the_maximum() {
    LocalSet::new()
        .run_until(async {
            let server = Server::bind().await;
            let config =
                TunnelAgent { graceful_close_max_wait: Duration::from_secs(1), ..config(vec![fixed(server.address)]) };
            let fixture = Fixture::start(config, inputs(), 1);
            fixture.listener.0.busy.set(true);
            let (_stream, _) = server.accept().await;
            eventually("hosted", || fixture.listener.0.live.get() == 1).await;
            let took = fixture.stopped().await;
            assert!(took >= Duration::from_secs(1), "cut off after {took:?}");
            assert!(took < Duration::from_secs(3), "cut off after {took:?}");
        })
        .await;
}

/// MOSN stops its servers one after the other, fifteen seconds each.
#[tokio::test]
async fn servers_are_left_at_the_same_time() {
    LocalSet::new()
        .run_until(async {
            let servers = [Server::bind().await, Server::bind().await, Server::bind().await];
            let sources = servers.iter().map(|server| fixed(server.address)).collect();
            let config = TunnelAgent { graceful_close_max_wait: Duration::from_secs(1), ..config(sources) };
            let fixture = Fixture::start(config, inputs(), 2);
            fixture.listener.0.busy.set(true);
            let mut streams = Vec::new();
            for server in &servers {
                streams.push(server.accept().await);
            }
            eventually("hosted", || fixture.listener.0.live.get() == 3).await;
            let took = fixture.stopped().await;
            assert!(took < Duration::from_secs(3), "three servers took {took:?}");
        })
        .await;
}

/// Stopping in the middle of everything else: never a panic, never a wait.
#[tokio::test]
async fn stopping_while_nothing_stands() {
    LocalSet::new()
        .run_until(async {
            let silent = Server::bind().await;
            let fixture = Fixture::start(config(vec![fixed(silent.address)]), inputs(), 2);
            let (_stream, _, _) = silent.init().await;
            let took = fixture.stopped().await;
            assert!(took < Duration::from_secs(1), "in a handshake: {took:?}");
            let closed = Server::bind().await.address;
            let slow = TunnelAgent {
                reconnect_base: Duration::from_secs(30),
                reconnect_max: Duration::from_secs(30),
                ..config(vec![fixed(closed)])
            };
            let fixture = Fixture::start(slow, inputs(), 2);
            eventually("backing off", || fixture.states() == [ConnectionState::BackingOff]).await;
            let took = fixture.stopped().await;
            assert!(took < Duration::from_secs(1), "in a back-off: {took:?}");
            let fixture = Fixture::start(config(vec![fixed(closed)]), inputs(), 2);
            let took = fixture.stopped().await;
            assert!(took < Duration::from_secs(1), "at once: {took:?}");
        })
        .await;
}

/// A server of ours gives ids and is told by id, on a connection that is dialled for it; it closes each tunnel itself.
#[tokio::test]
async fn a_server_of_ours_is_told_by_id_when_there_is_something_to_say() {
    LocalSet::new()
        .run_until(async {
            let server = Server::bind().await;
            let fixture = Fixture::start(config(vec![fixed(server.address)]), inputs(), 1);
            let (mut stream, _, init) = server.init().await;
            assert!(init.can(crate::wire::CAPABILITY), "announced in {init:?}");
            let response = Frame::Response(Response {
                status: Status::Success,
                caps: vec![crate::wire::CAPABILITY.into()],
                connection_id: Some("ab".repeat(16)),
                ..Response::default()
            });
            stream.write_all(&response.encode().unwrap()).await.unwrap();
            eventually("hosted", || fixture.listener.0.live.get() == 1).await;
            let further = timeout(Duration::from_millis(100), server.listener.accept()).await;
            assert!(further.is_err(), "an aside connection that is not needed yet: {further:?}");
            assert_eq!(fixture.agent.status().peers[0].connections[0].id, Some("ab".repeat(16)));
            let stopping = async {
                let (mut aside, _) = server.connection().await;
                let Frame::GracefulClose(close) = read_frame(&mut aside).await else { panic!("another frame") };
                let expected = GracefulClose {
                    addresses: None,
                    cluster_name: "edge".into(),
                    connection_ids: vec!["ab".repeat(16)],
                };
                assert_eq!(close, expected);
                let ack = Frame::GracefulCloseAck(crate::wire::GracefulCloseAck { closed: 1 });
                aside.write_all(&ack.encode().unwrap()).await.unwrap();
                // Acknowledged: the agent leaves it to the server to end the tunnel.
                let early = timeout(Duration::from_millis(800), stream.read_u8()).await;
                assert!(early.is_err(), "the agent closed first: {early:?}");
                drop(stream);
            };
            let (took, ()) = tokio::join!(fixture.stopped(), stopping);
            assert!(took < Duration::from_secs(3), "ended with the server's close: {took:?}");
        })
        .await;
}
