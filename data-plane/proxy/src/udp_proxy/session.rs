//! One client's datagrams, until none passes either way for a while.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;

use culvert_model::route::Priority;
use culvert_upstream::{ClusterMetric, DownstreamProtocol, PickContext, UdpCheckout, UpstreamFailure};
use rustix::net::SendFlags;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::waiting::Waiting;
use super::{Place, WorkerUdp, host_socket, tunnelled};
use crate::flags::ResponseFlag;
use crate::listener::Downstream;
use crate::record::{Record, Scene, UpstreamSide};
use crate::stats::{UdpClusterMetric, UdpMetric};
use crate::worker::Worker;

/// A session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: SocketAddr,
    pub(super) proxy: Rc<WorkerUdp>,
    /// By which the client is answered: the listener's, and one of its own once the listener is gone.
    reply: RefCell<Rc<UdpSocket>>,
    carrier: Carrier,
    /// When the last datagram passed.
    active: Cell<Instant>,
    /// Bytes of datagrams from the client, and to it.
    received: Cell<u64>,
    sent: Cell<u64>,
    own: OnceCell<Rc<UdpSocket>>,
    changed: Notify,
    ended: Cell<bool>,
    _place: Place,
}

#[derive(Debug)]
enum Carrier {
    Direct(Box<Direct>),
    Tunnelled(Waiting),
}

#[derive(Debug)]
struct Direct {
    checkout: UdpCheckout,
    socket: UdpSocket,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error(transparent)]
    Host(#[from] UpstreamFailure),
    #[error("no socket for its host: {0}")]
    Socket(#[from] std::io::Error),
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Idle,
    /// Its listener's drain is over.
    CutOff,
    /// Its host is gone, or another session has taken its place.
    Replaced,
    /// No stream could be had.
    NoStream,
    /// The stream has ended.
    Closed,
    /// The stream has broken, or the session's socket.
    Broken,
}

impl Session {
    /// A session of `client`, which is answered by `socket`.
    pub(super) fn open(
        proxy: &Rc<WorkerUdp>,
        place: Place,
        worker: &Worker,
        (client, socket): (SocketAddr, &Rc<UdpSocket>),
    ) -> Result<Self, OpenError> {
        let carrier = match &proxy.proxy.config.tunneling {
            Some(tunneling) => Carrier::Tunnelled(Waiting::new(tunneling.buffer)),
            None => {
                let checkout = worker.pools.checkout_udp(&proxy.proxy.target, &CONTEXT)?;
                let socket = UdpSocket::from_std(host_socket(checkout.address())?)?;
                Carrier::Direct(Box::new(Direct { checkout, socket }))
            }
        };
        Ok(Self {
            client,
            proxy: Rc::clone(proxy),
            reply: RefCell::new(Rc::clone(socket)),
            carrier,
            active: Cell::new(Instant::now()),
            received: Cell::default(),
            sent: Cell::default(),
            own: OnceCell::new(),
            changed: Notify::new(),
            ended: Cell::new(false),
            _place: place,
        })
    }

    /// Whether the client is to have another session: its host is not there any more.
    pub(super) fn is_stale(&self) -> bool {
        self.ended.get() || matches!(&self.carrier, Carrier::Direct(direct) if direct.checkout.is_gone())
    }

    /// Its task ends as soon as it can.
    pub(super) fn end(&self) {
        self.ended.set(true);
        self.changed.notify_one();
    }

    /// Its listener is gone: the client is heard and answered by `socket` from now on.
    pub(super) fn part(&self, socket: UdpSocket) {
        let socket = Rc::new(socket);
        self.reply.replace(Rc::clone(&socket));
        if self.own.set(socket).is_ok() {
            self.changed.notify_one();
        }
    }

    /// A datagram of the client.
    pub(super) fn take(&self, datagram: &[u8]) {
        let counters = &self.proxy.counters;
        counters.inc(UdpMetric::RxDatagrams);
        counters.add(UdpMetric::RxBytes, datagram.len() as u64);
        self.received.set(self.received.get() + datagram.len() as u64);
        self.active.set(Instant::now());
        let upstream = &self.proxy.upstream;
        match &self.carrier {
            Carrier::Tunnelled(waiting) => {
                if !waiting.push(datagram) {
                    upstream.inc(UdpClusterMetric::BufferOverflow);
                }
            }
            // Not by way of the reactor, which does not know yet that a new socket has room.
            Carrier::Direct(direct) => match rustix::net::send(&direct.socket, datagram, SendFlags::DONTWAIT) {
                Ok(_) => {
                    upstream.inc(UdpClusterMetric::TxDatagrams);
                    direct.checkout.add(ClusterMetric::CxTxBytesTotal, datagram.len() as u64);
                }
                Err(error) => {
                    tracing::debug!(client = %self.client, %error, "a datagram was not sent to its host");
                    upstream.inc(UdpClusterMetric::TxErrors);
                }
            },
        }
    }

    /// A datagram of the host for the client.
    pub(super) fn answer(&self, datagram: &[u8]) {
        let counters = &self.proxy.counters;
        self.proxy.upstream.inc(UdpClusterMetric::RxDatagrams);
        self.active.set(Instant::now());
        match rustix::net::sendto(&**self.reply.borrow(), datagram, SendFlags::DONTWAIT, &self.client) {
            Ok(_) => {
                counters.inc(UdpMetric::TxDatagrams);
                counters.add(UdpMetric::TxBytes, datagram.len() as u64);
                self.sent.set(self.sent.get() + datagram.len() as u64);
            }
            Err(error) => {
                tracing::debug!(client = %self.client, %error, "a datagram was not sent to its client");
                counters.inc(UdpMetric::TxErrors);
            }
        }
    }

    /// To its end; `local` is where its client sends to.
    pub(super) async fn run(&self, worker: &Rc<Worker>, local: SocketAddr) {
        let proxy = &self.proxy.proxy;
        let _held = proxy.watch.block();
        let downstream = Downstream {
            id: worker.connection_id(),
            remote: self.client,
            local,
            start: self.active.get(),
            tls: None,
            server_name: None,
            chain: "".into(),
            hosted: None,
        };
        let mut record = Record::new(&downstream, downstream.start);
        record.cluster = Some((&*proxy.config.cluster).into());
        let end = {
            let carried = pin!(self.carry(worker, &mut record));
            tokio::select! {
                biased;
                end = carried => end,
                end = self.own_datagrams(worker) => end,
                () = self.idle() => End::Idle,
                () = proxy.watch.expired() => End::CutOff,
            }
        };
        tracing::debug!(client = %self.client, ?end, "a UDP session has ended");
        match end {
            End::Idle => {
                self.proxy.counters.inc(UdpMetric::IdleTimeout);
                record.flag(ResponseFlag::StreamIdleTimeout);
            }
            End::NoStream => record.flag(ResponseFlag::UpstreamConnectionFailure),
            End::Broken => record.flag(ResponseFlag::UpstreamConnectionTermination),
            End::CutOff | End::Replaced | End::Closed => {}
        }
        if !self.proxy.logs.is_empty() {
            record.bytes_received = self.received.get();
            record.bytes_sent = self.sent.get();
            record.end = Some(Instant::now());
            let hostname = &*worker.process.hostname;
            self.proxy.logs.write(&Scene { record: &record, request: None, response: None, trailers: None, hostname });
        }
    }

    async fn carry(&self, worker: &Rc<Worker>, record: &mut Record<'_>) -> End {
        match (&self.carrier, &self.proxy.proxy.config.tunneling) {
            (Carrier::Tunnelled(waiting), Some(tunneling)) => {
                Box::pin(tunnelled::carry(self, (waiting, tunneling), worker, record)).await
            }
            (Carrier::Tunnelled(_), None) => End::NoStream,
            (Carrier::Direct(direct), _) => {
                let host = Some(direct.checkout.address());
                let local = direct.socket.local_addr().ok();
                record.upstream = Some(UpstreamSide { host, host_name: None, local, remote: host, protocol: None });
                self.receive(direct, worker).await
            }
        }
    }

    /// What the host sends.
    async fn receive(&self, direct: &Direct, worker: &Worker) -> End {
        let longest = self.proxy.proxy.config.max_upstream_datagram;
        loop {
            if let Err(error) = direct.socket.readable().await {
                tracing::debug!(client = %self.client, %error, "a session's socket failed");
                return End::Broken;
            }
            let mut buffer = worker.buffers.take();
            for _ in 0..BATCH {
                match direct.socket.try_recv(buffer.space()) {
                    Ok(length) if length > longest => self.proxy.upstream.inc(UdpClusterMetric::RxDropped),
                    Ok(length) => {
                        direct.checkout.add(ClusterMetric::CxRxBytesTotal, length as u64);
                        self.answer(buffer.space().get(..length).unwrap_or_default());
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        tracing::debug!(host = %direct.checkout.address(), %error, "a host takes no datagrams");
                        self.proxy.upstream.inc(UdpClusterMetric::RxErrors);
                    }
                }
            }
            drop(buffer);
            tokio::task::consume_budget().await;
        }
    }

    /// What the client sends once its listener is gone; before that, waits to be told.
    async fn own_datagrams(&self, worker: &Worker) -> End {
        let socket = loop {
            self.changed.notified().await;
            if self.ended.get() {
                return End::Replaced;
            }
            if let Some(socket) = self.own.get() {
                break socket;
            }
        };
        loop {
            if let Err(error) = socket.readable().await {
                tracing::debug!(client = %self.client, %error, "a session's socket failed");
                return End::Broken;
            }
            let mut buffer = worker.buffers.take();
            for _ in 0..BATCH {
                match socket.try_recv_from(buffer.space()) {
                    // Before it was connected it may have got what was for others.
                    Ok((length, from)) if from == self.client => {
                        self.take(buffer.space().get(..length).unwrap_or_default());
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        tracing::debug!(client = %self.client, %error, "cannot receive a datagram");
                        self.proxy.counters.inc(UdpMetric::RxErrors);
                    }
                }
            }
            drop(buffer);
            tokio::task::consume_budget().await;
        }
    }

    /// Returns when no datagram has passed for so long.
    async fn idle(&self) {
        let limit = self.proxy.proxy.config.idle_timeout;
        loop {
            let until = self.active.get() + limit;
            tokio::time::sleep_until(until).await;
            if self.active.get() + limit <= until {
                return;
            }
        }
    }
}

/// Datagrams say nothing that a host could be chosen by.
const CONTEXT: PickContext<'static> = PickContext {
    priority: Priority::Default,
    agent: None,
    request: None,
    downstream: DownstreamProtocol::Http1,
    tried: &[],
    fresh_picks: 0,
    destinations: None,
};
/// Datagrams that are taken before others have their turn.
const BATCH: usize = 32;
