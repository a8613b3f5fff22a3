//! A control plane that comes and goes for ten minutes, and one that is gone without a word: on a clock of the tests' own.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::*;

/// What stands between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Leads to this port.
    To(u16),
    /// Closes what comes and what stands.
    Closed,
    /// Says nothing, and closes nothing.
    Dead,
}

/// A port whose way can be changed.
struct Relay {
    port: u16,
    way: watch::Sender<Way>,
    attempts: Arc<AtomicUsize>,
}

impl Relay {
    async fn start(way: Way) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (way, ways) = watch::channel(way);
        let attempts = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&attempts);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(carry(client, ways.clone()));
            }
        });
        Self { port, way, attempts }
    }

    fn attempts(&self) -> usize {
        self.attempts.load(Ordering::Relaxed)
    }
}

async fn carry(mut client: TcpStream, mut ways: watch::Receiver<Way>) {
    let Way::To(port) = *ways.borrow_and_update() else { return };
    let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    tokio::select! {
        biased;
        changed = ways.changed() => {
            let dead = changed.is_ok() && *ways.borrow() == Way::Dead;
            if dead {
                std::future::pending::<()>().await;
            }
        }
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
    }
}

/// Takes every stream, and ends it without a word.
struct Mute;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Mute {
    type StreamAggregatedResourcesStream = tokio_stream::Empty<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = tokio_stream::Empty<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }
}

async fn mute() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let service = AggregatedDiscoveryServiceServer::new(Mute);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    port
}

/// The clock jumps to the next timer whenever nobody runs, also while bytes are on their way. In steps as small as this, each of
/// which leaves the kernel some time of its own, a second is several milliseconds of that: more than its round trips take.
pub(super) fn in_small_steps() {
    tokio::spawn(async {
        loop {
            sleep(Duration::from_millis(20)).await;
            std::thread::sleep(Duration::from_micros(100));
        }
    });
}

/// Waits for as long as the back-off may take.
async fn connected(data: &DataPlane, expected: bool) {
    let seen = || data.metric("control_plane.connected_state");
    let deadline = Instant::now() + Duration::from_secs(60);
    while seen() != u8::from(expected).to_string() {
        assert!(Instant::now() < deadline, "expected connected: {expected}, saw {}", seen());
        sleep(Duration::from_millis(20)).await;
    }
}

/// gRFC A57. Delays are drawn evenly from zero up to 0.5, 1, 2, ... 30 s: over so many of them they come to half of that.
#[tokio::test(start_paused = true)]
async fn in_ten_minutes_of_coming_and_going_each_step_of_the_back_off_is_one_attempt() {
    const FLAPS: usize = 150;
    const AWAY: Duration = Duration::from_secs(2);
    in_small_steps();
    let control = ControlPlane::new();
    control.publish(&[("a", 1)]);
    let here = Way::To(control.serve().await);
    let relay = Relay::start(here).await;
    let data = DataPlane::start(relay.port, true, None).await;
    eventually("+a".to_owned(), || data.applied()).await;
    let mut attempts = 0;
    for flap in 0..FLAPS {
        let before = relay.attempts();
        relay.way.send_replace(Way::Closed);
        sleep(AWAY).await;
        let tried = relay.attempts() - before;
        // It began anew, since there were responses: half a second and another one at the most.
        assert!(tried >= 2, "expected two attempts or more in {AWAY:?}, saw {tried} the {flap}th time");
        attempts += tried;
        relay.way.send_replace(here);
        connected(&data, true).await;
        sleep(AWAY).await;
    }
    let expected = FLAPS * 2..FLAPS * 7 / 2;
    assert!(expected.contains(&attempts), "expected {expected:?} attempts while it was away, saw {attempts}");
    assert_eq!(data.applied(), "+a", "what is in force stays, and nothing is applied again");

    // Streams that open and end without a response do not begin it anew.
    let before = relay.attempts();
    relay.way.send_replace(Way::To(mute().await));
    sleep(Duration::from_secs(600)).await;
    let attempts = relay.attempts() - before;
    assert!((25..70).contains(&attempts), "expected some 45 attempts in ten minutes of silence, saw {attempts}");
    relay.way.send_replace(here);
    connected(&data, true).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_word_said_otherwise_a_dead_control_plane_is_noticed_within_40_s() {
    in_small_steps();
    let control = ControlPlane::new();
    control.publish(&[("a", 1)]);
    let here = Way::To(control.serve().await);
    let relay = Relay::start(here).await;
    let data = DataPlane::start(relay.port, true, None).await;
    eventually("+a".to_owned(), || data.applied()).await;
    // One that answers its pings is not given up.
    sleep(Duration::from_secs(600)).await;
    assert_eq!((data.metric("control_plane.connected_state"), relay.attempts()), ("1".to_owned(), 1));

    relay.way.send_replace(Way::Dead);
    let since = Instant::now();
    connected(&data, false).await;
    let after = since.elapsed();
    // Half a minute without a byte, then ten seconds for the answer to a ping.
    assert!((10..=40).contains(&after.as_secs()), "expected 10 s to 40 s, saw {after:?}");
    // Another one in its place: that one still holds the stream.
    let next = ControlPlane::new();
    next.publish(&[("a", 1)]);
    relay.way.send_replace(Way::To(next.serve().await));
    connected(&data, true).await;
    assert_eq!(data.applied(), "+a", "what is in force stays, and nothing is applied again");
}

/// As Envoy is live once the control plane was given its time; who has something to serve does not wait for that.
#[tokio::test(start_paused = true)]
async fn without_a_control_plane_it_is_ready_when_it_has_a_listener_or_waited_for_15_s() {
    const LISTENERS: &str = "\x20 listeners: [{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 0}}, \
        filter_chains: [{filters: [{name: t, typed_config: {'@type': \
        type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: xds}}]}]}]\n";
    in_small_steps();
    for (listeners, expected) in [(LISTENERS, 0..=5), ("", 15..=16)] {
        // Nobody listens on port 1.
        let text = format!(
            "node: {{id: n, cluster: c}}\n\
             dynamic_resources:\n\
             \x20 ads_config: {{api_type: GRPC, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}\n\
             \x20 cds_config: {{ads: {{}}, resource_api_version: V3}}\n\
             static_resources:\n\
             \x20 clusters: [{{name: xds, connect_timeout: 1s, type: STATIC, load_assignment: {{cluster_name: xds, endpoints: \
             [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}}}}}]}}]}}}}]\n\
             {listeners}"
        );
        let since = Instant::now();
        let data = DataPlane::booted(&text, None).await;
        eventually(true, || data.readiness.is_ready()).await;
        let after = since.elapsed();
        assert!(expected.contains(&after.as_secs()), "expected {expected:?} s, saw {after:?} with {listeners:?}");
    }
}
