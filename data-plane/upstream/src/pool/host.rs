//! One worker's connections to one host.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use culvert_http::client::{Http1Client, Http2Client};
use culvert_model::route::Priority;
use rustls::pki_types::ServerName;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::DownstreamProtocol;
use super::checkout::Held;
use super::connection::{HostStats, Link, SlotStats};
use super::dial::{Offer, Wire};
use crate::failure::UpstreamFailure;
use crate::host::Host;
use crate::slot::ClusterConfig;
use crate::stats::ClusterMetric;

#[derive(Debug)]
pub(super) struct HostPool {
    pub(super) stats: Rc<HostStats>,
    config: RefCell<Arc<ClusterConfig>>,
    /// By which name its requests ask for the host in TLS; `None`: the configuration says.
    asked: Option<ServerName<'static>>,
    /// HTTP/1, the last one used on top: the others can grow old and be closed.
    idle: RefCell<Vec<Idle>>,
    http2: RefCell<Vec<Rc<Multiplexed>>>,
    /// An HTTP/2 connection that is being opened, for all that wait for it.
    pub(super) opening: RefCell<Opening>,
    pub(super) opened: Notify,
    /// Requests here that wait because no connection may be opened; something came back for them.
    pub(super) waiting: Cell<u32>,
    pub(super) returned: Notify,
    /// What ALPN chose last.
    pub(super) alpn: Cell<Option<Wire>>,
    clock: Rc<Cell<Instant>>,
}

#[derive(Debug)]
struct Idle {
    client: Http1Client,
    link: Box<Link>,
    since: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Opening {
    pub(super) under_way: bool,
    /// Counts the attempts that have ended.
    pub(super) round: u64,
    /// How the last one failed.
    pub(super) failure: Option<UpstreamFailure>,
}

/// An HTTP/2 connection.
#[derive(Debug)]
pub(super) struct Multiplexed {
    pub(super) client: Http2Client,
    pub(super) link: Link,
    pub(super) active: Cell<u32>,
    served: Cell<u32>,
    since: Cell<Instant>,
}

impl Multiplexed {
    pub(super) fn has_served(&self) -> bool {
        self.served.get() > 0
    }
}

impl HostPool {
    pub(super) fn new(
        host: &Arc<Host>,
        slot: &Rc<SlotStats>,
        config: &Arc<ClusterConfig>,
        asked: Option<ServerName<'static>>,
        clock: &Rc<Cell<Instant>>,
    ) -> Rc<Self> {
        let stats = HostStats { slot: Rc::clone(slot), host: Arc::clone(host), block: host.stats().block() };
        Rc::new(Self {
            stats: Rc::new(stats),
            config: RefCell::new(Arc::clone(config)),
            asked,
            idle: RefCell::default(),
            http2: RefCell::default(),
            opening: RefCell::default(),
            opened: Notify::new(),
            waiting: Cell::new(0),
            returned: Notify::new(),
            alpn: Cell::new(None),
            clock: Rc::clone(clock),
        })
    }

    pub(super) fn host(&self) -> &Arc<Host> {
        &self.stats.host
    }

    pub(super) fn asked(&self) -> Option<&ServerName<'static>> {
        self.asked.as_ref()
    }

    /// Whether no connection is kept in it.
    pub(super) fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty() && self.http2.borrow().is_empty()
    }

    pub(super) fn count(&self, metric: ClusterMetric) {
        self.stats.slot.block.inc(metric);
    }

    /// The configuration that [`Self::configure`] took last.
    pub(super) fn config(&self) -> Arc<ClusterConfig> {
        Arc::clone(&self.config.borrow())
    }

    /// What a connection for such a client may speak.
    pub(super) fn offer(&self, downstream: DownstreamProtocol) -> Offer {
        Offer::of(&self.config.borrow(), downstream)
    }

    /// Takes the configuration of the moment; connections that were opened in another way are not used again.
    pub(super) fn configure(&self, config: &Arc<ClusterConfig>) {
        if Arc::ptr_eq(&self.config.borrow(), config) {
            return;
        }
        let before = self.config.replace(Arc::clone(config));
        if before.epoch != config.epoch {
            self.close_idle();
            self.alpn.set(None);
        }
    }

    /// Whether a request may wait for a connection that others open or use.
    pub(super) fn multiplexes(&self, offer: Offer) -> bool {
        match offer {
            Offer::Http2 => true,
            Offer::Either => self.alpn.get() != Some(Wire::Http1),
            Offer::Http1 | Offer::Raw => false,
        }
    }

    /// A connection that is open and has room.
    pub(super) fn reuse(&self, offer: Offer) -> Option<Held> {
        let http2 = || self.reuse_http2();
        let http1 = || self.reuse_http1();
        match offer {
            Offer::Http1 => http1(),
            Offer::Http2 => http2(),
            Offer::Either => http2().or_else(http1),
            Offer::Raw => None,
        }
    }

    fn reuse_http1(&self) -> Option<Held> {
        let mut idle = self.idle.borrow_mut();
        loop {
            let mut entry = idle.pop()?;
            // Whatever the reactor knows: no system call unless it has seen an event.
            if entry.client.is_closed() {
                self.count(ClusterMetric::CxDestroyRemote);
            } else if !self.expired(&entry.link, entry.since) {
                return Some(Held::Http1 { client: Some(entry.client), link: entry.link });
            }
        }
    }

    fn reuse_http2(&self) -> Option<Held> {
        let http2 = self.http2.borrow();
        let free = |connection: &&Rc<Multiplexed>| connection.client.is_open() && connection.client.capacity() > 0;
        let connection = http2.iter().find(free)?;
        Some(Held::Http2(Rc::clone(connection)))
    }

    /// Counts an exchange on the connection, and lets no other begin on it after its last.
    pub(super) fn began_http2(&self, connection: &Rc<Multiplexed>) {
        connection.active.set(connection.active.get() + 1);
        connection.served.set(connection.served.get() + 1);
        let config = self.config.borrow();
        let worn = config.cluster.max_requests_per_connection.is_some_and(|max| connection.served.get() >= max);
        let old =
            config.cluster.max_connection_duration.is_some_and(|max| connection.link.opened + max <= self.clock.get());
        if worn || old {
            self.count(if worn { ClusterMetric::CxMaxRequests } else { ClusterMetric::CxMaxDurationReached });
            self.forget_http2(connection);
        }
    }

    /// An exchange on the connection is over.
    pub(super) fn ended_http2(&self, connection: &Multiplexed) {
        connection.active.set(connection.active.get() - 1);
        connection.since.set(self.clock.get());
        if self.waiting.get() > 0 {
            self.returned.notify_one();
        }
    }

    pub(super) fn add_http2(&self, client: Http2Client, link: Link) -> Rc<Multiplexed> {
        let since = Cell::new(self.clock.get());
        let connection = Rc::new(Multiplexed { client, link, active: Cell::new(0), served: Cell::new(0), since });
        self.http2.borrow_mut().push(Rc::clone(&connection));
        connection
    }

    pub(super) fn forget_http2(&self, connection: &Rc<Multiplexed>) {
        self.http2.borrow_mut().retain(|candidate| !Rc::ptr_eq(candidate, connection));
    }

    /// Pools a connection after an exchange that ended well.
    pub(super) fn give_back(&self, client: Http1Client, link: Box<Link>, priority: Priority) {
        let max_requests = self.config.borrow().cluster.max_requests_per_connection;
        if max_requests.is_some_and(|max| link.served >= max) {
            self.count(ClusterMetric::CxMaxRequests);
            return;
        }
        let epoch = self.config.borrow().epoch;
        if self.host().is_gone() || link.epoch != epoch || self.expired(&link, self.clock.get()) {
            self.count(ClusterMetric::CxDestroyLocal);
            return;
        }
        let wanted = self.stats.slot.slot.breakers().of(priority).wanted.load(Ordering::Relaxed) > 0;
        if wanted && self.waiting.get() == 0 {
            // A request elsewhere waits for leave to open a connection: this one's place is its.
            self.count(ClusterMetric::CxDestroyLocal);
            return;
        }
        self.idle.borrow_mut().push(Idle { client, link, since: self.clock.get() });
        if self.waiting.get() > 0 {
            self.returned.notify_one();
        }
    }

    /// Whether a pooled connection is too old, or has been idle too long.
    fn expired(&self, link: &Link, since: Instant) -> bool {
        let config = self.config.borrow();
        let now = self.clock.get();
        if config.cluster.max_connection_duration.is_some_and(|max| link.opened + max <= now) {
            self.count(ClusterMetric::CxMaxDurationReached);
            return true;
        }
        if config.cluster.idle_timeout.is_some_and(|max| since + max <= now && since < now) {
            self.count(ClusterMetric::CxIdleTimeout);
            return true;
        }
        false
    }

    /// Closes what the peer has closed, and what is too old.
    pub(super) fn sweep(&self) {
        self.idle.borrow_mut().retain_mut(|entry| {
            if entry.client.is_closed() {
                self.count(ClusterMetric::CxDestroyRemote);
                return false;
            }
            !self.expired(&entry.link, entry.since)
        });
        self.http2.borrow_mut().retain(|connection| {
            connection.client.is_open()
                && (connection.active.get() > 0 || !self.expired(&connection.link, connection.since.get()))
        });
    }

    /// Closes one idle connection; whether there was one.
    pub(super) fn evict_idle(&self) -> bool {
        let mut idle = self.idle.borrow_mut();
        if !idle.is_empty() {
            // The one that was used longest ago.
            drop(idle.remove(0));
            self.count(ClusterMetric::CxDestroyLocal);
            return true;
        }
        let mut http2 = self.http2.borrow_mut();
        let place = http2.iter().position(|connection| connection.active.get() == 0);
        if let Some(place) = place {
            drop(http2.swap_remove(place));
            self.count(ClusterMetric::CxDestroyLocal);
        }
        place.is_some()
    }

    /// Closes what is idle; what is in use is closed when its exchanges are over.
    pub(super) fn close_idle(&self) {
        self.idle.borrow_mut().clear();
        self.http2.borrow_mut().clear();
    }
}
