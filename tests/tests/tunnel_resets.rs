//! A tunnel that is reset again and again under load. `CULVERT_TUNNEL_RESETS` is how often; how long it took until the next
//! tunnel served is printed.

use std::time::Duration;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::client::get;
use culvert_tests::load::Load;
use culvert_tests::relay::Relay;
use culvert_tests::scale::{goal, size};
use culvert_tests::tunnel::{cloud, edge, joined};
use culvert_tests::wait::eventually;
use tokio::time::Instant;

/// Of so many, in order, the one below which that share lies.
fn quantile(sorted: &[Duration], share: f64) -> Duration {
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted[place.clamp(1, sorted.len()) - 1]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_tunnel_serves_soon_after_a_reset_and_no_idempotent_request_fails() -> Result {
    let resets = size("CULVERT_TUNNEL_RESETS", 20)?;
    let backend = Backend::start("behind").await?;
    for (protocol, fields) in [("HTTP/2", ""), ("plain", "protocol: HTTP1, connection_num: 2")] {
        let cloud = cloud("", 2).await?;
        let relay = Relay::start(cloud.listener("tunnel")?).await?;
        let edge = edge(&[relay.address], backend.address, fields).await?;
        let count = if fields.is_empty() { 1 } else { 2 };
        joined(&cloud, count).await?;
        let address = cloud.listener("in")?;
        let load = Load::new(address, "/delay/2").start();
        let mut back = Vec::new();
        for turn in 0..resets {
            eventually("the tunnels stand", async || {
                ensure!(relay.open() == count, "{} connections", relay.open());
                Ok(())
            })
            .await?;
            load.more(5).await?;
            let began = Instant::now();
            relay.reset();
            // It waits for the next tunnel: its answer comes when that one serves.
            let answer = get(address, "/").await?;
            ensure!(answer.status == 200, "after reset {turn}: {answer:?}");
            back.push(began.elapsed());
        }
        let counts = load.finish(resets as u64).await.with_context(|| protocol)?;
        back.sort();
        let (median, p99, worst) = (quantile(&back, 0.5), quantile(&back, 0.99), quantile(&back, 1.0));
        eprintln!(
            "{protocol}: {resets} resets, from each to the next answer: median {median:?}, p99 {p99:?}, worst {worst:?}; of {} other requests none failed, the slowest took {:?}",
            counts.ok(),
            counts.slowest
        );
        goal(&format!("{protocol}: p99 from a reset to the next answer"), p99, Duration::from_millis(300))?;
        // How long it takes without optimization is the machine's; that it is no back-off is not.
        ensure!(median < Duration::from_secs(1), "expected the next tunnel at the first dial, saw {median:?}");
        let (lost, replaced) =
            (edge.stat("tunnel_agent.agent.lost").await?, edge.stat("tunnel_agent.agent.replaced").await?);
        ensure!(lost as usize >= resets, "expected each reset to cost a tunnel, {lost} were lost, {replaced} replaced");
        edge.stop().await?;
        cloud.stop().await?;
    }
    Ok(())
}
