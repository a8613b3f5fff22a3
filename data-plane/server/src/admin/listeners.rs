//! `/listeners`: names and the addresses that are really bound.

use serde_json::{Value, json};

use super::clusters::socket_address;
use crate::overview::Overview;

/// `NAME::ADDRESS`, a line each.
pub(super) fn text(overview: &Overview) -> String {
    let listeners = overview.listeners.lock();
    let lines = listeners.iter().map(|(name, view)| match view.bound {
        Some(bound) => format!("{name}::{bound}\n"),
        None => format!("{name}::hosted\n"),
    });
    lines.collect()
}

/// `envoy.admin.v3.Listeners`.
pub(super) fn json(overview: &Overview) -> Value {
    let listeners = overview.listeners.lock();
    let statuses: Vec<Value> = listeners
        .iter()
        .map(|(name, view)| json!({ "name": &**name, "local_address": view.bound.map(socket_address) }))
        .collect();
    json!({ "listener_statuses": statuses })
}
