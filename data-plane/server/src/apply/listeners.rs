//! Listeners: their sockets, their generations, and those that wait for a secret.
//!
//! **A listener whose address did not change keeps its sockets**: only its filter chains are swapped. We hold a handle of
//! every socket besides the accept loops', so that a listener of another name can take over the address of one that
//! is removed in the same push; it is let go before a listener drains.

mod inputs;
mod warming;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::Name;
use culvert_model::listener::{Listener, Place, Transport};
use culvert_model::tunnel::jwks::RemoteJwks;
use culvert_proxy::{FilterChains, ListenerSlot, Process, serve_datagrams, serve_listener};
use culvert_runtime::sockets::{self, BindError, ListenOptions, Listening, Reserved, Traffic};
use culvert_runtime::workers::Workers;

use self::inputs::Prepared;
pub(crate) use self::inputs::{Credentials, TlsUse};
use self::warming::Warming;
use super::applier::{Applier, OnWorker};
use super::{Applied, ApplyError};
use crate::overview::{ListenerView, Overview};
use crate::secrets::Secrets;
use crate::stats::ManagerMetric;

/// All listeners.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    running: HashMap<Name, Running>,
    /// Addresses that were bound ahead of their listeners: all static ones are, before the first is started.
    reserved: HashMap<Name, Reserved>,
    /// Listeners that the push under way removes.
    pub(super) leaving: HashSet<Name>,
    /// TLS contexts in use by filter chains.
    tls: Vec<TlsUse>,
    /// Tunnel filters in use, with the credentials that they were given.
    credentials: Vec<Credentials>,
}

#[derive(Debug)]
struct Running {
    slot: Arc<ListenerSlot>,
    /// As configured.
    place: Option<Place>,
    sockets: Sockets,
    /// The next generation, until what it needs is there.
    warming: Option<Warming>,
}

impl Running {
    /// Takes the address into use.
    ///
    /// # Errors
    /// Somebody else has it. It is bound again when this is called again.
    fn listen(
        &mut self,
        listener: &Listener,
        (workers, successor): (usize, bool),
    ) -> Result<Vec<Listening>, BindError> {
        let options = ListenOptions { backlog: listener.tcp_backlog };
        match (std::mem::replace(&mut self.sockets, Sockets::None), listener.place()) {
            (Sockets::Reserved(reserved), _) => reserved.listen(options),
            (Sockets::Serving(taken_over), _) => Ok(taken_over),
            (Sockets::None, Some(place)) => reserve(place, workers, successor)?.listen(options),
            (Sockets::None, None) => Ok(Vec::new()),
        }
    }
}

/// What a listener holds of its address.
#[derive(Debug)]
enum Sockets {
    /// It has no address, or has let go of it.
    None,
    /// Bound; nothing is accepted before the first generation is there.
    Reserved(Reserved),
    /// Another handle of every socket that workers accept from.
    Serving(Vec<Listening>),
}

impl Sockets {
    /// With the port that the kernel gave for port 0.
    fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Serving(sockets) => sockets.first().and_then(|socket| socket.local_addr().ok()),
            Self::Reserved(reserved) => Some(reserved.address()),
            Self::None => None,
        }
    }
}

impl Listeners {
    /// Lets go of every socket; accept loops still have theirs.
    pub(super) fn release(&mut self) {
        self.reserved.clear();
        for running in self.running.values_mut() {
            running.sockets = Sockets::None;
        }
    }

    /// Returns when a listener has waited long enough; never, if none waits.
    pub(super) async fn due(&self) {
        let warming = self.running.values().filter_map(|running| running.warming.as_ref()?.due());
        match warming.min() {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// The slot of the listener of that name, if it keeps its place: an update then keeps its sockets.
    pub(super) fn slot_in_place(&self, listener: &Listener) -> Option<Arc<ListenerSlot>> {
        let running = self.running.get(&listener.name).filter(|running| running.place == listener.place());
        running.map(|running| Arc::clone(&running.slot))
    }

    /// The listener of that name as it serves, or as it will once it waits for nothing any more.
    pub(super) fn newest(&self, name: &Name) -> Option<Arc<Listener>> {
        let running = self.running.get(name)?;
        match &running.warming {
            Some(warming) => Some(Arc::clone(warming.chains.listener())),
            None => running.slot.current().map(|chains| Arc::clone(chains.listener())),
        }
    }

    /// The sockets of a listener that leaves, if it serves on that address.
    pub(super) fn handed_over(&self, place: Place, leaving: &HashSet<Name>) -> Option<&[Listening]> {
        let mut running = self.running.iter().filter(|(name, running)| {
            leaving.contains(*name) && running.place == Some(place) && place.address.port() != 0
        });
        running.find_map(|(_, running)| match &running.sockets {
            Sockets::Serving(held) => Some(held.as_slice()),
            Sockets::Reserved(_) | Sockets::None => None,
        })
    }

    /// Listeners with an address that a rehearsed push leaves in place.
    pub(super) fn staying(&self, leaving: &HashSet<Name>) -> usize {
        let running = self.running.iter();
        running.filter(|(name, running)| running.place.is_some() && !leaving.contains(*name)).count()
    }

    /// # Errors
    /// Another listener of ours has the address.
    pub(super) fn check_unclaimed(&self, name: &Name, place: Place) -> Result<(), ApplyError> {
        // Also one that only waits: it would share the port once it serves.
        let mut others = self.running.iter().filter(|(other, _)| *other != name);
        match others.find(|(_, running)| running.place.is_some_and(|held| held.collides(place))) {
            Some((owner, _)) => Err(ApplyError::Duplicate { address: place.address, listener: Arc::clone(owner) }),
            None => Ok(()),
        }
    }
}

impl Applier {
    /// Binds the addresses of all `listeners` before any of them is started.
    ///
    /// # Errors
    /// Every address that cannot be bound.
    pub(crate) fn reserve(&mut self, listeners: &[Arc<Listener>]) -> Result<(), Vec<(Name, BindError)>> {
        let mut errors = Vec::new();
        for listener in listeners {
            if let Some(place) = listener.place() {
                match reserve(place, self.workers.len(), self.successor) {
                    Ok(reserved) => drop(self.listeners.reserved.insert(Arc::clone(&listener.name), reserved)),
                    Err(error) => errors.push((Arc::clone(&listener.name), error)),
                }
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    pub(super) async fn set_listener(&mut self, listener: Arc<Listener>) -> Result<Applied, ApplyError> {
        let result = self.try_listener(listener).await;
        if result.is_err() {
            self.metrics.inc(ManagerMetric::ListenerCreateFailure);
        }
        result
    }

    async fn try_listener(&mut self, listener: Arc<Listener>) -> Result<Applied, ApplyError> {
        let name = Arc::clone(&listener.name);
        let (slot, sockets) = match self.listeners.slot_in_place(&listener) {
            Some(slot) => (slot, None),
            None => {
                let sockets = self.sockets_for(&listener)?;
                (ListenerSlot::new(Arc::clone(&name), sockets.address(), &self.process), Some(sockets))
            }
        };
        let prepared = Prepared::new(&listener, &slot, &self.secrets)?;
        let chains = prepared.compile(listener, &slot, &self.process, &self.overview, &mut self.listeners)?;
        let existed = self.listeners.running.contains_key(&name);
        if let Some(sockets) = sockets {
            let running = Running { slot: Arc::clone(&slot), place: chains.listener().place(), sockets, warming: None };
            if let Some(before) = self.listeners.running.insert(Arc::clone(&name), running) {
                // Make before break: it drains once its successor serves or waits.
                drop(before.sockets);
                before.slot.drain(self.drain_time);
            }
            self.process.listeners.insert(slot);
        }
        self.metrics.inc(if existed { ManagerMetric::ListenerModified } else { ManagerMetric::ListenerAdded });
        if let Some(running) = self.listeners.running.get_mut(&name) {
            running.warming = Some(Warming::new(chains, prepared.awaited));
        }
        let advanced = self.advance(&name).await;
        if advanced.is_err() {
            // As if it had never been: whoever brought it tries again, from the beginning.
            self.listeners.running.remove(&name);
            self.process.listeners.remove(&name);
            self.overview.listeners.lock().remove(&name);
        }
        advanced
    }

    /// Sockets for an address that the listener does not have yet.
    fn sockets_for(&mut self, listener: &Listener) -> Result<Sockets, ApplyError> {
        let Some(place) = listener.place() else { return Ok(Sockets::None) };
        let address = place.address;
        if let Some(reserved) = self.listeners.reserved.remove(&listener.name) {
            return Ok(Sockets::Reserved(reserved));
        }
        if let Some(held) = self.listeners.handed_over(place, &self.listeners.leaving) {
            let taken: Result<Vec<_>, _> = held.iter().map(Listening::try_clone).collect();
            return Ok(taken.map(Sockets::Serving).map_err(|source| BindError::Other { address, source })?);
        }
        self.listeners.check_unclaimed(&listener.name, place)?;
        let others =
            self.listeners.running.iter().filter(|(name, other)| **name != listener.name && other.place.is_some());
        self.check_descriptors(others.count() + 1)?;
        Ok(reserve(place, self.workers.len(), self.successor).map(Sockets::Reserved)?)
    }

    /// Whether so many listeners leave half of the file descriptors to connections: each has two handles of a socket for every
    /// worker.
    pub(super) fn check_descriptors(&self, listeners: usize) -> Result<(), ApplyError> {
        let Some(limit) = self.open_files else { return Ok(()) };
        let (listeners, each) = (listeners as u64, 2 * self.workers.len() as u64);
        let needed = listeners.saturating_mul(each);
        // The first one is let in, however little there is.
        if needed > limit / 2 && listeners > 1 {
            return Err(ApplyError::Descriptors { listeners, needed, limit });
        }
        Ok(())
    }

    /// Puts a generation in force; with the first one the workers begin to accept.
    async fn activate(&mut self, name: &Name, chains: Arc<FilterChains>) -> Result<(), ApplyError> {
        let owners = (self.workers.len(), self.successor);
        let Some(running) = self.listeners.running.get_mut(name) else { return Ok(()) };
        let slot = Arc::clone(&running.slot);
        let first = slot.current().is_none();
        let sockets = if first { running.listen(chains.listener(), owners)? } else { Vec::new() };
        running.warming = None;
        // The generation before is freed here and not on a worker, if no connection holds it.
        drop(slot.publish(chains, self.drain_time));
        if first {
            let held = accept(&self.workers, &slot, sockets).await;
            if let Some(running) = self.listeners.running.get_mut(name) {
                running.sockets = Sockets::Serving(held);
            }
        }
        self.show(name, Vec::new());
        Ok(())
    }

    pub(super) fn remove_listener(&mut self, name: &Name) {
        self.listeners.reserved.remove(name);
        let Some(running) = self.listeners.running.remove(name) else { return };
        self.process.listeners.remove(name);
        self.overview.listeners.lock().remove(name);
        self.overview.hide_certificates(&format!("listener {name}"));
        self.metrics.inc(ManagerMetric::ListenerRemoved);
        drop(running.sockets);
        running.slot.drain(self.drain_time);
        let drain = self.process.drain.block();
        tokio::spawn(async move {
            running.slot.drained().await;
            tracing::info!(listener = %running.slot.name(), "drained and gone");
            drop(drain);
        });
    }

    /// Stops accepting everywhere; connections have `within` to finish. Listeners stay known, and come back with the
    /// next change of theirs.
    pub(super) fn drain_listeners(&mut self, within: Duration) {
        // Nor does what comes for their filters bring them back.
        self.extensions.forget_all();
        let names: Vec<Name> = self.listeners.running.keys().cloned().collect();
        for name in names {
            if let Some(running) = self.listeners.running.remove(&name) {
                drop(running.sockets);
                running.slot.drain(within);
                self.show(&name, Vec::new());
            }
        }
    }

    /// A file or a secret has changed: certificates and credentials rotate, and what waited may begin.
    pub(super) async fn refresh_listeners(&mut self) {
        self.listeners.tls.retain(TlsUse::is_in_use);
        for tls in &mut self.listeners.tls {
            if let Err(error) = tls.refresh(&self.secrets, &self.overview) {
                self.metrics.inc(ManagerMetric::TlsUpdateRejected);
                let listener = &tls.listener;
                tracing::warn!(%listener, %error, "new TLS material cannot be used; the old stays in force");
            }
        }
        self.refresh_credentials();
        self.advance_all().await;
    }

    /// A credential has changed, or other keys have come.
    pub(super) fn refresh_credentials(&mut self) {
        self.listeners.credentials.retain(Credentials::is_in_use);
        for credentials in &self.listeners.credentials {
            if let Err(error) = credentials.refresh(&self.overview.remote_keys) {
                self.metrics.inc(ManagerMetric::TlsUpdateRejected);
                tracing::warn!(%error, "new tunnel credentials cannot be used; the old stay in force");
            }
        }
    }

    pub(super) fn remote_keys_of_listeners(&self) -> impl Iterator<Item = Arc<RemoteJwks>> {
        let in_use = self.listeners.credentials.iter().filter(|credentials| credentials.is_in_use());
        in_use.filter_map(Credentials::remote).cloned()
    }

    pub(super) fn listener_files(&self, paths: &mut BTreeSet<PathBuf>) {
        for tls in self.listeners.tls.iter().filter(|tls| tls.is_in_use()) {
            paths.extend(tls.files(&self.secrets));
        }
        for credentials in self.listeners.credentials.iter().filter(|credentials| credentials.is_in_use()) {
            paths.extend(credentials.files());
        }
    }

    /// Says how the listener stands.
    fn show(&self, name: &Name, awaiting: Vec<String>) {
        let mut listeners = self.overview.listeners.lock();
        let Some(running) = self.listeners.running.get(name) else {
            listeners.remove(name);
            return;
        };
        let bound = running.sockets.address();
        let active = running.slot.current().is_some();
        listeners.insert(Arc::clone(name), ListenerView { bound, active, awaiting });
    }
}

/// What the runtime is to bind.
pub(super) const fn socket_place(place: Place) -> sockets::Place {
    let traffic = match place.transport {
        Transport::Tcp => Traffic::Connections,
        Transport::Udp => Traffic::Datagrams,
    };
    sockets::Place { traffic, address: place.address, ipv4_too: place.ipv4_compat }
}

fn reserve(place: Place, workers: usize, successor: bool) -> Result<Reserved, BindError> {
    let place = socket_place(place);
    if successor { sockets::share(place, workers) } else { sockets::reserve(place, workers) }
}

/// Starts the accept loops; returns another handle of each socket.
async fn accept(workers: &Workers<OnWorker>, slot: &Arc<ListenerSlot>, sockets: Vec<Listening>) -> Vec<Listening> {
    let mut held = Vec::with_capacity(sockets.len());
    for (index, socket) in sockets.into_iter().enumerate() {
        match socket.try_clone() {
            Ok(clone) => held.push(clone),
            Err(error) => tracing::warn!(%error, "the listener's address cannot be handed over later"),
        }
        let slot = Arc::clone(slot);
        let name = Arc::clone(slot.name());
        let started = workers.run(index, move |state| {
            let worker = Rc::clone(&state.worker);
            tokio::task::spawn_local(async move {
                let served = match socket {
                    Listening::Connections(socket) => serve_listener(worker, socket, Arc::clone(&slot)).await,
                    Listening::Datagrams(socket) => serve_datagrams(worker, socket, Arc::clone(&slot)).await,
                };
                if let Err(error) = served {
                    tracing::error!(listener = %slot.name(), %error, "a worker does not accept");
                }
            });
        });
        if let Err(error) = started.await {
            tracing::error!(listener = %name, %error, "a worker does not accept");
        }
    }
    held
}

/// Compiles a listener for nothing but its errors.
///
/// # Errors
/// What the listener would be refused for.
pub(crate) fn compile_for_check(
    listener: &Arc<Listener>,
    slot: &ListenerSlot,
    process: &Process,
    overview: &Overview,
    secrets: &Secrets,
) -> Result<(), ApplyError> {
    let prepared = Prepared::new(listener, slot, secrets)?;
    prepared.compile(Arc::clone(listener), slot, process, overview, &mut Listeners::default())?;
    Ok(())
}
