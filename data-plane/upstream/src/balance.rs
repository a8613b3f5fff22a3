//! Which host serves: priorities, panic, localities, then a choice by weight.
//!
//! A [`HostSet`] is immutable and shared; what a choice changes (cursors, randomness) belongs to the worker.

mod group;
mod load;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use culvert_model::cluster::Balancer;
use culvert_model::endpoint::Health;

use crate::host::Host;
use crate::tunnel::{ReverseNames, TunnelClaim, Wish};
use group::{Group, Weights};
use load::{Census, Loads};

/// The hosts of a cluster in one generation.
#[derive(Debug)]
pub(crate) struct HostSet {
    members: Vec<Member>,
    levels: Box<[Level]>,
    loads: Loads,
    balancer: Balancer,
    agents: ByAgent<Group>,
    /// Agents in Envoy's dialect, by the names of [`crate::tunnel::ReverseNames`].
    reverse: ByAgent<Group>,
    cursors: usize,
    /// Of 1,000,000: requests to drop, by the assignment's `drop_overloads`.
    drops: Box<[u32]>,
}

type ByAgent<T> = HashMap<Arc<str>, T, foldhash::fast::RandomState>;

/// A host with what this generation says of it.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) host: Arc<Host>,
    pub(crate) weight: u32,
    pub(crate) health: Health,
    pub(crate) priority: u32,
    /// Which locality of the assignment; hosts of one locality stand together.
    pub(crate) locality: usize,
    /// The locality's weight, when localities are weighted.
    pub(crate) locality_weight: Option<u32>,
}

/// How hosts are chosen, from the cluster and its assignment.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) balancer: Balancer,
    pub(crate) panic_threshold_percent: u8,
    pub(crate) overprovisioning_factor: u32,
    pub(crate) locality_weighted: bool,
    pub(crate) drops: Vec<u32>,
}

/// What a worker remembers from choice to choice.
#[derive(Debug)]
pub(crate) struct Cursors {
    places: Vec<u64>,
    pub(crate) random: fastrand::Rng,
}

/// A choice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice<'a> {
    pub(crate) host: &'a Arc<Host>,
    /// Made among all hosts, healthy or not.
    pub(crate) panic: bool,
    /// Those that had the same rights: where an idle tunnel may be looked for.
    pub(crate) among: &'a [Arc<Host>],
}

/// One priority: whom its share goes to.
#[derive(Debug)]
struct Level {
    healthy: Arc<Picker>,
    degraded: Arc<Picker>,
    /// All but draining hosts, for panic.
    all: Arc<Picker>,
}

#[derive(Debug)]
enum Picker {
    Flat(Group),
    /// First a locality by weight, then a host in it.
    Localities {
        weights: Weights,
        groups: Vec<Group>,
        cursor: usize,
    },
}

impl Cursors {
    /// Workers start at random places, so that they do not all begin with the first host.
    pub(crate) fn new(random: fastrand::Rng) -> Self {
        Self { places: Vec::new(), random }
    }

    fn reach(&mut self, count: usize) {
        while self.places.len() < count {
            // Far from overflow in either kind of walk.
            self.places.push(self.random.u64(..1 << 32));
        }
    }
}

impl HostSet {
    pub(crate) fn empty() -> Self {
        Self {
            members: Vec::new(),
            levels: Box::default(),
            loads: Loads::default(),
            balancer: Balancer::RoundRobin,
            agents: HashMap::default(),
            reverse: HashMap::default(),
            cursors: 0,
            drops: Box::default(),
        }
    }

    /// `members` stand in order of priority, hosts of one locality together.
    pub(crate) fn new(members: Vec<Member>, policy: &Policy) -> Self {
        let mut build = Build { policy, cursors: 0 };
        let levels: Box<[Level]> =
            members.chunk_by(|a, b| a.priority == b.priority).map(|level| build.level(level)).collect();
        let census: Vec<Census> = members.chunk_by(|a, b| a.priority == b.priority).map(census).collect();
        let loads = Loads::compute(
            &census,
            u64::from(policy.overprovisioning_factor),
            u64::from(policy.panic_threshold_percent),
        );
        let agents = build.named(&members, |claim| Some(&claim.agent).filter(|agent| !agent.is_empty()));
        let reverse = build
            .named(&members, |claim| claim.reverse.iter().flat_map(|names| names.nodes.iter().chain(&names.groups)));
        Self {
            levels,
            loads,
            balancer: policy.balancer,
            agents,
            reverse,
            cursors: build.cursors,
            drops: policy.drops.clone().into(),
            members,
        }
    }

    /// Every host with its configuration, draining ones included.
    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    pub(crate) fn balancer(&self) -> Balancer {
        self.balancer
    }

    /// Chooses a host for a request.
    pub(crate) fn pick<'a>(&'a self, cursors: &mut Cursors) -> Option<Choice<'a>> {
        cursors.reach(self.cursors);
        let (index, degraded) = self.choose_priority(&mut cursors.random)?;
        let level = self.levels.get(index)?;
        let panic = self.loads.panic.get(index).copied().unwrap_or(false);
        let picker = match (panic, degraded) {
            (true, _) => &level.all,
            (false, false) => &level.healthy,
            (false, true) => &level.degraded,
        };
        let group = picker.group(cursors)?;
        let host = group.pick(self.balancer, &mut cursors.places, &mut cursors.random)?;
        Some(Choice { host, panic, among: group.hosts() })
    }

    /// Chooses a connection of one tunnel agent; `None`: it has none now.
    pub(crate) fn pick_agent<'a>(&'a self, agent: &str, cursors: &mut Cursors) -> Option<Choice<'a>> {
        cursors.reach(self.cursors);
        let group = self.agents.get(agent)?;
        let host = group.pick(Balancer::RoundRobin, &mut cursors.places, &mut cursors.random)?;
        Some(Choice { host, panic: false, among: group.hosts() })
    }

    /// The connections of one tunnel agent.
    pub(crate) fn of_agent(&self, agent: &str) -> &[Arc<Host>] {
        self.agents.get(agent).map_or(&[], Group::hosts)
    }

    /// The connections of the agent of Envoy's dialect that has these names.
    pub(crate) fn of_node(&self, names: &ReverseNames) -> &[Arc<Host>] {
        names.nodes.last().and_then(|node| self.reverse.get(node)).map_or(&[], Group::hosts)
    }

    /// Chooses a connection for a request of a `reverse_connection` cluster. Envoy: a cluster id counts before a node id.
    pub(crate) fn pick_reverse<'a>(&'a self, wish: &Wish, cursors: &mut Cursors) -> Option<(Choice<'a>, bool)> {
        cursors.reach(self.cursors);
        let (group, is_group) = match self.reverse.get(wish.group.as_str()) {
            Some(group) => (group, true),
            None => (self.reverse.get(wish.node.as_str())?, false),
        };
        let host = group.pick(Balancer::RoundRobin, &mut cursors.places, &mut cursors.random)?;
        Some((Choice { host, panic: false, among: group.hosts() }, is_group))
    }

    /// Whether `drop_overloads` chooses this request.
    pub(crate) fn drops(&self, random: &mut fastrand::Rng) -> bool {
        self.drops.iter().any(|share| random.u32(..1_000_000) < *share)
    }

    fn choose_priority(&self, random: &mut fastrand::Rng) -> Option<(usize, bool)> {
        if self.loads.healthy.first() == Some(&100) {
            return Some((0, false));
        }
        let mut at = random.u64(..100);
        for (shares, degraded) in [(&self.loads.healthy, false), (&self.loads.degraded, true)] {
            for (index, share) in shares.iter().enumerate() {
                if at < *share {
                    return Some((index, degraded));
                }
                at -= share;
            }
        }
        None
    }
}

impl Picker {
    fn group(&self, cursors: &mut Cursors) -> Option<&Group> {
        match self {
            Self::Flat(group) => Some(group),
            Self::Localities { weights, groups, cursor } => {
                let place = weights.next(groups.len(), cursors.places.get_mut(*cursor)?);
                groups.get(place)
            }
        }
    }
}

/// Builds pickers and numbers their cursors.
struct Build<'a> {
    policy: &'a Policy,
    cursors: usize,
}

impl Build<'_> {
    fn level(&mut self, members: &[Member]) -> Level {
        let healthy = Arc::new(self.picker(members, |health| health == Health::Healthy));
        let all_healthy = members.iter().all(|member| member.health == Health::Healthy);
        let degraded = Arc::new(self.picker(members, |health| health == Health::Degraded));
        let all = if all_healthy {
            Arc::clone(&healthy)
        } else {
            Arc::new(self.picker(members, |health| health != Health::Draining))
        };
        Level { healthy, degraded, all }
    }

    fn picker(&mut self, members: &[Member], eligible: impl Fn(Health) -> bool) -> Picker {
        let eligible = |member: &&Member| eligible(member.health);
        if self.policy.locality_weighted {
            let localities: Vec<(&[Member], u64)> = members
                .chunk_by(|a, b| a.locality == b.locality)
                .map(|locality| {
                    let available = locality.iter().filter(eligible).count() as u64;
                    (locality, self.effective_weight(locality, available))
                })
                .filter(|(_, weight)| *weight > 0)
                .collect();
            // As Envoy: where no locality has a weight, all hosts of the priority have equal rights.
            if !localities.is_empty() {
                let cursor = self.cursor();
                let weights = Weights::new(localities.iter().map(|(_, weight)| *weight));
                let groups =
                    localities.iter().map(|(locality, _)| self.group(locality.iter().filter(eligible))).collect();
                return Picker::Localities { weights, groups, cursor };
            }
        }
        Picker::Flat(self.group(members.iter().filter(eligible)))
    }

    /// A locality's weight, lowered when too few of its hosts are available; zero when none is.
    fn effective_weight(&self, locality: &[Member], available: u64) -> u64 {
        let weight = locality.first().and_then(|member| member.locality_weight).unwrap_or(0);
        let total = (locality.len() as u64).max(1);
        let availability =
            (u64::from(self.policy.overprovisioning_factor) * available * PRECISION / 100 / total).min(PRECISION);
        u64::from(weight) * availability
    }

    /// Groups of the tunnels that have a name in common.
    fn named<'m, N: IntoIterator<Item = &'m Arc<str>>>(
        &mut self,
        members: &'m [Member],
        names: impl Fn(&'m TunnelClaim) -> N,
    ) -> ByAgent<Group> {
        let mut named: Vec<(&Arc<str>, &Member)> = members
            .iter()
            .filter(|member| member.health != Health::Draining)
            .flat_map(|member| member.host.tunnel().map(|connection| (member, connection)))
            .flat_map(|(member, connection)| names(connection.claim()).into_iter().map(move |name| (name, member)))
            .collect();
        // In order, and not in a table of lists: with thousands of agents every push would need that memory beside what it
        // makes. Those of one name stay as they stood.
        named.sort_by_key(|(name, _)| *name);
        // One cursor for all agents: a single agent has few connections.
        let cursor = self.cursor();
        let by_name = || named.chunk_by(|(a, _), (b, _)| a == b);
        let mut groups = ByAgent::with_capacity_and_hasher(by_name().count(), foldhash::fast::RandomState::default());
        for of_name in by_name() {
            let hosts = of_name.iter().map(|(_, member)| (Arc::clone(&member.host), member.weight)).collect();
            groups.extend(of_name.first().map(|(name, _)| (Arc::clone(name), Group::new(hosts, cursor))));
        }
        groups
    }

    fn group<'a>(&mut self, members: impl Iterator<Item = &'a Member>) -> Group {
        let cursor = self.cursor();
        Group::new(members.map(|member| (Arc::clone(&member.host), member.weight)).collect(), cursor)
    }

    fn cursor(&mut self) -> usize {
        self.cursors += 1;
        self.cursors - 1
    }
}

fn census(members: &[Member]) -> Census {
    let count = |health: Health| members.iter().filter(|member| member.health == health).count() as u64;
    Census { total: members.len() as u64, healthy: count(Health::Healthy), degraded: count(Health::Degraded) }
}

/// Of a locality's availability: Envoy computes in floating point.
const PRECISION: u64 = 10_000;
