//! Tunnels as series, one for each agent (on the server) and for each server (on the agent): for dashboards and alarms. What does
//! not fit into a number is on `/tunnels`.

use std::collections::BTreeMap;

use culvert_runtime::telemetry::{Sample, ScopePath};
use culvert_tunnel::status::{AgentStatus, ConnectionState, PeerStatus, TunnelStatus};

/// What an agent's tunnels, those that stand, come to.
#[derive(Debug, Default)]
struct Totals {
    connections: u64,
    draining: u64,
    requests: u64,
    active: u64,
    received_bytes: u64,
    sent_bytes: u64,
    /// The longest.
    round_trip_us: Option<u64>,
    /// Of the oldest.
    age_seconds: u64,
}

impl Totals {
    fn add(&mut self, tunnel: &TunnelStatus) {
        self.connections += 1;
        self.draining += u64::from(tunnel.draining);
        self.requests += tunnel.requests;
        self.active += tunnel.active;
        self.received_bytes += tunnel.received_bytes;
        self.sent_bytes += tunnel.sent_bytes;
        self.round_trip_us = self.round_trip_us.max(tunnel.round_trip_us);
        self.age_seconds = self.age_seconds.max(tunnel.age_seconds);
    }
}

/// `tunnel_cluster.CLUSTER.agent.NAME.*` of the first [`MOST_AGENTS`] by cluster and name, and how many agents there are. Gauges
/// all of them: they are those of the tunnels that stand, and an agent that has none has none.
pub(super) fn of_agents(tunnels: &[TunnelStatus], samples: &mut Vec<Sample>) {
    let mut agents: BTreeMap<(&str, String), Totals> = BTreeMap::new();
    for tunnel in tunnels {
        agents.entry((&tunnel.cluster, name(tunnel))).or_default().add(tunnel);
    }
    let count = u64::try_from(agents.len()).unwrap_or(u64::MAX);
    samples.push(Sample::gauge(ScopePath::process("tunnel_server"), "agents", count));
    for ((cluster, agent), totals) in agents.into_iter().take(MOST_AGENTS) {
        let path = ScopePath::named("tunnel_cluster", "culvert_tunnel_cluster", cluster);
        let path = path.with_inner("agent", "culvert_tunnel_agent_name", agent);
        let gauges = [
            ("connections", Some(totals.connections)),
            ("draining", Some(totals.draining)),
            ("requests", Some(totals.requests)),
            ("active", Some(totals.active)),
            ("received_bytes", Some(totals.received_bytes)),
            ("sent_bytes", Some(totals.sent_bytes)),
            ("round_trip_us", totals.round_trip_us),
            ("age_seconds", Some(totals.age_seconds)),
        ];
        let known = gauges.into_iter().filter_map(|(name, value)| Some((name, value?)));
        samples.extend(known.map(|(name, value)| Sample::gauge(path.clone(), name, value)));
    }
}

/// As routes pick it; else by what it has proved, or where it comes from.
fn name(tunnel: &TunnelStatus) -> String {
    let address = || tunnel.peer.map_or_else(|| "-".to_owned(), |peer| peer.ip().to_canonical().to_string());
    match (&*tunnel.host_name, &tunnel.identity) {
        ("", Some(identity)) => identity.clone(),
        ("", None) => address(),
        (name, _) => name.to_owned(),
    }
}

/// `tunnel_agent.NAME.server.ADDRESS.*`.
pub(super) fn of_servers(agent: &AgentStatus, samples: &mut Vec<Sample>) {
    for peer in &agent.peers {
        let path = ScopePath::named("tunnel_agent", "culvert_tunnel_agent", agent.name.as_str());
        let path = path.with_inner("server", "culvert_tunnel_server", peer.address.to_string().replace(':', "_"));
        let sum =
            |value: fn(&culvert_tunnel::status::ConnectionStatus) -> u64| peer.connections.iter().map(value).sum();
        samples.extend([
            Sample::gauge(path.clone(), "connections", established(peer)),
            Sample::gauge(path.clone(), "connections_wanted", wanted(peer)),
            Sample::gauge(path.clone(), "received_bytes", sum(|connection| connection.received_bytes)),
            Sample::gauge(path.clone(), "sent_bytes", sum(|connection| connection.sent_bytes)),
            Sample::counter(path.clone(), "reconnects", sum(|connection| connection.reconnects)),
        ]);
        let longest = peer.connections.iter().filter_map(|connection| connection.round_trip_us).max();
        samples.extend(longest.map(|longest| Sample::gauge(path, "round_trip_us", longest)));
    }
}

fn established(peer: &PeerStatus) -> u64 {
    let stands = peer.connections.iter().filter(|connection| connection.state == ConnectionState::Established);
    u64::try_from(stands.count()).unwrap_or(u64::MAX)
}

/// None of a server that the agent leaves.
fn wanted(peer: &PeerStatus) -> u64 {
    if peer.closing { 0 } else { u64::try_from(peer.connections.len()).unwrap_or(u64::MAX) }
}

/// A series each costs whoever collects them: of so many agents, and the others are on `/tunnels`.
const MOST_AGENTS: usize = 1000;

#[cfg(test)]
mod tests {
    use culvert_runtime::telemetry::{Filter, prometheus, text};

    use super::*;

    fn tunnel(host_name: &str, round_trip_us: Option<u64>, active: u64) -> TunnelStatus {
        TunnelStatus {
            id: String::new(),
            dialect: culvert_tunnel::dialect::Dialect::Culvert,
            protocol: "http2",
            round_trip_us,
            cluster: "edge".to_owned(),
            further_clusters: Vec::new(),
            host_name: host_name.to_owned(),
            weight: 1,
            peer: Some(([192, 0, 2, 1], 80).into()),
            identity: None,
            policy: None,
            tenant: None,
            listener: "t".to_owned(),
            draining: active == 0,
            age_seconds: 10 + active,
            created_at: std::time::SystemTime::UNIX_EPOCH,
            received_bytes: 100,
            sent_bytes: 10,
            requests: 5,
            active,
            events: Vec::new(),
        }
    }

    #[test]
    fn an_agents_tunnels_are_added_up() {
        let mut samples = Vec::new();
        let tunnels = [tunnel("edge-7", Some(20), 2), tunnel("edge-7", Some(30), 0), tunnel("", None, 1)];
        of_agents(&tunnels, &mut samples);
        let shown = text(&samples, &Filter::default());
        let expected = "tunnel_server.agents: 2
tunnel_cluster.edge.agent.192.0.2.1.connections: 1
tunnel_cluster.edge.agent.192.0.2.1.draining: 0
tunnel_cluster.edge.agent.192.0.2.1.requests: 5
tunnel_cluster.edge.agent.192.0.2.1.active: 1
tunnel_cluster.edge.agent.192.0.2.1.received_bytes: 100
tunnel_cluster.edge.agent.192.0.2.1.sent_bytes: 10
tunnel_cluster.edge.agent.192.0.2.1.age_seconds: 11
tunnel_cluster.edge.agent.edge-7.connections: 2
tunnel_cluster.edge.agent.edge-7.draining: 1
tunnel_cluster.edge.agent.edge-7.requests: 10
tunnel_cluster.edge.agent.edge-7.active: 2
tunnel_cluster.edge.agent.edge-7.received_bytes: 200
tunnel_cluster.edge.agent.edge-7.sent_bytes: 20
tunnel_cluster.edge.agent.edge-7.round_trip_us: 30
tunnel_cluster.edge.agent.edge-7.age_seconds: 12
";
        assert_eq!(shown, expected);
        let line = "envoy_tunnel_cluster_agent_connections{culvert_tunnel_cluster=\"edge\",culvert_tunnel_agent_name=\"edge-7\"} 2\n";
        let shown = prometheus(&samples, &Filter::default());
        assert!(shown.contains(line), "expected {line:?} in {shown}");
    }

    #[test]
    fn more_agents_than_fit_are_counted_and_not_shown() {
        let tunnels: Vec<_> = (0..MOST_AGENTS + 500).map(|number| tunnel(&format!("edge-{number}"), None, 0)).collect();
        let mut samples = Vec::new();
        of_agents(&tunnels, &mut samples);
        assert_eq!(samples.len(), 1 + MOST_AGENTS * 7, "one for their number, and seven for each that is shown");
        assert_eq!(
            samples.first().map(|sample| sample.value.clone()),
            Some(culvert_runtime::telemetry::Value::Gauge(1500))
        );
    }
}
