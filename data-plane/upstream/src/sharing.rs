//! Which clusters a tunnel serves besides the one that it is registered in: clusters of ours that share the agents of
//! others (`culvert.tunnel.v1.TunnelCluster`), and for agents in Envoy's dialect, which are registered once for all
//! clusters of Envoy's type, the ordinary cluster that they name.
//!
//! **Nobody serves what he may not register as**: a cluster that shares agents has only those whose listener's policy lets
//! them join it by its own name. Every change (a cluster, a registration, a policy) is judged under one lock, so that the
//! last word is that of the last change.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use culvert_model::Name;
use culvert_model::cluster::{Cluster, Discovery};
use parking_lot::Mutex;

use crate::host::Host;
use crate::slot::ClusterSlot;
use crate::tunnel::TunnelConnection;

/// The clusters that share others' agents.
#[derive(Debug, Default)]
pub(crate) struct Sharing {
    /// By the cluster as which the agents register.
    clusters: Mutex<HashMap<Name, Vec<Weak<ClusterSlot>>, foldhash::fast::RandomState>>,
}

/// What a tunnel that is registered elsewhere is to a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Serves {
        priority: u32,
    },
    /// The cluster chooses it, and the policy that let it in does not name the cluster.
    Withheld,
    None,
}

impl Sharing {
    /// A cluster came, has changed or went. `registered` yields the tunnels that are registered as a cluster of that name
    /// when it is called.
    pub(crate) fn changed(&self, slot: &Arc<ClusterSlot>, registered: impl Fn(&str) -> Vec<Arc<Host>>) {
        let mut clusters = self.clusters.lock();
        let config = slot.config();
        let config = config.as_ref().map(|config| &*config.cluster);
        let is_other = |other: &Weak<ClusterSlot>| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(slot));
        clusters.retain(|_, sharing| {
            sharing.retain(is_other);
            !sharing.is_empty()
        });
        let mut names: Vec<&Name> = match config.map(|cluster| &cluster.discovery) {
            Some(Discovery::Tunnels(sources)) => sources.iter().map(|source| &source.registered_as).collect(),
            Some(_) | None => Vec::new(),
        };
        names.sort();
        names.dedup();
        for name in &names {
            clusters.entry(Arc::clone(name)).or_default().push(Arc::downgrade(slot));
        }
        let mut left: HashSet<u64> = slot.placed().into_iter().collect();
        // Of those that name it only agents in Envoy's dialect are registered elsewhere.
        let names = if config.is_some() && names.is_empty() { vec![slot.name()] } else { names };
        for host in names.into_iter().flat_map(|name| registered(name)) {
            judge(slot, &host);
            left.remove(&host.id());
        }
        left.into_iter().for_each(|id| slot.displace(id));
    }

    /// Whether a cluster shares the agents that register so.
    pub(crate) fn shares(&self, registered_as: &str) -> bool {
        self.clusters.lock().contains_key(registered_as)
    }

    /// Finds a tunnel its places, `named` among them if that is there; those that it serves, and the changes to wait for.
    pub(crate) fn registered(
        &self,
        host: &Arc<Host>,
        named: Option<&Arc<ClusterSlot>>,
    ) -> Vec<(Arc<ClusterSlot>, u64)> {
        let clusters = self.clusters.lock();
        let slots = sharing(&clusters, host).chain(named.cloned());
        let served = slots.filter_map(|slot| match judge(&slot, host) {
            Outcome::Serves(sequence) => Some((slot, sequence)),
            Outcome::Ended | Outcome::Nothing => None,
        });
        served.collect()
    }

    /// Another policy holds for the tunnel: whether there is a cluster that it served and may serve no more.
    pub(crate) fn judge(&self, host: &Arc<Host>) -> bool {
        let clusters = self.clusters.lock();
        let ended = sharing(&clusters, host).filter(|slot| judge(slot, host) == Outcome::Ended).count();
        ended > 0
    }

    /// Ends what the tunnel still carries for clusters that it may not serve. Whether the whole connection is lent to one.
    pub(crate) fn end_withheld(&self, host: &Arc<Host>) -> bool {
        let Some(connection) = host.tunnel() else { return false };
        let clusters = self.clusters.lock();
        let withheld = sharing(&clusters, host).filter(|slot| slot.withholds(host.id()));
        withheld.filter(|slot| connection.end_lent(slot.id())).count() > 0
    }

    /// The tunnel is registered no more.
    pub(crate) fn ended(&self, host: &Arc<Host>) {
        let clusters = self.clusters.lock();
        let serving = host.tunnel().map(|connection| connection.end_sharing()).unwrap_or_default();
        // Those from which it is withheld are not among the ones that it serves.
        for slot in sharing(&clusters, host).chain(serving) {
            slot.remove_tunnel(host.id());
        }
    }
}

/// What came of a judgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It serves, and every worker knows when this change is published.
    Serves(u64),
    /// It did.
    Ended,
    Nothing,
}

/// The clusters that share the agents as one of which the host registered.
fn sharing<'a>(
    clusters: &'a HashMap<Name, Vec<Weak<ClusterSlot>>, foldhash::fast::RandomState>,
    host: &Host,
) -> impl Iterator<Item = Arc<ClusterSlot>> + 'a {
    let of_name = host.tunnel().and_then(|connection| clusters.get(&connection.claim().cluster));
    of_name.into_iter().flatten().filter_map(Weak::upgrade)
}

fn judge(slot: &Arc<ClusterSlot>, host: &Arc<Host>) -> Outcome {
    let (Some(connection), Some(config)) = (host.tunnel(), slot.config()) else { return Outcome::Nothing };
    let place = place_of(&config.cluster, connection);
    if place == Place::Withheld {
        let agent = &connection.claim().agent;
        tracing::debug!(cluster = %slot.name(), %agent, "an agent that the cluster chooses may not serve it, says its policy");
    }
    slot.place(host, place)
}

/// `connection` is registered elsewhere.
fn place_of(cluster: &Cluster, connection: &TunnelConnection) -> Place {
    let claim = connection.claim();
    if !claim.joins() {
        return Place::None;
    }
    match &cluster.discovery {
        // These choose by themselves.
        Discovery::Reverse(_) => Place::None,
        Discovery::Tunnels(sources) => match sources.iter().find(|source| source.has(&claim.cluster, &claim.agent)) {
            Some(source) if connection.may_serve(&cluster.name) => Place::Serves { priority: source.priority },
            Some(_) => Place::Withheld,
            None => Place::None,
        },
        // What it claimed was judged in its handshake.
        _ if claim.reverse.is_some() && claim.cluster == cluster.name => Place::Serves { priority: 0 },
        _ => Place::None,
    }
}

#[cfg(test)]
mod tests;
