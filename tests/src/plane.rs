//! A culvert-control over a directory of its own, and one culvert-proxy that takes everything from it over ADS.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Result;
use crate::client::get;
use crate::gateway::HTTP2;
use crate::process::{Daemon, ours};
use crate::scale::Usage;
use crate::wait::{PATIENCE, eventually};

/// Both daemons and the folder in which they run.
#[derive(Debug)]
pub struct Plane {
    folder: TempDir,
    control: Option<Daemon>,
    /// Where the control plane serves xDS; kept over its restarts.
    pub xds: SocketAddr,
    pub control_admin: SocketAddr,
    pub proxy: Option<Daemon>,
    pub admin: SocketAddr,
    control_flags: Vec<String>,
}

/// How the proxy comes to its control plane.
#[derive(Debug, Clone, Copy, Default)]
pub struct Way<'a> {
    /// State of the world instead of delta.
    pub sotw: bool,
    /// Listeners and clusters on streams of their own, and not on the one of all types.
    pub per_type: bool,
    /// `transport_socket` of the control plane's cluster, as JSON.
    pub tls: Option<&'a str>,
    /// Further flags of the proxy.
    pub flags: &'a [&'a str],
    /// No clusters but those that something asks for by name.
    pub no_cds: bool,
    /// The same of listeners.
    pub no_lds: bool,
    /// Further top-level YAML of its bootstrap.
    pub more: &'a str,
    /// `http2_protocol_options` of the control plane's cluster, in flow style.
    pub http2: &'a str,
}

impl Plane {
    /// Starts the control plane on a directory without files.
    pub async fn start(control_flags: &[&str]) -> Result<Self> {
        Self::start_in(TempDir::with_prefix("culvert-")?, control_flags).await
    }

    /// [`Self::start`] in a folder that holds files which flags or resources name.
    pub async fn start_in(folder: TempDir, control_flags: &[&str]) -> Result<Self> {
        std::fs::create_dir_all(folder.path().join("control"))?;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let control_flags = control_flags.iter().map(ToString::to_string).collect();
        let (control, proxy) = (None, None);
        let (xds, control_admin, admin) = (nowhere, nowhere, nowhere);
        let mut plane = Self { folder, control, xds, control_admin, proxy, admin, control_flags };
        plane.start_control().await?;
        Ok(plane)
    }

    /// Without a control plane of ours: the proxy's is at `xds`.
    pub fn under(xds: SocketAddr) -> Result<Self> {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Ok(Self {
            folder: TempDir::with_prefix("culvert-")?,
            control: None,
            xds,
            control_admin: nowhere,
            proxy: None,
            admin: nowhere,
            control_flags: Vec::new(),
        })
    }

    /// Starts the control plane, again at the address that it had.
    pub async fn start_control(&mut self) -> Result {
        let (listen, flags) = (self.xds.to_string(), self.control_flags.clone());
        let files = ["xds.address", "control.address"].map(|name| self.path(name));
        for file in &files {
            // Of the process before.
            let _absent = std::fs::remove_file(file);
        }
        let mut args = vec!["--config", "control", "--listen", &listen, "--admin", "127.0.0.1:0"];
        args.extend(["--listen-address-path", "xds.address", "--admin-address-path", "control.address"]);
        args.extend(flags.iter().map(String::as_str));
        let mut control = Daemon::start("control", &ours("culvert-control")?, &args, self.folder.path())?;
        self.xds = control.address(&files[0]).await?;
        self.control_admin = control.address(&files[1]).await?;
        self.control = Some(control);
        Ok(())
    }

    /// SIGKILL of the control plane.
    pub async fn kill_control(&mut self) -> Result {
        self.control.take().context("no control plane runs")?.kill().await
    }

    /// Starts the proxy and waits for its admin interface; it need not be ready.
    pub async fn start_proxy(&mut self, way: Way<'_>) -> Result {
        let api = if way.sotw { "GRPC" } else { "DELTA_GRPC" };
        let http2 = HTTP2.replace("http2_protocol_options: {}", &format!("http2_protocol_options: {{{}}}", way.http2));
        let all = format!(
            "{{api_type: {api}, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}"
        );
        let (ads, source) = match way.per_type {
            true => (String::new(), format!("{{api_config_source: {all}, resource_api_version: V3}}")),
            false => (format!("\x20 ads_config: {all}\n"), "{ads: {}, resource_api_version: V3}".to_owned()),
        };
        let cds = if way.no_cds { String::new() } else { format!("\x20 cds_config: {source}\n") };
        let lds = if way.no_lds { String::new() } else { format!("\x20 lds_config: {source}\n") };
        let tls = way.tls.map(|tls| format!(", transport_socket: {tls}")).unwrap_or_default();
        let bootstrap = format!(
            "node: {{id: proxy, cluster: test}}\n\
             admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n\
             dynamic_resources:\n\
             {ads}\
             {cds}{lds}\
             static_resources:\n\
             \x20 clusters:\n\
             \x20 - {{name: xds, type: STATIC, connect_timeout: 2s, {http2}, load_assignment: {{cluster_name: xds, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
             {{socket_address: {{address: {}, port_value: {}}}}}}}}}]}}]}}{tls}}}\n{}\n",
            self.xds.ip(),
            self.xds.port(),
            way.more
        );
        std::fs::write(self.path("bootstrap.yaml"), bootstrap)?;
        let _absent = std::fs::remove_file(self.path("admin.address"));
        let mut args = vec!["-c", "bootstrap.yaml", "--concurrency", "2", "--admin-address-path", "admin.address"];
        args.extend(way.flags);
        let mut proxy = Daemon::start("proxy", &ours("culvert-proxy")?, &args, self.folder.path())?;
        self.admin = proxy.address(&self.path("admin.address")).await?;
        self.proxy = Some(proxy);
        Ok(())
    }

    /// Waits until the proxy is ready.
    pub async fn ready(&mut self) -> Result {
        let (admin, proxy) = (self.admin, self.proxy.as_mut().context("no proxy runs")?);
        eventually("the proxy is ready", async || {
            proxy.check_alive()?;
            let answer = get(admin, "/ready").await?;
            ensure!(answer.status == 200, "/ready says {}: {}", answer.status, answer.text());
            Ok(())
        })
        .await
        .with_context(|| proxy.output())
    }

    /// SIGTERM of the proxy; it exits with 0.
    pub async fn stop_proxy(&mut self) -> Result {
        self.proxy.take().context("no proxy runs")?.terminate(PATIENCE).await
    }

    /// A path in the folder of both.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder of both.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The most memory that the proxy ever had resident, in KiB.
    pub fn peak(&self) -> Result<u64> {
        self.proxy.as_ref().context("no proxy runs")?.peak()
    }

    /// What the proxy has used so far.
    pub fn usage(&self) -> Result<Usage> {
        Usage::of_process(self.proxy.as_ref().context("no proxy runs")?.id()?)
    }

    /// How many files the proxy may have open.
    pub fn open_files(&self) -> Result<u64> {
        let id = self.proxy.as_ref().context("no proxy runs")?.id()?;
        let limits = std::fs::read_to_string(format!("/proc/{id}/limits"))?;
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).context("no limit")?;
        Ok(line.split_whitespace().next().and_then(|soft| soft.parse().ok()).unwrap_or(u64::MAX))
    }

    /// What the proxy has logged.
    #[must_use]
    pub fn proxy_log(&self) -> String {
        self.proxy.as_ref().map(Daemon::output).unwrap_or_default()
    }

    /// What the control plane has logged.
    #[must_use]
    pub fn control_log(&self) -> String {
        self.control.as_ref().map(Daemon::output).unwrap_or_default()
    }

    /// Replaces a file of the control plane's directory as editors do: all resources in it are for the proxy.
    pub fn put(&self, file: &str, resources: &[Value]) -> Result {
        let path = self.path("control").join(file);
        let text = json!({ "selector": { "node_id": "proxy" }, "resources": resources }).to_string();
        let fresh = self.path("control").join(format!(".{file}"));
        std::fs::write(&fresh, text)?;
        Ok(std::fs::rename(fresh, path)?)
    }

    /// A page of the proxy's admin interface, as JSON.
    pub async fn page(&self, path: &str) -> Result<Value> {
        get(self.admin, path).await?.json()
    }

    /// A metric of the proxy as `/stats` gives it; 0 when it was never counted.
    pub async fn stat(&self, name: &str) -> Result<u64> {
        let text = get(self.admin, "/stats").await?.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.map_or(Ok(0), |value| value.trim().parse().with_context(|| format!("{name}: {value}")))
    }

    /// Where a resource stands at the control plane: its state and the proxy's words.
    pub async fn status(&self, type_url: &str, name: &str) -> Result<(String, String)> {
        let nodes = get(self.control_admin, "/nodes").await?.json()?;
        let types = nodes.as_array().into_iter().flatten().filter_map(|node| node["types"].as_array()).flatten();
        let of_type = types.filter(|of_type| of_type["type_url"].as_str().is_some_and(|seen| seen.ends_with(type_url)));
        let resources = of_type.filter_map(|of_type| of_type["resources"].as_array()).flatten();
        let mut found = resources.filter(|resource| resource["name"] == name);
        let resource = found.next().with_context(|| format!("no {type_url}/{name} in {nodes}"))?;
        let text = |field: &str| resource[field].as_str().unwrap_or_default().to_owned();
        Ok((text("state"), text("error")))
    }
}

/// A `Cluster` that takes its hosts over ADS, from the assignment `NAME-hosts`.
#[must_use]
pub fn eds_cluster(name: &str) -> Value {
    json!({ "@type": envoy("config.cluster.v3.Cluster"), "name": name, "type": "EDS", "connect_timeout": "5s",
        "eds_cluster_config": { "service_name": format!("{name}-hosts"),
            "eds_config": { "ads": {}, "resource_api_version": "V3" } } })
}

/// The assignment of [`eds_cluster`].
#[must_use]
pub fn assignment(name: &str, addresses: &[SocketAddr]) -> Value {
    let endpoint = |address: &SocketAddr| {
        json!({ "endpoint": { "address": { "socket_address": {
            "address": address.ip().to_string(), "port_value": address.port() } } } })
    };
    json!({ "@type": envoy("config.endpoint.v3.ClusterLoadAssignment"), "cluster_name": format!("{name}-hosts"),
        "endpoints": [{ "lb_endpoints": addresses.iter().map(endpoint).collect::<Vec<_>>() }] })
}

/// A listener that takes its routes by name.
#[must_use]
pub fn by_rds(name: &str, address: SocketAddr, routes: &str) -> Value {
    let mut by_rds = listener(name, address, "", json!({}));
    let manager = &mut by_rds["filter_chains"][0]["filters"][0]["typed_config"];
    if let Some(manager) = manager.as_object_mut() {
        manager.remove("route_config");
    }
    manager["rds"] =
        json!({ "route_config_name": routes, "config_source": { "ads": {}, "resource_api_version": "V3" } });
    by_rds
}

/// Routes that send everything to a cluster.
#[must_use]
pub fn routes_to(name: &str, cluster: &str) -> Value {
    json!({ "@type": envoy("config.route.v3.RouteConfiguration"), "name": name, "virtual_hosts": [
        { "name": "all", "domains": ["*"], "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster } }] },
    ]})
}

/// `type.googleapis.com/envoy.` and the rest of a type's name.
#[must_use]
pub fn envoy(rest: &str) -> String {
    format!("type.googleapis.com/envoy.{rest}")
}

/// A `Listener` that answers every request with `body`; `more` are further fields of its filter chain.
#[must_use]
pub fn listener(name: &str, address: SocketAddr, body: &str, more: Value) -> Value {
    let mut chain = json!({ "filters": [{ "name": "http", "typed_config": {
        "@type": envoy("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "route_config": { "name": name, "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [
            { "match": { "prefix": "/" }, "direct_response": { "status": 200, "body": { "inline_string": body } } },
        ]}]},
        "http_filters": [{ "name": "router", "typed_config": { "@type": envoy("extensions.filters.http.router.v3.Router") } }],
    }}]});
    if let (Some(chain), Value::Object(more)) = (chain.as_object_mut(), more) {
        chain.extend(more);
    }
    json!({
        "@type": envoy("config.listener.v3.Listener"),
        "name": name,
        "address": { "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } },
        "filter_chains": [chain],
    })
}
