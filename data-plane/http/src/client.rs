//! The client's half: connections to upstream hosts, one exchange interface over HTTP/1 and HTTP/2.

use std::time::Duration;

use crate::http1::client as http1;
use crate::http2::client as http2;
use crate::http2::path::RoundTrip;
use crate::stream::{Sink, Source};
use crate::{BodyKind, Chunk, Fields, Io, RequestBody, RequestHead, ResponseHead, Splice, StreamError};

/// A connection to an upstream host.
#[derive(Debug)]
pub enum Client {
    /// One exchange at a time: moved into the exchange and given back by [`ClientExchange::finish`].
    Http1(Http1Client),
    /// Cloneable from any worker; exchanges are streams.
    Http2(Http2Client),
}

/// An idle HTTP/1 connection. `Send`: a tunnel's may be borrowed by another worker for one exchange.
#[derive(Debug)]
pub struct Http1Client(Box<http1::Connection>);

impl Http1Client {
    #[must_use]
    pub fn new(io: Io) -> Self {
        Self(Box::new(http1::Connection::new(io)))
    }

    /// Ready when the idle connection is closed by the peer or holds bytes that nobody asked for: either way it is of
    /// no more use. Holds no buffer, and makes no system call while the reactor knows of no event. The waker stays
    /// registered with the socket until the next read or poll, so that whoever gives a borrowed connection back can
    /// register its watcher's waker without waking it.
    pub fn poll_closed(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        self.0.poll_closed(cx)
    }

    /// Whether the idle connection is of no more use, as [`Self::poll_closed`], but looked at once: no waker is
    /// registered.
    #[must_use]
    pub fn is_closed(&mut self) -> bool {
        self.0.is_closed()
    }

    /// Resolves when [`Self::poll_closed`] is ready.
    pub async fn closed(&mut self) {
        std::future::poll_fn(|cx| self.poll_closed(cx)).await;
    }

    /// Begins an exchange.
    #[must_use]
    pub fn exchange(self) -> ClientExchange {
        ClientExchange(Inner::Http1(self.0))
    }

    /// Whether it has served an exchange before: then it may turn out to be closed (a [`StreamError`] that names the peer untouched).
    #[must_use]
    pub fn is_reused(&self) -> bool {
        self.0.is_reused()
    }

    /// The raw connection, for TCP proxying.
    #[must_use]
    pub fn into_io(self) -> Io {
        self.0.into_io()
    }

    /// The raw connection, to look at.
    #[must_use]
    pub fn io(&mut self) -> &mut Io {
        self.0.wire.io.get_mut()
    }
}

/// An HTTP/1 connection whose response nobody wants any more: reading the rest of it makes the connection free for
/// another exchange. `Send`, as [`Http1Client`].
#[derive(Debug)]
pub struct Http1Rest {
    connection: Box<http1::Connection>,
    budget: u64,
}

impl Http1Rest {
    /// Reads and drops. Ready with whether the connection may serve another exchange; `false` too when the response is
    /// longer than was allowed. The caller sets the deadline.
    pub fn poll_drain(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<bool> {
        self.connection.poll_drain(cx, &mut self.budget)
    }

    /// After [`Self::poll_drain`] said that it may serve another.
    #[must_use]
    pub fn into_client(self) -> Http1Client {
        Http1Client(self.connection)
    }
}

/// What an exchange leaves of its connection.
#[derive(Debug)]
pub enum Leftover {
    /// An HTTP/1 connection whose request and response both ended cleanly and that may serve another.
    Reusable(Http1Client),
    /// An HTTP/1 connection on which the response is not read to its end.
    Unread(Http1Rest),
    /// Nothing: a stream that has ended, or a connection of no more use.
    Nothing,
}

/// Options of an HTTP/2 client connection.
#[derive(Debug, Clone)]
pub struct Http2ClientOptions {
    /// Bytes that the peer may send ahead on a stream.
    pub initial_stream_window: u32,
    /// And on all of them together.
    pub initial_connection_window: u32,
    /// The largest frame that the peer may send, 16,384 to 16,777,215: a large one costs a long body less.
    pub max_frame_size: u32,
    /// Streams that we open at a time, whatever more the peer allows.
    pub max_concurrent_streams: u32,
    /// Response heads beyond this many bytes fail their stream.
    pub max_head_bytes: u32,
    /// A PING at this interval; unanswered within the timeout the connection is closed.
    pub keepalive_interval: Option<Duration>,
    pub keepalive_timeout: Duration,
    /// The greatest stream window, to which windows grow with the round trip; 0: they stay.
    pub most_stream_window: u32,
    /// What PINGs measure; the first one then comes within half a second.
    pub round_trip: Option<RoundTrip>,
    /// The first PING, so long after the connection's beginning; then at `keepalive_interval`, if there is one.
    pub first_ping: Option<Duration>,
    /// Whether [`Http2Client::say_goodbye`] will be called.
    pub says_goodbye: bool,
}

impl Default for Http2ClientOptions {
    fn default() -> Self {
        Self {
            initial_stream_window: 256 * 1024,
            initial_connection_window: 1024 * 1024,
            max_frame_size: 16_384,
            max_concurrent_streams: 1024,
            max_head_bytes: 60 * 1024,
            keepalive_interval: None,
            keepalive_timeout: Duration::from_secs(20),
            most_stream_window: 0,
            round_trip: None,
            first_ping: None,
            says_goodbye: false,
        }
    }
}

/// An HTTP/2 connection's handle. Clones share the connection; the driver stays with the worker that owns the socket.
#[derive(Debug, Clone)]
pub struct Http2Client(http2::Handle);

impl Http2Client {
    /// Opens HTTP/2 on `io`: the handle, and the driver that must run on the worker that owns `io`. The driver ends
    /// when the connection does: with the last handle and stream, or as an error. Whether the other end speaks HTTP/2 at
    /// all shows there too.
    pub fn connect(
        io: Io,
        options: &Http2ClientOptions,
    ) -> (Self, impl Future<Output = Result<(), StreamError>> + Send + use<>) {
        let (handle, driver) = http2::connect(io, options);
        (Self(handle), driver)
    }

    /// Streams that may still be opened now: the peer's limit (or ours) less those open. Zero: open another connection.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Tells the peer that this connection ends (GOAWAY): what is open goes on, and so does what is still begun. Without
    /// effect where [`Http2ClientOptions::says_goodbye`] is not set.
    pub fn say_goodbye(&self) {
        self.0.say_goodbye();
    }

    /// Exchanges that are open now, of all clones.
    #[must_use]
    pub fn active(&self) -> usize {
        self.0.active()
    }

    /// Whether the connection still takes new streams (no GOAWAY, not closed).
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.is_open()
    }

    /// Begins an exchange.
    #[must_use]
    pub fn exchange(&self) -> ClientExchange {
        self.exchange_of(0)
    }

    /// Begins an exchange of a group, which [`Self::end_group`] ends.
    #[must_use]
    pub fn exchange_of(&self, group: u64) -> ClientExchange {
        ClientExchange(Inner::Http2(Box::new(http2::Exchange::new(self.0.clone(), group))))
    }

    /// Resets every open stream of the group; others go on.
    pub fn end_group(&self, group: u64) {
        self.0.end_group(group);
    }
}

/// One request and its response.
#[derive(Debug)]
pub struct ClientExchange(Inner);

#[derive(Debug)]
enum Inner {
    Http1(Box<http1::Connection>),
    Http2(Box<http2::Exchange>),
}

impl ClientExchange {
    /// Sends the request's head. Buffered until the first piece of body, [`RequestSink::finish`] or
    /// [`RequestSink::flush`]. [`BodyKind::Empty`] says that nothing follows; it still wants a
    /// [`RequestSink::finish`] or [`RequestSink::flush`]. An upgrade or CONNECT has [`BodyKind::Empty`].
    ///
    /// # Errors
    /// The connection is gone (`untouched`), or the head cannot be sent (blame `Internal`).
    pub async fn send_head(&mut self, head: &RequestHead, body: BodyKind) -> Result<(), StreamError> {
        match &mut self.0 {
            Inner::Http1(connection) => connection.send_head(head, body),
            Inner::Http2(exchange) => exchange.send_head(head, body).await,
        }
    }

    /// Opens a connection of its own over a stream of HTTP/2: what is written and read on it are the bytes of a CONNECT
    /// that the other end takes as an accepted connection ([`crate::ServerOptions::connections`]). Each direction is
    /// closed on its own.
    ///
    /// # Errors
    /// The connection is gone (`untouched`), the other end refuses, or this is HTTP/1 (blame `Internal`).
    pub async fn connect(mut self, authority: &str) -> Result<Io, StreamError> {
        match &mut self.0 {
            Inner::Http1(_) => Err(StreamError::misuse("a connection over HTTP/1")),
            Inner::Http2(exchange) => Ok(Io::stream(exchange.connect(authority).await?)),
        }
    }

    /// Both directions, to be driven at the same time by one task.
    pub fn split(&mut self) -> (RequestSink<'_>, ResponseSource<'_>) {
        match &mut self.0 {
            Inner::Http1(connection) => {
                let http1::Connection { wire, read, write, state, .. } = &mut **connection;
                let wire = &*wire;
                let source = http1::Source { wire, read, state };
                (RequestSink(Sink::Http1 { wire, write }), ResponseSource(Origin::Http1(source)))
            }
            Inner::Http2(exchange) => {
                let (send, response) = exchange.split();
                (RequestSink(Sink::Http2(send)), ResponseSource(Origin::Http2(response)))
            }
        }
    }

    /// Whether this runs on an HTTP/1 connection that has served an exchange before.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        match &self.0 {
            Inner::Http1(connection) => connection.is_reused(),
            Inner::Http2(_) => false,
        }
    }

    /// Ends the exchange. `Some`: an HTTP/1 connection whose request and response both ended cleanly and that may
    /// serve another. Dropping an exchange resets its stream or closes its connection.
    #[must_use]
    pub fn finish(self) -> Option<Http1Client> {
        match self.0 {
            Inner::Http1(mut connection) => connection.reset_for_reuse().then_some(Http1Client(connection)),
            Inner::Http2(_) => None,
        }
    }

    /// As [`Self::finish`]; a response of which at most `budget` bytes can be left, to a request that was sent whole,
    /// may be read to its end instead.
    #[must_use]
    pub fn finish_or_rest(self, budget: u64) -> Leftover {
        match self.0 {
            Inner::Http1(connection) if !connection.is_reusable() && connection.is_drainable(budget) => {
                Leftover::Unread(Http1Rest { connection, budget })
            }
            inner => Self(inner).finish().map_or(Leftover::Nothing, Leftover::Reusable),
        }
    }
}

/// Where the request's body goes.
#[derive(Debug)]
pub struct RequestSink<'a>(pub(crate) Sink<'a>);

impl RequestSink<'_> {
    /// Sends a piece; returns when there is room for the next.
    ///
    /// # Errors
    /// The connection or stream is gone, or there is more body than the head said (blame `Internal`).
    pub async fn data(&mut self, chunk: Chunk<'_>) -> Result<(), StreamError> {
        self.0.data(chunk, false).await
    }

    /// As [`Self::data`], but a small piece may wait for the next call: for when more is there already.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub async fn queue(&mut self, chunk: Chunk<'_>) -> Result<(), StreamError> {
        self.0.data(chunk, true).await
    }

    /// Whether [`RequestBody::splice`] is worth while now.
    #[must_use]
    pub fn can_splice(&self, body: &RequestBody<'_>) -> bool {
        self.0.can_splice(&body.source)
    }

    /// Sends a piece that is within the kernel, as [`Self::data`].
    ///
    /// # Errors
    /// As [`Self::data`].
    pub async fn splice(&mut self, piece: Splice) -> Result<(), StreamError> {
        self.0.splice(piece).await
    }

    /// Sends what is buffered.
    ///
    /// # Errors
    /// The connection or stream is gone.
    pub async fn flush(&mut self) -> Result<(), StreamError> {
        self.0.flush().await
    }

    /// Ends the request. Forbidden trailer fields are left out.
    ///
    /// # Errors
    /// The connection or stream is gone, or there is less body than the head said (blame `Internal`).
    pub async fn finish(&mut self, trailers: Option<&Fields>) -> Result<(), StreamError> {
        self.0.finish(trailers).await
    }
}

/// Where the response comes from.
#[derive(Debug)]
pub struct ResponseSource<'a>(Origin<'a>);

#[derive(Debug)]
enum Origin<'a> {
    Http1(http1::Source<'a>),
    Http2(&'a mut http2::Response),
}

impl ResponseSource<'_> {
    /// The next head, 1xx included; says how the body ends (a HEAD request's response has none). 101, and a 2xx that
    /// answers CONNECT or an extended CONNECT, come as [`BodyKind::Tunnel`].
    ///
    /// # Errors
    /// The connection or stream is gone, or the peer broke the protocol (502).
    pub async fn head(&mut self, into: &mut ResponseHead) -> Result<BodyKind, StreamError> {
        match &mut self.0 {
            Origin::Http1(source) => source.head(into).await,
            Origin::Http2(response) => response.head(into).await,
        }
    }

    pub(crate) fn body(&mut self) -> Result<Source<'_>, StreamError> {
        match &mut self.0 {
            Origin::Http1(source) => Ok(Source::Http1 { wire: source.wire, read: source.read }),
            Origin::Http2(response) => response.body().map(Source::Http2),
        }
    }

    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// The connection or stream is gone, or the peer broke the body's framing.
    pub async fn chunk(&mut self) -> Result<Option<Chunk<'_>>, StreamError> {
        match &mut self.0 {
            Origin::Http1(source) => {
                let http1::Source { wire, read, .. } = source;
                let range = std::future::poll_fn(|cx| read.poll_chunk(wire, cx)).await?;
                Ok(range.map(|range| read.buffer.piece(range)))
            }
            Origin::Http2(response) => Ok(response.body()?.chunk().await?.map(Chunk::Owned)),
        }
    }

    /// As [`Self::chunk`], but the piece stays within the kernel; `None`: it has to be asked for by [`Self::chunk`].
    ///
    /// # Errors
    /// As [`Self::chunk`].
    pub async fn splice(&mut self) -> Result<Option<Splice>, StreamError> {
        self.body()?.splice().await
    }

    /// Whether [`Self::chunk`] would return without waiting. If not, what was queued into a sink should be flushed.
    pub fn ready(&mut self) -> bool {
        self.body().is_ok_and(|mut body| body.ready())
    }

    /// After the end.
    #[must_use]
    pub fn trailers(&self) -> Option<&Fields> {
        match &self.0 {
            Origin::Http1(source) => source.read.trailers(),
            Origin::Http2(response) => response.trailers(),
        }
    }
}
