//! `/tunnels`: registered connections on the server's side, agents and what they dial on the other.

use serde_json::{Value, json};

use crate::overview::TunnelView;
use crate::stats::Looked;

pub(super) fn json(looked: &Looked) -> Value {
    let agents: Vec<_> = looked.overview.agents.lock().values().map(|agent| agent.status()).collect();
    let hosts: Vec<Value> = looked
        .process
        .clusters
        .tunnels()
        .iter()
        .map(|tunnel| {
            json!({
                "cluster": &*tunnel.cluster,
                "further_clusters": tunnel.further_clusters.iter().map(|name| &**name).collect::<Vec<_>>(),
                "agent": &*tunnel.agent,
                "peer": tunnel.peer.map(|peer| peer.to_string()),
                "weight": tunnel.weight,
                "protocol": tunnel.protocol.name(),
                "state": tunnel.state,
                "requests": tunnel.requests,
                "active": tunnel.active,
                "age_seconds": tunnel.age.as_secs(),
            })
        })
        .collect();
    let connections = TunnelView::new(&looked.overview, &looked.process).status();
    let ended = looked.overview.tunnels.ended();
    json!({ "connections": connections, "ended": ended, "hosts": hosts, "agents": agents })
}
