//! The inventory as operators see it: messages, assignments, JSON.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use culvert_api::culvert::tunnel::v1::{
    ListEndpointsResponse, ListTunnelsRequest, ListTunnelsResponse, Tunnel, TunnelDetails,
};
use culvert_api::envoy::config::core::v3::socket_address::PortSpecifier;
use culvert_api::envoy::config::core::v3::{Address, HealthStatus, Metadata, SocketAddress, address};
use culvert_api::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use culvert_api::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints};
use prost_types::{Struct, Timestamp, Value, value};
use serde_json::json;
use tonic::Status;

use super::{Entry, Inventory, Key, Page, Query, Server};

impl Query {
    pub(super) fn from_request(request: &ListTunnelsRequest) -> Result<Self, Status> {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let page_size = match usize::try_from(request.page_size).unwrap_or(usize::MAX) {
            0 => PAGE,
            size if size <= MAX_PAGE => size,
            size => return Err(Status::invalid_argument(format!("page_size: {size} is more than {MAX_PAGE}"))),
        };
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(Key::from_token(token).ok_or_else(|| {
                Status::invalid_argument(format!("page_token: {token:?} is no next_page_token of an answer"))
            })?),
        };
        let (cluster, agent, server) = (given(&request.cluster), given(&request.agent), given(&request.server));
        Ok(Self { cluster, agent, server, after, page_size })
    }

    pub(super) fn asks_for(&self, key: &Key, entry: &Entry) -> bool {
        let asked = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| *wanted == *found);
        let cluster = self.cluster.as_deref().is_none_or(|wanted| entry.serves(key, wanted));
        cluster && asked(&self.agent, &key.agent) && asked(&self.server, &key.server)
    }
}

impl Key {
    fn token(&self) -> String {
        json!([*self.cluster, *self.agent, *self.server, *self.name]).to_string()
    }

    fn from_token(token: &str) -> Option<Self> {
        let [cluster, agent, server, name]: [String; 4] = serde_json::from_str(token).ok()?;
        Some(Self { cluster: cluster.into(), agent: agent.into(), server: server.into(), name: name.into() })
    }
}

impl Page {
    fn next(&self) -> String {
        self.tunnels.last().filter(|_| self.more).map(|(key, ..)| key.token()).unwrap_or_default()
    }
}

pub(super) fn tunnels(page: &Page) -> ListTunnelsResponse {
    let tunnels = page.tunnels.iter().map(tunnel).collect();
    ListTunnelsResponse { tunnels, next_page_token: page.next(), total: page.total as u64 }
}

fn tunnel((key, entry, server): &(Key, Entry, Server)) -> Tunnel {
    Tunnel {
        server: key.server.to_string(),
        server_cluster: server.cluster.to_string(),
        name: key.name.to_string(),
        tenant: entry.tunnel.identity.as_ref().map(|identity| identity.tenant_id.clone()).unwrap_or_default(),
        cluster: key.cluster.to_string(),
        agent: key.agent.to_string(),
        created_at: entry.tunnel.created_at,
        reported_at: Some(timestamp(entry.at)),
        details: entry.tunnel.details.clone(),
        ended_at: entry.ended.as_ref().map(|end| end.at),
        end_reason: entry.ended.as_ref().map(|end| end.reason.to_string()).unwrap_or_default(),
    }
}

/// One assignment per cluster; `asked`: which, if only one is asked for.
pub(super) fn endpoints(page: &Page, asked: &str) -> ListEndpointsResponse {
    let mut by_cluster: BTreeMap<&str, Vec<LbEndpoint>> = BTreeMap::new();
    for shown in &page.tunnels {
        let further = shown.1.tunnel.details.iter().flat_map(|details| &details.further_clusters);
        let clusters = further.map(String::as_str).chain([&*shown.0.cluster]);
        for cluster in clusters.filter(|cluster| asked.is_empty() || asked == *cluster) {
            by_cluster.entry(cluster).or_default().push(endpoint(&tunnel(shown)));
        }
    }
    let assignments = by_cluster.into_iter().map(|(cluster, lb_endpoints)| ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: vec![LocalityLbEndpoints { lb_endpoints, ..LocalityLbEndpoints::default() }],
        ..ClusterLoadAssignment::default()
    });
    let assignments = assignments.collect();
    ListEndpointsResponse { assignments, next_page_token: page.next(), total: page.total as u64 }
}

/// The agent's address as its server sees it; what else is known is metadata.
fn endpoint(tunnel: &Tunnel) -> LbEndpoint {
    let details = tunnel.details.clone().unwrap_or_default();
    let address = details.peer.parse::<SocketAddr>().ok().map(|peer| Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: peer.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(peer.port().into())),
            ..SocketAddress::default()
        })),
    });
    let health = if details.draining { HealthStatus::Draining } else { HealthStatus::Healthy };
    let endpoint = Endpoint { address, hostname: tunnel.agent.clone(), ..Endpoint::default() };
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
        health_status: health.into(),
        load_balancing_weight: (details.weight > 0).then_some(details.weight),
        metadata: Some(metadata(tunnel, &details)),
    }
}

fn metadata(tunnel: &Tunnel, details: &TunnelDetails) -> Metadata {
    let texts = [
        ("agent", &tunnel.agent),
        ("server", &tunnel.server),
        ("tunnel", &tunnel.name),
        ("tenant", &tunnel.tenant),
        ("dialect", &details.dialect),
        ("protocol", &details.protocol),
        ("identity", &details.identity),
        ("policy", &details.policy),
    ];
    let texts = texts.into_iter().filter(|(_, text)| !text.is_empty());
    let mut fields: BTreeMap<String, Value> = texts
        .map(|(name, text)| (name.to_owned(), Value { kind: Some(value::Kind::StringValue(text.clone())) }))
        .collect();
    let mut number = |name: &str, number: f64| {
        fields.insert(name.to_owned(), Value { kind: Some(value::Kind::NumberValue(number)) });
    };
    if let Some(time) = details.round_trip {
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        number("round_trip_ms", time.seconds as f64 * 1e3 + f64::from(time.nanos) / 1e6);
    }
    if let Some(created) = tunnel.created_at {
        number("age_seconds", seconds_since(created));
    }
    Metadata { filter_metadata: BTreeMap::from([(METADATA.to_owned(), Struct { fields })]), ..Metadata::default() }
}

/// The page `/tunnels`, for a query as `cluster=..&agent=..&server=..&page_size=..&page_token=..`.
///
/// # Errors
/// What is wrong with the query.
pub(crate) fn json(inventory: &Inventory, request: &ListTunnelsRequest) -> Result<serde_json::Value, Status> {
    let query = Query::from_request(request)?;
    let (page, ended) = (inventory.find(&query, |_| true), inventory.find_ended(&query, |_| true));
    let servers = inventory.servers().into_iter().map(|(server, since, reported, tunnels)| {
        json!({
            "server": *server.id,
            "cluster": *server.cluster,
            "peer": *server.peer,
            "since": timestamp(since).seconds,
            "reported_at": timestamp(reported).seconds,
            "tunnels": tunnels,
        })
    });
    let all = |page: &Page| page.tunnels.iter().map(|shown| tunnel_json(tunnel(shown))).collect::<Vec<_>>();
    Ok(json!({
        "servers": servers.collect::<Vec<_>>(),
        "total": page.total,
        "next_page_token": page.next(),
        "tunnels": all(&page),
        "ended": all(&ended),
    }))
}

fn tunnel_json(one: Tunnel) -> serde_json::Value {
    let details = one.details.unwrap_or_default();
    let events = details.events.iter().map(|event| {
        let at = event.at.unwrap_or_default();
        json!({ "at": at.seconds, "kind": event.kind, "detail": event.detail })
    });
    let mut shown = json!({
        "cluster": one.cluster,
        "further_clusters": details.further_clusters,
        "agent": one.agent,
        "server": one.server,
        "name": one.name,
        "tenant": one.tenant,
        "created_at": one.created_at.map(|at| at.seconds),
        "reported_at": one.reported_at.map(|at| at.seconds),
        "peer": details.peer,
        "dialect": details.dialect,
        "protocol": details.protocol,
        "identity": details.identity,
        "policy": details.policy,
        "listener": details.listener,
        "weight": details.weight,
        "draining": details.draining,
        "round_trip_us": details.round_trip.map(|time| time.seconds * 1_000_000 + i64::from(time.nanos) / 1000),
        "streams": details.streams,
        "active_streams": details.active_streams,
        "received_bytes": details.received_bytes,
        "sent_bytes": details.sent_bytes,
        "events": events.collect::<Vec<_>>(),
    });
    if let (Some(ended), Some(shown)) = (one.ended_at, shown.as_object_mut()) {
        shown.insert("ended_at".to_owned(), json!(ended.seconds));
        shown.insert("reason".to_owned(), json!(one.end_reason));
    }
    shown
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Timestamp { seconds, nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0) }
}

fn seconds_since(at: Timestamp) -> f64 {
    let now = timestamp(SystemTime::now());
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let age = now.seconds.saturating_sub(at.seconds).max(0) as f64;
    age
}

/// Key of the endpoints' metadata, as in routes.
const METADATA: &str = "culvert.tunnel";
/// Tunnels on a page, unless something else is asked for, and at most.
const PAGE: usize = 1000;
const MAX_PAGE: usize = 10_000;
