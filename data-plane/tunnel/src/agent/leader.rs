//! Keeps the set of peers equal to the server list.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use culvert_runtime::telemetry::Block;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Agent;
use super::dial::Target;
use super::keeper;
use super::peer::{Peer, Phase};
use super::placement::{Placement, choose};
use super::servers::{self, Merge, Server};
use crate::metrics::AgentMetric;

/// Runs on the agent's first worker until all peers are closed.
pub(super) async fn lead(agent: Arc<Agent>, metrics: Rc<Block<AgentMetric>>) {
    let (sender, mut updates) = mpsc::channel(UPDATES);
    let mut sources = JoinSet::new();
    for source in 0..agent.config.servers.len() {
        let (agent, sender) = (Arc::clone(&agent), sender.clone());
        sources.spawn_local(async move {
            servers::follow(&agent.config, &agent.inputs, &agent.sources, source, sender).await;
        });
    }
    let mut leader = Leader { agent: &agent, metrics, active: BTreeMap::new(), keepers: JoinSet::new(), next: 0 };
    let (mut merge, mut listed) = (Merge::default(), BTreeMap::new());
    let (placement, mut steering) = (agent.placement(), agent.steering.subscribe());
    loop {
        let mut said = steering.borrow_and_update().clone();
        let forgotten = said.forget(Instant::now());
        leader.reconcile(&choose(&listed, &placement, &said));
        tokio::select! {
            biased;
            () = agent.stop.cancelled() => break,
            Some(update) = updates.recv() => listed = merge.take(update),
            Some(closed) = leader.keepers.join_next() => leader.forget(closed),
            Ok(()) = steering.changed() => {}
            () = until(forgotten) => {}
        }
    }
    drop(sources);
    for peer in std::mem::take(&mut leader.active).into_values() {
        peer.enter(Phase::Leaving);
    }
    while let Some(closed) = leader.keepers.join_next().await {
        leader.forget(closed);
    }
}

struct Leader<'a> {
    agent: &'a Arc<Agent>,
    metrics: Rc<Block<AgentMetric>>,
    /// Those in the server list.
    active: BTreeMap<SocketAddr, Arc<Peer>>,
    keepers: JoinSet<Arc<Peer>>,
    next: usize,
}

impl Leader<'_> {
    /// Adds before it removes: what goes is drained when what comes stands.
    fn reconcile(&mut self, wanted: &BTreeMap<SocketAddr, Server>) {
        let mut added = Vec::new();
        for (address, Server { name, .. }) in wanted {
            if let Some(peer) = self.active.get(address) {
                peer.rename(name);
                continue;
            }
            let peer = Peer::new(self.next, *address, Arc::clone(name));
            self.next += 1;
            added.push(Arc::clone(&peer));
            self.active.insert(*address, peer);
        }
        let gone: Vec<SocketAddr> =
            self.active.keys().filter(|address| !wanted.contains_key(address)).copied().collect();
        if added.is_empty() && gone.is_empty() {
            return;
        }
        tracing::info!(
            agent = %self.agent.config.name, servers = wanted.len(), added = added.len(), removed = gone.len(),
            "tunnel servers changed"
        );
        for peer in gone.iter().filter_map(|address| self.active.remove(address)) {
            peer.replace_by(added.clone());
            peer.enter(Phase::Leaving);
        }
        self.agent.peers.send_modify(|peers| Arc::make_mut(peers).extend(added.iter().cloned()));
        for peer in added {
            self.keepers.spawn_local(keeper::keep(Arc::clone(self.agent), peer, Rc::clone(&self.metrics)));
        }
        self.metrics.set(AgentMetric::Servers, u64::try_from(self.active.len()).unwrap_or(u64::MAX));
    }

    /// A peer has been closed.
    fn forget(&self, closed: Result<Arc<Peer>, tokio::task::JoinError>) {
        match closed {
            Ok(closed) => self.agent.peers.send_modify(|peers| {
                Arc::make_mut(peers).retain(|peer| peer.ordinal != closed.ordinal);
            }),
            Err(error) => tracing::error!(agent = %self.agent.config.name, %error, "a peer's keeper broke"),
        }
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

impl Agent {
    fn placement(&self) -> Placement {
        let config = &self.config;
        Placement {
            key: format!("{}/{}", self.host_name(), config.name),
            most: usize::try_from(config.max_servers).unwrap_or(usize::MAX),
            region: Arc::clone(&config.region),
            zone: Arc::clone(&config.zone),
        }
    }

    /// A server ends: others are dialled in its place, if there are any.
    pub(super) fn avoid(&self, server: SocketAddr) {
        self.steering.send_modify(|steering| steering.avoid(server, Instant::now()));
    }

    /// A server names another one. Only one that is in the list is ever dialled.
    pub(super) fn steer(&self, from: SocketAddr, to: SocketAddr) {
        self.steering.send_modify(|steering| {
            steering.avoid(from, Instant::now());
            steering.prefer(to, Instant::now());
        });
    }

    /// Where a dial goes to, once the secrets that it needs are there. **Never plaintext where TLS is configured.**
    pub(super) async fn target(&self, peer: &Peer) -> Target {
        let tls = match self.inputs.tls.clone() {
            None if self.config.tls.is_none() => None,
            None => std::future::pending().await,
            Some(mut secrets) => match secrets.wait_for(Option::is_some).await {
                Ok(config) => config.clone(),
                // Whoever delivers them has ended without any: they will never be there.
                Err(_) => std::future::pending().await,
            },
        };
        Target { address: peer.address, server_name: peer.server_name(), tls, ping_interval: self.config.ping_interval }
    }
}

/// Lists on their way to the leader.
const UPDATES: usize = 16;
