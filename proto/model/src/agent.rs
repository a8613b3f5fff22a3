//! `culvert.tunnel.v1.TunnelAgent`.

use std::sync::Arc;
use std::time::Duration;

use culvert_api::culvert::tunnel::v1 as api;

use crate::Name;
use crate::endpoint::Address;
use crate::report::Parsed;
use crate::source::{ConfigSource, DataSource};
use crate::tls::UpstreamTls;

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
}

/// Parses a `TunnelAgent`.
#[must_use]
pub fn parse(message: &api::TunnelAgent) -> Parsed<TunnelAgent> {
    let _ = message;
    todo!()
}
