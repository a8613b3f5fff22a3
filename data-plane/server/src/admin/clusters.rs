//! `/clusters`: clusters, their limits and their hosts.

use std::collections::HashSet;
use std::fmt::Write;
use std::net::SocketAddr;

use culvert_model::Name;
use culvert_model::endpoint::Health;
use culvert_upstream::{ClusterSnapshot, HostSnapshot};
use serde_json::{Value, json};

use crate::stats::Looked;

/// Envoy's text: `CLUSTER::KEY::VALUE` and `CLUSTER::HOST::KEY::VALUE`.
pub(super) fn text(looked: &Looked, fixed: &HashSet<Name>) -> String {
    let mut out = String::new();
    for cluster in looked.process.clusters.snapshot() {
        cluster_text(&mut out, &cluster, fixed.contains(&cluster.name));
    }
    out
}

pub(super) fn cluster_text(out: &mut String, cluster: &ClusterSnapshot, is_static: bool) {
    let name = &cluster.name;
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{name}::observability_name::{name}");
    for (priority, breakers) in &cluster.breakers {
        for ((_, level), limit) in breakers.iter().zip(LIMITS) {
            let _ = writeln!(out, "{name}::{priority}_priority::{limit}::{}", level.limit);
        }
    }
    let _ = writeln!(out, "{name}::added_via_api::{}", !is_static);
    for host in &cluster.hosts {
        let address = address(host);
        for (key, value) in counters(host).into_iter().chain(gauges(host)) {
            let _ = writeln!(out, "{name}::{address}::{key}::{value}");
        }
        let facts = [
            ("hostname", host.hostname.to_string()),
            ("health_flags", health_flags(host.health).to_owned()),
            ("weight", host.weight.to_string()),
            ("region", host.region.to_string()),
            ("zone", host.zone.to_string()),
            ("sub_zone", host.sub_zone.to_string()),
            ("canary", "false".to_owned()),
            ("priority", host.priority.to_string()),
            ("tunnel", host.tunnel.to_string()),
        ];
        for (key, value) in facts {
            let _ = writeln!(out, "{name}::{address}::{key}::{value}");
        }
    }
}

/// `envoy.admin.v3.Clusters`.
pub(super) fn json(looked: &Looked, fixed: &HashSet<Name>) -> Value {
    let snapshot = looked.process.clusters.snapshot();
    let statuses: Vec<Value> =
        snapshot.iter().map(|cluster| cluster_json(cluster, fixed.contains(&cluster.name))).collect();
    json!({ "cluster_statuses": statuses })
}

pub(super) fn cluster_json(cluster: &ClusterSnapshot, is_static: bool) -> Value {
    let thresholds: Vec<Value> = cluster
        .breakers
        .iter()
        .map(|(priority, breakers)| {
            let mut threshold = json!({ "priority": priority.to_uppercase() });
            for ((_, level), limit) in breakers.iter().zip(LIMITS) {
                threshold[limit] = level.limit.into();
            }
            threshold
        })
        .collect();
    json!({
        "name": &*cluster.name,
        "observability_name": &*cluster.name,
        "added_via_api": !is_static,
        "circuit_breakers": { "thresholds": thresholds },
        "host_statuses": cluster.hosts.iter().map(host_json).collect::<Vec<_>>(),
    })
}

fn host_json(host: &HostSnapshot) -> Value {
    let counter = |(name, value): (&str, u64)| json!({ "name": name, "value": value.to_string() });
    let gauge = |(name, value): (&str, u64)| json!({ "name": name, "type": "GAUGE", "value": value.to_string() });
    let stats: Vec<Value> =
        counters(host).into_iter().map(counter).chain(gauges(host).into_iter().map(gauge)).collect();
    json!({
        "address": host.address.map(socket_address),
        "stats": stats,
        "health_status": { "eds_health_status": eds_status(host.health) },
        "weight": host.weight,
        "hostname": &*host.hostname,
        "priority": host.priority,
        "locality": { "region": &*host.region, "zone": &*host.zone, "sub_zone": &*host.sub_zone },
    })
}

/// `envoy.config.core.v3.Address`.
pub(super) fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

/// Where the host is; a tunnel whose peer is not known goes by the agent's name.
fn address(host: &HostSnapshot) -> String {
    host.address.map_or_else(|| host.hostname.to_string(), |address| address.to_string())
}

fn counters(host: &HostSnapshot) -> [(&'static str, u64); 6] {
    [
        ("cx_connect_fail", host.cx_connect_fail),
        ("cx_total", host.cx_total),
        ("rq_error", host.rq_error),
        ("rq_success", host.rq_success),
        ("rq_timeout", host.rq_timeout),
        ("rq_total", host.rq_total),
    ]
}

fn gauges(host: &HostSnapshot) -> [(&'static str, u64); 2] {
    [("cx_active", host.cx_active), ("rq_active", host.rq_active)]
}

fn health_flags(health: Health) -> &'static str {
    match health {
        Health::Healthy => "healthy",
        Health::Degraded => "/degraded_eds_health",
        Health::Unhealthy => "/failed_eds_health",
        Health::Draining => "/eds_status_draining",
    }
}

fn eds_status(health: Health) -> &'static str {
    match health {
        Health::Healthy => "HEALTHY",
        Health::Degraded => "DEGRADED",
        Health::Unhealthy => "UNHEALTHY",
        Health::Draining => "DRAINING",
    }
}

/// In the order of a snapshot's breakers.
const LIMITS: [&str; 4] = ["max_connections", "max_pending_requests", "max_requests", "max_retries"];
