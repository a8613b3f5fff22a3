//! A real Envoy with a bootstrap of its own, beside [`crate::gateway::Gateway`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::Result;
use crate::client::get;
use crate::gateway::bound;
use crate::process::Daemon;
use crate::wait::eventually;

/// A running Envoy.
#[derive(Debug)]
pub struct Envoy {
    _folder: TempDir,
    pub daemon: Daemon,
    pub admin: SocketAddr,
    listeners: BTreeMap<String, SocketAddr>,
}

impl Envoy {
    /// Starts `program` on listeners and clusters (YAML list items at indentation 2) with further top-level YAML, in a
    /// folder that may hold files which the bootstrap names.
    pub async fn start_in(
        folder: TempDir,
        program: &Path,
        listeners: &str,
        clusters: &str,
        more: &str,
        workers: usize,
    ) -> Result<Self> {
        let bootstrap = format!(
            "node: {{id: envoy, cluster: envoy}}\n\
             admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n\
             static_resources:\n  listeners:\n{listeners}\n  clusters:\n{clusters}\n{more}\n"
        );
        std::fs::write(folder.path().join("envoy.yaml"), &bootstrap)?;
        let workers = workers.to_string();
        let mut args = vec!["-c", "envoy.yaml", "--use-dynamic-base-id", "--concurrency", &workers];
        args.extend(["--admin-address-path", "admin", "-l", "warning"]);
        let mut daemon = Daemon::start("envoy", program, &args, folder.path())?;
        let admin = daemon.address(&folder.path().join("admin")).await.with_context(|| bootstrap.clone())?;
        eventually("Envoy is ready", async || {
            daemon.check_alive()?;
            let answer = get(admin, "/ready").await?;
            ensure!(answer.status == 200, "/ready says {} {}", answer.status, answer.text());
            Ok(())
        })
        .await
        .with_context(|| format!("{bootstrap}\n{}", daemon.output()))?;
        let listeners = bound(admin).await.unwrap_or_default();
        Ok(Self { _folder: folder, daemon, admin, listeners })
    }

    /// The address on which a listener is bound.
    pub fn listener(&self, name: &str) -> Result<SocketAddr> {
        self.listeners.get(name).copied().with_context(|| format!("no listener {name} in {:?}", self.listeners))
    }

    /// The sum of all counters and gauges whose name ends so.
    pub async fn stat(&self, suffix: &str) -> Result<u64> {
        let text = get(self.admin, "/stats").await?.text();
        let values = text.lines().filter_map(|line| line.split_once(": ").filter(|(name, _)| name.ends_with(suffix)));
        values.map(|(name, value)| value.trim().parse::<u64>().with_context(|| format!("{name}: {value}"))).sum()
    }
}
