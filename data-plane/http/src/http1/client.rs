//! HTTP/1 towards an upstream host: one exchange at a time.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use super::read::Reader;
use super::response::{self, Asked};
use super::write::Writer;
use super::{Wire, encode};
use crate::buffers::Buffer;
use crate::{Blame, BodyKind, Io, Method, RequestHead, ResponseHead, StreamError};

/// More interim responses than this are an attack or a loop.
const MAX_INFORMATIONAL: u8 = 16;

/// A connection and, while it serves one, the state of its exchange.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) wire: Wire,
    pub(crate) read: Reader,
    pub(crate) write: Writer,
    pub(crate) state: Exchange,
    /// It has served an exchange before.
    reused: bool,
}

/// What an exchange knows beside its two bodies.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    asked: Asked,
    informational: u8,
    /// The final head was read.
    headed: bool,
    /// It allows another exchange after this one.
    keep_alive: bool,
    scanned: usize,
}

impl Connection {
    pub(crate) fn new(io: Io) -> Self {
        Self {
            wire: Wire::new(io),
            read: Reader::new(Buffer::default(), Blame::Upstream),
            write: Writer::new(Blame::Upstream),
            state: Exchange::default(),
            reused: false,
        }
    }

    /// Resolves when the idle connection is of no more use.
    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.read.buffer.is_empty() {
            // End, error or unasked-for bytes: all the same.
            return self.read.buffer.poll_fill(&mut self.wire.io.borrow_mut(), cx, false).map(|_| ());
        }
        Poll::Ready(())
    }

    /// Whether the idle connection is of no more use; looked at once, where [`Self::poll_closed`] watches.
    pub(crate) fn is_closed(&mut self) -> bool {
        !self.read.buffer.is_empty() || !self.wire.io.get_mut().is_quiet()
    }

    pub(crate) fn send_head(&mut self, head: &RequestHead, body: BodyKind) -> Result<(), StreamError> {
        self.state = Exchange::default();
        self.write.begin(&self.wire);
        // What arrived while the connection was idle answers no request of ours: taking it for the response would hand
        // one client's answer to another.
        if self.reused && self.is_closed() {
            self.write.fail();
            return Err(StreamError::closed(Blame::Upstream).untouched(true));
        }
        self.state.asked = Asked {
            head: head.method == Method::Head,
            connect: head.method == Method::Connect && head.upgrade.is_none(),
            upgrade: head.upgrade.is_some(),
        };
        self.write.write_head(|out| encode::request(out, head, body)).map(|_| ())
    }

    /// Both ended cleanly, nothing is left over, and the peer keeps the connection open.
    pub(crate) fn is_reusable(&self) -> bool {
        self.state.keep_alive
            && !self.wire.tunnel.get()
            && self.write.is_done()
            && self.read.is_done()
            && self.read.buffer.is_empty()
    }

    /// As [`Self::is_reusable`]; makes the connection ready for what comes next.
    pub(crate) fn reset_for_reuse(&mut self) -> bool {
        let reusable = self.is_reusable();
        self.read.buffer.release();
        self.reused = true;
        reusable
    }

    /// Whether reading the rest of the response, of at most `budget` bytes, may make the connection reusable: the
    /// request was sent whole, and nothing says that more will come.
    pub(crate) fn is_drainable(&self, budget: u64) -> bool {
        let switches = self.state.asked.connect || self.state.asked.upgrade || self.wire.tunnel.get();
        if switches || !self.write.is_done() {
            return false;
        }
        !self.state.headed || (self.state.keep_alive && self.read.left().is_some_and(|left| left <= budget))
    }

    /// Reads the rest of the response and drops it. Ready with whether the connection may serve another exchange;
    /// never after more than `budget` bytes of body.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>, budget: &mut u64) -> Poll<bool> {
        while !self.state.headed {
            let Self { wire, read, state, .. } = self;
            let mut head = ResponseHead::default();
            let mut source = Source { wire, read, state };
            if ready!(source.poll_head(cx, &mut head)).is_err() || !self.is_drainable(*budget) {
                return Poll::Ready(false);
            }
        }
        loop {
            match ready!(self.read.poll_chunk(&self.wire, cx)) {
                Ok(Some(range)) => match budget.checked_sub(range.len() as u64) {
                    Some(left) => *budget = left,
                    None => return Poll::Ready(false),
                },
                Ok(None) => return Poll::Ready(self.reset_for_reuse()),
                Err(_) => return Poll::Ready(false),
            }
        }
    }

    pub(crate) fn is_reused(&self) -> bool {
        self.reused
    }

    pub(crate) fn into_io(self) -> Io {
        let rest = bytes::Bytes::copy_from_slice(self.read.buffer.data());
        self.wire.io.into_inner().with_prefix(rest)
    }
}

/// The response's half of an exchange.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    pub(crate) wire: &'a Wire,
    pub(crate) read: &'a mut Reader,
    pub(crate) state: &'a mut Exchange,
}

impl Source<'_> {
    pub(crate) async fn head(&mut self, into: &mut ResponseHead) -> Result<BodyKind, StreamError> {
        poll_fn(|cx| self.poll_head(cx, into)).await
    }

    fn poll_head(&mut self, cx: &mut Context<'_>, into: &mut ResponseHead) -> Poll<Result<BodyKind, StreamError>> {
        loop {
            let data = self.read.buffer.data();
            if !data.is_empty() {
                let broken = |detail| StreamError::protocol(Blame::Upstream, 502, detail);
                let from = std::mem::replace(&mut self.state.scanned, data.len());
                if let Some(parsed) = response::parse(data, from, self.state.asked, into).map_err(broken)? {
                    return Poll::Ready(self.accept(into, parsed));
                }
            }
            match ready!(self.read.buffer.poll_fill(&mut self.wire.io.borrow_mut(), cx, false)) {
                Ok(0) | Err(_) => {
                    let untouched = self.wire.written.get() == 0;
                    return Poll::Ready(Err(StreamError::closed(Blame::Upstream).untouched(untouched)));
                }
                Ok(_) => {}
            }
        }
    }

    fn accept(&mut self, head: &ResponseHead, parsed: response::Parsed) -> Result<BodyKind, StreamError> {
        self.read.buffer.consume(parsed.len);
        self.state.scanned = 0;
        if head.is_informational() {
            self.state.informational += 1;
            return if self.state.informational > MAX_INFORMATIONAL {
                Err(StreamError::protocol(Blame::Upstream, 502, "more than 16 interim responses"))
            } else {
                Ok(BodyKind::Empty)
            };
        }
        self.state.headed = true;
        self.state.keep_alive = parsed.keep_alive;
        self.wire.tunnel.set(parsed.body == BodyKind::Tunnel);
        self.read.begin(parsed.body, parsed.until_close);
        Ok(parsed.body)
    }
}
