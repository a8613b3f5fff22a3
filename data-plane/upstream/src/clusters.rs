//! The registry of slots, written by the control runtime.

use std::sync::Arc;

use culvert_model::cluster::Cluster;
use culvert_model::endpoint::Endpoints;

use crate::dns::Resolver;
use crate::slot::ClusterSlot;
use crate::snapshot::{ClusterSnapshot, TunnelSnapshot};
use crate::tunnel::{RegisterError, TunnelClaim, TunnelLease};

/// All clusters of the process, by name.
#[derive(Debug)]
pub struct Clusters(());

impl Clusters {
    /// DNS and the publishing of tunnel hosts run on `control`.
    #[must_use]
    pub fn new(control: tokio::runtime::Handle, resolver: Resolver) -> Arc<Self> {
        let _ = (control, resolver);
        todo!()
    }

    /// Adds or updates a cluster. Connections, statistics and tunnels survive; pooled connections are replaced only
    /// if what they were opened with has changed. `tls` is what the cluster's TLS context resolved to; calling again
    /// with another one rotates certificates.
    pub fn apply(&self, cluster: Arc<Cluster>, tls: Option<Arc<rustls::ClientConfig>>) {
        let _ = (cluster, tls);
        todo!()
    }

    /// Sets the endpoints of an EDS cluster. May come before or after [`Self::apply`].
    pub fn update_endpoints(&self, cluster: &str, endpoints: Arc<Endpoints>) {
        let _ = (cluster, endpoints);
        todo!()
    }

    /// Removes a cluster. Its slot stays for the routes that hold it; its tunnels are drained.
    pub fn remove(&self, cluster: &str) {
        let _ = cluster;
        todo!()
    }

    /// The slot of that name; absent until the cluster is applied. For configuration that is compiled, not for names
    /// that requests bring: see [`Self::lookup`].
    #[must_use]
    pub fn slot(&self, name: &str) -> Arc<ClusterSlot> {
        let _ = name;
        todo!()
    }

    /// The slot of that name if there is one.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<Arc<ClusterSlot>> {
        let _ = name;
        todo!()
    }

    /// Publishes a tunnel as a host of its cluster; returns when every worker can choose it.
    ///
    /// # Errors
    /// When the cluster is not there, or the agent has as many connections as it may have.
    pub async fn register(&self, claim: TunnelClaim) -> Result<TunnelLease, RegisterError> {
        let _ = claim;
        todo!()
    }

    /// Every present cluster with its hosts, by name.
    #[must_use]
    pub fn snapshot(&self) -> Vec<ClusterSnapshot> {
        todo!()
    }

    /// Every registered tunnel connection.
    #[must_use]
    pub fn tunnels(&self) -> Vec<TunnelSnapshot> {
        todo!()
    }
}
