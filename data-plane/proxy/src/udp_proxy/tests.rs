mod attacks;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::cluster::{Cluster, UpstreamProtocol};
use culvert_model::http::{Http2Options, HttpConnectionManager, UpgradeConfig};
use culvert_model::listener::{DatagramBuffer, Listener, UdpProxy, UdpTunneling};
use culvert_model::route::{HeaderMutations, PathMatch, Route, RouteAction};
use culvert_runtime::sockets;
use culvert_runtime::telemetry::ScopePath;
use tokio::net::UdpSocket;

use super::serve_datagrams;
use crate::listener::serve_listener;
use crate::stats::{ListenerMetric, UdpClusterMetric, UdpMetric};
use crate::testing::{Gateway, cluster, forward, listener, manager_of, on_worker, route, to, virtual_host};

const SOON: Duration = Duration::from_secs(10);

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn proxy(cluster: &str) -> UdpProxy {
    UdpProxy {
        stat_prefix: "u".into(),
        cluster: cluster.into(),
        idle_timeout: Duration::from_secs(60),
        max_downstream_datagram: 1500,
        max_upstream_datagram: 1500,
        access_log: Vec::new(),
        tunneling: None,
    }
}

fn tunneling(buffer: Option<DatagramBuffer>) -> UdpTunneling {
    UdpTunneling {
        authority: "edge".into(),
        path: "/.well-known/masque/udp/10.0.0.1/53/".into(),
        headers: Arc::new(HeaderMutations::default()),
        max_connect_attempts: 1,
        buffer,
    }
}

fn tunnelled() -> UdpProxy {
    let buffer = DatagramBuffer { datagrams: 1024, bytes: 16_384 };
    UdpProxy { tunneling: Some(tunneling(Some(buffer))), ..proxy("edge") }
}

fn datagrams(proxy: UdpProxy) -> Listener {
    Listener { udp: Some(Arc::new(proxy)), ..listener(Vec::new()) }
}

fn over_http2(address: SocketAddr) -> Cluster {
    Cluster { protocol: UpstreamProtocol::Http2, ..cluster("edge", &[address]) }
}

/// Ends CONNECT-UDP, and sends the datagrams to `echo`.
fn edge_manager() -> HttpConnectionManager {
    let upgrade = |terminate_connect| UpgradeConfig { kind: "connect-udp".into(), enabled: true, terminate_connect };
    let action = RouteAction { upgrades: vec![upgrade(true)], ..to("echo") };
    let mut connect: Route = route("/", forward(action));
    connect.matches.path = PathMatch::Connect;
    HttpConnectionManager {
        upgrades: vec![upgrade(false)],
        http2: Http2Options { allow_connect: true, ..Http2Options::default() },
        ..manager_of(vec![virtual_host(vec![connect])])
    }
}

/// Sends every datagram back.
async fn echo() -> SocketAddr {
    let socket = UdpSocket::bind(loopback()).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        let mut buffer = vec![0; 65_536];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let _gone = socket.send_to(&buffer[..length], from).await;
        }
    });
    address
}

/// An edge whose `echo` cluster is at that address.
fn edge(host: SocketAddr) -> (Gateway, SocketAddr) {
    let gateway = Gateway::http(vec![cluster("echo", &[host])], edge_manager());
    let socket = sockets::bind(loopback(), 1, sockets::ListenOptions::default()).unwrap().remove(0);
    let address = socket.local_addr().unwrap();
    tokio::task::spawn_local(serve_listener(Rc::clone(&gateway.worker), socket, Arc::clone(&gateway.slot)));
    (gateway, address)
}

/// A listener of datagrams.
fn cloud(clusters: Vec<Cluster>, proxy: UdpProxy) -> (Gateway, SocketAddr) {
    let gateway = Gateway::start(clusters, datagrams(proxy));
    let reserved = sockets::reserve(
        sockets::Place { traffic: sockets::Traffic::Datagrams, address: loopback(), ipv4_too: false },
        1,
    )
    .unwrap();
    let address = reserved.address();
    let sockets::Listening::Datagrams(socket) = reserved.listen(sockets::ListenOptions::default()).unwrap().remove(0)
    else {
        panic!("a socket of datagrams");
    };
    tokio::task::spawn_local(serve_datagrams(Rc::clone(&gateway.worker), socket, Arc::clone(&gateway.slot)));
    (gateway, address)
}

async fn client(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(loopback()).await.unwrap();
    socket.connect(to).await.unwrap();
    socket
}

async fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    let received = tokio::time::timeout(SOON, socket.recv(&mut buffer)).await;
    let length = received.expect("a datagram comes").expect("the socket is there");
    buffer[..length].to_vec()
}

async fn asked(socket: &UdpSocket, datagram: &[u8]) -> Vec<u8> {
    socket.send(datagram).await.unwrap();
    receive(socket).await
}

fn stat(gateway: &Gateway, metric: UdpMetric) -> u64 {
    gateway.worker.process.registry.scope::<UdpMetric>(ScopePath::udp("u")).read(metric)
}

fn of_cluster(gateway: &Gateway, name: &str, metric: UdpClusterMetric) -> u64 {
    let path = ScopePath::cluster(name).with_suffix("udp");
    gateway.worker.process.registry.scope::<UdpClusterMetric>(path).read(metric)
}

/// Waits until what is read is so.
async fn until(what: &str, read: impl Fn() -> u64, expected: u64) {
    let deadline = tokio::time::Instant::now() + SOON;
    while read() != expected {
        assert!(tokio::time::Instant::now() < deadline, "{what}: expected {expected}, still {}", read());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn datagrams_go_to_hosts_and_answers_to_their_own_clients() {
    on_worker(async {
        let (gateway, address) = cloud(vec![cluster("echo", &[echo().await])], proxy("echo"));
        let (one, other) = (client(address).await, client(address).await);
        for number in 0..50 {
            assert_eq!(asked(&one, format!("one {number}").as_bytes()).await, format!("one {number}").into_bytes());
            assert_eq!(asked(&other, format!("two {number}").as_bytes()).await, format!("two {number}").into_bytes());
        }
        assert_eq!(asked(&one, b"").await, b"", "an empty datagram is one");
        assert_eq!(stat(&gateway, UdpMetric::SessTotal), 2, "a session for each client");
        assert_eq!(stat(&gateway, UdpMetric::RxDatagrams), 101, "datagrams from clients");
        assert_eq!(stat(&gateway, UdpMetric::TxDatagrams), 101, "datagrams to clients");
        assert_eq!(of_cluster(&gateway, "echo", UdpClusterMetric::TxDatagrams), 101, "datagrams to the host");
        assert_eq!(of_cluster(&gateway, "echo", UdpClusterMetric::RxDatagrams), 101, "datagrams from the host");
    });
}

/// Over HTTP/2, and as an upgrade over HTTP/1.
#[test]
fn datagrams_of_any_size_pass_within_connect_udp() {
    for over in [over_http2, |at| cluster("edge", &[at])] {
        on_worker(async move {
            let (edge, at) = edge(echo().await);
            let (gateway, address) = cloud(vec![over(at)], UdpProxy { max_downstream_datagram: 65_507, ..tunnelled() });
            let client = client(address).await;
            for length in [0, 1, 61, 62, 63, 64, 1200, 1472, 9000, 16_382, 16_383, 60_000] {
                let datagram: Vec<u8> = (0..length).map(|at| (at * 7) as u8).collect();
                assert!(asked(&client, &datagram).await == datagram, "{length} bytes come back");
            }
            assert_eq!(stat(&gateway, UdpMetric::SessTotal), 1, "one session");
            assert_eq!(of_cluster(&gateway, "edge", UdpClusterMetric::TunnelSuccess), 1, "one stream");
            assert_eq!(of_cluster(&gateway, "edge", UdpClusterMetric::TxDatagrams), 12, "datagrams into the stream");
            assert_eq!(of_cluster(&gateway, "edge", UdpClusterMetric::RxDatagrams), 12, "datagrams out of it");
            assert_eq!(of_cluster(&edge, "echo", UdpClusterMetric::TxDatagrams), 12, "datagrams to the edge's host");
        });
    }
}

/// Envoy: without `buffer_options` what comes before the stream is lost.
#[test]
fn what_comes_before_the_stream_waits_only_as_far_as_it_may() {
    on_worker(async {
        let (_edge, at) = edge(echo().await);
        let buffer = DatagramBuffer { datagrams: 2, bytes: 16_384 };
        for (buffer, kept) in [(None, 0_u64), (Some(buffer), 2)] {
            let proxy = UdpProxy { tunneling: Some(tunneling(buffer)), ..proxy("edge") };
            let (gateway, address) = cloud(vec![over_http2(at)], proxy);
            let client = client(address).await;
            for number in 0_u8..5 {
                client.send(&[number]).await.unwrap();
            }
            let lost = || of_cluster(&gateway, "edge", UdpClusterMetric::BufferOverflow);
            until("datagrams that were lost", lost, 5 - kept).await;
            for number in 0..kept {
                assert_eq!(receive(&client).await, [number as u8], "the first ones are kept, with {buffer:?}");
            }
            let opened = || of_cluster(&gateway, "edge", UdpClusterMetric::TunnelSuccess);
            until("streams", opened, 1).await;
            assert_eq!(asked(&client, b"later").await, b"later", "with {buffer:?}");
        }
    });
}

#[test]
fn a_session_ends_when_it_is_idle_and_another_follows() {
    on_worker(async {
        let (_edge, at) = edge(echo().await);
        let proxy = UdpProxy { idle_timeout: Duration::from_millis(50), ..tunnelled() };
        let (gateway, address) = cloud(vec![over_http2(at)], proxy);
        let client = client(address).await;
        for number in 1..=3 {
            assert_eq!(asked(&client, b"x").await, b"x", "round {number}");
            until("sessions", || stat(&gateway, UdpMetric::SessActive), 0).await;
            assert_eq!(stat(&gateway, UdpMetric::IdleTimeout), number, "sessions that were idle");
        }
    });
}

#[test]
fn a_host_that_is_not_there_costs_nothing_but_the_answer() {
    on_worker(async {
        let nobody = UdpSocket::bind(loopback()).await.unwrap().local_addr().unwrap();
        let (edge, at) = edge(nobody);
        let (gateway, address) = cloud(vec![over_http2(at)], tunnelled());
        let client = client(address).await;
        for _ in 0..5 {
            client.send(b"anybody?").await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let errors = || {
            let of = |metric| of_cluster(&edge, "echo", metric);
            of(UdpClusterMetric::RxErrors) + of(UdpClusterMetric::TxErrors)
        };
        until("whether errors were counted", || u64::from(errors() > 0), 1).await;
        assert_eq!(stat(&gateway, UdpMetric::SessActive), 1, "the session stays");
    });
}

#[test]
fn a_stream_that_is_refused_is_tried_as_often_as_configured() {
    on_worker(async {
        // An edge that forwards everything and takes no CONNECT-UDP.
        let manager = HttpConnectionManager {
            http2: Http2Options { allow_connect: true, ..Http2Options::default() },
            ..manager_of(vec![virtual_host(vec![route("/", forward(to("echo")))])])
        };
        let refusing = Gateway::http(vec![cluster("echo", &[loopback()])], manager);
        let socket = sockets::bind(loopback(), 1, sockets::ListenOptions::default()).unwrap().remove(0);
        let at = socket.local_addr().unwrap();
        tokio::task::spawn_local(serve_listener(Rc::clone(&refusing.worker), socket, Arc::clone(&refusing.slot)));
        let mut proxy = tunnelled();
        if let Some(tunneling) = &mut proxy.tunneling {
            tunneling.max_connect_attempts = 3;
        }
        let (gateway, address) = cloud(vec![over_http2(at)], proxy);
        let client = client(address).await;
        client.send(b"x").await.unwrap();
        until("attempts", || of_cluster(&gateway, "edge", UdpClusterMetric::TunnelFailure), 3).await;
        until("sessions", || stat(&gateway, UdpMetric::SessActive), 0).await;
        client.send(b"x").await.unwrap();
        until("attempts of the next session", || of_cluster(&gateway, "edge", UdpClusterMetric::TunnelFailure), 6)
            .await;
    });
}

#[test]
fn sessions_outlive_their_listener_and_new_clients_find_nobody() {
    on_worker(async {
        let (_edge, at) = edge(echo().await);
        let (gateway, address) = cloud(vec![over_http2(at)], tunnelled());
        let old = client(address).await;
        assert_eq!(asked(&old, b"before").await, b"before");
        gateway.slot.drain(Duration::from_millis(500));
        // The port is free for everybody but that client.
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            let (new, mut buffer) = (client(address).await, [0; 10]);
            new.send(b"new").await.unwrap();
            let answer = tokio::time::timeout(Duration::from_millis(50), new.recv(&mut buffer)).await;
            if matches!(&answer, Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused) {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "the listener's socket is closed, got {answer:?}");
        }
        for number in 0..10_u8 {
            assert_eq!(asked(&old, &[number]).await, [number], "datagram {number} while it drains");
        }
        gateway.slot.drained().await;
        until("sessions after the deadline", || stat(&gateway, UdpMetric::SessActive), 0).await;
    });
}

#[test]
fn another_configuration_takes_the_listeners_place_on_the_same_socket() {
    on_worker(async {
        let (gateway, address) = cloud(vec![cluster("echo", &[echo().await])], proxy("echo"));
        let old = client(address).await;
        assert_eq!(asked(&old, b"before").await, b"before");
        let next = UdpProxy { max_downstream_datagram: 4, ..proxy("echo") };
        gateway.publish(datagrams(next), &|_| unreachable!("no TLS here"));
        let new = client(address).await;
        new.send(b"too long").await.unwrap();
        assert_eq!(asked(&new, b"four").await, b"four", "the new configuration holds for what comes");
        assert_eq!(gateway.slot.stats().read(ListenerMetric::UdpRxDropped), 1, "datagrams that were too long");
        assert_eq!(asked(&old, b"four").await, b"four", "the session goes on");
        assert_eq!(stat(&gateway, UdpMetric::SessTotal), 2, "sessions");
    });
}
