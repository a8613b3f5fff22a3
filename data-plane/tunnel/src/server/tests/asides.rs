//! Aside connections and the graceful close.

use super::*;

fn by_address(addresses: &[&str], cluster: &str) -> Frame {
    Frame::GracefulClose(GracefulClose {
        addresses: Some(addresses.iter().map(|address| (*address).to_owned()).collect()),
        cluster_name: cluster.into(),
        connection_ids: Vec::new(),
    })
}

fn by_id(ids: &[String], cluster: &str) -> Frame {
    Frame::GracefulClose(GracefulClose { addresses: None, cluster_name: cluster.into(), connection_ids: ids.to_vec() })
}

async fn settle() {
    tokio::time::sleep(Duration::from_millis(500)).await;
}

/// A stock agent's life: connections, then a silent aside connection, then one frame on it.
#[tokio::test(start_paused = true)]
async fn a_stock_agents_graceful_close_drains_its_connections() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            let (first, _) = fixture.join("192.0.2.1:1001", init("edge")).await;
            let (second, _) = fixture.join("192.0.2.1:1002", init("edge")).await;
            let (_other, _) = fixture.join("192.0.2.2:1001", init("edge")).await;
            let mut aside = fixture.connect("192.0.2.1:1003");
            tokio::time::sleep(Duration::from_secs(30)).await;
            assert_eq!(fixture.count(ServerMetric::Asides), 1, "silent, and taken for an aside connection");
            aside.send(by_address(&["192.0.2.1:1001", "192.0.2.1:1002"], "edge")).await;
            assert_eq!(finished(first.served).await, Ended::Tunnel, "drained, and nothing was in flight");
            assert_eq!(finished(second.served).await, Ended::Tunnel, "drained, and nothing was in flight");
            assert_eq!(fixture.count(ServerMetric::GracefulClose), 2);
            assert_eq!(fixture.count(ServerMetric::GracefulCloseIgnored), 0);
            assert_eq!(fixture.count(ServerMetric::Active), 1, "the other agent's connection stays");
            assert_eq!(aside.ended().await, Ended::Aside);
        })
        .await;
}

/// An aside connection may speak before it is known as one.
#[tokio::test(start_paused = true)]
async fn a_graceful_close_within_the_first_seconds() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            let (tunnel, _) = fixture.join("192.0.2.1:1001", init("edge")).await;
            let mut aside = fixture.connect("192.0.2.1:1003");
            aside.send(by_address(&["192.0.2.1:1001"], "edge")).await;
            assert_eq!(finished(tunnel.served).await, Ended::Tunnel);
        })
        .await;
}

/// Every way to close what is not one's own.
#[tokio::test(start_paused = true)]
async fn what_a_graceful_close_may_not_name() {
    let (address, other) = ("192.0.2.1:1001", "203.0.113.9:7");
    LocalSet::new()
        .run_until(async {
            for (name, from, frame) in [
                ("from another address", other, by_address(&[address], "edge")),
                ("for another cluster", "192.0.2.1:5", by_address(&[address], "core")),
                ("an unknown address", "192.0.2.1:5", by_address(&["192.0.2.1:1"], "edge")),
                ("no address", "192.0.2.1:5", by_address(&["edge"], "edge")),
                ("an empty address", "192.0.2.1:5", by_address(&[""], "edge")),
                ("an unknown id", "192.0.2.1:5", by_id(&["00".repeat(16)], "edge")),
                ("an id of no form", "192.0.2.1:5", by_id(&["+1".into()], "edge")),
            ] {
                let fixture = Fixture::new(config(), Vec::new());
                let (tunnel, _) = fixture.join(address, init("edge")).await;
                let mut aside = fixture.connect(from);
                aside.send(frame).await;
                settle().await;
                assert!(!tunnel.served.is_finished(), "{name}: the connection is gone");
                assert_eq!(fixture.count(ServerMetric::GracefulClose), 0, "{name}");
                assert_eq!(fixture.count(ServerMetric::GracefulCloseIgnored), 1, "{name}");
            }
        })
        .await;
}

/// Our own agents name ids; the server acknowledges, and says how many it found.
#[tokio::test(start_paused = true)]
async fn our_agents_close_by_id_and_hear_of_it() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            let (tunnel, response) = fixture.join("192.0.2.1:1001", capable("edge")).await;
            assert_eq!(response.caps, [crate::wire::CAPABILITY]);
            let id = response.connection_id.unwrap();
            let mut aside = fixture.connect("192.0.2.1:1003");
            aside.send(by_address(&["192.0.2.1:1001"], "edge")).await;
            settle().await;
            assert_eq!(fixture.count(ServerMetric::GracefulCloseIgnored), 1, "by an address that anybody could guess");
            let mut stranger = fixture.connect("203.0.113.9:7");
            stranger.send(by_id(std::slice::from_ref(&id), "edge")).await;
            let ack = |closed| Frame::GracefulCloseAck(crate::wire::GracefulCloseAck { closed });
            assert_eq!(stranger.frame().await, ack(0), "from another agent");
            assert!(!tunnel.served.is_finished(), "the stranger closed it");
            aside.send(by_id(&[id, "no id".into()], "edge")).await;
            assert_eq!(aside.frame().await, ack(1), "one of the two");
            assert_eq!(finished(tunnel.served).await, Ended::Tunnel);
        })
        .await;
}

/// A certificate's name is what makes two connections one agent's, not the address.
#[tokio::test(start_paused = true)]
async fn the_certificate_decides_who_the_agent_is() {
    let peer = |address: &str, identity: &str| Peer {
        address: Some(address.parse().unwrap()),
        identity: Some(identity.into()),
        ..Peer::default()
    };
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            let mut tunnel = fixture.connect_as(peer("192.0.2.1:1001", "spiffe://td/agent/7"));
            tunnel.send(Frame::Init(init("edge"))).await;
            assert_eq!(tunnel.response().await.status, Status::Success);
            for (who, closes) in [
                (peer("192.0.2.1:5", "spiffe://td/agent/8"), false),
                (peer("198.51.100.1:5", "spiffe://td/agent/7"), true),
            ] {
                let mut aside = fixture.connect_as(who.clone());
                aside.send(by_address(&["192.0.2.1:1001"], "edge")).await;
                settle().await;
                assert_eq!(tunnel.served.is_finished(), closes, "closed by {who:?}");
            }
        })
        .await;
}

/// An IPv4 agent at a dual-stack listener names itself by its IPv4 address.
#[tokio::test(start_paused = true)]
async fn mapped_addresses_are_the_same_addresses() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            let (tunnel, _) = fixture.join("[::ffff:192.0.2.1]:1001", init("edge")).await;
            let mut aside = fixture.connect("[::ffff:192.0.2.1]:1002");
            aside.send(by_address(&["192.0.2.1:1001"], "edge")).await;
            assert_eq!(finished(tunnel.served).await, Ended::Tunnel);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn silent_connections_two_per_agent_and_for_a_minute() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            let (_tunnel, _) = fixture.join("192.0.2.1:1001", init("edge")).await;
            let started = Instant::now();
            let mut asides = [2, 3, 4].map(|port| fixture.connect(&format!("192.0.2.1:{port}")));
            let stranger = fixture.connect("203.0.113.9:7");
            assert_eq!(asides[2].rest().await, b"", "the third is closed");
            assert_eq!(started.elapsed().as_secs(), 5, "with the handshake's deadline");
            assert_eq!(finished(stranger.served).await, Ended::Refused, "nobody's aside connection");
            assert_eq!(fixture.count(ServerMetric::Timeout), 2);
            assert_eq!(fixture.count(ServerMetric::Pending), 0, "aside connections are no handshakes under way");
            assert_eq!(asides[0].rest().await, b"", "closed without a word");
            assert_eq!(started.elapsed().as_secs(), 65, "after a minute of silence");
            assert_eq!(fixture.count(ServerMetric::AsideClosed), 2);
            assert_eq!(fixture.count(ServerMetric::Asides), 0);
        })
        .await;
}

/// MOSN's server goes on reading after a graceful close; so an init frame may follow.
#[tokio::test(start_paused = true)]
async fn an_aside_connection_may_become_a_tunnel() {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::new(config(), Vec::new());
            let (_tunnel, _) = fixture.join("192.0.2.1:1001", init("edge")).await;
            let mut aside = fixture.connect("192.0.2.1:1002");
            tokio::time::sleep(Duration::from_secs(10)).await;
            aside.send(Frame::Init(init("edge"))).await;
            assert_eq!(aside.response().await.status, Status::Success);
            assert_eq!(fixture.count(ServerMetric::Active), 2);
            assert_eq!(fixture.count(ServerMetric::Asides), 0);
        })
        .await;
}
