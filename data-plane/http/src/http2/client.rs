//! HTTP/2 towards an upstream host: exchanges are streams, opened from any thread.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::core::{Core, Unopened};
use super::frame::code;
use super::handle::{Lease, Shared, StreamRef};
use super::keepalive::Keepalive;
use super::link::{Link, Turn};
use super::path::Windows;
use super::pipe::Pipe;
use super::read_heads::body_kind;
use super::receive::Receive;
use super::transmit::Transmit;
use super::{stream_error, write_heads};
use crate::buffers::give_response;
use crate::client::Http2ClientOptions;
use crate::deadline::Deadline;
use crate::{
    Blame, BodyKind, CONNECTION_FIELD, Fields, Io, Method, RequestHead, ResponseHead, StreamError, StreamErrorKind,
};

/// Between PINGs where only the first was asked for: one a day.
const NO_INTERVAL: Duration = Duration::from_secs(86_400);
/// How long a peer may leave open what it takes: its SETTINGS are the first that it sends (RFC 9113, 3.4).
const SETTLING: Duration = Duration::from_secs(5);
/// How long a peer may take to read our last words.
const FAREWELL: Duration = Duration::from_secs(1);

/// What all users of a connection hold.
#[derive(Debug, Clone)]
pub(crate) struct Handle(Arc<Owner>);

/// The connection ends when the last one is gone, and the last stream.
#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
    says_goodbye: bool,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.with(Core::abandon);
    }
}

impl Handle {
    pub(crate) fn capacity(&self) -> usize {
        let most = self.0.shared.with_quietly(|core| core.most_streams());
        most.saturating_sub(self.active())
    }

    /// GOAWAY, on a connection that was opened with `says_goodbye`; streams go on.
    pub(crate) fn say_goodbye(&self) {
        if self.0.says_goodbye {
            self.0.shared.with(Core::say_goodbye);
        }
    }

    pub(crate) fn end_group(&self, group: u64) {
        self.0.shared.with(|core| core.reset_group(group));
    }

    pub(crate) fn active(&self) -> usize {
        self.0.shared.active.load(Ordering::Relaxed)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.0.shared.with_quietly(|core| core.is_open())
    }
}

/// Drives a connection: reads, writes, keeps alive.
struct Driver {
    link: Link,
    keepalive: Option<Keepalive>,
    windows: Windows,
    /// How it ends, and until when the peer may take our last words.
    ending: Option<(Result<(), StreamError>, Instant)>,
    deadline: Deadline,
}

impl Future for Driver {
    type Output = Result<(), StreamError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some((result, until)) = this.ending {
            return this.poll_end(cx, result, until);
        }
        match this.poll_turn(cx) {
            Poll::Ready(Ok(result)) => {
                let until = Instant::now() + FAREWELL;
                this.ending = Some((result, until));
                this.poll_end(cx, result, until)
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Driver {
    /// Ready with how the connection ends when there are last words to be said, and with an error or nothing when not.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<Result<(), StreamError>, StreamError>> {
        let closed = |error: std::io::Error| {
            tracing::debug!(%error, "an HTTP/2 connection broke");
            StreamError::closed(Blame::Upstream)
        };
        let read = self.link.poll_read(cx).map_err(closed)?;
        if read == Turn::Ended {
            // The socket is closed without a word: nobody is there to read one.
            return Poll::Ready(Ok(Ok(())));
        }
        // Behind the read: it may have brought the answer.
        if let Some(keepalive) = &mut self.keepalive {
            if keepalive.poll_dead(&self.link.shared, cx).is_ready() {
                return Poll::Ready(Err(StreamError::new(Blame::Upstream, StreamErrorKind::Timeout)));
            }
            if let Some((stream, connection)) = keepalive.take_measured().and_then(|time| self.windows.follow(time)) {
                self.link.shared.lock().grow(stream, connection);
            }
        }
        let write = self.link.poll_write(cx).map_err(closed)?;
        let mut core = self.link.shared.lock();
        if let Some(broken) = core.broken() {
            return Poll::Ready(Ok(Err(StreamError::protocol(Blame::Upstream, 502, broken.detail))));
        }
        if write == Turn::Resting {
            if core.is_done() {
                core.say_last();
                let refused = core.peer_goaway().is_some_and(|code| code != code::NO_ERROR);
                let error = StreamError::new(Blame::Upstream, StreamErrorKind::Refused).untouched(true);
                return Poll::Ready(Ok(if refused { Err(error) } else { Ok(()) }));
            }
            if !core.rest(cx.waker()) {
                cx.waker().wake_by_ref();
            }
        }
        if read == Turn::Busy || read == Turn::Swamped && write == Turn::Resting {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn poll_end(
        &mut self,
        cx: &mut Context<'_>,
        result: Result<(), StreamError>,
        until: Instant,
    ) -> Poll<Result<(), StreamError>> {
        let said = match self.link.poll_write(cx) {
            Ok(Turn::Busy) => Poll::Pending,
            Ok(_) => Pin::new(&mut self.link.io).poll_shutdown(cx),
            Err(error) => Poll::Ready(Err(error)),
        };
        match said {
            Poll::Pending if self.deadline.poll(cx, until).is_pending() => return Poll::Pending,
            Poll::Pending => tracing::debug!("an HTTP/2 server did not take our last words"),
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => tracing::debug!(%error, "an HTTP/2 server was gone before our last words"),
        }
        Poll::Ready(result)
    }
}

/// The handle, and the driver, whose first turn sends the preface.
pub(crate) fn connect(
    io: Io,
    options: &Http2ClientOptions,
) -> (Handle, impl Future<Output = Result<(), StreamError>> + Send + use<>) {
    let interval = options.keepalive_interval.or(options.first_ping.map(|_| NO_INTERVAL));
    let keepalive = interval.map(|interval| {
        let keepalive = Keepalive::new(interval, options.keepalive_timeout, options.round_trip.clone());
        match options.first_ping {
            Some(first) => keepalive.first_after(first),
            None => keepalive,
        }
    });
    let windows =
        Windows::new(options.initial_stream_window, options.initial_connection_window, options.most_stream_window);
    let link = Link::new(io, Core::client(options), &[]);
    let shared = Arc::clone(&link.shared);
    let handle = Handle(Arc::new(Owner { shared, says_goodbye: options.says_goodbye }));
    // Boxed: it is moved about on its way to whoever drives it, and each place would have its size.
    (handle, Box::pin(Driver { link, keepalive, windows, ending: None, deadline: Deadline::new() }))
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
    lease: Option<Lease>,
    handle: Handle,
    /// What its stream belongs to.
    group: u64,
}

/// The response's half.
#[derive(Debug)]
pub(crate) struct Response {
    /// `None`: no request was sent, or the final head was read.
    stream: Option<StreamRef>,
    body: Option<Receive>,
    /// CONNECT, extended or not: a 2xx opens a tunnel.
    connect: bool,
}

impl Exchange {
    pub(crate) fn new(handle: Handle, group: u64) -> Self {
        handle.0.shared.active.fetch_add(1, Ordering::Relaxed);
        let response = Response { stream: None, body: None, connect: false };
        Self { send: Transmit::new(Blame::Upstream), response, lease: None, handle, group }
    }

    pub(crate) async fn send_head(&mut self, head: &RequestHead, body: BodyKind) -> Result<(), StreamError> {
        let connect = head.method == Method::Connect || head.upgrade.is_some();
        write_heads::check_request(head)?;
        let shared = &self.handle.0.shared;
        if head.upgrade.is_some() {
            takes_extended_connect(shared).await?;
        }
        let end = body.is_empty() && !connect;
        let group = self.group;
        let key = poll_fn(|cx| match shared.with(|core| core.open(head, body, end, group, cx)) {
            Ok(key) => Poll::Ready(Ok(key)),
            // Whatever stops a stream from being opened, the peer has not seen the request.
            Err(Unopened::Closed) => Poll::Ready(Err(StreamError::closed(Blame::Upstream).untouched(true))),
            Err(Unopened::Full) => Poll::Pending,
        })
        .await?;
        let lease = Lease::new(Arc::clone(shared), key);
        self.send.begin(lease.stream().clone(), body, end, false);
        self.response = Response { stream: Some(lease.stream().clone()), body: None, connect };
        self.lease = Some(lease);
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
        match self.lease.take() {
            Some(lease) if kind == BodyKind::Tunnel => Ok(Pipe::new(lease, Some(Active::new(&self.handle.0.shared)))),
            lease => {
                self.lease = lease;
                Err(StreamError::protocol(Blame::Upstream, 502, "the other end takes no connection over a stream"))
            }
        }
    }

    pub(crate) fn split(&mut self) -> (&mut Transmit, &mut Response) {
        (&mut self.send, &mut self.response)
    }
}

/// RFC 8441, 3: only who has said so takes it; on a new connection that is still on its way.
async fn takes_extended_connect(shared: &Shared) -> Result<(), StreamError> {
    let asked = poll_fn(|cx| shared.with_quietly(|core| core.poll_extended_connect(cx)));
    let answer = tokio::time::timeout(SETTLING, asked).await;
    if !shared.with_quietly(|core| core.is_open()) {
        return Err(StreamError::closed(Blame::Upstream).untouched(true));
    }
    let detail = match answer {
        Ok(true) => return Ok(()),
        Ok(false) => "the upstream does not take extended CONNECT",
        Err(_) => "the upstream did not say whether it takes extended CONNECT",
    };
    Err(StreamError::protocol(Blame::Upstream, 502, detail).untouched(true))
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.handle.0.shared.active.fetch_sub(1, Ordering::Relaxed);
        let ended = self.send.is_ended() && self.response.body.as_ref().is_some_and(Receive::is_ended);
        if let Some(lease) = self.lease.as_ref().filter(|_| !ended) {
            lease.reset(code::CANCEL);
        }
    }
}

impl Response {
    pub(crate) async fn head(&mut self, into: &mut ResponseHead) -> Result<BodyKind, StreamError> {
        let stream = self.stream.as_ref().ok_or(StreamError::misuse("a response to no request"))?;
        let read = poll_fn(|cx| stream.with(|core, key| core.poll_head(key, cx))).await;
        let (mut head, ended) = read.map_err(|failure| stream_error(Blame::Upstream, failure))?;
        std::mem::swap(into, &mut head);
        give_response(head);
        if into.is_informational() {
            return Ok(BodyKind::Empty);
        }
        let kind = if self.connect && (200..300).contains(&into.status) {
            BodyKind::Tunnel
        } else {
            body_kind(&into.fields, ended)
        };
        self.body = self.stream.take().map(|stream| Receive::new(stream, Blame::Upstream, ended));
        Ok(kind)
    }

    pub(crate) fn body(&mut self) -> Result<&mut Receive, StreamError> {
        self.body.as_mut().ok_or(StreamError::misuse("a body without a head"))
    }

    pub(crate) fn trailers(&self) -> Option<&Fields> {
        self.body.as_ref().and_then(Receive::trailers)
    }
}
