//! Envoy's `rc://` addresses: a listener that is not bound but dials out, and serves what comes back.

use culvert_api::envoy::config::core::v3 as core;
use culvert_api::envoy::config::listener::v3 as api;
use std::sync::Arc;

use crate::Name;
use crate::agent::initiator;
use crate::report::{Report, clip};

/// `rc://NODE:CLUSTER:TENANT@REMOTE_CLUSTER:COUNT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReverseAddress {
    pub node: Arc<str>,
    pub cluster: Arc<str>,
    pub tenant: Arc<str>,
    /// Whose endpoints are the tunnel servers.
    pub remote_cluster: Name,
    /// Tunnels to each endpoint. (Envoy: of each worker. Here one tunnel serves all workers of either side.)
    pub count: u32,
}

/// The addresses of a listener that dials out; `None`: it is an ordinary one.
pub(super) fn addresses(report: &mut Report, message: &api::Listener) -> Option<Vec<ReverseAddress>> {
    let first = socket(message.address.as_ref()?).filter(|socket| is_reverse(socket))?;
    let mut parsed: Vec<ReverseAddress> = report
        .field("address", |report| report.field("socket_address", |report| address(report, first)))
        .into_iter()
        .collect();
    let more = report.items("additional_addresses", &message.additional_addresses, |report, additional| {
        let Some(socket) = additional.address.as_ref().and_then(socket).filter(|socket| is_reverse(socket)) else {
            report.error_at("address", "stands beside an rc:// address and is none; give it a listener of its own");
            return None;
        };
        report.field("address", |report| report.field("socket_address", |report| address(report, socket)))
    });
    parsed.extend(more);
    Some(parsed)
}

fn socket(address: &core::Address) -> Option<&core::SocketAddress> {
    match &address.address {
        Some(core::address::Address::SocketAddress(socket)) => Some(socket),
        _ => None,
    }
}

fn is_reverse(socket: &core::SocketAddress) -> bool {
    socket.resolver_name == RESOLVER || socket.address.starts_with(SCHEME)
}

fn address(report: &mut Report, socket: &core::SocketAddress) -> Option<ReverseAddress> {
    if socket.resolver_name != RESOLVER {
        report.error_at("resolver_name", format!("is not {RESOLVER}, which rc:// addresses need"));
    }
    let text = socket.address.as_str();
    let Some((ids, remote)) = text.strip_prefix(SCHEME).and_then(|rest| rest.split_once('@')) else {
        return malformed(report, text);
    };
    let ids: Vec<&str> = ids.split(':').collect();
    let (remote_cluster, count) = remote.rsplit_once(':').unwrap_or_default();
    let (&[node, cluster, tenant], Ok(count)) = (ids.as_slice(), count.parse::<u32>()) else {
        return malformed(report, text);
    };
    if !(1..=MOST).contains(&count) || remote_cluster.is_empty() {
        return malformed(report, text);
    }
    let mut id = |text| initiator::id(report, "address", text);
    let (node, cluster, tenant) = (id(node), id(cluster), id(tenant));
    Some(ReverseAddress {
        node: node?,
        cluster: cluster?,
        tenant: tenant?,
        remote_cluster: remote_cluster.into(),
        count,
    })
}

fn malformed(report: &mut Report, text: &str) -> Option<ReverseAddress> {
    let reason = "is not rc://NODE:CLUSTER:TENANT@REMOTE_CLUSTER:COUNT with a count from 1 to";
    report.error_at("address", format!("{:?} {reason} {MOST}", clip(text)));
    None
}

const SCHEME: &str = "rc://";
const RESOLVER: &str = "envoy.resolvers.reverse_connection";
/// Connections of one agent to one server.
const MOST: u32 = 1024;
