//! Servers are lost, and all their agents come to other ones at once, while what those serve flows on.
//! `CULVERT_STORM_AGENTS` is the size; what was measured is printed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::gateway::{Gateway, cluster};
use culvert_tests::load::Load;
use culvert_tests::pair::{cloud, edge};
use culvert_tests::scale::{UNLIMITED, Usage, join, size};
use culvert_tests::wait::{eventually, within};
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Everything is for one agent, whoever else has joined.
const TO_HEALTHY: &str = "[{match: {prefix: /}, route: {cluster: edge, metadata_match: {filter_metadata: {culvert.tunnel: {agent: healthy}}}}}]";
const TO_A: &str = "[{match: {prefix: /}, route: {cluster: a}}]";
/// For agents that lost their server to have joined another one.
const BACK: Duration = Duration::from_secs(30);

/// A light agent, for ever: it is with one of the servers, and turns to the next one with full jitter when it cannot be.
async fn agent(servers: [SocketAddr; 2], name: String, joined: Arc<[AtomicUsize; 2]>) {
    let (mut turn, mut ceiling) = (0, FIRST);
    loop {
        let attempt = tokio::time::timeout(Duration::from_secs(15), join(servers[turn], &name)).await;
        if let Ok(Ok(mut socket)) = attempt {
            ceiling = FIRST;
            joined[turn].fetch_add(1, Ordering::Relaxed);
            // Nobody asks it anything: what comes is the end.
            let ended = socket.read(&mut [0; 64]).await;
            joined[turn].fetch_sub(1, Ordering::Relaxed);
            drop(ended);
        } else {
            ceiling = (ceiling * 2).min(Duration::from_secs(5));
        }
        turn = 1 - turn;
        tokio::time::sleep(ceiling.mul_f64(fastrand::f64())).await;
    }
}

/// As our agents have it by default.
const FIRST: Duration = Duration::from_millis(500);

/// Answers in so long a time.
async fn answers(load: &culvert_tests::load::Running, time: Duration) -> u64 {
    let before = load.counts().ok();
    tokio::time::sleep(time).await;
    load.counts().ok() - before
}

async fn members(cloud: &Gateway, least: u64) -> Result<u64> {
    let seen = cloud.stat("cluster.edge.membership_total").await?;
    ensure!(seen >= least, "{seen} hosts of {least}");
    Ok(seen)
}

/// A server that is lost, and the one that its agents turn to.
struct Pair {
    lost: Gateway,
    stays: Gateway,
    /// How many agents are with either.
    joined: Arc<[AtomicUsize; 2]>,
}

impl Pair {
    async fn start() -> Result<Self> {
        let lost = cloud(TO_HEALTHY, "", UNLIMITED, "", 2).await?;
        let stays = cloud(TO_HEALTHY, "", UNLIMITED, "", 2).await?;
        Ok(Self { lost, stays, joined: Arc::default() })
    }

    fn send(&self, agents: &mut JoinSet<()>, count: usize) -> Result {
        let servers = [self.lost.listener("tunnel")?, self.stays.listener("tunnel")?];
        for index in 0..count {
            agents.spawn(agent(servers, format!("agent-{index}"), Arc::clone(&self.joined)));
        }
        Ok(())
    }
}

/// All agents have one of two servers, half of them each: a plain tunnel is two descriptors of its server, and many a process
/// may have 20,000 of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_lose_their_server_are_back_and_healthy_traffic_flows_meanwhile() -> Result {
    let count = size("CULVERT_STORM_AGENTS", 1000)?;
    let backend = Backend::start("behind").await?;
    let mut pairs = [Pair::start().await?, Pair::start().await?];
    let near = pairs[0].stays.listener("in")?;
    let healthy = pairs[0].stays.listener("tunnel")?;
    let site = edge(healthy, "healthy", (TO_A, ""), &cluster("a", &[backend.address], ""), "").await?;
    let mut agents = JoinSet::new();
    for pair in &pairs {
        pair.send(&mut agents, count / 2)?;
    }
    within(BACK * 2, "all agents have joined", async || {
        let seen = pairs.each_ref().map(|pair| pair.joined.each_ref().map(|joined| joined.load(Ordering::Relaxed)));
        ensure!(seen.as_flattened().iter().sum::<usize>() == count / 2 * 2, "joined {seen:?}");
        Ok(())
    })
    .await?;
    eventually("the healthy agent has joined", async || members(&pairs[0].stays, 1).await).await?;
    let load = Load::new(near, "/delay/5");
    let connections = load.connections;
    let load = load.start();
    let calm = answers(&load, Duration::from_secs(1)).await;

    let (before, began) = (Usage::of(&pairs[0].stays)?, Instant::now());
    let answered = load.counts().ok();
    for pair in &mut pairs {
        pair.lost.daemon.kill().await?;
    }
    let back = async |pair: &Pair, least: usize| {
        within(BACK, "all agents are with the other server", async || members(&pair.stays, least as u64).await).await
    };
    back(&pairs[0], count / 2 + 1).await?;
    // Of the server that has the load, at the moment when its own storm is over.
    let (after, took) = (Usage::of(&pairs[0].stays)?, began.elapsed());
    let during = load.counts().ok() - answered;
    let rate = during as f64 / took.as_secs_f64();
    eprintln!(
        "{} of {count} agents were back after {took:?}, server CPU {:?}; {during} requests were answered meanwhile, {calm} in the second before",
        count / 2,
        after.cpu - before.cpu
    );
    back(&pairs[1], count / 2).await?;
    let took = began.elapsed();
    eprintln!("all were after {took:?}");
    ensure!(took < BACK, "expected all to be back within {BACK:?}, it took {took:?}");
    load.more(100).await?;
    let counts = load.finish(100).await?;
    // The daemons, all agents, the load and its backend share this machine's cores, so a rate can be asked for that starving
    // traffic does not have, and no more. Traffic that was held up until the storm was over would have been answered once on
    // each connection at most: what was in flight.
    ensure!(rate >= calm as f64 / 50.0, "expected a fiftieth of {calm} answers a second at least, saw {rate:.1}");
    let held_up = connections as u64;
    ensure!(during > held_up, "expected more than {held_up} answers in {took:?}, saw {during} of {}", counts.ok());
    agents.shutdown().await;
    site.stop().await?;
    for pair in pairs {
        pair.stays.stop().await?;
    }
    Ok(())
}
