//! Values that several test modules are made of.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::Name;
use culvert_model::cluster::{Balancer, Cluster, Discovery, DnsFamily, DnsOptions, UpstreamProtocol};
use culvert_model::endpoint::{Address, Endpoint, Endpoints, Health, Locality};
use culvert_model::http::{Http1Options, Http2Options};
use culvert_model::route::Priority;
use culvert_model::source::{ConfigSource, ConfigSourceKind};
use culvert_model::tunnel::TunnelProtocol;

use crate::TunnelClaim;
use crate::pool::{DownstreamProtocol, PickContext};

pub(crate) fn endpoint(address: Address) -> Endpoint {
    Endpoint { address, hostname: "".into(), weight: 1, health: Health::Healthy, metadata: Arc::default() }
}

pub(crate) fn endpoints(addresses: impl IntoIterator<Item = Address>) -> Arc<Endpoints> {
    let locality = Locality {
        region: "".into(),
        zone: "".into(),
        sub_zone: "".into(),
        priority: 0,
        weight: None,
        endpoints: addresses.into_iter().map(endpoint).collect(),
    };
    Arc::new(Endpoints {
        cluster: "test".into(),
        localities: vec![locality],
        drops: Vec::new(),
        overprovisioning_factor: None,
    })
}

pub(crate) fn ips(addresses: &[SocketAddr]) -> Arc<Endpoints> {
    endpoints(addresses.iter().map(|address| Address::Ip(*address)))
}

pub(crate) fn names(names: &[&str]) -> Arc<Endpoints> {
    endpoints(names.iter().map(|name| Address::Name { host: (*name).into(), port: 80 }))
}

pub(crate) fn dns() -> DnsOptions {
    DnsOptions { refresh: Duration::from_secs(5), respect_ttl: false, family: DnsFamily::V4Only }
}

pub(crate) fn eds() -> Discovery {
    let config = ConfigSource { kind: ConfigSourceKind::Ads, initial_fetch_timeout: Duration::from_secs(15) };
    Discovery::Eds { service_name: "test".into(), config }
}

/// Of addresses that stand in the configuration, HTTP/1, all defaults.
pub(crate) fn cluster(name: &str, addresses: &[SocketAddr]) -> Cluster {
    Cluster {
        name: Name::from(name),
        stat_name: Name::from(name),
        discovery: Discovery::Static(ips(addresses)),
        connect_timeout: Duration::from_secs(5),
        balancer: Balancer::RoundRobin,
        breakers: Default::default(),
        tls: None,
        protocol: UpstreamProtocol::Http1,
        http1: Http1Options::default(),
        http2: Http2Options::default(),
        idle_timeout: Some(Duration::from_secs(3600)),
        max_connection_duration: None,
        max_requests_per_connection: None,
        buffer_limit: 1024 * 1024,
        tcp_keepalive: None,
        source_address: None,
        panic_threshold_percent: 50,
        locality_weighted: false,
        overprovisioning_factor: 140,
        close_connections_on_host_removal: false,
    }
}

pub(crate) fn claim(cluster: &str, agent: &str) -> TunnelClaim {
    TunnelClaim {
        cluster: Name::from(cluster),
        agent: agent.into(),
        weight: 10,
        peer: None,
        protocol: TunnelProtocol::Http1,
        queue_timeout: Duration::from_secs(5),
        max_queued_requests: 100,
        max_connections_per_agent: usize::MAX,
    }
}

/// A request of default priority by an HTTP/1 client.
pub(crate) fn any() -> PickContext<'static> {
    PickContext { priority: Priority::Default, agent: None, downstream: DownstreamProtocol::Http1 }
}
