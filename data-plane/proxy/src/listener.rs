//! A listener's place, and the filter chains that its connections are matched against.
//!
//! A [`ListenerSlot`] outlives every configuration of its listener. What is published into it is one immutable
//! [`FilterChains`]; a connection is matched once and lives with its chain. When chains are replaced, those that did
//! not change are the same objects as before, so their connections do not notice; the others drain.

mod accept;
mod choose;
mod generation;
mod hosted;
mod inspect;
mod matching;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use culvert_model::Name;
use culvert_model::listener::{FilterChain, Listener, NetworkFilter};
use culvert_model::route::RouteConfiguration;
use culvert_model::tls::DownstreamTls;
use culvert_model::tunnel::TunnelServer;
use culvert_runtime::drain::{Trigger, Watch};
use culvert_runtime::telemetry::{Scope, ScopePath};
use culvert_tunnel::server::Acceptor;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

pub use accept::serve_listener;
pub(crate) use accept::{Active, Downstream, OfTunnel, WorkerListener, serve_hosted};
pub use hosted::Requests;
#[cfg(test)]
pub(crate) use inspect::TlsDetails;
pub use inspect::{Hello, read_ahead};

use self::matching::ChainIndex;
use crate::access_log::{LogError, LogTargets};
use crate::http_manager::HttpManager;
use crate::routes::{self, RouteTable};
use crate::stats::ListenerMetric;
use crate::tcp_proxy::TcpProxy;
use crate::tunnel::TunnelFilter;
use crate::udp_proxy::UdpProxy;
use crate::worker::Process;

/// The TLS configuration of a chain. Certificates rotate by publishing another one; connections are not disturbed.
#[derive(Debug, Default)]
pub struct TlsSlot {
    config: arc_swap::ArcSwapOption<rustls::ServerConfig>,
}

impl TlsSlot {
    /// `None`: its secrets have not arrived; connections are closed until they do.
    #[must_use]
    pub fn new(config: Option<Arc<rustls::ServerConfig>>) -> Arc<Self> {
        Arc::new(Self { config: arc_swap::ArcSwapOption::new(config) })
    }

    /// Handshakes that begin from now on use `config`.
    pub fn publish(&self, config: Option<Arc<rustls::ServerConfig>>) {
        self.config.store(config);
    }

    pub(crate) fn current(&self) -> Option<Arc<rustls::ServerConfig>> {
        self.config.load_full()
    }
}

/// See [`ChainInputs::tunnel`].
pub type AcceptorOf<'a> = dyn Fn(&Arc<TunnelServer>) -> Result<Arc<Acceptor>, CompileError> + 'a;

/// What compiling filter chains needs from outside. Called only for chains that are new or have changed.
pub struct ChainInputs<'a> {
    /// The slot of a TLS context's configuration. The same slot for equal contexts if certificates are to be shared.
    pub tls: &'a dyn Fn(&Arc<DownstreamTls>) -> Arc<TlsSlot>,
    /// Who admits agents for a tunnel filter.
    pub tunnel: &'a AcceptorOf<'a>,
}

impl std::fmt::Debug for ChainInputs<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChainInputs").finish_non_exhaustive()
    }
}

/// Why a listener cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error("inline routes: {0}")]
    Routes(#[from] routes::CompileError),
    #[error(transparent)]
    AccessLog(#[from] LogError),
    #[error("credential of a tunnel policy: {0}")]
    Credential(#[from] crate::source::SourceError),
    #[error("the configuration of its filter {0:?} has not come")]
    Undiscovered(Name),
}

/// The compiled filter chains of one listener.
#[derive(Debug)]
pub struct FilterChains {
    listener: Arc<Listener>,
    index: ChainIndex,
    chains: Vec<Arc<Chain>>,
    default: Option<Arc<Chain>>,
    inspection: inspect::Inspection,
    access_log: LogTargets,
    /// Of a listener of datagrams.
    udp: Option<Arc<UdpProxy>>,
}

/// One compiled chain.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) config: Arc<FilterChain>,
    pub(crate) tls: Option<Arc<TlsSlot>>,
    pub(crate) filter: Filter,
    /// Drains when the chain is replaced, its listener drains, or the process does.
    drain: Trigger,
    pub(crate) watch: Watch,
}

/// The terminal filter.
#[derive(Debug)]
pub(crate) enum Filter {
    Http(Arc<HttpManager>),
    Tcp(Arc<TcpProxy>),
    Tunnel(Arc<TunnelFilter>),
}

impl FilterChains {
    /// Compiles `listener` for `slot`. Chains that equal one of what is in force there are taken over with their
    /// connections. Reads files; not to be called on a worker.
    ///
    /// # Errors
    /// See [`CompileError`].
    pub fn compile(
        listener: Arc<Listener>,
        slot: &ListenerSlot,
        process: &Process,
        inputs: &ChainInputs<'_>,
    ) -> Result<Arc<Self>, CompileError> {
        let before = slot.chains.load_full();
        let known = before.iter().flat_map(|chains| chains.chains.iter().chain(&chains.default));
        let known: HashMap<&str, Vec<&Arc<Chain>>> = known.fold(HashMap::new(), |mut known, chain| {
            known.entry(&chain.config.name).or_default().push(chain);
            known
        });
        let chain = |config: &Arc<FilterChain>| {
            let same = known.get(&*config.name).and_then(|chains| chains.iter().find(|chain| chain.config == *config));
            match same {
                Some(chain) => Ok(Arc::clone(chain)),
                None => Chain::compile(config, slot, process, inputs),
            }
        };
        let chains = listener.filter_chains.iter().map(&chain).collect::<Result<Vec<_>, _>>()?;
        let default = listener.default_filter_chain.as_ref().map(&chain).transpose()?;
        let known = before.as_ref().and_then(|before| before.udp.as_ref());
        let udp = listener.udp.as_ref().map(|config| match known.filter(|known| known.config == *config) {
            Some(known) => Ok(Arc::clone(known)),
            None => UdpProxy::compile(config, &slot.watch, process),
        });
        Ok(Arc::new(Self {
            udp: udp.transpose()?,
            index: ChainIndex::compile(listener.filter_chains.iter().map(|chain| &chain.matches)),
            inspection: inspect::Inspection::of(&listener),
            access_log: LogTargets::open(&listener.access_log, process)?,
            chains,
            default,
            listener,
        }))
    }

    /// What was compiled.
    #[must_use]
    pub fn listener(&self) -> &Arc<Listener> {
        &self.listener
    }

    pub(crate) fn udp(&self) -> Option<&Arc<UdpProxy>> {
        self.udp.as_ref()
    }

    /// Whether every TLS context has its certificates.
    #[must_use]
    pub fn is_warm(&self) -> bool {
        self.all().all(|chain| chain.tls.as_ref().is_none_or(|tls| tls.config.load().is_some()))
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Chain>> {
        self.chains.iter().chain(&self.default)
    }

    fn holds(&self, chain: &Arc<Chain>) -> bool {
        self.all().any(|candidate| Arc::ptr_eq(candidate, chain))
    }

    /// What stands in the place of a chain that differs only in what came by name. A chain of tunnels has none: what came may
    /// say who may open them.
    fn successor(&self, chain: &Chain) -> Option<&Arc<Chain>> {
        let asked = chain.config.asked.as_ref().filter(|_| !matches!(chain.filter, Filter::Tunnel(_)))?;
        self.all().find(|candidate| candidate.config.asked.as_ref() == Some(asked))
    }
}

impl Chain {
    fn compile(
        config: &Arc<FilterChain>,
        slot: &ListenerSlot,
        process: &Process,
        inputs: &ChainInputs<'_>,
    ) -> Result<Arc<Self>, CompileError> {
        let (drain, watch) = slot.watch.child();
        let filter = match &config.filter {
            NetworkFilter::Http(manager) => Filter::Http(HttpManager::compile(manager, process, config.tls.is_some())?),
            NetworkFilter::Tcp(proxy) => Filter::Tcp(TcpProxy::compile(proxy, process)?),
            NetworkFilter::Discovered(discovery) => {
                return Err(CompileError::Undiscovered(Arc::clone(&discovery.name)));
            }
            NetworkFilter::Tunnel(server) => {
                Filter::Tunnel(TunnelFilter::new(server, (inputs.tunnel)(server)?, process))
            }
        };
        let tls = config.tls.as_ref().map(|tls| (inputs.tls)(tls));
        Ok(Arc::new(Self { config: Arc::clone(config), tls, filter, drain, watch }))
    }

    /// Gives the connections of `superseded` what came for their HTTP filters. Envoy: it holds for their next requests; what
    /// came for a network filter holds for new connections.
    fn hand_on(&self, superseded: &Self) {
        if let (Filter::Http(now), Filter::Http(before)) = (&self.filter, &superseded.filter)
            && before.differs_in_router_only(now)
        {
            before.take_router(now);
        }
    }
}

/// A listener's name and place. Shared by the workers.
#[derive(Debug)]
pub struct ListenerSlot {
    name: Name,
    stats: Scope<ListenerMetric>,
    chains: arc_swap::ArcSwapOption<FilterChains>,
    /// Told when another generation is in force.
    changed: tokio::sync::Notify,
    drain: Trigger,
    watch: Watch,
    limit: ArcSwap<Limit>,
    /// Chains in whose places others are only because something came by name: their connections go on.
    superseded: Mutex<Vec<Weak<Chain>>>,
}

/// How many connections there may be at a time, over all workers.
#[derive(Debug)]
struct Limit {
    max: Option<u64>,
    permits: Arc<Semaphore>,
}

impl Limit {
    fn new(max: Option<u64>) -> Self {
        let permits = max.and_then(|max| usize::try_from(max).ok()).unwrap_or(Semaphore::MAX_PERMITS);
        Self { max, permits: Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))) }
    }
}

impl ListenerSlot {
    /// A slot without filter chains: it accepts nothing until the first [`Self::publish`]. `address` names its
    /// statistics; a listener without address goes by its name.
    #[must_use]
    pub fn new(name: Name, address: Option<std::net::SocketAddr>, process: &Process) -> Arc<Self> {
        let path = ScopePath::listener(&address.map_or_else(|| name.to_string(), |address| address.to_string()));
        let (drain, watch) = process.drain.child();
        Arc::new(Self {
            name,
            stats: process.registry.scope(path),
            chains: arc_swap::ArcSwapOption::empty(),
            changed: tokio::sync::Notify::new(),
            drain,
            watch,
            limit: ArcSwap::from_pointee(Limit::new(None)),
            superseded: Mutex::default(),
        })
    }

    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
    }

    fn accepts_per_event(&self) -> u32 {
        self.chains.load().as_ref().map_or(1, |chains| chains.listener.accepts_per_event)
    }

    pub(crate) fn stats(&self) -> &Scope<ListenerMetric> {
        &self.stats
    }

    /// What is in force; `None` before the first publication.
    #[must_use]
    pub fn current(&self) -> Option<Arc<FilterChains>> {
        self.chains.load_full()
    }

    /// Connections that are accepted from now on see `chains`. Chains that are in force no longer drain within
    /// `drain_time`. Returns the generation before, to be freed off the workers.
    pub fn publish(&self, chains: Arc<FilterChains>, drain_time: Duration) -> Option<Arc<FilterChains>> {
        let max = chains.listener.max_connections;
        if self.limit.load().max != max {
            // Connections that are there already are not counted against the new limit.
            self.limit.store(Arc::new(Limit::new(max)));
        }
        let now = Arc::clone(&chains);
        let before = self.chains.swap(Some(chains));
        self.changed.notify_waiters();
        if let Some(udp) = before.as_ref().and_then(|before| before.udp.as_ref())
            && now.udp.as_ref().is_none_or(|now| !Arc::ptr_eq(now, udp))
        {
            udp.retire(drain_time);
        }
        let mut superseded = self.superseded.lock();
        let earlier: Vec<Arc<Chain>> = superseded.drain(..).filter_map(|chain| chain.upgrade()).collect();
        for chain in before.iter().flat_map(|before| before.all()).chain(&earlier).filter(|chain| !now.holds(chain)) {
            match now.successor(chain) {
                Some(successor) => {
                    successor.hand_on(chain);
                    superseded.push(Arc::downgrade(chain));
                }
                None => chain.drain.start(drain_time),
            }
        }
        before
    }

    /// Stops accepting and drains every connection: what is left after `within` is cut off.
    pub fn drain(&self, within: Duration) {
        self.drain.start(within);
    }

    /// Returns when the drain that was started has ended.
    pub async fn drained(&self) {
        self.drain.drained().await;
    }

    /// Whether the listener drains; its accept loops have ended or are about to.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.watch.is_draining()
    }
}

/// Every listener of the process, by name.
#[derive(Debug, Default)]
pub struct Listeners {
    slots: Mutex<HashMap<Name, Arc<ListenerSlot>>>,
    changed: tokio::sync::Notify,
}

impl Listeners {
    /// Puts a slot under its name; returns the one that was there.
    pub fn insert(&self, slot: Arc<ListenerSlot>) -> Option<Arc<ListenerSlot>> {
        let before = self.slots.lock().insert(Arc::clone(&slot.name), slot);
        self.changed.notify_waiters();
        before
    }

    /// Takes a slot out. It is not drained by that.
    pub fn remove(&self, name: &str) -> Option<Arc<ListenerSlot>> {
        self.slots.lock().remove(name)
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<ListenerSlot>> {
        self.slots.lock().get(name).cloned()
    }

    /// All slots, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<ListenerSlot>> {
        let mut slots: Vec<_> = self.slots.lock().values().cloned().collect();
        slots.sort_by(|a, b| a.name.cmp(&b.name));
        slots
    }

    /// Waits until the listener of that name is there, has chains and does not drain.
    pub(crate) async fn active(&self, name: &str) -> Arc<ListenerSlot> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let slot = self.get(name).filter(|slot| !slot.is_draining());
            let Some(slot) = slot else {
                changed.await;
                continue;
            };
            let is_active = {
                let mut published = std::pin::pin!(slot.changed.notified());
                published.as_mut().enable();
                slot.chains.load().is_some() || {
                    tokio::select! { () = published => {} () = changed => {} }
                    false
                }
            };
            if is_active {
                return slot;
            }
        }
    }
}

/// Compiles the inline routes of a connection manager.
pub(crate) fn inline_routes(
    config: &Arc<RouteConfiguration>,
    process: &Process,
) -> Result<Arc<RouteTable>, CompileError> {
    Ok(RouteTable::compile(Arc::clone(config), &process.clusters, &process.shares)?)
}
