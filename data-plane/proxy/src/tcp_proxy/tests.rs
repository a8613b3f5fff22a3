use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::listener::{NetworkFilter, TcpProxy};
use culvert_model::route::{ClusterChoice, ClusterRef};
use culvert_runtime::telemetry::ScopePath;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;

use crate::stats::TcpMetric;
use crate::testing::{Gateway, chain, cluster, listener, on_worker};

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
