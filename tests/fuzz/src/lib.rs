//! Fuzz targets for everything that takes bytes from outside. Each asserts what must hold of any bytes, and not only that
//! nothing panics: what is forwarded parses back to the same request, pieces make no difference, what was understood can
//! be written and read again.
//!
//! As a library they run in `cargo test`, on their seeds and on some mutations of them; with the feature `libfuzzer` they
//! are one program, since each of their own would link everything anew. `scripts/fuzz` runs it.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a broken invariant ends the run, and the fuzzer keeps the input"
)]

mod capsules;
mod documents;
mod http1;
mod http2;
mod message;
mod model;
mod relay;
mod tls;
mod tunnel;
mod xds;

/// What takes bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    /// Panics if something does not hold.
    pub run: fn(&[u8]),
    /// What to begin with: made by the builders of the format.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words of the format.
    pub words: &'static [&'static str],
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "http1-request", run: http1::requests, seeds: http1::request_seeds, words: http1::WORDS },
    Target { name: "http1-response", run: http1::responses, seeds: http1::response_seeds, words: http1::WORDS },
    Target { name: "http2-request", run: http2::requests, seeds: http2::seeds, words: &[] },
    Target { name: "http2-response", run: http2::responses, seeds: http2::response_seeds, words: &[] },
    Target { name: "capsules", run: capsules::streams, seeds: capsules::seeds, words: &[] },
    Target { name: "tls-hello", run: tls::hello, seeds: tls::seeds, words: &[] },
    Target { name: "tunnel-frame", run: tunnel::frames, seeds: tunnel::frame_seeds, words: tunnel::WORDS },
    Target { name: "tunnel-envoy", run: tunnel::envoy, seeds: tunnel::envoy_seeds, words: tunnel::WORDS },
    Target { name: "tunnel-token", run: tunnel::tokens, seeds: tunnel::token_seeds, words: tunnel::WORDS },
    Target { name: "xds-response", run: xds::responses, seeds: xds::seeds, words: &[] },
    Target { name: "document", run: documents::resources, seeds: documents::seeds, words: documents::WORDS },
    Target {
        name: "bootstrap",
        run: documents::bootstraps,
        seeds: documents::bootstrap_seeds,
        words: documents::WORDS,
    },
    Target { name: "resource", run: model::resources, seeds: model::resource_seeds, words: &[] },
    Target { name: "log-format", run: model::formats, seeds: model::format_seeds, words: model::WORDS },
    Target { name: "route", run: model::routes, seeds: model::route_seeds, words: model::WORDS },
];

/// The one of that name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

#[cfg(test)]
mod tests {
    use super::TARGETS;

    /// Seeds, and a few hundred mutations of each target's: enough to see that a target still does what it says.
    #[test]
    fn targets_hold_on_their_seeds_and_near_them() {
        for target in TARGETS {
            let seeds = (target.seeds)();
            assert!(!seeds.is_empty(), "{} has no seeds", target.name);
            for seed in &seeds {
                eprintln!("{} {:?}", target.name, seed.escape_ascii().to_string());
                (target.run)(seed);
            }
            let mut random = fastrand::Rng::with_seed(1);
            for _ in 0..200 {
                let mut bytes = random.choice(&seeds).cloned().unwrap_or_default();
                for _ in 0..random.usize(1..4) {
                    mutate(&mut random, &mut bytes, target.words);
                }
                eprintln!("{} {:?}", target.name, bytes.escape_ascii().to_string());
                (target.run)(&bytes);
            }
        }
    }

    fn mutate(random: &mut fastrand::Rng, bytes: &mut Vec<u8>, words: &[&str]) {
        let at = random.usize(0..=bytes.len());
        match random.u8(0..5) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.u8(..)),
            2 if at < bytes.len() => bytes[at] ^= 1 << random.u8(0..8),
            3 if at < bytes.len() => drop(bytes.remove(at)),
            _ => {
                let word = random.choice(words).copied().unwrap_or("\0");
                bytes.splice(at..at, word.bytes());
            }
        }
    }
}
