//! A small HTTP server (HTTP/1 and HTTP/2 with prior knowledge) that says who it is and does what the path asks.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::Result;
use crate::client::read_head;
use crate::wait::in_time;

/// A running backend; ends when dropped.
///
/// | path | answer |
/// |---|---|
/// | `/status/N` | status N |
/// | `/delay/MS` | after so many milliseconds |
/// | `/gather/N` | once N requests have been under way at one moment |
/// | `/whole` | `NAME`, once the request has ended |
/// | `/bytes/N` | N bytes |
/// | `/pattern/N` | the N bytes of [`pattern`] |
/// | `/stream/N` | the same, of a length that is not said before |
/// | `/digest` | [`digest`] of the request's body, once it is whole |
/// | `/echo` | the request's body, streamed |
/// | `/headers` | the request's headers, a line each |
/// | anything else | `NAME` and a line end |
///
/// Every answer has `x-backend: NAME`.
#[derive(Debug)]
pub struct Backend {
    pub address: SocketAddr,
    requests: Arc<AtomicU64>,
    at_once: Arc<AtOnce>,
    task: JoinHandle<()>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Backend {
    /// Starts on a free port of loopback.
    pub async fn start(name: &str) -> Result<Self> {
        Self::listen(name, "127.0.0.1:0".parse()?).await
    }

    /// Starts on an address of choice.
    pub async fn listen(name: &str, address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let requests = Arc::new(AtomicU64::new(0));
        let at_once = Arc::new(AtOnce::default());
        let task = tokio::spawn(accept(listener, name.into(), Arc::clone(&requests), Arc::clone(&at_once)));
        Ok(Self { address, requests, at_once, task })
    }

    /// Requests seen so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The most requests that were under way at one moment.
    #[must_use]
    pub fn peak(&self) -> u64 {
        *self.at_once.peak.borrow()
    }
}

/// Requests under way.
#[derive(Debug, Default)]
struct AtOnce {
    now: AtomicU64,
    peak: watch::Sender<u64>,
}

/// One request under way; over when dropped, also with its connection.
struct UnderWay(Arc<AtOnce>);

impl UnderWay {
    fn begin(at_once: &Arc<AtOnce>) -> Self {
        let now = at_once.now.fetch_add(1, Ordering::SeqCst) + 1;
        at_once.peak.send_if_modified(|peak| {
            let more = now > *peak;
            *peak = now.max(*peak);
            more
        });
        Self(Arc::clone(at_once))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn accept(listener: TcpListener, name: Arc<str>, requests: Arc<AtomicU64>, at_once: Arc<AtOnce>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        let (name, requests, at_once) = (Arc::clone(&name), Arc::clone(&requests), Arc::clone(&at_once));
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            let service = service_fn(move |request| {
                requests.fetch_add(1, Ordering::Relaxed);
                let under_way = UnderWay::begin(&at_once);
                let answer = answer(Arc::clone(&name), at_once.peak.subscribe(), request);
                async move {
                    let answer = answer.await;
                    drop(under_way);
                    answer
                }
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            if let Err(error) = server.serve_connection_with_upgrades(TokioIo::new(socket), service).await {
                eprintln!("backend: {error}");
            }
        });
    }
}

type Body = BoxBody<Bytes, hyper::Error>;

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

fn streamed(bytes: &[u8]) -> Body {
    let frames: Vec<_> = bytes.chunks(16 << 10).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
    StreamBody::new(futures_util::stream::iter(frames)).boxed()
}

/// So many bytes of no order, always the same.
#[must_use]
pub fn pattern(count: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(count).unwrap_or(0)];
    fastrand::Rng::with_seed(count).fill(&mut bytes);
    bytes
}

/// SHA-256, in hex digits.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn answer(
    name: Arc<str>,
    mut peak: watch::Receiver<u64>,
    request: Request<Incoming>,
) -> std::result::Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let mut parts = path.trim_start_matches('/').split('/');
    let (verb, number) = (parts.next().unwrap_or(""), parts.next().and_then(|text| text.parse::<u64>().ok()));
    let mut status = StatusCode::OK;
    let body = match (verb, number) {
        ("status", Some(code)) => {
            status = u16::try_from(code)
                .ok()
                .and_then(|code| StatusCode::from_u16(code).ok())
                .unwrap_or(StatusCode::BAD_REQUEST);
            full(format!("{name}\n"))
        }
        ("delay", Some(milliseconds)) => {
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            full(format!("{name}\n"))
        }
        ("gather", Some(count)) => {
            if in_time("others", peak.wait_for(|peak| *peak >= count)).await.is_err() {
                status = StatusCode::GATEWAY_TIMEOUT;
            }
            full(format!("{name}\n"))
        }
        ("whole", _) => {
            if request.into_body().collect().await.is_err() {
                status = StatusCode::BAD_REQUEST;
            }
            full(format!("{name}\n"))
        }
        ("bytes", Some(count)) => full(vec![b'x'; usize::try_from(count).unwrap_or(0)]),
        ("pattern", Some(count)) => full(pattern(count)),
        ("stream", Some(count)) => streamed(&pattern(count)),
        ("digest", _) => match request.into_body().collect().await {
            Ok(body) => full(digest(&body.to_bytes())),
            Err(_) => {
                status = StatusCode::BAD_REQUEST;
                full("")
            }
        },
        ("echo", _) => request.into_body().boxed(),
        ("headers", _) => {
            let mut lines = format!("{} {}\n", request.method(), request.uri());
            for (key, value) in request.headers() {
                lines += &format!("{key}: {}\n", String::from_utf8_lossy(value.as_bytes()));
            }
            full(lines)
        }
        _ => full(format!("{name}\n")),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    if let Ok(value) = name.parse() {
        response.headers_mut().insert("x-backend", value);
    }
    Ok(response)
}

/// A server of its own kind on a free port: every connection is given to `serve`. For tests; it ends with the runtime.
pub async fn scripted<F: Future<Output = Result> + Send + 'static>(serve: fn(TcpStream) -> F) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                if let Err(error) = serve(socket).await {
                    eprintln!("backend: {error:#}");
                }
            });
        }
    });
    Ok(address)
}

/// Agrees to a WebSocket and gives every byte back, for [`scripted`].
pub async fn web_socket(mut socket: TcpStream) -> Result {
    read_head(&mut socket).await?;
    socket.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await?;
    let (mut reader, mut writer) = socket.split();
    tokio::io::copy(&mut reader, &mut writer).await?;
    Ok(())
}
