//! One tunnel server, as the agent's workers share it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::Worker;
use super::control::Close;
use super::slot::Slot;
use crate::envoy::ping::Patience;
use crate::status::{AsideState, ConnectionState, PeerStatus};

/// A server, its connections, and how far its closing has come.
#[derive(Debug)]
pub(super) struct Peer {
    /// Differs for every peer of the agent, also for a later one of the same address.
    pub(super) ordinal: usize,
    pub(super) address: SocketAddr,
    server_name: Mutex<Arc<str>>,
    phase: watch::Sender<Phase>,
    /// Established connections.
    live: watch::Sender<usize>,
    /// Whether the server announced that it is one of ours; `None`: no connection was ever established.
    capable: watch::Sender<Option<bool>>,
    slots: Mutex<BTreeMap<u32, Slot>>,
    aside: Mutex<AsideState>,
    /// The control stream that was opened last, of those that are open.
    control: Mutex<Option<mpsc::Sender<Close>>>,
    /// What the server has asked for last.
    orders: watch::Sender<Order>,
    /// The server said that it ends, within that time, and no other answers at its address yet.
    ends: Mutex<Option<Duration>>,
    /// How long it may leave its unused tunnels without a ping, in Envoy's dialect.
    pub(super) patience: Patience,
    /// Those that came when this one left the list.
    replacements: Mutex<Vec<Arc<Self>>>,
    /// Attempts under way at once, over all workers.
    pub(super) dials: Semaphore,
}

/// How far a peer is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) enum Phase {
    Open,
    /// No further dials; what is established goes on until the server has been told.
    Leaving,
    /// The server has been told. `acknowledged`: it closes each connection itself when nothing is in flight.
    Draining {
        deadline: Instant,
        acknowledged: bool,
    },
    /// The time is over.
    Cut,
}

/// What a server asks its agents for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Other connections, after a while.
    Reconnect(Duration),
    /// To dial elsewhere: it ends within that time.
    Leave(Duration),
}

/// What a graceful close names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) ids: Vec<String>,
    pub(super) addresses: Vec<String>,
}

impl Peer {
    pub(super) fn new(ordinal: usize, address: SocketAddr, server_name: Arc<str>) -> Arc<Self> {
        Arc::new(Self {
            ordinal,
            address,
            server_name: Mutex::new(server_name),
            phase: watch::channel(Phase::Open).0,
            live: watch::channel(0).0,
            capable: watch::channel(None).0,
            slots: Mutex::default(),
            aside: Mutex::new(AsideState::None),
            control: Mutex::default(),
            orders: watch::Sender::new(Order::Reconnect(Duration::ZERO)),
            ends: Mutex::default(),
            patience: Patience::default(),
            replacements: Mutex::default(),
            dials: Semaphore::new(DIALS),
        })
    }

    /// The connections that a worker dials.
    pub(super) fn share(&self, worker: Worker, connections: u32) -> impl Iterator<Item = u32> {
        let (first, count) = (self.ordinal, worker.count.max(1));
        (0..connections)
            .filter(move |index| first.wrapping_add(usize::try_from(*index).unwrap_or(0)) % count == worker.index)
    }

    pub(super) fn server_name(&self) -> Arc<str> {
        Arc::clone(&self.server_name.lock())
    }

    /// Counts from the next dial.
    pub(super) fn rename(&self, server_name: &Arc<str>) {
        *self.server_name.lock() = Arc::clone(server_name);
    }

    /// To be called before the peer is left.
    pub(super) fn replace_by(&self, peers: Vec<Arc<Self>>) {
        *self.replacements.lock() = peers;
    }

    /// Hands them out once: they need not live as long as this one.
    pub(super) fn take_replacements(&self) -> Vec<Arc<Self>> {
        std::mem::take(&mut *self.replacements.lock())
    }

    pub(super) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Never goes back.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|current| {
            let later = phase > *current;
            if later {
                *current = phase;
            }
            later
        });
    }

    /// Waits until the peer is closed at least as far as `until` says; returns how far it is.
    pub(super) async fn reached(&self, until: impl Fn(Phase) -> bool) -> Phase {
        let mut phase = self.phase.subscribe();
        match phase.wait_for(|phase| until(*phase)).await {
            Ok(phase) => *phase,
            // The sender is ours.
            Err(_) => Phase::Cut,
        }
    }

    pub(super) async fn leaving(&self) {
        self.reached(|phase| phase != Phase::Open).await;
    }

    pub(super) fn live(&self) -> usize {
        *self.live.borrow()
    }

    pub(super) async fn any_live(&self) {
        let mut live = self.live.subscribe();
        drop(live.wait_for(|live| *live > 0).await);
    }

    pub(super) async fn none_live(&self) {
        let mut live = self.live.subscribe();
        drop(live.wait_for(|live| *live == 0).await);
    }

    pub(super) fn count_live(&self, up: bool) {
        self.live.send_modify(|live| *live = if up { *live + 1 } else { live.saturating_sub(1) });
    }

    /// A connection was established: it is not to a server that ends.
    pub(super) fn learn(&self, capable: bool) {
        *self.ends.lock() = None;
        self.capable.send_replace(Some(capable));
    }

    /// Waits until the last established connection went to a server of the kind.
    pub(super) async fn is_capable(&self, capable: bool) {
        let mut kind = self.capable.subscribe();
        drop(kind.wait_for(|kind| *kind == Some(capable)).await);
    }

    pub(super) fn set_control(&self, control: mpsc::Sender<Close>) {
        *self.control.lock() = Some(control);
    }

    pub(super) fn forget_control(&self, control: &mpsc::Sender<Close>) {
        let mut current = self.control.lock();
        if current.as_ref().is_some_and(|current| current.same_channel(control)) {
            *current = None;
        }
    }

    pub(super) fn has_control(&self) -> bool {
        self.control.lock().is_some()
    }

    /// Has the server close connections gracefully, over the control service; how many it found. `None`: it cannot be
    /// told that way.
    pub(super) async fn close(&self, connection_ids: Vec<String>) -> Option<u64> {
        let control = self.control.lock().clone()?;
        let (answer, answered) = oneshot::channel();
        control.send(Close { connection_ids, answer }).await.ok()?;
        answered.await.ok()
    }

    /// The server asks for something.
    pub(super) fn order(&self, order: Order) {
        if let Order::Leave(within) = order {
            *self.ends.lock() = Some(within);
        }
        self.orders.send_replace(order);
    }

    /// Told of every order from now on.
    pub(super) fn orders(&self) -> watch::Receiver<Order> {
        self.orders.subscribe()
    }

    /// How long the server takes to end, if it does.
    pub(super) fn ends(&self) -> Option<Duration> {
        *self.ends.lock()
    }

    pub(super) fn set_aside(&self, state: AsideState) {
        *self.aside.lock() = state;
    }

    /// Notes a connection's state.
    pub(super) fn note(&self, index: u32, worker: usize, state: ConnectionState) {
        self.slots.lock().entry(index).or_insert_with(|| Slot::new(worker, state)).enter(state);
    }

    /// Of a connection that has a state.
    pub(super) fn with_slot(&self, index: u32, note: impl FnOnce(&mut Slot)) {
        if let Some(slot) = self.slots.lock().get_mut(&index) {
            note(slot);
        }
    }

    /// Established connections: by the server's id, else by our address.
    pub(super) fn names(&self) -> Names {
        let mut names = Names::default();
        for tunnel in self.slots.lock().values().filter_map(Slot::tunnel) {
            match &tunnel.id {
                Some(id) => names.ids.push(id.clone()),
                None => names.addresses.push(tunnel.local.to_string()),
            }
        }
        names
    }

    pub(super) fn status(&self) -> PeerStatus {
        let now = Instant::now();
        let connections = self.slots.lock().iter().map(|(index, slot)| slot.status(*index, now)).collect();
        PeerStatus {
            address: self.address,
            server_name: self.server_name().to_string(),
            closing: self.phase() != Phase::Open,
            aside: *self.aside.lock(),
            connections,
        }
    }
}

/// Attempts at one server at once.
const DIALS: usize = 4;
