//! The admin interface: what the process is, holds and counts, for people and for dashboards. Paths, parameters and
//! formats are Envoy's.
//!
//! **A GET changes nothing**; what changes something is a POST. Requests for a foreign host name are refused, so that no
//! web page reaches the interface by having its name resolve to loopback.

mod certs;
mod client_status;
mod clusters;
mod config_dump;
mod guard;
mod listeners;
mod pages;
mod query;
mod server;
#[cfg(test)]
mod tests;
mod tunnels;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_api::envoy::config::bootstrap::v3 as api;
use culvert_model::Name;

pub(crate) use guard::{Token, TokenError};
pub(crate) use server::AdminSocket;

use crate::apply::ApplyHandle;
use crate::bootstrap::Started;
use crate::inventory::Inventory;
use crate::options::Options;
use crate::stats::Looked;

/// All that the interface looks at.
#[derive(Debug)]
pub(crate) struct Admin {
    bootstrap: Arc<api::Bootstrap>,
    /// All other clusters came over xDS.
    static_clusters: HashSet<Name>,
    options: Options,
    token: Option<Token>,
    looked: Looked,
    inventory: Inventory,
    apply: ApplyHandle,
    drain_time: Duration,
    began: SystemTime,
}

impl Admin {
    #[must_use]
    pub(crate) fn new(
        options: &Options,
        token: Option<Token>,
        started: &Started,
        looked: Looked,
        inventory: Inventory,
        apply: ApplyHandle,
        drain_time: Duration,
    ) -> Arc<Self> {
        let static_clusters = started.bootstrap.clusters.iter().map(|cluster| Arc::clone(&cluster.name)).collect();
        Arc::new(Self {
            bootstrap: Arc::clone(&started.message),
            static_clusters,
            options: options.clone(),
            token,
            looked,
            inventory,
            apply,
            drain_time,
            began: SystemTime::now(),
        })
    }
}
