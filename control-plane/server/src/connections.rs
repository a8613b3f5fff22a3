//! Connections of gRPC and of polling: who may open one, how long it lives, how it ends.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use culvert_runtime::drain::{Trigger, Watch};
use culvert_runtime::log::LogLimit;
use culvert_runtime::sockets::set_nodelay;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceExt;

use crate::control::Control;
use crate::discovery::Call;
use crate::identity::Peer;
use crate::rest;
use crate::revoked::UntilRevoked;
use crate::slow::Streams;
use crate::tls::Tls;
use crate::tokens::Given;

/// As istiod's: a client that is gone without a word is noticed within 40 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Of one client connection; a client needs a handful.
const MAX_STREAMS_PER_CONNECTION: u32 = 1024;
/// At once; more are closed as they come.
const MAX_CONNECTIONS: usize = 50_000;
/// TLS handshakes at once: thousands of clients that come together wait here, and those that are served do not.
const MAX_HANDSHAKES: usize = 64;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For the head of a polling request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For streams to end after their connection was told to.
const GRACE: Duration = Duration::from_secs(10);

/// What all connections have in common.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) max_age: Option<Duration>,
    pub(crate) what: What,
}

/// What is served on a socket.
#[derive(Debug)]
pub(crate) enum What {
    Grpc(Routes),
    Rest,
}

/// Accepts until the process drains, then waits for the connections to end.
pub(crate) async fn serve(listener: TcpListener, settings: Settings, control: Arc<Control>, drain: Watch) {
    let follower = settings.tls.clone().map(|tls| tokio::spawn(tls.follow(Arc::clone(&control))));
    let handshakes = Semaphore::new(MAX_HANDSHAKES);
    let shared = Arc::new(Shared { settings, control, handshakes, refusals: LogLimit::new("refused connections") });
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            biased;
            _ = drain.draining() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(_) if connections.len() >= MAX_CONNECTIONS => {
                shared.control.metrics.connections_refused.add();
                if shared.refusals.allows() {
                    tracing::warn!(limit = MAX_CONNECTIONS, "too many connections; a new one is closed");
                }
            }
            Ok((stream, address)) => {
                connections.spawn(Arc::clone(&shared).connection(stream, address, drain.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // Out of descriptors, most likely: not to be tried in a tight loop.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    // Nobody is let in any more.
    drop(listener);
    while connections.join_next().await.is_some() {}
    if let Some(follower) = follower {
        follower.abort();
    }
}

struct Shared {
    settings: Settings,
    control: Arc<Control>,
    handshakes: Semaphore,
    /// Log lines that anybody can cause.
    refusals: LogLimit,
}

impl Shared {
    async fn connection(self: Arc<Self>, stream: TcpStream, address: SocketAddr, drain: Watch) {
        if let Err(error) = set_nodelay(&stream) {
            tracing::debug!(%error, %address, "no TCP_NODELAY");
        }
        self.control.metrics.connections_opened.add();
        let Some(tls) = &self.settings.tls else {
            return self.serve(stream, Peer::new(address, None), drain).await;
        };
        let handshake = async {
            let _permit = self.handshakes.acquire().await;
            tls.acceptor().accept(stream).await
        };
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => {
                let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                let peer = Peer::new(address, certificate.map(AsRef::as_ref));
                self.serve(stream, peer, drain).await;
            }
            Ok(Err(error)) => {
                self.control.metrics.handshakes_failed.add();
                if self.refusals.allows() {
                    tracing::warn!(%error, %address, "a TLS handshake failed");
                }
            }
            Err(_) => {
                self.control.metrics.handshakes_failed.add();
                if self.refusals.allows() {
                    tracing::warn!(%address, "a TLS handshake took too long");
                }
            }
        }
    }

    async fn serve(&self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer, drain: Watch) {
        // Its streams end when the process drains, and when the connection has lived long enough.
        let (retire, ending) = drain.child();
        match &self.settings.what {
            What::Grpc(routes) => {
                let address = Arc::clone(&peer.address);
                let (routes, control) = (routes.clone(), Arc::clone(&self.control));
                let streams = Streams { control: Arc::clone(&self.control), peer: Arc::clone(&peer.address) };
                let service = service_fn(move |request| {
                    let admitted = admitted(&control, &peer, &ending, request);
                    answer(Arc::clone(&control), routes.clone(), Arc::clone(&peer.address), admitted)
                });
                let connection = http2::Builder::new(streams)
                    .timer(TokioTimer::new())
                    .keep_alive_interval(Some(KEEPALIVE_INTERVAL))
                    .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                    .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
                    .serve_connection(TokioIo::new(io), service);
                let stop = http2::Connection::graceful_shutdown;
                self.until_ended(std::pin::pin!(connection), stop, &address, &retire, &drain).await;
            }
            What::Rest => {
                let address = Arc::clone(&peer.address);
                let control = Arc::clone(&self.control);
                let service = service_fn(move |request: Request<Incoming>| {
                    let (control, peer) = (Arc::clone(&control), peer.clone());
                    async move { Ok::<_, Infallible>(rest::answer(&control, &peer, request).await) }
                });
                let mut builder = auto::Builder::new(TokioExecutor::new());
                builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
                builder.http2().timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS_PER_CONNECTION);
                let connection = builder.serve_connection(TokioIo::new(io), service);
                let stop = auto::Connection::graceful_shutdown;
                self.until_ended(std::pin::pin!(connection), stop, &address, &retire, &drain).await;
            }
        }
    }

    /// Lets a connection live until it breaks, has lived long enough, or the process drains.
    async fn until_ended<C, E: std::fmt::Display>(
        &self,
        mut connection: Pin<&mut C>,
        stop: impl Fn(Pin<&mut C>),
        address: &str,
        retire: &Trigger,
        drain: &Watch,
    ) where
        C: Future<Output = Result<(), E>>,
    {
        let age = async {
            match self.settings.max_age {
                Some(age) => tokio::time::sleep(age.mul_f64(0.9 + fastrand::f64() * 0.2)).await,
                None => std::future::pending().await,
            }
        };
        let served = tokio::select! {
            served = connection.as_mut() => served,
            _ = drain.draining() => {
                // GOAWAY; the streams end by themselves.
                stop(connection.as_mut());
                connection.await
            }
            () = age => {
                self.control.metrics.connections_retired.add();
                stop(connection.as_mut());
                retire.start(GRACE);
                tokio::time::timeout(GRACE, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, peer = address, "a connection broke");
        }
    }
}

async fn answer(
    control: Arc<Control>,
    routes: Routes,
    peer: Arc<str>,
    admitted: Result<(Request<Incoming>, Option<Given>), Status>,
) -> Result<http::Response<Body>, Infallible> {
    let (request, token) = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => return Ok(refusal.into_http()),
    };
    let answer = match Call::of(request.uri().path()) {
        Some(call) => call.answer(&control, request).await,
        None => routes.oneshot(request).await?,
    };
    Ok(match token {
        Some(token) => answer.map(|answer| Body::new(UntilRevoked::new(answer, token, control, peer))),
        None => answer,
    })
}

/// The request with what its service has to know, and the token that it carries, if whoever makes it may.
fn admitted(
    control: &Control,
    peer: &Peer,
    ending: &Watch,
    mut request: Request<Incoming>,
) -> Result<(Request<Incoming>, Option<Given>), Status> {
    // Load balancers ask it, and know nobody.
    let is_health = request.uri().path().starts_with("/grpc.health.v1.Health/");
    let (peer, token) = match control.access.authenticate(peer, request.headers()) {
        Ok(known) => known,
        Err(_) if is_health => (peer.clone(), None),
        Err(status) => {
            control.metrics.unauthenticated.add();
            tracing::warn!(peer = &*peer.address, "a request is refused: {}", status.message());
            return Err(status);
        }
    };
    request.extensions_mut().insert(peer);
    request.extensions_mut().insert(ending.clone());
    Ok((request, token))
}
