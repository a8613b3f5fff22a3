//! The control service between both ends, over HTTP/2 that a cluster opens on the tunnel.

use culvert_http::{ClientExchange, Http2Client};
use culvert_model::tunnel::{NamePattern, TunnelProtocol};

use parking_lot::Mutex;

use super::*;

/// A cluster that opens HTTP/2 on what joins it, and sends no requests.
#[derive(Clone, Default)]
struct Streams {
    weights: Arc<Mutex<Vec<u32>>>,
}

struct StreamLease {
    weights: Arc<Mutex<Vec<u32>>>,
    claim: Claim,
    open: watch::Sender<Option<Http2Client>>,
    drain: Notify,
}

impl HostRegistry for Streams {
    type Lease = StreamLease;

    async fn register(&self, claim: Claim) -> Result<StreamLease, Refusal> {
        assert_eq!(claim.protocol, TunnelProtocol::Http2, "what was agreed on");
        let (open, drain) = (watch::Sender::new(None), Notify::new());
        Ok(StreamLease { weights: Arc::clone(&self.weights), claim, open, drain })
    }
}

impl HostLease for StreamLease {
    async fn attach(&self, io: Io) -> CloseReason {
        let options = *self.claim.http2.clone().unwrap();
        let (client, driver) = Http2Client::connect(io, &options);
        self.open.send_replace(Some(client));
        tokio::select! {
            _ = driver => {}
            () = self.drain.notified() => {}
        }
        self.open.send_replace(None);
        CloseReason::Closed
    }

    fn carried(&self) -> u64 {
        0
    }

    fn is_idle(&self) -> bool {
        true
    }

    fn drain(&self) {
        self.drain.notify_one();
    }

    fn set_may_serve(&self, _clusters: &Arc<[NamePattern]>) -> bool {
        false
    }

    fn end_lapsed(&self) -> bool {
        false
    }

    fn set_weight(&self, weight: u32) {
        self.weights.lock().push(weight);
    }

    async fn exchange(&self) -> Option<ClientExchange> {
        let mut open = self.open.subscribe();
        let client = open.wait_for(Option::is_some).await.ok()?;
        client.as_ref().map(Http2Client::exchange)
    }
}

struct Cloud {
    address: SocketAddr,
    cluster: Streams,
    tunnels: Arc<Tunnels>,
    scope: Arc<Scope<ServerMetric>>,
    trigger: Trigger,
    _workers: Workers<()>,
}

impl Cloud {
    async fn start() -> Self {
        let mut sockets = sockets::bind(loopback(), 1, ListenOptions::default()).unwrap();
        let address = sockets[0].local_addr().unwrap();
        let (tunnels, cluster, scope) = (Arc::<Tunnels>::default(), Streams::default(), Arc::<Scope<_>>::default());
        let acceptor = Acceptor::new(Arc::new(server()), Vec::new(), Arc::clone(&tunnels));
        let (trigger, watch) = drain::channel();
        let workers = Workers::start(1, "cloud", |_| ()).unwrap();
        let (registry, counted, socket) = (cluster.clone(), Arc::clone(&scope), sockets.remove(0));
        let accept = move |_: &std::rc::Rc<()>| {
            drop(tokio::task::spawn_local(async move {
                let socket = tokio::net::TcpListener::from_std(socket).unwrap();
                loop {
                    let (stream, address) = socket.accept().await.unwrap();
                    let (acceptor, registry, watch) = (Arc::clone(&acceptor), registry.clone(), watch.clone());
                    let block = counted.block();
                    tokio::task::spawn_local(async move {
                        let peer = Peer { address: Some(address), ..Peer::default() };
                        acceptor.serve(Io::tcp(stream), peer, None, &registry, &block, &watch).await;
                    });
                }
            }));
        };
        workers.run(0, accept).await.unwrap();
        Self { address, cluster, tunnels, scope, trigger, _workers: workers }
    }

    fn ids(&self) -> Vec<String> {
        self.tunnels.status().into_iter().map(|tunnel| tunnel.id).collect()
    }
}

fn streams(address: SocketAddr, connection_num: u32) -> TunnelAgent {
    TunnelAgent { protocol: ProtocolChoice::Fixed(TunnelProtocol::Http2), ..agent(address, connection_num) }
}

#[tokio::test]
async fn a_weight_changes_while_connections_serve_and_a_close_is_acknowledged() {
    let cloud = Cloud::start().await;
    let edge = Edge::start(streams(cloud.address, 3), AgentInputs::default()).await;
    eventually("three tunnels, and the first measurement", || {
        let seen = cloud.tunnels.status();
        seen.len() == 3 && seen.iter().all(|tunnel| tunnel.round_trip_us.is_some())
    })
    .await;
    assert!(edge.agent.reweigh(77), "the server can be told");
    eventually("all have the weight", || cloud.tunnels.status().iter().all(|tunnel| tunnel.weight == 77)).await;
    let weights = cloud.cluster.weights.lock().clone();
    assert!(weights.len() >= 3 && weights.iter().all(|weight| *weight == 77), "the hosts' weights: {weights:?}");
    edge.stop().await;
    eventually("the server has let go", || cloud.tunnels.status().is_empty()).await;
    let count = |metric| cloud.scope.read(metric);
    assert_eq!((count(ServerMetric::GracefulClose), count(ServerMetric::GracefulCloseIgnored)), (3, 0));
    assert_eq!(count(ServerMetric::Handshakes), 3, "no aside connection was dialled");
}

/// The listener stays and its chain goes: the agent dials anew, and only then are the old ones closed.
#[tokio::test]
async fn agents_are_asked_for_other_connections_when_a_chain_drains() {
    let cloud = Cloud::start().await;
    let edge = Edge::start(streams(cloud.address, 2), AgentInputs::default()).await;
    eventually("two tunnels", || edge.agent.established() == 2 && cloud.ids().len() == 2).await;
    let before = cloud.ids();
    // Nobody is accepted by a chain that drains: the old connections serve on for as long as they are given.
    cloud.trigger.start(Duration::from_secs(60));
    eventually("another dial", || edge.scope.read(AgentMetric::Dials) > 2).await;
    assert_eq!(cloud.ids(), before, "nothing was closed before its replacement was accepted");
    assert_eq!(edge.scope.read(AgentMetric::Lost), 0);
}

/// A server that asks for another connection as often as it can gets one when the back-off says so.
#[tokio::test]
async fn an_agent_is_not_hurried_from_one_connection_to_the_next() {
    let cloud = Cloud::start().await;
    let edge = Edge::start(streams(cloud.address, 1), AgentInputs::default()).await;
    eventually("a tunnel", || edge.agent.established() == 1).await;
    let asked = async {
        while edge.scope.read(AgentMetric::Replaced) < 8 {
            cloud.tunnels.renewed("tunnels");
            sleep(Duration::from_millis(2)).await;
        }
    };
    let begun = tokio::time::Instant::now();
    timeout(Duration::from_secs(60), asked).await.expect("eight replacements");
    // Seven of them after delays at random, of up to 50 ms at first and 500 ms at last.
    let (took, lost) = (begun.elapsed(), edge.scope.read(AgentMetric::Lost));
    assert_eq!(lost, 0, "each replaced the one before");
    assert!(took > Duration::from_millis(150), "eight tunnels within {took:?}");
}

/// A process that ends: agents are told, and what they have serves until there is nothing else.
#[tokio::test]
async fn tunnels_of_a_server_that_ends_go_last() {
    let cloud = Cloud::start().await;
    let edge = Edge::start(streams(cloud.address, 2), AgentInputs::default()).await;
    eventually("two tunnels", || edge.agent.established() == 2 && cloud.ids().len() == 2).await;
    cloud.tunnels.end();
    cloud.trigger.start(Duration::from_secs(60));
    eventually("the agent looks for a successor", || edge.scope.read(AgentMetric::Dials) > 2).await;
    assert_eq!((cloud.tunnels.live(), edge.agent.established()), (2, 2), "both serve still");
    cloud.tunnels.finish();
    eventually("they are gone", || cloud.tunnels.live() == 0 && edge.agent.established() == 0).await;
}
