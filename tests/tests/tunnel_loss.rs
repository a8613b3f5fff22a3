//! Tunnels that break: reset, silently lost, with a peer that is stopped. Who notices, how soon, and what it costs.

use std::time::Duration;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::client::get;
use culvert_tests::gateway::{Gateway, cluster, http_listener};
use culvert_tests::load::Load;
use culvert_tests::namespace::{self, Cable};
use culvert_tests::pair::{cloud, edge, joined};
use culvert_tests::relay::Relay;
use culvert_tests::tunnel::{self, connections, tunnel_listener};
use culvert_tests::wait::{eventually, within};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::Instant;

const TO_EDGE: &str = "[{match: {prefix: /}, route: {cluster: edge}}]";
const TO_A: &str = "[{match: {prefix: /}, route: {cluster: a}}]";
/// Dials again soon after a failure, so that nothing here waits for a back-off.
const SOON: &str = ", reconnect_base_interval: 0.05s, reconnect_max_interval: 0.2s";
/// The same, in Envoy's dialect.
const SOON_AS_ENVOY: &str = ", reconnect_base_interval: 0.05s, reconnect_max_interval: 0.2s, envoy: {tenant_id: t}";
/// The longest wait before the first dial after a loss.
const AT_ONCE: Duration = Duration::from_millis(100);
/// How soon both ends know that the other one is silently gone.
const NOTICED: Duration = Duration::from_secs(6);
/// What a busy machine may add to what a clock counts.
const SLACK: Duration = Duration::from_secs(10);

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
async fn a_reset_tunnel_is_back_at_the_first_dial_and_no_idempotent_request_fails() -> Result {
    const RESETS: u64 = 30;
    let backend = Backend::start("behind").await?;
    // Without load each tunnel carries one request.
    for (protocol, connections) in [("HTTP1", 0), ("HTTP1", 2), ("HTTP2", 0), ("HTTP2", 2)] {
        let cloud = cloud(TO_EDGE, "", &format!("protocol: {protocol}"), "", 2).await?;
        let relay = Relay::start(cloud.listener("tunnel")?).await?;
        // The default back-off: the first attempt after a loss does not wait for it.
        let site = edge(relay.address, "site", (TO_A, ""), &cluster("a", &[backend.address], ""), "").await?;
        joined(&cloud, 1).await?;
        let address = cloud.listener("in")?;
        let load = Load { connections, ..Load::new(address, "/") }.start();
        let mut back = Vec::new();
        for turn in 0..RESETS {
            eventually("the tunnel stands", async || {
                ensure!(relay.open() == 1, "{} connections", relay.open());
                Ok(())
            })
            .await?;
            let before = get(address, "/").await?;
            ensure!(before.status == 200, "before reset {turn}: {before:?}\n{}", site.daemon.output());
            let began = Instant::now();
            relay.reset();
            let answer = get(address, "/").await?;
            let logs = || format!("cloud:\n{}\nedge:\n{}", cloud.daemon.output(), site.daemon.output());
            ensure!(answer.status == 200, "after reset {turn}: {answer:?}\n{}", logs());
            back.push(began.elapsed());
        }
        load.finish(if connections > 0 { RESETS } else { 0 }).await.with_context(|| protocol)?;
        // How long it took depends on the machine; how often it was tried, and after which delays, does not.
        back.sort();
        let (median, worst) = (back[back.len() / 2], back[back.len() - 1]);
        eprintln!(
            "{protocol}, {connections} busy: from a reset to the next answer: median {median:?}, worst of {RESETS} {worst:?}"
        );
        let stat = async |name: &str| site.stat(&format!("tunnel_agent.agent.{name}")).await;
        let (lost, dials) = (stat("lost").await?, stat("dials").await?);
        let failed = stat("dial_failures").await? + stat("handshake_failures").await?;
        ensure!(lost >= RESETS, "expected {RESETS} lost tunnels at least, saw {lost}");
        ensure!(
            dials == lost + 1 && failed == 0,
            "expected one dial for each of {lost} lost tunnels, saw {dials}, {failed} failed"
        );
        let delays = delays(&site.daemon.output());
        ensure!(delays.len() as u64 == lost, "expected a delay for each of {lost} lost tunnels, saw {delays:?}");
        // Where there is load the first one may be reset before it counts as used; the back-off begins then.
        let late = delays.iter().filter(|delay| **delay > AT_ONCE).count();
        ensure!(
            late <= usize::from(connections > 0),
            "expected no delay above {AT_ONCE:?} before the dial after a loss, saw {delays:?}\n{}",
            site.daemon.output()
        );
        site.stop().await?;
        cloud.stop().await?;
    }
    Ok(())
}

/// What the agent chose to wait before the dial after each lost tunnel, as it says in its log.
fn delays(log: &str) -> Vec<Duration> {
    let delay = |line: &str| {
        let text = line.split("delay=").nth(1)?.split_whitespace().next()?;
        let end = text.find(|c: char| c.is_alphabetic() || c == 'µ')?;
        let (number, unit) = text.split_at(end);
        let scale = match unit {
            "s" => 1.0,
            "ms" => 1e-3,
            "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        Some(Duration::from_secs_f64(number.parse::<f64>().ok()? * scale))
    };
    log.lines().filter(|line| line.contains("tunnel ended")).filter_map(delay).collect()
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

/// How far a tunnel in Envoy's dialect has come.
#[derive(Debug, Clone, Copy)]
enum InEnvoys {
    New,
    Pinged,
    Used,
}

/// In Envoy's dialect, before a tunnel is used and after: at first the server asks (`RPING`), and the agent knows by its rhythm, or
/// guesses; from the first request on both ask (HTTP/2's PING).
#[tokio::test]
async fn a_stopped_process_is_noticed_by_the_other_end_in_envoys_dialect() -> Result {
    let backend = Backend::start("behind").await?;
    let cloud = cloud(TO_EDGE, "", "", "", 2).await?;
    let clusters = cluster("a", &[backend.address], "");
    let site = edge(cloud.listener("tunnel")?, "site", (TO_A, ""), &clusters, SOON_AS_ENVOY).await?;
    for state in [InEnvoys::New, InEnvoys::Pinged, InEnvoys::Used] {
        for (stopped, other, stat) in
            [(&site, &cloud, "tunnel_server.t.active"), (&cloud, &site, "tunnel_agent.agent.active")]
        {
            joined(&cloud, 1).await?;
            match state {
                InEnvoys::New => {}
                InEnvoys::Pinged => pinged(&cloud).await?,
                InEnvoys::Used => {
                    ensure!(get(cloud.listener("in")?, "/").await?.status == 200, "the tunnel was expected to serve");
                }
            }
            stopped.daemon.signal(Signal::STOP)?;
            let outcome = noticed(other, stat, Instant::now()).await;
            stopped.daemon.signal(Signal::CONT)?;
            outcome.with_context(|| format!("the tunnel was: {state:?}"))?;
            // What went wrong with the old one is over before the new one is looked at.
            eventually("another tunnel stands at both ends", async || {
                let (at_cloud, at_site) =
                    (cloud.stat("tunnel_server.t.active").await?, site.stat("tunnel_agent.agent.active").await?);
                ensure!((at_cloud, at_site) == (1, 1), "{at_cloud} at the cloud, {at_site} at the site");
                Ok(())
            })
            .await?;
        }
    }
    site.stop().await?;
    cloud.stop().await
}

/// Waits until an unused tunnel in Envoy's dialect was pinged so often that its agent knows the rhythm.
async fn pinged(cloud: &Gateway) -> Result {
    const ECHOES: u64 = 3 * "RPING".len() as u64;
    eventually("the tunnel was pinged three times", async || {
        let tunnels = connections(cloud).await?;
        let echoed = tunnels.first().and_then(|tunnel| tunnel["received_bytes"].as_u64());
        ensure!(echoed >= Some(ECHOES) && tunnels.len() == 1, "saw {tunnels:#?}");
        Ok(())
    })
    .await
}

/// A plain tunnel has no pings, and TCP answers for a process that is stopped: the request that meets it waits for its timeout,
/// and takes the tunnel with it. Whoever asks next is served by another agent.
#[tokio::test]
async fn a_stopped_process_costs_one_request_timeout_over_a_plain_tunnel() -> Result {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let backend = Backend::start("behind").await?;
    let routes = TO_EDGE.replace("cluster: edge", &format!("cluster: edge, timeout: {}s", TIMEOUT.as_secs()));
    let cloud = cloud(&routes, "", "protocol: HTTP1", "", 2).await?;
    let clusters = cluster("a", &[backend.address], "");
    let stopped = edge(cloud.listener("tunnel")?, "stopped", (TO_A, ""), &clusters, SOON).await?;
    let other = edge(cloud.listener("tunnel")?, "other", (TO_A, ""), &clusters, SOON).await?;
    joined(&cloud, 2).await?;
    let address = cloud.listener("in")?;
    stopped.daemon.signal(Signal::STOP)?;
    let began = Instant::now();
    let mut late = Vec::new();
    for turn in 0..40 {
        let asked = Instant::now();
        let answer = get(address, "/").await?;
        if answer.status != 200 {
            ensure!(answer.status == 504, "request {turn}: saw {} {}", answer.status, answer.text());
            late.push(asked.elapsed());
        }
    }
    let took = began.elapsed();
    stopped.daemon.signal(Signal::CONT)?;
    eprintln!("40 requests took {took:?}, of it {late:?} in vain");
    ensure!(late.len() == 1, "expected one request to have met the stopped agent, saw {late:?}");
    ensure!(late[0] >= TIMEOUT && took < 2 * TIMEOUT + SLACK, "expected one timeout, it took {took:?}: {late:?}");
    // It finds its tunnel closed, and dials anew.
    joined(&cloud, 2).await?;
    for gateway in [stopped, other, cloud] {
        gateway.stop().await?;
    }
    Ok(())
}

/// In front of both a load balancer asks the other server where one resets; the agent has a tunnel at each.
#[tokio::test]
async fn a_server_that_is_killed_beside_another_one_costs_no_idempotent_request() -> Result {
    let backend = Backend::start("behind").await?;
    let mut killed = cloud(TO_EDGE, "", "", "", 2).await?;
    let stays = cloud(TO_EDGE, "", "", "", 2).await?;
    let servers = [killed.listener("tunnel")?, stays.listener("tunnel")?];
    let site = tunnel::edge(&servers, backend.address, "").await?;
    tunnel::joined(&killed, 1).await?;
    let before = tunnel::joined(&stays, 1).await?;
    let addresses = [killed.listener("in")?, stays.listener("in")?];
    let routes = "[{match: {prefix: /}, route: {cluster: clouds, retry_policy: {retry_on: \"reset,connect-failure\", num_retries: 3, retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}], host_selection_retry_max_attempts: 20}}}]";
    let breakers = "circuit_breakers: {thresholds: [{max_retries: 1000}]}";
    let front = Gateway::start(&http_listener("in", routes, "", ""), &cluster("clouds", &addresses, breakers)).await?;
    let load = Load::new(front.listener("in")?, "/delay/5").start();
    // And some that ask the server that stays, whatever becomes of the other one.
    let beside = Load::new(stays.listener("in")?, "/delay/5").start();
    load.more(100).await?;
    for cloud in [&killed, &stays] {
        let served = cloud.stat("cluster.edge.upstream_rq_200").await?;
        ensure!(served > 10, "expected both servers to be in use, one has answered {served}");
    }
    killed.daemon.kill().await?;
    load.more(200).await?;
    beside.more(200).await?;
    load.finish(300).await.context("in front of both")?;
    beside.finish(200).await.context("at the server that stays")?;
    let after = tunnel::joined(&stays, 1).await?;
    ensure!(before[0]["id"] == after[0]["id"], "expected the other tunnel to stand, saw {before:#?}, then {after:#?}");
    let lost = site.stat("tunnel_agent.agent.lost").await?;
    ensure!(lost == 1, "expected one tunnel to be lost, saw {lost}");
    site.stop().await?;
    front.stop().await?;
    stays.stop().await
}

#[test]
fn a_silent_loss_is_noticed_by_both_ends_and_costs_no_idempotent_request() -> Result {
    if !namespace::entered("a_silent_loss_is_noticed_by_both_ends_and_costs_no_idempotent_request")? {
        return Ok(());
    }
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(silent_loss())
}

/// What a tunnel speaks: a name, the server's fields, the agent's.
type Spoken = (&'static str, &'static str, &'static str);
const PLAIN: Spoken = ("HTTP/1", "protocol: HTTP1", SOON);
const STREAMS: Spoken = ("HTTP/2", "protocol: HTTP2", SOON);
const ENVOYS: Spoken = ("Envoy's dialect", "", SOON_AS_ENVOY);

/// How a tunnel is in use when it breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Not yet: of Envoy's dialect only, where that is a phase of its own.
    Unused,
    Idle,
    Busy,
}

/// The cloud, whose tunnels come through the cable.
async fn cloud_on_cable(fields: &str) -> Result<Gateway> {
    let tunnel = tunnel_listener("tunnel", fields).replace("127.0.0.1", Cable::ADDRESS);
    let listeners = http_listener("in", TO_EDGE, "", "") + &tunnel;
    let folder = TempDir::with_prefix("culvert-")?;
    Gateway::start_in(folder, &listeners, &cluster("edge", &[], ""), "", 2).await
}

async fn silent_loss() -> Result {
    let cable = Cable::plugged()?;
    let backend = Backend::start("behind").await?;
    for spoken @ (what, fields, agent) in [PLAIN, STREAMS, ENVOYS] {
        let cloud = cloud_on_cable(fields).await?;
        let site =
            edge(cloud.listener("tunnel")?, "site", (TO_A, ""), &cluster("a", &[backend.address], ""), agent).await?;
        let address = cloud.listener("in")?;
        for used in [Use::Unused, Use::Idle, Use::Busy] {
            joined(&cloud, 1).await?;
            match used {
                Use::Unused if spoken == ENVOYS => pinged(&cloud).await?,
                Use::Unused => continue,
                Use::Idle | Use::Busy => {
                    ensure!(get(address, "/").await?.status == 200, "the tunnel was expected to serve");
                }
            }
            let load = (used == Use::Busy).then(|| Load::new(address, "/").start());
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
            cable.plug()?;
            at_cloud.and(at_edge).with_context(|| format!("{what}, {used:?}"))?;
            joined(&cloud, 1).await?;
            if let Some(load) = load {
                let before = load.counts().ok();
                eventually("the load goes on", async || {
                    ensure!(load.counts().ok() > before + 20, "{} answers", load.counts().ok());
                    Ok(())
                })
                .await?;
                load.finish(40).await.with_context(|| format!("{what}: requests during the loss"))?;
            }
        }
        site.stop().await?;
        cloud.stop().await?;
    }
    Ok(())
}

#[test]
fn a_nat_that_rebinds_is_noticed_by_both_ends_and_costs_no_idempotent_request() -> Result {
    if !namespace::entered("a_nat_that_rebinds_is_noticed_by_both_ends_and_costs_no_idempotent_request")? {
        return Ok(());
    }
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(nat_rebinding())
}

/// The agent's connection has another outside from one moment to the next: what either end sends on it arrives nowhere, while
/// the server can be dialled as before. So the agent is back, from elsewhere, with its old registration taken down.
async fn nat_rebinding() -> Result {
    const OUTSIDE: [&str; 2] = ["10.9.0.50", "10.9.0.51"];
    let cable = Cable::plugged()?;
    let backend = Backend::start("behind").await?;
    for (what, fields, agent) in [PLAIN, STREAMS, ENVOYS] {
        let cloud = cloud_on_cable(fields).await?;
        cable.outside(None, OUTSIDE[0])?;
        let site =
            edge(cloud.listener("tunnel")?, "site", (TO_A, ""), &cluster("a", &[backend.address], ""), agent).await?;
        joined(&cloud, 1).await?;
        let load = Load::new(cloud.listener("in")?, "/").start();
        load.more(20).await?;
        let before = connections(&cloud).await?;
        let rebound = cable.outside(Some(OUTSIDE[0]), OUTSIDE[1])?;
        let place = |connection: &serde_json::Value| connection["peer"].as_str().unwrap_or_default().to_owned();
        ensure!(before.len() == 1 && place(&before[0]).starts_with(OUTSIDE[0]), "saw {before:#?}");
        within(2 * NOTICED, "the one tunnel comes from the other outside", async || {
            let now = connections(&cloud).await?;
            ensure!(now.len() == 1 && place(&now[0]).starts_with(OUTSIDE[1]), "saw {now:#?}");
            let lost = site.stat("tunnel_agent.agent.lost").await?;
            ensure!(lost == 1, "the agent has lost {lost}");
            Ok(())
        })
        .await?;
        let took = rebound.elapsed();
        eprintln!("{what}: both ends have nothing but the new tunnel after {took:?}");
        ensure!(took <= NOTICED, "{what}: expected both ends to notice within {NOTICED:?}, it took {took:?}");
        load.more(20).await?;
        load.finish(40).await.with_context(|| format!("{what}: requests during the change"))?;
        site.stop().await?;
        cloud.stop().await?;
        cable.inside(OUTSIDE[1])?;
    }
    Ok(())
}
