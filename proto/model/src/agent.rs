//! `culvert.tunnel.v1.TunnelAgent`.

pub mod initiator;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_api::culvert::tunnel::v1 as api;

use crate::Name;
use crate::endpoint::{Address, is_host_name};
use crate::report::{Parsed, Report, clip};
use crate::scalar;
use crate::source::{self, ConfigSource, DataSource};
use crate::tls::{self, UpstreamTls};
use crate::tunnel::destinations::{self, Destinations};
use crate::tunnel::{self, ProtocolChoice};
pub use initiator::EnvoyInitiator;

#[derive(Debug, Clone, PartialEq)]
pub struct TunnelAgent {
    pub name: Name,
    pub cluster: Name,
    pub hosting_listener: Name,
    pub servers: Vec<ServerSource>,
    pub connection_num: u32,
    /// 1 to 128.
    pub weight: u32,
    /// `None`: the node id.
    pub host_name: Option<Arc<str>>,
    pub credential: Option<Credential>,
    pub tls: Option<Arc<UpstreamTls>>,
    pub connect_timeout: Duration,
    pub reconnect_base: Duration,
    pub reconnect_max: Duration,
    /// `None`: never gives up.
    pub retry_times: Option<u32>,
    pub graceful_close_max_wait: Duration,
    pub protocol: ProtocolChoice,
    /// Speaks Envoy's dialect; `None`: MOSN's.
    pub envoy: Option<EnvoyInitiator>,
    /// At least 1.
    pub max_servers: u32,
    /// Empty: the agent does not say where it is.
    pub region: Name,
    pub zone: Name,
    pub max_connection_age: Option<Duration>,
    /// At least a second.
    pub ping_interval: Duration,
    /// Where what comes through its tunnels may go.
    pub destinations: Arc<Destinations>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum ServerSource {
    Address { address: Address, dns_refresh: Duration },
    Eds { service_name: Name, config: ConfigSource },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    pub policy: Name,
    pub value: DataSource,
    /// It is not sent: a proof, which is good on one TLS connection, goes in its place.
    pub bound: bool,
}

/// Parses a `TunnelAgent`.
#[must_use]
pub fn parse(message: &api::TunnelAgent) -> Parsed<TunnelAgent> {
    let mut report = Report::default();
    report.check(message);
    let agent = agent(&mut report, message);
    report.finish(agent)
}

/// Parses the `TunnelAgent` at hand.
pub(crate) fn agent(report: &mut Report, message: &api::TunnelAgent) -> Option<TunnelAgent> {
    let name = scalar::name(report, "name", &message.name);
    let cluster = scalar::name(report, "cluster", &message.cluster);
    let hosting_listener = scalar::name(report, "hosting_listener", &message.hosting_listener);
    let servers = report.items("servers", &message.servers, server);
    if message.servers.is_empty() {
        report.error_at("servers", "is empty; name at least one tunnel server");
    }
    let envoy = match &message.envoy {
        Some(message) => Some(report.field("envoy", |report| initiator::own(report, message))?),
        None => None,
    };
    let credential = message.credential.as_ref();
    let credential = credential.and_then(|message| report.field("credential", |report| credential_of(report, message)));
    let tls = message.transport_socket.as_ref().and_then(|socket| tls::upstream_socket(report, socket));
    if credential.as_ref().is_some_and(|credential| credential.bound) && (tls.is_none() || envoy.is_some()) {
        let reason = "needs transport_socket, and Culvert's own dialect: a proof is bound to TLS";
        report.field("credential", |report| report.error_at("bind_to_tls", reason));
    }
    let mut positive = |field, value: &Option<prost_types::Duration>, default| {
        scalar::positive(report, field, value.as_ref(), default)
    };
    let connect_timeout = positive("connect_timeout", &message.connect_timeout, Duration::from_secs(15));
    let base = positive("reconnect_base_interval", &message.reconnect_base_interval, Duration::from_millis(500));
    let most = positive("reconnect_max_interval", &message.reconnect_max_interval, Duration::from_secs(30).max(base));
    let graceful = positive("graceful_close_max_wait", &message.graceful_close_max_wait, Duration::from_secs(15));
    if most < base {
        report.error_at("reconnect_max_interval", "is less than reconnect_base_interval");
    }
    let connection_num = scalar::within(report, "connection_num", message.connection_num, 1, 1024, 1);
    let weight = scalar::within(report, "weight", message.weight, 1, 128, 10);
    let protocol = tunnel::protocol(report, message.protocol);
    let max_servers = scalar::within(report, "max_servers", message.max_servers, 1, 1024, 2);
    let locality = message.locality.clone().unwrap_or_default();
    let age = message.max_connection_age.as_ref();
    let max_connection_age =
        age.map(|age| scalar::positive(report, "max_connection_age", Some(age), Duration::from_secs(1)));
    Some(TunnelAgent {
        name: name?,
        cluster: cluster?,
        hosting_listener: hosting_listener?,
        servers,
        connection_num,
        weight,
        host_name: Some(message.host_name.as_str()).filter(|name| !name.is_empty()).map(Arc::from),
        credential,
        tls,
        connect_timeout,
        reconnect_base: base,
        reconnect_max: most,
        retry_times: message.connect_retry_times,
        graceful_close_max_wait: graceful,
        protocol: protocol?,
        envoy,
        max_servers,
        region: locality.region.as_str().into(),
        zone: locality.zone.as_str().into(),
        max_connection_age,
        ping_interval: tunnel::ping_interval(report, message.ping_interval.as_ref()),
        destinations: match &message.destinations {
            Some(message) => report.field("destinations", |report| destinations::destinations(report, message)).into(),
            None => Arc::default(),
        },
    })
}

fn server(report: &mut Report, message: &api::ServerSource) -> Option<ServerSource> {
    use api::server_source::Source;
    let dns_refresh =
        scalar::positive(report, "dns_refresh_rate", message.dns_refresh_rate.as_ref(), Duration::from_secs(5));
    match &message.source {
        Some(Source::Address(text)) => {
            let Some(address) = host_and_port(text) else {
                let reason = format!("{:?} is not host:port (an IPv6 address stands in brackets)", clip(text));
                report.error_at("address", reason);
                return None;
            };
            Some(ServerSource::Address { address, dns_refresh })
        }
        Some(Source::Eds(eds)) => report.field("eds", |report| {
            let service_name = scalar::name(report, "service_name", &eds.service_name);
            let Some(config) = &eds.eds_config else {
                report.error_at("eds_config", "is missing; use `ads: {}`");
                return None;
            };
            let config = report.field("eds_config", |report| source::config_source(report, config))?;
            Some(ServerSource::Eds { service_name: service_name?, config })
        }),
        None => {
            report.error("names no source; set address or eds");
            None
        }
    }
}

fn credential_of(report: &mut Report, message: &api::Credential) -> Option<Credential> {
    let policy = scalar::name(report, "policy", &message.policy);
    let Some(value) = &message.credential else {
        report.error_at("credential", "is missing");
        return None;
    };
    let value = report.field("credential", |report| source::data_source(report, value, None));
    Some(Credential { policy: policy?, value: value?, bound: message.bind_to_tls })
}

/// `host:port`, `1.2.3.4:port`, `[v6]:port`.
fn host_and_port(text: &str) -> Option<Address> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return (address.port() != 0).then_some(Address::Ip(address));
    }
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse::<u16>().ok().filter(|port| *port != 0)?;
    is_host_name(host).then(|| Address::Name { host: host.to_ascii_lowercase().into(), port })
}
