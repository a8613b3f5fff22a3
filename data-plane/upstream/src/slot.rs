//! A cluster's place: what survives every update of it.

mod builder;
mod placed;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use culvert_model::Name;
use culvert_model::cluster::{Cluster, Discovery, UpstreamProtocol};
use culvert_model::endpoint::{Endpoints, Health};
use culvert_runtime::telemetry::Scope;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::balance::HostSet;
use crate::breaker::Breakers;
use crate::clusters::Publisher;
use crate::failure::UpstreamFailure;
use crate::host::Host;
use crate::sharing::{Outcome, Place, Sharing};
use crate::stats::{ClusterMetric, UpdateCounts};
use crate::tunnel::{Absence, Opening, Queue, RegisterError, TunnelClaim, TunnelEnd, TunnelLease};
use builder::Builder;
pub(crate) use builder::DnsName;
use placed::Change;

/// A name's place among the clusters. Routes hold slots, never names; a slot whose cluster is not there (yet) is
/// absent: [`Self::config`] is `None` and a checkout fails with [`UpstreamFailure::NoCluster`].
#[derive(Debug)]
pub struct ClusterSlot {
    id: u64,
    name: Name,
    /// What workers read, through an `arc_swap::Cache` each.
    current: Arc<ArcSwap<Generation>>,
    breakers: Arc<Breakers>,
    stats: Scope<ClusterMetric>,
    updates: UpdateCounts,
    /// What the next generation is built from. Locked by writers only, never by a request.
    builder: Mutex<Builder>,
    queue: Arc<Queue>,
    /// The last change of the tunnels that is published.
    published: AtomicU64,
    /// Whether the cluster may serve.
    warm: AtomicBool,
    /// Told of every generation. One of these takes a tenth of what a channel takes, of which ten thousand clusters have
    /// no use.
    changed: Notify,
    /// Whether the publisher has been told.
    dirty: AtomicBool,
    publisher: Arc<Publisher>,
    me: Weak<Self>,
}

/// Configuration and hosts that belong together.
#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) config: Option<Arc<ClusterConfig>>,
    pub(crate) hosts: HostSet,
}

/// A cluster's configuration with what was resolved for it.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    pub cluster: Arc<Cluster>,
    pub(crate) tls: Option<TlsClients>,
    /// What it demands inside of tunnels; only clusters of the `reverse_connection` type demand anything.
    pub(crate) opening: Opening,
    /// Changes when connections must be opened in another way: pooled ones of an older epoch are not reused.
    pub(crate) epoch: u64,
}

/// TLS towards the hosts, by the protocol that is offered.
#[derive(Debug, Clone)]
pub(crate) struct TlsClients {
    given: Arc<rustls::ClientConfig>,
    pub(crate) http1: Arc<rustls::ClientConfig>,
    pub(crate) http2: Arc<rustls::ClientConfig>,
    pub(crate) either: Arc<rustls::ClientConfig>,
}

impl TlsClients {
    /// Offers what the context's ALPN says; where it says nothing, what the connection will speak.
    fn new(given: Arc<rustls::ClientConfig>, protocol: UpstreamProtocol) -> Self {
        let offering = |protocols: &[&[u8]]| {
            if !given.alpn_protocols.is_empty() {
                return Arc::clone(&given);
            }
            let mut config = (*given).clone();
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            Arc::new(config)
        };
        let http2 = offering(&[b"h2"]);
        // A plain HTTP/1 cluster offers nothing, as Envoy: servers without ALPN exist.
        let http1 = match protocol {
            UpstreamProtocol::Http1 => Arc::clone(&given),
            UpstreamProtocol::Http2 | UpstreamProtocol::Auto | UpstreamProtocol::Downstream => offering(&[b"http/1.1"]),
        };
        let either = offering(&[b"h2", b"http/1.1"]);
        Self { given, http1, http2, either }
    }
}

impl ClusterSlot {
    pub(crate) fn new(id: u64, name: Name, publisher: Arc<Publisher>) -> Arc<Self> {
        let absent = Generation { config: None, hosts: HostSet::empty() };
        let queue = Queue::of(id);
        if let Some(until) = publisher.arrivals.get() {
            queue.expect(*until);
        }
        Arc::new_cyclic(|me| Self {
            id,
            name,
            current: Arc::new(ArcSwap::from_pointee(absent)),
            breakers: Arc::default(),
            stats: Scope::default(),
            updates: UpdateCounts::default(),
            builder: Mutex::default(),
            queue,
            published: AtomicU64::new(0),
            warm: AtomicBool::new(false),
            changed: Notify::new(),
            dirty: AtomicBool::new(false),
            publisher,
            me: Weak::clone(me),
        })
    }

    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The configuration of the moment; `None`: the cluster is not there. For anything but the request path.
    #[must_use]
    pub fn config(&self) -> Option<Arc<ClusterConfig>> {
        self.current.load().config.clone()
    }

    /// Counters over all workers.
    #[must_use]
    pub fn stats(&self) -> &Scope<ClusterMetric> {
        &self.stats
    }

    /// What configuration updates and DNS counted.
    #[must_use]
    pub fn updates(&self) -> &UpdateCounts {
        &self.updates
    }

    #[must_use]
    pub fn breakers(&self) -> &Arc<Breakers> {
        &self.breakers
    }

    /// Gauges that are known without counting, under Envoy's names: `membership_total`,
    /// `circuit_breakers.default.rq_open` ...
    pub fn gauges(&self, each: &mut dyn FnMut(&str, u64)) {
        let generation = self.current.load_full();
        let members = generation.hosts.members();
        let count = |health: Health| members.iter().filter(|member| member.health == health).count() as u64;
        each("membership_total", members.len() as u64);
        each("membership_healthy", count(Health::Healthy));
        each("membership_degraded", count(Health::Degraded));
        each("membership_excluded", 0);
        if self.has_tunnels() {
            each("tunnel.withheld", self.builder.lock().placed.withheld());
        }
        let Some(config) = &generation.config else { return };
        let priorities = [
            ("default", culvert_model::route::Priority::Default, &config.cluster.breakers[0]),
            ("high", culvert_model::route::Priority::High, &config.cluster.breakers[1]),
        ];
        for (name, priority, limits) in priorities {
            for (kind, level) in self.breakers.of(priority).levels() {
                each(&format!("circuit_breakers.{name}.{kind}_open"), u64::from(level.is_open()));
                if limits.track_remaining {
                    each(&format!("circuit_breakers.{name}.remaining_{kind}"), u64::from(level.remaining()));
                }
            }
        }
    }

    /// Returns when the cluster may serve: its endpoints came, or its names were resolved or failed once. The caller
    /// sets the deadline.
    pub async fn warmed(&self) {
        self.until(|| self.warm.load(Ordering::Acquire)).await;
    }

    /// Waits for a generation with which `is_so`.
    async fn until(&self, is_so: impl Fn() -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Before it is looked at: what changes from now on is not missed.
            changed.as_mut().enable();
            if is_so() {
                return;
            }
            changed.await;
        }
    }

    /// Unlike that of any other slot of the process.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn current(&self) -> &Arc<ArcSwap<Generation>> {
        &self.current
    }

    /// Whether tunnels serve the cluster, or ever did.
    #[must_use]
    pub fn has_tunnels(&self) -> bool {
        self.queue.is_used()
    }

    pub(crate) fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    /// Why a named agent cannot be reached.
    pub(crate) fn agent_failure(&self, agent: &str) -> UpstreamFailure {
        match self.queue.absence(agent) {
            Absence::Unknown => UpstreamFailure::AgentUnknown,
            Absence::Offline(since) => UpstreamFailure::AgentOffline { seconds: since.as_secs() },
        }
    }

    /// Takes a configuration; builds at once.
    pub(crate) fn apply(&self, cluster: Arc<Cluster>, tls: Option<Arc<rustls::ClientConfig>>) {
        self.breakers.set_limits(&cluster.breakers);
        if matches!(cluster.discovery, Discovery::Reverse(_) | Discovery::Tunnels(_)) {
            self.queue.set_used();
        }
        let mut builder = self.builder.lock();
        builder.configure(cluster, tls);
        builder.resolve(&self.me, &self.publisher);
        self.publish(&mut builder);
    }

    /// Takes the endpoints of an EDS cluster.
    pub(crate) fn update_endpoints(&self, endpoints: Arc<Endpoints>) {
        let mut builder = self.builder.lock();
        builder.set_assignment(endpoints);
        self.publish(&mut builder);
    }

    /// Takes the outcome of one lookup; a failure keeps the addresses of before.
    pub(crate) fn resolved(&self, name: &DnsName, answer: Option<Vec<std::net::SocketAddr>>) {
        self.updates.lookup(answer.is_some());
        let mut builder = self.builder.lock();
        if builder.set_answer(name, answer) {
            self.publish(&mut builder);
        }
    }

    /// Forgets the cluster; tunnels that are registered in it drain.
    pub(crate) fn remove(&self) {
        let mut builder = self.builder.lock();
        builder.clear();
        let drained: Vec<_> = builder.tunnels().cloned().collect();
        self.publish(&mut builder);
        drop(builder);
        for connection in drained.iter().filter_map(|host| host.tunnel()) {
            connection.drain(TunnelEnd::ClusterRemoved);
            connection.further(|slot| slot.tunnels_changed());
        }
    }

    pub(crate) fn add_tunnel(self: &Arc<Self>, claim: TunnelClaim) -> Result<(TunnelLease, u64), RegisterError> {
        let mut builder = self.builder.lock();
        let (host, sequence) = builder.add_tunnel(claim, &self.queue)?;
        drop(builder);
        self.tunnels_changed();
        let connection = match host.tunnel() {
            Some(connection) => Arc::clone(connection),
            None => return Err(RegisterError::ClusterUnknown(Arc::clone(&self.name))),
        };
        Ok((TunnelLease::new(Arc::clone(self), host, connection), sequence))
    }

    /// Says what a tunnel that is registered elsewhere is to this cluster.
    pub(crate) fn place(self: &Arc<Self>, registered: &Arc<Host>, place: Place) -> Outcome {
        let Some(connection) = registered.tunnel() else { return Outcome::Nothing };
        let mut builder = self.builder.lock();
        let change = builder.placed.place(registered.id(), connection, place);
        let sequence = if change.is_some() { builder.advance() } else { builder.sequence() };
        drop(builder);
        if let Some(change) = &change {
            if !self.tell(change) {
                self.builder.lock().placed.displace(registered.id());
                return Outcome::Nothing;
            }
            self.tunnels_changed();
        }
        match (place, change) {
            (Place::Serves { .. }, _) => Outcome::Serves(sequence),
            (Place::Withheld | Place::None, Some(Change::Went(_))) => Outcome::Ended,
            (Place::Withheld | Place::None, _) => Outcome::Nothing,
        }
    }

    /// Whether the cluster chooses a tunnel that may not serve it, whose host has that id where it is registered.
    pub(crate) fn withholds(&self, registered: u64) -> bool {
        self.builder.lock().placed.withholds(registered)
    }

    /// The cluster chooses a tunnel no more, whose host has that id where it is registered.
    pub(crate) fn displace(self: &Arc<Self>, registered: u64) {
        let mut builder = self.builder.lock();
        let change = builder.placed.displace(registered);
        builder.advance();
        drop(builder);
        if let Some(change) = change {
            self.tell(&change);
        }
        self.tunnels_changed();
    }

    /// Tells the tunnel; whether it agrees: one that has ended meanwhile serves nobody.
    fn tell(self: &Arc<Self>, change: &Change) -> bool {
        match change {
            Change::Moved => true,
            Change::Came(host) => host.tunnel().is_some_and(|connection| connection.join(self, host)),
            Change::Went(host) => {
                host.tunnel().iter().for_each(|connection| connection.part(self));
                true
            }
        }
    }

    /// What is registered elsewhere and serves here, or is withheld, by the ids of the hosts there.
    pub(crate) fn placed(&self) -> Vec<u64> {
        self.builder.lock().placed.ids()
    }

    /// A tunnel has ended, whether it was registered here or elsewhere.
    pub(crate) fn remove_tunnel(&self, host: u64) {
        let removed = self.builder.lock().remove_tunnel(host);
        if removed {
            self.tunnels_changed();
        }
    }

    pub(crate) fn sharing(&self) -> &Sharing {
        &self.publisher.sharing
    }

    /// Waits until the tunnels are published as they were at `sequence`.
    pub(crate) async fn tunnels_published(&self, sequence: u64) {
        self.until(|| self.published.load(Ordering::Acquire) >= sequence).await;
    }

    /// Has the next generation built, together with other changes of the same 10 ms.
    pub(crate) fn tunnels_changed(&self) {
        if !self.dirty.swap(true, Ordering::AcqRel) {
            self.publisher.enqueue(Weak::clone(&self.me));
        }
    }

    /// Builds what [`Self::tunnels_changed`] asked for.
    pub(crate) fn publish_tunnels(&self) {
        self.dirty.store(false, Ordering::Release);
        let mut builder = self.builder.lock();
        self.publish(&mut builder);
    }

    pub(crate) fn tunnels(&self) -> Vec<Arc<Host>> {
        self.builder.lock().tunnels().cloned().collect()
    }

    /// A tunnel that came to be shared may be free already, and requests that wait for it have not seen it yet.
    fn serve_waiters(&self) {
        if !self.queue.has_waiters() {
            return;
        }
        let generation = self.current.load_full();
        let tunnels = generation.hosts.members().iter().filter_map(|member| member.host.tunnel());
        tunnels.for_each(|connection| self.queue.serve(connection));
    }

    fn publish(&self, builder: &mut Builder) {
        let generation = builder.build();
        self.updates.members(generation.hosts.members().len());
        self.current.store(Arc::new(generation));
        self.warm.store(builder.is_warm(), Ordering::Release);
        self.published.store(builder.sequence(), Ordering::Release);
        self.changed.notify_waiters();
        self.serve_waiters();
    }
}
