//! What is in force, for those who look at it: the admin interface and the metrics. Written by the applier.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use culvert_model::Name;
use culvert_runtime::tls::CertificateDetails;
use culvert_tunnel::agent::Agent;
use culvert_tunnel::server::Tunnels;
use parking_lot::Mutex;

/// Values of the moment. Shared.
#[derive(Debug, Default)]
pub(crate) struct Overview {
    pub listeners: Mutex<BTreeMap<Name, ListenerView>>,
    pub agents: Mutex<BTreeMap<Name, Arc<Agent>>>,
    /// By who uses them: `cluster edge`, `listener gateway`.
    pub certificates: Mutex<BTreeMap<String, CertificateView>>,
    /// Clusters that are not in force yet, and what they wait for.
    pub warming_clusters: Mutex<BTreeMap<Name, Vec<String>>>,
    /// Connections of every tunnel listener.
    pub tunnels: Arc<Tunnels>,
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
}
