//! `culvert.tunnel.v1.TunnelDestinations`: where what comes through a tunnel may be sent.

use std::net::IpAddr;
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
        let mut naming = self.allowed.iter().filter(|range| range.contains(address));
        match DANGEROUS.iter().find(|range| range.contains(address)) {
            Some(dangerous) => naming.any(|range| dangerous.covers(range)),
            None => self.allowed.is_empty() || naming.next().is_some(),
        }
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
