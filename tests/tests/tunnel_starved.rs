//! A process that gets a tenth of the time is slow, and not dead: neither end may take its tunnel for lost.

use std::time::Duration;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::client::get;
use culvert_tests::gateway::{Gateway, cluster};
use culvert_tests::pair::{cloud, edge, joined};
use culvert_tests::tunnel::connections;
use rustix::process::Signal;
use tokio::time::sleep;

const TO_EDGE: &str = "[{match: {prefix: /}, route: {cluster: edge}}]";
const TO_A: &str = "[{match: {prefix: /}, route: {cluster: a}}]";
/// Of each second: what a group of processes with a tenth of a core may get at worst.
const STOPPED: Duration = Duration::from_millis(900);
const RUNS: Duration = Duration::from_millis(100);
/// Longer than what a dead process is given, twice.
const SECONDS: u32 = 14;

/// Lets the process run for a tenth of the time.
async fn starve(process: &Gateway) -> Result {
    for _ in 0..SECONDS {
        process.daemon.signal(Signal::STOP)?;
        sleep(STOPPED).await;
        process.daemon.signal(Signal::CONT)?;
        sleep(RUNS).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_starved_process_keeps_its_tunnel_in_each_dialect() -> Result {
    tokio::try_join!(
        keeps("protocol: HTTP2", "", true),
        keeps("protocol: HTTP1", "", true),
        keeps("", ", envoy: {tenant_id: t}", false),
        keeps("", ", envoy: {tenant_id: t}", true),
    )?;
    Ok(())
}

/// A server and an agent with these fields, both starved, whose tunnel was `used` before or not.
async fn keeps(server: &str, agent: &str, used: bool) -> Result {
    let backend = Backend::start("behind").await?;
    let clusters = cluster("a", &[backend.address], "");
    let cloud = cloud(TO_EDGE, "", server, "", 1).await?;
    let site = edge(cloud.listener("tunnel")?, "site", (TO_A, ""), &clusters, agent).await?;
    let case = || format!("{{{server}{agent}}}\ncloud:\n{}\nedge:\n{}", cloud.daemon.output(), site.daemon.output());
    joined(&cloud, 1).await?;
    if used {
        ensure!(get(cloud.listener("in")?, "/").await?.status == 200, "the tunnel serves\n{}", case());
    }
    let before = connections(&cloud).await?;
    tokio::try_join!(starve(&cloud), starve(&site))?;
    let after = connections(&cloud).await?;
    ensure!(
        after.len() == 1 && before.len() == 1 && after[0]["id"] == before[0]["id"],
        "expected {before:#?} to stand, saw {after:#?}\n{}",
        case()
    );
    ensure!(site.stat("tunnel_agent.agent.lost").await? == 0, "lost at the agent\n{}", case());
    let answer = get(cloud.listener("in")?, "/").await.with_context(case)?;
    ensure!(answer.status == 200, "saw {}\n{}", answer.status, case());
    site.stop().await?;
    cloud.stop().await
}
