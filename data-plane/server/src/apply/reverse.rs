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
    addresses: BTreeMap<Name, Vec<ReverseAddress>>,
    /// Agents that were made of them.
    agents: BTreeSet<Name>,
}

impl ReverseListeners {
    pub(super) fn new(settings: ReverseTunnels) -> Self {
        Self { settings, addresses: BTreeMap::new(), agents: BTreeSet::new() }
    }

    /// Takes the addresses of a listener in force; none: it has gone, or is an ordinary one.
    pub(super) fn set(&mut self, listener: &Name, addresses: &[ReverseAddress]) {
        if addresses.is_empty() {
            self.addresses.remove(listener);
        } else {
            self.addresses.insert(Arc::clone(listener), addresses.to_vec());
        }
    }

    fn agent(&self, listener: &Name, place: usize, address: &ReverseAddress, cluster: &Cluster) -> TunnelAgent {
        let name = if place == 0 { Arc::clone(listener) } else { format!("{listener}/{place}").into() };
        TunnelAgent {
            name,
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
            for (place, address) in addresses.iter().enumerate() {
                match self.cluster_in_force(&address.remote_cluster) {
                    Some(cluster) => wanted.push(self.reverse.agent(listener, place, address, cluster)),
                    None => {
                        let cluster = &address.remote_cluster;
                        tracing::info!(%listener, %cluster, "nothing is dialled before its cluster is there");
                    }
                }
            }
        }
        let names: BTreeSet<Name> = wanted.iter().map(|agent| Arc::clone(&agent.name)).collect();
        let gone: Vec<Name> = self.reverse.agents.difference(&names).cloned().collect();
        for name in gone {
            self.remove_agent(&name);
        }
        self.reverse.agents = names;
        for agent in wanted {
            let name = Arc::clone(&agent.name);
            if let Err(error) = self.set_agent(Arc::new(agent)).await {
                tracing::error!(listener = %name, %error, "its rc:// address cannot be dialled");
            }
        }
    }
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
