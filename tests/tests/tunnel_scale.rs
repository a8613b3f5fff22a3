//! Many tunnels: registered and routable, lost all at once, and what they leave behind. `CULVERT_TUNNELS`,
//! `CULVERT_BOGUS_AGENTS` and `CULVERT_TUNNEL_CYCLES` are the sizes; the measurements are printed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::client::send;
use culvert_tests::gateway::Gateway;
use culvert_tests::pair::cloud;
use culvert_tests::scale::{UNLIMITED, Usage, join, size};
use culvert_tests::wait::{eventually, in_time};
use http::Request;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Sends each request to the agent that its header names.
const BY_NAME: &str = "[{match: {prefix: /}, route: {cluster: edge, metadata_match: {filter_metadata: {culvert.tunnel: {agent_header: x-agent}}}}}]";

/// Joins so many, a few hundred at a time.
async fn join_all(server: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..256 {
        let next = Arc::clone(&next);
        tasks.spawn(async move {
            let mut joined = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
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

#[tokio::test]
async fn many_tunnels_are_routable_when_success_is_read_and_go_together() -> Result {
    let count = size("CULVERT_TUNNELS", 1000)?;
    let cloud = cloud(BY_NAME, "", UNLIMITED, "", 2).await?;
    let (tunnel, gateway) = (cloud.listener("tunnel")?, cloud.listener("in")?);
    let (before, began) = (Usage::of(&cloud)?, Instant::now());
    let mut agents = join_all(tunnel, count).await?;
    let (after, took) = (Usage::of(&cloud)?, began.elapsed());
    let registering = after.cpu - before.cpu;
    eprintln!(
        "{count} tunnels registered in {took:?}, server CPU {registering:?}, {} bytes each",
        (after.resident_kib.saturating_sub(before.resident_kib)) * 1024 / count as u64
    );
    // Success means routable: the first, the last, and some between.
    for index in (0..count).step_by((count / 50).max(1)).chain([count - 1]) {
        reach(gateway, &mut agents[index], &format!("agent-{index}")).await?;
    }
    members(&cloud, count as u64).await?;
    let (before, began) = (Usage::of(&cloud)?, Instant::now());
    // An optimized server needs 85 us each, so that 10,000 take less than 1 s of its work; one for tests about 250 us.
    let most = Duration::from_millis(100) + Duration::from_micros(500) * u32::try_from(count)?;
    ensure!(
        registering < most,
        "expected {count} registrations to take less than {most:?} of work, saw {registering:?}"
    );
    drop(agents);
    members(&cloud, 0).await?;
    let (after, took) = (Usage::of(&cloud)?, began.elapsed());
    eprintln!("{count} tunnels lost in {took:?}, server CPU {:?}", after.cpu - before.cpu);
    ensure!(took < Duration::from_secs(10), "expected a mass loss to be handled at once, it took {took:?}");
    cloud.stop().await
}

#[tokio::test]
async fn names_that_nobody_has_leave_nothing_behind() -> Result {
    let count = size("CULVERT_BOGUS_AGENTS", 20_000)?;
    let cloud = cloud(BY_NAME, "", UNLIMITED, "", 1).await?;
    let mut socket = TcpStream::connect(cloud.listener("in")?).await?;
    let ask = async |socket: &mut TcpStream, range: std::ops::Range<usize>| {
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
