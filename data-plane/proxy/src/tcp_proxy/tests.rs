use std::io::{Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_http::Io;
use culvert_model::listener::{NetworkFilter, TcpProxy};
use culvert_model::route::{ClusterChoice, ClusterRef};
use culvert_runtime::telemetry::ScopePath;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};

use super::copy::{Passed, copy_both};
use crate::router::limits::Limits;
use crate::stats::TcpMetric;
use crate::testing::{Gateway, chain, cluster, listener, on_worker};
use crate::worker::Pool;

fn to(name: &str) -> TcpProxy {
    TcpProxy {
        stat_prefix: "t".into(),
        clusters: ClusterChoice::One(ClusterRef { cluster: name.into(), agent: None }),
        idle_timeout: Some(Duration::from_secs(3600)),
        max_connect_attempts: 1,
        max_downstream_connection_duration: None,
        access_log: Vec::new(),
    }
}

fn gateway(proxy: TcpProxy, addresses: &[SocketAddr]) -> Gateway {
    Gateway::start(vec![cluster("a", addresses)], listener(vec![chain(NetworkFilter::Tcp(Arc::new(proxy)))]))
}

fn stat(gateway: &Gateway, metric: TcpMetric) -> u64 {
    gateway.worker.process.registry.scope::<TcpMetric>(ScopePath::tcp("t")).read(metric)
}

#[test]
fn bytes_pass_and_each_direction_ends_by_itself() {
    on_worker(async {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            let (mut stream, _) = socket.accept().await.unwrap();
            let mut text = Vec::new();
            stream.read_to_end(&mut text).await.unwrap();
            text.make_ascii_uppercase();
            stream.write_all(&text).await.unwrap();
        });
        let gateway = gateway(to("a"), &[address]);
        let mut client = gateway.connect();
        let text = "half closed ".repeat(50_000);
        client.write_all(text.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut seen = String::new();
        client.read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen.len(), text.len(), "all of it comes back");
        assert!(seen == text.to_uppercase(), "in capitals");
        let length = text.len() as u64;
        assert_eq!(stat(&gateway, TcpMetric::CxRxBytesTotal), length, "bytes from the client");
        assert_eq!(stat(&gateway, TcpMetric::CxTxBytesTotal), length, "bytes to the client");
    });
}

/// Two ends of a connection over loopback.
async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// No two places alike.
fn bytes(length: usize, seed: u64) -> Vec<u8> {
    (0..length as u64).map(|at| (((at ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 56) as u8).collect()
}

/// Between plain sockets much that comes at once passes by a pipe, little is copied, and the one follows the other.
#[test]
fn much_and_little_pass_between_sockets_in_their_order() {
    on_worker(async {
        let ((mut client, near), (far, mut host)) = (sockets().await, sockets().await);
        let passed = Rc::new(Passed::default());
        let counted = Rc::clone(&passed);
        let copying = tokio::task::spawn_local(async move {
            let (mut near, mut far) = (Io::tcp(near), Io::tcp(far));
            let limits = Limits::new(tokio::time::Instant::now(), None);
            copy_both(&mut near, &mut far, &Pool::default(), &limits, &counted).await
        });
        let sizes = [10, 3 << 20, 1, 65_536, 7, 5 << 20, 100];
        for (round, length) in sizes.into_iter().enumerate() {
            let (up, down) = (bytes(length, 2 * round as u64), bytes(length / 2 + 1, 2 * round as u64 + 1));
            let (mut seen_up, mut seen_down) = (vec![0; up.len()], vec![0; down.len()]);
            let (mut client_read, mut client_write) = client.split();
            let (mut host_read, mut host_write) = host.split();
            let (a, b, c, d) = tokio::join!(
                client_write.write_all(&up),
                host_write.write_all(&down),
                host_read.read_exact(&mut seen_up),
                client_read.read_exact(&mut seen_down),
            );
            assert!(a.is_ok() && b.is_ok() && c.is_ok() && d.is_ok(), "{length} bytes: {a:?} {b:?} {c:?} {d:?}");
            assert!(seen_up == up && seen_down == down, "{length} bytes came as others");
        }
        let total: usize = sizes.iter().sum();
        assert_eq!(passed.up.get(), total as u64, "bytes that went up");
        client.shutdown().await.unwrap();
        let mut rest = Vec::new();
        host.read_to_end(&mut rest).await.unwrap();
        host.write_all(&bytes(1 << 20, 99)).await.unwrap();
        drop(host);
        client.read_to_end(&mut rest).await.unwrap();
        assert!(rest == bytes(1 << 20, 99), "the other direction goes on: {} bytes", rest.len());
        assert!(copying.await.unwrap().is_ok(), "both directions have ended");
    });
}

#[test]
fn an_idle_connection_holds_no_buffer() {
    on_worker(async {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let gateway = gateway(to("a"), &[address]);
        let mut client = gateway.connect();
        let (mut host, _) = socket.accept().await.unwrap();
        client.write_all(b"ping").await.unwrap();
        let mut seen = [0; 4];
        host.read_exact(&mut seen).await.unwrap();
        // Both directions wait now; what they used lies in the free list.
        let free = gateway.worker.buffers.free_count();
        assert!(free >= 1, "the buffer was given back");
        host.write_all(b"pong").await.unwrap();
        client.read_exact(&mut seen).await.unwrap();
        assert_eq!(gateway.worker.buffers.free_count(), free, "and is used again, not made anew");
    });
}

/// What a client sends and a host on a thread of its own sends back, where nothing is counted.
async fn echo(client: &mut DuplexStream, times: usize) {
    let mut seen = [0; 4];
    for _ in 0..times {
        client.write_all(b"ping").await.unwrap();
        client.read_exact(&mut seen).await.unwrap();
    }
}

#[test]
fn a_message_allocates_nothing() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = socket.accept().unwrap();
        let mut seen = [0; 4];
        while stream.read_exact(&mut seen).is_ok() {
            stream.write_all(&seen).unwrap();
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let (_gateway, mut client) = local.block_on(&runtime, async {
        let gateway = gateway(to("a"), &[address]);
        let mut client = gateway.connect();
        echo(&mut client, 10).await;
        (gateway, client)
    });
    let counted = allocation_counter::measure(|| local.block_on(&runtime, echo(&mut client, 100)));
    // Now and then a second passes: pools are swept.
    assert!(counted.count_total < 20, "100 messages are expected to allocate nothing, seen {counted:?}");
}

#[test]
fn limits_end_connections() {
    on_worker(async {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let idle = TcpProxy { idle_timeout: Some(Duration::from_millis(20)), ..to("a") };
        let longest = TcpProxy { max_downstream_connection_duration: Some(Duration::from_millis(20)), ..to("a") };
        for (proxy, metric) in [(idle, TcpMetric::IdleTimeout), (longest, TcpMetric::MaxDurationReached)] {
            let gateway = gateway(proxy, &[address]);
            let mut client = gateway.connect();
            let mut seen = Vec::new();
            let ended = tokio::time::timeout(Duration::from_secs(10), client.read_to_end(&mut seen)).await;
            assert!(ended.is_ok(), "{metric:?} ends the connection");
            assert_eq!(stat(&gateway, metric), 1, "{metric:?} is counted");
        }
    });
}

#[test]
fn a_host_that_cannot_be_reached_closes_the_connection() {
    on_worker(async {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let once = gateway(to("a"), &[closed]);
        let mut seen = Vec::new();
        once.connect().read_to_end(&mut seen).await.unwrap();
        assert!(seen.is_empty(), "closed without a byte");
        let twice = gateway(TcpProxy { max_connect_attempts: 2, ..to("a") }, &[closed, open.local_addr().unwrap()]);
        let mut client = twice.connect();
        client.write_all(b"x").await.unwrap();
        let accepted = tokio::time::timeout(Duration::from_secs(10), open.accept()).await;
        assert!(accepted.is_ok(), "the second attempt takes the other host");
    });
}
