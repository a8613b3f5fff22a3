//! `culvert.tunnel.v1.TunnelDestinations`: where what comes through a tunnel may be sent.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use culvert_api::culvert::tunnel::v1 as api;

use crate::listener::{Cidr, cidr};
use crate::report::Report;

/// Addresses that hosts may have which requests from tunnels go to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Destinations {
    /// Empty: any but the dangerous ones.
    allowed: Vec<Cidr>,
}

impl Destinations {
    /// **Link-local and metadata addresses are allowed only by a range that lies within them**: one that is wider was
    /// hardly meant for them.
    #[must_use]
    pub fn allow(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let address = match embedded(address) {
            Some(embedded) if is_dangerous(embedded) => embedded,
            _ => address,
        };
        let mut naming = self.allowed.iter().filter(|range| range.contains(address));
        match DANGEROUS.iter().find(|range| range.contains(address)) {
            Some(dangerous) => naming.any(|range| dangerous.covers(range)),
            None => self.allowed.is_empty() || naming.next().is_some(),
        }
    }
}

fn is_dangerous(address: IpAddr) -> bool {
    DANGEROUS.iter().any(|range| range.contains(address))
}

/// The IPv4 address where a network may deliver what is sent to that IPv6 one: NAT64 (RFC 6052, 2.1), 6to4 (RFC 3056, 2) and the
/// compatible addresses of RFC 4291, 2.5.5.1.
fn embedded(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(address) = address else { return None };
    let from = |high: u16, low: u16| Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)).into());
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            from(high, low)
        }
        _ => None,
    }
}

/// Parses the `TunnelDestinations` at hand.
pub(crate) fn destinations(report: &mut Report, message: &api::TunnelDestinations) -> Destinations {
    Destinations { allowed: report.items("allowed", &message.allowed, cidr) }
}

/// Link-local addresses, and those at which clouds serve instances' metadata: whoever asks there from the machine gets
/// the machine's credentials.
static DANGEROUS: LazyLock<Vec<Cidr>> = LazyLock::new(|| {
    [
        (IpAddr::from([169, 254, 0, 0]), 16),
        (IpAddr::from([100, 100, 100, 200]), 32),
        (IpAddr::from([168, 63, 129, 16]), 32),
        (IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 0]), 10),
        (IpAddr::from([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]), 128),
        (IpAddr::from([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23]), 128),
        (IpAddr::from([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]), 128),
        (IpAddr::from([0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe]), 128),
    ]
    .map(|(address, length)| Cidr { address, length })
    .to_vec()
});

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(ranges: &[(&str, u8)], address: &str) -> bool {
        let range = |(address, length): &(&str, u8)| Cidr { address: address.parse().unwrap(), length: *length };
        let destinations = Destinations { allowed: ranges.iter().map(range).collect() };
        destinations.allow(address.parse().unwrap())
    }

    #[test]
    fn metadata_is_reached_only_by_name() {
        let ten: &[(&str, u8)] = &[("10.0.0.0", 8)];
        for (ranges, address, expected) in [
            (&[] as &[_], "10.1.2.3", true),
            (&[], "127.0.0.1", true),
            (&[], "::1", true),
            (&[], "169.254.169.254", false),
            (&[], "::ffff:169.254.169.254", false),
            (&[], "169.254.0.1", false),
            (&[], "fe80::1", false),
            (&[], "fd00:ec2::254", false),
            (&[], "fd00:ec2::23", false),
            (&[], "fd20:ce::254", false),
            (&[], "fd00:c1::a9fe:a9fe", false),
            (&[], "64:ff9b::a9fe:a9fe", false),
            (&[], "2002:a9fe:a9fe::1", false),
            (&[], "::a9fe:a9fe", false),
            (&[], "64:ff9b::a01:203", true),
            (&[("169.254.169.254", 32)], "64:ff9b::a9fe:a9fe", true),
            (&[("::", 0)], "64:ff9b::a9fe:a9fe", false),
            (&[("64:ff9b::", 96)], "64:ff9b::a01:203", true),
            (&[], "100.100.100.200", false),
            (&[], "168.63.129.16", false),
            (&[], "100.100.100.201", true),
            (ten, "10.1.2.3", true),
            (ten, "::ffff:10.1.2.3", true),
            (ten, "11.1.2.3", false),
            (ten, "::1", false),
            (&[("0.0.0.0", 0)], "8.8.8.8", true),
            (&[("0.0.0.0", 0)], "169.254.169.254", false),
            (&[("0.0.0.0", 0)], "::1", false),
            (&[("169.254.169.254", 32)], "169.254.169.254", true),
            (&[("169.254.0.0", 16)], "169.254.169.254", true),
            (&[("169.254.169.254", 32)], "169.254.169.253", false),
            (&[("169.254.169.254", 32)], "10.0.0.1", false),
        ] {
            assert_eq!(allowed(ranges, address), expected, "{address} where {ranges:?} is allowed");
        }
    }
}
