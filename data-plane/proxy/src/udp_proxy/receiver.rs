//! A listener's socket on one worker, and the sessions of those that send to it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use culvert_runtime::sockets;
use culvert_upstream::ClusterMetric;
use foldhash::quality::RandomState;
use tokio::net::UdpSocket;

use super::WorkerUdp;
use super::session::Session;
use crate::listener::{Active, ListenerSlot};
use crate::stats::{ListenerMetric, UdpMetric};
use crate::worker::{Counters, Worker};

/// Receives datagrams on this worker until the listener is told to drain: the socket is closed then, so that whoever has
/// the address next gets what new clients send. Sessions live on, each with a socket of its own, until they are idle or the
/// drain's deadline has passed.
///
/// # Errors
/// The socket cannot be registered with this worker's reactor.
pub async fn serve_datagrams(
    worker: Rc<Worker>,
    socket: std::net::UdpSocket,
    slot: Arc<ListenerSlot>,
) -> std::io::Result<()> {
    socket.set_nonblocking(true)?;
    let local = socket.local_addr()?;
    let socket = Rc::new(UdpSocket::from_std(socket)?);
    let mut draining = slot.watch().draining();
    let receiver = Rc::new(Receiver {
        counters: Counters::new(slot.stats()),
        worker,
        slot,
        local,
        proxy: RefCell::default(),
        sessions: RefCell::default(),
    });
    loop {
        tokio::select! {
            biased;
            () = &mut draining => break,
            ready = socket.readable() => ready?,
        }
        receiver.receive(&socket);
        // The socket may be ready for ever; others are to have their turn.
        tokio::task::consume_budget().await;
    }
    // What had come before is not lost with the socket.
    for _ in 0..MAX_DRAINED / BATCH {
        if !receiver.receive(&socket) {
            break;
        }
    }
    receiver.part();
    Ok(())
}

/// See [`serve_datagrams`].
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) worker: Rc<Worker>,
    slot: Arc<ListenerSlot>,
    counters: Counters<ListenerMetric>,
    local: SocketAddr,
    proxy: RefCell<Option<Rc<WorkerUdp>>>,
    /// Strangers choose the keys; there are no more than [`super::UdpProxy::place`] allows.
    sessions: RefCell<HashMap<SocketAddr, Rc<Session>, RandomState>>,
}

impl Receiver {
    /// Takes what has come, a batch of it; whether there may be more.
    fn receive(self: &Rc<Self>, socket: &Rc<UdpSocket>) -> bool {
        let Some(proxy) = self.current() else { return false };
        let mut buffer = self.worker.buffers.take();
        for _ in 0..BATCH {
            let (length, client) = match socket.try_recv_from(buffer.space()) {
                Ok(received) => received,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return false,
                Err(error) => {
                    tracing::debug!(listener = %self.slot.name(), %error, "cannot receive a datagram");
                    proxy.counters.inc(UdpMetric::RxErrors);
                    continue;
                }
            };
            self.dispatch(&proxy, (client, socket), buffer.space().get(..length).unwrap_or_default());
        }
        true
    }

    /// What is in force now.
    fn current(&self) -> Option<Rc<WorkerUdp>> {
        let chains = self.slot.current()?;
        let proxy = chains.udp()?;
        let mut known = self.proxy.borrow_mut();
        match &*known {
            Some(known) if Arc::ptr_eq(&known.proxy, proxy) => Some(Rc::clone(known)),
            _ => Some(Rc::clone(known.insert(WorkerUdp::new(proxy, &self.worker)))),
        }
    }

    /// A datagram that came to `socket`.
    fn dispatch(
        self: &Rc<Self>,
        proxy: &Rc<WorkerUdp>,
        (client, socket): (SocketAddr, &Rc<UdpSocket>),
        datagram: &[u8],
    ) {
        if datagram.len() > proxy.proxy.config.max_downstream_datagram {
            self.counters.inc(ListenerMetric::UdpRxDropped);
            return;
        }
        let known = self.sessions.borrow().get(&client).filter(|session| !session.is_stale()).cloned();
        if let Some(session) = known.or_else(|| self.open(proxy, client, socket)) {
            session.take(datagram);
        }
    }

    /// A session for a client that has none, unless there are too many or no host.
    fn open(self: &Rc<Self>, proxy: &Rc<WorkerUdp>, client: SocketAddr, socket: &Rc<UdpSocket>) -> Option<Rc<Session>> {
        let target = &proxy.proxy.target;
        if target.config().is_none() {
            proxy.counters.inc(UdpMetric::SessNoRoute);
            return None;
        }
        let Some(place) = proxy.proxy.place() else {
            self.worker.pools.count(target, ClusterMetric::CxOverflow);
            return None;
        };
        let session = match Session::open(proxy, place, &self.worker, (client, socket)) {
            Ok(session) => Rc::new(session),
            Err(error) => {
                tracing::debug!(listener = %self.slot.name(), %client, %error, "no session for a datagram");
                return None;
            }
        };
        if let Some(before) = self.sessions.borrow_mut().insert(client, Rc::clone(&session)) {
            before.end();
        }
        let active = Active::new(&proxy.counters, UdpMetric::SessActive, None);
        proxy.counters.inc(UdpMetric::SessTotal);
        // Boxed: a future of this size would be moved about on its way into the runtime.
        tokio::task::spawn_local(Box::pin({
            let (session, receiver) = (Rc::clone(&session), Rc::clone(self));
            async move {
                session.run(&receiver.worker, receiver.local).await;
                receiver.forget(&session);
                drop(active);
            }
        }));
        Some(session)
    }

    fn forget(&self, session: &Rc<Session>) {
        let mut sessions = self.sessions.borrow_mut();
        // Another one may have taken its place.
        if sessions.get(&session.client).is_some_and(|known| Rc::ptr_eq(known, session)) {
            sessions.remove(&session.client);
        }
    }

    /// Gives every session a socket of its own: the kernel prefers it for what its client sends.
    fn part(&self) {
        for session in self.sessions.borrow().values() {
            match sockets::connected(self.local, session.client).and_then(UdpSocket::from_std) {
                Ok(socket) => session.part(socket),
                Err(error) => {
                    let client = session.client;
                    tracing::warn!(listener = %self.slot.name(), %client, %error, "a session cannot outlive its listener");
                    session.end();
                }
            }
        }
    }
}

/// Datagrams that are taken before others have their turn.
const BATCH: usize = 64;
/// Datagrams that may wait in a socket when it closes.
const MAX_DRAINED: usize = 4096;
