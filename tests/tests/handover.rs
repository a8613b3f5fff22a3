//! Make before break, with real processes under steady load: whatever ends or changes, the replacement is accepted before
//! the old tunnel goes, and no request fails.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::client::{get, post};
use culvert_tests::gateway::{Gateway, cluster, http_listener};
use culvert_tests::load::{Load, Running};
use culvert_tests::tunnel::{agent, cloud, connections, edge, front, hosting, joined, tunnel_listener};
use culvert_tests::wait::eventually;
use tempfile::TempDir;
use tokio::time::Instant;

/// Fields of an agent that speaks Envoy's dialect: it is told by GOAWAY, and tells by it, and has no other word.
const AS_ENVOY: &str = "envoy: {tenant_id: t}";
/// Fields of a server: a request that finds no tunnel fails at once.
const NOBODY_WAITS: &str = "reconnect_window: 0s";

/// Ids of the connections that have joined.
async fn ids(cloud: &Gateway) -> Result<Vec<String>> {
    let connections = connections(cloud).await?;
    let mut ids: Vec<String> = connections.iter().map(|connection| connection["id"].to_string()).collect();
    ids.sort();
    Ok(ids)
}

/// Waits until `count` connections have joined of which none is among `before`.
async fn all_new(cloud: &Gateway, before: &[String], count: usize) -> Result {
    eventually(&format!("{count} other connections"), async || {
        let now = ids(cloud).await?;
        ensure!(now.len() == count && now.iter().all(|id| !before.contains(id)), "saw {now:?} after {before:?}");
        Ok(())
    })
    .await
}

/// How a server goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Sigterm,
    DrainListeners,
}

/// The agent leaves for another server first, and the one that goes sends its last requests through the old tunnel.
async fn a_server_goes(way: Way, fields: &str) -> Result {
    let backend = Backend::start("behind").await?;
    let clouds = [cloud("", 1).await?, cloud("", 1).await?, cloud("", 1).await?];
    let servers = clouds.iter().map(|cloud| cloud.listener("tunnel")).collect::<Result<Vec<_>>>()?;
    let edge = edge(&servers, backend.address, fields).await?;
    let mut chosen = Vec::new();
    eventually("the agent has joined two of three", async || {
        chosen.clear();
        for (index, cloud) in clouds.iter().enumerate() {
            if !connections(cloud).await?.is_empty() {
                chosen.push(index);
            }
        }
        ensure!(chosen.len() == 2, "joined {chosen:?}");
        Ok(())
    })
    .await?;
    let (ends, stays) = (chosen[0], chosen[1]);
    let other = 3 - ends - stays;
    let mut clouds: Vec<Option<Gateway>> = clouds.into_iter().map(Some).collect();
    let (Some(ending), Some(staying)) = (clouds[ends].take(), clouds[stays].take()) else { unreachable!() };
    let front = front(&[&ending, &staying]).await?;
    let load = Load::new(front.listener("in")?, "/delay/5").start();
    load.more(100).await?;
    match way {
        Way::Sigterm => ending.stop().await.context("the server that ends")?,
        Way::DrainListeners => {
            let answer = post(ending.admin, "/drain_listeners", "").await?;
            ensure!(answer.status == 200, "/drain_listeners says {} {}", answer.status, answer.text());
            // It is told, and does not have to find out by being refused.
            let told = Instant::now();
            if let Some(next) = &clouds[other] {
                joined(next, 1).await.context("the server that is next")?;
            }
            ensure!(told.elapsed() < Duration::from_secs(3), "the agent was elsewhere after {:?}", told.elapsed());
            joined(&ending, 0).await.context("the server that drains")?;
        }
    }
    load.more(200).await?;
    load.finish(300).await?;
    for cloud in [&Some(staying), &clouds[other]].into_iter().flatten() {
        joined(cloud, 1).await?;
    }
    edge.stop().await?;
    front.stop().await
}

#[tokio::test]
async fn sigterm_of_a_server_fails_no_request_and_its_agents_are_elsewhere_before() -> Result {
    a_server_goes(Way::Sigterm, "").await
}

#[tokio::test]
async fn drain_of_a_servers_listeners_fails_no_request() -> Result {
    a_server_goes(Way::DrainListeners, "").await
}

#[tokio::test]
async fn sigterm_of_a_server_fails_no_request_in_envoys_dialect_either() -> Result {
    a_server_goes(Way::Sigterm, AS_ENVOY).await
}

#[tokio::test]
async fn drain_of_a_servers_listeners_fails_no_request_in_envoys_dialect_either() -> Result {
    a_server_goes(Way::DrainListeners, AS_ENVOY).await
}

/// There is one server address. The process that takes it over shares it, has requests wait for agents that are still with
/// the one before, and that one tells them when it ends. Clients come with a connection for each request, too.
#[tokio::test]
async fn sigterm_of_the_only_server_fails_no_request_once_its_successor_is_ready() -> Result {
    let backend = Backend::start("behind").await?;
    let at = |yaml: String, port: u16| yaml.replace("port_value: 0", &format!("port_value: {port}"));
    let ports = (free_port()?, free_port()?);
    let listeners = at(http_listener("in", "[{match: {prefix: /}, route: {cluster: edge}}]", "", ""), ports.0)
        + &at(tunnel_listener("tunnel", ""), ports.1);
    let start = async |flags: &[&str]| {
        let folder = TempDir::with_prefix("culvert-")?;
        Gateway::start_with(folder, &listeners, &cluster("edge", &[], ""), "", 1, flags).await
    };
    let mut serving = start(&[]).await?;
    let (entry, server) = (serving.listener("in")?, serving.listener("tunnel")?);
    let edge = edge(&[server], backend.address, "").await?;
    joined(&serving, 1).await?;
    let kept = Load::new(entry, "/delay/5").start();
    let fresh = Load { reconnect: true, ..Load::new(entry, "/delay/5") }.start();
    for turn in 0..3 {
        kept.more(50).await?;
        let successor = start(&["--successor"]).await?;
        serving.stop().await.with_context(|| format!("turn {turn}"))?;
        joined(&successor, 1).await?;
        kept.more(50).await.with_context(|| format!("turn {turn}, kept connections"))?;
        fresh.more(50).await.with_context(|| format!("turn {turn}, new connections"))?;
        serving = successor;
    }
    kept.finish(200).await?;
    fresh.finish(150).await?;
    edge.stop().await?;
    serving.stop().await
}

#[tokio::test]
async fn sigterm_of_an_agent_fails_no_request_once_its_successor_has_joined() -> Result {
    let backend = Backend::start("behind").await?;
    for (count, connections) in [(1, "connection_num: 1"), (3, "connection_num: 3"), (1, AS_ENVOY)] {
        let cloud = cloud("", 1).await?;
        let servers = [cloud.listener("tunnel")?];
        let first = edge(&servers, backend.address, connections).await?;
        joined(&cloud, count).await?;
        let load = Load::new(cloud.listener("in")?, "/delay/5").start();
        let before = ids(&cloud).await?;
        let second = edge(&servers, backend.address, connections).await?;
        joined(&cloud, count * 2).await?;
        first.stop().await.with_context(|| format!("{connections}: the first agent"))?;
        all_new(&cloud, &before, count).await?;
        load.more(100).await?;
        load.finish(100).await.with_context(|| connections.to_owned())?;
        second.stop().await?;
        cloud.stop().await?;
    }
    Ok(())
}

/// One tunnel at each of two servers, of which none has requests wait for it: one that fails, or is sent twice, met a moment
/// without a tunnel.
#[tokio::test]
async fn connections_of_a_certain_age_are_replaced_and_no_request_fails() -> Result {
    replaced_by_age("connection_num: 1").await?;
    replaced_by_age(AS_ENVOY).await.context("in Envoy's dialect")
}

async fn replaced_by_age(fields: &str) -> Result {
    let backend = Backend::start("behind").await?;
    let clouds = [cloud(NOBODY_WAITS, 1).await?, cloud(NOBODY_WAITS, 1).await?];
    let servers = [clouds[0].listener("tunnel")?, clouds[1].listener("tunnel")?];
    let edge = edge(&servers, backend.address, &format!("{fields}, max_connection_age: 1s")).await?;
    let mut loads = Vec::new();
    for cloud in &clouds {
        joined(cloud, 1).await?;
        loads.push(Load::new(cloud.listener("in")?, "/delay/5").start());
    }
    edge.stat_reaches("tunnel_agent.agent.replaced", 8).await?;
    served_once(loads, 100, &[&backend], 0).await?;
    ensure!(edge.stat("tunnel_agent.agent.lost").await? == 0, "none was lost, all were replaced");
    edge.stop().await?;
    for cloud in clouds {
        cloud.stop().await?;
    }
    Ok(())
}

/// Ends the loads: of each at least so many requests were answered, none failed, and each was served once, by backends that had
/// served some before.
async fn served_once(loads: Vec<Running>, least: u64, backends: &[&Backend], before: u64) -> Result {
    let mut answered = 0;
    for load in loads {
        answered += load.finish(least).await?.ok();
    }
    let served = backends.iter().map(|backend| backend.requests()).sum::<u64>() - before;
    ensure!(served == answered, "expected each of {answered} requests to be served once, the backends saw {served}");
    Ok(())
}

/// Listeners in a file that the proxy watches; written in one step.
fn publish(folder: &Path, listener: &str, version: u32) -> Result {
    let listener = listener.replacen(
        "  - name:",
        "  - \"@type\": type.googleapis.com/envoy.config.listener.v3.Listener\n    name:",
        1,
    );
    std::fs::write(folder.join("lds.new"), format!("version_info: \"{version}\"\nresources:\n{listener}"))?;
    Ok(std::fs::rename(folder.join("lds.new"), folder.join("lds.yaml"))?)
}

const FROM_FILE: &str =
    "dynamic_resources: {lds_config: {path_config_source: {path: lds.yaml}, resource_api_version: V3}}\n";

/// Requests meet the new listener at once; plain connections are replaced, the one that carries HTTP/2 need not be.
#[tokio::test]
async fn a_change_of_the_hosting_listener_fails_no_request() -> Result {
    let (old, new) = (Backend::start("old").await?, Backend::start("new").await?);
    let hosted = |cluster: &str, prefix: &str| {
        let routes = format!("[{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]");
        hosting(&http_listener("hosted", &routes, "", ""))
            .replace("stat_prefix: hosted", &format!("stat_prefix: {prefix}"))
    };
    let as_envoy = format!("connection_num: 3, {AS_ENVOY}");
    for (fields, connection_num, plain) in
        [("connection_num: 1", 1, 0), ("connection_num: 3", 3, 2), (AS_ENVOY, 1, 1), (&as_envoy, 3, 3)]
    {
        let clouds = [cloud(NOBODY_WAITS, 1).await?, cloud(NOBODY_WAITS, 1).await?];
        let folder = TempDir::with_prefix("culvert-")?;
        publish(folder.path(), &hosted("old", "first"), 1)?;
        let clusters = cluster("old", &[old.address], "") + &cluster("new", &[new.address], "");
        let servers = [clouds[0].listener("tunnel")?, clouds[1].listener("tunnel")?];
        let bootstrap = FROM_FILE.to_owned() + &agent(&servers, fields);
        let edge = Gateway::start_in(folder, "    []", &clusters, &bootstrap, 1).await?;
        let (mut loads, before) = (Vec::new(), old.requests() + new.requests());
        for cloud in &clouds {
            joined(cloud, connection_num).await?;
            loads.push(Load::new(cloud.listener("in")?, "/delay/5").start());
        }
        for (version, name) in [(2, "new"), (3, "old"), (4, "new")] {
            publish(edge.folder(), &hosted(name, &format!("v{version}")), version)?;
            let before: Vec<_> = loads.iter().map(|load| load.by(name)).collect();
            eventually(&format!("{name} answers"), async || {
                let answers = loads.iter().zip(&before).all(|(load, before)| load.by(name) > before + 20);
                ensure!(answers, "saw {:?}", loads.iter().map(Running::counts).collect::<Vec<_>>());
                Ok(())
            })
            .await?;
        }
        served_once(loads, 50, &[&old, &new], before).await.with_context(|| fields.to_owned())?;
        edge.stat_reaches("tunnel_agent.agent.replaced", 2 * plain).await?;
        ensure!(edge.stat("tunnel_agent.agent.lost").await? == 0, "a tunnel was lost: {}", edge.daemon.output());
        edge.stop().await?;
        for cloud in clouds {
            cloud.stop().await?;
        }
    }
    Ok(())
}

/// The agents are asked for another connection, and close the old one when they have it.
#[tokio::test]
async fn a_change_of_the_tunnel_listener_fails_no_request() -> Result {
    tunnel_listener_changes("connection_num: 1").await?;
    tunnel_listener_changes(AS_ENVOY).await.context("in Envoy's dialect")
}

async fn tunnel_listener_changes(fields: &str) -> Result {
    let backend = Backend::start("behind").await?;
    let folder = TempDir::with_prefix("culvert-")?;
    let tunnels = |prefix: &str, port: u16| {
        tunnel_listener("tunnel", NOBODY_WAITS)
            .replace("stat_prefix: t,", &format!("stat_prefix: {prefix},"))
            .replace("port_value: 0", &format!("port_value: {port}"))
    };
    let port = free_port()?;
    publish(folder.path(), &tunnels("v1", port), 1)?;
    let gateway = http_listener("in", "[{match: {prefix: /}, route: {cluster: edge}}]", "", "");
    let cloud = Gateway::start_in(folder, &gateway, &cluster("edge", &[], ""), FROM_FILE, 1).await?;
    // Whose tunnel is nobody's concern here.
    let beside = culvert_tests::tunnel::cloud(NOBODY_WAITS, 1).await?;
    let servers = [SocketAddr::from(([127, 0, 0, 1], port)), beside.listener("tunnel")?];
    let edge = edge(&servers, backend.address, fields).await?;
    let kept = joined(&beside, 1).await?;
    joined(&cloud, 1).await?;
    let load = Load::new(cloud.listener("in")?, "/delay/5").start();
    for version in 2..5 {
        let before = ids(&cloud).await?;
        publish(cloud.folder(), &tunnels(&format!("v{version}"), port), version)?;
        all_new(&cloud, &before, 1).await?;
        load.more(50).await?;
    }
    served_once(vec![load], 150, &[&backend], 0).await?;
    ensure!(edge.stat("tunnel_agent.agent.lost").await? == 0, "a tunnel was lost");
    let after = joined(&beside, 1).await?;
    ensure!(after[0]["id"] == kept[0]["id"], "expected the other server's tunnel to stand, saw {after:#?}");
    beside.stop().await?;
    edge.stop().await?;
    cloud.stop().await
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// What the control service does while all serve: `culvert.tunnel.v1.TunnelControl`.
#[tokio::test]
async fn a_graceful_close_goes_over_the_control_service() -> Result {
    let backend = Backend::start("behind").await?;
    let cloud = cloud("", 1).await?;
    let edge = edge(&[cloud.listener("tunnel")?], backend.address, "connection_num: 3").await?;
    joined(&cloud, 3).await?;
    ensure!(get(cloud.listener("in")?, "/").await?.status == 200);
    edge.stop().await?;
    joined(&cloud, 0).await?;
    let (closed, ignored) = (
        cloud.stat("tunnel_server.t.graceful_close").await?,
        cloud.stat("tunnel_server.t.graceful_close_ignored").await?,
    );
    ensure!((closed, ignored) == (3, 0), "expected all three to have been closed by name, saw {closed} and {ignored}");
    let handshakes = cloud.stat("tunnel_server.t.handshakes").await?;
    ensure!(handshakes == 3, "expected no aside connection, saw {handshakes} connections");
    cloud.stop().await
}
