//! From the first dial to a hosted connection, and back again.

use super::*;

#[tokio::test]
async fn connections_are_spread_over_the_workers_and_hosted() {
    LocalSet::new()
        .run_until(async {
            let server = Server::bind().await;
            let config = TunnelAgent {
                connection_num: 5,
                weight: 77,
                credential: Some(Credential {
                    policy: "token".into(),
                    value: DataSource::Inline(b"s3cret\n"[..].into()),
                    bound: false,
                }),
                ..config(vec![fixed(server.address)])
            };
            let fixture = Fixture::start(config, inputs(), 2);
            let mut streams = Vec::new();
            for _ in 0..5 {
                let (mut stream, _, init) = server.init().await;
                assert_eq!(init.cluster_name, "edge");
                assert_eq!(init.weight, 77);
                assert_eq!(init.host_name, "node-1", "the node id stands in");
                assert_eq!(init.credential_policy, "token");
                assert_eq!(init.credential.0, "s3cret", "without the line break");
                answer(&mut stream, Status::Success).await;
                streams.push(stream);
            }
            eventually("five are hosted", || fixture.listener.0.live.get() == 5).await;
            for stream in &mut streams {
                stream.write_all(b"ping").await.unwrap();
                let mut echo = [0; 4];
                stream.read_exact(&mut echo).await.unwrap();
                assert_eq!(&echo, b"ping", "the hosting listener answers");
            }
            let status = fixture.agent.status();
            let workers: Vec<usize> = status.peers[0].connections.iter().map(|connection| connection.worker).collect();
            assert_eq!(workers, [0, 1, 0, 1, 0], "each worker dials its share");
            assert_eq!(fixture.states(), [ConnectionState::Established; 5]);
            assert_eq!(fixture.agent.established(), 5);
            assert_eq!(fixture.count(AgentMetric::Active), 5);
            let hosted = fixture.listener.0.served.borrow().clone();
            assert!(hosted.iter().all(|hosted| hosted.peer == server.address), "{hosted:?}");
        })
        .await;
}

/// Whatever a server answers, the next attempt begins from nothing, and the credential is read anew.
#[tokio::test]
async fn every_failure_is_tried_again_with_the_credential_read_anew() {
    LocalSet::new()
        .run_until(async {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("token");
            std::fs::write(&path, "0\n").unwrap();
            let server = Server::bind().await;
            let value = DataSource::File { path: path.clone(), watched_directory: None };
            let config = TunnelAgent {
                credential: Some(Credential { policy: "token".into(), value, bound: false }),
                ..config(vec![fixed(server.address)])
            };
            let fixture = Fixture::start(config, inputs(), 1);
            let response = |payload: &str| {
                let header = [0x20, 0x88, 1, 2, 2, 0, 0, u8::try_from(payload.len()).unwrap()];
                [&header[..], payload.as_bytes()].concat()
            };
            let failures = [
                response(r#"{"status":2}"#),
                response(r#"{"status":3}"#),
                response(r#"{"status":4}"#),
                response(r#"{"status":0}"#),
                response(r#"{"status":99}"#),
                response("{}"),
                response("{]"),
                b"\x20\x88\x01\x01\x01\x00\x00\x02{}".to_vec(),
                b"\x20\x88\x01\x03\x01\x00\x00\x02{}".to_vec(),
                b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
                b"\x20\x88\x01\x02\x02\x00".to_vec(),
                Vec::new(),
            ];
            for (attempt, bytes) in failures.iter().enumerate() {
                let (mut stream, _, init) = server.init().await;
                assert_eq!(init.credential.0, attempt.to_string(), "the credential of attempt {attempt}");
                std::fs::write(&path, format!("{}\n", attempt + 1)).unwrap();
                stream.write_all(bytes).await.unwrap();
            }
            assert_eq!(fixture.listener.0.served.borrow().len(), 0, "a refused handshake yielded a tunnel");
            let (_stream, _) = server.accept().await;
            eventually("hosted at last", || fixture.listener.0.live.get() == 1).await;
            assert_eq!(fixture.count(AgentMetric::HandshakeFailures), 12);
            assert_eq!(fixture.count(AgentMetric::Refused), 6);
            assert_eq!(fixture.count(AgentMetric::Reconnects), 12);
            let status = fixture.agent.status();
            assert_eq!(status.peers[0].connections[0].reconnects, 12);
            assert_eq!(status.peers[0].connections[0].last_error, None, "the last attempt went well");
        })
        .await;
}

/// MOSN's agent makes thousands of connections a second to a server that accepts and closes.
#[tokio::test]
async fn a_server_that_accepts_and_closes_is_not_stormed() {
    LocalSet::new()
        .run_until(async {
            let server = Server::bind().await;
            let config = TunnelAgent {
                reconnect_base: Duration::from_millis(50),
                reconnect_max: Duration::from_secs(30),
                ..config(vec![fixed(server.address)])
            };
            let fixture = Fixture::start(config, inputs(), 1);
            let storm = async {
                loop {
                    drop(server.accept().await);
                }
            };
            drop(timeout(Duration::from_secs(3), storm).await);
            // Ceilings of 50, 100, 200 ... ms: 6 doublings make 3 s; a lucky draw makes a few more.
            let attempts = fixture.count(AgentMetric::Dials);
            assert!((2..=20).contains(&attempts), "{attempts} attempts in 3 s");
            assert!(fixture.count(AgentMetric::Lost) >= attempts - 1, "each was established and lost");
            let (_stream, _) = server.accept().await;
            eventually("a tunnel stands", || fixture.agent.established() == 1).await;
            let connection = fixture.agent.status().peers[0].connections[0].clone();
            assert_eq!(connection.last_error, None, "the last attempt went well");
            assert!(connection.last_end.is_some(), "why the tunnel before ended: {connection:?}");
        })
        .await;
}

#[test]
fn after_a_tunnel_that_lasted_or_was_used_the_agent_dials_again_at_once() {
    let mut backoff = culvert_runtime::backoff::Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
    let mut seen = Vec::new();
    // How long it lived (ms), whether it brought a request.
    for (lived, used) in [(0, false), (1, false), (4999, false), (5000, false), (0, false), (0, true), (60_000, true)] {
        let served = pace::Served { lived: Duration::from_millis(lived), used, end: "".into() };
        let delay = pace::after_tunnel(&mut backoff, &served);
        let at_once = backoff.attempts() == 0;
        assert!(!at_once || delay <= Duration::from_millis(100), "{lived} ms, used: {used}: {delay:?}");
        seen.push((at_once, backoff.ceiling().as_millis()));
    }
    let expected = [(false, 200), (false, 400), (false, 800), (true, 100), (false, 200), (true, 100), (true, 100)];
    assert_eq!(seen, expected, "whether at once, and the ceiling of the attempt after the next");
}

#[tokio::test]
async fn the_agent_waits_for_its_listener_and_says_so() {
    LocalSet::new()
        .run_until(async {
            let server = Server::bind().await;
            let fixture = Fixture::start(config(vec![fixed(server.address)]), inputs(), 1);
            fixture.listener.0.there.send_replace(false);
            eventually("shown as waiting", || fixture.states() == [ConnectionState::WaitingForListener]).await;
            let early = timeout(Duration::from_millis(100), server.listener.accept()).await;
            assert!(early.is_err(), "dialled although nobody can host: {early:?}");
            fixture.listener.0.there.send_replace(true);
            let (stream, _) = server.accept().await;
            eventually("hosted", || fixture.listener.0.live.get() == 1).await;
            // It goes again: the next connection waits for it.
            fixture.listener.0.there.send_replace(false);
            drop(stream);
            eventually("waiting again", || fixture.states() == [ConnectionState::WaitingForListener]).await;
        })
        .await;
}

#[tokio::test]
async fn a_silent_server_is_given_up_at_the_deadline_and_blocks_no_other_connection() {
    LocalSet::new()
        .run_until(async {
            let server = Server::bind().await;
            let config = TunnelAgent {
                connection_num: 3,
                connect_timeout: Duration::from_millis(500),
                ..config(vec![fixed(server.address)])
            };
            let fixture = Fixture::start(config, inputs(), 1);
            let (silent, _, _) = server.init().await;
            let (_first, _second) = (server.accept_as_ours().await, server.accept_as_ours().await);
            eventually("the others stand", || fixture.listener.0.live.get() == 2).await;
            let _third = server.accept_as_ours().await;
            eventually("tried again", || fixture.listener.0.live.get() == 3).await;
            assert_eq!(fixture.count(AgentMetric::DialFailures), 1, "the silent one");
            drop(silent);
        })
        .await;
}

/// An agent that is to speak TLS never falls back to plaintext.
#[tokio::test]
async fn without_its_tls_configuration_nothing_is_dialled() {
    LocalSet::new()
        .run_until(async {
            let server = Server::bind().await;
            let common = culvert_model::tls::CommonTls {
                certificates: Vec::new(),
                validation: None,
                validation_default: None,
                alpn: Vec::new(),
                min: culvert_model::tls::TlsVersion::V1_2,
                max: culvert_model::tls::TlsVersion::V1_3,
            };
            let tls = culvert_model::tls::UpstreamTls {
                common,
                sni: None,
                auto_host_sni: false,
                auto_sni_san_validation: false,
            };
            let config = TunnelAgent { tls: Some(Arc::new(tls)), ..config(vec![fixed(server.address)]) };
            let (secrets, receiver) = watch::channel(None);
            for tls in [None, Some(receiver)] {
                let fixture = Fixture::start(config.clone(), AgentInputs { tls, ..inputs() }, 1);
                eventually("shown as waiting", || fixture.states() == [ConnectionState::WaitingForSecret]).await;
                let early = timeout(Duration::from_millis(100), server.listener.accept()).await;
                assert!(early.is_err(), "dialled without TLS: {early:?}");
                fixture.stopped().await;
            }
            drop(secrets);
        })
        .await;
}

#[tokio::test]
async fn after_connect_retry_times_failures_a_connection_is_given_up() {
    LocalSet::new()
        .run_until(async {
            let closed = Server::bind().await.address;
            let config = TunnelAgent { retry_times: Some(3), ..config(vec![fixed(closed)]) };
            let fixture = Fixture::start(config, inputs(), 1);
            eventually("given up", || fixture.states() == [ConnectionState::GivenUp]).await;
            assert_eq!(fixture.count(AgentMetric::Dials), 3);
            assert_eq!(fixture.count(AgentMetric::DialFailures), 3);
            let status = fixture.agent.status();
            let error = status.peers[0].connections[0].last_error.clone().unwrap_or_default();
            assert!(error.starts_with("connect: "), "{error}");
            assert!(fixture.stopped().await < Duration::from_secs(1), "stopping waits for nothing");
        })
        .await;
}

#[tokio::test]
async fn a_credential_that_cannot_be_read_is_an_error_that_names_it() {
    LocalSet::new()
        .run_until(async {
            let server = Server::bind().await;
            let value = DataSource::Environment("CULVERT_TEST_THAT_NOBODY_SETS".into());
            let credential = Some(Credential { policy: "token".into(), value, bound: false });
            let fixture =
                Fixture::start(TunnelAgent { credential, ..config(vec![fixed(server.address)]) }, inputs(), 1);
            eventually("shown", || {
                let status = fixture.agent.status();
                let connections = status.peers.iter().flat_map(|peer| peer.connections.clone());
                connections.into_iter().any(|connection| {
                    connection.last_error.is_some_and(|error| error.contains("CULVERT_TEST_THAT_NOBODY_SETS"))
                })
            })
            .await;
            let early = timeout(Duration::from_millis(100), server.init());
            assert!(early.await.is_err(), "an init frame without its credential");
        })
        .await;
}
