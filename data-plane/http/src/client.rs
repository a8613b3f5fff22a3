//! The client's half: connections to upstream hosts, one exchange interface over HTTP/1 and HTTP/2.

use crate::{BodyKind, Chunk, Fields, Io, RequestHead, ResponseHead, StreamError};

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
pub struct Http1Client {
    io: Io,
}

impl Http1Client {
    #[must_use]
    pub fn new(io: Io) -> Self {
        Self { io }
    }

    /// Ready when the idle connection is closed by the peer or holds bytes that nobody asked for: either way it is of
    /// no more use. Holds no buffer, and makes no system call while the reactor knows of no event. The waker stays
    /// registered with the socket (`poll_read_ready`) until the next read or poll, so that whoever gives a borrowed
    /// connection back can register its watcher's waker without waking it.
    pub fn poll_closed(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        let _ = (&self.io, cx);
        todo!()
    }

    /// Resolves when [`Self::poll_closed`] is ready.
    pub async fn closed(&mut self) {
        std::future::poll_fn(|cx| self.poll_closed(cx)).await;
    }

    /// Begins an exchange.
    #[must_use]
    pub fn exchange(self) -> ClientExchange {
        todo!()
    }

    /// The raw connection, for TCP proxying.
    #[must_use]
    pub fn into_io(self) -> Io {
        self.io
    }
}

/// An HTTP/2 connection's handle.
#[derive(Debug, Clone)]
pub struct Http2Client(());

/// Options of an HTTP/2 client connection.
#[derive(Debug, Clone)]
pub struct Http2ClientOptions {
    pub initial_stream_window: u32,
    pub initial_connection_window: u32,
    pub max_concurrent_streams: u32,
    pub max_head_bytes: u32,
    pub keepalive_interval: Option<std::time::Duration>,
    pub keepalive_timeout: std::time::Duration,
}

impl Http2Client {
    /// Opens HTTP/2 on `io`: the handle, and the driver that must run on the worker that owns `io`. The driver ends
    /// when the connection does.
    pub async fn connect(
        io: Io,
        options: &Http2ClientOptions,
    ) -> Result<(Self, impl Future<Output = Result<(), StreamError>> + use<>), StreamError> {
        let _ = (io, options);
        if true {
            todo!()
        }
        Ok((Self(()), async { Ok(()) }))
    }

    /// Streams that may still be opened now: the peer's limit less those open. Zero: open another connection.
    #[must_use]
    pub fn capacity(&self) -> usize {
        todo!()
    }

    /// Whether the connection still takes new streams (no GOAWAY, not closed).
    #[must_use]
    pub fn is_open(&self) -> bool {
        todo!()
    }

    /// Begins an exchange.
    #[must_use]
    pub fn exchange(&self) -> ClientExchange {
        todo!()
    }
}

/// One request and its response.
#[derive(Debug)]
pub struct ClientExchange(());

impl ClientExchange {
    /// Sends the request's head. Buffered until the first piece of body, [`RequestSink::finish`] or
    /// [`RequestSink::flush`].
    pub async fn send_head(&mut self, head: &RequestHead, body: BodyKind) -> Result<(), StreamError> {
        let _ = (head, body);
        todo!()
    }

    /// Both directions, to be driven at the same time.
    pub fn split(&mut self) -> (RequestSink<'_>, ResponseSource<'_>) {
        todo!()
    }

    /// Ends the exchange. `Some`: an HTTP/1 connection whose request and response both ended cleanly and that may
    /// serve another. Dropping an exchange resets its stream or closes its connection.
    #[must_use]
    pub fn finish(self) -> Option<Http1Client> {
        todo!()
    }
}

/// Where the request's body goes.
#[derive(Debug)]
pub struct RequestSink<'a>(std::marker::PhantomData<&'a mut ()>);

impl RequestSink<'_> {
    /// Sends a piece; returns when there is room for the next.
    pub async fn data(&mut self, chunk: Chunk<'_>) -> Result<(), StreamError> {
        let _ = chunk;
        todo!()
    }

    /// Sends what is buffered.
    pub async fn flush(&mut self) -> Result<(), StreamError> {
        todo!()
    }

    /// Ends the request.
    pub async fn finish(&mut self, trailers: Option<&Fields>) -> Result<(), StreamError> {
        let _ = trailers;
        todo!()
    }
}

/// Where the response comes from.
#[derive(Debug)]
pub struct ResponseSource<'a>(std::marker::PhantomData<&'a mut ()>);

impl ResponseSource<'_> {
    /// The next head, 1xx included; says how the body ends. `request_was_head` suppresses the body.
    pub async fn head(&mut self, into: &mut ResponseHead) -> Result<BodyKind, StreamError> {
        let _ = into;
        todo!()
    }

    /// The next piece of the body; `None` at its end.
    pub async fn chunk(&mut self) -> Result<Option<Chunk<'_>>, StreamError> {
        todo!()
    }

    /// After the end.
    #[must_use]
    pub fn trailers(&self) -> Option<&Fields> {
        todo!()
    }
}
