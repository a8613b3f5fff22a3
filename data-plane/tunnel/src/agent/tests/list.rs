//! The set of peers follows the server list.

use super::*;

fn from_eds() -> (watch::Sender<Option<Arc<Endpoints>>>, AgentInputs, Vec<ServerSource>) {
    let (sender, receiver) = watch::channel(None);
    let inputs = AgentInputs { eds: vec![("servers".into(), receiver)], ..inputs() };
    let source = culvert_model::source::ConfigSource {
        kind: culvert_model::source::ConfigSourceKind::Ads,
        initial_fetch_timeout: Duration::from_secs(15),
    };
    (sender, inputs, vec![ServerSource::Eds { service_name: "servers".into(), config: source }])
}

/// MOSN's agent starts a further set of connections with each message while a server cannot be reached.
#[tokio::test]
async fn the_same_list_again_and_again_dials_nothing_twice() {
    LocalSet::new()
        .run_until(async {
            let server = Server::bind().await;
            let (assignment, inputs, mut sources) = from_eds();
            // The same server by two further sources.
            sources.extend([fixed(server.address), fixed(server.address)]);
            let fixture = Fixture::start(config(sources), inputs, 2);
            let (_stream, _) = server.accept().await;
            for _ in 0..4 {
                assignment.send_replace(endpoints(&[server.address, server.address]));
                sleep(Duration::from_millis(10)).await;
            }
            // A stock server is kept one aside connection.
            let (_aside, _) = server.connection().await;
            let further = timeout(Duration::from_millis(200), server.listener.accept()).await;
            assert!(further.is_err(), "a further connection: {further:?}");
            assert_eq!(fixture.agent.status().peers.len(), 1);
            assert_eq!(fixture.count(AgentMetric::Servers), 1);
        })
        .await;
}

/// And it goes on dialling a server that left the list while it could not be reached.
#[tokio::test]
async fn a_server_that_leaves_the_list_is_dialled_no_more() {
    LocalSet::new()
        .run_until(async {
            let unreachable = Server::bind().await;
            let address = unreachable.address;
            drop(unreachable);
            let (assignment, inputs, sources) = from_eds();
            let fixture = Fixture::start(config(sources), inputs, 2);
            assignment.send_replace(endpoints(&[address]));
            eventually("it is tried", || fixture.count(AgentMetric::DialFailures) > 2).await;
            assignment.send_replace(endpoints(&[]));
            eventually("the peer is gone", || fixture.agent.status().peers.is_empty()).await;
            let dials = fixture.count(AgentMetric::Dials);
            let late = TcpListener::bind(address).await.unwrap();
            let dialled = timeout(Duration::from_millis(300), late.accept()).await;
            assert!(dialled.is_err(), "dialled after it left the list: {dialled:?}");
            assert_eq!(fixture.count(AgentMetric::Dials), dials);
        })
        .await;
}

/// The connections to a server that leaves are drained when those to the one that comes stand.
#[tokio::test]
async fn make_before_break() {
    LocalSet::new()
        .run_until(async {
            let (old, new) = (Server::bind().await, Server::bind().await);
            let (assignment, inputs, sources) = from_eds();
            let fixture = Fixture::start(config(sources), inputs, 1);
            assignment.send_replace(endpoints(&[old.address]));
            let (mut old_stream, old_peer) = old.accept().await;
            let (mut aside, _) = old.connection().await;
            assignment.send_replace(endpoints(&[new.address]));
            let (mut new_stream, _, _) = new.init().await;
            let told = timeout(Duration::from_millis(200), aside.read_u8()).await;
            assert!(told.is_err(), "the old server was told before the new one had answered: {told:?}");
            answer(&mut new_stream, Status::Success).await;
            let Frame::GracefulClose(close) = read_frame(&mut aside).await else { panic!("another frame") };
            assert_eq!(close.addresses, Some(vec![old_peer.to_string()]));
            assert_eq!(old_stream.read(&mut [0]).await.unwrap(), 0, "drained, then closed");
            eventually("one peer is left", || fixture.agent.status().peers.len() == 1).await;
            assert_eq!(fixture.agent.established(), 1);
        })
        .await;
}

/// Unless the new one cannot be reached: then the old one has had its time.
#[tokio::test]
async fn a_replacement_that_never_comes_is_not_waited_for_longer_than_a_dial() {
    LocalSet::new()
        .run_until(async {
            let (old, new) = (Server::bind().await, Server::bind().await);
            let (assignment, inputs, sources) = from_eds();
            let config = TunnelAgent { connect_timeout: Duration::from_millis(300), ..config(sources) };
            let fixture = Fixture::start(config, inputs, 1);
            assignment.send_replace(endpoints(&[old.address]));
            let (_stream, _) = old.accept().await;
            let (mut aside, _) = old.connection().await;
            assignment.send_replace(endpoints(&[new.address]));
            assert!(matches!(read_frame(&mut aside).await, Frame::GracefulClose(_)), "another frame");
            assert_eq!(fixture.agent.status().peers.len(), 2, "the new one, and the old one as it closes");
        })
        .await;
}

/// The old tunnel may end while its replacement is asked for, whose server may have accepted then and have sent requests: it is
/// waited for. If it comes to nothing, the connection is dialled as any that was lost.
#[tokio::test]
async fn a_replacement_that_is_asked_for_is_not_given_up_when_the_old_tunnel_ends() {
    LocalSet::new()
        .run_until(async {
            for accepted in [true, false] {
                let server = Server::bind().await;
                let config = TunnelAgent {
                    max_connection_age: Some(Duration::from_millis(50)),
                    ..config(vec![fixed(server.address)])
                };
                let fixture = Fixture::start(config, inputs(), 1);
                let old = server.accept_as_ours().await;
                eventually("hosted", || fixture.listener.0.live.get() == 1).await;
                let (mut next, _, _) = server.init().await;
                drop(old);
                eventually("the old one is over", || fixture.listener.0.live.get() == 0).await;
                let further = timeout(Duration::from_millis(300), server.listener.accept()).await;
                assert!(further.is_err(), "dialled beside the one that is asked for: {further:?}");
                if !accepted {
                    drop(next);
                    let _again = server.accept_as_ours().await;
                    eventually("hosted", || fixture.listener.0.live.get() == 1).await;
                    assert_eq!(fixture.count(AgentMetric::Replaced), 0);
                    continue;
                }
                answer(&mut next, Status::Success).await;
                next.write_all(b"echo").await.unwrap();
                let mut echoed = [0; 4];
                timeout(Duration::from_secs(10), next.read_exact(&mut echoed)).await.expect("it is hosted").unwrap();
                assert_eq!((&echoed, fixture.count(AgentMetric::Replaced)), (b"echo", 1));
            }
        })
        .await;
}

/// A name server that says nothing: what it is asked for is given up after 5 s, and then shown as waiting.
#[tokio::test]
async fn a_name_that_is_never_answered_keeps_no_other_server_from_being_dialled() {
    LocalSet::new()
        .run_until(async {
            let (fixed, named) = (Server::bind().await, Server::bind().await);
            let (assignment, inputs, sources) = from_eds();
            let resolver = Resolver::Scripted(|host| (host != "hung").then(|| Ok(vec![[127, 0, 0, 1].into()])));
            let fixture = Fixture::start(config(sources), AgentInputs { resolver, ..inputs }, 1);
            let mut list = Endpoints::clone(&endpoints(&[fixed.address]).unwrap());
            let mut add = |host: &str, port: u16| {
                let mut endpoint = list.localities[0].endpoints[0].clone();
                endpoint.address = Address::Name { host: host.into(), port };
                list.localities[0].endpoints.insert(0, endpoint);
            };
            add("named", named.address.port());
            add("hung", 9);
            assignment.send_replace(Some(Arc::new(list)));
            let _first = fixed.accept_as_ours().await;
            let _second = named.accept_as_ours().await;
            assert_eq!(
                fixture.agent.status().sources_waiting,
                [""; 0],
                "the others were dialled only after the deadline"
            );
        })
        .await;
}

#[test]
fn every_connection_belongs_to_one_worker() {
    for (count, ordinal) in [(1, 0), (2, 0), (2, 1), (3, 7), (8, 5)] {
        let peer = Peer::new(ordinal, "10.0.0.1:9".parse().unwrap(), "x".into());
        let mut all: Vec<u32> = (0..count).flat_map(|index| peer.share(Worker { index, count }, 20)).collect();
        all.sort_unstable();
        assert_eq!(all, (0..20).collect::<Vec<_>>(), "{count} workers, peer {ordinal}");
    }
    let first = |ordinal| {
        let peer = Peer::new(ordinal, "10.0.0.1:9".parse().unwrap(), "x".into());
        (0..4).find(|index| peer.share(Worker { index: *index, count: 4 }, 1).next().is_some())
    };
    let hosts: Vec<_> = (0..4).map(first).collect();
    assert_eq!(hosts, [Some(0), Some(1), Some(2), Some(3)], "single connections of four peers");
}

/// Of many servers that nobody can reach, the one that can be is found, whatever its rank.
#[tokio::test]
async fn a_server_that_cannot_be_reached_has_its_place_taken_by_the_next_one() {
    LocalSet::new()
        .run_until(async {
            let mut sources = Vec::new();
            for _ in 0..6 {
                let unreachable = Server::bind().await;
                sources.push(fixed(unreachable.address));
            }
            let server = Server::bind().await;
            sources.push(fixed(server.address));
            let fixture = Fixture::start(TunnelAgent { max_servers: 1, ..config(sources) }, inputs(), 1);
            let (_stream, _) = server.accept().await;
            eventually("it stays there", || {
                let peers = fixture.agent.status().peers;
                peers.iter().filter(|peer| !peer.closing).map(|peer| peer.address).eq([server.address])
            })
            .await;
        })
        .await;
}
