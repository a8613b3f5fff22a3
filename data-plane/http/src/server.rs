//! The server's half: a downstream connection yields exchanges.

use std::rc::Rc;
use std::time::Duration;

use crate::{BodyKind, Chunk, Fields, Io, RequestHead, ResponseHead, StreamError};

/// Serves one request. HTTP/1: called for one request after the other. HTTP/2: one local task per stream.
pub trait Handler: 'static {
    /// Must finish or reset the response. What it leaves of the request body is drained (up to 64 KiB) or the
    /// connection is closed.
    fn handle(self: &Rc<Self>, exchange: Exchange<'_>) -> impl Future<Output = ()>;

    /// A request that the codec refused and answered itself (400, 431 ...): for statistics and the access log.
    fn refused(&self, status: u16, detail: &'static str);
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
    pub max_head_bytes: usize,
    pub max_fields: usize,
    pub head_timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    pub max_duration: Option<Duration>,
    pub max_requests: Option<u32>,
    pub accept_http_10: bool,
    pub custom_methods: bool,
    pub max_concurrent_streams: u32,
    pub initial_stream_window: u32,
    pub initial_connection_window: u32,
    pub keepalive_interval: Option<Duration>,
    pub keepalive_timeout: Duration,
    pub extended_connect: bool,
    pub scheme: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// By HTTP/2's preface.
    Auto,
    Http1,
    Http2,
}

/// Serves a connection until it ends, breaks or has drained.
pub async fn serve<H: Handler>(io: Io, options: &ServerOptions, handler: Rc<H>, drain: impl Future<Output = ()>) {
    let _ = (io, options, handler, drain);
    todo!()
}

/// The request's body.
#[derive(Debug)]
pub struct RequestBody<'a>(std::marker::PhantomData<&'a mut ()>);

impl RequestBody<'_> {
    /// What the head says of the body.
    #[must_use]
    pub fn kind(&self) -> BodyKind {
        todo!()
    }

    /// The next piece; `None` at the end.
    pub async fn chunk(&mut self) -> Result<Option<Chunk<'_>>, StreamError> {
        todo!()
    }

    /// After the end.
    #[must_use]
    pub fn trailers(&self) -> Option<&Fields> {
        todo!()
    }
}

/// Where the response goes.
#[derive(Debug)]
pub struct ResponseSink<'a>(std::marker::PhantomData<&'a mut ()>);

impl ResponseSink<'_> {
    /// Sends a head: a 1xx (any number of times), then the final one (once). `BodyKind::Empty` ends the stream.
    /// Nothing reaches the socket before the first [`Self::data`], [`Self::finish`] or [`Self::flush`] must send it.
    pub async fn head(&mut self, head: &ResponseHead, body: BodyKind) -> Result<(), StreamError> {
        let _ = (head, body);
        todo!()
    }

    /// Sends a piece of the body; returns when there is room for the next.
    pub async fn data(&mut self, chunk: Chunk<'_>) -> Result<(), StreamError> {
        let _ = chunk;
        todo!()
    }

    /// Sends what is buffered.
    pub async fn flush(&mut self) -> Result<(), StreamError> {
        todo!()
    }

    /// Ends the body.
    pub async fn finish(&mut self, trailers: Option<&Fields>) -> Result<(), StreamError> {
        let _ = trailers;
        todo!()
    }

    /// Ends the stream at once as failed: RST_STREAM, or the connection is closed.
    pub fn reset(&mut self) {
        todo!()
    }

    /// After this response the connection is closed (HTTP/1: `connection: close`; HTTP/2: GOAWAY).
    pub fn close_after(&mut self) {
        todo!()
    }
}
