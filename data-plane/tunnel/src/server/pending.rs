//! Handshakes under way: bounded per listener, and per source in number and rate.
//!
//! **A source is what one party can have many of for nothing**: an IPv4 address, or an IPv6 network of 64 bits.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use culvert_model::tunnel::TunnelServer;
use culvert_runtime::telemetry::Block;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::gauge::Gauge;
use crate::metrics::ServerMetric;

/// The handshakes of one listener.
#[derive(Debug)]
pub(super) struct Handshakes {
    limit: usize,
    limit_per_source: usize,
    /// Between two handshakes of one source, on average.
    interval: Option<Duration>,
    pending: AtomicUsize,
    sources: Mutex<Sources>,
}

#[derive(Debug, Default)]
struct Sources {
    known: HashMap<IpAddr, Source>,
    /// When those that matter no more were last forgotten.
    swept: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Source {
    pending: usize,
    /// When the rate's allowance will be full again (the generic cell rate algorithm's arrival time).
    full: Instant,
}

/// Why a handshake may not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Excess {
    #[error("too many handshakes are under way")]
    Listener,
    #[error("too many handshakes of its source are under way")]
    Source,
    #[error("too many handshakes a second of its source")]
    Rate,
}

/// A handshake under way; dropping it gives its place up.
#[derive(Debug)]
#[must_use = "the handshake counts as long as this value"]
pub(super) struct Pending<'a> {
    handshakes: &'a Handshakes,
    source: Option<IpAddr>,
    _counted: Gauge<'a>,
}

impl Handshakes {
    pub(super) fn new(config: &TunnelServer) -> Self {
        Self {
            limit: config.max_pending_handshakes,
            limit_per_source: config.max_pending_handshakes_per_source,
            interval: config.max_handshakes_per_second_per_source.map(interval),
            pending: AtomicUsize::new(0),
            sources: Mutex::default(),
        }
    }

    /// A place for a handshake from `address` (`None`: memory, which is no source).
    pub(super) fn enter<'a>(
        &'a self,
        address: Option<IpAddr>,
        metrics: &'a Block<ServerMetric>,
    ) -> Result<Pending<'a>, Excess> {
        let add = |pending: usize| (pending < self.limit).then(|| pending + 1);
        self.pending.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).map_err(|_| Excess::Listener)?;
        let mut entered =
            Pending { handshakes: self, source: None, _counted: Gauge::enter(metrics, ServerMetric::Pending) };
        if let Some(address) = address {
            let source = network(address);
            self.begin(source, Instant::now())?;
            entered.source = Some(source);
        }
        Ok(entered)
    }

    fn begin(&self, source: IpAddr, now: Instant) -> Result<(), Excess> {
        let mut sources = self.sources.lock();
        sources.sweep(now);
        let Source { pending, full } = sources.known.get(&source).copied().unwrap_or(Source { pending: 0, full: now });
        if pending >= self.limit_per_source {
            return Err(Excess::Source);
        }
        let full = match self.interval {
            None => now,
            Some(interval) => {
                let full = full.max(now) + interval;
                if full > now + BURST {
                    return Err(Excess::Rate);
                }
                full
            }
        };
        sources.known.insert(source, Source { pending: pending + 1, full });
        Ok(())
    }

    fn end(&self, source: IpAddr) {
        let now = Instant::now();
        let mut sources = self.sources.lock();
        let Some(known) = sources.known.get_mut(&source) else { return };
        known.pending = known.pending.saturating_sub(1);
        if known.is_forgotten(now) {
            sources.known.remove(&source);
        }
    }
}

impl Sources {
    /// Once a second: a source that has nothing under way matters as long as its allowance is not full.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now < swept + BURST) {
            return;
        }
        self.swept = Some(now);
        self.known.retain(|_, source| !source.is_forgotten(now));
    }
}

impl Source {
    fn is_forgotten(&self, now: Instant) -> bool {
        self.pending == 0 && self.full <= now
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.handshakes.pending.fetch_sub(1, Ordering::Relaxed);
        if let Some(source) = self.source {
            self.handshakes.end(source);
        }
    }
}

fn interval(rate: NonZeroU32) -> Duration {
    BURST / rate.get()
}

/// What connections of one source have in common: an IPv4 address, an IPv6 /64.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

/// The allowance of a source is a second's worth.
const BURST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use culvert_runtime::telemetry::Scope;

    use super::*;

    fn handshakes(limit: usize, per_source: usize, rate: u32) -> Handshakes {
        Handshakes {
            limit,
            limit_per_source: per_source,
            interval: NonZeroU32::new(rate).map(interval),
            pending: AtomicUsize::new(0),
            sources: Mutex::default(),
        }
    }

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn one_source_leaves_room_for_others() {
        let (handshakes, scope) = (handshakes(5, 3, 0), Scope::default());
        let metrics = scope.block();
        let enter = |address| handshakes.enter(address, &metrics);
        let mut held: Vec<_> = (0..3).map(|_| enter(ip("192.0.2.1")).unwrap()).collect();
        assert_eq!(enter(ip("::ffff:192.0.2.1")).unwrap_err(), Excess::Source, "the same address, mapped");
        held.push(enter(ip("192.0.2.2")).unwrap());
        held.push(enter(None).unwrap());
        assert_eq!(enter(ip("192.0.2.3")).unwrap_err(), Excess::Listener, "five in all");
        drop(held.remove(0));
        held.push(enter(ip("192.0.2.1")).unwrap());
        assert_eq!(scope.read(ServerMetric::Pending), 5, "as counted");
        drop(held);
        assert!(handshakes.sources.lock().known.is_empty(), "nothing is left of them");
        assert_eq!(
            (handshakes.pending.load(Ordering::Relaxed), scope.read(ServerMetric::Pending)),
            (0, 0),
            "at the end"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_has_so_many_a_second() {
        let (handshakes, scope) = (handshakes(10_000, 10_000, 100), Scope::default());
        let metrics = scope.block();
        let served = |address: &str| (0..1000).filter(|_| handshakes.enter(ip(address), &metrics).is_ok()).count();
        assert_eq!(served("2001:db8::1"), 100, "at once");
        assert_eq!(served("2001:db8::ffff:1"), 0, "the same network");
        assert_eq!(served("2001:db8:0:1::1"), 100, "another network");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(served("2001:db8::1"), 50, "after half a second");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(served("2001:db8::1"), 100, "no more than a second's worth is saved up");
    }

    #[tokio::test(start_paused = true)]
    async fn sources_are_forgotten() {
        let (handshakes, scope) = (handshakes(10, 10, 100), Scope::default());
        let metrics = scope.block();
        for second in 0..10 {
            for host in 0..1000_u32 {
                let address = IpAddr::from((second * 1000 + host).to_be_bytes());
                drop(handshakes.enter(Some(address), &metrics).unwrap());
            }
            let known = handshakes.sources.lock().known.len();
            assert!(known <= 2000, "second {second}: {known} sources are known");
            tokio::time::sleep(Duration::from_millis(1001)).await;
        }
    }
}
