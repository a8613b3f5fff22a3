//! Both ends against each other: two workers each, over loopback, with mutual TLS and without.

mod control;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use crate::agent::{Agent, AgentInputs, Hosted, HostedRequests, Hosting, Worker};
use crate::metrics::{AgentMetric, ServerMetric};
use crate::server::{Acceptor, Claim, CloseReason, HostLease, HostRegistry, Peer, Refusal, Tunnels};
use culvert_http::{BodyKind, Exchange, Io, ResponseHead};
use culvert_model::agent::{ServerSource, TunnelAgent};
use culvert_model::endpoint::Address;
use culvert_model::tls::{CommonTls, TlsVersion, UpstreamTls};
use culvert_model::tunnel::{NamePattern, ProtocolChoice, TunnelServer};
use culvert_runtime::drain::{self, Trigger, Watch};
use culvert_runtime::sockets::{self, ListenOptions};
use culvert_runtime::telemetry::Scope;
use culvert_runtime::tls::{
    CertificateDetails, ClientTls, Identity, Roots, ServerTls, Trust, Version, client_config, server_config,
};
use culvert_runtime::workers::Workers;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

/// A cluster whose hosts each send one request and check the answer.
#[derive(Clone, Default)]
struct Cluster {
    answered: Arc<AtomicUsize>,
}

struct Lease {
    cluster: Cluster,
    drain: Notify,
}

impl HostRegistry for Cluster {
    type Lease = Lease;

    async fn register(&self, claim: Claim) -> Result<Lease, Refusal> {
        assert_eq!(&*claim.cluster, "edge", "the cluster that is claimed");
        Ok(Lease { cluster: self.clone(), drain: Notify::new() })
    }
}

impl HostLease for Lease {
    fn set_weight(&self, _weight: u32) {}

    fn set_may_serve(&self, _clusters: &Arc<[NamePattern]>) -> bool {
        false
    }

    fn end_lapsed(&self) -> bool {
        false
    }

    async fn exchange(&self) -> Option<culvert_http::ClientExchange> {
        None
    }

    async fn attach(&self, mut io: Io) -> CloseReason {
        let mut answer = [0; 7];
        if io.write_all(b"request").await.is_ok() && io.read_exact(&mut answer).await.is_ok() && &answer == b"REQUEST" {
            self.cluster.answered.fetch_add(1, Ordering::Relaxed);
        }
        tokio::select! {
            _ = io.read(&mut answer) => {}
            () = self.drain.notified() => drop(io.shutdown().await),
        }
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
}

/// Answers every request by 418.
struct Teapot;

impl HostedRequests for Teapot {
    async fn serve(&self, exchange: Exchange<'_>) {
        let mut response = exchange.response;
        let head = ResponseHead::new(418);
        response.head(&head, BodyKind::Empty).await.unwrap();
        assert!(response.finish(None).await.is_ok());
    }
}

/// Serves in capitals.
#[derive(Clone)]
struct Capitals;

impl Hosting for Capitals {
    type Requests = Teapot;

    fn requests(&self, _hosted: &Hosted) -> Teapot {
        Teapot
    }

    async fn hosted(&self, _listener: &str) {}

    async fn serve(&self, mut io: Io, hosted: Hosted) {
        let mut buffer = [0; 64];
        loop {
            tokio::select! {
                read = io.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(read) => {
                        buffer[..read].make_ascii_uppercase();
                        drop(io.write_all(&buffer[..read]).await);
                    }
                },
                () = hosted.drain.draining() => return,
            }
        }
    }
}

/// A tunnel server on two workers.
struct Server {
    address: SocketAddr,
    cluster: Cluster,
    tunnels: Arc<Tunnels>,
    scope: Arc<Scope<ServerMetric>>,
    trigger: Trigger,
    workers: Workers<()>,
}

impl Server {
    async fn start(address: SocketAddr, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let sockets = sockets::bind(address, 2, ListenOptions::default()).unwrap();
        let address = sockets[0].local_addr().unwrap();
        let tunnels = Arc::<Tunnels>::default();
        let acceptor = Acceptor::new(Arc::new(server()), Vec::new(), Arc::clone(&tunnels));
        let (trigger, watch) = drain::channel();
        let (cluster, scope) = (Cluster::default(), Arc::<Scope<ServerMetric>>::default());
        let workers = Workers::start(2, "server", |_| ()).unwrap();
        for (index, socket) in sockets.into_iter().enumerate() {
            let listening = Listening {
                acceptor: Arc::clone(&acceptor),
                cluster: cluster.clone(),
                scope: Arc::clone(&scope),
                watch: watch.clone(),
                tls: tls.clone().map(TlsAcceptor::from),
            };
            let accept = move |_: &std::rc::Rc<()>| drop(tokio::task::spawn_local(listening.accept(socket)));
            workers.run(index, accept).await.unwrap();
        }
        Self { address, cluster, tunnels, scope, trigger, workers }
    }

    fn count(&self, metric: ServerMetric) -> u64 {
        self.scope.read(metric)
    }
}

#[derive(Clone)]
struct Listening {
    acceptor: Arc<Acceptor>,
    cluster: Cluster,
    scope: Arc<Scope<ServerMetric>>,
    watch: Watch,
    tls: Option<TlsAcceptor>,
}

impl Listening {
    async fn accept(self, socket: std::net::TcpListener) {
        let socket = tokio::net::TcpListener::from_std(socket).unwrap();
        loop {
            let (stream, address) = socket.accept().await.unwrap();
            let listening = self.clone();
            tokio::task::spawn_local(async move { listening.serve(Io::tcp(stream), address).await });
        }
    }

    async fn serve(self, io: Io, address: SocketAddr) {
        let mut peer = Peer { address: Some(address), ..Peer::default() };
        let io = match &self.tls {
            None => io,
            Some(tls) => {
                let stream = tls.accept(Box::new(io)).await.unwrap();
                let certificates = stream.get_ref().1.peer_certificates().unwrap();
                let details = CertificateDetails::parse(&certificates[0]).unwrap();
                peer.identity = details.uri_sans.first().map(|name| name.as_str().into());
                Io::tls_server(stream)
            }
        };
        self.acceptor.serve(io, peer, None, &self.cluster, &self.scope.block(), &self.watch).await;
    }
}

/// An agent on two workers.
struct Edge {
    agent: Arc<Agent>,
    scope: Arc<Scope<AgentMetric>>,
    ended: Arc<AtomicUsize>,
    _workers: Workers<()>,
}

impl Edge {
    async fn start(config: TunnelAgent, inputs: AgentInputs) -> Self {
        let agent = Agent::new(Arc::new(config), inputs);
        let (scope, ended) = (Arc::<Scope<AgentMetric>>::default(), Arc::<AtomicUsize>::default());
        let workers = Workers::start(2, "edge", |_| ()).unwrap();
        for index in 0..2 {
            let (agent, scope, ended) = (Arc::clone(&agent), Arc::clone(&scope), Arc::clone(&ended));
            let run = move |_: &std::rc::Rc<()>| {
                drop(tokio::task::spawn_local(async move {
                    agent.run(Worker { index, count: 2 }, Capitals, scope.block()).await;
                    ended.fetch_add(1, Ordering::Relaxed);
                }));
            };
            workers.run(index, run).await.unwrap();
        }
        Self { agent, scope, ended, _workers: workers }
    }

    async fn stop(&self) {
        self.agent.stop();
        eventually("the agent ends on both workers", || self.ended.load(Ordering::Relaxed) == 2).await;
    }
}

fn server() -> TunnelServer {
    TunnelServer {
        stat_prefix: "tunnels".into(),
        policies: Vec::new(),
        allowed_clusters: Arc::default(),
        handshake_timeout: Duration::from_secs(5),
        max_handshake_bytes: 16_384,
        max_pending_handshakes: 1024,
        max_connections_per_agent: 4096,
        protocol: ProtocolChoice::Negotiated,
        queue_timeout: Duration::from_secs(5),
        max_queued_requests: 1024,
        mosn: true,
        reverse: Box::default(),
        reconnect_window: Duration::from_secs(5),
        max_pending_handshakes_per_source: 1024,
        max_handshakes_per_second_per_source: None,
        ping_interval: Duration::from_secs(2),
        policy: None,
    }
}

fn agent(address: SocketAddr, connection_num: u32) -> TunnelAgent {
    TunnelAgent {
        name: "agent".into(),
        cluster: "edge".into(),
        hosting_listener: "edge-gateway".into(),
        servers: vec![ServerSource::Address { address: Address::Ip(address), dns_refresh: Duration::from_secs(5) }],
        connection_num,
        weight: 10,
        host_name: Some("edge-7".into()),
        credential: None,
        tls: None,
        connect_timeout: Duration::from_secs(15),
        reconnect_base: Duration::from_millis(50),
        reconnect_max: Duration::from_millis(500),
        retry_times: None,
        graceful_close_max_wait: Duration::from_secs(10),
        protocol: ProtocolChoice::Fixed(culvert_model::tunnel::TunnelProtocol::Http1),
        envoy: None,
        max_servers: 2,
        region: "".into(),
        zone: "".into(),
        max_connection_age: None,
        ping_interval: Duration::from_secs(2),
        destinations: Arc::default(),
    }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(90), waiting).await.unwrap_or_else(|_| panic!("never came true: {what}"));
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A certificate authority, and both ends' TLS under it.
fn mutual_tls() -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let trust = Trust { roots: Roots::Pem(authority.pem().into_bytes().into()), crl: None, sans: Vec::new() };
    let identity = |name: SanType| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        Identity::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    };
    let (min, max) = (Version::V1_2, Version::V1_3);
    let server = server_config(ServerTls {
        identities: vec![identity(SanType::IpAddress([127, 0, 0, 1].into()))],
        trust: Some(trust.clone()),
        require_client_certificate: true,
        alpn: Vec::new(),
        min,
        max,
    });
    let client = client_config(ClientTls {
        identity: Some(identity(SanType::URI("spiffe://td/agent/7".try_into().unwrap()))),
        trust: Some(trust),
        verify_server_name: false,
        send_server_name: true,
        alpn: Vec::new(),
        min,
        max,
    });
    (server.unwrap(), client.unwrap())
}

#[tokio::test]
async fn over_mutual_tls_to_the_graceful_close() {
    let (server_tls, client_tls) = mutual_tls();
    let server = Server::start(loopback(), Some(server_tls)).await;
    let common = CommonTls {
        certificates: Vec::new(),
        validation: None,
        validation_default: None,
        alpn: Vec::new(),
        min: TlsVersion::V1_2,
        max: TlsVersion::V1_3,
    };
    let tls = UpstreamTls { common, sni: None, auto_host_sni: false, auto_sni_san_validation: false };
    let config = TunnelAgent { tls: Some(Arc::new(tls)), ..agent(server.address, 8) };
    let (secrets, receiver) = watch::channel(None);
    let inputs = AgentInputs { tls: Some(receiver), ..AgentInputs::default() };
    let edge = Edge::start(config, inputs).await;
    secrets.send_replace(Some(client_tls));
    eventually("eight requests through eight tunnels", || server.cluster.answered.load(Ordering::Relaxed) == 8).await;
    let seen = server.tunnels.status();
    assert_eq!(seen.len(), 8, "{seen:?}");
    for tunnel in &seen {
        assert_eq!(tunnel.identity.as_deref(), Some("spiffe://td/agent/7"), "{tunnel:?}");
        assert_eq!(tunnel.host_name, "edge-7", "{tunnel:?}");
    }
    let mut ids: Vec<_> = seen.iter().map(|tunnel| Some(tunnel.id.clone())).collect();
    let connections = edge.agent.status().peers.remove(0).connections;
    let mut theirs: Vec<_> = connections.into_iter().map(|connection| connection.id).collect();
    ids.sort();
    theirs.sort();
    assert_eq!(theirs, ids, "both ends call the connections the same");
    let started = SystemTime::now();
    edge.stop().await;
    let took = started.elapsed().unwrap();
    assert!(took < Duration::from_secs(5), "ended early, not after the 10 s of the maximum: {took:?}");
    eventually("the server has let go", || server.count(ServerMetric::Active) == 0).await;
    assert_eq!(server.count(ServerMetric::GracefulClose), 8);
    assert_eq!(server.count(ServerMetric::GracefulCloseIgnored), 0);
    assert_eq!(server.tunnels.status(), []);
}

#[tokio::test]
async fn the_agent_comes_back_when_the_server_does() {
    let server = Server::start(loopback(), None).await;
    let address = server.address;
    let edge = Edge::start(agent(address, 4), AgentInputs::default()).await;
    eventually("four tunnels", || server.cluster.answered.load(Ordering::Relaxed) == 4).await;
    server.trigger.start(Duration::from_secs(5));
    eventually("drained", || server.count(ServerMetric::Active) == 0).await;
    server.workers.stop();
    eventually("noticed", || edge.agent.established() == 0).await;
    let server = Server::start(address, None).await;
    eventually("four tunnels again", || server.cluster.answered.load(Ordering::Relaxed) >= 4).await;
    eventually("nothing doubled", || server.count(ServerMetric::Active) == 4 && edge.agent.established() == 4).await;
    assert!(edge.scope.read(AgentMetric::Reconnects) >= 4, "{}", edge.scope.read(AgentMetric::Reconnects));
    edge.stop().await;
}

/// Registration costs the same however many there are.
#[tokio::test]
async fn a_thousand_tunnels_come_and_go() {
    let server = Server::start(loopback(), None).await;
    let edge = Edge::start(agent(server.address, 1000), AgentInputs::default()).await;
    eventually("a thousand tunnels", || server.cluster.answered.load(Ordering::Relaxed) == 1000).await;
    assert_eq!(server.tunnels.live(), 1000);
    edge.stop().await;
    eventually("the server has let go", || server.count(ServerMetric::Active) == 0).await;
    assert_eq!(server.count(ServerMetric::GracefulClose), 1000, "told in frames that fit the server's limit");
    assert_eq!(server.count(ServerMetric::GracefulCloseIgnored), 0);
}
