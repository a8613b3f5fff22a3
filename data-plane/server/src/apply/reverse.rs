//! Listeners with `rc://` addresses: an agent for each address, made of the listener, the cluster that the address names
//! and the bootstrap's extension; made anew when any of them changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use culvert_model::Name;
use culvert_model::agent::{EnvoyInitiator, ServerSource, TunnelAgent};
use culvert_model::bootstrap::reverse::ReverseTunnels;
use culvert_model::cluster::{Cluster, Discovery};
use culvert_model::endpoint::Endpoints;
use culvert_model::listener::ReverseAddress;
use culvert_model::tunnel::{PING_INTERVAL, ProtocolChoice, TunnelProtocol};

use super::applier::Applier;

/// What is dialled for listeners.
#[derive(Debug)]
pub(crate) struct ReverseListeners {
    settings: ReverseTunnels,
    addresses: BTreeMap<Name, Vec<Named>>,
    /// Agents that were made of them.
    agents: BTreeSet<Name>,
}

/// An address and the name of its agent.
#[derive(Debug)]
struct Named {
    agent: Name,
    address: ReverseAddress,
}

impl ReverseListeners {
    pub(super) fn new(settings: ReverseTunnels) -> Self {
        Self { settings, addresses: BTreeMap::new(), agents: BTreeSet::new() }
    }

    /// Takes the addresses of a listener in force; none: it has gone, or is an ordinary one.
    pub(super) fn set(&mut self, listener: &Name, addresses: &[ReverseAddress]) {
        let before = self.addresses.remove(listener).unwrap_or_default();
        if !addresses.is_empty() {
            self.addresses.insert(Arc::clone(listener), name_agents(listener, addresses, before));
        }
    }

    fn agent(&self, listener: &Name, Named { agent, address }: &Named, cluster: &Cluster) -> TunnelAgent {
        TunnelAgent {
            name: Arc::clone(agent),
            cluster: Arc::clone(&address.cluster),
            hosting_listener: Arc::clone(listener),
            servers: servers(cluster),
            connection_num: address.count,
            weight: 1,
            host_name: Some(Arc::clone(&address.node)),
            credential: None,
            tls: cluster.tls.clone(),
            connect_timeout: cluster.connect_timeout + self.settings.handshake_timeout,
            reconnect_base: RECONNECT_BASE,
            reconnect_max: self.settings.max_reconnect_backoff,
            retry_times: None,
            graceful_close_max_wait: GRACEFUL_CLOSE,
            protocol: ProtocolChoice::Fixed(TunnelProtocol::Http2),
            // As Envoy: every endpoint is dialled.
            max_servers: u32::MAX,
            region: Name::from(""),
            zone: Name::from(""),
            max_connection_age: None,
            ping_interval: PING_INTERVAL,
            destinations: Arc::default(),
            envoy: Some(EnvoyInitiator {
                tenant: Arc::clone(&address.tenant),
                upstream_cluster: Arc::clone(&address.remote_cluster),
                ..self.settings.handshake.clone()
            }),
        }
    }
}

impl Applier {
    /// Makes the agents equal to what listeners and clusters say now. Those that stay as they are keep their tunnels.
    pub(super) async fn reconcile_reverse(&mut self) {
        if self.reverse.addresses.is_empty() && self.reverse.agents.is_empty() {
            return;
        }
        let mut wanted = Vec::new();
        for (listener, addresses) in &self.reverse.addresses {
            for named in addresses {
                match self.cluster_in_force(&named.address.remote_cluster) {
                    Some(cluster) => wanted.push(self.reverse.agent(listener, named, cluster)),
                    None => {
                        let cluster = &named.address.remote_cluster;
                        tracing::info!(%listener, %cluster, "nothing is dialled before its cluster is there");
                    }
                }
            }
        }
        let names: BTreeSet<Name> = wanted.iter().map(|agent| Arc::clone(&agent.name)).collect();
        for agent in wanted {
            let name = Arc::clone(&agent.name);
            if let Err(error) = self.set_agent(Arc::new(agent)).await {
                tracing::error!(agent = %name, %error, "its rc:// address cannot be dialled");
            }
        }
        let before = std::mem::replace(&mut self.reverse.agents, names);
        for name in before.iter().filter(|name| !self.reverse.agents.contains(*name)).collect::<Vec<_>>() {
            self.remove_agent(name);
        }
    }
}

/// **An address that stays keeps its agent**, wherever in the list it stands now. Another one has the first name that is free,
/// so that it takes over from the one that it was written in place of.
fn name_agents(listener: &Name, addresses: &[ReverseAddress], mut before: Vec<Named>) -> Vec<Named> {
    let mut kept = |address: &ReverseAddress| {
        let same = before
            .iter()
            .position(|named| ReverseAddress { count: address.count, ..named.address.clone() } == *address);
        same.map(|place| before.swap_remove(place).agent)
    };
    let names: Vec<Option<Name>> = addresses.iter().map(&mut kept).collect();
    let taken: BTreeSet<Name> = names.iter().flatten().cloned().collect();
    let name = |place: usize| if place == 0 { Arc::clone(listener) } else { format!("{listener}/{place}").into() };
    let mut free = (0..addresses.len()).map(name).filter(|name| !taken.contains(name));
    let named = names
        .into_iter()
        .zip(addresses)
        .filter_map(|(kept, address)| Some(Named { agent: kept.or_else(|| free.next())?, address: address.clone() }));
    named.collect()
}

/// Where a cluster's endpoints are, as an agent follows them.
fn servers(cluster: &Cluster) -> Vec<ServerSource> {
    let addresses = |endpoints: &Endpoints, dns_refresh: Duration| {
        let endpoints = endpoints.localities.iter().flat_map(|locality| &locality.endpoints);
        endpoints.map(|endpoint| ServerSource::Address { address: endpoint.address.clone(), dns_refresh }).collect()
    };
    match &cluster.discovery {
        Discovery::Static(endpoints) => addresses(endpoints, NO_REFRESH),
        Discovery::StrictDns { endpoints, dns } | Discovery::LogicalDns { endpoints, dns } => {
            addresses(endpoints, dns.refresh)
        }
        Discovery::Eds { service_name, config } => {
            vec![ServerSource::Eds { service_name: Arc::clone(service_name), config: config.clone() }]
        }
        Discovery::Reverse(_) | Discovery::Tunnels(_) => {
            tracing::error!(cluster = %cluster.name, "an rc:// address leads to agents, where tunnel servers are needed");
            Vec::new()
        }
    }
}

/// As agents of our own configuration.
const RECONNECT_BASE: Duration = Duration::from_millis(500);
const GRACEFUL_CLOSE: Duration = Duration::from_secs(15);
/// Of addresses, which are not looked up.
const NO_REFRESH: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn address(remote_cluster: &str, count: u32) -> ReverseAddress {
        ReverseAddress {
            node: "edge-7".into(),
            cluster: "edge".into(),
            tenant: "".into(),
            remote_cluster: remote_cluster.into(),
            count,
        }
    }

    #[test]
    fn an_address_that_stays_keeps_its_agent_and_a_new_one_takes_the_place_of_one_that_goes() {
        let mut reverse = ReverseListeners::new(ReverseTunnels::default());
        let listener = Name::from("in");
        let mut agents = |addresses: &[(&str, u32)]| -> Vec<String> {
            let addresses: Vec<_> = addresses.iter().map(|&(cluster, count)| address(cluster, count)).collect();
            reverse.set(&listener, &addresses);
            reverse.addresses.get(&listener).into_iter().flatten().map(|named| named.agent.to_string()).collect()
        };
        assert_eq!(agents(&[("a", 1)]), ["in"]);
        assert_eq!(agents(&[("a", 1), ("b", 1), ("c", 1)]), ["in", "in/1", "in/2"]);
        assert_eq!(agents(&[("c", 1), ("b", 1)]), ["in/2", "in/1"], "the first is dropped, and the others move");
        assert_eq!(agents(&[("d", 1), ("c", 5), ("b", 1)]), ["in", "in/2", "in/1"], "a name is free; a count changes");
        assert_eq!(agents(&[("d", 1), ("e", 5), ("b", 1)]), ["in", "in/2", "in/1"], "written in the place of another");
        assert_eq!(agents(&[("d", 1), ("d", 1)]), ["in", "in/1"], "twice the same");
        assert_eq!(agents(&[]), [""; 0]);
    }
}
