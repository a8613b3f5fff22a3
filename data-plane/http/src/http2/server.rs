//! HTTP/2 towards a client: a local task per stream.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Request, Response, StatusCode};
use tokio::time::Instant;

use super::convert::{self, Refusal};
use super::guard::{Guard, Guarded};
use super::keepalive::Keepalive;
use super::path::Windows;
use super::pipe::Pipe;
use super::receive::Receive;
pub(crate) use super::transmit::Respond;
use super::transmit::{Out, Stage, Transmit};
use super::{MAX_LOCAL_RESETS, MAX_PENDING_RESETS, SEND_BUFFER, stream_error};
use crate::buffers::{give_request, take_request};
use crate::deadline::Deadline;
use crate::drain::Drain;
use crate::server::{Exchange, Handler, RequestBody, ResponseSink, ServerOptions};
use crate::{Blame, BodyKind, CONNECTION_FIELD, Io, Method, RequestHead, ResponseHead, StreamError};

/// How long a client that is cut off may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// Bytes of its head that a connection's stream has on average, if there are as many streams as there may be.
const HEAD_SHARE: usize = 4 * 1024;

/// What a connection and its streams share.
#[derive(Debug, Default)]
struct Shared {
    active: Cell<usize>,
    /// Bytes of the heads of all streams that are open.
    heads: Cell<usize>,
    /// A handler wants the connection to end.
    goaway: Cell<bool>,
}

/// Counts a stream and its head as long as its task runs.
struct Active {
    shared: Rc<Shared>,
    head: usize,
}

impl Active {
    fn new(shared: &Rc<Shared>, head: &RequestHead) -> Self {
        let head = head.fields.raw().len() + head.path.len() + head.authority.len();
        shared.active.set(shared.active.get() + 1);
        shared.heads.set(shared.heads.get() + head);
        Self { shared: Rc::clone(shared), head }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.shared.active.set(self.shared.active.get().saturating_sub(1));
        self.shared.heads.set(self.shared.heads.get().saturating_sub(self.head));
    }
}

/// Serves a connection until it ends or has drained.
pub(crate) async fn serve<H: Handler, F: Future<Output = ()>>(
    io: Io,
    options: &ServerOptions,
    handler: &Rc<H>,
    drain: &mut Drain<'_, F>,
) {
    let mut builder = Builder::new();
    builder
        .initial_window_size(options.initial_stream_window)
        .initial_connection_window_size(options.initial_connection_window)
        .max_frame_size(options.max_frame_size)
        .max_concurrent_streams(options.max_concurrent_streams)
        .max_header_list_size(u32::try_from(options.max_head_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(Some(MAX_LOCAL_RESETS))
        .max_send_buffer_size(SEND_BUFFER);
    if options.extended_connect {
        builder.enable_connect_protocol();
    }
    let (io, guard) = Guarded::new(io, options);
    let connection = match tokio::time::timeout(options.head_timeout, builder.handshake::<_, Bytes>(io)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%error, "an HTTP/2 connection did not begin"),
        Err(_) => return tracing::debug!("an HTTP/2 connection did not begin in time"),
    };
    Driver::new(connection, guard, options).run(handler, drain).await;
}

struct Driver<'a> {
    connection: Connection<Guarded, Bytes>,
    guard: Guard,
    options: &'a ServerOptions,
    shared: Rc<Shared>,
    keepalive: Option<Keepalive>,
    windows: Windows,
    opened: Instant,
    idle_since: Option<Instant>,
    /// Since when the connection takes no more streams.
    ending: Option<Instant>,
    deadline: Deadline,
    served: u32,
    /// Bytes that the heads of open streams may have together before another one begins. Few bytes on the wire can stand
    /// for a large head (CVE-2026-47774 and its family), and a client that takes no answer keeps it.
    most_heads: usize,
    /// Streams that were refused for that.
    refused: usize,
}

enum Event {
    Request(Box<(Request<RecvStream>, SendResponse<Bytes>)>),
    /// The client has to go.
    Flood(&'static str),
    /// The client will leave.
    Leaving,
    /// The client broke the protocol, and was told so.
    Broken,
    End,
}

impl<'a> Driver<'a> {
    fn new(mut connection: Connection<Guarded, Bytes>, guard: Guard, options: &'a ServerOptions) -> Self {
        let now = Instant::now();
        let keepalive = options.keepalive_interval.and_then(|interval| {
            let round_trip = options.round_trip.clone();
            connection.ping_pong().map(|pings| Keepalive::new(pings, interval, options.keepalive_timeout, round_trip))
        });
        let windows =
            Windows::new(options.initial_stream_window, options.initial_connection_window, options.most_stream_window);
        Self {
            connection,
            guard,
            options,
            shared: Rc::default(),
            keepalive,
            windows,
            opened: now,
            idle_since: Some(now),
            ending: None,
            deadline: Deadline::new(),
            served: 0,
            most_heads: HEAD_SHARE.saturating_mul(options.max_concurrent_streams as usize),
            refused: 0,
        }
    }

    async fn run<H: Handler, F: Future<Output = ()>>(mut self, handler: &Rc<H>, drain: &mut Drain<'_, F>) {
        loop {
            match poll_fn(|cx| self.poll_event(cx, drain)).await {
                Event::Request(stream) => self.begin(stream, handler),
                Event::Leaving => handler.leaving(),
                Event::Broken => return handler.cut_off("the client broke HTTP/2"),
                Event::Flood(detail) => {
                    tracing::debug!(detail, "an HTTP/2 connection is cut off");
                    handler.cut_off(detail);
                    return self.cut_off().await;
                }
                Event::End => {
                    // One without streams ends at once.
                    if self.guard.take_goaway() {
                        handler.leaving();
                    }
                    return;
                }
            }
        }
    }

    /// A last GOAWAY, for as long as the client takes to read it; open streams fail.
    async fn cut_off(mut self) {
        self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        let closed = poll_fn(|cx| self.connection.poll_closed(cx));
        if !matches!(tokio::time::timeout(FAREWELL, closed).await, Ok(Ok(()))) {
            tracing::debug!("a client that was cut off did not take its GOAWAY");
        }
    }

    fn poll_event<F: Future<Output = ()>>(&mut self, cx: &mut Context<'_>, drain: &mut Drain<'_, F>) -> Poll<Event> {
        if self.ending.is_none() && (self.shared.goaway.get() || drain.poll(cx)) {
            self.end();
        }
        if let Some(keepalive) = &mut self.keepalive {
            if keepalive.poll_dead(cx).is_ready() {
                tracing::debug!("an HTTP/2 client did not answer a keepalive PING");
                return Poll::Ready(Event::End);
            }
            if let Some((stream, connection)) = keepalive.take_measured().and_then(|time| self.windows.follow(time)) {
                self.connection.set_target_window_size(connection);
                // Settings under way already are followed by the next measurement.
                if let Err(error) = self.connection.set_initial_window_size(stream) {
                    tracing::debug!(%error, "a window cannot grow now");
                }
            }
        }
        match self.connection.poll_accept(cx) {
            Poll::Ready(Some(Ok(stream))) => return Poll::Ready(Event::Request(Box::new(stream))),
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(%error, "an HTTP/2 connection broke");
                let ours = error.is_library();
                return Poll::Ready(if ours { Event::Broken } else { Event::End });
            }
            Poll::Ready(None) => return Poll::Ready(Event::End),
            Poll::Pending if self.guard.take_goaway() => return Poll::Ready(Event::Leaving),
            Poll::Pending => {}
        }
        match self.guard.verdict() {
            Some(flood) => Poll::Ready(Event::Flood(flood)),
            None => self.poll_deadlines(cx),
        }
    }

    /// GOAWAY: what is open is finished, nothing new begins.
    fn end(&mut self) {
        if self.ending.is_none() {
            self.ending = Some(Instant::now());
            self.connection.graceful_shutdown();
        }
    }

    fn poll_deadlines(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let busy = self.shared.active.get() > 0;
        self.idle_since = if busy { None } else { self.idle_since.or_else(|| Some(Instant::now())) };
        loop {
            let idle = match (self.idle_since, self.ending) {
                (Some(since), Some(ending)) => since.max(ending).checked_add(self.options.drain_timeout),
                (Some(since), None) => self.options.idle_timeout.and_then(|limit| since.checked_add(limit)),
                (None, _) => None,
            };
            let age = match self.ending {
                None => self.options.max_duration.and_then(|limit| self.opened.checked_add(limit)),
                Some(_) => None,
            };
            let block = self.guard.open_block().and_then(|since| since.checked_add(self.options.head_timeout));
            let Some(deadline) = idle.into_iter().chain(age).chain(block).min() else { return Poll::Pending };
            if self.deadline.poll(cx, deadline).is_pending() {
                return Poll::Pending;
            }
            if block == Some(deadline) {
                return Poll::Ready(Event::Flood("a header block took too long"));
            }
            if self.ending.is_some() {
                return Poll::Ready(Event::End);
            }
            self.end();
            // The GOAWAY goes out with the next poll.
            cx.waker().wake_by_ref();
        }
    }

    fn begin<H: Handler>(&mut self, stream: Box<(Request<RecvStream>, SendResponse<Bytes>)>, handler: &Rc<H>) {
        let (request, mut respond) = *stream;
        self.served = self.served.saturating_add(1);
        if self.options.max_requests.is_some_and(|limit| self.served >= limit) {
            self.shared.goaway.set(true);
        }
        if self.shared.heads.get() > self.most_heads {
            return self.refuse_stream(handler, &mut respond);
        }
        let mut head = take_request();
        match convert::read_request(&request, self.options, &mut head) {
            Ok(()) => {
                let active = Active::new(&self.shared, &head);
                let plain = head.method == Method::Connect && head.upgrade.is_none();
                if plain && self.options.connections && head.fields.contains(CONNECTION_FIELD) {
                    give_request(head);
                    return connect(request.into_body(), respond, handler, active);
                }
                let receive = Receive::new(request.into_body(), Blame::Downstream);
                // Boxed: the runtime moves what it is given, and writes as much again when it has ended.
                tokio::task::spawn_local(Box::pin(run(Rc::clone(handler), head, receive, respond, active)));
            }
            Err(Refusal::Malformed(detail)) => {
                tracing::debug!(detail, "request refused");
                handler.refused(400, detail);
                respond.send_reset(Reason::PROTOCOL_ERROR);
            }
            Err(Refusal::Answer(status, detail)) => {
                tracing::debug!(status, detail, "request refused");
                handler.refused(status, detail);
                refuse(&mut respond, status);
            }
        }
    }

    /// A stream too many beside the large heads of others: nothing was done with it, and the client may try again.
    fn refuse_stream<H: Handler>(&mut self, handler: &Rc<H>, respond: &mut SendResponse<Bytes>) {
        const DETAIL: &str = "the heads of a connection's open streams are too large";
        tracing::debug!(detail = DETAIL, "request refused");
        handler.refused(431, DETAIL);
        respond.send_reset(Reason::REFUSED_STREAM);
        self.refused += 1;
        if self.refused >= MAX_LOCAL_RESETS {
            self.end();
        }
    }
}

/// Takes a CONNECT as a connection of its own.
fn connect<H: Handler>(receive: RecvStream, mut respond: SendResponse<Bytes>, handler: &Rc<H>, active: Active) {
    match respond.send_response(Response::new(()), false) {
        Ok(send) => {
            let (handler, io) = (Rc::clone(handler), Io::stream(Pipe::new(receive, send, None)));
            tokio::task::spawn_local(async move {
                handler.connection(io).await;
                drop(active);
            });
        }
        Err(error) => tracing::debug!(%error, "a connection over a stream was gone before it was taken"),
    }
}

fn refuse(respond: &mut SendResponse<Bytes>, status: u16) {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    if let Err(error) = respond.send_response(response, true) {
        tracing::debug!(%error, "a refusal could not be sent");
    }
}

/// One stream.
async fn run<H: Handler>(
    handler: Rc<H>,
    mut head: Box<RequestHead>,
    mut receive: Receive,
    respond: SendResponse<Bytes>,
    active: Active,
) {
    let connect = head.method == Method::Connect;
    let kind = if connect { BodyKind::Empty } else { convert::body_kind(&head.fields, receive.is_ended()) };
    let respond = Respond::new(respond);
    let mut reply = Reply {
        stage: respond.clone(),
        asked_head: head.method == Method::Head,
        connect,
        body: Transmit::new(Out::Response(respond.clone()), Blame::Downstream),
        sent: false,
        shared: Rc::clone(&active.shared),
    };
    handler
        .handle(Exchange {
            request: &mut head,
            body: RequestBody::http2(&mut receive, &respond, kind),
            response: ResponseSink::http2(&mut reply),
        })
        .await;
    if !reply.is_ended() {
        tracing::debug!("a stream was left without the end of its response");
        reply.reset();
    }
    // RFC 9113, 8.1: a request that goes on after its response is reset with NO_ERROR. The library does so for a stream
    // that nobody holds any more, once what waits to be sent is out; a reset of ours would throw that away.
    give_request(head);
}

/// The response's half of an exchange.
#[derive(Debug)]
pub(crate) struct Reply {
    stage: Respond,
    asked_head: bool,
    connect: bool,
    body: Transmit,
    /// The final head is out, or the stream was reset.
    sent: bool,
    shared: Rc<Shared>,
}

impl Reply {
    pub(crate) fn head(&mut self, head: &ResponseHead, body: BodyKind) -> Result<(), StreamError> {
        if body == BodyKind::Tunnel && !self.connect {
            return Err(StreamError::misuse("a tunnel that nobody asked for"));
        }
        let response = convert::write_response(head, body, self.asked_head)?;
        let failed = |error: h2::Error| stream_error(Blame::Downstream, &error);
        let mut stage = self.stage.0.borrow_mut();
        let Stage::Waiting(respond) = &mut *stage else { return Err(StreamError::misuse("a second head")) };
        if head.is_informational() {
            return respond.send_informational(response).map_err(failed);
        }
        let bodyless = self.asked_head || matches!(head.status, 204 | 304);
        let end = bodyless || body.is_empty();
        *stage = Stage::Sent(respond.send_response(response, end).map_err(failed)?);
        self.sent = true;
        self.body.begin(body, end, bodyless);
        Ok(())
    }

    pub(crate) fn body(&mut self) -> &mut Transmit {
        &mut self.body
    }

    fn is_ended(&self) -> bool {
        self.sent && self.body.is_ended()
    }

    pub(crate) fn reset(&mut self) {
        if !self.is_ended() {
            self.sent = true;
            self.body.begin(BodyKind::Empty, true, true);
            self.stage.reset(Reason::INTERNAL_ERROR);
        }
    }

    pub(crate) fn close_after(&mut self) {
        self.shared.goaway.set(true);
    }
}
