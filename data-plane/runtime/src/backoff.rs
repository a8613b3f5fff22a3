//! Back-off with full jitter: every delay is drawn evenly from zero to a ceiling that doubles up to a cap.
//!
//! Full jitter spreads a herd best: ten thousand clients that lost the same server come back evenly over the ceiling.

use std::time::Duration;

/// Delays between attempts.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    attempt: u32,
    random: fastrand::Rng,
}

impl Backoff {
    /// The first ceiling is `base`, the last `max` (at least `base`).
    #[must_use]
    pub fn new(base: Duration, max: Duration) -> Self {
        Self::with_random(base, max, fastrand::Rng::new())
    }

    /// With a source of randomness of the caller's: a seeded one makes the delays reproducible.
    #[must_use]
    pub fn with_random(base: Duration, max: Duration, random: fastrand::Rng) -> Self {
        Self { base, max: max.max(base), attempt: 0, random }
    }

    /// How long to wait before the next attempt, at most [`Self::ceiling`]. Counts the attempt.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.ceiling().mul_f64(self.random.f64());
        self.attempt = self.attempt.saturating_add(1);
        delay
    }

    /// The greatest delay that the next call of [`Self::next_delay`] may give.
    #[must_use]
    pub fn ceiling(&self) -> Duration {
        let factor = 1_u32.checked_shl(self.attempt).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.max)
    }

    /// Attempts since the start or the last [`Self::reset`].
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempt
    }

    /// An attempt succeeded and lasted: begin with the base again.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_the_cap_and_delays_stay_below_it() {
        let mut backoff =
            Backoff::with_random(Duration::from_millis(500), Duration::from_secs(30), fastrand::Rng::with_seed(7));
        let expected = [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000];
        for (attempt, ceiling) in expected.into_iter().enumerate() {
            assert_eq!(backoff.ceiling(), Duration::from_millis(ceiling), "ceiling of attempt {attempt}");
            let delay = backoff.next_delay();
            assert!(delay <= Duration::from_millis(ceiling), "attempt {attempt} waits {delay:?}, over {ceiling} ms");
        }
        backoff.reset();
        assert_eq!(backoff.ceiling(), Duration::from_millis(500), "ceiling after a reset");
    }

    #[test]
    fn a_great_number_of_attempts_does_not_overflow() {
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_secs(10));
        for _ in 0..100 {
            let _: Duration = backoff.next_delay();
        }
        assert_eq!(backoff.ceiling(), Duration::from_secs(10), "ceiling after 100 attempts");
    }

    #[test]
    fn delays_are_spread_over_the_whole_range() {
        let mut low = 0;
        for seed in 0..200 {
            let mut backoff =
                Backoff::with_random(Duration::from_secs(1), Duration::from_secs(1), fastrand::Rng::with_seed(seed));
            low += usize::from(backoff.next_delay() < Duration::from_millis(500));
        }
        assert!((60..140).contains(&low), "{low} of 200 first delays are in the lower half, expected about 100");
    }
}
