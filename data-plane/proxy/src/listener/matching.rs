//! Which filter chain a connection gets.
//!
//! Envoy looks at one criterion after the other, in a fixed order. At each the chains that name the most specific value
//! that fits stay in, and there is no way back: a chain that fits everything but an earlier, less specific criterion is
//! not considered again.

use std::net::{IpAddr, SocketAddr};

use culvert_model::listener::{Cidr, FilterChainMatch, SourceType, TransportProtocol};
use smallvec::SmallVec;

/// What is known of a connection when its chain is chosen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival<'a> {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    /// The peer of the socket itself.
    pub(super) direct: IpAddr,
    pub(super) transport: TransportProtocol,
    /// Lower-case.
    pub(super) server_name: Option<&'a str>,
    pub(super) alpn: &'a [Vec<u8>],
}

/// The criteria of all chains of a listener.
#[derive(Debug)]
pub(super) struct ChainIndex {
    chains: Vec<FilterChainMatch>,
    used: Used,
}

/// Which criteria some chain names; the others are not looked at.
#[derive(Debug, Default)]
struct Used {
    destination_port: bool,
    destination: bool,
    server_names: bool,
    transport: bool,
    alpn: bool,
    direct_source: bool,
    source_type: bool,
    source: bool,
    source_port: bool,
}

type Candidates = SmallVec<[u32; 16]>;

impl ChainIndex {
    pub(super) fn compile<'a>(matches: impl Iterator<Item = &'a FilterChainMatch>) -> Self {
        let chains: Vec<_> = matches.cloned().collect();
        let any = |criterion: fn(&FilterChainMatch) -> bool| chains.iter().any(criterion);
        let used = Used {
            destination_port: any(|m| m.destination_port.is_some()),
            destination: any(|m| !m.prefix_ranges.is_empty()),
            server_names: any(|m| !m.server_names.is_empty()),
            transport: any(|m| m.transport_protocol.is_some()),
            alpn: any(|m| !m.application_protocols.is_empty()),
            direct_source: any(|m| !m.direct_source_prefix_ranges.is_empty()),
            source_type: any(|m| m.source_type != SourceType::Any),
            source: any(|m| !m.source_prefix_ranges.is_empty()),
            source_port: any(|m| !m.source_ports.is_empty()),
        };
        Self { chains, used }
    }

    /// The index of the chain; `None`: the default chain, if there is one.
    pub(super) fn find(&self, arrival: &Arrival<'_>) -> Option<usize> {
        let used = &self.used;
        let mut left: Candidates = (0..u32::try_from(self.chains.len()).unwrap_or(u32::MAX)).collect();
        if used.destination_port {
            self.narrow(&mut left, |m| exact(m.destination_port, arrival.local.port()));
        }
        if used.destination {
            self.narrow(&mut left, |m| longest(&m.prefix_ranges, arrival.local.ip()));
        }
        if used.server_names {
            self.narrow(&mut left, |m| server_name(m, arrival.server_name));
        }
        if used.transport {
            self.narrow(&mut left, |m| exact(m.transport_protocol, arrival.transport));
        }
        if used.alpn {
            self.narrow(&mut left, |m| application_protocol(m, arrival.alpn));
        }
        if used.direct_source {
            self.narrow(&mut left, |m| longest(&m.direct_source_prefix_ranges, arrival.direct));
        }
        if used.source_type {
            self.narrow(&mut left, |m| source_type(m.source_type, arrival));
        }
        if used.source {
            self.narrow(&mut left, |m| longest(&m.source_prefix_ranges, arrival.remote.ip()));
        }
        if used.source_port {
            self.narrow(&mut left, |m| {
                let listed = m.source_ports.contains(&arrival.remote.port());
                if m.source_ports.is_empty() { Some(0) } else { listed.then_some(1) }
            });
        }
        left.first().map(|index| *index as usize)
    }

    /// Keeps the candidates for which `rank` (`None`: does not fit) is highest.
    fn narrow(&self, left: &mut Candidates, rank: impl Fn(&FilterChainMatch) -> Option<usize>) {
        let mut best: Option<usize> = None;
        let mut kept = Candidates::new();
        for index in left.iter() {
            let Some(rank) = self.chains.get(*index as usize).and_then(&rank) else { continue };
            if best.is_none_or(|best| rank > best) {
                best = Some(rank);
                kept.clear();
            }
            if best == Some(rank) {
                kept.push(*index);
            }
        }
        *left = kept;
    }
}

/// An unset criterion fits everything and is least specific.
fn exact<T: PartialEq + Copy>(wanted: Option<T>, value: T) -> Option<usize> {
    match wanted {
        None => Some(0),
        Some(wanted) => (wanted == value).then_some(1),
    }
}

/// The longest prefix that holds `address`.
fn longest(ranges: &[Cidr], address: IpAddr) -> Option<usize> {
    if ranges.is_empty() {
        return Some(0);
    }
    ranges.iter().filter(|range| range.contains(address)).map(|range| usize::from(range.length) + 1).max()
}

/// An exact name, then the longest `*.suffix`, then none.
fn server_name(matches: &FilterChainMatch, name: Option<&str>) -> Option<usize> {
    if matches.server_names.is_empty() {
        return Some(0);
    }
    let name = name?;
    let rank = |pattern: &str| {
        if pattern == name {
            return Some(usize::MAX);
        }
        let suffix = pattern.strip_prefix('*')?;
        (name.len() > suffix.len() && name.ends_with(suffix)).then_some(suffix.len() + 1)
    };
    matches.server_names.iter().filter_map(|pattern| rank(pattern)).max()
}

/// The client's order of preference decides.
fn application_protocol(matches: &FilterChainMatch, offered: &[Vec<u8>]) -> Option<usize> {
    if matches.application_protocols.is_empty() {
        return Some(0);
    }
    let place =
        offered.iter().position(|offer| matches.application_protocols.iter().any(|wanted| **wanted == **offer))?;
    Some(usize::MAX - place)
}

fn source_type(wanted: SourceType, arrival: &Arrival<'_>) -> Option<usize> {
    let remote = arrival.remote.ip().to_canonical();
    let is_local = remote.is_loopback() || remote == arrival.local.ip().to_canonical();
    match wanted {
        SourceType::Any => Some(0),
        SourceType::SameIpOrLoopback => is_local.then_some(1),
        SourceType::External => (!is_local).then_some(1),
    }
}
