//! `envoy.config.cluster.v3.Cluster`.

mod balancer;
mod custom;
mod dns;
mod parse;
mod protocol;
pub mod reverse;
mod shared;
#[cfg(test)]
mod tests;
mod transport;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_api::envoy::config::cluster::v3 as api;

use crate::Name;
use crate::endpoint::Endpoints;
use crate::http::{Http1Options, Http2Options};
use crate::report::{Parsed, Report};
use crate::source::ConfigSource;
use crate::tls::UpstreamTls;

pub(crate) use parse::cluster;
pub use reverse::ReverseConnection;
pub use shared::TunnelSource;
pub use transport::TransportMatch;

#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    pub name: Name,
    /// `alt_stat_name`, else the name.
    pub stat_name: Name,
    pub discovery: Discovery,
    /// Default 5 s.
    pub connect_timeout: Duration,
    pub balancer: Balancer,
    /// Index: routing priority (default, high).
    pub breakers: [Breakers; 2],
    /// Of connections to all endpoints, if [`Self::transports`] says nothing else.
    pub tls: Option<Arc<UpstreamTls>>,
    /// Which endpoints TLS is for; see [`Self::secures`].
    pub transports: Arc<[TransportMatch]>,
    /// `auto_sni`; never without [`Self::tls`].
    pub auto_sni: Option<AutoSni>,
    pub protocol: UpstreamProtocol,
    pub http1: Http1Options,
    pub http2: Http2Options,
    /// Pooled connection without requests. Default 1 h; `None`: no limit.
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    pub max_requests_per_connection: Option<u32>,
    pub buffer_limit: u32,
    pub tcp_keepalive: Option<TcpKeepalive>,
    pub source_address: Option<SocketAddr>,
    /// Default 50: below it traffic goes to all hosts, healthy or not.
    pub panic_threshold_percent: u8,
    pub locality_weighted: bool,
    /// Percent, default 140.
    pub overprovisioning_factor: u32,
    pub close_connections_on_host_removal: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Discovery {
    /// Addresses only.
    Static(Arc<Endpoints>),
    /// Every address of every name is a host.
    StrictDns {
        endpoints: Arc<Endpoints>,
        dns: DnsOptions,
    },
    /// One name; the first address of the moment is used for new connections.
    LogicalDns {
        endpoints: Arc<Endpoints>,
        dns: DnsOptions,
    },
    Eds {
        service_name: Name,
        config: ConfigSource,
    },
    /// Agents in Envoy's dialect, whichever cluster they claim.
    Reverse(ReverseConnection),
    /// Agents that registered as other clusters. Not empty.
    Tunnels(Vec<TunnelSource>),
}

impl Cluster {
    /// A STATIC cluster of that name without endpoints, everything else as by default.
    #[must_use]
    pub fn bare(name: &str) -> Option<Self> {
        parse(&api::Cluster { name: name.to_owned(), ..api::Cluster::default() }).value.ok()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsOptions {
    /// Default 5 s.
    pub refresh: Duration,
    pub respect_ttl: bool,
    pub family: DnsFamily,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsFamily {
    Auto,
    V4Only,
    V6Only,
    V4Preferred,
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balancer {
    RoundRobin,
    /// Power of `choices` (default 2).
    LeastRequest {
        choices: u32,
    },
    Random,
}

/// `CircuitBreakers.Thresholds`. Defaults: 1024, 1024, 1024, 3.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Breakers {
    pub max_connections: u32,
    pub max_pending_requests: u32,
    pub max_requests: u32,
    pub max_retries: u32,
    /// Takes the place of `max_retries`.
    pub retry_budget: Option<RetryBudget>,
    pub track_remaining: bool,
}

impl Default for Breakers {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
            track_remaining: false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Of active and pending requests. Default 20.
    pub percent: f64,
    /// Default 3.
    pub min_concurrency: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamProtocol {
    Http1,
    Http2,
    /// ALPN decides (TLS only).
    Auto,
    /// The downstream's protocol.
    Downstream,
}

/// By which name a request has its upstream addressed in TLS: the one that it asks for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoSni {
    /// `override_auto_sni_header`, lower-case. `None`, or not in the request: its authority.
    pub header: Option<Arc<str>>,
    /// `auto_san_validation`: the certificate must be for that name.
    pub validates: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpKeepalive {
    pub probes: Option<u32>,
    pub time: Option<Duration>,
    pub interval: Option<Duration>,
}

/// Parses a `Cluster`.
#[must_use]
pub fn parse(message: &api::Cluster) -> Parsed<Cluster> {
    let mut report = Report::default();
    report.check(message);
    let cluster = cluster(&mut report, message);
    report.finish(cluster)
}
