use std::sync::Barrier;
use std::sync::atomic::AtomicUsize;

use super::*;

fn limits(max: u32) -> cluster::Breakers {
    cluster::Breakers {
        max_connections: max,
        max_pending_requests: max,
        max_requests: max,
        max_retries: max,
        retry_budget: None,
        track_remaining: false,
    }
}

fn breakers(max: u32) -> Arc<Breakers> {
    let breakers = Arc::new(Breakers::default());
    breakers.set_limits(&[limits(max), limits(max)]);
    breakers
}

#[test]
fn four_threads_get_exactly_the_limit() {
    const LIMIT: u32 = 1024;
    for round in 0..20 {
        let breakers = breakers(LIMIT);
        let (start, granted) = (Barrier::new(4), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    let mine = (0..LIMIT).filter(|_| breakers.default.requests.try_acquire()).count();
                    granted.fetch_add(mine, Ordering::Relaxed);
                });
            }
        });
        let granted = granted.into_inner();
        assert_eq!(granted, LIMIT as usize, "round {round}: 4 x {LIMIT} attempts against a limit of {LIMIT}");
        assert_eq!(breakers.default.requests.used(), LIMIT, "round {round}: all are counted");
    }
}

#[test]
fn four_threads_that_come_and_go_never_pass_the_limit_and_end_at_zero() {
    const LIMIT: u32 = 3;
    let breakers = breakers(LIMIT);
    let (inside, most) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut served = 0;
                while served < 20_000 {
                    if breakers.high.connections.try_acquire() {
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        breakers.high.release_connection();
                        served += 1;
                    }
                }
            });
        }
    });
    let most = most.into_inner();
    assert!(most <= LIMIT, "{most} were inside at once, the limit is {LIMIT}");
    assert_eq!(breakers.high.connections.used(), 0, "what was acquired is released");
}

#[test]
fn a_lowered_limit_refuses_until_enough_was_released() {
    let breakers = breakers(4);
    assert!((0..4).all(|_| breakers.default.requests.try_acquire()), "four of four");
    breakers.set_limits(&[limits(2), limits(2)]);
    let mut outcomes = Vec::new();
    for _ in 0..4 {
        outcomes.push(breakers.default.requests.try_acquire());
        breakers.default.requests.release();
    }
    assert_eq!(outcomes, [false, false, false, true], "used 4, 3, 2, 1 of a limit of 2");
}

#[test]
fn retries_are_limited_by_number_or_by_the_budget() {
    // (budget, active requests, retries that must be granted)
    let cases = [
        (None, 1000, 3),
        (Some((20.0, 3)), 0, 3),
        (Some((20.0, 3)), 15, 3),
        (Some((20.0, 3)), 100, 20),
        (Some((50.0, 0)), 10, 5),
        (Some((0.0, 0)), 10, 0),
    ];
    for (budget, active, expected) in cases {
        let breakers = Arc::new(Breakers::default());
        let retry_budget = budget.map(|(percent, min_concurrency)| cluster::RetryBudget { percent, min_concurrency });
        let limits = cluster::Breakers { max_retries: 3, retry_budget, ..limits(10_000) };
        breakers.set_limits(&[limits, limits]);
        assert!((0..active).all(|_| breakers.default.requests.try_acquire()), "{active} active requests");
        let permits: Vec<_> =
            std::iter::from_fn(|| RetryPermit::acquire(&breakers, Priority::Default)).take(1000).collect();
        assert_eq!(permits.len(), expected, "retries for budget {budget:?} and {active} active requests");
        drop(permits);
        assert_eq!(breakers.default.retries.used(), 0, "permits are given back");
    }
}
