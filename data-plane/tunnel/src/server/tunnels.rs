//! The live connections of a process: how many each agent has, and which of them a graceful close may name.

mod admission;
mod anew;
mod place;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use culvert_runtime::drain::Trigger;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use self::admission::{AgentKey, source};
pub(super) use self::place::{AsidePlace, Place};
use super::duplicates::{self, Holder};
use super::live::{Live, Weight};
use super::one_time::UsedTokens;
use super::{Claim, ConnectionId, Identity, Origin, Policies, Refusal, ReverseLimits};
use crate::lifecycle::Journal;
use crate::status::{EndedTunnel, TunnelStatus};
use crate::wire::GracefulClose;

/// Live connections of every tunnel listener of the process; outlives configuration changes. Registration, removal
/// and look-up take constant time.
#[derive(Debug)]
pub struct Tunnels {
    inner: Mutex<Inner>,
    reverse: ReverseLimits,
    policies: Policies,
    journal: Option<Arc<dyn Journal>>,
    used_tokens: UsedTokens,
    stage: watch::Sender<Stage>,
    /// Counts what [`Self::version`] tells.
    version: AtomicU64,
}

/// How far the process is from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serving,
    /// Agents are told; what they have serves the last requests.
    Ending,
    /// There are no requests any more but those that tunnels carry now.
    Finishing,
}

impl Default for Tunnels {
    fn default() -> Self {
        Self::new(ReverseLimits::default(), None)
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// Boxed, for a table of thousands is half empty.
    live: HashMap<ConnectionId, Box<Live>>,
    /// Those that their agents know by no other name.
    by_address: HashMap<SocketAddr, ConnectionId>,
    /// Connections of each agent. (Boxed as above.)
    agents: HashMap<Box<AgentKey>, usize>,
    /// Of these, those that an agent can be told something by.
    told: HashMap<Box<AgentKey>, usize>,
    /// Registered connections from each origin: who has one may keep aside connections.
    origins: HashMap<Origin, usize>,
    asides: HashMap<Origin, usize>,
    /// The agent that has an identity of which there may be one.
    holders: HashMap<Identity, Holder>,
    /// Of agents that cannot be told that the process ends: the connection that leaves, or left last.
    leaving: HashMap<Box<AgentKey>, ConnectionId>,
    /// Connections from each source that have a grant.
    sources: HashMap<IpAddr, usize>,
    /// The latest [`MOST_ENDED`] that ended, with when.
    ended: VecDeque<(Instant, EndedTunnel)>,
}

/// What a graceful close did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Closed {
    pub(super) closed: u64,
    pub(super) ignored: u64,
}

impl Tunnels {
    /// `journal`: where the life of tunnels is logged.
    #[must_use]
    pub fn new(reverse: ReverseLimits, journal: Option<Arc<dyn Journal>>) -> Self {
        Self {
            inner: Mutex::default(),
            reverse,
            policies: Policies::default(),
            journal,
            used_tokens: UsedTokens::default(),
            stage: watch::Sender::new(Stage::Serving),
            version: AtomicU64::new(0),
        }
    }

    /// The identity policies of the process's tunnel listeners.
    #[must_use]
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    pub(super) fn used_tokens(&self) -> &UsedTokens {
        &self.used_tokens
    }

    pub(super) fn journal(&self) -> Option<&Arc<dyn Journal>> {
        self.journal.as_ref()
    }

    pub(super) fn reverse(&self) -> &ReverseLimits {
        &self.reverse
    }

    /// Every registered connection, oldest first; one that comes or goes meanwhile is among them or not.
    #[must_use]
    pub fn status(&self) -> Vec<TunnelStatus> {
        let now = Instant::now();
        let ids: Vec<ConnectionId> = self.inner.lock().live.keys().copied().collect();
        let mut all: Vec<(Instant, TunnelStatus)> = Vec::with_capacity(ids.len());
        // Agents that come wait for the lock; what is said of thousands takes long.
        for ids in ids.chunks(SHOWN_AT_ONCE) {
            let inner = self.inner.lock();
            let live = ids.iter().filter_map(|id| Some((id, inner.live.get(id)?)));
            all.extend(live.map(|(id, live)| (live.since, live.status(*id, now))));
        }
        all.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.id.cmp(&b.1.id)));
        all.into_iter().map(|(_, status)| status).collect()
    }

    /// Those that ended last, latest first.
    #[must_use]
    pub fn ended(&self) -> Vec<EndedTunnel> {
        let now = Instant::now();
        let inner = self.inner.lock();
        let aged = |(at, ended): &(Instant, EndedTunnel)| EndedTunnel {
            ended_seconds_ago: now.duration_since(*at).as_secs(),
            ..ended.clone()
        };
        inner.ended.iter().rev().map(aged).collect()
    }

    /// Changes with every tunnel that comes, goes, drains or changes its weight. 0: there never was one.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    fn changed(&self) {
        self.version.fetch_add(1, Ordering::Relaxed);
    }

    /// A place for the claim's connection. Starting `drain` drains it.
    pub(super) fn place(
        self: &Arc<Self>,
        claim: &Arc<Claim>,
        knows_id: bool,
        drain: Arc<Trigger>,
        listener: &Arc<str>,
    ) -> Result<Place, Refusal> {
        let mut inner = self.inner.lock();
        let key = Box::new(AgentKey::of(claim));
        let superseded = inner.admit(claim, &key)?;
        if claim.http2.is_some() {
            *inner.told.entry(key.clone()).or_default() += 1;
        }
        *inner.agents.entry(key).or_default() += 1;
        *inner.origins.entry(claim.peer.origin()).or_default() += 1;
        if let Some(address) = claim.peer.address.filter(|_| !knows_id) {
            inner.by_address.insert(canonical(address), claim.id);
        }
        let weight = Weight::new(claim.weight);
        let live = Live::new(claim, knows_id, drain, Arc::clone(&weight), listener);
        inner.live.insert(claim.id, Box::new(live));
        if let Some(grant) = &claim.grant {
            if let Some(source) = source(claim) {
                *inner.sources.entry(source).or_default() += 1;
            }
            if let Some(instance) = duplicates::instance(claim) {
                inner.holders.entry(grant.identity.clone()).or_insert_with(|| Holder::new(instance)).enter(instance);
            }
        }
        drop(inner);
        self.changed();
        Ok(Place { tunnels: Arc::clone(self), id: claim.id, weight, superseded })
    }

    /// A place for an aside connection: for an origin that has a registered connection, at most [`MAX_ASIDES`].
    pub(super) fn aside(self: &Arc<Self>, origin: &Origin) -> Option<AsidePlace> {
        let mut inner = self.inner.lock();
        if !inner.origins.contains_key(origin) {
            return None;
        }
        let count = inner.asides.entry(origin.clone()).or_default();
        if *count >= MAX_ASIDES {
            return None;
        }
        *count += 1;
        Some(AsidePlace { tunnels: Arc::clone(self), origin: origin.clone() })
    }

    /// Drains what an agent's graceful close names: **only connections from the same origin**, to the cluster that it
    /// names; by id, and by address those that were given no id that their agent can know.
    pub(super) fn close(&self, origin: &Origin, request: &GracefulClose) -> Closed {
        let mut closed = Closed::default();
        let inner = self.inner.lock();
        let by_id = request.connection_ids.iter().map(|id| {
            let live = ConnectionId::parse(id).and_then(|id| inner.live.get(&id));
            live.filter(|live| live.knows_id)
        });
        let by_address = request.addresses.iter().flatten().map(|address| {
            let id = address.parse().ok().and_then(|address: SocketAddr| inner.by_address.get(&canonical(address)));
            id.and_then(|id| inner.live.get(id)).filter(|live| !live.knows_id)
        });
        for named in by_id.chain(by_address) {
            match named {
                Some(live) if live.claim.peer.origin() == *origin && *live.claim.cluster == *request.cluster_name => {
                    live.drain.start(NO_DEADLINE);
                    closed.closed += 1;
                }
                _ => closed.ignored += 1,
            }
        }
        closed
    }

    /// Gives all connections of the claim's agent in the claim's cluster another weight; how many there are.
    pub(super) fn reweigh(&self, claim: &Claim, weight: u32) -> u64 {
        let inner = self.inner.lock();
        let same = |live: &&Live| {
            let other = &live.claim;
            other.cluster == claim.cluster
                && other.host_name == claim.host_name
                && other.peer.origin() == claim.peer.origin()
        };
        let mut changed = 0;
        for live in inner.live.values().map(|live| &**live).filter(same) {
            let weight = match &live.claim.grant {
                Some(grant) => weight.clamp(grant.weights.0, grant.weights.1),
                None => weight,
            };
            live.weight.set(weight);
            changed += 1;
        }
        self.changed();
        changed
    }

    /// Whether the claim's agent has a connection by which it can be told something.
    pub(super) fn can_tell(&self, claim: &Claim) -> bool {
        self.inner.lock().told.contains_key(&AgentKey::of(claim))
    }

    /// The process ends: before its listeners drain. Agents are told when those do, and their connections serve on.
    pub fn end(&self) {
        self.stage.send_replace(Stage::Ending);
    }

    /// Nothing is in flight any more but through tunnels: they take nothing more.
    pub fn finish(&self) {
        self.stage.send_replace(Stage::Finishing);
    }

    /// Connections that are registered at the moment.
    #[must_use]
    pub fn live(&self) -> usize {
        self.inner.lock().live.len()
    }

    pub(super) fn is_ending(&self) -> bool {
        *self.stage.borrow() > Stage::Serving
    }

    pub(super) async fn finishing(&self) {
        // The sender is ours.
        drop(self.stage.subscribe().wait_for(|stage| *stage == Stage::Finishing).await);
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let inner = self.inner.lock();
        inner.live.is_empty()
            && inner.by_address.is_empty()
            && inner.agents.is_empty()
            && inner.told.is_empty()
            && inner.origins.is_empty()
            && inner.asides.is_empty()
            && inner.holders.is_empty()
            && inner.sources.is_empty()
    }
}

/// Agents name IPv4 addresses as such; a dual-stack socket shows them mapped.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Aside connections of one agent.
const MAX_ASIDES: usize = 2;
/// A graceful close sets none: the agent ends what takes too long. (Far, and no overflow of the clock.)
const NO_DEADLINE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Connections of which the status is taken without letting others at the lock.
const SHOWN_AT_ONCE: usize = 128;
