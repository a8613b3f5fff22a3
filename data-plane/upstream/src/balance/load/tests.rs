use super::*;

/// Hosts per priority of which so many are healthy and degraded.
fn levels(levels: &[(u64, u64, u64)]) -> Vec<Census> {
    levels.iter().map(|&(total, healthy, degraded)| Census { total, healthy, degraded }).collect()
}

/// The tables of Envoy's documentation of priority levels: 100 hosts each, factor 1.4.
#[test]
fn healthy_shares_are_those_of_envoys_tables() {
    let cases: [(&[u64], &[u64]); 13] = [
        // Two priorities.
        (&[100, 100], &[100, 0]),
        (&[72, 72], &[100, 0]),
        (&[71, 71], &[99, 1]),
        (&[50, 50], &[70, 30]),
        (&[25, 100], &[35, 65]),
        (&[0, 100], &[0, 100]),
        (&[25, 25], &[50, 50]),
        // Three priorities.
        (&[100, 100, 100], &[100, 0, 0]),
        (&[72, 72, 100], &[100, 0, 0]),
        (&[71, 71, 100], &[99, 1, 0]),
        (&[50, 50, 100], &[70, 30, 0]),
        (&[25, 100, 100], &[35, 65, 0]),
        (&[25, 25, 100], &[35, 35, 30]),
    ];
    for (healthy, expected) in cases {
        let levels = levels(&healthy.iter().map(|healthy| (100, *healthy, 0)).collect::<Vec<_>>());
        let loads = Loads::compute(&levels, 140, 50);
        assert_eq!(loads.healthy, expected, "shares for {healthy:?} % healthy");
        assert_eq!(loads.degraded.iter().sum::<u64>(), 0, "nobody is degraded");
    }
}

#[test]
fn degraded_hosts_get_what_healthy_ones_cannot_take() {
    // (levels, healthy shares, degraded shares)
    type Case<'a> = (&'a [(u64, u64, u64)], &'a [u64], &'a [u64]);
    let cases: [Case<'_>; 4] = [
        (&[(100, 0, 100)], &[0], &[100]),
        // P0 takes 35 %, its degraded hosts the rest.
        (&[(100, 25, 75)], &[35], &[65]),
        // Healthy hosts of P1 come before degraded ones of P0.
        (&[(100, 50, 50), (100, 100, 0)], &[70, 30], &[0, 0]),
        (&[(100, 25, 25), (100, 25, 0)], &[35, 35], &[30, 0]),
    ];
    for (census, healthy, degraded) in cases {
        let loads = Loads::compute(&levels(census), 140, 50);
        assert_eq!((loads.healthy.as_slice(), loads.degraded.as_slice()), (healthy, degraded), "shares for {census:?}");
    }
}

/// The tables of Envoy's documentation of the panic threshold (50 %).
#[test]
fn panic_is_that_of_envoys_tables() {
    type Case<'a> = (&'a [u64], &'a [u64], &'a [bool]);
    let cases: [Case<'_>; 7] = [
        (&[72, 72], &[100, 0], &[false, false]),
        (&[71, 71], &[99, 1], &[false, false]),
        (&[50, 60], &[70, 30], &[false, false]),
        (&[0, 100], &[0, 100], &[false, false]),
        // Together below 100 %: each is looked at alone.
        (&[25, 25], &[50, 50], &[true, true]),
        // The documentation rounds to 7 and 93; Envoy's code gives what is left over to the first priority, as ours.
        (&[5, 65], &[8, 92], &[true, false]),
        (&[0, 0], &[50, 50], &[true, true]),
    ];
    for (healthy, shares, panic) in cases {
        let census = levels(&healthy.iter().map(|healthy| (100, *healthy, 0)).collect::<Vec<_>>());
        let loads = Loads::compute(&census, 140, 50);
        assert_eq!((loads.healthy.as_slice(), loads.panic.as_slice()), (shares, panic), "for {healthy:?} % healthy");
    }
}

#[test]
fn a_threshold_of_zero_never_panics() {
    let loads = Loads::compute(&levels(&[(10, 1, 0)]), 140, 0);
    assert_eq!((loads.healthy, loads.panic), (vec![100], vec![false]), "one of ten is healthy");
    let loads = Loads::compute(&levels(&[(10, 0, 0)]), 140, 0);
    assert_eq!((loads.healthy, loads.panic), (vec![0], vec![false]), "nobody is healthy: nobody gets anything");
}

#[test]
fn in_total_panic_traffic_goes_by_number_of_hosts() {
    let loads = Loads::compute(&levels(&[(1, 0, 0), (2, 0, 0)]), 140, 50);
    assert_eq!(loads.healthy, [34, 66], "one and two hosts; the rest of rounding goes to the first");
    let loads = Loads::compute(&levels(&[(0, 0, 0), (0, 0, 0)]), 140, 50);
    assert_eq!(loads.healthy, [0, 0], "there is no host");
}

proptest::proptest! {
    #[test]
    fn shares_sum_to_a_hundred_or_to_nothing(
        census in proptest::collection::vec((0_u64..200, 0_u64..200, 0_u64..200), 1..6),
        factor in 100_u64..1000,
        threshold in 0_u64..=100,
    ) {
        let levels: Vec<Census> = census
            .iter()
            .map(|&(healthy, degraded, rest)| Census { total: healthy + degraded + rest, healthy, degraded })
            .collect();
        let loads = Loads::compute(&levels, factor, threshold);
        let sum: u64 = loads.healthy.iter().chain(&loads.degraded).sum();
        let hosts: u64 = levels.iter().map(|level| level.total).sum();
        let available: u64 = levels.iter().map(|level| level.healthy + level.degraded).sum();
        if available > 0 && levels.iter().any(|l| l.total > 0 && (l.healthy.max(l.degraded)) * factor / l.total > 0) {
            proptest::prop_assert_eq!(sum, 100);
        } else if hosts == 0 || threshold == 0 {
            proptest::prop_assert_eq!(sum, 0);
        }
    }
}
