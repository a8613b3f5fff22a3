//! A tunnel server between scripted agents and a registry that keeps a diary.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use culvert_model::source::DataSource;
use culvert_model::tunnel::{CredentialPolicy, NamePattern, ProtocolChoice, TunnelServer};
use culvert_runtime::drain::{self, Trigger, Watch};
use culvert_runtime::telemetry::Scope;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::Instant;

use super::*;
use crate::metrics::ServerMetric;
use crate::wire::{Frame, GracefulClose, Init, Response, Secret};

mod admission;
mod asides;
mod envoy;
mod identities;
mod life;

/// What happened at the registry, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Event {
    Registered(String),
    Attached(ConnectionId),
    Drained(ConnectionId),
    Dropped(ConnectionId),
    Lapsed(ConnectionId),
}

#[derive(Clone)]
struct Registry(Rc<RegistryState>);

struct RegistryState {
    diary: RefCell<Vec<Event>>,
    claims: RefCell<Vec<Claim>>,
    refusal: Cell<Option<Refusal>>,
    /// Registration waits for `open`.
    gated: Cell<bool>,
    /// Nobody wants a connection before `open`.
    resting: Cell<bool>,
    open: Notify,
    /// What a connection sends to its agent as soon as it is attached.
    greeting: RefCell<Vec<u8>>,
    /// What the agents sent to the application protocol.
    received: RefCell<Vec<u8>>,
    /// Whether something is in flight that a drain waits for.
    busy: Cell<bool>,
    /// Whether whatever policy comes takes a cluster away.
    shared: Cell<bool>,
}

struct Lease {
    state: Rc<RegistryState>,
    id: ConnectionId,
    drain: Notify,
}

impl HostRegistry for Registry {
    type Lease = Lease;

    async fn register(&self, claim: Claim) -> Result<Lease, Refusal> {
        let state = &self.0;
        if let Some(refusal) = state.refusal.get() {
            return Err(refusal);
        }
        if state.gated.get() {
            state.open.notified().await;
        }
        state.diary.borrow_mut().push(Event::Registered(claim.cluster.to_string()));
        state.claims.borrow_mut().push(claim.clone());
        Ok(Lease { state: Rc::clone(state), id: claim.id, drain: Notify::new() })
    }
}

impl HostLease for Lease {
    async fn wanted(&self) {
        if self.state.resting.get() {
            self.state.open.notified().await;
        }
    }

    fn set_weight(&self, _weight: u32) {}

    fn set_may_serve(&self, _clusters: &Arc<[NamePattern]>) -> bool {
        self.state.shared.get()
    }

    fn end_lapsed(&self) -> bool {
        self.state.diary.borrow_mut().push(Event::Lapsed(self.id));
        self.state.busy.get()
    }

    async fn exchange(&self) -> Option<ClientExchange> {
        None
    }

    async fn attach(&self, mut io: Io) -> CloseReason {
        self.state.diary.borrow_mut().push(Event::Attached(self.id));
        let greeting = self.state.greeting.borrow().clone();
        drop(io.write_all(&greeting).await);
        let mut buffer = [0; 256];
        loop {
            tokio::select! {
                read = io.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => return CloseReason::Closed,
                    Ok(read) => self.state.received.borrow_mut().extend_from_slice(&buffer[..read]),
                },
                () = self.drain.notified(), if !self.state.busy.get() => return CloseReason::Drained,
            }
        }
    }

    fn carried(&self) -> u64 {
        0
    }

    fn is_idle(&self) -> bool {
        !self.state.busy.get()
    }

    fn drain(&self) {
        self.state.diary.borrow_mut().push(Event::Drained(self.id));
        self.drain.notify_one();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.state.diary.borrow_mut().push(Event::Dropped(self.id));
    }
}

/// The defaults of the `TunnelServer` message.
fn config() -> TunnelServer {
    TunnelServer {
        stat_prefix: "tunnels".into(),
        policies: Vec::new(),
        allowed_clusters: Arc::default(),
        handshake_timeout: Duration::from_secs(5),
        max_handshake_bytes: 16_384,
        max_pending_handshakes: 1024,
        max_connections_per_agent: 1024,
        protocol: ProtocolChoice::Negotiated,
        queue_timeout: Duration::from_secs(5),
        max_queued_requests: 1024,
        mosn: true,
        reverse: Box::default(),
        reconnect_window: Duration::from_secs(5),
        max_pending_handshakes_per_source: 256,
        max_handshakes_per_second_per_source: None,
        ping_interval: Duration::from_secs(2),
        policy: None,
    }
}

struct Fixture {
    acceptor: Arc<Acceptor>,
    tunnels: Arc<Tunnels>,
    scope: Scope<ServerMetric>,
    registry: Registry,
    trigger: Trigger,
    watch: Watch,
}

/// An agent's end of a connection, and what became of the server's.
struct Connected {
    agent: DuplexStream,
    served: JoinHandle<Ended>,
}

impl Fixture {
    fn new(config: TunnelServer, tokens: Tokens) -> Self {
        Self::with_limits(config, tokens, ReverseLimits::default())
    }

    fn with_limits(config: TunnelServer, tokens: Tokens, limits: ReverseLimits) -> Self {
        let tunnels = Arc::new(Tunnels::new(limits, None));
        let (trigger, watch) = drain::channel();
        let registry = Registry(Rc::new(RegistryState {
            diary: RefCell::default(),
            claims: RefCell::default(),
            refusal: Cell::default(),
            gated: Cell::default(),
            resting: Cell::default(),
            open: Notify::new(),
            greeting: RefCell::default(),
            received: RefCell::default(),
            busy: Cell::default(),
            shared: Cell::default(),
        }));
        Self {
            acceptor: Acceptor::new(Arc::new(config), tokens, Arc::clone(&tunnels)),
            tunnels,
            scope: Scope::default(),
            registry,
            trigger,
            watch,
        }
    }

    /// An agent at `address` connects.
    fn connect(&self, address: &str) -> Connected {
        self.connect_as(Peer { address: Some(address.parse().unwrap()), ..Peer::default() })
    }

    fn connect_as(&self, peer: Peer) -> Connected {
        let (agent, server) = tokio::io::duplex(100_000);
        Connected { agent, served: self.serve(Io::memory(server), peer) }
    }

    fn serve(&self, io: Io, peer: Peer) -> JoinHandle<Ended> {
        let (acceptor, registry) = (Arc::clone(&self.acceptor), self.registry.clone());
        let (metrics, watch) = (self.scope.block(), self.watch.clone());
        tokio::task::spawn_local(async move { acceptor.serve(io, peer, None, &registry, &metrics, &watch).await })
    }

    /// An agent that has been accepted.
    async fn join(&self, address: &str, init: Init) -> (Connected, Response) {
        let mut connected = self.connect(address);
        connected.send(Frame::Init(init)).await;
        let response = connected.response().await;
        (connected, response)
    }

    fn count(&self, metric: ServerMetric) -> u64 {
        self.scope.read(metric)
    }

    fn diary(&self) -> Vec<Event> {
        self.registry.0.diary.borrow().clone()
    }
}

impl Connected {
    async fn send(&mut self, frame: Frame) {
        self.agent.write_all(&frame.encode().unwrap()).await.unwrap();
    }

    async fn response(&mut self) -> Response {
        match self.frame().await {
            Frame::Response(response) => response,
            frame => panic!("{frame:?} instead of a response"),
        }
    }

    async fn frame(&mut self) -> Frame {
        let mut decoder = crate::wire::Decoder::new(65_535);
        loop {
            if let Some(frame) = decoder.next_frame().unwrap() {
                return frame;
            }
            let reading = tokio::time::timeout(Duration::from_secs(300), self.agent.read_u8()).await;
            decoder.push(&[reading.expect("no whole frame came").unwrap()]);
        }
    }

    /// Everything up to the end of the connection.
    async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let reading = tokio::time::timeout(Duration::from_secs(300), self.agent.read_to_end(&mut rest)).await;
        assert!(reading.is_ok(), "not closed after 5 minutes, sent: {:?}", String::from_utf8_lossy(&rest));
        rest
    }

    async fn ended(self) -> Ended {
        drop(self.agent);
        finished(self.served).await
    }
}

/// Waits for the end of a connection on the server.
async fn finished(served: JoinHandle<Ended>) -> Ended {
    tokio::time::timeout(Duration::from_secs(300), served).await.expect("the connection does not end").unwrap()
}

fn init(cluster: &str) -> Init {
    Init { cluster_name: cluster.into(), weight: 10, ..Init::default() }
}

fn capable(cluster: &str) -> Init {
    Init { caps: vec![crate::wire::CAPABILITY.into()], ..init(cluster) }
}

fn with_credential(cluster: &str, policy: &str, credential: &str) -> Init {
    Init { credential_policy: policy.into(), credential: Secret(credential.into()), ..init(cluster) }
}

fn policy(name: &str, clusters: &[&str]) -> CredentialPolicy {
    CredentialPolicy {
        name: name.into(),
        tokens: vec![DataSource::Inline(Arc::from(&b"unused: tokens are resolved outside"[..]))],
        clusters: clusters.iter().map(|cluster| NamePattern::Exact((*cluster).into())).collect(),
        bound: false,
    }
}

fn token(text: &str) -> Arc<[u8]> {
    Arc::from(text.as_bytes())
}

const AGENT: &str = "192.0.2.1:4000";
