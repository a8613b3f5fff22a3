//! HTTP/2 towards a client: a local task per stream.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::core::{Arrival, Broken, Core};
use super::frame::code;
use super::handle::{Lease, StreamRef};
use super::keepalive::Keepalive;
use super::link::{Link, Turn};
use super::path::Windows;
use super::pipe::Pipe;
use super::preface::PREFACE;
use super::receive::Receive;
use super::transmit::Transmit;
use super::{MAX_LOCAL_RESETS, stream_error, write_heads};
use crate::buffers::{Buffer, give_request};
use crate::deadline::Deadline;
use crate::drain::Drain;
use crate::server::{Exchange, Handler, RequestBody, ResponseSink, ServerOptions};
use crate::{Blame, BodyKind, CONNECTION_FIELD, Fields, Io, Method, RequestHead, ResponseHead, StreamError};

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

/// Serves a connection until it ends or has drained; `ahead`: what was read, the preface at its front.
pub(crate) async fn serve<H: Handler, F: Future<Output = ()>>(
    io: Io,
    ahead: Buffer,
    options: &ServerOptions,
    handler: &Rc<H>,
    drain: &mut Drain<'_, F>,
) {
    let link = Link::new(io, Core::server(options), ahead.data().get(PREFACE.len()..).unwrap_or_default());
    drop(ahead);
    Driver::new(link, options).run(handler, drain).await;
}

struct Driver<'a> {
    link: Link,
    options: &'a ServerOptions,
    shared: Rc<Shared>,
    arrivals: VecDeque<Arrival>,
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
    /// Requests, which wait in the driver.
    Arrivals,
    /// The client has to go, and is told so.
    Broken(&'static str),
    /// The client will leave.
    Leaving,
    /// Nothing more is to be done.
    Done,
    /// The client is gone, or will not take anything.
    Gone,
}

impl<'a> Driver<'a> {
    fn new(link: Link, options: &'a ServerOptions) -> Self {
        let now = Instant::now();
        let keepalive = options
            .keepalive_interval
            .map(|interval| Keepalive::new(interval, options.keepalive_timeout, options.round_trip.clone()));
        let windows =
            Windows::new(options.initial_stream_window, options.initial_connection_window, options.most_stream_window);
        Self {
            link,
            options,
            shared: Rc::default(),
            arrivals: VecDeque::new(),
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
                Event::Arrivals => {
                    while let Some(arrival) = self.arrivals.pop_front() {
                        self.begin(arrival, handler);
                    }
                }
                Event::Leaving => handler.leaving(),
                Event::Broken(detail) => {
                    tracing::debug!(detail, "an HTTP/2 connection is cut off");
                    handler.cut_off(detail);
                    return self.link.close(self.options.linger).await;
                }
                Event::Done => return self.link.close(self.options.linger).await,
                Event::Gone => return,
            }
        }
    }

    fn poll_event<F: Future<Output = ()>>(&mut self, cx: &mut Context<'_>, drain: &mut Drain<'_, F>) -> Poll<Event> {
        if self.ending.is_none() && (self.shared.goaway.get() || drain.poll(cx)) {
            self.end();
        }
        let read = match self.link.poll_read(cx) {
            Ok(turn) => turn,
            Err(error) => return gone(&error),
        };
        if let Some(event) = self.look() {
            return Poll::Ready(event);
        }
        // Behind the read: it may have brought the answer.
        if read == Turn::Ended || self.poll_keepalive(cx).is_ready() {
            return Poll::Ready(Event::Gone);
        }
        let write = match self.link.poll_write(cx) {
            Ok(turn) => turn,
            Err(error) => return gone(&error),
        };
        if write == Turn::Resting {
            let mut core = self.link.shared.lock();
            if core.is_done() {
                core.say_last();
                return Poll::Ready(Event::Done);
            }
            if !core.rest(cx.waker()) {
                cx.waker().wake_by_ref();
            }
        }
        if read == Turn::Busy || read == Turn::Swamped && write == Turn::Resting {
            cx.waker().wake_by_ref();
        }
        self.poll_deadlines(cx)
    }

    fn poll_keepalive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(keepalive) = &mut self.keepalive else { return Poll::Pending };
        if keepalive.poll_dead(&self.link.shared, cx).is_ready() {
            tracing::debug!("an HTTP/2 client did not answer a keepalive PING");
            return Poll::Ready(());
        }
        if let Some((stream, connection)) = keepalive.take_measured().and_then(|time| self.windows.follow(time)) {
            self.link.shared.lock().grow(stream, connection);
        }
        Poll::Pending
    }

    /// What has come of the bytes that were read.
    fn look(&mut self) -> Option<Event> {
        let mut core = self.link.shared.lock();
        core.take_arrivals(&mut self.arrivals);
        if !self.arrivals.is_empty() {
            return Some(Event::Arrivals);
        }
        match core.broken() {
            Some(broken) => Some(Event::Broken(broken.detail)),
            None => core.take_leaving().then_some(Event::Leaving),
        }
    }

    /// GOAWAY: what is open is finished, nothing new begins.
    fn end(&mut self) {
        if self.ending.is_none() {
            self.ending = Some(Instant::now());
            self.link.shared.lock().end();
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
            let block = self.link.open_block().and_then(|since| since.checked_add(self.options.head_timeout));
            let Some(deadline) = idle.into_iter().chain(age).chain(block).min() else { return Poll::Pending };
            if self.deadline.poll(cx, deadline).is_pending() {
                return Poll::Pending;
            }
            if block == Some(deadline) {
                let broken = Broken { code: code::ENHANCE_YOUR_CALM, detail: "a header block took too long" };
                self.link.shared.lock().break_off(broken);
                return Poll::Ready(Event::Broken(broken.detail));
            }
            if self.ending.is_some() {
                return Poll::Ready(Event::Gone);
            }
            self.end();
            // The GOAWAY goes out with the next poll.
            cx.waker().wake_by_ref();
        }
    }

    fn begin<H: Handler>(&mut self, arrival: Arrival, handler: &Rc<H>) {
        self.served = self.served.saturating_add(1);
        if self.options.max_requests.is_some_and(|limit| self.served >= limit) {
            self.shared.goaway.set(true);
        }
        let (key, head, kind) = match arrival {
            Arrival::Request { key, head, kind } => (key, head, kind),
            Arrival::Refused { status, detail } => {
                tracing::debug!(status, detail, "request refused");
                return handler.refused(status, detail);
            }
        };
        let lease = Lease::new(Arc::clone(&self.link.shared), key);
        if self.shared.heads.get() > self.most_heads {
            give_request(head);
            return self.refuse_stream(handler, &lease);
        }
        let active = Active::new(&self.shared, &head);
        let plain = head.method == Method::Connect && head.upgrade.is_none();
        if plain && self.options.connections && head.fields.contains(CONNECTION_FIELD) {
            give_request(head);
            return connect(lease, handler, active);
        }
        // Boxed: the runtime moves what it is given, and writes as much again when it has ended.
        tokio::task::spawn_local(Box::pin(run(Rc::clone(handler), head, kind, lease, active)));
    }

    /// A stream too many beside the large heads of others: nothing was done with it, and the client may try again.
    fn refuse_stream<H: Handler>(&mut self, handler: &Rc<H>, lease: &Lease) {
        const DETAIL: &str = "the heads of a connection's open streams are too large";
        tracing::debug!(detail = DETAIL, "request refused");
        handler.refused(431, DETAIL);
        lease.reset(code::REFUSED_STREAM);
        self.refused += 1;
        if self.refused >= MAX_LOCAL_RESETS {
            self.end();
        }
    }
}

fn gone(error: &std::io::Error) -> Poll<Event> {
    tracing::debug!(%error, "an HTTP/2 connection broke");
    Poll::Ready(Event::Gone)
}

/// Takes a CONNECT as a connection of its own.
fn connect<H: Handler>(lease: Lease, handler: &Rc<H>, active: Active) {
    let head = (&Fields::new(), BodyKind::Tunnel, false);
    if let Err(failure) = lease.stream().with(|core, key| core.respond(key, 200, head, false)) {
        return tracing::debug!(?failure, "a connection over a stream was gone before it was taken");
    }
    let (handler, io) = (Rc::clone(handler), Io::stream(Pipe::new(lease, None)));
    tokio::task::spawn_local(async move {
        handler.connection(io).await;
        drop(active);
    });
}

/// One stream.
async fn run<H: Handler>(handler: Rc<H>, mut head: Box<RequestHead>, kind: BodyKind, lease: Lease, active: Active) {
    let stream = lease.stream();
    let connect = head.method == Method::Connect;
    let mut receive = Receive::new(stream.clone(), Blame::Downstream, kind == BodyKind::Empty && !connect);
    let mut reply = Reply {
        stream: stream.clone(),
        asked_head: head.method == Method::Head,
        connect,
        body: Transmit::new(Blame::Downstream),
        sent: false,
        shared: Rc::clone(&active.shared),
    };
    handler
        .handle(Exchange {
            request: &mut head,
            body: RequestBody::http2(&mut receive, kind),
            response: ResponseSink::http2(&mut reply),
        })
        .await;
    if !reply.is_ended() {
        tracing::debug!("a stream was left without the end of its response");
        reply.reset();
    }
    give_request(head);
    // Whoever sees the stream end may count those that are active.
    drop(active);
    drop(lease);
}

/// The response's half of an exchange.
#[derive(Debug)]
pub(crate) struct Reply {
    stream: StreamRef,
    asked_head: bool,
    /// CONNECT, extended or not: the response may open a tunnel.
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
        let status = write_heads::check_status(head, body)?;
        if self.sent {
            return Err(StreamError::misuse("a second head"));
        }
        let interim = head.is_informational();
        let bodyless = self.asked_head || matches!(head.status, 204 | 304);
        let end = !interim && (bodyless || body.is_empty());
        let fields = (&head.fields, body, self.asked_head);
        let run = |core: &mut Core| core.respond(self.stream.key, status, fields, end);
        // What is not the end waits for what comes behind it.
        let sent = if end || interim { self.stream.shared.with(run) } else { self.stream.shared.with_quietly(run) };
        sent.map_err(|failure| stream_error(Blame::Downstream, failure))?;
        if !interim {
            self.sent = true;
            self.body.begin(self.stream.clone(), body, end, bodyless);
        }
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
            self.body.end();
            self.stream.with(|core, key| core.reset(key, code::INTERNAL_ERROR));
        }
    }

    pub(crate) fn close_after(&mut self) {
        self.shared.goaway.set(true);
    }
}
