//! A request's hold on a connection.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use culvert_http::client::Http1Client;
use culvert_http::{ClientExchange, Io, Version};
use culvert_model::route::Priority;
use culvert_model::tunnel::TunnelProtocol;

use super::connection::{Link, milliseconds};
use super::host::{HostPool, Multiplexed};
use crate::failure::{Exhausted, UpstreamFailure};
use crate::host::{Host, HostMetric};
use crate::stats::ClusterMetric;
use crate::tunnel::{Lent, Whole};

/// One exchange with a host. Dropping it gives the connection back if the exchange ended cleanly and closes it
/// otherwise; permits and counts are given back either way.
#[derive(Debug)]
pub struct Checkout {
    /// Taken when it is dropped, and never before.
    exchange: Option<ClientExchange>,
    held: Option<Held>,
    request: Request,
    reused: bool,
    connect_time: Duration,
}

/// The connection under an exchange.
#[derive(Debug)]
pub(super) enum Held {
    /// `client` moves into the exchange.
    Http1 {
        client: Option<Http1Client>,
        /// Boxed, so that what moves with each request is small.
        link: Box<Link>,
    },
    Http2(Rc<Multiplexed>),
    Tunnel(Lent),
}

/// A request's place in the breaker and in the counts.
#[derive(Debug)]
struct Request {
    host: Rc<HostPool>,
    priority: Priority,
    /// Whether the balancer compares the host's load.
    least_request: bool,
}

impl Request {
    fn begin(
        host: Rc<HostPool>,
        priority: Priority,
        least_request: bool,
    ) -> Result<Self, (Rc<HostPool>, UpstreamFailure)> {
        let granted = host.stats.slot.slot.breakers().of(priority).requests.try_acquire();
        if !granted {
            host.count(ClusterMetric::RqPendingOverflow);
            return Err((host, UpstreamFailure::Overflow(Exhausted::Requests)));
        }
        host.count(ClusterMetric::RqTotal);
        host.count(ClusterMetric::RqActive);
        host.stats.block.inc(HostMetric::RqTotal);
        host.stats.block.inc(HostMetric::RqActive);
        if least_request {
            host.host().load().fetch_add(1, Ordering::Relaxed);
        }
        Ok(Self { host, priority, least_request })
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let stats = &self.host.stats;
        if self.least_request {
            stats.host.load().fetch_sub(1, Ordering::Relaxed);
        }
        stats.block.dec(HostMetric::RqActive);
        stats.slot.block.dec(ClusterMetric::RqActive);
        stats.slot.slot.breakers().of(self.priority).requests.release();
    }
}

impl Checkout {
    /// Begins an exchange over what is held; gives it back when the breaker refuses the request.
    pub(super) fn begin(
        host: Rc<HostPool>,
        held: Held,
        priority: Priority,
        least_request: bool,
    ) -> Result<Self, UpstreamFailure> {
        let request = match Request::begin(host, priority, least_request) {
            Ok(request) => request,
            Err((host, failure)) => {
                give_back(&host, held, priority);
                return Err(failure);
            }
        };
        let (exchange, held, reused) = match held {
            Held::Http1 { client, mut link } => {
                let reused = link.served > 0;
                link.served += 1;
                (client.map(Http1Client::exchange), Held::Http1 { client: None, link }, reused)
            }
            Held::Http2(connection) => {
                let reused = connection.has_served();
                request.host.began_http2(&connection);
                (Some(connection.client.exchange()), Held::Http2(connection), reused)
            }
            Held::Tunnel(mut lent) => {
                request.host.count(ClusterMetric::TunnelBorrowed);
                let reused = lent.connection().requests() > 0;
                (lent.begin(), Held::Tunnel(lent), reused)
            }
        };
        Ok(Self { exchange, held: Some(held), request, reused, connect_time: Duration::ZERO })
    }

    pub(super) fn waited(mut self, time: Duration) -> Self {
        self.connect_time = time;
        self
    }

    /// The exchange itself.
    ///
    /// # Panics
    /// Never: it is taken only when the checkout is dropped.
    #[expect(clippy::expect_used, reason = "set by `begin` and taken only by `drop`")]
    pub fn exchange(&mut self) -> &mut ClientExchange {
        self.exchange.as_mut().expect("an exchange until the checkout is dropped")
    }

    #[must_use]
    pub fn host(&self) -> &Host {
        self.request.host.host()
    }

    /// Whether the connection has served before: a failure before the response may mean that it was stale.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    /// Waiting, connecting and TLS; zero for a connection that was ready.
    #[must_use]
    pub fn connect_time(&self) -> Duration {
        self.connect_time
    }

    /// What is spoken on the connection.
    #[must_use]
    pub fn protocol(&self) -> Version {
        match &self.held {
            Some(Held::Http2(_)) => Version::Http2,
            Some(Held::Tunnel(lent)) if lent.connection().claim().protocol == TunnelProtocol::Http2 => Version::Http2,
            Some(Held::Http1 { .. } | Held::Tunnel(_)) | None => Version::Http11,
        }
    }

    /// Our end of the connection; `None` for tunnels.
    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.link()?.local
    }

    /// The other end of this very connection (`%UPSTREAM_REMOTE_ADDRESS%`).
    #[must_use]
    pub fn remote_address(&self) -> Option<SocketAddr> {
        self.link().map_or_else(|| self.host().address(), |link| link.remote)
    }

    fn link(&self) -> Option<&Link> {
        match &self.held {
            Some(Held::Http1 { link, .. }) => Some(link),
            Some(Held::Http2(connection)) => Some(&connection.link),
            Some(Held::Tunnel(_)) | None => None,
        }
    }

    /// Counts the final response's status for the cluster and the host.
    pub fn response(&self, status: u16) {
        self.request.host.stats.slot.answered(status);
        // Envoy: a host's success is any response but a 5xx.
        self.request.host.stats.block.inc(if status >= 500 { HostMetric::RqError } else { HostMetric::RqSuccess });
    }

    /// Records how long the response took (`upstream_rq_time`).
    pub fn response_time(&self, time: Duration) {
        self.request.host.stats.slot.block.record(ClusterMetric::RqTime, milliseconds(time));
    }

    /// Counts an event of the cluster on this worker.
    pub fn count(&self, metric: ClusterMetric) {
        self.request.host.count(metric);
        if matches!(metric, ClusterMetric::RqTimeout | ClusterMetric::RqPerTryTimeout) {
            self.request.host.stats.block.inc(HostMetric::RqTimeout);
        }
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        let Some(exchange) = self.exchange.take() else { return };
        let host = &self.request.host;
        match self.held.take() {
            Some(Held::Http1 { link, .. }) => {
                link.count_bytes();
                match exchange.finish() {
                    Some(client) => host.give_back(client, link, self.request.priority),
                    None => host.count(ClusterMetric::CxDestroyWithActiveRq),
                }
            }
            Some(Held::Http2(connection)) => {
                connection.link.count_bytes();
                drop(exchange);
                host.ended_http2(&connection);
            }
            Some(Held::Tunnel(lent)) => lent.finish(exchange),
            None => {}
        }
    }
}

/// What was held for a request that is not made after all.
fn give_back(host: &HostPool, held: Held, priority: Priority) {
    match held {
        Held::Http1 { client: Some(client), link } => host.give_back(client, link, priority),
        // Dropping a stream's right or a tunnel gives it back.
        Held::Http1 { client: None, .. } | Held::Http2(_) | Held::Tunnel(_) => {}
    }
}

/// A connection of its own to a host. Its permits are given back when it is dropped: keep it as long as the connection
/// that was taken out of it.
#[derive(Debug)]
pub struct TcpCheckout {
    upstream: Option<TcpUpstream>,
    link: Option<Link>,
    /// A stream of a tunnel counts as long as it is held.
    _lent: Option<Lent>,
    request: Request,
    connect_time: Duration,
}

/// What bytes can be proxied over.
#[derive(Debug)]
pub enum TcpUpstream {
    /// A socket, TLS over it, or a plain tunnel taken whole.
    Io(Io),
    /// A stream of an HTTP/2 tunnel: send a CONNECT head first.
    Stream(ClientExchange),
}

impl TcpCheckout {
    pub(super) fn dialled(
        host: Rc<HostPool>,
        io: Io,
        link: Link,
        priority: Priority,
        connect_time: Duration,
    ) -> Result<Self, UpstreamFailure> {
        let request = Request::begin(host, priority, false).map_err(|(_, failure)| failure)?;
        Ok(Self { upstream: Some(TcpUpstream::Io(io)), link: Some(link), _lent: None, request, connect_time })
    }

    pub(super) fn tunnel(
        host: Rc<HostPool>,
        mut lent: Lent,
        priority: Priority,
        least_request: bool,
    ) -> Result<Self, UpstreamFailure> {
        let request = Request::begin(host, priority, least_request).map_err(|(_, failure)| failure)?;
        let upstream = lent.take().map(|whole| match whole {
            Whole::Io(io) => TcpUpstream::Io(io),
            Whole::Stream(exchange) => TcpUpstream::Stream(exchange),
        });
        Ok(Self { upstream, link: None, _lent: Some(lent), request, connect_time: Duration::ZERO })
    }

    pub(super) fn waited(mut self, time: Duration) -> Self {
        self.connect_time = time;
        self
    }

    /// The connection; taken once.
    pub fn take(&mut self) -> Option<TcpUpstream> {
        self.upstream.take()
    }

    #[must_use]
    pub fn host(&self) -> &Host {
        self.request.host.host()
    }

    /// Our end of the connection; `None` for tunnels.
    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.link.as_ref()?.local
    }

    /// The other end of this very connection.
    #[must_use]
    pub fn remote_address(&self) -> Option<SocketAddr> {
        self.link.as_ref().map_or_else(|| self.host().address(), |link| link.remote)
    }

    /// Waiting, connecting and TLS; zero for a tunnel that was free.
    #[must_use]
    pub fn connect_time(&self) -> Duration {
        self.connect_time
    }

    /// Counts an event of the cluster on this worker.
    pub fn count(&self, metric: ClusterMetric) {
        self.request.host.count(metric);
    }

    /// Counts `n` of the cluster on this worker: bytes.
    pub fn add(&self, metric: ClusterMetric, n: u64) {
        self.request.host.stats.slot.block.add(metric, n);
    }
}
