//! What tunnels cost one worker, and that they leave nothing behind.

mod idle;

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::listener::NetworkFilter;
use culvert_model::tunnel::{ProtocolChoice, TunnelServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::{JoinSet, LocalSet};

use crate::listener::serve_listener;
use crate::testing::{Gateway, chain, cluster, listener};

fn server() -> TunnelServer {
    TunnelServer {
        stat_prefix: "tunnels".into(),
        policies: Vec::new(),
        allowed_clusters: Arc::default(),
        handshake_timeout: Duration::from_secs(60),
        max_handshake_bytes: 16_384,
        max_pending_handshakes: 20_000,
        max_connections_per_agent: 4096,
        protocol: ProtocolChoice::Negotiated,
        queue_timeout: Duration::from_secs(5),
        max_queued_requests: 1024,
        mosn: true,
        reverse: Box::default(),
        reconnect_window: Duration::ZERO,
        max_pending_handshakes_per_source: 20_000,
        max_handshakes_per_second_per_source: None,
        ping_interval: Duration::from_secs(2),
        policy: None,
    }
}

/// A worker with a tunnel listener, whose agents join the cluster `edge`.
fn gateway() -> Gateway {
    Gateway::start(vec![cluster("edge", &[])], listener(vec![chain(NetworkFilter::Tunnel(Arc::new(server())))]))
}

/// The init frame of an agent of ours.
fn init(name: &str) -> Vec<u8> {
    init_with(name, r#""caps":["culvert/1"]"#)
}

/// The same; `extra` is the inside of the object of that name.
fn init_with(name: &str, extra: &str) -> Vec<u8> {
    let json = format!(
        r#"{{"cluster_name":"edge","weight":10,"host_name":"{name}","credential_policy":"","credential":"","extra":{{{extra}}}}}"#
    );
    let length = u16::try_from(json.len()).unwrap().to_be_bytes();
    [b"\x20\x88\x01\x01\x01\x00".as_slice(), &length, json.as_bytes()].concat()
}

fn hosts(gateway: &Gateway) -> u64 {
    let mut seen = 0;
    gateway.worker.process.clusters.slot("edge").gauges(&mut |name, value| {
        if name == "membership_total" {
            seen = value;
        }
    });
    seen
}

/// What stands in a reply of success; its length is the header's to say.
const SUCCESS: &[u8] = b"{\"status\":1";

/// Joins over memory, and leaves when success was read.
async fn come_and_go(gateway: &Gateway, index: usize) {
    let mut agent = gateway.connect_over(1024);
    agent.write_all(&init(&format!("agent-{}", index % 1000))).await.unwrap();
    let mut head = [0; 8];
    agent.read_exact(&mut head).await.unwrap();
    let mut reply = vec![0; usize::from(u16::from_be_bytes([head[6], head[7]]))];
    agent.read_exact(&mut reply).await.unwrap();
    assert!(reply.starts_with(SUCCESS), "{index}: {}", String::from_utf8_lossy(&reply));
}

/// So many tunnels, some hundreds at a time; returns when none is left.
async fn come_and_go_all(gateway: &Rc<Gateway>, count: usize) {
    let next = Rc::new(Cell::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..500 {
        let (gateway, next) = (Rc::clone(gateway), Rc::clone(&next));
        tasks.spawn_local(async move {
            while next.get() < count {
                next.set(next.get() + 1);
                come_and_go(&gateway, next.get()).await;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    while hosts(gateway) > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Their tasks see the end of their pipes.
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// `CULVERT_TUNNEL_CYCLES_IN_MEMORY` is how many.
#[test]
fn after_very_many_tunnels_memory_is_where_it_was() {
    let count = std::env::var("CULVERT_TUNNEL_CYCLES_IN_MEMORY").map_or(20_000, |size| size.parse().unwrap());
    // Whoever waits waits no time: registrations are published every few milliseconds.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let local = LocalSet::new();
    let gateway = local.block_on(&runtime, async { Rc::new(gateway()) });
    let run = |count| local.block_on(&runtime, come_and_go_all(&gateway, count));
    // What is remembered of those that ended, and what grows with how many there are at a time.
    run(count / 10);
    let kept = allocation_counter::measure(|| run(count - count / 10));
    eprintln!(
        "CULVERT_TUNNEL_CYCLES_IN_MEMORY={count}: {} bytes in {} pieces more after the last nine tenths",
        kept.bytes_current, kept.count_current
    );
    // A table may have grown; nothing else.
    assert!(kept.bytes_current < 64 * 1024, "expected memory to be where it was: {kept:?}");
    assert!(kept.count_current.abs() < 100, "expected no piece of memory for a tunnel that is gone: {kept:?}");
    assert!(kept.count_total > 20 * count as u64, "expected the tunnels' memory to be seen: {kept:?}");
}
