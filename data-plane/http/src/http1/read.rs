//! Message bodies off the wire.

use std::ops::Range;
use std::task::{Context, Poll, ready};

use super::Wire;
use super::chunked::{Decoder, Step};
use super::fields;
use crate::buffers::{Buffer, SMALL};
use crate::io::splice::Splice;
use crate::{Blame, BodyKind, Fields, StreamError};

/// How the end of what is read is known.
#[derive(Debug)]
enum Body {
    /// Nothing more belongs to this message.
    Done,
    Length(u64),
    Chunked(Decoder),
    UntilClose,
    Tunnel,
    /// The peer closed its direction of a tunnel.
    Ended,
    Failed(StreamError),
}

/// The reading direction of a connection.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) buffer: Buffer,
    body: Body,
    blame: Blame,
    /// The last read filled its block: the next one takes a large block.
    large: bool,
    /// A piece that was decoded ahead of being asked for.
    ahead: Option<Result<Option<Range<usize>>, StreamError>>,
    /// Bytes of the trailer section that were looked at.
    scanned: usize,
    trailers: Option<Box<Fields>>,
}

impl Reader {
    pub(crate) fn new(buffer: Buffer, blame: Blame) -> Self {
        Self { buffer, body: Body::Done, blame, large: false, ahead: None, scanned: 0, trailers: None }
    }

    /// A head was taken off the buffer: this body follows.
    pub(crate) fn begin(&mut self, kind: BodyKind, until_close: bool) {
        self.ahead = None;
        self.scanned = 0;
        self.trailers = None;
        self.body = match kind {
            BodyKind::Empty | BodyKind::Tunnel | BodyKind::Length(0) => Body::Done,
            BodyKind::Length(length) => Body::Length(length),
            BodyKind::Stream if until_close => Body::UntilClose,
            BodyKind::Stream => Body::Chunked(Decoder::new()),
        };
    }

    /// The message has ended, and cleanly.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.body, Body::Done) && matches!(self.ahead, None | Some(Ok(None)))
    }

    /// Bytes of the message that have not been read, as far as it is known; `None`: it has no end before the
    /// connection's.
    pub(crate) fn left(&self) -> Option<u64> {
        match &self.body {
            Body::Done | Body::Chunked(_) => Some(0),
            Body::Length(left) => Some(*left),
            Body::UntilClose | Body::Tunnel | Body::Ended | Body::Failed(_) => None,
        }
    }

    pub(crate) fn trailers(&self) -> Option<&Fields> {
        self.trailers.as_deref()
    }

    fn fail(&mut self, error: StreamError) -> StreamError {
        self.body = Body::Failed(error);
        error
    }

    /// The rest of the body, if that is so long and was read already.
    pub(crate) fn take_rest(&mut self, length: usize) -> Option<Range<usize>> {
        let all = matches!(self.body, Body::Length(left) if left == length as u64)
            && self.ahead.is_none()
            && self.buffer.data().len() >= length;
        all.then(|| {
            self.body = Body::Done;
            self.buffer.consume(length)
        })
    }

    /// Bytes of the body that follow on the socket and nowhere else; 0 where that is not known, or there are others first.
    pub(crate) fn left_on_socket(&self) -> u64 {
        match &self.body {
            Body::Length(left) if self.buffer.is_empty() && self.ahead.is_none() => *left,
            _ => 0,
        }
    }

    /// What has come of those, in a pipe, which is taken only then; `None`: there is no pipe to be had.
    pub(crate) fn poll_splice(
        &mut self,
        wire: &Wire,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Splice>, StreamError>> {
        let Body::Length(left) = self.body else { return Poll::Ready(Ok(None)) };
        let most = usize::try_from(left).unwrap_or(usize::MAX);
        let io = wire.io.borrow();
        if io.poll_quiet(cx) {
            return Poll::Pending;
        }
        let Some(mut splice) = Splice::take() else { return Poll::Ready(Ok(None)) };
        match ready!(splice.poll_fill(cx, &io, most)) {
            Ok(0) => Poll::Ready(Err(self.ended_early())),
            Err(_) => Poll::Ready(Err(self.fail(StreamError::closed(self.blame)))),
            Ok(count) => {
                let left = left.saturating_sub(count as u64);
                self.body = if left == 0 { Body::Done } else { Body::Length(left) };
                Poll::Ready(Ok(Some(splice)))
            }
        }
    }

    /// The connection ended before the message did: a server's error, as in Envoy; a client is simply gone.
    fn ended_early(&mut self) -> StreamError {
        match self.blame {
            Blame::Upstream => self.broken("the connection ended before the message did"),
            _ => self.fail(StreamError::closed(self.blame)),
        }
    }

    /// The next piece of what is in the buffer; `None`: more must be read first.
    fn decode(&mut self, tunnel: bool) -> Option<Result<Option<Range<usize>>, StreamError>> {
        loop {
            match &mut self.body {
                Body::Failed(error) => return Some(Err(*error)),
                Body::Done if tunnel => self.body = Body::Tunnel,
                Body::Done | Body::Ended => return Some(Ok(None)),
                _ if self.buffer.is_empty() => return None,
                Body::UntilClose | Body::Tunnel => return Some(Ok(Some(self.buffer.consume(usize::MAX)))),
                Body::Length(left) => {
                    let range = self.buffer.consume(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= range.len() as u64;
                    if *left == 0 {
                        self.body = Body::Done;
                    }
                    return Some(Ok(Some(range)));
                }
                Body::Chunked(decoder) => match decoder.step(self.buffer.data()) {
                    Ok(Step::More) => {
                        self.buffer.consume(usize::MAX);
                        return None;
                    }
                    Ok(Step::Data(range)) => {
                        self.buffer.consume(range.start);
                        return Some(Ok(Some(self.buffer.consume(range.len()))));
                    }
                    Ok(Step::Trailers(offset)) => {
                        self.buffer.consume(offset);
                        let data = self.buffer.data();
                        let from = std::mem::replace(&mut self.scanned, data.len());
                        match fields::trailers(data, from, &mut self.trailers) {
                            Ok(Some(len)) => {
                                self.buffer.consume(len);
                                self.body = Body::Done;
                                return Some(Ok(None));
                            }
                            Ok(None) => return None,
                            Err(detail) => return Some(Err(self.broken(detail))),
                        }
                    }
                    Err(detail) => return Some(Err(self.broken(detail))),
                },
            }
        }
    }

    fn broken(&mut self, detail: &'static str) -> StreamError {
        let status = if self.blame == Blame::Downstream { 400 } else { 502 };
        self.fail(StreamError::protocol(self.blame, status, detail))
    }

    /// The next piece (a range of the buffer, valid until the next call), or `None` at the end.
    pub(crate) fn poll_chunk(
        &mut self,
        wire: &Wire,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Range<usize>>, StreamError>> {
        if let Some(ahead) = self.ahead.take() {
            return Poll::Ready(ahead);
        }
        loop {
            if let Some(piece) = self.decode(wire.tunnel.get()) {
                return Poll::Ready(piece);
            }
            let large = match self.body {
                Body::Length(left) => left > SMALL as u64,
                _ => self.large,
            };
            match ready!(self.buffer.poll_fill(&mut wire.io.borrow_mut(), cx, large)) {
                Ok(0) if matches!(self.body, Body::UntilClose) => self.body = Body::Done,
                Ok(0) if matches!(self.body, Body::Tunnel) => self.body = Body::Ended,
                Ok(0) => return Poll::Ready(Err(self.ended_early())),
                Err(_) => return Poll::Ready(Err(self.fail(StreamError::closed(self.blame)))),
                Ok(count) => self.large = count >= SMALL,
            }
        }
    }

    /// Whether [`Self::poll_chunk`] would return without waiting.
    pub(crate) fn ready(&mut self, wire: &Wire) -> bool {
        if self.ahead.is_none() {
            self.ahead = self.decode(wire.tunnel.get());
        }
        self.ahead.is_some()
    }

    /// Once the message has been read: resolves when the peer is gone. What it sends before stays in the buffer (and
    /// hides its end from us).
    pub(crate) fn poll_closed(&mut self, wire: &Wire, cx: &mut Context<'_>) -> Poll<()> {
        match self.body {
            Body::Failed(_) | Body::Ended => return Poll::Ready(()),
            Body::Done if !wire.tunnel.get() && self.buffer.is_empty() => {}
            _ => return Poll::Pending,
        }
        match ready!(self.buffer.poll_fill(&mut wire.io.borrow_mut(), cx, false)) {
            Ok(0) | Err(_) => {
                self.fail(StreamError::closed(self.blame));
                Poll::Ready(())
            }
            Ok(_) => Poll::Pending,
        }
    }
}
