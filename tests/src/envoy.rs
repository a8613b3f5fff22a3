//! A real Envoy with a bootstrap of its own, beside [`crate::gateway::Gateway`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;
use tempfile::TempDir;

use crate::Result;
use crate::client::get;
use crate::gateway::{Booted, Parts, boot, named};
use crate::process::Daemon;

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
        let flags = ["--use-dynamic-base-id", "-l", "warning"];
        let parts = Parts { node: "envoy", listeners, clusters, more, workers };
        let Booted { daemon, admin, listeners } = boot("envoy", program, &flags, folder.path(), parts).await?;
        Ok(Self { _folder: folder, daemon, admin, listeners })
    }

    /// The address on which a listener is bound.
    pub fn listener(&self, name: &str) -> Result<SocketAddr> {
        named(&self.listeners, name)
    }

    /// The sum of all counters and gauges whose name ends so.
    pub async fn stat(&self, suffix: &str) -> Result<u64> {
        let text = get(self.admin, "/stats").await?.text();
        let values = text.lines().filter_map(|line| line.split_once(": ").filter(|(name, _)| name.ends_with(suffix)));
        values.map(|(name, value)| value.trim().parse::<u64>().with_context(|| format!("{name}: {value}"))).sum()
    }
}
