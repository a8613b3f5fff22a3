//! An agent between scripted servers on loopback and a hosting listener that keeps a diary.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use culvert_model::agent::{Credential, ServerSource};
use culvert_model::endpoint::{Address, Endpoint, Health, Locality};
use culvert_model::source::DataSource;
use culvert_model::tunnel::ProtocolChoice;
use culvert_runtime::telemetry::Scope;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::status::{AsideState, ConnectionState};
use crate::wire::{Decoder, Frame, GracefulClose, Init, Response, Status};

mod closing;
mod dialling;
mod list;

/// A listener that serves every connection by sending back what it gets.
#[derive(Clone)]
struct Listener(Rc<ListenerState>);

struct ListenerState {
    there: watch::Sender<bool>,
    served: RefCell<Vec<Hosted>>,
    live: Cell<usize>,
    /// Whether something is in flight that a drain waits for.
    busy: Cell<bool>,
}

/// Requests are nobody's business here.
struct Nobody;

impl HostedRequests for Nobody {
    async fn serve(&self, _exchange: Exchange<'_>) {}
}

impl Hosting for Listener {
    type Requests = Nobody;

    fn requests(&self, _hosted: &Hosted) -> Nobody {
        Nobody
    }

    async fn hosted(&self, listener: &str) {
        assert_eq!(listener, "edge-gateway", "the listener that is asked for");
        drop(self.0.there.subscribe().wait_for(|there| *there).await);
    }

    async fn serve(&self, mut io: Io, hosted: Hosted) {
        let state = &self.0;
        let drain = hosted.drain.clone();
        state.served.borrow_mut().push(hosted);
        state.live.set(state.live.get() + 1);
        let mut buffer = [0; 256];
        loop {
            tokio::select! {
                read = io.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => break,
                    Ok(read) => drop(io.write_all(&buffer[..read]).await),
                },
                () = drain.draining(), if !state.busy.get() => break,
            }
        }
        state.live.set(state.live.get() - 1);
    }
}

/// Everything of one test.
struct Fixture {
    agent: Arc<Agent>,
    listener: Listener,
    scope: Scope<AgentMetric>,
    workers: Vec<JoinHandle<()>>,
}

impl Fixture {
    /// Runs the agent on so many workers (of one thread).
    fn start(config: TunnelAgent, inputs: AgentInputs, workers: usize) -> Self {
        let agent = Agent::new(Arc::new(config), inputs);
        let listener = Listener(Rc::new(ListenerState {
            there: watch::channel(true).0,
            served: RefCell::default(),
            live: Cell::default(),
            busy: Cell::default(),
        }));
        let scope = Scope::default();
        let workers = (0..workers)
            .map(|index| {
                let worker = Worker { index, count: workers };
                tokio::task::spawn_local(Arc::clone(&agent).run(worker, listener.clone(), scope.block()))
            })
            .collect();
        Self { agent, listener, scope, workers }
    }

    fn count(&self, metric: AgentMetric) -> u64 {
        self.scope.read(metric)
    }

    /// Of every connection, in order of peers and indices.
    fn states(&self) -> Vec<ConnectionState> {
        self.agent.status().peers.iter().flat_map(|peer| &peer.connections).map(|connection| connection.state).collect()
    }

    /// Stops, and waits for every worker.
    async fn stopped(self) -> Duration {
        let started = Instant::now();
        self.agent.stop();
        for worker in self.workers {
            timeout(Duration::from_secs(20), worker).await.expect("the agent does not end").unwrap();
        }
        started.elapsed()
    }
}

fn config(servers: Vec<ServerSource>) -> TunnelAgent {
    TunnelAgent {
        name: "agent".into(),
        cluster: "edge".into(),
        hosting_listener: "edge-gateway".into(),
        servers,
        connection_num: 1,
        weight: 10,
        host_name: None,
        credential: None,
        tls: None,
        connect_timeout: Duration::from_secs(5),
        reconnect_base: Duration::from_millis(20),
        reconnect_max: Duration::from_millis(100),
        retry_times: None,
        graceful_close_max_wait: Duration::from_secs(10),
        protocol: ProtocolChoice::Negotiated,
        envoy: None,
        max_servers: 64,
        region: "".into(),
        zone: "".into(),
        max_connection_age: None,
        ping_interval: Duration::from_secs(2),
        destinations: Arc::default(),
    }
}

fn inputs() -> AgentInputs {
    AgentInputs { node_id: "node-1".into(), ..AgentInputs::default() }
}

fn fixed(address: SocketAddr) -> ServerSource {
    ServerSource::Address { address: Address::Ip(address), dns_refresh: Duration::from_secs(5) }
}

/// A scripted tunnel server.
struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { listener, address }
    }

    async fn connection(&self) -> (TcpStream, SocketAddr) {
        timeout(Duration::from_secs(10), self.listener.accept()).await.expect("nobody connects").unwrap()
    }

    /// The next connection, and the init frame on it.
    async fn init(&self) -> (TcpStream, SocketAddr, Init) {
        let (mut stream, peer) = self.connection().await;
        match read_frame(&mut stream).await {
            Frame::Init(init) => (stream, peer, init),
            frame => panic!("{frame:?} instead of an init frame"),
        }
    }

    /// The next connection, accepted with the twenty bytes of a stock server.
    async fn accept(&self) -> (TcpStream, SocketAddr) {
        let (mut stream, peer, _) = self.init().await;
        answer(&mut stream, Status::Success).await;
        (stream, peer)
    }

    /// The next connection, accepted as by a server of ours, for which no aside connection is kept.
    async fn accept_as_ours(&self) -> TcpStream {
        let (mut stream, _, _) = self.init().await;
        let caps = vec![crate::wire::CAPABILITY.to_owned()];
        let response = Frame::Response(Response { status: Status::Success, caps, ..Response::default() });
        stream.write_all(&response.encode().unwrap()).await.unwrap();
        stream
    }
}

async fn answer(stream: &mut TcpStream, status: Status) {
    let response = Frame::Response(Response { status, ..Response::default() });
    stream.write_all(&response.encode().unwrap()).await.unwrap();
}

async fn read_frame(stream: &mut TcpStream) -> Frame {
    let mut decoder = Decoder::new(65_535);
    let reading = async {
        loop {
            if let Some(frame) = decoder.next_frame().unwrap() {
                return frame;
            }
            decoder.push(&[stream.read_u8().await.unwrap()]);
        }
    };
    timeout(Duration::from_secs(10), reading).await.expect("no whole frame came")
}

/// Waits for a condition.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(10), waiting).await.unwrap_or_else(|_| panic!("never came true: {what}"));
}

fn endpoints(addresses: &[SocketAddr]) -> Option<Arc<Endpoints>> {
    let endpoints = addresses
        .iter()
        .map(|address| Endpoint {
            address: Address::Ip(*address),
            hostname: "".into(),
            weight: 1,
            health: Health::Healthy,
            metadata: Arc::default(),
        })
        .collect();
    let locality =
        Locality { region: "".into(), zone: "".into(), sub_zone: "".into(), priority: 0, weight: None, endpoints };
    Some(Arc::new(Endpoints {
        cluster: "servers".into(),
        localities: vec![locality],
        drops: Vec::new(),
        overprovisioning_factor: None,
    }))
}
