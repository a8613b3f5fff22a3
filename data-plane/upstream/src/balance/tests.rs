use std::collections::BTreeMap;

use super::*;
use crate::host::{HostPlace, Target};

/// Hosts by port: (port, weight, health, priority, locality, locality weight).
type Row = (u16, u32, Health, u32, usize, Option<u32>);

fn plain(port: u16, weight: u32) -> Row {
    (port, weight, Health::Healthy, 0, 0, None)
}

fn members(rows: &[Row]) -> Vec<Member> {
    rows.iter()
        .map(|&(port, weight, health, priority, locality, locality_weight)| Member {
            host: Host::new(Target::Fixed(([127, 0, 0, 1], port).into()), HostPlace::default()),
            weight,
            health,
            priority,
            locality,
            locality_weight,
        })
        .collect()
}

fn policy(balancer: Balancer) -> Policy {
    Policy {
        balancer,
        panic_threshold_percent: 50,
        overprovisioning_factor: 140,
        locality_weighted: false,
        drops: Vec::new(),
    }
}

fn set(rows: &[Row], balancer: Balancer) -> HostSet {
    HostSet::new(members(rows), &policy(balancer))
}

/// How often each port is chosen.
fn count(set: &HostSet, choices: usize) -> BTreeMap<u16, usize> {
    let mut cursors = Cursors::new(fastrand::Rng::with_seed(11));
    let mut counts = BTreeMap::new();
    for _ in 0..choices {
        let choice = set.pick(&mut cursors).unwrap();
        *counts.entry(choice.host.address().unwrap().port()).or_default() += 1;
    }
    counts
}

#[track_caller]
fn assert_near(counts: &BTreeMap<u16, usize>, port: u16, expected: usize, tolerance: usize) {
    let seen = counts.get(&port).copied().unwrap_or(0);
    assert!(
        seen.abs_diff(expected) <= tolerance,
        "port {port}: chosen {seen} times, expected {expected} ± {tolerance}"
    );
}

#[test]
fn round_robin_visits_every_host_once_a_round() {
    let rows: Vec<Row> = (1..=7).map(|port| plain(port, 1)).collect();
    let set = set(&rows, Balancer::RoundRobin);
    let counts = count(&set, 70);
    assert!(counts.len() == 7 && counts.values().all(|count| *count == 10), "ten rounds over seven hosts: {counts:?}");
}

#[test]
fn weighted_round_robin_is_exact_over_a_round_and_smooth() {
    let weights = [5, 1, 1];
    let rows: Vec<Row> = (1..).zip(weights).map(|(port, weight)| plain(port, weight)).collect();
    let set = set(&rows, Balancer::RoundRobin);
    assert_eq!(count(&set, 70), BTreeMap::from([(1, 50), (2, 10), (3, 10)]), "ten rounds of 5 + 1 + 1");
    let mut cursors = Cursors::new(fastrand::Rng::with_seed(3));
    let order: Vec<u16> = (0..70).map(|_| set.pick(&mut cursors).unwrap().host.address().unwrap().port()).collect();
    let others = order.windows(4).filter(|window| window.iter().all(|port| *port != 1)).count();
    assert_eq!(others, 0, "the host with five of seven is never out for four choices: {order:?}");
}

proptest::proptest! {
    #[test]
    fn any_weights_are_exact_over_a_round(weights in proptest::collection::vec(1_u32..50, 1..12)) {
        let rows: Vec<Row> = (1..).zip(&weights).map(|(port, weight)| plain(port, *weight)).collect();
        let set = set(&rows, Balancer::RoundRobin);
        let total: u32 = weights.iter().sum();
        let counts = count(&set, total as usize);
        if weights.iter().any(|weight| *weight != weights[0]) {
            for (port, weight) in (1..).zip(&weights) {
                proptest::prop_assert_eq!(counts.get(&port).copied().unwrap_or(0), *weight as usize);
            }
        }
    }
}

#[test]
fn huge_weights_need_no_schedule() {
    let set = set(&[plain(1, u32::MAX), plain(2, u32::MAX / 3)], Balancer::RoundRobin);
    let counts = count(&set, 40_000);
    assert_near(&counts, 1, 30_000, 100);
    assert_near(&counts, 2, 10_000, 100);
}

#[test]
fn random_is_even() {
    let rows: Vec<Row> = (1..=4).map(|port| plain(port, u32::from(port))).collect();
    let counts = count(&set(&rows, Balancer::Random), 40_000);
    for port in 1..=4 {
        assert_near(&counts, port, 10_000, 400);
    }
}

#[test]
fn least_request_prefers_the_less_loaded_and_respects_weights() {
    let balancer = Balancer::LeastRequest { choices: 2 };
    let idle = set(&[plain(1, 1), plain(2, 3)], balancer);
    let counts = count(&idle, 40_000);
    assert_near(&counts, 2, 30_000, 600);

    let busy = set(&[plain(1, 1), plain(2, 1)], balancer);
    busy.members()[0].host.load().store(10, std::sync::atomic::Ordering::Relaxed);
    // Only two samples that both fall on the first host choose it: a quarter.
    assert_near(&count(&busy, 40_000), 1, 10_000, 400);
}

#[test]
fn priorities_fail_over_as_their_health_says() {
    let health = |healthy: bool| if healthy { Health::Healthy } else { Health::Unhealthy };
    // P0: 1 of 4 healthy (35 %), P1: all healthy.
    let mut rows: Vec<Row> = (1..=4).map(|port| (port, 1, health(port == 1), 0, 0, None)).collect();
    rows.extend((11..=12).map(|port| (port, 1, Health::Healthy, 1, 1, None)));
    let counts = count(&set(&rows, Balancer::RoundRobin), 10_000);
    assert_near(&counts, 1, 3500, 200);
    assert_near(&counts, 11, 3250, 200);
    assert_eq!(counts.get(&2), None, "an unhealthy host gets nothing: {counts:?}");
}

#[test]
fn in_panic_all_but_draining_hosts_are_chosen() {
    let rows = [
        (1, 1, Health::Unhealthy, 0, 0, None),
        (2, 1, Health::Unhealthy, 0, 0, None),
        (3, 1, Health::Draining, 0, 0, None),
    ];
    let set = set(&rows, Balancer::RoundRobin);
    let counts = count(&set, 100);
    assert_eq!(counts, BTreeMap::from([(1, 50), (2, 50)]), "unhealthy hosts evenly, the draining one never");
    let mut cursors = Cursors::new(fastrand::Rng::with_seed(1));
    assert!(set.pick(&mut cursors).unwrap().panic, "the choice says that it was made in panic");
}

#[test]
fn draining_and_missing_hosts_leave_nobody() {
    let mut cursors = Cursors::new(fastrand::Rng::with_seed(1));
    let draining = set(&[(1, 1, Health::Draining, 0, 0, None)], Balancer::RoundRobin);
    assert!(draining.pick(&mut cursors).is_none(), "only a draining host");
    assert!(HostSet::empty().pick(&mut cursors).is_none(), "no host at all");
}

#[test]
fn degraded_hosts_serve_when_healthy_ones_are_missing() {
    let rows = [(1, 1, Health::Degraded, 0, 0, None), (2, 1, Health::Unhealthy, 0, 0, None)];
    let counts = count(&set(&rows, Balancer::RoundRobin), 100);
    assert_eq!(counts, BTreeMap::from([(1, 100)]), "the degraded one serves");
}

#[test]
fn localities_share_by_weight_and_availability() {
    let weighted = |rows: &[Row]| {
        let policy = Policy { locality_weighted: true, ..policy(Balancer::RoundRobin) };
        HostSet::new(members(rows), &policy)
    };
    let rows = [
        (1, 1, Health::Healthy, 0, 0, Some(1)),
        (11, 1, Health::Healthy, 0, 1, Some(3)),
        (12, 1, Health::Healthy, 0, 1, Some(3)),
        // No weight: no traffic while others have one.
        (21, 1, Health::Healthy, 0, 2, None),
    ];
    let counts = count(&weighted(&rows), 800);
    assert_eq!(counts, BTreeMap::from([(1, 200), (11, 300), (12, 300)]), "one to three");

    // Half of the second locality is gone: 1.4 x 50 % = 70 % of its weight. 1 : 2.1
    let mut rows = rows;
    rows[2].2 = Health::Unhealthy;
    let counts = count(&weighted(&rows), 31_000);
    assert_near(&counts, 1, 10_000, 10);
    assert_near(&counts, 11, 21_000, 10);

    let none: Vec<Row> = rows.iter().map(|row| (row.0, row.1, Health::Healthy, row.3, row.4, None)).collect();
    assert_eq!(count(&weighted(&none), 400).len(), 4, "no locality has a weight: all hosts have equal rights");
}

#[test]
fn drops_follow_their_share() {
    let mut random = fastrand::Rng::with_seed(5);
    let policy = Policy { drops: vec![250_000], ..policy(Balancer::RoundRobin) };
    let set = HostSet::new(members(&[plain(1, 1)]), &policy);
    let dropped = (0..40_000).filter(|_| set.drops(&mut random)).count();
    assert!(dropped.abs_diff(10_000) < 400, "dropped {dropped} of 40,000, expected a quarter");
}

#[test]
fn workers_start_at_different_hosts() {
    let rows: Vec<Row> = (1..=16).map(|port| plain(port, 1)).collect();
    let set = set(&rows, Balancer::RoundRobin);
    let first = |seed| set.pick(&mut Cursors::new(fastrand::Rng::with_seed(seed))).unwrap().host.address();
    let firsts: std::collections::BTreeSet<_> = (0..32).map(first).collect();
    assert!(firsts.len() > 8, "32 workers began with {} different hosts of 16", firsts.len());
}
