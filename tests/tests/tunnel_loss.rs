//! Tunnels that break: reset, silently lost, with a peer that is stopped. Who notices, how soon, and what it costs.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::client::get;
use culvert_tests::gateway::{Gateway, cluster, http_listener};
use culvert_tests::load::Load;
use culvert_tests::namespace;
use culvert_tests::pair::{cloud, edge, joined};
use culvert_tests::relay::Relay;
use culvert_tests::tunnel::tunnel_listener;
use culvert_tests::wait::{eventually, within};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::Instant;

const TO_EDGE: &str = "[{match: {prefix: /}, route: {cluster: edge}}]";
const TO_A: &str = "[{match: {prefix: /}, route: {cluster: a}}]";
/// Dials again soon after a failure, so that nothing here waits for a back-off.
const SOON: &str = ", reconnect_base_interval: 0.05s, reconnect_max_interval: 0.2s";
/// How soon both ends know that the other one is silently gone.
const NOTICED: Duration = Duration::from_secs(6);

/// Waits until one end has no tunnel; how long it took.
async fn noticed(gateway: &Gateway, stat: &str, since: Instant) -> Result<Duration> {
    within(2 * NOTICED, &format!("{stat} is 0"), async || {
        let active = gateway.stat(stat).await?;
        ensure!(active == 0, "{stat} is {active}");
        Ok(())
    })
    .await?;
    let after = since.elapsed();
    eprintln!("{stat} after {after:?}");
    ensure!(after <= NOTICED, "expected {stat} to be 0 within {NOTICED:?}, it took {after:?}");
    Ok(after)
}

#[tokio::test]
async fn a_reset_tunnel_is_back_within_300_ms_and_no_idempotent_request_fails() -> Result {
    const RESETS: usize = 60;
    let backend = Backend::start("behind").await?;
    for protocol in ["HTTP1", "HTTP2"] {
        let cloud = cloud(TO_EDGE, "", &format!("protocol: {protocol}"), "", 2).await?;
        let relay = Relay::start(cloud.listener("tunnel")?).await?;
        // The default back-off: the first attempt after a loss does not wait for it.
        let site = edge(relay.address, "site", (TO_A, ""), &cluster("a", &[backend.address], ""), "").await?;
        joined(&cloud, 1).await?;
        let address = cloud.listener("in")?;
        let load = Load { connections: 2, ..Load::new(address, "/") }.start();
        let mut back = Vec::new();
        for turn in 0..RESETS {
            eventually("the tunnel stands", async || {
                ensure!(relay.open() == 1, "{} connections", relay.open());
                Ok(())
            })
            .await?;
            get(address, "/").await?;
            let began = Instant::now();
            relay.reset();
            let answer = get(address, "/").await?;
            ensure!(answer.status == 200, "after reset {turn}: {} {}", answer.status, answer.text());
            back.push(began.elapsed());
        }
        back.sort();
        let (median, last) = (back[RESETS / 2], back[RESETS - 1]);
        eprintln!("{protocol}: from a reset to the next answer: median {median:?}, worst of {RESETS} {last:?}");
        // The worst of 60 is beyond the 98th percentile; a machine that is busy with other tests is given some grace.
        ensure!(back[RESETS - 4] < Duration::from_millis(300), "expected to be back within 300 ms, saw {back:?}");
        load.finish(RESETS as u64).await.with_context(|| protocol)?;
        site.stop().await?;
        cloud.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_stopped_process_is_noticed_by_the_other_end_over_http2() -> Result {
    let backend = Backend::start("behind").await?;
    let cloud = cloud(TO_EDGE, "", "protocol: HTTP2", "", 2).await?;
    let site = edge(cloud.listener("tunnel")?, "site", (TO_A, ""), &cluster("a", &[backend.address], ""), SOON).await?;
    joined(&cloud, 1).await?;
    for (stopped, other, stat) in
        [(&site, &cloud, "tunnel_server.t.active"), (&cloud, &site, "tunnel_agent.agent.active")]
    {
        stopped.daemon.signal(Signal::STOP)?;
        let outcome = noticed(other, stat, Instant::now()).await;
        stopped.daemon.signal(Signal::CONT)?;
        outcome?;
        eventually("it serves again", async || {
            let answer = get(cloud.listener("in")?, "/").await?;
            ensure!(answer.status == 200, "saw {}", answer.status);
            Ok(())
        })
        .await?;
    }
    site.stop().await?;
    cloud.stop().await
}

/// A cable of its own: an address that only the tunnel uses, and that can be taken away with no word to anybody.
struct Cable;

impl Cable {
    const ADDRESS: &str = "10.9.0.1";

    fn ip(words: &[&str]) -> Result {
        let output = Command::new("ip").args(words).output().context("ip is missing")?;
        ensure!(output.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn plug(self) -> Result<Self> {
        Self::ip(&["addr", "add", &format!("{}/32", Self::ADDRESS), "dev", "lo"])?;
        Ok(self)
    }

    fn cut(&self) -> Result<Instant> {
        Self::ip(&["addr", "del", &format!("{}/32", Self::ADDRESS), "dev", "lo"])?;
        Ok(Instant::now())
    }
}

#[test]
fn a_silent_loss_is_noticed_by_both_ends_and_costs_no_idempotent_request() -> Result {
    if !namespace::entered("a_silent_loss_is_noticed_by_both_ends_and_costs_no_idempotent_request")? {
        return Ok(());
    }
    Cable::ip(&["link", "set", "lo", "up"])?;
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(silent_loss())
}

async fn silent_loss() -> Result {
    let mut cable = Cable.plug()?;
    let backend = Backend::start("behind").await?;
    for protocol in ["HTTP1", "HTTP2"] {
        let tunnel = tunnel_listener("tunnel", &format!("protocol: {protocol}")).replace("127.0.0.1", Cable::ADDRESS);
        let listeners = http_listener("in", TO_EDGE, "", "") + &tunnel;
        let folder = TempDir::with_prefix("culvert-")?;
        let cloud = Gateway::start_in(folder, &listeners, &cluster("edge", &[], ""), "", 2).await?;
        let site =
            edge(cloud.listener("tunnel")?, "site", (TO_A, ""), &cluster("a", &[backend.address], ""), SOON).await?;
        let address = cloud.listener("in")?;
        for busy in [false, true] {
            joined(&cloud, 1).await?;
            ensure!(get(address, "/").await?.status == 200, "the tunnel was expected to serve");
            let load = busy.then(|| Load::new(address, "/").start());
            if let Some(load) = &load {
                eventually("the load runs", async || {
                    ensure!(load.counts().ok() > 20, "{} answers", load.counts().ok());
                    Ok(())
                })
                .await?;
            }
            let cut = cable.cut()?;
            let (at_cloud, at_edge) = tokio::join!(
                noticed(&cloud, "tunnel_server.t.active", cut),
                noticed(&site, "tunnel_agent.agent.active", cut),
            );
            cable = cable.plug()?;
            at_cloud.and(at_edge).with_context(|| format!("{protocol}, busy: {busy}"))?;
            joined(&cloud, 1).await?;
            if let Some(load) = load {
                let before = load.counts().ok();
                eventually("the load goes on", async || {
                    ensure!(load.counts().ok() > before + 20, "{} answers", load.counts().ok());
                    Ok(())
                })
                .await?;
                load.finish(40).await.with_context(|| format!("{protocol}: requests during the loss"))?;
            }
        }
        site.stop().await?;
        cloud.stop().await?;
    }
    Ok(())
}
