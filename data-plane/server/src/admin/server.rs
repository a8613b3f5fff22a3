//! The socket of the admin interface, and the HTTP around its pages.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use culvert_runtime::sockets::{self, BindError, ListenOptions};
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tonic::body::Body;
use tower::ServiceExt;

use super::pages::Page;
use super::{Admin, client_status, guard};

/// A bound admin address.
#[derive(Debug)]
pub(crate) struct AdminSocket {
    listener: std::net::TcpListener,
    address: SocketAddr,
}

impl AdminSocket {
    /// Binds and listens.
    ///
    /// # Errors
    /// The address is in use or cannot be bound.
    pub(crate) fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let listener = sockets::bind(address, 1, ListenOptions { backlog: 128 })?.pop();
        let listener = listener.ok_or(BindError::InUse(address))?;
        let address = listener.local_addr().unwrap_or(address);
        Ok(Self { listener, address })
    }

    /// Serves until the process ends; returns the address, with its port.
    pub(crate) fn serve(self, admin: Arc<Admin>) -> SocketAddr {
        let address = self.address;
        if !address.ip().is_loopback() {
            let who = if admin.token.is_none() { "whoever reaches it" } else { "whoever overhears its token" };
            tracing::warn!(%address, "the admin interface is not on loopback: {who} may stop this process");
        }
        tokio::spawn(async move {
            match TcpListener::from_std(self.listener) {
                Ok(listener) => accept(listener, admin).await,
                Err(error) => tracing::error!(%error, "the admin interface cannot serve"),
            }
        });
        address
    }
}

async fn accept(listener: TcpListener, admin: Arc<Admin>) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let admin = Arc::clone(&admin);
                tokio::spawn(async move {
                    connection(stream, admin, BOUNDS).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the admin interface cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// How long others may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// For the head of a request, and between two of them.
    pub(super) head: Duration,
    /// For a connection to take up new requests.
    pub(super) life: Duration,
    /// For the answer that is under way then: a reader that is slower gets part of it.
    pub(super) last_answer: Duration,
}

pub(super) async fn connection(stream: TcpStream, admin: Arc<Admin>, bounds: Bounds) {
    let service = service_fn(move |request: Request<Incoming>| {
        let admin = Arc::clone(&admin);
        async move { Ok::<_, Infallible>(answer(&admin, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(bounds.head).max_buf_size(MAX_HEAD);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS).max_header_list_size(MAX_HEAD as u32);
    let served = builder.serve_connection(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);
    let ended = match tokio::time::timeout(bounds.life, served.as_mut()).await {
        Ok(ended) => ended,
        Err(_) => {
            served.as_mut().graceful_shutdown();
            match tokio::time::timeout(bounds.last_answer, served).await {
                Ok(ended) => ended,
                Err(_) => {
                    tracing::info!("an admin connection is closed: its answer is read too slowly");
                    return;
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an admin connection failed");
    }
}

async fn answer(admin: &Arc<Admin>, request: Request<Incoming>) -> Response<Body> {
    let page = match guard::check(&request, admin.token.as_ref()) {
        Ok(()) if is_grpc(&request) => return called(admin, request).await,
        Ok(()) => admin.page(request.method(), request.uri().path(), request.uri().query().unwrap_or("")).await,
        Err(refusal) => Page::text(refusal.status, refusal.text),
    };
    let unauthorized = page.status == StatusCode::UNAUTHORIZED;
    let mut response = Response::new(Body::new(Full::new(Bytes::from(page.body))));
    *response.status_mut() = page.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if unauthorized {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE);
    request.version() == Version::HTTP_2 && kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// A call of one of the services.
async fn called(admin: &Arc<Admin>, request: Request<Incoming>) -> Response<Body> {
    match client_status::services(admin) {
        Ok(services) => match services.oneshot(request.map(Body::new)).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
        Err(error) => {
            tracing::error!(%error, "the admin interface has no gRPC services");
            tonic::Status::internal(error.to_string()).into_http()
        }
    }
}

const MAX_CONNECTIONS: usize = 64;
/// Of one connection.
const MAX_STREAMS: u32 = 16;
const MAX_HEAD: usize = 16 << 10;
const BOUNDS: Bounds =
    Bounds { head: Duration::from_secs(10), life: Duration::from_secs(60), last_answer: Duration::from_secs(30) };
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
