//! The registry of slots, written by the control runtime.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use culvert_model::Name;
use culvert_model::cluster::{Cluster, Discovery};
use culvert_model::endpoint::Endpoints;
use culvert_model::route::Priority;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::dns::Resolver;
use crate::host::Host;
use crate::sharing::Sharing;
use crate::slot::ClusterSlot;
use crate::snapshot::{ClusterSnapshot, HostSnapshot, TunnelSnapshot};
use crate::tunnel::{RegisterError, TunnelClaim, TunnelLease};

/// All clusters of the process, by name.
#[derive(Debug)]
pub struct Clusters {
    slots: Mutex<HashMap<Name, Arc<ClusterSlot>, foldhash::fast::RandomState>>,
    /// Agents in Envoy's dialect, from which every `reverse_connection` cluster chooses. Under no name.
    reverse: Arc<ClusterSlot>,
    next_id: AtomicU64,
    publisher: Arc<Publisher>,
    /// Wakes the workers' housekeeping: a request waits until some worker closes an idle connection.
    wanted: Notify,
}

/// Builds generations after tunnels came or went: at once after a quiet time, at most every [`BATCH`] under load.
#[derive(Debug)]
pub(crate) struct Publisher {
    control: Handle,
    resolver: Resolver,
    changed: Mutex<Vec<Weak<ClusterSlot>>>,
    wake: Notify,
    builds: AtomicU64,
    /// See [`Clusters::expect_agents`].
    pub(crate) arrivals: OnceLock<Instant>,
    pub(crate) sharing: Sharing,
}

impl Clusters {
    /// DNS and the publishing of tunnel hosts run on `control`.
    #[must_use]
    pub fn new(control: Handle, resolver: Resolver) -> Arc<Self> {
        let publisher = Arc::new(Publisher {
            control,
            resolver,
            changed: Mutex::default(),
            wake: Notify::new(),
            builds: AtomicU64::new(0),
            arrivals: OnceLock::new(),
            sharing: Sharing::default(),
        });
        let reverse = ClusterSlot::new(0, Name::from(REVERSE), Arc::clone(&publisher));
        if let Some(config) = Cluster::bare(REVERSE) {
            reverse.apply(Arc::new(config), None);
        }
        let clusters = Arc::new(Self {
            slots: Mutex::default(),
            reverse,
            next_id: AtomicU64::new(1),
            publisher: Arc::clone(&publisher),
            wanted: Notify::new(),
        });
        let registry = Arc::downgrade(&clusters);
        publisher.control.spawn(run_publisher(Arc::clone(&publisher), registry));
        clusters
    }

    /// This process takes another one's place: until then, requests that find no host wait for the agents that are still
    /// with that one. To be called once, before there are clusters.
    pub fn expect_agents(&self, until: Instant) {
        if self.publisher.arrivals.set(until).is_ok() {
            self.reverse.queue().expect(until);
        }
    }

    /// Adds or updates a cluster. Connections, statistics and tunnels survive; pooled connections are replaced only
    /// if what they were opened with has changed. `tls` is what the cluster's TLS context resolved to; calling again
    /// with another one rotates certificates.
    pub fn apply(&self, cluster: Arc<Cluster>, tls: Option<Arc<rustls::ClientConfig>>) {
        let slot = self.slot(&cluster.name);
        slot.apply(cluster, tls);
        self.share(&slot);
    }

    /// Finds the cluster the tunnels that it shares with others.
    fn share(&self, slot: &Arc<ClusterSlot>) {
        self.publisher.sharing.changed(slot, |name| {
            let home = self.lookup(name).filter(|home| !Arc::ptr_eq(home, slot));
            let of_envoy = self.reverse.tunnels().into_iter().filter(|host| is_registered_as(host, name));
            of_envoy.chain(home.map(|home| home.tunnels()).unwrap_or_default()).collect()
        });
    }

    /// Sets the endpoints of the EDS cluster of that name. May come before or after [`Self::apply`].
    pub fn update_endpoints(&self, cluster: &str, endpoints: Arc<Endpoints>) {
        self.slot(cluster).update_endpoints(endpoints);
    }

    /// Removes a cluster. Its slot stays for the routes that hold it; its tunnels are drained.
    pub fn remove(&self, cluster: &str) {
        let Some(slot) = self.lookup(cluster) else { return };
        slot.remove();
        self.share(&slot);
        drop(slot);
        self.prune();
    }

    /// The slot of that name; absent until the cluster is applied. For configuration that is compiled, not for names
    /// that requests bring: see [`Self::lookup`].
    #[must_use]
    pub fn slot(&self, name: &str) -> Arc<ClusterSlot> {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get(name) {
            return Arc::clone(slot);
        }
        let name: Name = Name::from(name);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let slot = ClusterSlot::new(id, Name::clone(&name), Arc::clone(&self.publisher));
        slots.insert(name, Arc::clone(&slot));
        slot
    }

    /// The slot of that name if there is one; it may be absent.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<Arc<ClusterSlot>> {
        self.slots.lock().get(name).map(Arc::clone)
    }

    /// Publishes a tunnel as a host of its cluster; returns when every worker can choose it. Cancelling it leaves
    /// nothing behind.
    ///
    /// # Errors
    /// When the cluster is not there, or the agent has as many connections as it may have.
    pub async fn register(&self, claim: TunnelClaim) -> Result<TunnelLease, RegisterError> {
        if claim.reverse.is_some() {
            return self.register_reverse(claim).await;
        }
        let Some(slot) = self.lookup(&claim.cluster) else {
            return Err(RegisterError::ClusterUnknown(claim.cluster));
        };
        let (lease, sequence) = slot.add_tunnel(claim)?;
        self.published(&lease, (slot, sequence), None).await;
        Ok(lease)
    }

    /// Returns when every worker can choose the tunnel in every cluster that it serves.
    async fn published(&self, lease: &TunnelLease, home: (Arc<ClusterSlot>, u64), named: Option<&Arc<ClusterSlot>>) {
        let further = self.publisher.sharing.registered(lease.host(), named);
        for (slot, sequence) in [home].into_iter().chain(further) {
            slot.tunnels_published(sequence).await;
        }
    }

    /// As [`Self::register`], for all `reverse_connection` clusters, those to come included, and perhaps for the one that
    /// the claim names.
    async fn register_reverse(&self, claim: TunnelClaim) -> Result<TunnelLease, RegisterError> {
        let joins = claim.joins();
        let named = self.lookup(&claim.cluster).filter(|slot| joins && slot.config().is_some());
        let chosen_from = |slot: &Arc<ClusterSlot>| {
            slot.config().is_some_and(|config| matches!(config.cluster.discovery, Discovery::Reverse(_)))
        };
        // An agent that nobody can reach is told so, where the listener admits it to clusters by name.
        let is_shared = || self.publisher.sharing.shares(&claim.cluster);
        if joins && named.is_none() && !is_shared() && !self.slots().iter().any(chosen_from) {
            return Err(RegisterError::ClusterUnknown(claim.cluster));
        }
        let (lease, sequence) = self.reverse.add_tunnel(claim)?;
        self.published(&lease, (Arc::clone(&self.reverse), sequence), named.as_ref()).await;
        Ok(lease)
    }

    /// Agents in Envoy's dialect.
    pub(crate) fn reverse(&self) -> &Arc<ClusterSlot> {
        &self.reverse
    }

    /// Every slot whose cluster is there, by name.
    #[must_use]
    pub fn slots(&self) -> Vec<Arc<ClusterSlot>> {
        let mut slots: Vec<_> = self.slots.lock().values().map(Arc::clone).collect();
        slots.retain(|slot| slot.config().is_some());
        slots.sort_by(|a, b| a.name().cmp(b.name()));
        slots
    }

    /// Every present cluster with its hosts, by name.
    #[must_use]
    pub fn snapshot(&self) -> Vec<ClusterSnapshot> {
        self.slots().iter().map(|slot| snapshot(slot)).collect()
    }

    /// Every registered tunnel connection, by cluster, oldest first.
    #[must_use]
    pub fn tunnels(&self) -> Vec<TunnelSnapshot> {
        let mut slots: Vec<_> = self.slots.lock().values().map(Arc::clone).collect();
        slots.sort_by(|a, b| a.name().cmp(b.name()));
        slots
            .iter()
            .flat_map(|slot| slot.tunnels())
            .chain(self.reverse.tunnels())
            .filter_map(|host| host.tunnel().map(|connection| TunnelSnapshot::of(connection)))
            .collect()
    }

    /// Generations that were built because tunnels came or went.
    #[must_use]
    pub fn tunnel_builds(&self) -> u64 {
        self.publisher.builds.load(Ordering::Relaxed)
    }

    pub(crate) fn wanted(&self) -> &Notify {
        &self.wanted
    }

    /// Forgets absent slots that nobody holds. Called on removals, so that names that come and go do not pile up.
    fn prune(&self) {
        self.slots.lock().retain(|_, slot| Arc::strong_count(slot) > 1 || slot.config().is_some());
    }
}

impl Drop for Clusters {
    fn drop(&mut self) {
        // Lets the publisher see that it is over.
        self.publisher.wake.notify_one();
    }
}

impl Publisher {
    pub(crate) fn control(&self) -> &Handle {
        &self.control
    }

    pub(crate) fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    pub(crate) fn enqueue(&self, slot: Weak<ClusterSlot>) {
        self.changed.lock().push(slot);
        self.wake.notify_one();
    }
}

async fn run_publisher(publisher: Arc<Publisher>, registry: Weak<Clusters>) {
    loop {
        publisher.wake.notified().await;
        if registry.strong_count() == 0 {
            return;
        }
        let began = Instant::now();
        let changed = std::mem::take(&mut *publisher.changed.lock());
        for slot in changed.iter().filter_map(Weak::upgrade) {
            publisher.builds.fetch_add(1, Ordering::Relaxed);
            slot.publish_tunnels();
        }
        // Whatever comes now is built together. A large cluster's generation takes long: no more than a fifth of the time
        // goes into them.
        tokio::time::sleep(BATCH.max(began.elapsed() * 4)).await;
    }
}

fn is_registered_as(host: &Host, cluster: &str) -> bool {
    host.tunnel().is_some_and(|connection| *connection.claim().cluster == *cluster)
}

fn snapshot(slot: &ClusterSlot) -> ClusterSnapshot {
    let generation = slot.current().load_full();
    let breakers = slot.breakers();
    ClusterSnapshot {
        name: Name::clone(slot.name()),
        breakers: [
            ("default", breakers.of(Priority::Default).levels()),
            ("high", breakers.of(Priority::High).levels()),
        ],
        hosts: generation.hosts.members().iter().map(HostSnapshot::of).collect(),
    }
}

/// In logs only.
const REVERSE: &str = "reverse tunnels";
/// Registrations of this time are published together.
const BATCH: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests;
