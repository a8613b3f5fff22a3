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
use crate::gathered::Gathered;
use crate::identity::Peer;
use crate::messages::Unfinished;
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
                let unfinished = Unfinished::default();
                let service = service_fn(move |mut request: Request<Incoming>| {
                    request.extensions_mut().insert(unfinished.clone());
                    let admitted = admitted(&control, &peer, &ending, request);
                    answer(Arc::clone(&control), routes.clone(), Arc::clone(&peer.address), admitted)
                });
                let connection = http2::Builder::new(streams)
                    .timer(TokioTimer::new())
                    .keep_alive_interval(Some(KEEPALIVE_INTERVAL))
                    .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                    .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
                    .serve_connection(TokioIo::new(Gathered::new(io)), service);
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

#[cfg(test)]
mod tests {
    use clap::Parser;
    use culvert_runtime::drain;
    use culvert_store::{Directory, load};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::Instant;

    use super::*;
    use crate::access::Access;
    use crate::args::Args;

    /// A PING with these flags (RFC 9113, 6.7).
    fn ping(flags: u8) -> [u8; 17] {
        [0, 0, 8, 6, flags, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    }

    const ACK: u8 = 1;

    /// Reads until the other end closes, but at most two minutes; answers pings or not. How many of its own pings were
    /// answered, and for how long the connection lived.
    async fn client(mut io: DuplexStream, answers: bool) -> (usize, Duration) {
        let began = Instant::now();
        let empty_settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let greeting = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &empty_settings, &ping(0), &ping(0)].concat();
        io.write_all(&greeting).await.unwrap();
        let mut answered = 0;
        let talk = async {
            let mut head = [0; 9];
            while io.read_exact(&mut head).await.is_ok() {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                let mut payload = vec![0; length as usize];
                io.read_exact(&mut payload).await.unwrap();
                let is_ping = head[3] == 6;
                answered += usize::from(is_ping && head[4] == ACK);
                if is_ping && head[4] != ACK && answers {
                    let frame = [[0, 0, 8, 6, ACK, 0, 0, 0, 0].as_slice(), &payload].concat();
                    io.write_all(&frame).await.unwrap();
                }
            }
        };
        drop(tokio::time::timeout(Duration::from_secs(120), talk).await);
        (answered, began.elapsed())
    }

    /// Serves connections that live so long.
    fn shared(max_age: Option<Duration>) -> Arc<Shared> {
        let folder = tempfile::tempdir().unwrap();
        let args = Args::parse_from(["culvert-control".as_ref(), "--config".as_ref(), folder.path().as_os_str()]);
        let first = load(folder.path(), args.options(), &Directory::default());
        let control = Arc::new(Control::new(&args, Access::new(&args, None), first));
        let settings = Settings { tls: None, max_age, what: What::Grpc(Routes::default()) };
        let handshakes = Semaphore::new(MAX_HANDSHAKES);
        Arc::new(Shared { settings, control, handshakes, refusals: LogLimit::new("refused connections") })
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_no_ping_is_gone_and_who_pings_is_answered() {
        let shared = shared(None);
        let (_trigger, drain) = drain::channel();
        for answers in [false, true] {
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            let (shared, drain) = (Arc::clone(&shared), drain.clone());
            let served = tokio::spawn(async move { shared.serve(ours, Peer::default(), drain).await });
            let (answered, lived) = client(theirs, answers).await;
            assert_eq!(answered, 2, "answers to its own pings");
            let expected = if answers { Duration::from_secs(120) } else { KEEPALIVE_INTERVAL + KEEPALIVE_TIMEOUT };
            assert_eq!(lived.as_secs(), expected.as_secs(), "it answers pings: {answers}");
            served.abort();
        }
    }

    /// Clients that came together come back one by one.
    #[tokio::test(start_paused = true)]
    async fn connections_end_at_their_age_more_or_less_a_tenth_and_not_together() {
        let age = Duration::from_secs(100);
        let shared = shared(Some(age));
        let (_trigger, drain) = drain::channel();
        let mut running = JoinSet::new();
        for _ in 0..50 {
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            let (shared, drain) = (Arc::clone(&shared), drain.clone());
            tokio::spawn(async move { shared.serve(ours, Peer::default(), drain).await });
            running.spawn(async move { client(theirs, true).await.1 });
        }
        let ages = running.join_all().await;
        let (least, most) = (*ages.iter().min().unwrap(), *ages.iter().max().unwrap());
        let (earliest, latest) = (age.mul_f64(0.9), age.mul_f64(1.1) + Duration::from_secs(1));
        assert!(earliest <= least && most <= latest, "expected {earliest:?} to {latest:?}, saw {least:?} to {most:?}");
        // Of 50, all in one half of the range: once in 10^14 runs.
        assert!(most - least > age.mul_f64(0.1), "all end within {:?}", most - least);
    }
}
