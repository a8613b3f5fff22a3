//! What the process counts of itself, under Envoy's names, and what is looked up when somebody reads metrics.

mod tunnels;

use std::sync::Arc;

use culvert_model::cluster::Discovery;
use culvert_proxy::Process;
use culvert_runtime::access_log::AccessLogs;
use culvert_runtime::log::LogControl;
use culvert_runtime::telemetry::{Metric, Metrics, Sample, ScopePath, counter};
use tokio::time::Instant;

use crate::overview::{Overview, TunnelView};

/// What the applier counts. Its scope has no path of its own: the names are whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum ManagerMetric {
    ListenerAdded,
    ListenerModified,
    ListenerRemoved,
    ListenerCreateFailure,
    ClusterAdded,
    ClusterModified,
    ClusterRemoved,
    TlsUpdateRejected,
}

impl Metrics for ManagerMetric {
    const ALL: &'static [Metric] = &[
        counter("listener_manager.listener_added"),
        counter("listener_manager.listener_modified"),
        counter("listener_manager.listener_removed"),
        counter("listener_manager.listener_create_failure"),
        counter("cluster_manager.cluster_added"),
        counter("cluster_manager.cluster_modified"),
        counter("cluster_manager.cluster_removed"),
        counter("server.tls_update_rejected"),
    ];
    fn index(self) -> usize {
        self as usize
    }
}

/// What the looked-up metrics are taken from.
#[derive(Debug, Clone)]
pub(crate) struct Looked {
    pub process: Arc<Process>,
    pub overview: Arc<Overview>,
    pub logs: AccessLogs,
    pub log: LogControl,
    pub concurrency: usize,
    pub started: Instant,
    pub state: Arc<crate::lifecycle::State>,
}

impl Looked {
    /// Has the registry show it.
    pub(crate) fn sampled(&self) {
        let looked = self.clone();
        self.process.registry.add_source(move |samples| looked.samples(samples));
    }

    /// Everything that is not counted but known.
    pub(crate) fn samples(&self, samples: &mut Vec<Sample>) {
        self.server(samples);
        self.managers(samples);
        self.tunnels(samples);
        let filesystem = |name, value| Sample::counter(ScopePath::process("filesystem"), name, value);
        samples.push(filesystem("write_completed", self.logs.written()));
        samples.push(filesystem("write_failed", self.logs.dropped()));
        for slot in self.process.clusters.slots() {
            let Some(config) = slot.config() else { continue };
            let path = ScopePath::cluster(Arc::clone(&config.cluster.stat_name));
            slot.gauges(&mut |name, value| samples.push(Sample::gauge(path.clone(), name.to_owned(), value)));
            // Whoever receives assignments counts them.
            let by_eds = matches!(config.cluster.discovery, Discovery::Eds { .. });
            let updates = slot.updates().read().into_iter();
            let updates = updates.filter(|(name, _)| !by_eds || *name == "membership_change");
            samples.extend(updates.map(|(name, value)| Sample::counter(path.clone(), name, value)));
        }
    }

    fn tunnels(&self, samples: &mut Vec<Sample>) {
        tunnels::of_agents(&TunnelView::new(&self.overview, &self.process).status(), samples);
        let agents: Vec<_> = self.overview.agents.lock().values().cloned().collect();
        agents.iter().for_each(|agent| tunnels::of_servers(&agent.status(), samples));
    }

    fn server(&self, samples: &mut Vec<Sample>) {
        let path = || ScopePath::process("server");
        let gauge = |name, value| Sample::gauge(path(), name, value);
        samples.extend([
            gauge("live", u64::from(self.state.is_live())),
            gauge("state", self.state.code()),
            gauge("uptime", self.started.elapsed().as_secs()),
            gauge("concurrency", u64::try_from(self.concurrency).unwrap_or(u64::MAX)),
            Sample::counter(path(), "panics", culvert_runtime::process::panics()),
            Sample::counter(path(), "log_lines_dropped", self.log.dropped()),
        ]);
        let now = std::time::SystemTime::now();
        let certificates = self.overview.certificates();
        let expiries = certificates.iter().flat_map(|(_, view)| &view.presented).map(|certificate| {
            certificate.not_after.duration_since(now).map_or(0, |left| left.as_secs() / (24 * 60 * 60))
        });
        if let Some(days) = expiries.min() {
            samples.push(gauge("days_until_first_cert_expiring", days));
        }
    }

    fn managers(&self, samples: &mut Vec<Sample>) {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let listeners = self.overview.listeners.lock();
        let active = listeners.values().filter(|view| view.active).count();
        let warming = listeners.values().filter(|view| !view.awaiting.is_empty()).count();
        let gauge = |root, name, value| Sample::gauge(ScopePath::process(root), name, count(value));
        samples.extend([
            gauge("listener_manager", "total_listeners_active", active),
            gauge("listener_manager", "total_listeners_warming", warming),
            gauge("cluster_manager", "active_clusters", self.process.clusters.slots().len()),
            gauge("cluster_manager", "warming_clusters", self.overview.warming_clusters.lock().len()),
            gauge("tunnel_server", "connections", self.overview.tunnels.live()),
            gauge("tunnel_agent", "agents", self.overview.agents.lock().len()),
        ]);
        let (fetched, failed) = self.overview.remote_keys.counts();
        let counter = |name, value| Sample::counter(ScopePath::process("remote_jwks"), name, value);
        samples.extend([counter("fetch_success", fetched), counter("fetch_failed", failed)]);
    }
}
