//! Another process takes the place of a server whose agents are stock ones of MOSN's dialect: they cannot be told anything,
//! and dial again when a connection ends.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::client::{get, read_head};
use culvert_tests::gateway::{Gateway, cluster, http_listener};
use culvert_tests::load::Load;
use culvert_tests::tunnel::{joined, tunnel_listener};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// What MOSN's own encoder writes for cluster "edge" and weight 10.
const INIT: &[u8] = b"\x20\x88\x01\x01\x01\x00\x00\x66{\"cluster_name\":\"edge\",\"weight\":10,\"host_name\":\"\",\"credential_policy\":\"\",\"credential\":\"\",\"extra\":null}";
/// Header and payload of success.
const REPLY: usize = 20;

/// One tunnel of a stock agent, until it ends: `/slow/MS` is answered after so long.
async fn tunnel(server: SocketAddr) -> Result {
    let mut socket = TcpStream::connect(server).await?;
    socket.write_all(INIT).await?;
    let mut reply = [0; REPLY];
    socket.read_exact(&mut reply).await?;
    ensure!(&reply[8..] == b"{\"status\":1}", "answered {reply:?}");
    loop {
        let head = read_head(&mut socket).await?;
        let slow = head.strip_prefix("GET /slow/").and_then(|rest| rest.split(' ').next()?.parse().ok());
        tokio::time::sleep(Duration::from_millis(slow.unwrap_or(2))).await;
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstock\n").await?;
    }
}

/// A stock agent with so many connections, each of which is dialled again soon after it ended.
fn agent(server: SocketAddr, connections: usize) -> JoinSet<()> {
    let mut all = JoinSet::new();
    for _ in 0..connections {
        all.spawn(async move {
            loop {
                if let Err(error) = tunnel(server).await {
                    eprintln!("a stock agent's tunnel ended: {error:#}");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
    all
}

/// The process that ends has a request of 5 s in flight, for which it keeps a tunnel; requests wait for 2 s at most. So
/// its successor must have a tunnel long before the other one has ended.
#[tokio::test]
async fn stock_agents_are_with_the_successor_before_the_last_request_is_answered_and_none_fails() -> Result {
    let free = || Ok::<_, anyhow::Error>(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
    let at = |yaml: String, port: u16| yaml.replace("port_value: 0", &format!("port_value: {port}"));
    let tunnels = tunnel_listener("tunnel", "queue_timeout: 2s");
    let gateway = http_listener("in", "[{match: {prefix: /}, route: {cluster: edge, timeout: 60s}}]", "", "");
    let listeners = at(gateway, free()?) + &at(tunnels, free()?);
    let start = async |flags: &[&str]| {
        let folder = TempDir::with_prefix("culvert-")?;
        Gateway::start_with(folder, &listeners, &cluster("edge", &[], ""), "", 1, flags).await
    };
    let first = start(&[]).await?;
    let (entry, server) = (first.listener("in")?, first.listener("tunnel")?);
    let agents = agent(server, 3);
    joined(&first, 3).await?;
    let kept = Load { connections: 2, ..Load::new(entry, "/") }.start();
    kept.more(50).await?;
    let long = tokio::spawn(get(entry, "/slow/5000"));
    kept.more(20).await?;
    let successor = start(&["--successor"]).await?;
    let (stopped, _) = tokio::join!(first.stop(), async { kept.more(200).await.context("while the first one ends") });
    stopped.context("the first one")?;
    let answer = long.await??;
    ensure!(answer.status == 200, "the long request: {answer:?}");
    joined(&successor, 3).await?;
    kept.finish(250).await?;
    drop(agents);
    successor.stop().await
}
