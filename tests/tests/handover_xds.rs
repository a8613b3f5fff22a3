//! Make before break under a control plane: another configuration of the agent, and servers that come, drain and go by
//! EDS. Under steady load no request fails, and **none is parked**: the clouds have no window for agents that return,
//! so at every moment one of the tunnels serves.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::gateway::{Gateway, cluster, http_listener};
use culvert_tests::load::{Load, Running};
use culvert_tests::plane::{Plane, Way, by_rds, envoy, routes_to};
use culvert_tests::tunnel::{cloud, connections};
use culvert_tests::wait::eventually;
use serde_json::{Value, json};

const AGENTS_BY_ADS: &str = "bootstrap_extensions:\n- name: culvert.tunnel_agents\n  typed_config:\n    \"@type\": type.googleapis.com/culvert.tunnel.v1.TunnelAgents\n    agents_config: {ads: {}, resource_api_version: V3}";
const NOBODY_WAITS: &str = "reconnect_window: 0s";

/// An edge that has everything from its control plane: the agent `agent`, its servers, and what serves the tunnels.
async fn edge(agent: &Value, servers: &Value, backend: &Backend) -> Result<Plane> {
    let mut plane = Plane::start(&[]).await?;
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut hosted = by_rds("hosted", nowhere, "hosted");
    hosted["bind_to_port"] = json!(false);
    let (ip, port) = (backend.address.ip().to_string(), backend.address.port());
    let local = json!({ "@type": envoy("config.cluster.v3.Cluster"), "name": "a", "type": "STATIC", "load_assignment":
        { "cluster_name": "a", "endpoints": [{ "lb_endpoints": [
            { "endpoint": { "address": { "socket_address": { "address": ip, "port_value": port } } } } ] }] } });
    plane.put("hosted.json", &[hosted, routes_to("hosted", "a"), local])?;
    plane.put("agent.json", std::slice::from_ref(agent))?;
    plane.put("servers.json", std::slice::from_ref(servers))?;
    plane.start_proxy(Way { more: AGENTS_BY_ADS, ..Way::default() }).await?;
    plane.ready().await?;
    Ok(plane)
}

/// The agent, with further fields.
fn agent(fields: Value) -> Value {
    let mut agent = json!({ "@type": "type.googleapis.com/culvert.tunnel.v1.TunnelAgent", "name": "agent",
        "cluster": "edge", "hosting_listener": "hosted", "reconnect_base_interval": "0.05s",
        "servers": [{ "eds": { "service_name": "servers", "eds_config": { "ads": {}, "resource_api_version": "V3" } } }] });
    if let (Some(agent), Value::Object(fields)) = (agent.as_object_mut(), fields) {
        agent.extend(fields);
    }
    agent
}

/// Fields of an agent that speaks Envoy's dialect.
fn as_envoy(mut fields: Value) -> Value {
    fields["envoy"] = json!({ "tenant_id": "t" });
    fields
}

/// The agent's servers, each with its health.
fn servers(list: &[(SocketAddr, &str)]) -> Value {
    let endpoint = |(address, health): &(SocketAddr, &str)| {
        json!({ "health_status": health, "endpoint": { "address": { "socket_address": {
            "address": address.ip().to_string(), "port_value": address.port() } } } })
    };
    json!({ "@type": envoy("config.endpoint.v3.ClusterLoadAssignment"), "cluster_name": "servers",
        "endpoints": [{ "lb_endpoints": list.iter().map(endpoint).collect::<Vec<_>>() }] })
}

/// Ends the load: no request failed, and none was lost on its way and sent again.
async fn finish(load: Running, backend: &Backend) -> Result {
    let counts = load.finish(100).await?;
    let (answered, served) = (counts.ok(), backend.requests());
    ensure!(served == answered, "expected each of {answered} requests to be served once, the backend saw {served}");
    Ok(())
}

/// What a test asks of a connection: id, host name, protocol and weight.
type Seen = (String, String, String, u64);

/// The connections of a cloud that are not leaving.
async fn tunnels(cloud: &Gateway) -> Result<Vec<Seen>> {
    let text = |connection: &Value, field: &str| connection[field].as_str().unwrap_or_default().to_owned();
    let all = connections(cloud).await?;
    Ok(all
        .iter()
        .map(|tunnel| {
            let weight = tunnel["weight"].as_u64().unwrap_or_default();
            (text(tunnel, "id"), text(tunnel, "host_name"), text(tunnel, "protocol"), weight)
        })
        .collect())
}

/// The agent's fields, and what stands then at each cloud: name, protocol ("any": of either), weight, connections, and
/// whether these are others.
type Step<'a> = (Value, (&'a str, &'a str, u64, usize), bool);

/// Where nobody listens: nothing takes the place of the tunnels that stand.
fn nowhere() -> Value {
    json!([{ "address": "127.0.0.1:1" }])
}

#[tokio::test]
async fn another_configuration_of_the_agent_fails_no_request() -> Result {
    agent_changes(&[
        (json!({}), ("proxy", "http2", 10, 1), true),
        (json!({ "connection_num": 3 }), ("proxy", "any", 10, 3), true),
        (json!({ "connection_num": 3, "host_name": "renamed" }), ("renamed", "any", 10, 3), true),
        (json!({ "connection_num": 3, "host_name": "renamed", "weight": 20 }), ("renamed", "any", 20, 3), false),
        (json!({ "connection_num": 3, "host_name": "lost", "servers": nowhere() }), ("renamed", "any", 20, 3), false),
        (json!({ "connection_num": 2, "host_name": "lost", "servers": nowhere() }), ("renamed", "any", 20, 3), false),
        (json!({ "protocol": "HTTP1", "connection_num": 4 }), ("proxy", "http1", 10, 4), true),
        (json!({ "protocol": "HTTP2", "connection_num": 2 }), ("proxy", "http2", 10, 2), true),
        (json!({ "ping_interval": "1s", "max_connection_age": "3600s" }), ("proxy", "http2", 10, 1), true),
    ])
    .await
}

/// In which a tunnel has no weight that could change, and its protocol is the server's.
#[tokio::test]
async fn another_configuration_of_the_agent_fails_no_request_in_envoys_dialect_either() -> Result {
    let of = |fields: Value| as_envoy(fields);
    agent_changes(&[
        (of(json!({})), ("proxy", "any", 1, 1), true),
        (of(json!({ "connection_num": 3 })), ("proxy", "any", 1, 3), true),
        (of(json!({ "connection_num": 3, "host_name": "renamed" })), ("renamed", "any", 1, 3), true),
        (
            of(json!({ "connection_num": 2, "host_name": "lost", "servers": nowhere() })),
            ("renamed", "any", 1, 3),
            false,
        ),
        (of(json!({ "ping_interval": "1s" })), ("proxy", "any", 1, 1), true),
        (json!({}), ("proxy", "http2", 10, 1), true),
        (of(json!({})), ("proxy", "any", 1, 1), true),
    ])
    .await
}

/// The first step is where the agent begins.
async fn agent_changes(steps: &[Step<'_>]) -> Result {
    let backend = Backend::start("behind").await?;
    // Each has a load of its own: no other server stands in for one whose tunnel is gone before the next one is there.
    let clouds = [cloud(NOBODY_WAITS, 1).await?, cloud(NOBODY_WAITS, 1).await?];
    let list = servers(&[(clouds[0].listener("tunnel")?, "HEALTHY"), (clouds[1].listener("tunnel")?, "HEALTHY")]);
    let mut plane = edge(&agent(steps[0].0.clone()), &list, &backend).await?;
    let is = |seen: &[Seen], name: &str, protocol: &str, weight: u64, count: usize| {
        seen.len() == count
            && seen.iter().all(|(_, n, p, w)| n == name && (p == protocol || protocol == "any") && *w == weight)
    };
    let mut loads = Vec::new();
    let mut before: [Vec<Seen>; 2] = Default::default();
    for &(ref fields, (name, protocol, weight, count), anew) in steps {
        plane.put("agent.json", &[agent(fields.clone())])?;
        if fields["host_name"] == "lost" {
            let shown = || plane.page("/tunnels");
            eventually("the agent of the new configuration dials in vain", async || {
                let agents = shown().await?;
                let peers = &agents["agents"][0]["peers"];
                ensure!(peers[0]["address"] == "127.0.0.1:1" && peers[1].is_null(), "saw {agents:#}");
                Ok(())
            })
            .await?;
        }
        for (cloud, before) in clouds.iter().zip(&mut before) {
            let now = eventually("the tunnels are those of the new configuration", async || {
                let seen = tunnels(cloud).await?;
                ensure!(is(&seen, name, protocol, weight, count), "{fields}: saw {seen:?}");
                let kept = seen.iter().filter(|(id, ..)| before.iter().any(|(known, ..)| known == id)).count();
                ensure!(kept == if anew { 0 } else { count }, "{fields}: saw {seen:?} after {before:?}");
                Ok(seen)
            });
            *before = now.await.with_context(|| plane.proxy_log())?;
        }
        if loads.is_empty() {
            for cloud in &clouds {
                loads.push(Load::new(cloud.listener("in")?, "/delay/5").start());
            }
        }
        for load in &loads {
            load.more(50).await.with_context(|| format!("{fields}\n{}", plane.proxy_log()))?;
        }
    }
    let mut answered = 0;
    for load in loads {
        answered += load.finish(100).await?.ok();
    }
    let served = backend.requests();
    ensure!(served == answered, "expected each of {answered} requests to be served once, the backend saw {served}");
    ensure!(plane.stat("tunnel_agent.agent.lost").await? == 0, "a tunnel was lost:\n{}", plane.proxy_log());
    plane.stop_proxy().await?;
    for cloud in clouds {
        cloud.stop().await?;
    }
    Ok(())
}

/// In front of all clouds: one without a tunnel says 503 at once, and the next one is asked.
async fn front(clouds: &[Gateway]) -> Result<Gateway> {
    let addresses = clouds.iter().map(|cloud| cloud.listener("in")).collect::<Result<Vec<_>>>()?;
    let routes = "[{match: {prefix: /}, route: {cluster: clouds, retry_policy: {retry_on: \"retriable-status-codes\", retriable_status_codes: [503], num_retries: 5, retry_back_off: {base_interval: 0.001s}, retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}], host_selection_retry_max_attempts: 20}}}]";
    let breakers = "circuit_breakers: {thresholds: [{max_retries: 1000}]}";
    Gateway::start(&http_listener("in", routes, "", ""), &cluster("clouds", &addresses, breakers)).await
}

/// Which of the clouds have a tunnel.
async fn placed(clouds: &[Gateway]) -> Result<Vec<usize>> {
    let mut placed = Vec::new();
    for (index, cloud) in clouds.iter().enumerate() {
        if !connections(cloud).await?.is_empty() {
            placed.push(index);
        }
    }
    Ok(placed)
}

#[tokio::test]
async fn servers_that_come_drain_and_go_fail_no_request() -> Result {
    servers_change(json!({})).await
}

#[tokio::test]
async fn servers_that_come_drain_and_go_fail_no_request_in_envoys_dialect_either() -> Result {
    servers_change(as_envoy(json!({}))).await
}

async fn servers_change(fields: Value) -> Result {
    let backend = Backend::start("behind").await?;
    let mut clouds = Vec::new();
    for _ in 0..4 {
        clouds.push(cloud(NOBODY_WAITS, 1).await?);
    }
    let addresses = clouds.iter().map(|cloud| cloud.listener("tunnel")).collect::<Result<Vec<_>>>()?;
    let list = |members: &[(usize, &'static str)]| {
        servers(&members.iter().map(|(index, health)| (addresses[*index], *health)).collect::<Vec<_>>())
    };
    let [up, drains] = ["HEALTHY", "DRAINING"];
    let mut plane = edge(&agent(fields), &list(&[(0, up), (1, up), (2, up)]), &backend).await?;
    let chosen = eventually("the agent has joined two of three", async || {
        let placed = placed(&clouds).await?;
        ensure!(placed.len() == 2, "joined {placed:?}");
        Ok(placed)
    })
    .await
    .with_context(|| plane.proxy_log())?;
    let (one, two) = (chosen[0], chosen[1]);
    let third = 3 - one - two;
    let front = front(&clouds).await?;
    let load = Load::new(front.listener("in")?, "/delay/5").start();
    load.more(50).await?;
    let steps = [
        ("one drains", vec![(one, drains), (two, up), (third, up)], vec![two, third]),
        ("it is back", vec![(one, up), (two, up), (third, up)], vec![one, two]),
        ("all but another are gone", vec![(third, up)], vec![third]),
        ("all are there", vec![(0, up), (1, up), (2, up)], vec![one, two]),
        ("the first two drain at once", vec![(one, drains), (two, drains), (third, up)], vec![third]),
        ("only a new one is left", vec![(3, up)], vec![3]),
        ("two of before, and not it", vec![(one, up), (two, up)], vec![one, two]),
    ];
    for (what, members, mut expected) in steps {
        expected.sort_unstable();
        plane.put("servers.json", &[list(&members)])?;
        eventually(&format!("{what}: the agent is where it should be"), async || {
            let placed = placed(&clouds).await?;
            ensure!(placed == expected, "expected {expected:?}, joined {placed:?}");
            Ok(())
        })
        .await
        .with_context(|| plane.proxy_log())?;
        load.more(50).await.context(what)?;
    }
    finish(load, &backend).await?;
    ensure!(plane.stat("tunnel_agent.agent.lost").await? == 0, "a tunnel was lost:\n{}", plane.proxy_log());
    plane.stop_proxy().await?;
    for cloud in clouds {
        cloud.stop().await?;
    }
    front.stop().await
}
