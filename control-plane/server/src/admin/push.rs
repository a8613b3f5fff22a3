//! How a change gets to the nodes, what was in force before, and the way back.

use std::time::Duration;

use bytes::Bytes;
use culvert_xds::server::{Progress, ResourceState};
use http::StatusCode;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::{page, seconds, state, text};
use crate::control::Control;
use crate::history::{self, Entry};
use crate::nodes::{NodeStatus, Standing};

/// Longest `wait`.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(300);
/// How often it is looked whether the nodes have answered.
const LOOK: Duration = Duration::from_millis(100);
/// The same of those that poll, which takes more and changes seldom.
const LOOK_AT_POLLS: Duration = Duration::from_secs(1);

/// Where every connected node is on the way to what is in force. `wait=SECONDS`: once each has it, or refused it.
pub(super) async fn settled(control: &Control, query: Option<&str>) -> Value {
    let wait = parameter(query, "wait").and_then(|text| text.parse().ok()).map_or(Duration::ZERO, Duration::from_secs);
    let until = Instant::now() + wait.min(MAX_WAIT);
    let (mut polling, mut looked) = (control.polling.status(), Instant::now());
    loop {
        let now = Instant::now();
        if now - looked >= LOOK_AT_POLLS {
            (polling, looked) = (control.polling.status(), now);
        }
        let streams = control.nodes.status();
        let nodes: Vec<&NodeStatus> = streams.iter().chain(&polling).filter(|node| node.connected).collect();
        let open = nodes.iter().filter(|node| standing(control, node) == "pending").count();
        if open == 0 || now >= until {
            let nodes: Vec<Value> = nodes.iter().map(|node| of_node(control, node)).collect();
            return json!({ "generation": control.generation(), "pending": open, "nodes": nodes });
        }
        sleep_until(until.min(now + LOOK)).await;
    }
}

fn standing(control: &Control, node: &NodeStatus) -> &'static str {
    match node.standing(control.generation()) {
        Standing::Settled => "settled",
        Standing::Pending => "pending",
        Standing::Refused(_) => "refused",
    }
}

fn of_node(control: &Control, node: &NodeStatus) -> Value {
    // What differs between what it has and what it should have.
    let differing = node.types.iter().flat_map(|of_type| {
        let lacking = |state| matches!(state, ResourceState::Stale | ResourceState::Error);
        of_type.resources.iter().filter(move |one| lacking(one.state)).map(|one| {
            json!({
                "type_url": &*of_type.type_url,
                "name": &*one.name,
                "state": state(one.state),
                "version": one.version.map(|version| version.to_string()),
                "accepted": one.accepted.map(|version| version.to_string()),
                "error": one.error.as_deref(),
            })
        })
    });
    json!({
        "id": node.key.id,
        "cluster": node.identity.cluster,
        "state": standing(control, node),
        "generation": node.generation,
        "progress": progress(&node.progress),
        "differs": differing.collect::<Vec<_>>(),
    })
}

/// In words.
pub(super) fn progress(progress: &Progress) -> Value {
    match progress {
        Progress::Settled => json!({ "step": "settled" }),
        Progress::Adding => json!({ "step": "adding" }),
        Progress::Switching => json!({ "step": "switching" }),
        Progress::Halted { type_url, reason } => {
            json!({ "step": "halted", "type_url": &**type_url, "reason": &**reason })
        }
    }
}

/// What was in force, the present first, each with what it changed.
pub(super) fn history(control: &Control) -> Value {
    // Most names that are listed.
    const MOST: usize = 100;
    let list = |names: &[String]| json!({ "count": names.len(), "first": names.iter().take(MOST).collect::<Vec<_>>() });
    let entries = history::entries(control);
    let shown = entries.iter().map(|Entry { past, changes }| {
        json!({
            "generation": past.generation,
            "at": seconds(past.at),
            "resources": past.directory.len(),
            "rolled_back_to": past.again,
            "taken_back": past.taken_back.as_deref(),
            "reason": past.reason.as_deref(),
            "changes": changes.as_ref().map(|changes| json!({
                "added": list(&changes.added),
                "changed": list(&changes.changed),
                "removed": list(&changes.removed),
            })),
        })
    });
    Value::Array(shown.collect())
}

/// Puts in force what was generation `to`, until the directory changes; without `to` takes back what only some nodes have yet.
pub(super) fn rollback(control: &Control, query: Option<&str>) -> http::Response<Full<Bytes>> {
    if parameter(query, "to").is_none() && control.end_canary(None, Some("an operator took it back")) {
        return page(&json!({ "generation": control.generation() }));
    }
    let Some(to) = parameter(query, "to").and_then(|text| text.parse().ok()) else {
        return text(StatusCode::BAD_REQUEST, "say which generation: /rollback?to=NUMBER; see /history\n".to_owned());
    };
    match control.roll_back(to, Some("POST /rollback".to_owned())) {
        Some(generation) => page(&json!({ "generation": generation, "rolled_back_to": to })),
        None => text(StatusCode::NOT_FOUND, format!("generation {to} is not remembered; see /history\n")),
    }
}

fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    query?.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}
