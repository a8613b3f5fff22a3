//! A server is lost, and all its agents come to another one at once, while what that one serves flows on.
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_lose_their_server_are_back_and_healthy_traffic_flows_meanwhile() -> Result {
    let count = size("CULVERT_STORM_AGENTS", 1000)?;
    let backend = Backend::start("behind").await?;
    let mut lost = cloud(TO_HEALTHY, "", UNLIMITED, "", 2).await?;
    let stays = cloud(TO_HEALTHY, "", UNLIMITED, "", 2).await?;
    let site =
        edge(stays.listener("tunnel")?, "healthy", (TO_A, ""), &cluster("a", &[backend.address], ""), "").await?;
    let servers = [lost.listener("tunnel")?, stays.listener("tunnel")?];
    let joined: Arc<[AtomicUsize; 2]> = Arc::default();
    let mut agents = JoinSet::new();
    for index in 0..count {
        agents.spawn(agent(servers, format!("agent-{index}"), Arc::clone(&joined)));
    }
    within(BACK * 2, "all agents are with the first server", async || {
        let seen = [joined[0].load(Ordering::Relaxed), joined[1].load(Ordering::Relaxed)];
        ensure!(seen[0] + seen[1] == count, "joined {seen:?}");
        Ok(())
    })
    .await?;
    eventually("the healthy agent has joined", async || members(&stays, 1).await).await?;
    let load = Load::new(stays.listener("in")?, "/delay/5");
    let connections = load.connections;
    let load = load.start();
    let calm = answers(&load, Duration::from_secs(1)).await;

    let (before, began) = (Usage::of(&stays)?, Instant::now());
    let answered = load.counts().ok();
    lost.daemon.kill().await?;
    within(BACK, "all agents are with the other server", async || members(&stays, count as u64 + 1).await).await?;
    let (after, took) = (Usage::of(&stays)?, began.elapsed());
    let during = load.counts().ok() - answered;
    eprintln!(
        "{count} agents were back after {took:?}, server CPU {:?}; {during} requests were answered meanwhile, {calm} in the second before",
        after.cpu - before.cpu
    );
    load.more(100).await?;
    let counts = load.finish(100).await?;
    // The daemon, all agents, the load and its backend share this machine's cores, so no rate can be asked for. Traffic that
    // was held up until the storm was over would have been answered once on each connection at most: what was in flight.
    let held_up = connections as u64;
    ensure!(during > held_up, "expected more than {held_up} answers in {took:?}, saw {during} of {}", counts.ok());
    agents.shutdown().await;
    site.stop().await?;
    stays.stop().await
}
