//! One culvert-proxy with a bootstrap of its own, for suites that need no control plane.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::Result;
use crate::client::get;
use crate::process::{Daemon, ours};
use crate::wait::{PATIENCE, eventually};

/// A running proxy.
#[derive(Debug)]
pub struct Gateway {
    folder: TempDir,
    pub daemon: Daemon,
    pub admin: SocketAddr,
    listeners: BTreeMap<String, SocketAddr>,
}

impl Gateway {
    /// Starts one on listeners and clusters (YAML list items at indentation 2). Listeners may ask for port 0.
    pub async fn start(listeners: &str, clusters: &str) -> Result<Self> {
        Self::start_in(TempDir::with_prefix("culvert-")?, listeners, clusters, "", 2).await
    }

    /// [`Self::start`] in a folder that holds files the bootstrap names, with further top-level YAML.
    pub async fn start_in(
        folder: TempDir,
        listeners: &str,
        clusters: &str,
        more: &str,
        workers: usize,
    ) -> Result<Self> {
        Self::start_with(folder, listeners, clusters, more, workers, &[]).await
    }

    /// [`Self::start_in`] with further flags.
    pub async fn start_with(
        folder: TempDir,
        listeners: &str,
        clusters: &str,
        more: &str,
        workers: usize,
        flags: &[&str],
    ) -> Result<Self> {
        let args = [&["-l", "info"], flags].concat();
        let program = ours("culvert-proxy")?;
        let parts = Parts { node: "test", listeners, clusters, more, workers };
        let Booted { daemon, admin, listeners } = boot("proxy", &program, &args, folder.path(), parts).await?;
        Ok(Self { folder, daemon, admin, listeners })
    }

    /// The address on which a listener is bound.
    pub fn listener(&self, name: &str) -> Result<SocketAddr> {
        named(&self.listeners, name)
    }

    /// The folder in which it runs.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A metric as `/stats` gives it; 0 when it was never counted.
    pub async fn stat(&self, name: &str) -> Result<u64> {
        let text = get(self.admin, "/stats").await?.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.map_or(Ok(0), |value| value.trim().parse().with_context(|| format!("{name}: {value}")))
    }

    /// Waits until a metric is at least so much.
    pub async fn stat_reaches(&self, name: &str, least: u64) -> Result {
        eventually(&format!("{name} reaches {least}"), async || {
            let value = self.stat(name).await?;
            ensure!(value >= least, "{name} is {value}");
            Ok(())
        })
        .await
    }

    /// SIGTERM, exit code 0.
    pub async fn stop(mut self) -> Result {
        self.daemon.terminate(PATIENCE).await
    }
}

/// What a bootstrap is made of: YAML, but for the number of workers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) node: &'a str,
    pub(crate) listeners: &'a str,
    pub(crate) clusters: &'a str,
    pub(crate) more: &'a str,
    pub(crate) workers: usize,
}

/// A proxy that is ready, ours or Envoy.
#[derive(Debug)]
pub(crate) struct Booted {
    pub(crate) daemon: Daemon,
    pub(crate) admin: SocketAddr,
    pub(crate) listeners: BTreeMap<String, SocketAddr>,
}

/// Starts a program on a bootstrap in a folder, and waits until it is ready.
pub(crate) async fn boot(
    name: &str,
    program: &Path,
    flags: &[&str],
    folder: &Path,
    parts: Parts<'_>,
) -> Result<Booted> {
    let Parts { node, listeners, clusters, more, workers } = parts;
    let bootstrap = format!(
        "node: {{id: {node}, cluster: {node}}}\n\
         admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n\
         static_resources:\n  listeners:\n{listeners}\n  clusters:\n{clusters}\n{more}\n"
    );
    std::fs::write(folder.join("bootstrap.yaml"), &bootstrap)?;
    let workers = workers.to_string();
    let args = ["-c", "bootstrap.yaml", "--concurrency", &workers, "--admin-address-path", "admin"];
    let mut daemon = Daemon::start(name, program, &[&args, flags].concat(), folder)?;
    let admin = daemon.address(&folder.join("admin")).await.with_context(|| bootstrap.clone())?;
    eventually("the proxy is ready", async || {
        daemon.check_alive()?;
        let answer = get(admin, "/ready").await?;
        ensure!(answer.status == 200, "/ready says {} {}", answer.status, answer.text());
        Ok(())
    })
    .await
    .with_context(|| format!("{bootstrap}\n{}", daemon.output()))?;
    let listeners = bound(admin).await?;
    Ok(Booted { daemon, admin, listeners })
}

/// The address on which one of these listeners is bound.
pub(crate) fn named(listeners: &BTreeMap<String, SocketAddr>, name: &str) -> Result<SocketAddr> {
    listeners.get(name).copied().with_context(|| format!("no listener {name} in {listeners:?}"))
}

/// Where the listeners of an admin interface are bound, ours or Envoy's; those with other addresses are left out.
async fn bound(admin: SocketAddr) -> Result<BTreeMap<String, SocketAddr>> {
    let json = get(admin, "/listeners?format=json").await?.json()?;
    let mut found = BTreeMap::new();
    for status in json["listener_statuses"].as_array().into_iter().flatten() {
        let socket = &status["local_address"]["socket_address"];
        if let (Some(name), Some(port)) = (status["name"].as_str(), socket["port_value"].as_u64()) {
            let Ok(ip) = socket["address"].as_str().unwrap_or("127.0.0.1").parse::<std::net::IpAddr>() else {
                continue;
            };
            found.insert(name.to_owned(), SocketAddr::new(ip, u16::try_from(port)?));
        }
    }
    Ok(found)
}

/// YAML of an HTTP listener on a free port: `routes` is a flow sequence, `more` are further fields of the connection
/// manager and `chain` of the filter chain, each on a line of its own without indentation.
#[must_use]
pub fn http_listener(name: &str, routes: &str, more: &str, chain: &str) -> String {
    format!(
        "  - name: {name}\n    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\n    filter_chains:\n    - filters:\n      - name: envoy.filters.network.http_connection_manager\n        typed_config:\n          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n          stat_prefix: {name}\n          route_config:\n            name: {name}\n            virtual_hosts: [{{name: all, domains: [\"*\"], routes: {routes}}}]\n          http_filters:\n          - name: envoy.filters.http.router\n            typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}\n{}{}",
        indent(more, 10),
        indent(chain, 6),
    )
}

/// YAML of a STATIC cluster; `more` are further fields, each on a line of its own without indentation.
#[must_use]
pub fn cluster(name: &str, endpoints: &[SocketAddr], more: &str) -> String {
    let endpoints: Vec<String> = endpoints
        .iter()
        .map(|address| {
            let (ip, port) = (address.ip(), address.port());
            format!("{{endpoint: {{address: {{socket_address: {{address: \"{ip}\", port_value: {port}}}}}}}}}")
        })
        .collect();
    format!(
        "  - name: {name}\n    type: STATIC\n    load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{}]}}]}}\n{}",
        endpoints.join(", "),
        indent(more, 4),
    )
}

/// An edge with an agent `edge-1` of our own kind, whose hosting listener leads to `backend`; `fields` are further ones
/// of its TunnelAgent, in flow style.
pub async fn hosted_agent(server: SocketAddr, backend: SocketAddr, fields: &str) -> Result<Gateway> {
    let hosted = http_listener("hosted", "[{match: {prefix: /}, route: {cluster: backend}}]", "", "")
        .replace("    filter_chains:", "    bind_to_port: false\n    filter_chains:");
    let agents = format!(
        "bootstrap_extensions:\n- name: culvert.tunnel_agents\n  typed_config:\n    \"@type\": type.googleapis.com/culvert.tunnel.v1.TunnelAgents\n    agents:\n    - {{name: agent, cluster: edge-cluster, host_name: edge-1, hosting_listener: hosted, servers: [{{address: \"{server}\"}}], reconnect_base_interval: 0.05s, {fields}}}"
    );
    let folder = TempDir::with_prefix("culvert-")?;
    Gateway::start_in(folder, &hosted, &cluster("backend", &[backend], ""), &agents, 2).await
}

/// Fields of a cluster that make it speak HTTP/2 with prior knowledge.
pub const HTTP2: &str = "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {\"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}}";

fn indent(text: &str, by: usize) -> String {
    text.lines().map(|line| format!("{:by$}{line}\n", "")).collect()
}
