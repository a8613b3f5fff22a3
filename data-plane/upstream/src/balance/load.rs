//! How much traffic each priority gets: Envoy's algorithm, as numbers only.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/priority> and `…/panic_threshold`.

/// Hosts of one priority, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) total: u64,
    pub(crate) healthy: u64,
    pub(crate) degraded: u64,
}

/// Shares of traffic in percent. Sum to 100, or to 0 when no host may get any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Loads {
    pub(crate) healthy: Vec<u64>,
    pub(crate) degraded: Vec<u64>,
    /// The priority's share goes to all its hosts, healthy or not.
    pub(crate) panic: Vec<bool>,
}

impl Loads {
    /// `factor`: overprovisioning in percent (140). `threshold`: percent of available hosts below which a priority
    /// panics; 0 never does.
    pub(crate) fn compute(levels: &[Census], factor: u64, threshold: u64) -> Self {
        let available = |count: u64, level: &Census| match level.total {
            0 => 0,
            total => (count.saturating_mul(factor) / total).min(100),
        };
        let healthy: Vec<u64> = levels.iter().map(|level| available(level.healthy, level)).collect();
        let degraded: Vec<u64> = levels.iter().map(|level| available(level.degraded, level)).collect();
        let normalized = (healthy.iter().sum::<u64>() + degraded.iter().sum::<u64>()).min(100);
        if normalized == 0 {
            return if threshold > 0 { Self::total_panic(levels) } else { Self::none(levels.len()) };
        }
        let (mut loads, left) = distribute(&healthy, 100, normalized);
        let (mut degraded_loads, left) = distribute(&degraded, left, normalized);
        // What rounding left over goes to the first priority that can take it.
        if let Some(first) = healthy.iter().position(|share| *share > 0) {
            loads[first] += left;
        } else if let Some(first) = degraded.iter().position(|share| *share > 0) {
            degraded_loads[first] += left;
        }
        let panic = levels.iter().map(|level| normalized < 100 && panics(level, threshold)).collect();
        Self { healthy: loads, degraded: degraded_loads, panic }
    }

    /// Nobody is available: traffic is spread over the priorities by their number of hosts.
    fn total_panic(levels: &[Census]) -> Self {
        let hosts: u64 = levels.iter().map(|level| level.total).sum();
        if hosts == 0 {
            return Self::none(levels.len());
        }
        let mut healthy: Vec<u64> = levels.iter().map(|level| 100 * level.total / hosts).collect();
        let left = 100 - healthy.iter().sum::<u64>();
        if let Some(first) = levels.iter().position(|level| level.total > 0) {
            healthy[first] += left;
        }
        Self { healthy, degraded: vec![0; levels.len()], panic: vec![true; levels.len()] }
    }

    fn none(levels: usize) -> Self {
        Self { healthy: vec![0; levels], degraded: vec![0; levels], panic: vec![false; levels] }
    }
}

/// Gives each priority as much of `load` as its availability allows, in order; what is left.
fn distribute(availability: &[u64], load: u64, normalized: u64) -> (Vec<u64>, u64) {
    let mut left = load;
    let shares = availability
        .iter()
        .map(|available| {
            let share = (available * 100 / normalized).min(left);
            left -= share;
            share
        })
        .collect();
    (shares, left)
}

fn panics(level: &Census, threshold: u64) -> bool {
    let available = level.healthy + level.degraded;
    threshold > 0 && (level.total == 0 || 100 * available < threshold * level.total)
}

#[cfg(test)]
mod tests;
