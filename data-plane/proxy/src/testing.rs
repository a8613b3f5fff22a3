//! Values that tests of several modules begin from.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_http::Io;
use culvert_model::cluster::{Balancer, Cluster, Discovery, UpstreamProtocol};
use culvert_model::endpoint::{Address, Endpoint, Endpoints, Health, Locality};
use culvert_model::http::{
    ClientCertDetails, Codec, EscapedSlashes, ForwardClientCert, Http1Options, Http2Options, HttpConnectionManager,
    RouteSource, RouterOptions, ServerHeader, StripPort, UnderscoreAction,
};
use culvert_model::listener::{FilterChain, FilterChainMatch, Listener, NetworkFilter};
use culvert_model::route::{
    Action, ClusterChoice, ClusterRef, HeaderMutations, PathMatch, Priority, RequireTls, Route, RouteAction,
    RouteConfiguration, RouteMatch, VirtualHost,
};
use culvert_model::tls::DownstreamTls;
use culvert_model::tunnel::TunnelServer;
use culvert_runtime::drain::Trigger;
use culvert_runtime::telemetry::{Registry, ScopePath};
use culvert_tunnel::server::{Acceptor, Tokens, Tunnels};
use culvert_upstream::{Clusters, Resolver, WorkerPools};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::access_log::LogSinks;
use crate::listener::{
    ChainInputs, Downstream, FilterChains, ListenerSlot, Listeners, OfTunnel, TlsSlot, serve_hosted,
};
use crate::routes::RouteSlots;
use crate::stats::HttpMetric;
use crate::worker::{Process, Worker};

/// A connection from 192.0.2.1:4711 to 198.51.100.1:80.
pub(crate) fn downstream() -> Downstream {
    Downstream {
        id: 1,
        remote: "192.0.2.1:4711".parse().unwrap(),
        local: "198.51.100.1:80".parse().unwrap(),
        start: Instant::now(),
        tls: None,
        server_name: None,
        chain: "chain".into(),
        hosted: None,
    }
}

/// No virtual hosts.
pub(crate) fn routes() -> RouteConfiguration {
    RouteConfiguration {
        name: "routes".into(),
        virtual_hosts: Vec::new(),
        headers: HeaderMutations::default(),
        most_specific_header_mutations_wins: false,
        validate_clusters: false,
        ignore_port_in_host: false,
        max_direct_response_body: 4096,
        vhds: None,
        on_demand: None,
    }
}

/// Envoy's defaults.
pub(crate) fn manager() -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: "in".into(),
        codec: Codec::Auto,
        routes: RouteSource::Inline(Arc::new(routes())),
        http1: Http1Options::default(),
        http2: Http2Options::default(),
        server_name: "envoy".into(),
        server_header: ServerHeader::Overwrite,
        via: "".into(),
        generate_request_id: true,
        preserve_external_request_id: false,
        always_set_request_id_in_response: false,
        use_remote_address: false,
        xff_num_trusted_hops: 0,
        skip_xff_append: false,
        internal_addresses: Vec::new(),
        forward_client_cert: ForwardClientCert::Sanitize,
        client_cert_details: ClientCertDetails::default(),
        normalize_path: false,
        merge_slashes: false,
        escaped_slashes: EscapedSlashes::Keep,
        max_request_headers_bytes: 60 * 1024,
        max_headers_count: 100,
        headers_with_underscores: UnderscoreAction::Allow,
        idle_timeout: Some(Duration::from_secs(3600)),
        max_connection_duration: None,
        max_requests_per_connection: None,
        stream_idle_timeout: Some(Duration::from_secs(300)),
        request_timeout: None,
        request_headers_timeout: Some(Duration::from_secs(10)),
        drain_timeout: Duration::from_secs(5),
        delayed_close_timeout: Duration::from_secs(1),
        upgrades: Vec::new(),
        access_log: Vec::new(),
        strip_port: StripPort::Keep,
        strip_trailing_host_dot: false,
        stream_error_on_invalid: false,
        scheme_override: None,
        router: RouterOptions::default(),
        router_discovery: None,
        on_demand: None,
    }
}

/// A static HTTP/1 cluster.
pub(crate) fn cluster(name: &str, addresses: &[SocketAddr]) -> Cluster {
    let endpoint = |address: &SocketAddr| Endpoint {
        address: Address::Ip(*address),
        hostname: "host.internal".into(),
        weight: 1,
        health: Health::Healthy,
        metadata: Arc::default(),
    };
    let locality = Locality {
        region: "".into(),
        zone: "".into(),
        sub_zone: "".into(),
        priority: 0,
        weight: None,
        endpoints: addresses.iter().map(endpoint).collect(),
    };
    let endpoints = Endpoints {
        cluster: name.into(),
        localities: vec![locality],
        drops: Vec::new(),
        overprovisioning_factor: None,
    };
    Cluster {
        name: name.into(),
        stat_name: name.into(),
        discovery: Discovery::Static(Arc::new(endpoints)),
        connect_timeout: Duration::from_secs(5),
        balancer: Balancer::RoundRobin,
        breakers: Default::default(),
        tls: None,
        protocol: UpstreamProtocol::Http1,
        http1: Http1Options::default(),
        http2: Http2Options::default(),
        idle_timeout: Some(Duration::from_secs(3600)),
        max_connection_duration: None,
        max_requests_per_connection: None,
        buffer_limit: 1024 * 1024,
        tcp_keepalive: None,
        source_address: None,
        panic_threshold_percent: 50,
        locality_weighted: false,
        overprovisioning_factor: 140,
        close_connections_on_host_removal: false,
        transports: Arc::default(),
        auto_sni: None,
    }
}

/// A route of everything under `prefix`.
pub(crate) fn route(prefix: &str, action: Action) -> Route {
    let matches = RouteMatch {
        path: PathMatch::Prefix(prefix.into()),
        ignore_case: false,
        headers: Vec::new(),
        query: Vec::new(),
        grpc: false,
        runtime_fraction: None,
        tls_context: None,
    };
    Route { name: prefix.into(), matches, action, headers: HeaderMutations::default(), on_demand: None, regex_bytes: 0 }
}

/// To one cluster, with Envoy's defaults.
pub(crate) fn to(cluster: &str) -> RouteAction {
    RouteAction {
        clusters: ClusterChoice::One(ClusterRef { cluster: cluster.into(), agent: None }),
        cluster_not_found: 503,
        path_rewrite: None,
        host_rewrite: None,
        append_x_forwarded_host: false,
        timeout: Duration::from_secs(15),
        idle_timeout: None,
        grpc_timeout_max: None,
        retry: None,
        upgrades: Vec::new(),
        priority: Priority::Default,
    }
}

pub(crate) fn forward(action: RouteAction) -> Action {
    Action::Forward(Arc::new(action))
}

/// One virtual host for every domain.
pub(crate) fn virtual_host(routes: Vec<Route>) -> VirtualHost {
    VirtualHost {
        name: "all".into(),
        domains: vec!["*".into()],
        routes: routes.into_iter().map(Arc::new).collect(),
        require_tls: RequireTls::None,
        headers: HeaderMutations::default(),
        retry: None,
        include_attempt_count_in_request: false,
        include_attempt_count_in_response: false,
        on_demand: None,
    }
}

/// A connection manager with these routes.
pub(crate) fn manager_of(hosts: Vec<VirtualHost>) -> HttpConnectionManager {
    let routes = RouteConfiguration { virtual_hosts: hosts, ..routes() };
    HttpConnectionManager { routes: RouteSource::Inline(Arc::new(routes)), ..manager() }
}

/// A chain without criteria.
pub(crate) fn chain(filter: NetworkFilter) -> FilterChain {
    FilterChain {
        name: "chain".into(),
        matches: FilterChainMatch::default(),
        tls: None,
        transport_timeout: Duration::from_secs(10),
        filter,
        asked: None,
    }
}

pub(crate) fn listener(chains: Vec<FilterChain>) -> Listener {
    Listener {
        name: "in".into(),
        address: None,
        filter_chains: chains.into_iter().map(Arc::new).collect(),
        udp: None,
        ipv4_compat: false,
        default_filter_chain: None,
        inspect_tls: false,
        listener_filters_timeout: Duration::from_secs(15),
        buffer_limit: 1024 * 1024,
        access_log: Vec::new(),
        tcp_backlog: 128,
        accepts_per_event: 1,
        max_connections: None,
        drain_modify_only: false,
        reverse: Vec::new(),
    }
}

/// One worker with one listener called `in`, whose connections come through memory.
pub(crate) struct Gateway {
    pub(crate) worker: Rc<Worker>,
    pub(crate) slot: Arc<ListenerSlot>,
    _drain: Trigger,
}

impl Gateway {
    pub(crate) fn start(clusters: Vec<Cluster>, listener: Listener) -> Self {
        let (drain, watch) = culvert_runtime::drain::channel();
        let process = Arc::new(Process {
            clusters: Clusters::new(tokio::runtime::Handle::current(), Resolver::system()),
            listeners: Listeners::default(),
            routes: RouteSlots::default(),
            scopes: Arc::default(),
            demands: Arc::default(),
            shares: crate::shares::Shares::default(),
            registry: Registry::default(),
            logs: LogSinks::start().unwrap(),
            hostname: "gw-1".into(),
            drain: watch,
        });
        for cluster in clusters {
            process.clusters.apply(Arc::new(cluster), None);
        }
        let slot = ListenerSlot::new("in".into(), None, &process);
        assert!(process.listeners.insert(Arc::clone(&slot)).is_none(), "the first listener of its name");
        let pools = WorkerPools::new(Arc::clone(&process.clusters));
        let gateway = Self { worker: Worker::new(process, pools), slot, _drain: drain };
        gateway.publish(listener, &|_| unreachable!("no TLS here"));
        gateway
    }

    pub(crate) fn http(clusters: Vec<Cluster>, manager: HttpConnectionManager) -> Self {
        Self::start(clusters, listener(vec![chain(NetworkFilter::Http(Arc::new(manager)))]))
    }

    pub(crate) fn publish(&self, listener: Listener, tls: &dyn Fn(&Arc<DownstreamTls>) -> Arc<TlsSlot>) {
        let tunnels = Arc::<Tunnels>::default();
        let tunnel =
            |config: &Arc<TunnelServer>| Ok(Acceptor::new(Arc::clone(config), Tokens::default(), Arc::clone(&tunnels)));
        let inputs = ChainInputs { tls, tunnel: &tunnel };
        let process = &self.worker.process;
        let chains = FilterChains::compile(Arc::new(listener), &self.slot, process, &inputs).unwrap();
        drop(self.slot.publish(chains, Duration::from_secs(5)));
    }

    /// A client's end of a new connection.
    pub(crate) fn connect(&self) -> DuplexStream {
        self.connect_over(256 * 1024)
    }

    /// [`Self::connect`] over a pipe that holds so many bytes in each direction.
    pub(crate) fn connect_over(&self, bytes: usize) -> DuplexStream {
        let (client, server) = tokio::io::duplex(bytes);
        let (worker, slot) = (Rc::clone(&self.worker), Arc::clone(&self.slot));
        tokio::task::spawn_local(async move {
            let Downstream { remote, local, .. } = downstream();
            let (io, of_tunnel) =
                (Io::memory(server), OfTunnel { ping_interval: Some(Duration::from_secs(2)), ..OfTunnel::default() });
            serve_hosted(&worker, &slot, io, (remote, local), of_tunnel, std::future::pending(), || false).await;
        });
        client
    }

    /// Sends `request` on a connection of its own and returns what comes back until the connection ends.
    pub(crate) async fn exchange(&self, request: &str) -> String {
        let mut client = self.connect();
        client.write_all(request.as_bytes()).await.unwrap();
        let mut seen = Vec::new();
        tokio::time::timeout(Duration::from_secs(60), client.read_to_end(&mut seen)).await.unwrap().unwrap();
        String::from_utf8(seen).unwrap()
    }

    /// The response to a GET, its connection closed after it.
    pub(crate) async fn get(&self, path: &str) -> String {
        self.exchange(&format!("GET {path} HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n")).await
    }

    /// A counter of the connection manager.
    pub(crate) fn http_stat(&self, metric: HttpMetric) -> u64 {
        self.worker.process.registry.scope::<HttpMetric>(ScopePath::http("in")).read(metric)
    }
}

/// An HTTP/1 server that answers each request with the bytes that `answer` makes of its head and body.
pub(crate) async fn backend(answer: impl Fn(&str) -> String + 'static) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let answer = Rc::new(answer);
    tokio::task::spawn_local(async move {
        loop {
            let (stream, _) = socket.accept().await.unwrap();
            tokio::task::spawn_local(answer_all(stream, Rc::clone(&answer)));
        }
    });
    address
}

async fn answer_all(mut stream: TcpStream, answer: Rc<impl Fn(&str) -> String>) {
    let mut seen = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&seen).into_owned();
        let whole = text.split_once("\r\n\r\n").and_then(|(head, body)| {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length = length.map_or(0, |length| length.parse::<usize>().unwrap());
            let chunked = head.contains("transfer-encoding: chunked");
            let length = if chunked { body.find("0\r\n\r\n").map(|at| at + 5)? } else { length };
            (body.len() >= length).then_some(head.len() + 4 + length)
        });
        if let Some(length) = whole {
            let reply = answer(&text[..length]);
            seen.drain(..length);
            // An empty answer hangs up.
            if reply.is_empty() || stream.write_all(reply.as_bytes()).await.is_err() {
                return;
            }
            continue;
        }
        match stream.read_buf(&mut seen).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// A response with a body.
pub(crate) fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// Runs a test on a worker of its own.
pub(crate) fn on_worker(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}
