//! A cluster's place: what survives every update of it.

use std::sync::Arc;

use culvert_model::Name;
use culvert_model::cluster::Cluster;
use culvert_runtime::telemetry::Scope;

use crate::breaker::Breakers;
use crate::stats::ClusterMetric;

/// A name's place among the clusters. Routes hold slots, never names; a slot whose cluster is not there (yet) is
/// absent: [`Self::config`] is `None` and a checkout fails with [`crate::UpstreamFailure::NoCluster`].
#[derive(Debug)]
pub struct ClusterSlot {
    name: Name,
    breakers: Arc<Breakers>,
    stats: Scope<ClusterMetric>,
}

/// A cluster's configuration with what was resolved for it.
#[derive(Debug)]
pub struct ClusterConfig {
    pub cluster: Arc<Cluster>,
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

impl ClusterSlot {
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The configuration of the moment; `None`: the cluster is not there. For anything but the request path.
    #[must_use]
    pub fn config(&self) -> Option<Arc<ClusterConfig>> {
        todo!()
    }

    /// Counters over all workers.
    #[must_use]
    pub fn stats(&self) -> &Scope<ClusterMetric> {
        &self.stats
    }

    #[must_use]
    pub fn breakers(&self) -> &Arc<Breakers> {
        &self.breakers
    }

    /// What is known without counting, under Envoy's names: `membership_total`, `circuit_breakers.default.rq_open` ...
    pub fn gauges(&self, each: &mut dyn FnMut(&str, u64)) {
        let _ = each;
        todo!()
    }

    /// Returns when the cluster may serve: its endpoints came, or its names were resolved or failed once. The caller
    /// sets the deadline.
    pub async fn warmed(&self) {
        todo!()
    }
}
