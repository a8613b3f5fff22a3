//! Hosts among which one is chosen by weight.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use culvert_model::cluster::Balancer;

use crate::host::Host;

/// Hosts with equal rights but for their weights: the available hosts of one priority, or of one locality in it.
#[derive(Debug)]
pub(crate) struct Group {
    hosts: Box<[Arc<Host>]>,
    weights: Weights,
    /// Which of a worker's cursors is this group's.
    cursor: usize,
}

/// Places on a line of length `total`, one stretch per host, as long as its weight.
#[derive(Debug)]
pub(crate) enum Weights {
    Equal,
    /// Running sums. Walking the line in steps of `stride` (coprime to the sum, near its golden section) touches every
    /// point once per round: each host exactly as often as its weight says, and evenly spread, without a schedule
    /// of the round's length.
    Sums {
        sums: Box<[u64]>,
        stride: u64,
    },
}

impl Weights {
    pub(crate) fn new(weights: impl Iterator<Item = u64>) -> Self {
        let mut sum = 0;
        let sums: Box<[u64]> = weights
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect();
        let first = sums.first().copied().unwrap_or(0);
        if sums.iter().zip(1..).all(|(sum, n)| *sum == first * n) && first > 0 {
            return Self::Equal;
        }
        Self::Sums { stride: stride(sum), sums }
    }

    /// The next place in a weighted round.
    pub(crate) fn next(&self, len: usize, cursor: &mut u64) -> usize {
        match self {
            Self::Equal => {
                *cursor = cursor.wrapping_add(1);
                index(*cursor % (len as u64).max(1))
            }
            Self::Sums { sums, stride } => {
                let total = sums.last().copied().unwrap_or(1).max(1);
                *cursor = (*cursor % total + stride) % total;
                sums.partition_point(|sum| *sum <= *cursor)
            }
        }
    }

    /// A place at random, in proportion to the weights.
    pub(crate) fn random(&self, len: usize, random: &mut fastrand::Rng) -> usize {
        match self {
            Self::Equal => random.usize(..len.max(1)),
            Self::Sums { sums, .. } => {
                let at = random.u64(..sums.last().copied().unwrap_or(1).max(1));
                sums.partition_point(|sum| *sum <= at)
            }
        }
    }

    fn of(&self, place: usize) -> u64 {
        match self {
            Self::Equal => 1,
            Self::Sums { sums, .. } => {
                let before = place.checked_sub(1).and_then(|before| sums.get(before)).copied().unwrap_or(0);
                sums.get(place).map_or(1, |sum| sum - before)
            }
        }
    }
}

impl Group {
    pub(crate) fn new(members: Vec<(Arc<Host>, u32)>, cursor: usize) -> Self {
        let weights = Weights::new(members.iter().map(|(_, weight)| u64::from(*weight)));
        Self { hosts: members.into_iter().map(|(host, _)| host).collect(), weights, cursor }
    }

    pub(crate) fn hosts(&self) -> &[Arc<Host>] {
        &self.hosts
    }

    /// Chooses a host; `None` if there is none, or none that may still be chosen.
    pub(crate) fn pick(
        &self,
        balancer: Balancer,
        cursors: &mut [u64],
        random: &mut fastrand::Rng,
    ) -> Option<&Arc<Host>> {
        // A tunnel can end before the generation without it is published.
        for _ in 0..ATTEMPTS {
            let host = self.candidate(balancer, cursors, random)?;
            if may_serve(host) {
                return Some(host);
            }
        }
        let start = random.usize(..self.hosts.len());
        self.hosts.iter().cycle().skip(start).take(self.hosts.len()).find(|host| may_serve(host))
    }

    fn candidate(&self, balancer: Balancer, cursors: &mut [u64], random: &mut fastrand::Rng) -> Option<&Arc<Host>> {
        let len = self.hosts.len();
        match balancer {
            _ if len <= 1 => self.hosts.first(),
            Balancer::RoundRobin => self.hosts.get(self.weights.next(len, cursors.get_mut(self.cursor)?)),
            // Envoy's random balancer knows no weights.
            Balancer::Random => self.hosts.get(random.usize(..len)),
            Balancer::LeastRequest { choices } => self.least_request(choices, random),
        }
    }

    /// The best of `choices` samples: the fewest requests for its weight, the first sample when they are even.
    fn least_request(&self, choices: u32, random: &mut fastrand::Rng) -> Option<&Arc<Host>> {
        let len = self.hosts.len();
        let load =
            |place: usize| self.hosts.get(place).map_or(0, |host| u64::from(host.load().load(Ordering::Relaxed)));
        let mut best = self.weights.random(len, random);
        for _ in 1..choices.max(2) {
            let other = self.weights.random(len, random);
            if load(other).saturating_mul(self.weights.of(best)) < load(best).saturating_mul(self.weights.of(other)) {
                best = other;
            }
        }
        self.hosts.get(best)
    }
}

fn may_serve(host: &Host) -> bool {
    host.tunnel().is_none_or(|connection| connection.is_live())
}

/// A number near the golden section of `total` that shares no factor with it.
fn stride(total: u64) -> u64 {
    if total < 3 {
        return 1;
    }
    // 1 / phi = 0.6180339887…; in integers, so that the place is exact for every total up to 2^64.
    let golden = (u128::from(total) * 618_033_988_749 / 1_000_000_000_000) as u64;
    (golden.max(1)..total).find(|step| gcd(*step, total) == 1).unwrap_or(1)
}

const fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

fn index(place: u64) -> usize {
    usize::try_from(place).unwrap_or(0)
}

/// Choices that may fall on a host that has just gone before all are looked through.
const ATTEMPTS: usize = 3;
