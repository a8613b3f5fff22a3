//! One upstream host: who it is, and what is counted of it over all workers.

use std::net::SocketAddr;
use std::sync::Arc;

use culvert_model::Name;

/// A host as picked. Keeps its identity, and so its pools, as long as its address stays in the cluster.
#[derive(Debug)]
pub struct Host {
    pub(crate) address: Option<SocketAddr>,
    pub(crate) hostname: Arc<str>,
    pub(crate) region: Name,
}

impl Host {
    /// Where connections go; of a tunnel host, where its tunnel came from. `None`: a tunnel in memory.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// For `auto_host_rewrite`, SNI and logs; of a tunnel host the agent's name.
    #[must_use]
    pub fn hostname(&self) -> &Arc<str> {
        &self.hostname
    }

    /// Locality: region.
    #[must_use]
    pub fn region(&self) -> &Name {
        &self.region
    }
}
