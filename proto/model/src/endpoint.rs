//! `envoy.config.endpoint.v3.ClusterLoadAssignment`: localities by priority, and endpoints as configured.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use culvert_api::envoy::config::core::v3 as core;
use culvert_api::envoy::config::endpoint::v3 as api;

use crate::Name;
use crate::metadata;
use crate::report::{Parsed, Report, clip};
use crate::scalar;

#[derive(Debug, Clone, PartialEq)]
pub struct Endpoints {
    pub cluster: Name,
    /// Sorted by priority, then in configuration order.
    pub localities: Vec<Locality>,
    /// `policy.drop_overloads`: of 1,000,000, with its category.
    pub drops: Vec<(Name, u32)>,
    /// Percent; `None`: the cluster's.
    pub overprovisioning_factor: Option<u32>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Locality {
    pub region: Name,
    pub zone: Name,
    pub sub_zone: Name,
    pub priority: u32,
    /// 0: no traffic when localities are weighted. Default 1 then.
    pub weight: Option<u32>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    pub address: Address,
    /// For SNI, `auto_host_rewrite` and logs.
    pub hostname: Arc<str>,
    /// 1 to 2^32 - 1. Default 1.
    pub weight: u32,
    pub health: Health,
    /// `metadata.filter_metadata`, as proto3 JSON objects.
    pub metadata: Arc<std::collections::BTreeMap<String, String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    Ip(SocketAddr),
    /// To be resolved (STRICT_DNS, LOGICAL_DNS).
    Name {
        host: Arc<str>,
        port: u16,
    },
    /// A unix socket: an agent on this machine that configuration comes from. With `@` in front it is one without a file.
    Path(Arc<str>),
}

impl Address {
    fn port(&self) -> Option<u16> {
        match self {
            Self::Ip(address) => Some(address.port()),
            Self::Name { port, .. } => Some(*port),
            Self::Path(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
            Self::Path(path) => path.fmt(f),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Healthy,
    Degraded,
    /// Unhealthy, timeout.
    Unhealthy,
    /// Keeps its connections, gets no new ones.
    Draining,
}

/// Parses a `ClusterLoadAssignment` as EDS delivers it: addresses only, no names.
#[must_use]
pub fn parse(message: &api::ClusterLoadAssignment) -> Parsed<Endpoints> {
    let mut report = Report::default();
    report.check(message);
    let endpoints = assignment(&mut report, message, Names::Refused);
    report.finish(endpoints)
}

/// What an address may be, beside an IP address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    /// A name, which somebody then resolves.
    Resolved,
    /// A unix socket.
    Paths,
    Refused,
}

/// Parses the `ClusterLoadAssignment` at hand.
pub(crate) fn assignment(report: &mut Report, message: &api::ClusterLoadAssignment, names: Names) -> Option<Endpoints> {
    let cluster = scalar::name(report, "cluster_name", &message.cluster_name);
    let mut seen = HashSet::new();
    let mut localities =
        report.items("endpoints", &message.endpoints, |report, message| locality(report, message, names, &mut seen));
    // Stable: configuration order within a priority. Priorities may have gaps, as in Envoy: an empty one is passed over.
    localities.sort_by_key(|locality| locality.priority);
    for priority in localities.chunk_by(|left, right| left.priority == right.priority) {
        let weights = priority.iter().map(|locality| locality.weight.unwrap_or(1));
        check_sum(report, "endpoints", "localities of one priority", weights);
    }
    let policy = message.policy.as_ref();
    let (drops, overprovisioning_factor) = policy.map_or((Vec::new(), None), |policy| {
        report.field("policy", |report| {
            let drops = report.items("drop_overloads", &policy.drop_overloads, drop_overload);
            let factor = policy.overprovisioning_factor;
            (drops, factor.map(|factor| scalar::at_least(report, "overprovisioning_factor", Some(factor), 1, 140)))
        })
    });
    Some(Endpoints { cluster: cluster?, localities, drops, overprovisioning_factor })
}

fn drop_overload(
    report: &mut Report,
    message: &api::cluster_load_assignment::policy::DropOverload,
) -> Option<(Name, u32)> {
    let category = scalar::name(report, "category", &message.category)?;
    let percentage = message.drop_percentage.as_ref();
    Some((category, percentage.map_or(0, |percentage| scalar::fraction(report, "drop_percentage", percentage))))
}

fn locality(
    report: &mut Report,
    message: &api::LocalityLbEndpoints,
    names: Names,
    seen: &mut HashSet<Address>,
) -> Option<Locality> {
    let priority = scalar::within(report, "priority", Some(message.priority), 0, MAX_PRIORITY, 0);
    let weight = message.load_balancing_weight;
    let weight = weight.map(|weight| scalar::at_least(report, "load_balancing_weight", Some(weight), 1, 1));
    let endpoints = report.items("lb_endpoints", &message.lb_endpoints, |report, message| {
        let endpoint = endpoint(report, message, names)?;
        if !seen.insert(endpoint.address.clone()) {
            report.warn(format!("{} stands here a second time; the first one counts", endpoint.address));
            return None;
        }
        Some(endpoint)
    });
    let weights = endpoints.iter().map(|endpoint| endpoint.weight);
    check_sum(report, "lb_endpoints", "endpoints of one locality", weights);
    let locality = message.locality.clone().unwrap_or_default();
    let (region, zone, sub_zone) = (locality.region.into(), locality.zone.into(), locality.sub_zone.into());
    Some(Locality { region, zone, sub_zone, priority, weight, endpoints })
}

/// Envoy: the sum of weights fits 32 bits.
fn check_sum(report: &mut Report, field: &'static str, of: &str, weights: impl Iterator<Item = u32>) {
    let sum: u64 = weights.map(u64::from).sum();
    if u32::try_from(sum).is_err() {
        report.error_at(field, format!("the weights of the {of} add up to {sum}, more than {}", u32::MAX));
    }
}

fn endpoint(report: &mut Report, message: &api::LbEndpoint, names: Names) -> Option<Endpoint> {
    use api::lb_endpoint::HostIdentifier;
    let weight = scalar::at_least(report, "load_balancing_weight", message.load_balancing_weight, 1, 1);
    let health = scalar::enumeration::<core::HealthStatus>(report, "health_status", message.health_status);
    let Some(HostIdentifier::Endpoint(endpoint)) = &message.host_identifier else {
        if message.host_identifier.is_none() {
            report.error_at("endpoint", "is missing");
        }
        return None;
    };
    let address = report.field("endpoint", |report| {
        let Some(address) = &endpoint.address else {
            report.error_at("address", "is missing");
            return None;
        };
        let address = report.field("address", |report| address_of(report, address, names))?;
        if address.port() == Some(0) {
            report.error_at("address", "port 0 cannot be dialled; give a port_value");
            return None;
        }
        Some(address)
    });
    let health = match health? {
        core::HealthStatus::Unknown | core::HealthStatus::Healthy => Health::Healthy,
        core::HealthStatus::Degraded => Health::Degraded,
        core::HealthStatus::Unhealthy | core::HealthStatus::Timeout => Health::Unhealthy,
        core::HealthStatus::Draining => Health::Draining,
    };
    let metadata = Arc::new(metadata::as_json(message.metadata.as_ref()));
    let hostname = report.field("endpoint", |report| scalar::header_value(report, "hostname", &endpoint.hostname));
    Some(Endpoint { address: address?, hostname: hostname?, weight, health, metadata })
}

/// Parses the `Address` at hand. Port 0 is left for the caller to judge.
pub(crate) fn address_of(report: &mut Report, message: &core::Address, names: Names) -> Option<Address> {
    use core::address::Address as Kind;
    match message.address.as_ref() {
        Some(Kind::SocketAddress(socket)) => {
            report.field("socket_address", |report| socket_address(report, socket, names))
        }
        Some(Kind::Pipe(pipe)) if names == Names::Paths => report.field("pipe", |report| {
            // Linux, unix(7): with the zero behind it.
            if pipe.path.is_empty() || pipe.path.len() > 107 || pipe.path.contains('\0') {
                report.error_at("path", "is no path of a unix socket: from 1 to 107 bytes");
                return None;
            }
            report.warn("configuration is fetched from it; a request that is routed there finds no host");
            Some(Address::Path(pipe.path.as_str().into()))
        }),
        Some(Kind::Pipe(_)) => {
            report.error_at(
                "pipe",
                "unix sockets are dialled in clusters of type STATIC and not served; use a socket_address",
            );
            None
        }
        // The coverage tables have refused it.
        Some(Kind::EnvoyInternalAddress(_)) => None,
        None => {
            report.error("names no address; set socket_address");
            None
        }
    }
}

/// Parses the `SocketAddress` at hand.
pub(crate) fn socket_address(report: &mut Report, message: &core::SocketAddress, names: Names) -> Option<Address> {
    use core::socket_address::{PortSpecifier, Protocol};
    if scalar::enumeration::<Protocol>(report, "protocol", message.protocol)? == Protocol::Udp {
        report.error_at(
            "protocol",
            "UDP is for the addresses of listeners; leave it out: a host is asked as its proxy asks",
        );
        return None;
    }
    if !message.resolver_name.is_empty() {
        report.error_at("resolver_name", "it decides where the address leads; rc:// addresses of listeners have one");
        return None;
    }
    let port = match message.port_specifier.as_ref() {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(*port).ok(),
        Some(PortSpecifier::NamedPort(_)) => return None,
        None => {
            report.error_at("port_value", "is missing");
            return None;
        }
    };
    let Some(port) = port else {
        report.error_at("port_value", "is more than 65535");
        return None;
    };
    let host = message.address.as_str();
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Some(Address::Ip(SocketAddr::new(ip, port)));
    }
    match names {
        Names::Resolved if is_host_name(host) => Some(Address::Name { host: host.to_ascii_lowercase().into(), port }),
        Names::Resolved => {
            report.error_at("address", format!("{:?} is neither an IP address nor a host name", clip(host)));
            None
        }
        Names::Refused | Names::Paths if host.contains('%') => {
            report.error_at("address", format!("{:?}: zones of IPv6 addresses are not understood", clip(host)));
            None
        }
        Names::Refused | Names::Paths => {
            let reason = "is not an IP address; names are resolved in STRICT_DNS and LOGICAL_DNS clusters only";
            report.error_at("address", format!("{:?} {reason}", clip(host)));
            None
        }
    }
}

/// RFC 1123 §2.1, and underscores, which resolvers accept.
pub(crate) fn is_host_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = |label: &str| {
        let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        !label.is_empty() && label.len() <= 63 && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    // All digits and dots would be an address that did not parse: 127.0.0.256.
    name.len() <= 253 && name.split('.').all(label) && name.bytes().any(|byte| byte.is_ascii_alphabetic())
}

const MAX_PRIORITY: u32 = 128;
