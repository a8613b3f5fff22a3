//! HTTP/2 towards an upstream host: exchanges are streams, opened from any thread.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use tokio::sync::Notify;

use super::goodbye::{Goodbye, Parting};
use super::keepalive::Keepalive;
use super::path::Windows;
use super::pipe::Pipe;
use super::receive::Receive;
use super::transmit::{Out, Transmit};
use super::{MAX_LOCAL_RESETS, SEND_BUFFER, convert, stream_error};
use crate::client::Http2ClientOptions;
use crate::http1::fields::MAX_FIELDS;
use crate::{Blame, BodyKind, CONNECTION_FIELD, Fields, Io, Method, RequestHead, ResponseHead, StreamError};

/// Between PINGs where only the first was asked for: one a day.
const NO_INTERVAL: Duration = Duration::from_secs(86_400);
/// More interim responses than this are an attack or a loop.
const MAX_INFORMATIONAL: u8 = 16;

#[derive(Debug)]
struct Shared {
    closed: AtomicBool,
    active: AtomicUsize,
    limit: usize,
    /// The peer's SETTINGS have arrived (or never will).
    settled: AtomicBool,
    settling: Notify,
    goodbye: Option<Arc<Goodbye>>,
}

impl Shared {
    fn settle(&self) {
        self.settled.store(true, Ordering::Release);
        self.settling.notify_waiters();
    }

    /// Until the peer has said what it takes; `false`: it did not in time.
    async fn settled(&self) -> bool {
        let settling = self.settling.notified();
        self.settled.load(Ordering::Acquire) || tokio::time::timeout(SETTLING, settling).await.is_ok()
    }
}

/// How long a peer may leave open what it takes: its SETTINGS are the first that it sends (RFC 9113, 3.4).
const SETTLING: Duration = Duration::from_secs(5);

/// The peer's limit of streams until its SETTINGS arrive; no limit that a peer can set is this.
const UNSETTLED: usize = usize::MAX - 1;

/// What all users of a connection hold.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    sender: SendRequest<Bytes>,
    shared: Arc<Shared>,
}

impl Handle {
    pub(crate) fn capacity(&self) -> usize {
        let limit = self.sender.current_max_send_streams().min(self.shared.limit);
        limit.saturating_sub(self.active())
    }

    /// GOAWAY, on a connection that was opened with `says_goodbye`; streams go on.
    pub(crate) fn say_goodbye(&self) {
        if let Some(goodbye) = &self.shared.goodbye {
            goodbye.say();
        }
    }

    pub(crate) fn active(&self) -> usize {
        self.shared.active.load(Ordering::Relaxed)
    }

    /// The library tells of a GOAWAY, a broken connection and used-up stream ids by refusing the next stream.
    pub(crate) fn is_open(&self) -> bool {
        !self.shared.closed.load(Ordering::Acquire)
            && matches!(
                self.sender.clone().poll_ready(&mut Context::from_waker(Waker::noop())),
                Poll::Ready(Ok(())) | Poll::Pending
            )
    }
}

/// Drives a connection: reads, writes, keeps alive.
struct Driver {
    connection: Connection<Parting, Bytes>,
    keepalive: Option<Keepalive>,
    windows: Windows,
    shared: Arc<Shared>,
}

impl Future for Driver {
    type Output = Result<(), StreamError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(goodbye) = &this.shared.goodbye {
            goodbye.driven_by(cx.waker());
        }
        if let Some(keepalive) = &mut this.keepalive {
            if keepalive.poll_dead(cx).is_ready() {
                return Poll::Ready(Err(StreamError::new(Blame::Upstream, crate::StreamErrorKind::Timeout)));
            }
            if let Some((stream, connection)) = keepalive.take_measured().and_then(|time| this.windows.follow(time)) {
                this.connection.set_target_window_size(connection);
                // Settings under way already are followed by the next measurement.
                if let Err(error) = this.connection.set_initial_window_size(stream) {
                    tracing::debug!(%error, "a window cannot grow now");
                }
            }
        }
        let result = Pin::new(&mut this.connection).poll(cx);
        if !this.shared.settled.load(Ordering::Relaxed) && this.connection.max_concurrent_send_streams() != UNSETTLED {
            this.shared.settle();
        }
        let result = ready!(result);
        Poll::Ready(result.map_err(|error| stream_error(Blame::Upstream, &error)))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.settle();
    }
}

pub(crate) async fn connect(
    io: Io,
    options: &Http2ClientOptions,
) -> Result<(Handle, impl Future<Output = Result<(), StreamError>> + Send + use<>), StreamError> {
    let goodbye = options.says_goodbye.then(Arc::<Goodbye>::default);
    let io = Parting::new(io, goodbye.clone());
    let (sender, mut connection) = Builder::new()
        .initial_window_size(options.initial_stream_window)
        .initial_connection_window_size(options.initial_connection_window)
        .max_frame_size(options.max_frame_size)
        .max_header_list_size(options.max_head_bytes)
        .max_local_error_reset_streams(Some(MAX_LOCAL_RESETS))
        .max_send_buffer_size(SEND_BUFFER)
        .initial_max_send_streams(UNSETTLED)
        .enable_push(false)
        .handshake::<_, Bytes>(io)
        .await
        .map_err(|error| stream_error(Blame::Upstream, &error).untouched(true))?;
    let interval = options.keepalive_interval.or(options.first_ping.map(|_| NO_INTERVAL));
    let keepalive = interval.and_then(|interval| {
        let (round_trip, first) = (options.round_trip.clone(), options.first_ping);
        let keepalive = |pings| Keepalive::new(pings, interval, options.keepalive_timeout, round_trip);
        connection.ping_pong().map(|pings| match first {
            Some(first) => keepalive(pings).first_after(first),
            None => keepalive(pings),
        })
    });
    let windows =
        Windows::new(options.initial_stream_window, options.initial_connection_window, options.most_stream_window);
    let limit = usize::try_from(options.max_concurrent_streams).unwrap_or(usize::MAX);
    let shared = Arc::new(Shared {
        closed: AtomicBool::new(false),
        active: AtomicUsize::new(0),
        limit,
        settled: AtomicBool::new(false),
        settling: Notify::new(),
        goodbye,
    });
    let handle = Handle { sender, shared: Arc::clone(&shared) };
    // Boxed: it is moved about on its way to whoever drives it, and each place would have its size.
    Ok((handle, Box::pin(Driver { connection, keepalive, windows, shared })))
}

/// Counts a stream that outlives its exchange.
#[derive(Debug)]
pub(crate) struct Active(Arc<Shared>);

impl Active {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.active.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One request and its response; counts as active until it is dropped, which resets what has not ended.
#[derive(Debug)]
pub(crate) struct Exchange {
    send: Transmit,
    response: Response,
    handle: Handle,
}

/// The response's half.
#[derive(Debug)]
pub(crate) struct Response {
    future: Option<ResponseFuture>,
    body: Option<Receive>,
    /// CONNECT, extended or not: a 2xx opens a tunnel.
    connect: bool,
    informational: u8,
}

impl Exchange {
    pub(crate) fn new(handle: Handle) -> Self {
        handle.shared.active.fetch_add(1, Ordering::Relaxed);
        let response = Response { future: None, body: None, connect: false, informational: 0 };
        Self { send: Transmit::new(Out::None, Blame::Upstream), response, handle }
    }

    pub(crate) async fn send_head(&mut self, head: &RequestHead, body: BodyKind) -> Result<(), StreamError> {
        let connect = head.method == Method::Connect || head.upgrade.is_some();
        let request = convert::write_request(head, body)?;
        let failed = |error: h2::Error| {
            // Whatever stops a stream from being opened, the peer has not seen the request.
            let mut failed = stream_error(Blame::Upstream, &error);
            failed.untouched = true;
            failed
        };
        let sender = &mut self.handle.sender;
        poll_fn(|cx| sender.poll_ready(cx)).await.map_err(failed)?;
        if head.upgrade.is_some() && !sender.is_extended_connect_protocol_enabled() {
            // RFC 8441, 3: only who has said so takes it; on a new connection that is still on its way.
            let settled = self.handle.shared.settled().await;
            if self.handle.shared.closed.load(Ordering::Acquire) {
                return Err(StreamError::closed(Blame::Upstream).untouched(true));
            }
            if !sender.is_extended_connect_protocol_enabled() {
                let detail = if settled {
                    "the upstream does not take extended CONNECT"
                } else {
                    "the upstream did not say whether it takes extended CONNECT"
                };
                return Err(StreamError::protocol(Blame::Upstream, 502, detail).untouched(true));
            }
        }
        let end = body.is_empty() && !connect;
        let (future, stream) = sender.send_request(request, end).map_err(failed)?;
        self.send.set_out(Out::Request(stream));
        self.send.begin(body, end, false);
        self.response = Response { future: Some(future), body: None, connect, informational: 0 };
        Ok(())
    }

    /// Opens a connection over the stream: a CONNECT that is marked as ours, and its answer.
    pub(crate) async fn connect(&mut self, authority: &str) -> Result<Pipe, StreamError> {
        let mut head =
            RequestHead { method: Method::Connect, authority: authority.to_owned(), ..RequestHead::default() };
        head.fields.push(CONNECTION_FIELD, b"1");
        self.send_head(&head, BodyKind::Empty).await?;
        let mut answer = ResponseHead::default();
        let kind = self.response.head(&mut answer).await?;
        let halves = self.response.body.take().zip(self.send.take_request());
        match halves {
            Some((receive, send)) if kind == BodyKind::Tunnel => {
                Ok(Pipe::new(receive.into_stream(), send, Some(Active::new(&self.handle.shared))))
            }
            _ => Err(StreamError::protocol(Blame::Upstream, 502, "the other end takes no connection over a stream")),
        }
    }

    pub(crate) fn split(&mut self) -> (&mut Transmit, &mut Response) {
        (&mut self.send, &mut self.response)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.handle.shared.active.fetch_sub(1, Ordering::Relaxed);
        let ended = self.send.is_ended() && self.response.body.as_ref().is_some_and(Receive::is_ended);
        if !ended {
            self.send.cancel(Reason::CANCEL);
        }
    }
}

impl Response {
    pub(crate) async fn head(&mut self, into: &mut ResponseHead) -> Result<BodyKind, StreamError> {
        let blame = Blame::Upstream;
        let future = self.future.as_mut().ok_or(StreamError::misuse("a response to no request"))?;
        // Interim responses come before the final one, so they are asked for first.
        let interim = poll_fn(|cx| match future.poll_informational(cx) {
            Poll::Ready(Some(interim)) => Poll::Ready(Ok(Err(interim))),
            Poll::Ready(None) | Poll::Pending => Pin::new(&mut *future).poll(cx).map(|response| response.map(Ok)),
        });
        let response = match interim.await.map_err(|error| stream_error(blame, &error))? {
            Ok(response) => response,
            Err(interim) => {
                let interim = interim.map_err(|error| stream_error(blame, &error))?;
                self.informational += 1;
                if self.informational > MAX_INFORMATIONAL {
                    return Err(StreamError::protocol(blame, 502, "more than 16 interim responses"));
                }
                convert::read_response(interim.status(), interim.headers(), into);
                return Ok(BodyKind::Empty);
            }
        };
        self.future = None;
        convert::read_response(response.status(), response.headers(), into);
        if into.status == 101 {
            return Err(StreamError::protocol(blame, 502, "a 101 in HTTP/2"));
        }
        if into.fields.len() > MAX_FIELDS {
            return Err(StreamError::protocol(blame, 502, "too many header fields in the response"));
        }
        let body = Receive::new(response.into_body(), blame);
        let kind = if self.connect && (200..300).contains(&into.status) {
            BodyKind::Tunnel
        } else {
            convert::body_kind(&into.fields, body.is_ended())
        };
        self.body = Some(body);
        Ok(kind)
    }

    pub(crate) fn body(&mut self) -> Result<&mut Receive, StreamError> {
        self.body.as_mut().ok_or(StreamError::misuse("a body without a head"))
    }

    pub(crate) fn trailers(&self) -> Option<&Fields> {
        self.body.as_ref().and_then(Receive::trailers)
    }
}
