//! Values that several test modules are made of.

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use culvert_http::{BodyKind, RequestHead, ResponseHead, StreamError};
use culvert_model::Name;
use culvert_model::cluster::{Balancer, Cluster, Discovery, DnsFamily, DnsOptions, UpstreamProtocol};
use culvert_model::endpoint::{Address, Endpoint, Endpoints, Health, Locality};
use culvert_model::http::{Http1Options, Http2Options};
use culvert_model::route::Priority;
use culvert_model::source::{ConfigSource, ConfigSourceKind};
use culvert_model::tunnel::TunnelProtocol;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::LocalSet;

use crate::dns::{LookupError, Resolver};
use crate::pool::{Checkout, DownstreamProtocol, PickContext, WorkerPools};
use crate::{Clusters, TunnelClaim};

pub(crate) fn endpoint(address: Address) -> Endpoint {
    Endpoint { address, hostname: "".into(), weight: 1, health: Health::Healthy, metadata: Arc::default() }
}

pub(crate) fn endpoints(addresses: impl IntoIterator<Item = Address>) -> Arc<Endpoints> {
    let locality = Locality {
        region: "".into(),
        zone: "".into(),
        sub_zone: "".into(),
        priority: 0,
        weight: None,
        endpoints: addresses.into_iter().map(endpoint).collect(),
    };
    Arc::new(Endpoints {
        cluster: "test".into(),
        localities: vec![locality],
        drops: Vec::new(),
        overprovisioning_factor: None,
    })
}

pub(crate) fn ips(addresses: &[SocketAddr]) -> Arc<Endpoints> {
    endpoints(addresses.iter().map(|address| Address::Ip(*address)))
}

pub(crate) fn names(names: &[&str]) -> Arc<Endpoints> {
    endpoints(names.iter().map(|name| Address::Name { host: (*name).into(), port: 80 }))
}

pub(crate) fn dns() -> DnsOptions {
    DnsOptions { refresh: Duration::from_secs(5), respect_ttl: false, family: DnsFamily::V4Only }
}

pub(crate) fn eds() -> Discovery {
    let config = ConfigSource { kind: ConfigSourceKind::Ads, initial_fetch_timeout: Duration::from_secs(15) };
    Discovery::Eds { service_name: "test".into(), config }
}

/// Of addresses that stand in the configuration, HTTP/1, all defaults.
pub(crate) fn cluster(name: &str, addresses: &[SocketAddr]) -> Cluster {
    Cluster {
        name: Name::from(name),
        stat_name: Name::from(name),
        discovery: Discovery::Static(ips(addresses)),
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

pub(crate) fn claim(cluster: &str, agent: &str) -> TunnelClaim {
    TunnelClaim {
        cluster: Name::from(cluster),
        agent: agent.into(),
        weight: 10,
        peer: None,
        protocol: TunnelProtocol::Http1,
        http2: None,
        queue_timeout: Duration::from_secs(5),
        reconnect_window: Duration::ZERO,
        ping_interval: Duration::from_secs(2),
        max_queued_requests: 100,
        max_connections_per_agent: usize::MAX,
        reverse: None,
        may_serve: None,
    }
}

/// A request of default priority by an HTTP/1 client.
pub(crate) fn any() -> PickContext<'static> {
    PickContext {
        priority: Priority::Default,
        agent: None,
        request: None,
        downstream: DownstreamProtocol::Http1,
        tried: &[],
        fresh_picks: 0,
        destinations: None,
    }
}

/// A worker in this task's `LocalSet` with a registry of its own.
pub(crate) fn worker() -> (Arc<Clusters>, Rc<WorkerPools>) {
    let resolver = Resolver::scripted(|_, _| Err(LookupError { reason: "no names here".to_owned() }));
    let clusters = Clusters::new(Handle::current(), resolver);
    let pools = WorkerPools::new(Arc::clone(&clusters));
    (clusters, pools)
}

pub(crate) fn request(path: &str) -> RequestHead {
    RequestHead { authority: "test".to_owned(), path: path.to_owned(), ..RequestHead::new() }
}

/// Sends a GET; the response is still to be read.
pub(crate) async fn send(checkout: &mut Checkout, path: &str) -> Result<(), StreamError> {
    checkout.exchange().send_head(&request(path), BodyKind::Empty).await?;
    checkout.exchange().split().0.finish(None).await
}

/// Reads the response whole.
pub(crate) async fn receive(checkout: &mut Checkout) -> Result<String, StreamError> {
    let (_, mut source) = checkout.exchange().split();
    let mut head = ResponseHead::new(0);
    while head.status < 200 {
        source.head(&mut head).await?;
    }
    let mut body = Vec::new();
    while let Some(chunk) = source.chunk().await? {
        body.extend_from_slice(&chunk);
    }
    Ok(format!("{} {}", head.status, String::from_utf8_lossy(&body)))
}

/// A whole exchange.
pub(crate) async fn get(checkout: &mut Checkout, path: &str) -> Result<String, StreamError> {
    send(checkout, path).await?;
    receive(checkout).await
}

/// Answers HTTP/1 requests with the server's name and the request's path until the client closes. After `/close` it
/// closes the connection without having said so.
pub(crate) async fn serve_http1(mut io: impl AsyncRead + AsyncWrite + Unpin, name: &str) {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            let mut chunk = [0; 1024];
            match io.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(n) => buffer.extend_from_slice(&chunk[..n]),
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        buffer.drain(..end);
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let body = format!("{name} {path}");
        let response = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        if io.write_all(response.as_bytes()).await.is_err() || path == "/close" {
            return;
        }
    }
}

/// Answers HTTP/2 requests with the server's name and the request's path, at most `streams` at a time; `/hold` never.
pub(crate) async fn serve_http2(io: impl AsyncRead + AsyncWrite + Unpin + 'static, name: &'static str, streams: u32) {
    let Ok(mut connection) = h2::server::Builder::new().max_concurrent_streams(streams).handshake::<_, Bytes>(io).await
    else {
        return;
    };
    let mut held = Vec::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let path = request.uri().path().to_owned();
        if path == "/hold" {
            held.push(respond);
            continue;
        }
        let mut body = respond.send_response(http::Response::new(()), false).unwrap();
        body.send_data(format!("{name} {path}").into(), true).unwrap();
    }
}

/// A server on a port of its own: accepts until the `LocalSet` ends; how many connections came.
pub(crate) async fn listen<F: Future<Output = ()> + 'static>(
    serve: impl Fn(TcpStream) -> F + 'static,
) -> (SocketAddr, Rc<Cell<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Rc::new(Cell::new(0));
    let count = Rc::clone(&accepted);
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.set(count.get() + 1);
            tokio::task::spawn_local(serve(stream));
        }
    });
    (address, accepted)
}

/// Runs a test on one worker.
pub(crate) fn on_worker<T>(test: impl Future<Output = T>) -> Pin<Box<impl Future<Output = T>>> {
    // Boxed: a test's future is as large as all that it holds.
    Box::pin(async {
        let set = LocalSet::new();
        set.run_until(tokio::time::timeout(Duration::from_secs(20), test)).await.expect("the test ends in 20 s")
    })
}

/// Waits for a condition that another task brings about.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
