//! Both halves against each other over a network that loses connections, reorders across streams and duplicates, with
//! servers that restart, resources that are refused and changes that race. Every seed ends in quiet, and then the
//! client holds what was published, less what it refused.
//!
//! `CULVERT_SIM_SEEDS=n` runs n seeds (256), `CULVERT_SIM_SEED=n` replays one.

#![expect(clippy::expect_used, reason = "whatever does not hold here fails the test")]

#[path = "simulation/contents.rs"]
mod contents;
#[path = "simulation/judge.rs"]
mod judge;
#[path = "simulation/network.rs"]
mod network;
#[path = "simulation/shadow.rs"]
mod shadow;
#[path = "simulation/swaps.rs"]
mod swaps;
#[path = "simulation/told.rs"]
mod told;
#[path = "simulation/world.rs"]
mod world;

use std::io::Write;

use world::World;

const SEEDS: u64 = 256;

/// Seeds that fail for a reason that is not mended: all below 2,000, and of those above what was met. They are expected to fail,
/// so that one that is mended is taken out.
///
/// A name that was given up and asked for again is answered with its frozen content, which the node has refused already; its
/// refusal takes the good ones of the response with it once too often.
const OPEN_QUIET: [u64; 1] = [6595];
/// Not looked into.
const OPEN_SWAPS: [u64; 1] = [1634];
/// 385: a wildcard is given up and taken again while a response is on its way, and what that brought is gone before the next:
/// nobody says so. Most others: a node says in state of the world that it has the version of everything, and has not; whether
/// a node can come to that, or the model alone, is open.
const OPEN_RESPONSES: [u64; 18] =
    [385, 498, 580, 782, 814, 1014, 1186, 1190, 1268, 1498, 1612, 1722, 1762, 1820, 1836, 1916, 1920, 1956];

#[test]
fn after_quiet_the_client_holds_what_was_published_less_what_it_refused() {
    for_each_seed(&OPEN_QUIET, |seed, verbose| {
        let report = World::new(seed, verbose).run();
        (report.messages, report.refused)
    });
}

#[test]
fn no_route_ever_leads_to_a_cluster_that_the_client_does_not_have() {
    for_each_seed(&OPEN_SWAPS, swaps::run);
}

#[test]
fn every_response_is_what_its_subscription_calls_for() {
    for_each_seed(&OPEN_RESPONSES, judge::run);
}

/// Runs it with every seed; it returns how many messages it took, and how many resources the client refused.
///
/// `open`: the seeds that fail for a reason that is known and not mended; one that fails no more is to be taken out.
fn for_each_seed(open: &[u64], run: fn(u64, bool) -> (u64, u64)) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    if let Some(seed) = number("CULVERT_SIM_SEED") {
        run(seed, true);
        return;
    }
    let seeds = number("CULVERT_SIM_SEEDS").unwrap_or(SEEDS);
    let mut messages = 0;
    let mut refused = 0;
    let mut failed = Vec::new();
    for seed in 0..seeds {
        match std::panic::catch_unwind(|| run(seed, false)) {
            Ok(report) => {
                messages += report.0;
                refused += report.1;
            }
            Err(_) => failed.push(seed),
        }
    }
    let expected: Vec<u64> = open.iter().copied().filter(|seed| *seed < seeds).collect();
    assert!(
        failed == expected,
        "seeds {failed:?} failed, of which {expected:?} are known; replay one with CULVERT_SIM_SEED=n"
    );
    assert!(seeds < 64 || refused > seeds, "only {refused} refusals in {seeds} seeds: the simulation proves nothing");
    // Past the capture of test output: how much was tried is part of the result.
    writeln!(std::io::stderr(), "simulation: {seeds} seeds, {messages} messages, {refused} refusals").expect("stderr");
}
