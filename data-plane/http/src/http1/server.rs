//! HTTP/1 towards a client: one request after the other.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::Wire;
use super::encode::{self, Asked};
use super::read::Reader;
use super::request::{self, Parsed, Refusal};
use super::write::{Framing, Writer};
use crate::buffers::{Buffer, give_request, take_request};
use crate::deadline::{Deadline, STALLED};
use crate::drain::{Drain, GRACE};
use crate::farewell::Farewell;
use crate::server::{Exchange, Handler, RequestBody, ResponseSink, ServerOptions};
use crate::{Blame, BodyKind, Io, Method, RequestHead, ResponseHead, StreamError, Version};

/// RFC 9112, 2.2 wants one to be ignored; clients that send a few after a body exist.
const MAX_EMPTY_LINES: u8 = 8;
/// What a handler leaves of a request's body is read up to this, so that the connection may live on.
const MAX_DRAINED: u64 = 64 * 1024;

/// Per-response state that the response's sink and the connection share.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    asked: Asked,
    /// A 100 or the final head was sent.
    continued: bool,
    /// Status of the final head.
    status: u16,
}

struct Connection<'a> {
    wire: Wire,
    read: Reader,
    write: Writer,
    options: &'a ServerOptions,
    deadline: Deadline,
    opened: Instant,
    /// When the current wait began: idle, or for the rest of a head. `None`: it begins with the next poll that has to
    /// wait (the clock is not read for a request that is there at once).
    waiting_since: Option<Instant>,
    scanned: usize,
    empty_lines: u8,
    served: u32,
}

/// What a connection at rest is followed by.
enum Next {
    Request(Parsed),
    Refused(Refusal),
    End,
}

/// How an exchange leaves the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    Reuse,
    /// The client may still be sending.
    Linger,
    Close,
    /// The response is not complete: nothing may look like its end.
    Abort,
}

/// Serves requests until the connection ends or has drained.
pub(crate) async fn serve<H: Handler>(
    io: Io,
    buffer: Buffer,
    options: &ServerOptions,
    handler: &Rc<H>,
    drain: &mut Drain<'_, impl Future<Output = ()>>,
) {
    let now = Instant::now();
    let mut connection = Connection {
        wire: Wire::new(io),
        read: Reader::new(buffer, Blame::Downstream),
        write: Writer::new(Blame::Downstream),
        options,
        deadline: Deadline::new(),
        opened: now,
        waiting_since: None,
        scanned: 0,
        empty_lines: 0,
        served: 0,
    };
    loop {
        let mut head = None;
        let next = poll_fn(|cx| connection.poll_next(cx, &mut head, drain)).await;
        let after = match (next, head.take()) {
            (Next::Request(parsed), Some(mut head)) => {
                let after = connection.exchange(&mut head, parsed, handler, drain).await;
                give_request(head);
                after
            }
            (Next::Refused(refusal), _) => {
                tracing::debug!(status = refusal.status, detail = refusal.detail, "request refused");
                handler.refused(refusal.status, refusal.detail);
                connection.refuse(refusal).await
            }
            (Next::End | Next::Request(_), _) => After::Close,
        };
        if after != After::Reuse {
            if connection.has_a_last_word(after) {
                Box::pin(connection.close(after)).await;
            }
            return;
        }
        connection.waiting_since = None;
    }
}

impl Connection<'_> {
    /// The next head. An idle connection holds neither buffer nor head.
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut Option<Box<RequestHead>>,
        drain: &mut Drain<'_, impl Future<Output = ()>>,
    ) -> Poll<Next> {
        loop {
            let parsed = if self.read.buffer.is_empty() { Ok(None) } else { self.parse(head) };
            match parsed {
                Ok(Some(parsed)) => return Poll::Ready(Next::Request(parsed)),
                Ok(None) => {}
                Err(refusal) => return Poll::Ready(Next::Refused(refusal)),
            }
            let idle = self.read.buffer.is_empty();
            match self.read.buffer.poll_fill(self.wire.io.get_mut(), cx, false) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Next::End),
                Poll::Ready(Ok(_)) if idle => self.waiting_since = None,
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        self.poll_drain(cx, drain);
        self.poll_deadline(cx)
    }

    /// Notes when draining begins.
    fn poll_drain(&mut self, cx: &mut Context<'_>, drain: &mut Drain<'_, impl Future<Output = ()>>) {
        if !self.wire.closing.get() && drain.poll(cx) {
            self.wire.closing.set(true);
            self.waiting_since = None;
        }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let idle = self.read.buffer.is_empty();
        let patience = match (idle, self.wire.closing.get()) {
            (false, _) => Some(self.options.head_timeout),
            (true, true) => Some(GRACE.min(self.options.drain_timeout)),
            (true, false) => self.options.idle_timeout,
        };
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let deadline = patience.and_then(|patience| since.checked_add(patience));
        let end = if idle { self.options.max_duration.and_then(|limit| self.opened.checked_add(limit)) } else { None };
        let Some(deadline) = deadline.into_iter().chain(end).min() else { return Poll::Pending };
        if self.deadline.poll(cx, deadline).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(if idle {
            Next::End
        } else {
            Next::Refused(Refusal { status: 408, detail: "the request head took too long" })
        })
    }

    fn parse(&mut self, head: &mut Option<Box<RequestHead>>) -> Result<Option<Parsed>, Refusal> {
        while self.scanned == 0 && self.read.buffer.data().starts_with(b"\r\n") {
            self.empty_lines += 1;
            if self.empty_lines > MAX_EMPTY_LINES {
                return Err(Refusal { status: 400, detail: "too many empty lines before a request" });
            }
            self.read.buffer.consume(2);
        }
        let data = self.read.buffer.data();
        match data {
            [] | b"\r" => return Ok(None),
            [b'\r' | b'\n', ..] => return Err(Refusal { status: 400, detail: "malformed request line" }),
            _ => {}
        }
        let from = std::mem::replace(&mut self.scanned, data.len());
        let parsed = request::parse(data, from, self.options, head.get_or_insert_with(take_request))?;
        match parsed {
            Some(parsed) => {
                self.read.buffer.consume(parsed.len);
                self.scanned = 0;
                self.empty_lines = 0;
            }
            None => {
                if let Some(head) = head.take() {
                    give_request(head);
                }
            }
        }
        Ok(parsed)
    }

    async fn exchange<H: Handler>(
        &mut self,
        head: &mut RequestHead,
        parsed: Parsed,
        handler: &Rc<H>,
        drain: &mut Drain<'_, impl Future<Output = ()>>,
    ) -> After {
        self.served = self.served.saturating_add(1);
        if !parsed.keep_alive
            || self.options.max_requests.is_some_and(|limit| self.served >= limit)
            || self.options.max_duration.is_some_and(|limit| self.opened.elapsed() >= limit)
        {
            self.wire.closing.set(true);
        }
        self.read.begin(parsed.body, false);
        self.write.begin(&self.wire);
        let mut reply = Reply {
            asked: Asked {
                head: head.method == Method::Head,
                connect: head.method == Method::Connect,
                http_10: head.version == Version::Http10,
                upgrade: head.upgrade.clone(),
            },
            continued: false,
            status: 0,
        };
        let wire = &self.wire;
        {
            let exchange = Exchange {
                request: head,
                body: RequestBody::http1(wire, &mut self.read, parsed.body),
                response: ResponseSink::http1(wire, &mut self.write, &mut reply),
            };
            // Boxed for as long as a request runs, so that an idle connection is small.
            let mut run = Box::pin(handler.handle(exchange));
            poll_fn(|cx| {
                if !wire.closing.get() && drain.poll(cx) {
                    wire.closing.set(true);
                }
                run.as_mut().poll(cx)
            })
            .await;
        }
        self.after(parsed, &reply).await
    }

    async fn after(&mut self, parsed: Parsed, reply: &Reply) -> After {
        if self.write.has_pending() && !self.flush().await {
            return After::Abort;
        }
        if self.wire.tunnel.get() {
            return if self.write.framing() == Framing::Discard { After::Close } else { After::Abort };
        }
        if !self.write.is_done() {
            if reply.status == 0 {
                tracing::debug!("a request ended without a response");
            }
            if reply.asked.http_10 {
                // The end of the connection would pass for the end of the body.
                self.wire.io.get_mut().reset_on_close();
            }
            return After::Abort;
        }
        let unread = !self.read.is_done();
        if unread && parsed.expects_continue && !reply.continued {
            // The body may or may not follow: no telling what the next bytes are.
            return After::Linger;
        }
        if unread && (self.wire.closing.get() || !Box::pin(self.drain_body()).await) {
            return After::Linger;
        }
        if !self.wire.closing.get() {
            After::Reuse
        } else if self.read.buffer.is_empty() {
            After::Close
        } else {
            After::Linger
        }
    }

    /// Reads what the handler left; whether the connection can go on.
    async fn drain_body(&mut self) -> bool {
        let (wire, read, linger) = (&self.wire, &mut self.read, self.options.linger);
        let drained = async {
            let mut left = MAX_DRAINED;
            loop {
                match poll_fn(|cx| read.poll_chunk(wire, cx)).await {
                    Ok(None) => return true,
                    Ok(Some(range)) => match left.checked_sub(range.len() as u64) {
                        Some(rest) => left = rest,
                        None => return false,
                    },
                    Err(_) => return false,
                }
            }
        };
        tokio::time::timeout(linger, drained).await.unwrap_or(false)
    }

    /// Answers what the handler never sees.
    async fn refuse(&mut self, refusal: Refusal) -> After {
        self.write.begin(&self.wire);
        let mut head = ResponseHead::new(refusal.status);
        head.fields.push(b"content-type", b"text/plain");
        let body = encode::reason(refusal.status);
        let kind = BodyKind::Length(body.len() as u64);
        let written = self.write.write_head(|out| {
            let framing = encode::response(out, &head, kind, &Asked::default(), true)?;
            out.extend_from_slice(body.as_bytes());
            Ok(framing)
        });
        if written.is_ok() && self.flush().await { After::Linger } else { After::Abort }
    }

    /// Sends what waits; `false` if the client is gone or does not read.
    async fn flush(&mut self) -> bool {
        let flushed = Box::pin(tokio::time::timeout(STALLED, self.write.flush(&self.wire))).await;
        matches!(flushed, Ok(Ok(())))
    }

    /// Whether there is anything to be said or read before the connection is dropped.
    fn has_a_last_word(&mut self, after: After) -> bool {
        after == After::Linger || (after == After::Close && self.wire.io.get_mut().says_goodbye())
    }

    async fn close(mut self, after: After) {
        self.read.buffer.consume(usize::MAX);
        self.read.buffer.release();
        let linger = self.options.linger;
        let io = self.wire.io.get_mut();
        if after == After::Linger {
            let mut farewell = Farewell::new(linger);
            if let Err(error) = poll_fn(|cx| farewell.poll(io, cx)).await {
                tracing::trace!(%error, "a client was gone before its last answer ended");
            }
        } else if tokio::time::timeout(linger, poll_fn(|cx| Pin::new(&mut *io).poll_shutdown(cx))).await.is_err() {
            tracing::trace!("a client did not take the end of its connection");
        }
    }
}

/// The response's half of an exchange.
#[derive(Debug)]
pub(crate) struct Sink<'a> {
    pub(crate) wire: &'a Wire,
    pub(crate) write: &'a mut Writer,
    pub(crate) reply: &'a mut Reply,
}

impl Sink<'_> {
    pub(crate) async fn head(&mut self, head: &ResponseHead, body: BodyKind) -> Result<(), StreamError> {
        let reply = &mut *self.reply;
        if head.is_informational() {
            reply.continued |= head.status == 100;
            if reply.asked.http_10 {
                return Ok(());
            }
        } else {
            reply.status = head.status;
        }
        if body != BodyKind::Tunnel && reply.asked.is_refused_switch(head.status) {
            // A client that takes the switch for granted goes on with bytes of another protocol, which whoever controls
            // them could shape like requests.
            self.wire.closing.set(true);
        }
        let close = self.wire.closing.get();
        let framing = self.write.write_head(|out| encode::response(out, head, body, &reply.asked, close))?;
        match framing {
            Framing::Head => self.write.flush(self.wire).await,
            Framing::UntilClose => {
                self.wire.closing.set(true);
                Ok(())
            }
            Framing::Tunnel => {
                self.wire.tunnel.set(true);
                self.wire.closing.set(true);
                self.write.flush(self.wire).await
            }
            _ => Ok(()),
        }
    }
}
