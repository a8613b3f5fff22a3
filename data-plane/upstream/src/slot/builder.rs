//! What a slot's next generation is built from: configuration, endpoints, DNS answers, tunnels.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use culvert_model::Name;
use culvert_model::cluster::{Cluster, Discovery, DnsOptions};
use culvert_model::endpoint::{Address, Endpoints, Health};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::placed::PlacedTunnels;
use super::{ClusterConfig, ClusterSlot, Generation, TlsClients};
use crate::balance::{HostSet, Member, Policy};
use crate::clusters::Publisher;
use crate::host::{Host, HostPlace, Target};
use crate::tunnel::{Opening, Queue, RegisterError, TunnelClaim, TunnelConnection};

/// A name and a port to be resolved.
pub(crate) type DnsName = (Arc<str>, u16);

#[derive(Debug, Default)]
pub(super) struct Builder {
    config: Option<Arc<ClusterConfig>>,
    epochs: u64,
    /// From EDS; may come before the cluster.
    assignment: Option<Arc<Endpoints>>,
    /// `None`: the lookup failed and never succeeded before.
    answers: HashMap<DnsName, Option<Vec<SocketAddr>>>,
    lookups: Lookups,
    /// Hosts of the configuration, to keep their identity.
    known: HashMap<Identity, Arc<Host>, foldhash::fast::RandomState>,
    /// Those that are registered in this cluster.
    tunnels: BTreeMap<u64, Arc<Host>>,
    /// Those that are registered elsewhere.
    pub(super) placed: PlacedTunnels,
    agents: HashMap<Arc<str>, usize, foldhash::fast::RandomState>,
    sequence: u64,
}

/// Tasks that resolve names; they end when this is dropped or replaced.
#[derive(Debug, Default)]
struct Lookups {
    of: Option<(Vec<DnsName>, DnsOptions)>,
    tasks: JoinSet<()>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Identity {
    Address(SocketAddr),
    Name(DnsName),
}

impl Builder {
    pub(super) fn configure(&mut self, cluster: Arc<Cluster>, tls: Option<Arc<rustls::ClientConfig>>) {
        let same = self.config.as_ref().is_some_and(|old| old.opens_alike(&cluster, tls.as_ref()));
        if !same {
            self.epochs += 1;
        }
        if let (Some(old), Discovery::Eds { service_name, .. }) = (&self.config, &cluster.discovery)
            && !matches!(&old.cluster.discovery, Discovery::Eds { service_name: before, .. } if before == service_name)
        {
            self.assignment = None;
        }
        let tls = tls.map(|tls| TlsClients::new(tls, cluster.protocol));
        let opening = match (&cluster.discovery, &cluster.tls) {
            (Discovery::Reverse(_), Some(context)) => Opening::of(context, tls.as_ref().map(|clients| &clients.http2)),
            _ => Opening::default(),
        };
        self.config = Some(Arc::new(ClusterConfig { cluster, tls, opening, epoch: self.epochs }));
    }

    /// Starts, keeps or ends lookups, as the configuration says.
    pub(super) fn resolve(&mut self, slot: &Weak<ClusterSlot>, publisher: &Publisher) {
        let wanted = self.config.as_ref().and_then(|config| config.dns());
        if wanted == self.lookups.of {
            return;
        }
        self.lookups = Lookups::default();
        self.answers.retain(|name, _| wanted.as_ref().is_some_and(|(names, _)| names.contains(name)));
        if let Some((names, options)) = &wanted {
            for name in names {
                let lookup =
                    crate::dns::watch(Weak::clone(slot), name.clone(), options.clone(), publisher.resolver().clone());
                self.lookups.tasks.spawn_on(lookup, publisher.control());
            }
        }
        self.lookups.of = wanted;
    }

    pub(super) fn set_assignment(&mut self, endpoints: Arc<Endpoints>) {
        self.assignment = Some(endpoints);
    }

    /// Whether anything has changed.
    pub(super) fn set_answer(&mut self, name: &DnsName, answer: Option<Vec<SocketAddr>>) -> bool {
        let wanted = self.lookups.of.as_ref().is_some_and(|(names, _)| names.contains(name));
        let before = self.answers.get(name);
        let news = match (&answer, before) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(_), Some(before)) => *before != answer,
        };
        if wanted && news {
            self.answers.insert(name.clone(), answer);
        }
        wanted && news
    }

    pub(super) fn clear(&mut self) {
        self.config = None;
        self.assignment = None;
        self.answers.clear();
        self.lookups = Lookups::default();
    }

    /// Whether the cluster knows its endpoints, or that its names do not resolve.
    pub(super) fn is_warm(&self) -> bool {
        match self.config.as_ref().map(|config| &config.cluster.discovery) {
            None => false,
            Some(Discovery::Static(_) | Discovery::Reverse(_) | Discovery::Tunnels(_)) => true,
            Some(Discovery::Eds { .. }) => self.assignment.is_some(),
            Some(Discovery::StrictDns { .. } | Discovery::LogicalDns { .. }) => self
                .lookups
                .of
                .as_ref()
                .is_none_or(|(names, _)| names.iter().all(|name| self.answers.contains_key(name))),
        }
    }

    pub(super) fn add_tunnel(
        &mut self,
        claim: TunnelClaim,
        queue: &Arc<Queue>,
    ) -> Result<(Arc<Host>, u64), RegisterError> {
        let takes = |config: &&Arc<ClusterConfig>| !matches!(config.cluster.discovery, Discovery::Tunnels(_));
        if self.config.as_ref().filter(takes).is_none() {
            return Err(RegisterError::ClusterUnknown(claim.cluster));
        }
        let agent = Arc::clone(&claim.agent);
        let count = self.agents.entry(Arc::clone(&agent)).or_default();
        if !agent.is_empty() && *count >= claim.max_connections_per_agent {
            return Err(RegisterError::TooManyConnections { agent, limit: claim.max_connections_per_agent });
        }
        *count += 1;
        let place = HostPlace::of_agent(agent);
        let connection = TunnelConnection::new(claim, Arc::clone(queue));
        let host = Host::new(Target::Tunnel(Arc::clone(&connection)), place);
        connection.belongs_to(&host);
        self.tunnels.insert(host.id(), Arc::clone(&host));
        self.sequence += 1;
        Ok((host, self.sequence))
    }

    pub(super) fn remove_tunnel(&mut self, host: u64) -> bool {
        let Some(host) = self.tunnels.remove(&host) else {
            return self.placed.displace(host).is_some();
        };
        host.set_gone();
        if let Some(count) = self.agents.get_mut(host.hostname()) {
            *count -= 1;
            if *count == 0 {
                self.agents.remove(host.hostname());
            }
        }
        self.sequence += 1;
        true
    }

    pub(super) fn tunnels(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.tunnels.values()
    }

    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Something changed that the next generation shows; its number.
    pub(super) fn advance(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Builds a generation from all of it. Costs a hash per host of the configuration and a clone per host.
    pub(super) fn build(&mut self) -> Generation {
        let Some(config) = self.config.clone() else {
            self.keep(HashMap::default());
            return Generation { config: None, hosts: HostSet::empty() };
        };
        let cluster = &config.cluster;
        let endpoints = match &cluster.discovery {
            Discovery::Static(endpoints)
            | Discovery::StrictDns { endpoints, .. }
            | Discovery::LogicalDns { endpoints, .. } => Some(Arc::clone(endpoints)),
            Discovery::Eds { .. } => self.assignment.clone(),
            Discovery::Reverse(_) | Discovery::Tunnels(_) => None,
        };
        let mut members = self.tunnel_members();
        let changed = match &endpoints {
            Some(endpoints) => self.configured_members(endpoints, &cluster.discovery, &mut members),
            None => self.keep(HashMap::default()),
        };
        let factor = endpoints.as_ref().and_then(|endpoints| endpoints.overprovisioning_factor);
        let policy = Policy {
            balancer: cluster.balancer,
            panic_threshold_percent: cluster.panic_threshold_percent,
            overprovisioning_factor: factor.unwrap_or(cluster.overprovisioning_factor),
            locality_weighted: cluster.locality_weighted,
            drops: endpoints.iter().flat_map(|endpoints| &endpoints.drops).map(|(_, share)| *share).collect(),
        };
        let hosts = HostSet::new(members, &policy);
        let config =
            if changed && cluster.close_connections_on_host_removal { self.begin_epoch(&config) } else { config };
        Generation { hosts, config: Some(config) }
    }

    /// Has pooled connections replaced: `close_connections_on_host_set_change`.
    fn begin_epoch(&mut self, config: &ClusterConfig) -> Arc<ClusterConfig> {
        self.epochs += 1;
        let config = Arc::new(ClusterConfig { epoch: self.epochs, ..config.clone() });
        self.config = Some(Arc::clone(&config));
        config
    }

    /// Tunnels serve as one locality, those that are registered here in the first priority.
    fn tunnel_members(&self) -> Vec<Member> {
        let own = self.tunnels.values().map(|host| (host, 0));
        let mut members: Vec<_> = own
            .chain(self.placed.serving())
            .filter_map(|(host, priority)| Some((host, priority, host.tunnel()?)))
            .filter(|(.., connection)| connection.is_live())
            .map(|(host, priority, connection)| Member {
                host: Arc::clone(host),
                weight: connection.weight().max(1),
                health: Health::Healthy,
                priority,
                locality: usize::MAX,
                locality_weight: Some(1),
            })
            .collect();
        members.sort_by_key(|member| member.priority);
        members
    }

    /// Adds the hosts of the configuration; whether they are others than before.
    fn configured_members(&mut self, endpoints: &Endpoints, discovery: &Discovery, members: &mut Vec<Member>) -> bool {
        let mut known = HashMap::default();
        for (index, locality) in endpoints.localities.iter().enumerate() {
            for endpoint in &locality.endpoints {
                let place = HostPlace {
                    hostname: Arc::clone(&endpoint.hostname),
                    region: Name::clone(&locality.region),
                    zone: Name::clone(&locality.zone),
                    sub_zone: Name::clone(&locality.sub_zone),
                    metadata: Arc::clone(&endpoint.metadata),
                };
                for (identity, address) in self.addresses(&endpoint.address, discovery) {
                    // The same address twice: the first one counts, as in Envoy.
                    if known.contains_key(&identity) {
                        tracing::debug!(cluster = %endpoints.cluster, %address, "the same endpoint again, ignored");
                        continue;
                    }
                    let host = self.host(&identity, address, &place);
                    known.insert(identity, Arc::clone(&host));
                    members.push(Member {
                        host,
                        weight: endpoint.weight.max(1),
                        health: endpoint.health,
                        priority: locality.priority,
                        locality: index,
                        locality_weight: locality.weight,
                    });
                }
            }
        }
        self.keep(known)
    }

    fn addresses(&self, address: &Address, discovery: &Discovery) -> Vec<(Identity, SocketAddr)> {
        let (host, port) = match address {
            Address::Ip(address) => return vec![(Identity::Address(*address), *address)],
            Address::Name { host, port } => (host, port),
            // Only configuration is fetched from there.
            Address::Path(_) => return Vec::new(),
        };
        let name = (Arc::clone(host), *port);
        let answer = self.answers.get(&name).and_then(Option::as_deref).unwrap_or_default();
        match discovery {
            Discovery::LogicalDns { .. } => {
                answer.first().map(|address| (Identity::Name(name), *address)).into_iter().collect()
            }
            Discovery::Static(_)
            | Discovery::StrictDns { .. }
            | Discovery::Eds { .. }
            | Discovery::Reverse(_)
            | Discovery::Tunnels(_) => answer.iter().map(|address| (Identity::Address(*address), *address)).collect(),
        }
    }

    fn host(&self, identity: &Identity, address: SocketAddr, place: &HostPlace) -> Arc<Host> {
        if let Some(host) = self.known.get(identity)
            && host.place() == place
        {
            if let Target::Logical(current) = host.target() {
                *current.lock() = address;
            }
            return Arc::clone(host);
        }
        let target = match identity {
            Identity::Address(address) => Target::Fixed(*address),
            Identity::Name(_) => Target::Logical(Mutex::new(address)),
        };
        Host::new(target, place.clone())
    }

    /// Replaces the known hosts; those that are not among the new ones are gone. Whether any came or went.
    fn keep(&mut self, known: HashMap<Identity, Arc<Host>, foldhash::fast::RandomState>) -> bool {
        let before = std::mem::replace(&mut self.known, known);
        let mut changed = before.len() != self.known.len();
        for (identity, host) in before {
            if !self.known.get(&identity).is_some_and(|kept| Arc::ptr_eq(kept, &host)) {
                host.set_gone();
                changed = true;
            }
        }
        changed
    }
}

impl ClusterConfig {
    /// What connections to this host begin with. `None`: plain text.
    pub(crate) fn tls_for(&self, host: &Host) -> Option<&TlsClients> {
        self.tls.as_ref().filter(|_| self.cluster.secures(&host.place().metadata))
    }

    /// Whether a connection opened under `self` is as good as one opened under the new configuration.
    fn opens_alike(&self, cluster: &Cluster, tls: Option<&Arc<rustls::ClientConfig>>) -> bool {
        let (a, b) = (&*self.cluster, cluster);
        let same_tls = match (&self.tls, tls) {
            (None, None) => true,
            (Some(old), Some(new)) => Arc::ptr_eq(&old.given, new),
            (None, Some(_)) | (Some(_), None) => false,
        };
        same_tls
            && a.tls == b.tls
            && a.transports == b.transports
            && a.auto_sni == b.auto_sni
            && a.protocol == b.protocol
            && a.http1 == b.http1
            && a.http2 == b.http2
            && a.tcp_keepalive == b.tcp_keepalive
            && a.source_address == b.source_address
    }

    /// Which names are to be resolved, and how.
    fn dns(&self) -> Option<(Vec<DnsName>, DnsOptions)> {
        let (endpoints, dns) = match &self.cluster.discovery {
            Discovery::StrictDns { endpoints, dns } | Discovery::LogicalDns { endpoints, dns } => (endpoints, dns),
            Discovery::Static(_) | Discovery::Eds { .. } | Discovery::Reverse(_) | Discovery::Tunnels(_) => {
                return None;
            }
        };
        let mut names: Vec<DnsName> = Vec::new();
        for endpoint in endpoints.localities.iter().flat_map(|locality| &locality.endpoints) {
            if let Address::Name { host, port } = &endpoint.address {
                let name = (Arc::clone(host), *port);
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        Some((names, dns.clone()))
    }
}
