//! The server's half: a downstream connection yields exchanges.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use crate::buffers::Buffer;
use crate::drain::Drain;
use crate::farewell::Farewell;
use crate::http1::read::Reader;
use crate::http1::server::{Reply, Sink as Http1Sink};
use crate::http1::write::Writer;
use crate::http1::{self, Wire};
use crate::http2::path::RoundTrip;
use crate::http2::{self, receive::Receive};
use crate::stream::{Sink, Source};
use crate::{BodyKind, Chunk, Fields, Io, RequestHead, ResponseHead, ResponseSource, Splice, StreamError};

/// Serves one request. HTTP/1: called for one request after the other. HTTP/2: one local task per stream.
pub trait Handler: 'static {
    /// Must finish or reset the response. What it leaves of the request body is drained (up to 64 KiB) or the
    /// connection is closed.
    fn handle(self: &Rc<Self>, exchange: Exchange<'_>) -> impl Future<Output = ()>;

    /// Serves a connection that came as a CONNECT stream (see [`ServerOptions::connections`]) and has been accepted.
    fn connection(self: &Rc<Self>, io: Io) -> impl Future<Output = ()> {
        async move { drop(io) }
    }

    /// A request that the codec refused and answered itself (400, 431 ...): for statistics and the access log.
    fn refused(&self, status: u16, detail: &'static str);

    /// An HTTP/2 client has sent GOAWAY: it opens no further stream (or has said so), and waits for the answers.
    fn leaving(&self) {}

    /// An HTTP/2 connection that is closed because its client broke the protocol or floods it: for statistics.
    fn cut_off(&self, detail: &'static str) {
        let _ = detail;
    }
}

/// One request and the means to answer it.
#[derive(Debug)]
pub struct Exchange<'a> {
    pub request: &'a mut RequestHead,
    pub body: RequestBody<'a>,
    pub response: ResponseSink<'a>,
}

/// Limits and modes of a server connection.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    pub protocol: Protocol,
    /// A request head beyond this many bytes is answered by 431.
    pub max_head_bytes: usize,
    /// So is one with more fields than this.
    pub max_fields: usize,
    /// From the first byte of a head to its last; then 408. There is always one: a head that never ends holds a buffer.
    pub head_timeout: Duration,
    /// How long a client that still sends may take to read a connection's last answer.
    pub linger: Duration,
    /// HTTP/2: from the GOAWAY that announces a connection's end until one without streams is closed, acknowledged or
    /// not. HTTP/1: at most as long, and never longer than half a second, a connection at rest waits for a request.
    pub drain_timeout: Duration,
    /// Without a request.
    pub idle_timeout: Option<Duration>,
    /// Of the connection; the exchange that it ends in is finished.
    pub max_duration: Option<Duration>,
    /// The connection ends with this many.
    pub max_requests: Option<u32>,
    /// HTTP/1.0 is answered by 426 otherwise.
    pub accept_http_10: bool,
    /// Methods that are not registered are answered by 400 otherwise.
    pub custom_methods: bool,
    /// HTTP/2: streams at a time, bytes that a peer may send ahead on each and on all together.
    pub max_concurrent_streams: u32,
    pub initial_stream_window: u32,
    pub initial_connection_window: u32,
    /// HTTP/2: as [`crate::Http2ClientOptions::max_frame_size`].
    pub max_frame_size: u32,
    /// HTTP/2: a PING at this interval; unanswered within the timeout the connection is closed.
    pub keepalive_interval: Option<Duration>,
    pub keepalive_timeout: Duration,
    /// HTTP/2: the greatest stream window, to which windows grow with the round trip; 0: they stay.
    pub most_stream_window: u32,
    /// HTTP/2: what PINGs measure; the first one then comes within half a second.
    pub round_trip: Option<RoundTrip>,
    /// HTTP/2: a CONNECT with [`crate::CONNECTION_FIELD`] is a connection of its own, for [`Handler::connection`]. Only
    /// where the peer is trusted to forward no such request of others.
    pub connections: bool,
    /// HTTP/2: RFC 8441.
    pub extended_connect: bool,
    /// HTTP/2: a client's GOAWAY does not end the connection, not even one without streams; its end does. RFC 9113, 6.8: it
    /// says that the client takes no streams of ours, and it may go on to open its own. For tunnels, of which the client says so
    /// before its last requests.
    pub client_ends: bool,
    /// HTTP/2: frames that are of no use.
    pub flood_limits: FloodLimits,
    /// `http` or `https`.
    pub scheme: &'static str,
}

/// From how many frames on that are of no use a client's HTTP/2 connection is closed. The names are those of Envoy's
/// fields, as are the defaults, but for that of `empty_frames`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloodLimits {
    /// `max_outbound_control_frames`: PING, SETTINGS (which count twice) and unknown ones in 10 s, and ten more for each
    /// stream and frame of data.
    pub control_frames: u32,
    /// `max_consecutive_inbound_frames_with_empty_payload`. Envoy allows one; two streams that begin at the same time
    /// may have one each.
    pub empty_frames: u32,
    /// `max_inbound_priority_frames_per_stream`
    pub priority_frames: u32,
    /// `max_inbound_window_update_frames_per_data_frame_sent`
    pub window_updates: u32,
}

impl Default for FloodLimits {
    fn default() -> Self {
        Self { control_frames: 1000, empty_frames: 100, priority_frames: 100, window_updates: 10 }
    }
}

impl Default for ServerOptions {
    /// Envoy's advice for the edge: what is safe against strangers.
    fn default() -> Self {
        Self {
            protocol: Protocol::Auto,
            max_head_bytes: 60 * 1024,
            max_fields: 100,
            head_timeout: Duration::from_secs(10),
            linger: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(5),
            idle_timeout: Some(Duration::from_secs(3600)),
            max_duration: None,
            max_requests: None,
            accept_http_10: false,
            custom_methods: false,
            max_concurrent_streams: 100,
            initial_stream_window: 64 * 1024,
            initial_connection_window: 1024 * 1024,
            max_frame_size: 16_384,
            keepalive_interval: None,
            keepalive_timeout: Duration::from_secs(20),
            most_stream_window: 0,
            round_trip: None,
            connections: false,
            extended_connect: false,
            client_ends: false,
            flood_limits: FloodLimits::default(),
            scheme: "http",
        }
    }
}

/// What a client may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// By HTTP/2's preface.
    Auto,
    Http1,
    Http2,
}

/// Serves a connection until it ends, breaks or has drained. Must run inside a `LocalSet` (HTTP/2 streams are tasks).
///
/// When `drain` resolves, the exchange that runs is finished with `connection: close` (HTTP/2: GOAWAY, and the open
/// streams are finished), and the connection then closed.
pub async fn serve<H: Handler>(mut io: Io, options: &ServerOptions, handler: Rc<H>, drain: impl Future<Output = ()>) {
    let drain = pin!(drain);
    let mut drain = Drain::new(drain);
    let mut buffer = Buffer::default();
    let http2 = if options.protocol == Protocol::Http1 {
        false
    } else {
        match http2::preface::detect(&mut io, &mut buffer, options, &mut drain).await {
            Some(false) if options.protocol == Protocol::Http2 => {
                handler.cut_off("no preface of HTTP/2");
                let mut farewell = Farewell::new(options.linger);
                if let Err(error) = std::future::poll_fn(|cx| farewell.poll(&mut io, cx)).await {
                    tracing::debug!(%error, "a client that does not speak HTTP/2 was gone");
                }
                return;
            }
            Some(http2) => http2,
            None => return,
        }
    };
    if http2 {
        Box::pin(http2::server::serve(io, buffer, options, &handler, &mut drain)).await;
    } else {
        http1::server::serve(io, buffer, options, &handler, &mut drain).await;
    }
}

/// The request's body.
#[derive(Debug)]
pub struct RequestBody<'a> {
    pub(crate) source: Source<'a>,
    kind: BodyKind,
}

impl<'a> RequestBody<'a> {
    pub(crate) fn http1(wire: &'a Wire, read: &'a mut Reader, kind: BodyKind) -> Self {
        Self { source: Source::Http1 { wire, read }, kind }
    }

    pub(crate) fn http2(receive: &'a mut Receive, kind: BodyKind) -> Self {
        Self { source: Source::Http2(receive), kind }
    }
}

impl RequestBody<'_> {
    /// What the head says of the body. Of an upgrade or CONNECT: [`BodyKind::Empty`]; once the response's head was sent
    /// as [`BodyKind::Tunnel`], [`Self::chunk`] yields the tunnel's bytes.
    #[must_use]
    pub fn kind(&self) -> BodyKind {
        self.kind
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// The client is gone, reset the stream, or broke the body's framing (then the error names the status to answer
    /// with, and what was sent upstream must not be completed).
    pub async fn chunk(&mut self) -> Result<Option<Chunk<'_>>, StreamError> {
        self.source.chunk().await
    }

    /// As [`Self::chunk`], but the piece stays within the kernel; `None`: it has to be asked for by [`Self::chunk`].
    ///
    /// # Errors
    /// As [`Self::chunk`].
    pub async fn splice(&mut self) -> Result<Option<Splice>, StreamError> {
        self.source.splice().await
    }

    /// Whether [`Self::chunk`] would return without waiting. If not, what was queued into a sink should be flushed.
    pub fn ready(&mut self) -> bool {
        self.source.ready()
    }

    /// After the end.
    #[must_use]
    pub fn trailers(&self) -> Option<&Fields> {
        self.source.trailers()
    }

    /// Resolves when the client is gone or reset the stream: nobody waits for the response any more. Notices it only
    /// once the body was read to its end (before, [`Self::chunk`] does). An HTTP/1 client that closes its sending
    /// direction counts as gone; one that has pipelined further requests is not seen going. Cheap enough for each request.
    pub async fn closed(&mut self) {
        match &mut self.source {
            Source::Http1 { wire, read } => std::future::poll_fn(|cx| read.poll_closed(wire, cx)).await,
            Source::Http2(receive) => std::future::poll_fn(|cx| receive.poll_reset(cx)).await,
        }
    }
}

/// Where the response goes.
#[derive(Debug)]
pub struct ResponseSink<'a>(Response<'a>);

#[derive(Debug)]
enum Response<'a> {
    Http1(Http1Sink<'a>),
    Http2(&'a mut http2::server::Reply),
}

impl<'a> ResponseSink<'a> {
    pub(crate) fn http1(wire: &'a Wire, write: &'a mut Writer, reply: &'a mut Reply) -> Self {
        Self(Response::Http1(Http1Sink { wire, write, reply }))
    }

    pub(crate) fn http2(reply: &'a mut http2::server::Reply) -> Self {
        Self(Response::Http2(reply))
    }
}

impl ResponseSink<'_> {
    /// Sends a head: a 1xx (any number of times), then the final one (once). `BodyKind::Empty` ends the stream; trailers
    /// of a body that is empty belong into its head.
    /// Nothing of a final head reaches the socket before the first [`Self::data`], [`Self::finish`] or [`Self::flush`]
    /// must send it. [`BodyKind::Tunnel`] answers an upgrade or CONNECT: as 101 or 2xx, whichever the client's protocol
    /// wants, whatever `head` says of the two.
    ///
    /// # Errors
    /// The client is gone, or the head cannot be sent (blame `Internal`).
    pub async fn head(&mut self, head: &ResponseHead, body: BodyKind) -> Result<(), StreamError> {
        match &mut self.0 {
            Response::Http1(sink) => sink.head(head, body).await,
            Response::Http2(reply) => reply.head(head, body),
        }
    }

    pub(crate) fn body(&mut self) -> Sink<'_> {
        match &mut self.0 {
            Response::Http1(sink) => Sink::Http1 { wire: sink.wire, write: sink.write },
            Response::Http2(reply) => Sink::Http2(reply.body()),
        }
    }

    /// Sends a piece of the body; returns when there is room for the next.
    ///
    /// # Errors
    /// The client is gone, or there is more body than the head said (blame `Internal`).
    pub async fn data(&mut self, chunk: Chunk<'_>) -> Result<(), StreamError> {
        self.body().data(chunk, false).await
    }

    /// As [`Self::data`], but a small piece may wait for the next call: for when more is there already.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub async fn queue(&mut self, chunk: Chunk<'_>) -> Result<(), StreamError> {
        self.body().data(chunk, true).await
    }

    /// Whether [`ResponseSource::splice`] is worth while now.
    #[must_use]
    pub fn can_splice(&mut self, source: &mut ResponseSource<'_>) -> bool {
        source.body().is_ok_and(|source| self.body().can_splice(&source))
    }

    /// Takes over all that is left of a response's body, if that is short and here already: how long it is. Nothing is left
    /// then but to [`Self::flush`].
    pub fn take_rest(&mut self, source: &mut ResponseSource<'_>) -> Option<u64> {
        let mut source = source.body().ok()?;
        self.body().take_rest(&mut source)
    }

    /// Sends a piece that is within the kernel, as [`Self::data`].
    ///
    /// # Errors
    /// As [`Self::data`].
    pub async fn splice(&mut self, piece: Splice) -> Result<(), StreamError> {
        self.body().splice(piece).await
    }

    /// Sends what is buffered.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn flush(&mut self) -> Result<(), StreamError> {
        self.body().flush().await
    }

    /// Ends the body. Forbidden trailer fields are left out.
    ///
    /// # Errors
    /// The client is gone, or there is less body than the head said (blame `Internal`).
    pub async fn finish(&mut self, trailers: Option<&Fields>) -> Result<(), StreamError> {
        self.body().finish(trailers).await
    }

    /// Ends the stream at once as failed: RST_STREAM, or the connection is closed.
    pub fn reset(&mut self) {
        match &mut self.0 {
            Response::Http1(sink) => sink.write.fail(),
            Response::Http2(reply) => reply.reset(),
        }
    }

    /// After this response the connection is closed (HTTP/1: `connection: close`, if the head is still to be sent;
    /// HTTP/2: GOAWAY).
    pub fn close_after(&mut self) {
        match &mut self.0 {
            Response::Http1(sink) => sink.wire.closing.set(true),
            Response::Http2(reply) => reply.close_after(),
        }
    }
}
