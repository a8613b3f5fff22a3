//! Many tunnels: registered and routable, lost all at once, and what they leave behind. `CULVERT_TUNNELS`,
//! `CULVERT_BOGUS_AGENTS`, `CULVERT_TUNNEL_CYCLES` and `CULVERT_TUNNEL_STREAMS` are the sizes; the measurements are printed.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::client::send;
use culvert_tests::gateway::Gateway;
use culvert_tests::pair::{cloud, edge, joined};
use culvert_tests::scale::{UNLIMITED, Usage, goal, join, size};
use culvert_tests::tunnel::connections;
use culvert_tests::wait::{eventually, in_time};
use http::Request;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Sends each request to the agent that its header names.
const BY_NAME: &str = "[{match: {prefix: /}, route: {cluster: edge, metadata_match: {filter_metadata: {culvert.tunnel: {agent_header: x-agent}}}}}]";

/// Joins agents with these numbers, a few hundred at a time.
async fn join_all(server: SocketAddr, numbers: Range<usize>) -> Result<Vec<TcpStream>> {
    let next = Arc::new(AtomicUsize::new(numbers.start));
    let mut tasks = JoinSet::new();
    for _ in 0..128 {
        let next = Arc::clone(&next);
        tasks.spawn(async move {
            let mut joined = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= numbers.end {
                    return Ok::<_, anyhow::Error>(joined);
                }
                joined.push((index, join(server, &format!("agent-{index}")).await?));
            }
        });
    }
    let mut all = Vec::new();
    while let Some(joined) = tasks.join_next().await {
        all.extend(joined??);
    }
    all.sort_by_key(|(index, _)| *index);
    Ok(all.into_iter().map(|(_, socket)| socket).collect())
}

async fn members(cloud: &Gateway, expected: u64) -> Result {
    eventually("all hosts came or went", async || {
        let seen = cloud.stat("cluster.edge.membership_total").await?;
        ensure!(seen == expected, "{seen} hosts instead of {expected}");
        Ok(())
    })
    .await
}

/// One request by name, answered by that agent.
async fn reach(gateway: SocketAddr, agent: &mut TcpStream, name: &str) -> Result {
    let request = Request::get("/").header("host", "a").header("x-agent", name).body(Full::default())?;
    let asked = tokio::spawn(send(gateway, request));
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(in_time("the request", agent.read_u8()).await.with_context(|| name.to_owned())??);
    }
    agent.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len()).as_bytes()).await?;
    let answer = asked.await??;
    ensure!(answer.status == 200 && answer.text() == name, "{name}: {} {}", answer.status, answer.text());
    Ok(())
}

/// One server with its share of the tunnels: a plain one is two descriptors there, and one here.
struct Server {
    cloud: Gateway,
    agents: Vec<TcpStream>,
    /// Before the tunnels that are measured.
    before: Usage,
}

impl Server {
    /// The first tenth also pays for what is there once.
    async fn start(count: usize) -> Result<Self> {
        let cloud = cloud(BY_NAME, "", UNLIMITED, "", 2).await?;
        let agents = join_all(cloud.listener("tunnel")?, 0..count / 10).await?;
        Ok(Self { before: Usage::of(&cloud)?, cloud, agents })
    }

    /// CPU that `count` take, reckoned from what all but the first tenth do, and bytes that each does.
    async fn fill(&mut self, count: usize) -> Result<(Duration, u64)> {
        let more = count - self.agents.len();
        self.agents.extend(join_all(self.cloud.listener("tunnel")?, self.agents.len()..count).await?);
        let after = Usage::of(&self.cloud)?;
        let grown = after.resident_kib.saturating_sub(self.before.resident_kib) * 1024;
        let cpu = (after.cpu - self.before.cpu).mul_f64(count as f64 / more as f64);
        Ok((cpu, grown / more as u64))
    }

    /// Success means routable: the first, the last, and some between.
    async fn serves(&mut self) -> Result {
        let (gateway, count) = (self.cloud.listener("in")?, self.agents.len());
        for index in (0..count).step_by((count / 50).max(1)).chain([count - 1]) {
            reach(gateway, &mut self.agents[index], &format!("agent-{index}")).await?;
        }
        members(&self.cloud, count as u64).await
    }

    /// CPU that the end of all of them takes.
    async fn lose(&mut self) -> Result<Duration> {
        let before = Usage::of(&self.cloud)?;
        self.agents.clear();
        members(&self.cloud, 0).await?;
        Ok(Usage::of(&self.cloud)?.cpu - before.cpu)
    }
}

/// A tunnel costs the same where a server has five times as many: `few` is what a tenth of them took at one server, and `many`
/// what all took at two.
fn in_proportion(what: &str, few: Duration, many: Duration) -> Result {
    // Time is counted in steps of 10 ms, and neighbours spoil caches.
    let most = 20 * few + Duration::from_millis(300);
    ensure!(
        many <= most,
        "{what}: a tenth of them took {few:?} of CPU, so expected all to take {most:?} at most, saw {many:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tunnels_are_routable_when_success_is_read_and_go_together() -> Result {
    let count = size("CULVERT_TUNNELS", 2000)?;
    let (half, tenth) = (count / 2, count / 10);
    let mut few = Server::start(tenth).await?;
    let (registering_few, _) = few.fill(tenth).await?;
    few.serves().await?;
    let losing_few = few.lose().await?;
    few.cloud.stop().await?;
    eprintln!("{tenth} tunnels: server CPU {registering_few:?} to register, {losing_few:?} to lose");

    // Two processes: no limit on descriptors is in the way of 10,000.
    let mut servers = [Server::start(half).await?, Server::start(half).await?];
    let began = Instant::now();
    let [one, other] = &mut servers;
    let (one, other) = tokio::try_join!(one.fill(half), other.fill(half))?;
    let (registering, each) = (one.0 + other.0, u64::midpoint(one.1, other.1));
    eprintln!("{count} tunnels registered in {:?}, server CPU {registering:?}, {each} bytes each", began.elapsed());
    for server in &mut servers {
        server.serves().await?;
    }
    let began = Instant::now();
    let [one, other] = &mut servers;
    let (one, other) = tokio::try_join!(one.lose(), other.lose())?;
    let losing = one + other;
    eprintln!("{count} tunnels lost in {:?}, server CPU {losing:?}", began.elapsed());
    in_proportion("registrations", registering_few, registering)?;
    in_proportion("the loss", losing_few, losing)?;
    let times = count as f64 / 10_000.0;
    goal(&format!("{count} registrations"), registering, Duration::from_secs(2).mul_f64(times))?;
    goal(&format!("the loss of {count}"), losing, Duration::from_secs(1).mul_f64(times))?;
    // With what the allocator keeps for later; what a tunnel itself takes is counted in the proxy's own tests.
    ensure!(each < 8000, "expected less than 8,000 resident bytes for each tunnel, saw {each}");
    for server in servers {
        server.cloud.stop().await?;
    }
    Ok(())
}

/// So many requests to `gateway`, over connections on which some are always ahead.
async fn ask_many(gateway: SocketAddr, count: usize) -> Result {
    const AHEAD: usize = 50;
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..32 {
        let next = Arc::clone(&next);
        tasks.spawn(async move {
            let mut socket = TcpStream::connect(gateway).await?;
            let batch = "GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(AHEAD);
            while next.fetch_add(AHEAD, Ordering::Relaxed) < count {
                socket.write_all(batch.as_bytes()).await?;
                for _ in 0..AHEAD {
                    let head = in_time("an answer", culvert_tests::client::read_head(&mut socket)).await??;
                    ensure!(head.starts_with("HTTP/1.1 200 "), "expected 200, saw {head}");
                    socket.read_exact(&mut [0; 2]).await?;
                }
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// One tunnel, whose streams have ever greater numbers: it is neither worn out nor replaced, and keeps nothing of those that
/// have ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_tunnel_carries_very_many_streams() -> Result {
    let count = size("CULVERT_TUNNEL_STREAMS", 10_000)?.next_multiple_of(1000);
    let cloud = cloud("[{match: {prefix: /}, route: {cluster: edge}}]", "", "", "", 1).await?;
    let routes = "[{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: ok}}}]";
    let edge = edge(cloud.listener("tunnel")?, "one", (routes, ""), "", "").await?;
    joined(&cloud, 1).await?;
    let id = connections(&cloud).await?[0]["id"].clone();
    let gateway = cloud.listener("in")?;
    ask_many(gateway, count / 10).await?;
    let (before, began) = ([Usage::of(&cloud)?, Usage::of(&edge)?], Instant::now());
    ask_many(gateway, count - count / 10).await?;
    let after = [Usage::of(&cloud)?, Usage::of(&edge)?];
    let grown = [0, 1].map(|end| after[end].resident_kib.saturating_sub(before[end].resident_kib));
    eprintln!("{count} streams on one tunnel: nine tenths in {:?}, {grown:?} KiB more at its ends", began.elapsed());
    let now = connections(&cloud).await?;
    ensure!(now.len() == 1 && now[0]["id"] == id, "expected the tunnel {id} to stand, saw {now:?}");
    let carried = now[0]["requests"].as_u64().unwrap_or_default();
    ensure!(carried >= count as u64, "expected {count} requests on it, saw {carried}");
    ensure!(grown.iter().all(|grown| *grown < 8192), "expected nothing to be kept, saw {grown:?} KiB");
    edge.stop().await?;
    cloud.stop().await
}

#[tokio::test]
async fn names_that_nobody_has_leave_nothing_behind() -> Result {
    let count = size("CULVERT_BOGUS_AGENTS", 20_000)?;
    let cloud = cloud(BY_NAME, "", UNLIMITED, "", 1).await?;
    let mut socket = TcpStream::connect(cloud.listener("in")?).await?;
    let ask = async |socket: &mut TcpStream, range: Range<usize>| {
        let batch: String =
            range.clone().map(|index| format!("GET / HTTP/1.1\r\nhost: a\r\nx-agent: bogus-{index}\r\n\r\n")).collect();
        socket.write_all(batch.as_bytes()).await?;
        for index in range {
            let head = culvert_tests::client::read_head(socket).await?;
            ensure!(head.starts_with("HTTP/1.1 404 "), "bogus-{index}: {head}");
            let mut body = [0; "unknown tunnel agent".len()];
            socket.read_exact(&mut body).await?;
            ensure!(&body == b"unknown tunnel agent", "bogus-{index}: {body:?}");
        }
        Ok::<_, anyhow::Error>(())
    };
    ask(&mut socket, 0..1000).await?;
    let before = Usage::of(&cloud)?;
    for start in (1000..count).step_by(50) {
        ask(&mut socket, start..(start + 50).min(count)).await?;
    }
    let after = Usage::of(&cloud)?;
    let grown = after.resident_kib.saturating_sub(before.resident_kib);
    eprintln!("{count} unknown agents: {grown} KiB more, {} descriptors", after.descriptors);
    ensure!(grown < 2048, "expected nothing to be kept, the process grew by {grown} KiB");
    ensure!(after.descriptors <= before.descriptors, "expected no socket: {before:?}, {after:?}");
    let counted = cloud.stat("cluster.edge.tunnel.agent_unknown").await?;
    ensure!(counted == count as u64, "expected {count} to be counted, saw {counted}");
    cloud.stop().await
}

#[tokio::test]
async fn tunnels_that_come_and_go_leave_nothing_behind() -> Result {
    let cycles = size("CULVERT_TUNNEL_CYCLES", 5000)?;
    let cloud = cloud(BY_NAME, "", UNLIMITED, "", 2).await?;
    let tunnel = cloud.listener("tunnel")?;
    let run = async |count: usize| {
        let next = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..32 {
            let next = Arc::clone(&next);
            tasks.spawn(async move {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return Ok::<_, anyhow::Error>(());
                    }
                    drop(join(tunnel, &format!("agent-{}", index % 1000)).await?);
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        members(&cloud, 0).await
    };
    // What is kept of the last ones, and the allocator, are as large as they get some ten thousand cycles later.
    run(cycles / 2).await?;
    let before = Usage::of(&cloud)?;
    run(cycles / 2).await?;
    let after = Usage::of(&cloud)?;
    let grown = after.resident_kib.saturating_sub(before.resident_kib);
    eprintln!(
        "{cycles} tunnels came and went: {grown} KiB more after the second half, {:?} of CPU for it",
        after.cpu - before.cpu
    );
    ensure!(grown < 4096, "expected memory to be where it was, it grew by {grown} KiB");
    ensure!(after.descriptors <= before.descriptors + 2, "expected no socket to be left: {before:?}, {after:?}");
    cloud.stop().await
}
