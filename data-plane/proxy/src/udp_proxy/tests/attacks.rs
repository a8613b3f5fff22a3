//! What strangers may try, at either end: each has a bound, is counted, and costs nobody else anything.

use culvert_http::capsule::{HEADER_ROOM, MAX_DATAGRAM, put_header};
use culvert_http::{
    BodyKind, Chunk, ClientExchange, Http2Client, Http2ClientOptions, Io, Method, RequestHead, ResponseHead,
};
use culvert_model::cluster::Breakers;
use culvert_upstream::ClusterMetric;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::stats::HttpMetric;

fn limited(name: &str, host: SocketAddr, max_connections: u32) -> Cluster {
    let breakers = Breakers { max_connections, ..Breakers::default() };
    Cluster { breakers: [breakers; 2], ..cluster(name, &[host]) }
}

fn count(gateway: &Gateway, cluster: &str, metric: ClusterMetric) -> u64 {
    gateway.worker.process.clusters.slot(cluster).stats().read(metric)
}

/// A payload as it is sent.
fn capsule(payload: &[u8]) -> Vec<u8> {
    let mut room = [0; HEADER_ROOM];
    let start = put_header(&mut room, payload.len());
    [&room[start..], payload].concat()
}

/// A datagram of the context 2, which nobody has registered.
const FOREIGN: [u8; 4] = [0, 2, 2, 9];

#[test]
fn what_is_too_long_is_dropped_and_counted() {
    on_worker(async {
        let host = echo().await;
        let proxy = UdpProxy { max_downstream_datagram: 100, max_upstream_datagram: 50, ..proxy("echo") };
        let (gateway, address) = cloud(vec![cluster("echo", &[host])], proxy);
        let client = client(address).await;
        for length in [101, 51, 50] {
            client.send(&vec![1; length]).await.unwrap();
        }
        assert_eq!(receive(&client).await.len(), 50, "the one that is short enough both ways");
        let listener = gateway.slot.stats().read(ListenerMetric::UdpRxDropped);
        assert_eq!(listener, 1, "too long from the client");
        assert_eq!(of_cluster(&gateway, "echo", UdpClusterMetric::RxDropped), 1, "too long from the host");
    });
}

#[test]
fn there_are_as_many_sessions_as_the_cluster_may_have_connections() {
    on_worker(async {
        let (gateway, address) = cloud(vec![limited("echo", echo().await, 3)], proxy("echo"));
        let mut clients = Vec::new();
        for number in 0..5_u8 {
            let client = client(address).await;
            client.send(&[number]).await.unwrap();
            clients.push(client);
        }
        let overflow = || count(&gateway, "echo", ClusterMetric::CxOverflow);
        until("datagrams of a session too many", overflow, 2).await;
        for (number, client) in clients.iter().take(3).enumerate() {
            assert_eq!(receive(client).await, [number as u8], "those that came first are served");
        }
        assert_eq!(stat(&gateway, UdpMetric::SessActive), 3, "sessions");
    });
}

/// A datagram from each of so many sources.
async fn flood(sources: u8, to: SocketAddr) {
    for source in 1..=sources {
        let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 1, source], 0))).await.unwrap();
        socket.send_to(b"spoofed", to).await.unwrap();
    }
}

/// Whoever can send from any address takes every place that is free, and none that is taken.
#[test]
fn a_flood_of_sources_costs_no_session_that_stands() {
    on_worker(async {
        let (gateway, address) = cloud(vec![limited("echo", echo().await, 20)], proxy("echo"));
        let friend = client(address).await;
        assert_eq!(asked(&friend, b"before").await, b"before");
        for round in 1..=3 {
            flood(100, address).await;
            assert_eq!(asked(&friend, b"amid").await, b"amid", "round {round}");
            let overflow = || count(&gateway, "echo", ClusterMetric::CxOverflow);
            until("datagrams of a session too many", overflow, round * 100 - 19).await;
            assert_eq!(stat(&gateway, UdpMetric::SessActive), 20, "sessions in round {round}");
        }
        assert_eq!(count(&gateway, "echo", ClusterMetric::CxActive), 20, "holds on the host");
    });
}

/// To a host, and to an edge: a source that says nothing more costs a session until that is idle.
#[test]
fn sources_that_come_and_go_leave_nothing() {
    on_worker(async {
        let (host, short) = (echo().await, Duration::from_millis(20));
        let (_edge, at) = edge(host);
        let direct = (limited("echo", host, 50), UdpProxy { idle_timeout: short, ..proxy("echo") });
        let tunnelled = (over_http2(at), UdpProxy { idle_timeout: short, ..tunnelled() });
        for (cluster, proxy) in [direct, tunnelled] {
            let name = cluster.name.to_string();
            let (gateway, address) = cloud(vec![cluster], proxy);
            for round in 1..=5 {
                flood(50, address).await;
                until("sessions so far", || stat(&gateway, UdpMetric::SessTotal), round * 50).await;
                until("sessions after they were idle", || stat(&gateway, UdpMetric::SessActive), 0).await;
            }
            assert_eq!(stat(&gateway, UdpMetric::IdleTimeout), 250, "{name}: sessions that were idle");
            let held = || count(&gateway, &name, ClusterMetric::RqActive);
            until("streams", held, 0).await;
            let client = client(address).await;
            assert_eq!(asked(&client, b"after").await, b"after", "{name}: there is room for others");
        }
    });
}

/// An edge that takes one connection after the other for CONNECT-UDP, and then sends these bytes.
async fn saying(bytes: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(socket.read_u8().await.unwrap());
            }
            let accepted = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: connect-udp\r\n\r\n";
            socket.write_all(&[accepted.as_slice(), &bytes].concat()).await.unwrap();
            // Until the other end has had enough.
            let _rest = socket.read_to_end(&mut head).await;
        }
    });
    address
}

#[test]
fn an_edge_that_sends_no_capsules_ends_its_session_and_the_next_datagram_begins_another() {
    on_worker(async {
        let bytes = [&FOREIGN, capsule(b"good").as_slice(), &[0, 0]].concat();
        let (gateway, address) = cloud(vec![cluster("edge", &[saying(bytes).await])], tunnelled());
        let client = client(address).await;
        for round in 1..=3 {
            assert_eq!(asked(&client, b"x").await, b"good", "what comes before is good, round {round}");
            until("sessions", || stat(&gateway, UdpMetric::SessActive), 0).await;
            let seen = |metric| of_cluster(&gateway, "edge", metric);
            assert_eq!(seen(UdpClusterMetric::RxErrors), round, "streams that broke");
            assert_eq!(seen(UdpClusterMetric::RxDropped), round, "datagrams of another context");
        }
    });
}

/// A connection of ours to an edge.
fn connected(io: Io) -> Http2Client {
    let (client, driver) = Http2Client::connect(io, &Http2ClientOptions::default());
    tokio::task::spawn_local(driver);
    client
}

/// A CONNECT-UDP, and the status that it is answered with.
async fn connect_udp(client: &Http2Client) -> (ClientExchange, u16) {
    let mut exchange = client.exchange();
    let head = RequestHead {
        method: Method::Get,
        scheme: "http",
        authority: "edge".to_owned(),
        path: "/.well-known/masque/udp/10.0.0.1/53/".to_owned(),
        upgrade: Some("connect-udp".into()),
        ..RequestHead::default()
    };
    exchange.send_head(&head, BodyKind::Empty).await.unwrap();
    let mut head = ResponseHead::default();
    let (mut sink, mut source) = exchange.split();
    sink.flush().await.unwrap();
    let kind = source.head(&mut head).await.unwrap();
    if head.status == 200 {
        assert_eq!(kind, BodyKind::Tunnel, "the stream is accepted");
        assert_eq!(head.fields.get(b"capsule-protocol"), Some(b"?1".as_slice()), "RFC 9297, 3.4");
    }
    (exchange, head.status)
}

async fn next(exchange: &mut ClientExchange) -> Result<Option<Vec<u8>>, culvert_http::StreamError> {
    let (_, mut source) = exchange.split();
    let chunk = tokio::time::timeout(SOON, source.chunk()).await.expect("something comes")?;
    Ok(chunk.as_deref().map(<[u8]>::to_vec))
}

#[test]
fn what_is_no_capsule_ends_its_stream_alone() {
    on_worker(async {
        let (gateway, at) = edge(echo().await);
        let client = connected(Io::tcp(TcpStream::connect(at).await.unwrap()));
        let (mut other, _) = connect_udp(&client).await;
        let malformed: [(&str, &[u8], bool); 4] = [
            ("a length that no datagram has", &[0, 0x80, 2, 0, 0], false),
            ("no context", &[0, 0], false),
            ("half a context", &[0, 1, 0x40], false),
            ("an end within a capsule", &[0, 5, 0, 1], true),
        ];
        for (number, (what, bytes, ends)) in (1..).zip(malformed) {
            let (mut exchange, _) = connect_udp(&client).await;
            exchange.split().0.data(Chunk::Borrowed(bytes)).await.unwrap();
            if ends {
                exchange.split().0.finish(None).await.unwrap();
            }
            let end = next(&mut exchange).await;
            assert!(end.is_err(), "{what}: expected the stream to be reset, got {end:?}");
            until("protocol errors", || gateway.http_stat(HttpMetric::CxProtocolError), number).await;
            other.split().0.data(Chunk::Borrowed(&capsule(b"on"))).await.unwrap();
            assert_eq!(next(&mut other).await.unwrap(), Some(capsule(b"on")), "the other stream goes on after {what}");
        }
    });
}

/// What is no datagram, what nobody has registered, and what no host takes.
#[test]
fn what_cannot_be_sent_on_is_dropped_and_its_stream_goes_on() {
    on_worker(async {
        let (gateway, at) = edge(echo().await);
        let client = connected(Io::tcp(TcpStream::connect(at).await.unwrap()));
        let (mut exchange, _) = connect_udp(&client).await;
        let unknown = [0x29, 3, 1, 2, 3];
        // Longer than IPv4 carries.
        let long = capsule(&vec![7; MAX_DATAGRAM]);
        for bytes in [&unknown, FOREIGN.as_slice(), &long, &capsule(b"hi")] {
            exchange.split().0.data(Chunk::Borrowed(bytes)).await.unwrap();
        }
        assert_eq!(next(&mut exchange).await.unwrap(), Some(capsule(b"hi")), "one datagram comes back");
        let seen = |metric| of_cluster(&gateway, "echo", metric);
        assert_eq!(seen(UdpClusterMetric::TxErrors), 2, "of another context, and too long");
        assert_eq!(seen(UdpClusterMetric::TxDatagrams), 1, "datagrams to the host");
    });
}

/// A stream that says much and no datagram is idle.
#[test]
fn what_is_skipped_keeps_no_stream() {
    on_worker(async {
        let manager = HttpConnectionManager { stream_idle_timeout: Some(Duration::from_millis(200)), ..edge_manager() };
        let gateway = Gateway::http(vec![cluster("echo", &[echo().await])], manager);
        let client = connected(Io::memory(gateway.connect()));
        let (mut exchange, _) = connect_udp(&client).await;
        // A capsule of 2^30 - 1 bytes that nobody knows.
        exchange.split().0.data(Chunk::Borrowed(&[0x29, 0xbf, 0xff, 0xff, 0xff])).await.unwrap();
        let deadline = tokio::time::Instant::now() + SOON;
        while exchange.split().0.data(Chunk::Borrowed(&[0; 1000])).await.is_ok() {
            assert!(
                tokio::time::Instant::now() < deadline,
                "expected the stream to be idle, and it takes more and more"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(client.is_open(), "other streams go on");
    });
}

#[test]
fn there_are_as_many_streams_as_the_hosts_cluster_may_have_connections() {
    on_worker(async {
        let gateway = Gateway::http(vec![limited("echo", echo().await, 2)], edge_manager());
        let client = connected(Io::memory(gateway.connect()));
        let (one, two) = (connect_udp(&client).await, connect_udp(&client).await);
        assert_eq!((one.1, two.1), (200, 200), "statuses of the first two");
        let (_refused, status) = connect_udp(&client).await;
        assert_eq!(status, 503, "the status of one too many");
        assert_eq!(count(&gateway, "echo", ClusterMetric::CxOverflow), 1, "streams too many");
        drop(one);
        until("streams that are left", || count(&gateway, "echo", ClusterMetric::CxActive), 1).await;
        assert_eq!(connect_udp(&client).await.1, 200, "there is a place again");
    });
}

/// What comes through a tunnel goes where the agent allows it, and to link-local addresses only by their names.
#[test]
fn destinations_of_a_tunnel_hold_for_datagrams() {
    on_worker(async {
        for (host, status) in [("169.254.169.254:53", 403_u16), ("127.0.0.1:53", 200)] {
            let gateway = Gateway::http(vec![cluster("echo", &[host.parse().unwrap()])], edge_manager());
            let (_exchange, seen) = connect_udp(&connected(Io::memory(gateway.connect()))).await;
            assert_eq!(seen, status, "the answer for {host}");
        }
    });
}
