//! `envoy.config.listener.v3.Listener`: addresses, filter chains and which of them a connection gets.

mod parse;
mod reverse;
mod tcp_proxy;
#[cfg(test)]
mod tests;
mod udp_proxy;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_api::envoy::config::listener::v3 as api;

use crate::Name;
use crate::access_log::AccessLog;
use crate::extension::Discovery;
use crate::http::HttpConnectionManager;
use crate::report::{Parsed, Report};
use crate::tls::DownstreamTls;
use crate::tunnel::TunnelServer;

pub(crate) use parse::{cidr, listener, socket, typed_filter};
pub use reverse::ReverseAddress;
pub use udp_proxy::{DatagramBuffer, UdpProxy, UdpTunneling};

#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    pub name: Name,
    /// `None`: `bind_to_port: false` or `rc://`, a listener that only hosts what tunnels bring.
    pub address: Option<SocketAddr>,
    /// `rc://` addresses: where it dials itself.
    pub reverse: Vec<ReverseAddress>,
    pub filter_chains: Vec<Arc<FilterChain>>,
    pub default_filter_chain: Option<Arc<FilterChain>>,
    /// `envoy.filters.listener.tls_inspector` is listed, or a chain matches on SNI, ALPN or transport protocol.
    pub inspect_tls: bool,
    /// Until a filter chain is chosen. Default 15 s; zero: no limit.
    pub listener_filters_timeout: Duration,
    pub buffer_limit: u32,
    pub access_log: Vec<Arc<AccessLog>>,
    pub tcp_backlog: u32,
    /// Connections that a worker accepts before whatever else it has to do has a turn; at least 1. Default 4. (Envoy's: all
    /// that wait.)
    pub accepts_per_event: u32,
    /// Open at once; no field of a `Listener` sets it.
    pub max_connections: Option<u64>,
    pub drain_modify_only: bool,
    /// `protocol: UDP`: what is done with datagrams. There are no filter chains then.
    pub udp: Option<Arc<UdpProxy>>,
    /// `::` is IPv4's wildcard too.
    pub ipv4_compat: bool,
}

impl Listener {
    /// Where it is bound: TCP and UDP may have one port each.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        let (transport, ipv4_compat) = (self.transport(), self.ipv4_compat);
        self.address.map(|address| Place { address, transport, ipv4_compat })
    }

    #[must_use]
    pub const fn transport(&self) -> Transport {
        if self.udp.is_some() { Transport::Udp } else { Transport::Tcp }
    }
}

/// See [`Listener::place`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub address: SocketAddr,
    pub transport: Transport,
    pub ipv4_compat: bool,
}

impl Place {
    /// Whether the two cannot be bound at once. Port 0 is another port each time.
    #[must_use]
    pub fn collides(self, other: Self) -> bool {
        self.address == other.address && self.transport == other.transport && self.address.port() != 0
    }
}

/// What a listener's socket takes: connections or datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    Tcp,
    Udp,
}

#[derive(Debug, Clone, PartialEq)]
pub struct FilterChain {
    pub name: Name,
    pub matches: FilterChainMatch,
    pub tls: Option<Arc<DownstreamTls>>,
    /// `transport_socket_connect_timeout`: the TLS handshake. Default 10 s.
    pub transport_timeout: Duration,
    /// The terminal filter; non-terminal network filters are refused or warned about while parsing.
    pub filter: NetworkFilter,
    /// As configured, where some of it came by name (ECDS).
    pub asked: Option<Arc<Self>>,
}

/// `FilterChainMatch`. Criteria are tried in Envoy's order: destination port, destination address, server name,
/// transport protocol, application protocol, directly connected source, source type, source address, source port;
/// at each step the most specific that matches wins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct FilterChainMatch {
    pub destination_port: Option<u16>,
    pub prefix_ranges: Vec<Cidr>,
    /// Lower-case; `*.example.com` is a suffix.
    pub server_names: Vec<Arc<str>>,
    pub transport_protocol: Option<TransportProtocol>,
    pub application_protocols: Vec<Arc<[u8]>>,
    pub source_type: SourceType,
    pub direct_source_prefix_ranges: Vec<Cidr>,
    pub source_prefix_ranges: Vec<Cidr>,
    pub source_ports: Vec<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransportProtocol {
    RawBuffer,
    Tls,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum SourceType {
    #[default]
    Any,
    SameIpOrLoopback,
    External,
}

/// An address prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    pub address: std::net::IpAddr,
    pub length: u8,
}

impl Cidr {
    /// Whether the address lies in it; an IPv4 address that is mapped into IPv6 counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: std::net::IpAddr) -> bool {
        self.holds(address.to_canonical(), u8::MAX)
    }

    /// Whether all of the other range lies in it.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.holds(other.address, other.length)
    }

    fn holds(&self, address: std::net::IpAddr, length: u8) -> bool {
        self.address.is_ipv4() == address.is_ipv4()
            && self.length <= length
            && parse::masked(address, self.length) == self.address
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum NetworkFilter {
    Http(Arc<HttpConnectionManager>),
    Tcp(Arc<TcpProxy>),
    Tunnel(Arc<TunnelServer>),
    /// It comes by name; see [`Listener::resolve`].
    Discovered(Arc<Discovery<Self>>),
}

/// `TcpProxy`.
#[derive(Debug, Clone, PartialEq)]
pub struct TcpProxy {
    pub stat_prefix: Name,
    pub clusters: crate::route::ClusterChoice,
    /// Neither side sent anything. Default 1 h; `None`: no limit.
    pub idle_timeout: Option<Duration>,
    pub max_connect_attempts: u32,
    pub max_downstream_connection_duration: Option<Duration>,
    pub access_log: Vec<Arc<AccessLog>>,
}

/// Parses a `Listener`.
#[must_use]
pub fn parse(message: &api::Listener) -> Parsed<Listener> {
    let mut report = Report::default();
    report.check(message);
    let listener = listener(&mut report, message);
    report.finish(listener)
}
