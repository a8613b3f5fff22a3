//! `envoy.config.endpoint.v3.ClusterLoadAssignment`: localities by priority, and endpoints as configured.

use std::net::SocketAddr;
use std::sync::Arc;

use culvert_api::envoy::config::endpoint::v3 as api;

use crate::Name;
use crate::report::Parsed;

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

/// Parses a `ClusterLoadAssignment`.
#[must_use]
pub fn parse(message: &api::ClusterLoadAssignment) -> Parsed<Endpoints> {
    let _ = message;
    todo!()
}
