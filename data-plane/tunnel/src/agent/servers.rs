//! The server list: addresses, names that are resolved again and again, and assignments, merged into one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::Name;
use culvert_model::agent::{ServerSource, TunnelAgent};
use culvert_model::endpoint::{Address, Endpoints, Health};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::AgentInputs;

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
}

impl Default for Place {
    fn default() -> Self {
        Self { weight: 1, priority: 0, region: "".into(), zone: "".into() }
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
    /// The merged list: one entry per address; of two the earlier source's counts.
    pub(super) fn take(&mut self, update: Update) -> BTreeMap<SocketAddr, Server> {
        self.lists.insert(update.source, update.servers);
        let mut merged = BTreeMap::new();
        for server in self.lists.values().flatten() {
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
    let feed = Feed { source, states, updates, sni: config.tls.as_ref().and_then(|tls| tls.sni.clone()) };
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
        None => {}
    }
}

struct Feed<'a> {
    source: usize,
    states: &'a SourceStates,
    updates: mpsc::Sender<Update>,
    /// Takes the place of every name.
    sni: Option<Arc<str>>,
}

impl Feed<'_> {
    async fn send(&self, mut servers: Vec<Server>) {
        if let Some(sni) = &self.sni {
            servers.iter_mut().for_each(|server| server.name = Arc::clone(sni));
        }
        servers.sort_by_key(|server| server.address);
        // The leader has ended.
        if self.updates.send(Update { source: self.source, servers }).await.is_err() {
            std::future::pending().await
        }
    }

    /// A look-up that fails leaves the addresses that are known.
    async fn follow_name(&self, host: &str, port: u16, refresh: Duration) {
        let mut known = None;
        loop {
            match resolve(host, port, None, &Place::default()).await {
                Ok(servers) => {
                    self.states.set(self.source, None);
                    if known.as_ref() != Some(&servers) {
                        known = Some(servers.clone());
                        self.send(servers).await;
                    }
                }
                Err(error) => {
                    tracing::warn!(host, %error, "tunnel servers cannot be looked up");
                    self.states.set(self.source, Some(error));
                }
            }
            sleep(refresh).await;
        }
    }

    async fn follow_assignment(&self, name: &str, mut assignment: watch::Receiver<Option<Arc<Endpoints>>>) {
        loop {
            let current = assignment.borrow_and_update().clone();
            let names = match &current {
                None => {
                    self.states.set(self.source, Some(format!("assignment {name}: has not arrived")));
                    false
                }
                Some(endpoints) => self.take_assignment(endpoints).await,
            };
            let again = async { if names { sleep(ASSIGNMENT_REFRESH).await } else { std::future::pending().await } };
            tokio::select! {
                changed = assignment.changed() => if changed.is_err() {
                    // Whoever subscribed has ended: what is known stays.
                    return;
                },
                () = again => {}
            }
        }
    }

    /// Whether names have to be looked up again.
    async fn take_assignment(&self, endpoints: &Endpoints) -> bool {
        let (mut servers, mut names, mut failed) = (Vec::new(), false, None);
        let places =
            endpoints.localities.iter().flat_map(|locality| locality.endpoints.iter().map(move |e| (locality, e)));
        for (locality, endpoint) in places {
            // A draining server wants its agents to go.
            if endpoint.health == Health::Draining {
                continue;
            }
            let place = Place {
                weight: endpoint.weight,
                priority: locality.priority,
                region: Arc::clone(&locality.region),
                zone: Arc::clone(&locality.zone),
            };
            let hostname = (!endpoint.hostname.is_empty()).then(|| Arc::clone(&endpoint.hostname));
            match &endpoint.address {
                Address::Ip(address) => {
                    let name = hostname.unwrap_or_else(|| Arc::from(address.ip().to_string()));
                    servers.push(Server { address: *address, name, place });
                }
                Address::Name { host, port } => {
                    names = true;
                    match resolve(host, *port, hostname, &place).await {
                        Ok(resolved) => servers.extend(resolved),
                        Err(error) => failed = Some(error),
                    }
                }
            }
        }
        // Half a list is no list: it would close connections to servers that are only not found now.
        if failed.is_none() {
            self.send(servers).await;
        }
        self.states.set(self.source, failed);
        names
    }
}

/// Every address of a name.
async fn resolve(host: &str, port: u16, name: Option<Arc<str>>, place: &Place) -> Result<Vec<Server>, String> {
    let name = name.unwrap_or_else(|| Arc::from(host));
    let found = timeout(RESOLVE, tokio::net::lookup_host((host, port))).await;
    let found = found.map_err(|_| format!("{host}: no answer within {} s", RESOLVE.as_secs()))?;
    let found = found.map_err(|error| format!("{host}: {error}"))?;
    let mut servers: Vec<Server> =
        found.map(|address| Server { address, name: Arc::clone(&name), place: place.clone() }).collect();
    if servers.is_empty() {
        return Err(format!("{host}: has no addresses"));
    }
    servers.sort_by_key(|server| server.address);
    servers.dedup();
    Ok(servers)
}

/// Of one agent.
const MAX_SERVERS: usize = 1024;
/// One look-up.
const RESOLVE: Duration = Duration::from_secs(5);
/// Names in an assignment.
const ASSIGNMENT_REFRESH: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
