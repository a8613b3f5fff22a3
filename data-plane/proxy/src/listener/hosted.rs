//! What a tunnel's HTTP/2 brings to a hosting listener: requests, one stream each.
//!
//! **A request meets the filter chain of the moment**, and holds that chain's drain back until it is answered; the tunnel
//! itself belongs to no chain. A chain that serves no HTTP is spoken HTTP/1 to, on a connection in memory.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_http::client::Http1Client;
use culvert_http::{BodyKind, Exchange, Handler, Io, ResponseHead, StreamError, relay_request, relay_response};
use culvert_model::Name;
use culvert_model::listener::TransportProtocol;
use culvert_model::tunnel::destinations::Destinations;
use culvert_tunnel::agent::{Hosted, HostedRequests};
use tokio::time::Instant;
use tokio::time::timeout;

use super::accept::{Active, Downstream, OfTunnel, WorkerListener, serve_hosted};
use super::generation::{Generation, WorkerChain, WorkerFilter};
use super::matching::Arrival;
use crate::http_manager::HttpConnection;
use crate::stats::ListenerMetric;
use crate::worker::Worker;

/// One tunnel's way to its listener, on one worker.
#[derive(Debug)]
pub struct Requests {
    worker: Rc<Worker>,
    name: Name,
    remote: SocketAddr,
    local: SocketAddr,
    destinations: Arc<Destinations>,
    current: RefCell<Option<Rc<Current>>>,
}

/// The chain that the last request met.
#[derive(Debug)]
struct Current {
    listener: Rc<WorkerListener>,
    generation: Rc<Generation>,
    chain: Rc<WorkerChain>,
    http: Option<Rc<HttpConnection>>,
    _counted: Active<ListenerMetric>,
}

impl Requests {
    pub(crate) fn new(worker: &Rc<Worker>, hosted: &Hosted) -> Self {
        Self {
            worker: Rc::clone(worker),
            name: Arc::clone(&hosted.listener),
            remote: hosted.peer,
            local: hosted.local,
            destinations: Arc::clone(&hosted.destinations),
            current: RefCell::default(),
        }
    }

    /// The chain of the moment; `None`: there is no listener of the name, or none of its chains fits.
    async fn current(&self) -> Option<Rc<Current>> {
        let known = self.current.borrow().clone();
        let listeners = &self.worker.process.listeners;
        let listener = match &known {
            Some(current) if !current.listener.slot.is_draining() => Rc::clone(&current.listener),
            // One that drains still serves what comes until its agent has told the server.
            _ => match listeners.get(&self.name).filter(|slot| slot.current().is_some()) {
                Some(slot) => self.worker.listener(&slot),
                None => self.worker.listener(&timeout(LISTENER, listeners.active(&self.name)).await.ok()?),
            },
        };
        let generation = listener.generation()?;
        if let Some(current) = known.filter(|current| Rc::ptr_eq(&current.generation, &generation)) {
            return Some(current);
        }
        let arrival = Arrival {
            local: self.local,
            remote: self.remote,
            direct: self.remote.ip(),
            transport: TransportProtocol::RawBuffer,
            server_name: None,
            alpn: &[],
        };
        let Some(chain) = generation.chain(&arrival, &self.worker) else {
            listener.counters.inc(ListenerMetric::NoFilterChainMatch);
            return None;
        };
        if chain.chain.tls.is_some() {
            // Whoever wants TLS wants to know who asks, and a stream of a tunnel cannot say: it is not served without.
            listener.counters.inc(ListenerMetric::NoFilterChainMatch);
            tracing::debug!(listener = %self.name, "a tunnel's request met a filter chain that wants TLS");
            return None;
        }
        let current = Rc::new(self.enter(listener, generation, chain));
        *self.current.borrow_mut() = Some(Rc::clone(&current));
        Some(current)
    }

    fn enter(&self, listener: Rc<WorkerListener>, generation: Rc<Generation>, chain: Rc<WorkerChain>) -> Current {
        listener.counters.inc(ListenerMetric::CxTotal);
        let counted = Active::new(&listener.counters, ListenerMetric::CxActive, Some(ListenerMetric::CxDestroy));
        let http = match &chain.filter {
            WorkerFilter::Http(manager) => {
                let downstream = Rc::new(Downstream {
                    id: self.worker.connection_id(),
                    remote: self.remote,
                    local: self.local,
                    start: Instant::now(),
                    tls: None,
                    server_name: None,
                    chain: Arc::clone(&chain.chain.config.name),
                    hosted: Some(Rc::new(self.of_tunnel())),
                });
                // The tunnel's bytes are counted as the tunnel's.
                Some(HttpConnection::open(manager, &self.worker, &downstream, Arc::default()))
            }
            WorkerFilter::Tcp(_) | WorkerFilter::Tunnel(_) => None,
        };
        Current { listener, generation, chain, http, _counted: counted }
    }

    /// Of a request or a connection that a stream brought: the tunnel is pinged as a whole.
    fn of_tunnel(&self) -> OfTunnel {
        OfTunnel { destinations: Arc::clone(&self.destinations), ..OfTunnel::default() }
    }

    /// Speaks HTTP/1 to a chain that takes bytes.
    async fn bridge(&self, current: &Current, exchange: Exchange<'_>) {
        let (near, far) = tokio::io::duplex(BRIDGE);
        let addresses = (self.remote, self.local);
        let slot = &current.listener.slot;
        let of_tunnel = self.of_tunnel();
        let far = Io::memory(far);
        let mut served =
            pin!(serve_hosted(&self.worker, slot, far, addresses, of_tunnel, std::future::pending(), || false));
        let mut forwarded = pin!(forward(exchange, Http1Client::new(Io::memory(near))));
        let outcome = tokio::select! {
            biased;
            outcome = &mut forwarded => outcome,
            () = &mut served => forwarded.await,
        };
        if let Err(error) = outcome {
            tracing::debug!(listener = %self.name, %error, "a request over a connection in memory failed");
        }
    }
}

impl HostedRequests for Requests {
    async fn serve(&self, exchange: Exchange<'_>) {
        let Some(current) = self.current().await else {
            tracing::debug!(listener = %self.name, "a tunnel's request found no filter chain");
            return answer(exchange, 503).await;
        };
        let _held = current.chain.chain.watch.block();
        match &current.http {
            Some(connection) => connection.handle(exchange).await,
            None => Box::pin(self.bridge(&current, exchange)).await,
        }
    }
}

/// One exchange, from head to trailers.
async fn forward(exchange: Exchange<'_>, client: Http1Client) -> Result<(), StreamError> {
    let Exchange { request, mut body, mut response } = exchange;
    let mut upstream = client.exchange();
    upstream.send_head(request, body.kind()).await?;
    let (mut sink, mut source) = upstream.split();
    let up = async { relay_request(&mut body, &mut sink).await.map(drop) };
    let down = async {
        let mut head = ResponseHead::default();
        loop {
            let kind = source.head(&mut head).await?;
            response.head(&head, kind).await?;
            if !head.is_informational() {
                match kind {
                    BodyKind::Empty => return response.finish(None).await,
                    _ => return relay_response(&mut source, &mut response).await.map(drop),
                }
            }
        }
    };
    let (mut up, mut down) = (pin!(up), pin!(down));
    let mut sent = false;
    // The answer is what counts: a request that its receiver did not want to read to the end is none the worse.
    std::future::poll_fn(|cx| {
        if !sent && let std::task::Poll::Ready(outcome) = up.as_mut().poll(cx) {
            sent = true;
            if let Err(error) = outcome {
                tracing::debug!(%error, "a request's body was not taken to its end");
            }
        }
        down.as_mut().poll(cx)
    })
    .await
}

async fn answer(exchange: Exchange<'_>, status: u16) {
    let mut response = exchange.response;
    let head = ResponseHead::new(status);
    let answered = match response.head(&head, BodyKind::Empty).await {
        Ok(()) => response.finish(None).await,
        Err(error) => Err(error),
    };
    if let Err(error) = answered {
        tracing::debug!(%error, "a tunnel's request could not be answered");
    }
}

/// How long a request may wait for the listener to come.
const LISTENER: Duration = Duration::from_secs(5);
const BRIDGE: usize = 64 * 1024;
