//! The server list: addresses, names that are resolved again and again, and assignments, merged into one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::Name;
use culvert_model::agent::{ServerSource, TunnelAgent};
use culvert_model::endpoint::{Address, Endpoint, Endpoints, Health, Locality};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::AgentInputs;
use super::names::{Named, Names, Resolver};

/// A tunnel server, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) address: SocketAddr,
    /// What its certificate is checked against.
    pub(super) name: Arc<str>,
    pub(super) place: Place,
}

/// What an assignment says of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) weight: u32,
    pub(super) priority: u32,
    pub(super) region: Name,
    pub(super) zone: Name,
    /// It wants its agents to go.
    pub(super) drains: bool,
}

impl Default for Place {
    fn default() -> Self {
        Self { weight: 1, priority: 0, region: "".into(), zone: "".into(), drains: false }
    }
}

/// The whole list of one source, by its place in the configuration.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) source: usize,
    pub(super) servers: Vec<Server>,
}

/// The latest list of every source.
#[derive(Debug, Default)]
pub(super) struct Merge {
    lists: BTreeMap<usize, Vec<Server>>,
}

impl Merge {
    /// The merged list: one entry per address; of two the earlier source's counts. Servers that drain are left out **as long as
    /// there is one that does not**: where all of them drain there is nowhere to go, and what stands goes on.
    pub(super) fn take(&mut self, update: Update) -> BTreeMap<SocketAddr, Server> {
        self.lists.insert(update.source, update.servers);
        let all = || self.lists.values().flatten();
        let some_stay = all().any(|server| !server.place.drains);
        let mut merged = BTreeMap::new();
        for server in all().filter(|server| !(some_stay && server.place.drains)) {
            if merged.len() >= MAX_SERVERS && !merged.contains_key(&server.address) {
                tracing::warn!(limit = MAX_SERVERS, server = %server.address, "too many tunnel servers, left out");
                continue;
            }
            merged.entry(server.address).or_insert_with(|| server.clone());
        }
        merged
    }
}

/// What sources wait for, for operators.
#[derive(Debug, Default)]
pub(super) struct SourceStates {
    waiting: Mutex<BTreeMap<usize, String>>,
}

impl SourceStates {
    pub(super) fn waiting(&self) -> Vec<String> {
        self.waiting.lock().values().cloned().collect()
    }

    fn set(&self, source: usize, waiting: Option<String>) {
        let mut all = self.waiting.lock();
        match waiting {
            Some(text) => drop(all.insert(source, text)),
            None => drop(all.remove(&source)),
        }
    }
}

/// Follows one source for ever.
pub(super) async fn follow(
    config: &TunnelAgent,
    inputs: &AgentInputs,
    states: &SourceStates,
    source: usize,
    updates: mpsc::Sender<Update>,
) {
    let sni = config.tls.as_ref().and_then(|tls| tls.sni.clone());
    let feed = Feed { source, states, updates, sni, resolver: inputs.resolver };
    match config.servers.get(source) {
        Some(ServerSource::Address { address: Address::Ip(address), .. }) => {
            let name = Arc::from(address.ip().to_string());
            feed.send(vec![Server { address: *address, name, place: Place::default() }]).await;
        }
        Some(ServerSource::Address { address: Address::Name { host, port }, dns_refresh }) => {
            feed.follow_name(host, *port, *dns_refresh).await;
        }
        Some(ServerSource::Eds { service_name, .. }) => {
            match inputs.eds.iter().find(|(name, _)| name == service_name) {
                Some((_, assignment)) => feed.follow_assignment(service_name, assignment.clone()).await,
                None => states.set(source, Some(format!("assignment {service_name}: nobody subscribes to it"))),
            }
        }
        // Tunnel servers are elsewhere; no agent's configuration is parsed into a unix socket.
        Some(ServerSource::Address { address: Address::Path(_), .. }) | None => {}
    }
}

struct Feed<'a> {
    source: usize,
    states: &'a SourceStates,
    updates: mpsc::Sender<Update>,
    /// Takes the place of every name.
    sni: Option<Arc<str>>,
    resolver: Resolver,
}

impl Feed<'_> {
    async fn send(&self, mut servers: Vec<Server>) {
        if let Some(sni) = &self.sni {
            servers.iter_mut().for_each(|server| server.name = Arc::clone(sni));
        }
        // The leader has ended.
        if self.updates.send(Update { source: self.source, servers }).await.is_err() {
            std::future::pending().await
        }
    }

    async fn follow_name(&self, host: &Name, port: u16, refresh: Duration) {
        let name = (Arc::clone(host), port);
        let mut names = Names::new(self.resolver, refresh);
        names.follow(&BTreeSet::from([name.clone()]));
        let mut sent = Vec::new();
        loop {
            names.change().await;
            self.states.set(self.source, names.error());
            let place = Place::default();
            let servers: Vec<Server> = named(&names, &name, host, &place).collect();
            if servers != sent {
                sent.clone_from(&servers);
                self.send(servers).await;
            }
        }
    }

    async fn follow_assignment(&self, name: &str, mut assignment: watch::Receiver<Option<Arc<Endpoints>>>) {
        let mut names = Names::new(self.resolver, ASSIGNMENT_REFRESH);
        let mut sent = Vec::new();
        loop {
            let current = assignment.borrow_and_update().clone();
            match &current {
                None => self.states.set(self.source, Some(format!("assignment {name}: has not arrived"))),
                Some(endpoints) => {
                    names.follow(&names_in(endpoints));
                    self.states.set(self.source, names.error());
                    let servers = list(endpoints, &names, &sent);
                    if servers != sent {
                        sent.clone_from(&servers);
                        self.send(servers).await;
                    }
                }
            }
            tokio::select! {
                changed = assignment.changed() => if changed.is_err() {
                    // Whoever subscribed has ended: what is known stays.
                    return;
                },
                () = names.change() => {}
            }
        }
    }
}

/// The servers of an assignment, as far as their names are known, one for each address. **Adds before it removes**: until every
/// name has had its answer, and where not one server was found, nothing of what was `sent` is left out.
fn list(endpoints: &Endpoints, names: &Names, sent: &[Server]) -> Vec<Server> {
    let mut servers = Vec::new();
    for (locality, endpoint) in endpoints_of(endpoints) {
        let place = Place {
            weight: endpoint.weight,
            priority: locality.priority,
            region: Arc::clone(&locality.region),
            zone: Arc::clone(&locality.zone),
            drains: endpoint.health == Health::Draining,
        };
        let hostname = (!endpoint.hostname.is_empty()).then(|| Arc::clone(&endpoint.hostname));
        match &endpoint.address {
            Address::Ip(address) => {
                let name = hostname.unwrap_or_else(|| Arc::from(address.ip().to_string()));
                servers.push(Server { address: *address, name, place });
            }
            Address::Name { host, port } => {
                let name = hostname.as_ref().unwrap_or(host);
                servers.extend(named(names, &(Arc::clone(host), *port), name, &place));
            }
            // None is accepted in an assignment that comes over xDS.
            Address::Path(_) => {}
        }
    }
    if names.unanswered() || (servers.is_empty() && names.error().is_some()) {
        servers.extend_from_slice(sent);
    }
    // Of two with an address the earlier one counts.
    servers.sort_by_key(|server| server.address);
    servers.dedup_by_key(|server| server.address);
    servers
}

fn endpoints_of(endpoints: &Endpoints) -> impl Iterator<Item = (&Locality, &Endpoint)> {
    endpoints.localities.iter().flat_map(|locality| locality.endpoints.iter().map(move |endpoint| (locality, endpoint)))
}

fn names_in(endpoints: &Endpoints) -> BTreeSet<Named> {
    let names = endpoints_of(endpoints).filter_map(|(_, endpoint)| match &endpoint.address {
        Address::Ip(_) | Address::Path(_) => None,
        Address::Name { host, port } => Some((Arc::clone(host), *port)),
    });
    // More servers than that are left out too.
    names.take(MAX_SERVERS).collect()
}

/// The servers behind a name that is followed.
fn named(names: &Names, host: &Named, name: &Name, place: &Place) -> impl Iterator<Item = Server> {
    let server = |address: &SocketAddr| Server { address: *address, name: Arc::clone(name), place: place.clone() };
    names.addresses(host).iter().map(server)
}

/// Of one agent.
const MAX_SERVERS: usize = 1024;
/// Names in an assignment.
const ASSIGNMENT_REFRESH: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
