//! Handshakes under way: bounded per listener, per neighbourhood in number, and per source in rate.
//!
//! **A source is what one party can have many of for nothing**: an IPv4 address, or an IPv6 network of 64 bits. Who has one
//! IPv4 address often has its neighbours, so those of one /24 share the places.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::Arc;
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
    limit_per_neighbourhood: usize,
    /// Between two handshakes of one source, on average.
    interval: Option<Duration>,
    pending: AtomicUsize,
    sources: Mutex<Sources>,
}

#[derive(Debug, Default)]
struct Sources {
    /// Handshakes under way of each neighbourhood; none has zero.
    pending: HashMap<IpAddr, usize>,
    /// When the allowance of each source will be full again (the generic cell rate algorithm's arrival time).
    full: HashMap<IpAddr, Instant>,
    /// When those that matter no more were last forgotten.
    swept: Option<Instant>,
}

/// Why a handshake may not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Excess {
    #[error("too many handshakes are under way")]
    Listener,
    #[error("too many handshakes of its network are under way")]
    Source,
    #[error("too many handshakes a second of its source")]
    Rate,
}

/// The place of a handshake among those under way, from TLS on where that comes first; dropping it gives it up.
#[derive(Debug)]
#[must_use = "the handshake counts as long as this value"]
pub struct Place {
    handshakes: Arc<Handshakes>,
    neighbourhood: Option<IpAddr>,
}

/// A handshake of the tunnel's own protocol under way.
#[derive(Debug)]
#[must_use = "the handshake counts as long as this value"]
pub(super) struct Pending<'a> {
    _place: Place,
    _counted: Gauge<'a>,
}

impl<'a> Pending<'a> {
    pub(super) fn new(place: Place, metrics: &'a Block<ServerMetric>) -> Self {
        Self { _place: place, _counted: Gauge::enter(metrics, ServerMetric::Pending) }
    }
}

impl Handshakes {
    pub(super) fn new(config: &TunnelServer) -> Self {
        Self {
            limit: config.max_pending_handshakes,
            limit_per_neighbourhood: config.max_pending_handshakes_per_source,
            interval: config.max_handshakes_per_second_per_source.map(interval),
            pending: AtomicUsize::new(0),
            sources: Mutex::default(),
        }
    }

    /// A place for a handshake from `address` (`None`: memory, which is no source).
    pub(super) fn enter(self: &Arc<Self>, address: Option<IpAddr>) -> Result<Place, Excess> {
        let add = |pending: usize| (pending < self.limit).then(|| pending + 1);
        self.pending.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).map_err(|_| Excess::Listener)?;
        let mut entered = Place { handshakes: Arc::clone(self), neighbourhood: None };
        if let Some(address) = address {
            self.begin(address, Instant::now())?;
            entered.neighbourhood = Some(neighbourhood(address));
        }
        Ok(entered)
    }

    fn begin(&self, address: IpAddr, now: Instant) -> Result<(), Excess> {
        let mut sources = self.sources.lock();
        sources.sweep(now);
        let (source, neighbourhood) = (network(address), neighbourhood(address));
        let pending = sources.pending.get(&neighbourhood).copied().unwrap_or(0);
        if pending >= self.limit_per_neighbourhood {
            return Err(Excess::Source);
        }
        if let Some(interval) = self.interval {
            let full = sources.full.get(&source).copied().unwrap_or(now).max(now) + interval;
            if full > now + BURST {
                return Err(Excess::Rate);
            }
            sources.full.insert(source, full);
        }
        sources.pending.insert(neighbourhood, pending + 1);
        Ok(())
    }

    fn end(&self, neighbourhood: IpAddr) {
        let mut sources = self.sources.lock();
        let Entry::Occupied(mut pending) = sources.pending.entry(neighbourhood) else { return };
        *pending.get_mut() = pending.get().saturating_sub(1);
        if *pending.get() == 0 {
            pending.remove();
        }
    }
}

impl Sources {
    /// Once a second: a source matters as long as its allowance is not full.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now < swept + BURST) {
            return;
        }
        self.swept = Some(now);
        self.full.retain(|_, full| *full > now);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.handshakes.pending.fetch_sub(1, Ordering::Relaxed);
        if let Some(neighbourhood) = self.neighbourhood {
            self.handshakes.end(neighbourhood);
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

/// Who shares the places of handshakes under way: an IPv4 /24, an IPv6 /64.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match network(address) {
        IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() >> 8 << 8)),
        address => address,
    }
}

/// The allowance of a source is a second's worth.
const BURST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use culvert_runtime::telemetry::Scope;

    use super::*;

    fn handshakes(limit: usize, per_neighbourhood: usize, rate: u32) -> Arc<Handshakes> {
        Arc::new(Handshakes {
            limit,
            limit_per_neighbourhood: per_neighbourhood,
            interval: NonZeroU32::new(rate).map(interval),
            pending: AtomicUsize::new(0),
            sources: Mutex::default(),
        })
    }

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn one_source_leaves_room_for_others() {
        let (handshakes, scope) = (handshakes(5, 3, 0), Scope::default());
        let metrics = scope.block();
        let enter = |address| handshakes.enter(address).map(|place| Pending::new(place, &metrics));
        let mut held: Vec<_> = (0..3).map(|_| enter(ip("192.0.2.1")).unwrap()).collect();
        assert_eq!(enter(ip("::ffff:192.0.2.1")).unwrap_err(), Excess::Source, "the same address, mapped");
        assert_eq!(enter(ip("192.0.2.254")).unwrap_err(), Excess::Source, "of the same /24");
        held.push(enter(ip("192.0.3.1")).unwrap());
        held.push(enter(None).unwrap());
        assert_eq!(enter(ip("198.51.100.3")).unwrap_err(), Excess::Listener, "five in all");
        drop(held.remove(0));
        held.push(enter(ip("192.0.2.1")).unwrap());
        assert_eq!(scope.read(ServerMetric::Pending), 5, "as counted");
        drop(held);
        assert!(handshakes.sources.lock().pending.is_empty(), "nothing is left of them");
        assert_eq!(
            (handshakes.pending.load(Ordering::Relaxed), scope.read(ServerMetric::Pending)),
            (0, 0),
            "at the end"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_has_so_many_a_second() {
        let handshakes = handshakes(10_000, 10_000, 100);
        let served = |address: &str| (0..1000).filter(|_| handshakes.enter(ip(address)).is_ok()).count();
        assert_eq!(served("2001:db8::1"), 100, "at once");
        assert_eq!(served("2001:db8::ffff:1"), 0, "the same network");
        assert_eq!(served("2001:db8:0:1::1"), 100, "another network");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(served("2001:db8::1"), 50, "after half a second");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(served("2001:db8::1"), 100, "no more than a second's worth is saved up");
    }

    /// With what a listener allows by default: a flood of ten thousand connections in a second, each of which says nothing.
    #[tokio::test(start_paused = true)]
    async fn a_flood_from_one_source_takes_64_places_and_others_join() {
        let handshakes = handshakes(1024, 64, 500);
        let (mut held, mut excess) = (Vec::new(), [0_u32; 3]);
        let mut others = 0;
        for n in 0..10_000_u32 {
            match handshakes.enter(ip(&format!("192.0.2.{}", n % 4))) {
                Ok(pending) => held.push(pending),
                Err(excess_of) => excess[excess_of as usize] += 1,
            }
            if n.is_multiple_of(100) {
                others += u32::from(handshakes.enter(ip(&format!("198.51.100.{}", n / 100))).is_ok());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        assert_eq!(held.len(), 64, "places that the flood takes");
        assert_eq!(excess[Excess::Source as usize], 10_000 - 64, "closed at once: {excess:?}");
        assert_eq!(others, 100, "others that join meanwhile");
        drop(held);
        // And one that finishes each handshake at once, which takes no places: its rate counts.
        let began = handshakes.enter(ip("203.0.113.1")).is_ok();
        let let_in = (1..10_000).filter(|_| handshakes.enter(ip("203.0.113.1")).is_ok()).count();
        assert!(began && let_in == 499, "expected a second's allowance of 500, saw {let_in} more");
        assert!(handshakes.enter(ip("203.0.113.2")).is_ok(), "its neighbour has an allowance of its own");
    }

    #[tokio::test(start_paused = true)]
    async fn sources_are_forgotten() {
        let handshakes = handshakes(10, 10, 100);
        for second in 0..10 {
            for host in 0..1000_u32 {
                let address = IpAddr::from((second * 1000 + host).to_be_bytes());
                drop(handshakes.enter(Some(address)).unwrap());
            }
            let known = {
                let sources = handshakes.sources.lock();
                assert!(sources.pending.is_empty(), "second {second}: none is under way");
                sources.full.len()
            };
            assert!(known <= 2000, "second {second}: {known} sources are known");
            tokio::time::sleep(Duration::from_millis(1001)).await;
        }
    }
}
