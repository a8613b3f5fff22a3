//! The live connections of a process: how many each agent has, and which of them a graceful close may name.

mod anew;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use culvert_http::Meter;
use culvert_runtime::drain::Trigger;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::duplicates::{self, Holder, Verdict};
use super::live::{Live, Weight};
use super::one_time::UsedTokens;
use super::pending::network;
use super::{Claim, ConnectionId, Identity, Origin, Policies, Refusal, ReverseLimits};
use crate::history::EventKind;
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

/// What connections are counted by: the certificate's name, else the host name, else the address. **A host name is only
/// claimed**: it counts within the policy and the cluster that the agent was admitted to, so that strangers who claim it
/// elsewhere do not use up what its owner may have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum AgentKey {
    Named { policy: Option<Arc<str>>, cluster: Arc<str>, tenant: Option<Arc<str>>, host_name: Arc<str> },
    Unnamed(Origin),
    Identity(Identity),
}

impl AgentKey {
    fn of(claim: &Claim) -> Self {
        if let Some(grant) = &claim.grant {
            return Self::Identity(grant.identity.clone());
        }
        match claim.peer.origin() {
            Origin::Certificate(name) => Self::Unnamed(Origin::Certificate(name)),
            origin if claim.host_name.is_empty() => Self::Unnamed(origin),
            _ => Self::Named {
                policy: claim.policy.clone(),
                cluster: Arc::clone(&claim.cluster),
                tenant: claim.reverse.as_ref().map(|claim| Arc::clone(&claim.tenant)),
                host_name: Arc::clone(&claim.host_name),
            },
        }
    }
}

/// A place among the live connections; dropping it gives it up.
#[derive(Debug)]
#[must_use = "the connection is live as long as this value"]
pub(super) struct Place {
    tunnels: Arc<Tunnels>,
    id: ConnectionId,
    weight: Arc<Weight>,
    superseded: u64,
}

impl Place {
    /// Connections of earlier agents with its identity that are drained for it.
    pub(super) fn superseded(&self) -> u64 {
        self.superseded
    }

    /// Changes with [`Tunnels::reweigh`].
    pub(super) fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Remembers what has happened to the connection.
    pub(super) fn note(&self, kind: EventKind, detail: Option<String>) {
        if let Some(live) = self.tunnels.inner.lock().live.get_mut(&self.id) {
            live.history.note(Instant::now(), kind, detail);
        }
        if matches!(kind, EventKind::Draining | EventKind::GracefulClose) {
            self.tunnels.changed();
        }
    }

    /// Remembers the first of its kind.
    pub(super) fn note_once(&self, kind: EventKind, detail: impl FnOnce() -> String) {
        if let Some(live) = self.tunnels.inner.lock().live.get_mut(&self.id)
            && !live.history.has(kind)
        {
            live.history.note(Instant::now(), kind, Some(detail()));
        }
    }

    /// What counts the connection's bytes.
    pub(super) fn metered(&self, meter: Arc<Meter>) {
        if let Some(live) = self.tunnels.inner.lock().live.get_mut(&self.id) {
            live.meter = Some(meter);
        }
    }
}

/// A place among the aside connections of an origin.
#[derive(Debug)]
#[must_use = "the aside connection counts as long as this value"]
pub(super) struct AsidePlace {
    tunnels: Arc<Tunnels>,
    origin: Origin,
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

    /// Every registered connection, oldest first.
    #[must_use]
    pub fn status(&self) -> Vec<TunnelStatus> {
        let now = Instant::now();
        let mut all: Vec<(Instant, TunnelStatus)> = {
            let inner = self.inner.lock();
            inner.live.iter().map(|(id, live)| (live.since, live.status(*id, now))).collect()
        };
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

impl Inner {
    /// Limits and duplicates; how many connections of earlier agents are drained for this one.
    fn admit(&self, claim: &Claim, key: &AgentKey) -> Result<u64, Refusal> {
        let grant = claim.grant.as_deref();
        let most = grant.map_or(claim.max_connections_per_agent, |grant| grant.max_connections);
        let most = most.min(claim.max_connections_per_agent);
        let Some(grant) = grant else {
            return if self.agents.get(key).is_some_and(|count| *count >= most) {
                Err(Refusal::TooManyConnections)
            } else {
                Ok(0)
            };
        };
        let here = source(claim).and_then(|source| self.sources.get(&source)).copied().unwrap_or(0);
        if grant.max_connections_per_source.is_some_and(|most| here >= most) {
            return Err(Refusal::SourceFull);
        }
        let verdict = match (self.holders.get(&grant.identity), duplicates::instance(claim)) {
            (Some(holder), Some(instance)) => holder.judge(instance, grant.duplicates),
            _ => Verdict::Joins,
        };
        match verdict {
            Verdict::Refused => Err(Refusal::Duplicate),
            // They leave: the limit is the newcomer's.
            Verdict::Supersedes => Ok(self.supersede(&grant.identity)),
            Verdict::Joins => {
                let holder = self.holders.get(&grant.identity).map(Holder::connections);
                let count = holder.or_else(|| self.agents.get(key).copied()).unwrap_or(0);
                if count >= most { Err(Refusal::TooManyConnections) } else { Ok(0) }
            }
        }
    }

    fn supersede(&self, identity: &Identity) -> u64 {
        let same = |live: &&Live| live.claim.grant.as_ref().is_some_and(|grant| grant.identity == *identity);
        let mut superseded = 0;
        for live in self.live.values().map(|live| &**live).filter(same) {
            live.drain.start(SUPERSEDED);
            superseded += 1;
        }
        superseded
    }
}

/// What the connections of one source are counted by.
fn source(claim: &Claim) -> Option<IpAddr> {
    claim.peer.address.map(|address| network(address.ip()))
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.tunnels.inner.lock();
        let Some(live) = inner.live.remove(&self.id) else { return };
        let now = Instant::now();
        if inner.ended.len() >= MOST_ENDED {
            inner.ended.pop_front();
        }
        let reason = live.history.last(EventKind::Ended).map(str::to_owned);
        inner.ended.push_back((now, EndedTunnel { tunnel: live.status(self.id, now), reason, ended_seconds_ago: 0 }));
        self.tunnels.changed();
        if live.claim.http2.is_some() {
            take_one(&mut inner.told, Box::new(AgentKey::of(&live.claim)));
        }
        take_one(&mut inner.agents, Box::new(AgentKey::of(&live.claim)));
        take_one(&mut inner.origins, live.claim.peer.origin());
        if let Some(grant) = &live.claim.grant {
            if let Some(source) = source(&live.claim) {
                take_one(&mut inner.sources, source);
            }
            if let Some(instance) = duplicates::instance(&live.claim)
                && let Entry::Occupied(mut holder) = inner.holders.entry(grant.identity.clone())
                && holder.get_mut().leave(instance)
            {
                holder.remove();
            }
        }
        if let Some(address) = live.claim.peer.address.map(canonical)
            // A later connection may have come from the same address already.
            && inner.by_address.get(&address) == Some(&self.id)
        {
            inner.by_address.remove(&address);
        }
    }
}

impl Drop for AsidePlace {
    fn drop(&mut self) {
        take_one(&mut self.tunnels.inner.lock().asides, self.origin.clone());
    }
}

fn take_one<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: K) {
    if let Entry::Occupied(mut count) = counts.entry(key) {
        *count.get_mut() = count.get().saturating_sub(1);
        if *count.get() == 0 {
            count.remove();
        }
    }
}

/// Agents name IPv4 addresses as such; a dual-stack socket shows them mapped.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// For what is in flight on connections of an agent that was replaced.
const SUPERSEDED: Duration = Duration::from_secs(15);
/// Connections that ended, and are remembered.
const MOST_ENDED: usize = 256;
/// Aside connections of one agent.
const MAX_ASIDES: usize = 2;
/// A graceful close sets none: the agent ends what takes too long. (Far, and no overflow of the clock.)
const NO_DEADLINE: Duration = Duration::from_secs(365 * 24 * 3600);
