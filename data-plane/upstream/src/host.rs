//! One upstream host: who it is, and what is counted of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};

use culvert_model::Name;
use culvert_runtime::telemetry::{Metric, MetricKind, Metrics, Scope};
use parking_lot::Mutex;

use crate::tunnel::TunnelConnection;

/// A host as picked. It keeps its identity, and so its pools and counts, as long as its address, host name, locality
/// and metadata stay in the cluster; weight, health and priority may change around it.
#[derive(Debug)]
pub struct Host {
    id: u64,
    target: Target,
    place: HostPlace,
    stats: Scope<HostMetric>,
    /// Requests under way over all workers; kept only for balancers that compare it.
    load: OnceLock<Box<PaddedCount>>,
    gone: AtomicBool,
}

/// Where connections to a host come from.
#[derive(Debug)]
pub(crate) enum Target {
    Fixed(SocketAddr),
    /// LOGICAL_DNS: one host, whose address is that of the last answer.
    Logical(Mutex<SocketAddr>),
    Tunnel(Arc<TunnelConnection>),
}

/// What a configuration says of a host beyond its address.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct HostPlace {
    pub(crate) hostname: Arc<str>,
    pub(crate) region: Name,
    pub(crate) zone: Name,
    pub(crate) sub_zone: Name,
    pub(crate) metadata: Arc<BTreeMap<String, String>>,
}

impl HostPlace {
    /// Of a tunnel host, of which nothing is configured.
    pub(crate) fn of_agent(hostname: Arc<str>) -> Self {
        static NO_METADATA: LazyLock<Arc<BTreeMap<String, String>>> = LazyLock::new(Arc::default);
        Self { hostname, metadata: Arc::clone(&NO_METADATA), ..Self::default() }
    }
}

impl Host {
    pub(crate) fn new(target: Target, place: HostPlace) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            target,
            place,
            stats: Scope::default(),
            load: OnceLock::new(),
            gone: AtomicBool::new(false),
        })
    }

    /// Where connections go; of a tunnel host, where its tunnel came from. `None`: a tunnel in memory.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.target {
            Target::Fixed(address) => Some(*address),
            Target::Logical(address) => Some(*address.lock()),
            Target::Tunnel(connection) => connection.claim().peer,
        }
    }

    /// For `auto_host_rewrite`, SNI and logs; of a tunnel host the agent's name. May be empty.
    #[must_use]
    pub fn hostname(&self) -> &Arc<str> {
        &self.place.hostname
    }

    /// Locality: region. Empty when none was given.
    #[must_use]
    pub fn region(&self) -> &Name {
        &self.place.region
    }

    /// Locality: zone.
    #[must_use]
    pub fn zone(&self) -> &Name {
        &self.place.zone
    }

    /// Locality: sub-zone.
    #[must_use]
    pub fn sub_zone(&self) -> &Name {
        &self.place.sub_zone
    }

    /// `metadata.filter_metadata` of the endpoint.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.place.metadata
    }

    /// Whether the host is the other end of a tunnel.
    #[must_use]
    pub fn is_tunnel(&self) -> bool {
        matches!(self.target, Target::Tunnel(_))
    }

    /// Counts over all workers.
    #[must_use]
    pub fn stats(&self) -> &Scope<HostMetric> {
        &self.stats
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    pub(crate) fn place(&self) -> &HostPlace {
        &self.place
    }

    pub(crate) fn load(&self) -> &AtomicU32 {
        &self.load.get_or_init(Box::default).0
    }

    pub(crate) fn tunnel(&self) -> Option<&Arc<TunnelConnection>> {
        match &self.target {
            Target::Tunnel(connection) => Some(connection),
            Target::Fixed(_) | Target::Logical(_) => None,
        }
    }

    /// Whether it is in no generation any more: its pooled connections are to be closed.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    pub(crate) fn set_gone(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

/// What is counted of each host; names are those of Envoy's `/clusters`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum HostMetric {
    // What every request counts stands together, so that it touches one cache line.
    RqTotal,
    RqActive,
    RqSuccess,
    CxTotal,
    CxActive,
    CxConnectFail,
    RqError,
    RqTimeout,
}

impl Metrics for HostMetric {
    const ALL: &'static [Metric] = &[
        Metric { name: "rq_total", kind: MetricKind::Counter },
        Metric { name: "rq_active", kind: MetricKind::Gauge },
        Metric { name: "rq_success", kind: MetricKind::Counter },
        Metric { name: "cx_total", kind: MetricKind::Counter },
        Metric { name: "cx_active", kind: MetricKind::Gauge },
        Metric { name: "cx_connect_fail", kind: MetricKind::Counter },
        Metric { name: "rq_error", kind: MetricKind::Counter },
        Metric { name: "rq_timeout", kind: MetricKind::Counter },
    ];
    fn index(self) -> usize {
        self as usize
    }
}

/// On cache lines of its own: every worker writes it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct PaddedCount(AtomicU32);
