//! Clusters that share the agents of others (`culvert.tunnel.v1.TunnelCluster`): who is found there, who is not, and what
//! comes and goes meanwhile. (Every protocol through several of them: `tunnel_matrix.rs`.)

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::ca::Authority;
use culvert_tests::client::{Answer, get, post, send};
use culvert_tests::gateway::{Gateway, cluster, http_listener};
use culvert_tests::load::Load;
use culvert_tests::plane::{Plane, Way, envoy};
use culvert_tests::tunnel::{agent, connections, edge, front, hosting, joined, sharing, tunnel_listener};
use culvert_tests::wait::eventually;
use http::Request;
use serde_json::{Value, json};
use tempfile::TempDir;

const TYPES: &str = "type.googleapis.com/envoy.extensions";
const TO_A: &str = "[{match: {prefix: /}, route: {cluster: a}}]";

fn route(prefix: &str, cluster: &str, select: &str) -> String {
    format!(
        "{{match: {{prefix: {prefix}}}, route: {{cluster: {cluster}, metadata_match: {{filter_metadata: {{culvert.tunnel: {{{select}}}}}}}}}}}"
    )
}

/// A cloud with the cluster `edge`, and `shared`, which has its agents too: `/one` goes to the former.
async fn cloud(routes: &str, more: &str, server: &str) -> Result<Gateway> {
    let listeners = http_listener("in", routes, more, "") + &tunnel_listener("tunnel", server);
    let clusters = sharing("shared", "{registered_as: edge}", "") + &cluster("edge", &[], "");
    Gateway::start_in(TempDir::with_prefix("culvert-")?, &listeners, &clusters, "", 2).await
}

fn says(answer: &Answer, status: u16, body: &str) -> Result {
    ensure!(
        answer.status == status && answer.text().starts_with(body),
        "expected {status} {body:?}, saw {} {:?}",
        answer.status,
        answer.text()
    );
    Ok(())
}

#[tokio::test]
async fn a_route_picks_an_agent_through_it_and_unknown_offline_and_denied_differ() -> Result {
    let (one, two) = (Backend::start("one").await?, Backend::start("two").await?);
    let routes = [
        route("/header", "shared", "agent_header: x-agent, allowed_agents: [edge-*]"),
        route("/label", "shared", "agent_host_label: true"),
        "{match: {prefix: /}, route: {cluster: shared}}".to_owned(),
    ];
    let log = format!(
        "access_log: [{{name: f, typed_config: {{\"@type\": {TYPES}.access_loggers.file.v3.FileAccessLog, path: access.log, log_format: {{text_format_source: {{inline_string: \"%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS%\\n\"}}}}}}}}]"
    );
    let cloud = cloud(&format!("[{}]", routes.join(", ")), &log, "reconnect_window: 0s").await?;
    let server = [cloud.listener("tunnel")?];
    let first = edge(&server, one.address, "host_name: edge-1").await?;
    let second = edge(&server, two.address, "host_name: edge-2").await?;
    joined(&cloud, 2).await?;
    let address = cloud.listener("in")?;
    let ask = async |path: &str, host: &str, agent: &str| {
        send(address, Request::get(path).header("host", host).header("x-agent", agent).body(Default::default())?).await
    };
    // Every request is a connection of its own, so that both workers are asked.
    for _ in 0..8 {
        for (agent, body) in [("edge-1", "one\n"), ("edge-2", "two\n")] {
            says(&ask("/header", "any", agent).await?, 200, body)?;
            says(&ask("/label", &format!("{agent}.culvert.test:80"), "").await?, 200, body)?;
        }
    }
    second.stop().await?;
    joined(&cloud, 1).await?;
    says(&ask("/header?unknown", "any", "edge-3").await?, 404, "unknown tunnel agent")?;
    let offline = ask("/label?offline", "edge-2.test", "").await?;
    says(&offline, 503, "tunnel agent offline for ")?;
    let after: u64 = offline.header("retry-after").parse().context("no retry-after")?;
    ensure!(after <= 30, "expected a time to come back, saw {after}");
    says(&ask("/header?denied", "any", "core-1").await?, 403, "tunnel agent denied")?;
    for (metric, expected) in [("agent_unknown", 1), ("agent_offline", 1), ("agent_denied", 1)] {
        let seen = cloud.stat(&format!("cluster.shared.tunnel.{metric}")).await?;
        ensure!(seen == expected, "expected {expected} {metric} of the sharing cluster, saw {seen}");
        let seen = cloud.stat(&format!("cluster.edge.tunnel.{metric}")).await?;
        ensure!(seen == 0, "expected no {metric} of the cluster that it shares, saw {seen}");
    }
    let file = cloud.folder().join("access.log");
    eventually("the flags are logged", async || {
        let text = std::fs::read_to_string(&file)?;
        for line in ["/header?unknown 404 TAU", "/label?offline 503 TAO", "/header?denied 403 TAD"] {
            ensure!(text.lines().any(|logged| logged == line), "expected {line:?} in {text}");
        }
        Ok(())
    })
    .await?;
    says(&ask("/header", "any", "edge-1").await?, 200, "one\n")?;
    first.stop().await?;
    cloud.stop().await
}

#[tokio::test]
async fn tunnels_are_replaced_and_agents_move_on_under_load_and_no_request_fails() -> Result {
    let (one, two) = (Backend::start("one").await?, Backend::start("two").await?);
    let routes = "[{match: {prefix: /edge}, route: {cluster: edge}}, {match: {prefix: /}, route: {cluster: shared}}]";
    for protocol in ["NEGOTIATED", "HTTP1"] {
        let cloud = cloud(routes, "", &format!("protocol: {protocol}")).await?;
        let server = [cloud.listener("tunnel")?];
        let first = edge(&server, one.address, "host_name: edge-1, max_connection_age: 1s").await?;
        joined(&cloud, 1).await?;
        let address = cloud.listener("in")?;
        let loads = [Load::new(address, "/"), Load::new(address, "/edge")].map(Load::start);
        cloud.stat_reaches("tunnel_server.t.accepted", 4).await?;
        // The first agent leaves, with the second one there.
        let second = edge(&server, two.address, "host_name: edge-2").await?;
        for load in &loads {
            eventually("the second one serves", async || {
                ensure!(load.by("two") > 0, "saw {:?}", load.counts());
                Ok(())
            })
            .await?;
        }
        first.stop().await?;
        for load in loads {
            load.more(20).await?;
            load.finish(100).await.with_context(|| protocol.to_owned())?;
        }
        second.stop().await?;
        cloud.stop().await?;
    }
    Ok(())
}

/// A server drains while it goes on: requests in flight through clusters that share are answered, its agents go, and so do
/// clients.
#[tokio::test]
async fn drain_of_a_servers_listeners_fails_no_request_of_any_cluster() -> Result {
    let backend = Backend::start("behind").await?;
    let routes = "[{match: {prefix: /edge}, route: {cluster: edge, prefix_rewrite: /}}, {match: {prefix: /}, route: {cluster: shared}}]";
    let (drains, stays) = (cloud(routes, "", "").await?, cloud(routes, "", "").await?);
    let servers = [drains.listener("tunnel")?, stays.listener("tunnel")?];
    let edge = edge(&servers, backend.address, "").await?;
    for cloud in [&drains, &stays] {
        joined(cloud, 1).await?;
    }
    let front = front(&[&drains, &stays]).await?;
    let entry = front.listener("in")?;
    let loads = ["/delay/5", "/edge/delay/5"].map(|path| Load::new(entry, path).start());
    for load in &loads {
        load.more(50).await?;
    }
    let answer = post(drains.admin, "/drain_listeners", "").await?;
    ensure!(answer.status == 200, "/drain_listeners says {} {}", answer.status, answer.text());
    joined(&drains, 0).await?;
    joined(&stays, 1).await?;
    let before = stays.stat("cluster.shared.upstream_rq_total").await?;
    for load in loads {
        load.more(50).await?;
        load.finish(100).await?;
    }
    let after = stays.stat("cluster.shared.upstream_rq_total").await?;
    // Less what was in flight already.
    ensure!(after >= before + 40, "all are the other server's by now: it had {before} requests, and then {after}");
    for ended in [front, edge, drains, stays] {
        ended.stop().await?;
    }
    Ok(())
}

/// Requests of a cluster that shares wait at the successor as those of the cluster that the agents name do, until agents that
/// are told by the process before have dialled; what that one has in flight is answered.
#[tokio::test]
async fn sigterm_of_the_only_server_fails_no_request_of_any_cluster() -> Result {
    let backend = Backend::start("behind").await?;
    let free = || Ok::<_, anyhow::Error>(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
    let at = |yaml: String, port: u16| yaml.replace("port_value: 0", &format!("port_value: {port}"));
    let routes = "[{match: {prefix: /two}, route: {cluster: two, prefix_rewrite: /}}, {match: {prefix: /one}, route: {cluster: one, prefix_rewrite: /}}, {match: {prefix: /}, route: {cluster: edge}}]";
    let listeners = at(http_listener("in", routes, "", ""), free()?) + &at(tunnel_listener("tunnel", ""), free()?);
    let clusters = sharing("one", "{registered_as: edge}", "")
        + &cluster("edge", &[], "")
        + &sharing("two", "{registered_as: edge, host_names: [edge-*]}", "");
    let start = async |flags: &[&str]| {
        Gateway::start_with(TempDir::with_prefix("culvert-")?, &listeners, &clusters, "", 1, flags).await
    };
    let mut serving = start(&[]).await?;
    let address = serving.listener("in")?;
    let edge = edge(&[serving.listener("tunnel")?], backend.address, "host_name: edge-1").await?;
    joined(&serving, 1).await?;
    let kept = ["/one/delay/5", "/two/delay/5"].map(|path| Load::new(address, path).start());
    let fresh = ["/one", "/two", "/"].map(|path| Load { reconnect: true, ..Load::new(address, path) }.start());
    let more = async |count| {
        for load in kept.iter().chain(&fresh) {
            load.more(count).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    for turn in 0..2 {
        more(20).await?;
        let successor = start(&["--successor"]).await?;
        serving.stop().await.with_context(|| format!("turn {turn}"))?;
        more(20).await.with_context(|| format!("turn {turn}, at the successor"))?;
        joined(&successor, 1).await?;
        serving = successor;
    }
    for load in kept.into_iter().chain(fresh) {
        load.finish(80).await?;
    }
    edge.stop().await?;
    serving.stop().await
}

fn common(folder: &Path, name: &str) -> String {
    let at = |name: &str| folder.join(name).display().to_string();
    format!(
        "common_tls_context: {{tls_certificates: [{{certificate_chain: {{filename: \"{}\"}}, private_key: {{filename: \"{}\"}}}}], validation_context: {{trusted_ca: {{filename: \"{}\"}}}}}}",
        at(&format!("{name}.pem")),
        at(&format!("{name}-key.pem")),
        at("ca.pem")
    )
}

/// A policy, as a discovery response, that grants these clusters to everybody of the test.
fn policy(version: u32, clusters: &[&str]) -> String {
    let rule = json!({"name": "sites", "principals": [{"uri": "spiffe://test/*"}], "clusters": clusters});
    let policy = json!({"@type": "type.googleapis.com/culvert.tunnel.v1.TunnelPolicy", "name": "who", "rules": [rule]});
    json!({"version_info": version.to_string(), "resources": [policy]}).to_string()
}

/// Replaces a file in one step.
fn put(path: &Path, text: &str) -> Result {
    let next = path.with_extension("next");
    std::fs::write(&next, text)?;
    Ok(std::fs::rename(next, path)?)
}

/// A cloud with the tunnel policy of that file, and an edge that shows the certificate of `spiffe://test/site`.
async fn guarded(folder: &Path, file: &Path, backend: SocketAddr) -> Result<(Gateway, Gateway)> {
    let tls = format!(
        "      transport_socket: {{name: tls, typed_config: {{\"@type\": {TYPES}.transport_sockets.tls.v3.DownstreamTlsContext, require_client_certificate: true, {}}}}}\n",
        common(folder, "server")
    );
    let routes = "[{match: {prefix: /edge}, route: {cluster: edge, prefix_rewrite: /}}, {match: {prefix: /}, route: {cluster: shared}}]";
    let listeners = http_listener("in", routes, "", "") + &tunnel_listener("tunnel", "policy: who") + &tls;
    let extension = format!(
        "bootstrap_extensions:\n- name: culvert.tunnel_policies\n  typed_config: {{\"@type\": type.googleapis.com/culvert.tunnel.v1.TunnelPolicies, policies_config: {{path_config_source: {{path: \"{}\"}}}}}}",
        file.display()
    );
    let clusters = sharing("shared", "{registered_as: edge}", "") + &cluster("edge", &[], "");
    let cloud = Gateway::start_in(TempDir::with_prefix("culvert-")?, &listeners, &clusters, &extension, 2).await?;
    let fields = format!(
        "reconnect_max_interval: 0.2s, transport_socket: {{name: tls, typed_config: {{\"@type\": {TYPES}.transport_sockets.tls.v3.UpstreamTlsContext, {}}}}}",
        common(folder, "site")
    );
    let hosted = hosting(&http_listener("hosted", TO_A, "", ""));
    let agent = agent(&[cloud.listener("tunnel")?], &fields);
    let edge =
        Gateway::start_in(TempDir::with_prefix("culvert-")?, &hosted, &cluster("a", &[backend], ""), &agent, 1).await?;
    Ok((cloud, edge))
}

/// What the policy does not name is not served, whoever asks how; and what it names no more is served no more, while the
/// requests of the cluster that the agent has joined go on.
#[tokio::test]
async fn an_agent_serves_no_cluster_that_its_policy_does_not_name() -> Result {
    let (folder, backend) = (TempDir::with_prefix("culvert-")?, Backend::start("behind").await?);
    let authority = Authority::new("test")?;
    authority.write(folder.path())?;
    authority.issue(folder.path(), "server", &["127.0.0.1"])?;
    authority.issue(folder.path(), "site", &["spiffe://test/site"])?;
    let file = folder.path().join("policies.yaml");
    put(&file, &policy(1, &["edge"]))?;
    let (cloud, edge) = guarded(folder.path(), &file, backend.address).await?;
    let address = cloud.listener("in")?;
    joined(&cloud, 1).await?;
    let load = Load::new(address, "/edge").start();
    let served = async |expected: bool| {
        eventually(&format!("it is served: {expected}"), async || {
            let answer = get(address, "/").await?;
            ensure!((answer.status == 200) == expected, "saw {} {}", answer.status, answer.text());
            let further =
                connections(&cloud).await?.iter().any(|tunnel| tunnel["further_clusters"] == json!(["shared"]));
            ensure!(further == expected, "/tunnels shows {:?}", connections(&cloud).await?);
            let withheld = cloud.stat("cluster.shared.tunnel.withheld").await?;
            ensure!((withheld == 0) == expected, "{withheld} are withheld");
            Ok(())
        })
        .await
    };
    served(false).await?;
    let withdrawn = cloud.stat("tunnel_server.t.withdrawn").await?;
    put(&file, &policy(2, &["edge", "sha*"]))?;
    served(true).await?;
    ensure!(cloud.stat("tunnel_server.t.withdrawn").await? == withdrawn, "expected the tunnel to have stayed");
    // What is in flight has 5 s there, and its own time where the agent may serve still.
    let (lost, kept) = (tokio::spawn(get(address, "/delay/15000")), tokio::spawn(get(address, "/edge/delay/6500")));
    edge.stat_reaches("cluster.a.upstream_rq_active", 2).await?;
    put(&file, &policy(3, &["edge"]))?;
    served(false).await?;
    load.more(20).await?;
    let (lost, kept) = (lost.await??, kept.await??);
    ensure!(lost.status == 503, "what the agent may serve no more: expected 503, saw {} {}", lost.status, lost.text());
    says(&kept, 200, "behind\n").context("what it may serve still")?;
    ensure!(cloud.stat("tunnel_server.t.withdrawn").await? == withdrawn, "expected the tunnel to have stayed");
    load.finish(50).await?;
    edge.stop().await?;
    cloud.stop().await
}

fn tunnel_cluster(name: &str, registered_as: &str) -> Value {
    json!({ "@type": envoy("config.cluster.v3.Cluster"), "name": name,
        "cluster_type": { "name": "culvert.clusters.tunnel", "typed_config": {
            "@type": "type.googleapis.com/culvert.tunnel.v1.TunnelCluster",
            "sources": [{ "registered_as": registered_as }] } } })
}

/// Over xDS in any order, under load of the other cluster; nothing is left of what went.
#[tokio::test]
async fn clusters_that_share_come_and_go_over_xds() -> Result {
    let backend = Backend::start("behind").await?;
    let mut plane = Plane::start(&[]).await?;
    let routes = "[{match: {prefix: /edge}, route: {cluster: edge}}, {match: {prefix: /}, route: {cluster: shared}}]";
    let listeners = http_listener("in", routes, "", "") + &tunnel_listener("tunnel", "");
    let listeners = listeners.replace("virtual_hosts:", "validate_clusters: false\n            virtual_hosts:");
    let more = format!("  listeners:\n{listeners}");
    plane.put("clusters.json", &[tunnel_cluster("shared", "edge")])?;
    plane.start_proxy(Way { more: &more, ..Way::default() }).await?;
    plane.ready().await?;
    eventually("the reference to nothing is warned about", async || {
        let log = plane.control_log();
        ensure!(log.contains("sources[0].registered_as") && log.contains("no Cluster \"edge\""), "saw {log}");
        Ok(())
    })
    .await?;
    let ports = plane.page("/listeners?format=json").await?;
    let port = |name: &str| -> Result<SocketAddr> {
        let all = ports["listener_statuses"].as_array().into_iter().flatten();
        let found = all.into_iter().find(|listener| listener["name"] == name).context("no such listener")?;
        let address = &found["local_address"]["socket_address"];
        Ok(format!("127.0.0.1:{}", address["port_value"]).parse()?)
    };
    let address = port("in")?;
    let answer = get(address, "/").await?;
    ensure!(answer.status == 503, "expected 503 while nobody may register, saw {}", answer.status);
    let edge = edge(&[port("tunnel")?], backend.address, "host_name: edge-7, reconnect_max_interval: 0.2s").await?;
    let ordinary = json!({ "@type": envoy("config.cluster.v3.Cluster"), "name": "edge", "type": "STATIC" });
    plane.put("clusters.json", &[tunnel_cluster("shared", "edge"), ordinary.clone()])?;
    for path in ["/edge", "/"] {
        eventually(&format!("{path} is served"), async || says(&get(address, path).await?, 200, "behind\n")).await?;
    }
    let shown = plane.page("/clusters?format=json").await?.to_string();
    ensure!(shown.contains("shared"), "expected the cluster on /clusters, saw {shown}");
    let load = Load::new(address, "/edge").start();
    for _ in 0..3 {
        plane.put("clusters.json", &[tunnel_cluster("shared", "core"), ordinary.clone()])?;
        eventually("it shares others", async || {
            let answer = get(address, "/").await?;
            ensure!(answer.status == 503, "saw {}", answer.status);
            Ok(())
        })
        .await?;
        plane.put("clusters.json", &[tunnel_cluster("shared", "edge"), ordinary.clone()])?;
        eventually("it shares them again", async || says(&get(address, "/").await?, 200, "behind\n")).await?;
    }
    load.finish(20).await?;
    // The cluster that agents name goes: nobody is left, and nothing else fails.
    plane.put("clusters.json", &[tunnel_cluster("shared", "edge")])?;
    eventually("nobody is left", async || {
        let tunnels = plane.page("/tunnels").await?;
        ensure!(tunnels["hosts"].as_array().is_some_and(Vec::is_empty), "saw {tunnels}");
        ensure!(get(address, "/").await?.status == 503, "it is still served");
        Ok(())
    })
    .await?;
    edge.stop().await?;
    plane.stop_proxy().await
}
