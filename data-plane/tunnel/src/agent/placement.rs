//! Which servers of the list an agent dials: as many as it is told, the same ones as long as nothing better is there.
//!
//! **Rendezvous hashing**: every agent ranks all servers by a hash of both names. A server that comes takes the place of one
//! for its share of the agents, a server that goes is replaced for its own agents only; all others stay where they are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use culvert_model::Name;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::servers::Server;

/// Where an agent stands, and how many servers it wants.
#[derive(Debug)]
pub(super) struct Placement {
    /// Tells agents apart.
    pub(super) key: String,
    pub(super) most: usize,
    pub(super) region: Name,
    pub(super) zone: Name,
}

/// What servers have said, for a while.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Steering {
    /// These end, want fewer agents, or cannot be reached: dialled only where there are too few others.
    avoided: BTreeMap<SocketAddr, Instant>,
    /// These were named instead.
    preferred: BTreeMap<SocketAddr, Instant>,
}

impl Steering {
    pub(super) fn avoid(&mut self, server: SocketAddr, now: Instant) {
        self.preferred.remove(&server);
        remember(&mut self.avoided, server, now);
    }

    pub(super) fn prefer(&mut self, server: SocketAddr, now: Instant) {
        self.avoided.remove(&server);
        remember(&mut self.preferred, server, now);
    }

    /// Forgets what has been held long enough; when the next of it will have been.
    pub(super) fn forget(&mut self, now: Instant) -> Option<Instant> {
        self.avoided.retain(|_, until| *until > now);
        self.preferred.retain(|_, until| *until > now);
        self.avoided.values().chain(self.preferred.values()).min().copied()
    }
}

/// A server may name any number of others: the latest count.
fn remember(said: &mut BTreeMap<SocketAddr, Instant>, server: SocketAddr, now: Instant) {
    said.insert(server, now + REMEMBERED);
    if said.len() > MOST_REMEMBERED
        && let Some(first) = said.iter().min_by_key(|(_, until)| **until).map(|(server, _)| *server)
    {
        said.remove(&first);
    }
}

/// The servers to be dialled: those that end last of all, then by priority, then the agent's own zone and region first, then
/// by rendezvous hash, where a server of twice the weight is the first choice of twice as many agents.
pub(super) fn choose(
    servers: &BTreeMap<SocketAddr, Server>,
    placement: &Placement,
    steering: &Steering,
) -> BTreeMap<SocketAddr, Server> {
    let mut ranked: Vec<&Server> = servers.values().collect();
    let rank = |server: &Server| {
        let address = &server.address;
        let (avoided, preferred) = (steering.avoided.contains_key(address), steering.preferred.contains_key(address));
        (avoided, !preferred, server.place.priority, placement.distance(server))
    };
    ranked.sort_by(|a, b| {
        let by_hash = || placement.score(a).total_cmp(&placement.score(b));
        rank(a).cmp(&rank(b)).then_with(by_hash).then_with(|| a.address.cmp(&b.address))
    });
    ranked.into_iter().take(placement.most).map(|server| (server.address, server.clone())).collect()
}

impl Placement {
    /// 0: the same zone, or the agent does not say where it is.
    fn distance(&self, server: &Server) -> u8 {
        let place = &server.place;
        if self.region.is_empty() || (place.region == self.region && place.zone == self.zone) {
            0
        } else {
            1 + u8::from(place.region != self.region)
        }
    }

    /// The least one wins (weighted rendezvous: the logarithm of a uniform hash over the weight).
    fn score(&self, server: &Server) -> f64 {
        let seed = xxh3_64_with_seed(self.key.as_bytes(), 0);
        let hash = xxh3_64_with_seed(server.address.to_string().as_bytes(), seed);
        // 53 bits, never 0.
        let uniform = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        -uniform.ln() / f64::from(server.place.weight.max(1))
    }
}

/// How long what a server said counts: it will have been replaced, or be back.
const REMEMBERED: Duration = Duration::from_secs(120);
/// Of servers that are avoided, and of those that are preferred.
const MOST_REMEMBERED: usize = 1024;

#[cfg(test)]
mod tests;
