//! What the process has once and what every worker thread has for itself.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use culvert_http::ResponseHead;
use culvert_runtime::drain::Watch;
use culvert_runtime::telemetry::{Block, Metrics, Registry, Scope, ScopePath};
use culvert_upstream::{ClusterSlot, Clusters, WorkerPools};
use foldhash::fast::RandomState;

use crate::access_log::LogSinks;
use crate::demand::Demands;
use crate::http_manager::DateCache;
use crate::listener::{ListenerSlot, Listeners, WorkerListener};
use crate::routes::{RouteSlot, RouteSlots, RouteTable, ScopeSlot};
use crate::shares::Shares;
use crate::stats::UdpClusterMetric;
use crate::tcp_proxy::CopyBuffer;
use crate::timer::Timers;

/// What all workers share. Built once by the composition root.
#[derive(Debug)]
pub struct Process {
    pub clusters: Arc<Clusters>,
    /// Every listener by name, hosting ones included.
    pub listeners: Listeners,
    /// Route configurations that come by name.
    pub routes: RouteSlots,
    /// Scopes that come by SRDS.
    pub scopes: Arc<ScopeSlot>,
    /// What requests ask a control plane for.
    pub demands: Arc<Demands>,
    /// What runtime keys change.
    pub shares: Shares,
    pub registry: Registry,
    /// Where access logs go.
    pub logs: LogSinks,
    /// `%HOSTNAME%`.
    pub hostname: Arc<str>,
    /// The process's drain: every listener's is a child of it.
    pub drain: Watch,
}

/// One worker's state; never leaves its thread. Must be made inside the worker's `LocalSet`.
#[derive(Debug)]
pub struct Worker {
    pub process: Arc<Process>,
    pub pools: Rc<WorkerPools>,
    pub(crate) timers: Timers,
    /// Response heads with their memory.
    pub(crate) heads: Pool<ResponseHead>,
    /// Copy buffers of TCP proxies.
    pub(crate) buffers: Pool<CopyBuffer>,
    pub(crate) date: DateCache,
    /// Of clusters that datagrams go to.
    udp: RefCell<HashMap<u64, Counters<UdpClusterMetric>, RandomState>>,
    listeners: RefCell<HashMap<usize, Rc<WorkerListener>, RandomState>>,
    tables: RefCell<HashMap<usize, Rc<WorkerRoutes>, RandomState>>,
    next_connection: Cell<u64>,
}

impl Worker {
    #[must_use]
    pub fn new(process: Arc<Process>, pools: Rc<WorkerPools>) -> Rc<Self> {
        Rc::new(Self {
            process,
            pools,
            timers: Timers::default(),
            heads: Pool::default(),
            buffers: Pool::default(),
            date: DateCache::default(),
            udp: RefCell::default(),
            listeners: RefCell::default(),
            tables: RefCell::default(),
            next_connection: Cell::new(fastrand::u64(..1 << 48)),
        })
    }

    /// A number for a connection, unlikely to be used twice in the process.
    pub(crate) fn connection_id(&self) -> u64 {
        let id = self.next_connection.get();
        self.next_connection.set(id.wrapping_add(1));
        id
    }

    /// What this worker counts of the datagrams of a cluster.
    pub(crate) fn udp_counters(&self, slot: &ClusterSlot) -> Counters<UdpClusterMetric> {
        let mut counters = self.udp.borrow_mut();
        if let Some(of_slot) = counters.get(&slot.id()) {
            return of_slot.clone();
        }
        counters.retain(|_, of_slot| Rc::strong_count(&of_slot.0) > 1);
        let config = slot.config();
        let name = config.as_ref().map_or(slot.name(), |config| &config.cluster.stat_name);
        let path = ScopePath::cluster(Arc::clone(name)).with_suffix("udp");
        let of_slot = Counters::new(&self.process.registry.scope(path));
        counters.insert(slot.id(), of_slot.clone());
        of_slot
    }

    /// This worker's view of a listener.
    pub(crate) fn listener(self: &Rc<Self>, slot: &Arc<ListenerSlot>) -> Rc<WorkerListener> {
        let key = Arc::as_ptr(slot).addr();
        let mut listeners = self.listeners.borrow_mut();
        if let Some(listener) = listeners.get(&key) {
            return Rc::clone(listener);
        }
        listeners.retain(|_, listener| Rc::strong_count(listener) > 1 || listener.is_alive());
        let listener = Rc::new(WorkerListener::new(self, Arc::clone(slot)));
        listeners.insert(key, Rc::clone(&listener));
        listener
    }

    /// This worker's view of a route slot.
    pub(crate) fn routes(&self, slot: &Arc<RouteSlot>) -> Rc<WorkerRoutes> {
        let key = Arc::as_ptr(slot).addr();
        let mut tables = self.tables.borrow_mut();
        if let Some(routes) = tables.get(&key) {
            return Rc::clone(routes);
        }
        // A slot that only this map still holds will be asked for by nobody again.
        tables.retain(|_, routes| Rc::strong_count(routes) > 1 || Arc::strong_count(&routes.slot) > 1);
        let routes = Rc::new(WorkerRoutes::new(Arc::clone(slot)));
        tables.insert(key, Rc::clone(&routes));
        routes
    }
}

type Table = Option<Arc<RouteTable>>;

/// A table as a request holds it: by a count that only this worker writes.
#[derive(Debug)]
pub(crate) struct PinnedTable(Arc<RouteTable>);

impl std::ops::Deref for PinnedTable {
    type Target = RouteTable;
    fn deref(&self) -> &RouteTable {
        &self.0
    }
}

/// A route slot as one worker sees it: an unchanged table costs a pointer comparison per request, and a request pins
/// its table by a count that no other worker writes.
#[derive(Debug)]
pub(crate) struct WorkerRoutes {
    slot: Arc<RouteSlot>,
    cache: RefCell<arc_swap::Cache<Arc<ArcSwapOption<RouteTable>>, Table>>,
    pinned: RefCell<Option<Rc<PinnedTable>>>,
}

impl WorkerRoutes {
    fn new(slot: Arc<RouteSlot>) -> Self {
        let cache = RefCell::new(arc_swap::Cache::new(Arc::clone(&slot.table)));
        Self { slot, cache, pinned: RefCell::default() }
    }

    /// The table of the moment.
    pub(crate) fn table(&self) -> Option<Rc<PinnedTable>> {
        let mut cache = self.cache.borrow_mut();
        let current = cache.load().as_ref()?;
        let mut pinned = self.pinned.borrow_mut();
        match &*pinned {
            Some(table) if Arc::ptr_eq(&table.0, current) => Some(Rc::clone(table)),
            _ => Some(Rc::clone(pinned.insert(Rc::new(PinnedTable(Arc::clone(current)))))),
        }
    }
}

/// One worker's blocks of the scopes that a filter chain counts in.
#[derive(Debug)]
pub(crate) struct Counters<M>(Rc<Block<M>>);

impl<M> Clone for Counters<M> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<M: Metrics> Counters<M> {
    pub(crate) fn new(scope: &Scope<M>) -> Self {
        Self(Rc::new(scope.block()))
    }
}

impl<M> std::ops::Deref for Counters<M> {
    type Target = Block<M>;
    fn deref(&self) -> &Block<M> {
        &self.0
    }
}

/// Values whose memory is used again and again.
#[derive(Debug)]
pub(crate) struct Pool<T> {
    free: Rc<RefCell<Vec<T>>>,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { free: Rc::default() }
    }
}

/// What can lie in a [`Pool`]. Its default takes no memory: one is left behind whenever a value goes back.
pub(crate) trait Reusable: Default {
    /// Forgets the content; whether the memory is worth keeping.
    fn recycle(&mut self) -> bool;
}

impl Reusable for ResponseHead {
    fn recycle(&mut self) -> bool {
        self.clear();
        true
    }
}

impl<T: Reusable> Pool<T> {
    #[cfg(test)]
    pub(crate) fn free_count(&self) -> usize {
        self.free.borrow().len()
    }

    pub(crate) fn take(&self) -> Pooled<T> {
        let value = self.free.borrow_mut().pop().unwrap_or_default();
        Pooled { value, home: Rc::clone(&self.free) }
    }
}

/// A value that goes back to its pool when it is dropped.
#[derive(Debug)]
pub(crate) struct Pooled<T: Reusable> {
    value: T,
    home: Rc<RefCell<Vec<T>>>,
}

impl<T: Reusable> std::ops::Deref for Pooled<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Reusable> std::ops::DerefMut for Pooled<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T: Reusable> Drop for Pooled<T> {
    fn drop(&mut self) {
        let mut home = self.home.borrow_mut();
        if home.len() < KEPT && self.value.recycle() {
            home.push(std::mem::take(&mut self.value));
        }
    }
}

/// Most free values that a pool keeps.
const KEPT: usize = 256;
