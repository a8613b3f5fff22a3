//! What is in force, for those who look at it: the admin interface and the metrics. Written by the applier.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use culvert_model::Name;
use culvert_model::bootstrap::reverse::ReverseTunnels;
use culvert_proxy::{Process, TlsSlot};
use culvert_runtime::tls::CertificateDetails;
use culvert_tunnel::agent::Agent;
use culvert_tunnel::lifecycle::Journal;
use culvert_tunnel::server::{ReverseLimits, Tunnels};
use culvert_tunnel::status::{EndedTunnel, TunnelStatus};
use culvert_upstream::TunnelSnapshot;
use parking_lot::Mutex;

use crate::remote_keys::RemoteKeys;
use crate::runtime_layers::RuntimeLayers;

/// Values of the moment. Shared.
#[derive(Debug, Default)]
pub(crate) struct Overview {
    pub listeners: Mutex<BTreeMap<Name, ListenerView>>,
    pub agents: Mutex<BTreeMap<Name, Arc<Agent>>>,
    certificates: Mutex<BTreeMap<String, Vec<CertificateView>>>,
    /// Clusters that are not in force yet, and what they wait for.
    pub warming_clusters: Mutex<BTreeMap<Name, Vec<String>>>,
    /// The layers of the runtime.
    pub runtime: RuntimeLayers,
    /// Connections of every tunnel listener.
    pub tunnels: Arc<Tunnels>,
    /// Keys that are fetched for them.
    pub remote_keys: RemoteKeys,
}

/// The registered tunnels, with what their clusters know of them. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct TunnelView {
    tunnels: Arc<Tunnels>,
    process: Arc<Process>,
}

impl TunnelView {
    pub(crate) fn new(overview: &Overview, process: &Arc<Process>) -> Self {
        Self { tunnels: Arc::clone(&overview.tunnels), process: Arc::clone(process) }
    }

    /// See [`Tunnels::version`].
    pub(crate) fn version(&self) -> u64 {
        self.tunnels.version()
    }

    /// Latest first.
    pub(crate) fn ended(&self) -> Vec<EndedTunnel> {
        self.tunnels.ended()
    }

    /// Oldest first.
    pub(crate) fn status(&self) -> Vec<TunnelStatus> {
        let hosts = self.process.clusters.tunnels();
        let hosts: HashMap<SocketAddr, &TunnelSnapshot> =
            hosts.iter().filter_map(|host| Some((host.peer?, host))).collect();
        let mut all = self.tunnels.status();
        for tunnel in &mut all {
            let Some(host) = tunnel.peer.and_then(|peer| hosts.get(&peer)) else { continue };
            (tunnel.requests, tunnel.active) = (host.requests, host.active);
            tunnel.further_clusters = host.further_clusters.iter().map(ToString::to_string).collect();
        }
        all
    }
}

impl Overview {
    /// `journal`: where the life of tunnels is logged.
    pub(crate) fn new(reverse: &ReverseTunnels, journal: Option<Arc<dyn Journal>>) -> Arc<Self> {
        let limits = ReverseLimits {
            ping_failure_threshold: reverse.ping_failure_threshold,
            tenant_isolation: reverse.tenant_isolation,
            max_connections_per_node: usize::try_from(reverse.max_connections_per_node).unwrap_or(usize::MAX),
        };
        Arc::new(Self { tunnels: Arc::new(Tunnels::new(limits, journal)), ..Self::default() })
    }
}

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListenerView {
    /// With the port that the kernel gave; `None`: it hosts what tunnels bring.
    pub bound: Option<SocketAddr>,
    /// Whether some generation of it serves.
    pub active: bool,
    /// What its newest generation waits for.
    pub awaiting: Vec<String>,
}

/// The certificates of one TLS context.
#[derive(Debug, Clone)]
pub(crate) struct CertificateView {
    pub presented: Vec<CertificateDetails>,
    pub trusted: Vec<CertificateDetails>,
    /// The filter chain that uses them, for as long as it does. `None`: in use until it is said otherwise.
    pub chain: Option<Weak<TlsSlot>>,
}

impl CertificateView {
    fn is_in_use(&self) -> bool {
        self.chain.as_ref().is_none_or(|chain| chain.strong_count() > 0)
    }

    fn is_of(&self, other: &Self) -> bool {
        match (&self.chain, &other.chain) {
            (Some(one), Some(other)) => Weak::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        }
    }
}

impl Overview {
    /// Shows what `owner` (`cluster edge`, `listener gateway`) uses, in place of what it used for the same chain.
    pub(crate) fn show_certificates(&self, owner: String, view: CertificateView) {
        let mut certificates = self.certificates.lock();
        let views = certificates.entry(owner).or_default();
        views.retain(|other| other.is_in_use() && !other.is_of(&view));
        views.push(view);
    }

    /// `owner` uses none any more.
    pub(crate) fn hide_certificates(&self, owner: &str) {
        self.certificates.lock().remove(owner);
    }

    /// Everything in use, by who uses it.
    pub(crate) fn certificates(&self) -> Vec<(String, CertificateView)> {
        let mut certificates = self.certificates.lock();
        certificates.retain(|_, views| {
            views.retain(CertificateView::is_in_use);
            !views.is_empty()
        });
        let all = certificates.iter().flat_map(|(owner, views)| views.iter().map(|view| (owner.clone(), view.clone())));
        all.collect()
    }
}
