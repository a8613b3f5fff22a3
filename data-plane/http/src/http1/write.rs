//! Message heads and bodies onto the wire.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use smallvec::SmallVec;
use tokio::io::AsyncWrite;

use super::{Wire, chunked, encode};
use crate::buffers::{LARGE, SMALL, give_out, take_out};
use crate::deadline::Stall;
use crate::io::splice::Splice;
use crate::{Blame, Chunk, Fields, Io, StreamError, StreamErrorKind};

/// Pieces up to this are copied behind what waits to be sent; larger ones are sent from where they are.
const COPY: usize = 4 * 1024;
/// As many pieces at most are gathered for one write.
const PIECES: usize = 32;

/// What may be written next, and how its end is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// No head was written yet.
    Head,
    Length(u64),
    Chunked,
    UntilClose,
    Tunnel,
    /// The body of a response that has none on the wire (HEAD): taken and dropped.
    Discard,
    Done,
    Failed,
}

impl Framing {
    pub(crate) fn length(length: u64) -> Self {
        if length == 0 { Self::Done } else { Self::Length(length) }
    }
}

/// The writing direction of a connection.
#[derive(Debug)]
pub(crate) struct Writer {
    /// Waits to be sent, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    /// Pieces of a body that wait behind it, and how long they are together: those that another connection has received
    /// come in frames, and many go out in one write.
    pieces: VecDeque<Bytes>,
    gathered: usize,
    framing: Framing,
    blame: Blame,
    stall: Option<Stall>,
}

impl Writer {
    pub(crate) fn new(blame: Blame) -> Self {
        Self {
            out: Vec::new(),
            sent: 0,
            pieces: VecDeque::new(),
            gathered: 0,
            framing: Framing::Head,
            blame,
            stall: None,
        }
    }

    /// The next message.
    pub(crate) fn begin(&mut self, wire: &Wire) {
        self.framing = Framing::Head;
        wire.written.set(0);
    }

    pub(crate) fn framing(&self) -> Framing {
        self.framing
    }

    pub(crate) fn fail(&mut self) {
        self.framing = Framing::Failed;
    }

    /// Everything was written and sent.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.framing, Framing::Done) && !self.has_pending()
    }

    pub(crate) fn has_pending(&self) -> bool {
        !self.out.is_empty() || !self.pieces.is_empty()
    }

    /// Appends a head (or anything else) to what waits to be sent.
    pub(crate) fn write_head(
        &mut self,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<Framing, StreamError>,
    ) -> Result<Framing, StreamError> {
        if self.framing != Framing::Head {
            return Err(StreamError::misuse("a second head"));
        }
        if self.out.capacity() == 0 {
            self.out = take_out();
        }
        let before = self.out.len();
        let result = encode(&mut self.out);
        match result {
            Ok(framing) => self.framing = framing,
            Err(_) => self.out.truncate(before),
        }
        result
    }

    /// Sends a piece of the body. With `queue` a small one may wait for the next call.
    pub(crate) async fn data(&mut self, wire: &Wire, chunk: Chunk<'_>, queue: bool) -> Result<(), StreamError> {
        if chunk.is_empty() {
            return if queue { Ok(()) } else { self.flush(wire).await };
        }
        if self.framing == Framing::Done && wire.tunnel.get() {
            self.framing = Framing::Tunnel;
        }
        let framing = match self.framing {
            Framing::Length(left) => match left.checked_sub(chunk.len() as u64) {
                Some(left) => Framing::length(left),
                None => return Err(StreamError::misuse("more body than its length")),
            },
            Framing::Chunked | Framing::UntilClose | Framing::Tunnel => self.framing,
            Framing::Discard => return Ok(()),
            Framing::Failed => return Err(self.closed(wire)),
            Framing::Head | Framing::Done => return Err(StreamError::misuse("a body where none can be")),
        };
        if self.out.capacity() == 0 {
            self.out = take_out();
        }
        let tail: &[u8] = if framing == Framing::Chunked {
            chunked::write_size(&mut self.out, chunk.len());
            b"\r\n"
        } else {
            b""
        };
        if queue && self.gathers(&chunk, framing) {
            self.gathered += chunk.len();
            self.pieces.push_back(chunk.into_owned());
            self.framing = framing;
            return Ok(());
        }
        let chunk = &*chunk;
        if queue && self.pieces.is_empty() && chunk.len() <= COPY && self.out.len() + chunk.len() <= SMALL {
            self.out.extend_from_slice(chunk);
            self.out.extend_from_slice(tail);
            self.framing = framing;
            return Ok(());
        }
        // Whoever gives up half-way leaves a message that nobody can end.
        self.framing = Framing::Failed;
        let mut sent = 0;
        poll_fn(|cx| self.poll_send(wire, cx, chunk, tail, &mut sent)).await?;
        self.framing = framing;
        Ok(())
    }

    /// Whether a piece may wait among others: a large one that is nobody else's, and whatever comes behind such a one. Not
    /// in a chunked body, where every piece has its length before it.
    fn gathers(&self, chunk: &Chunk<'_>, framing: Framing) -> bool {
        let owned = matches!(chunk, Chunk::Owned(_)) && chunk.len() > COPY;
        framing != Framing::Chunked
            && (owned || !self.pieces.is_empty())
            && self.pieces.len() < PIECES
            && self.gathered + chunk.len() <= LARGE
    }

    /// How long the rest of the body is, if [`Self::append_rest`] may take it.
    pub(crate) fn short_rest(&self) -> Option<usize> {
        let Framing::Length(left) = self.framing else { return None };
        let left = usize::try_from(left).ok().filter(|left| *left <= COPY)?;
        (self.pieces.is_empty() && self.out.len() + left <= SMALL).then_some(left)
    }

    /// Ends the body with a piece that is as long as [`Self::short_rest`] says, behind what waits to be sent.
    pub(crate) fn append_rest(&mut self, rest: &[u8]) {
        if self.out.capacity() == 0 {
            self.out = take_out();
        }
        self.out.extend_from_slice(rest);
        self.framing = Framing::Done;
    }

    fn closed(&self, wire: &Wire) -> StreamError {
        StreamError::closed(self.blame).untouched(wire.written.get() == 0)
    }

    /// Sends what waits.
    pub(crate) async fn flush(&mut self, wire: &Wire) -> Result<(), StreamError> {
        if !self.has_pending() {
            return if self.framing == Framing::Failed { Err(self.closed(wire)) } else { Ok(()) };
        }
        let mut sent = 0;
        poll_fn(|cx| self.poll_send(wire, cx, b"", b"", &mut sent)).await
    }

    /// Ends the body.
    pub(crate) async fn finish(&mut self, wire: &Wire, trailers: Option<&Fields>) -> Result<(), StreamError> {
        match self.framing {
            Framing::Chunked => {
                if self.out.capacity() == 0 {
                    self.out = take_out();
                }
                encode::trailers(&mut self.out, trailers);
                self.framing = Framing::Done;
            }
            Framing::Discard | Framing::UntilClose => self.framing = Framing::Done,
            Framing::Done if wire.tunnel.get() => return self.shut_down(wire).await,
            Framing::Tunnel => return self.shut_down(wire).await,
            Framing::Done => {}
            Framing::Failed => return Err(self.closed(wire)),
            Framing::Length(_) => {
                self.framing = Framing::Failed;
                return Err(StreamError::misuse("less body than its length"));
            }
            Framing::Head => return Err(StreamError::misuse("an end without a head")),
        }
        self.flush(wire).await
    }

    /// Ends our direction of a tunnel.
    async fn shut_down(&mut self, wire: &Wire) -> Result<(), StreamError> {
        self.flush(wire).await?;
        self.framing = Framing::Discard;
        poll_fn(|cx| Pin::new(&mut *wire.io.borrow_mut()).poll_shutdown(cx)).await.map_err(|_| self.closed(wire))
    }

    /// Sends what waits, then `chunk` and `tail`, of which `sent` bytes are out already.
    fn poll_send(
        &mut self,
        wire: &Wire,
        cx: &mut Context<'_>,
        chunk: &[u8],
        tail: &[u8],
        sent: &mut usize,
    ) -> Poll<Result<(), StreamError>> {
        let before = wire.written.get();
        let result = match self.poll_write(wire, cx, chunk, tail, sent) {
            Poll::Ready(result) => result,
            Poll::Pending => return self.poll_stalled(wire, cx, before).map(Err),
        };
        self.stall = None;
        self.sent = 0;
        give_out(std::mem::take(&mut self.out));
        if result.is_err() {
            self.framing = Framing::Failed;
        }
        Poll::Ready(result.map_err(|_| self.closed(wire)))
    }

    /// For a write that has to wait, where `before` bytes had been written when it was tried.
    fn poll_stalled(&mut self, wire: &Wire, cx: &mut Context<'_>, before: u64) -> Poll<StreamError> {
        // What waits in a tunnel may wait as long as the tunnel may be idle; a server has its request's time.
        if wire.tunnel.get() || self.blame != Blame::Downstream {
            return Poll::Pending;
        }
        let progress = wire.written.get() != before;
        ready!(self.stall.get_or_insert_default().poll(cx, progress));
        self.framing = Framing::Failed;
        Poll::Ready(StreamError::new(self.blame, StreamErrorKind::Timeout))
    }

    /// Whether so many bytes of body may follow, with nothing between them.
    pub(crate) fn takes(&self, bytes: u64) -> bool {
        matches!(self.framing, Framing::Length(left) if left >= bytes)
    }

    /// Sends a piece of the body that is in a pipe; everything before it was flushed.
    pub(crate) async fn splice(&mut self, wire: &Wire, mut piece: Splice) -> Result<(), StreamError> {
        let Framing::Length(left) = self.framing else { return Err(StreamError::misuse("a body where none can be")) };
        let left = left.checked_sub(piece.len() as u64).ok_or(StreamError::misuse("more body than its length"))?;
        // Whoever gives up half-way leaves a message that nobody can end.
        self.framing = Framing::Failed;
        while !piece.is_empty() {
            poll_fn(|cx| self.poll_splice(wire, cx, &mut piece)).await?;
        }
        self.stall = None;
        self.framing = Framing::length(left);
        Ok(())
    }

    fn poll_splice(&mut self, wire: &Wire, cx: &mut Context<'_>, piece: &mut Splice) -> Poll<Result<(), StreamError>> {
        let before = wire.written.get();
        match piece.poll_drain(cx, &wire.io.borrow()) {
            Poll::Ready(Ok(count)) => {
                wire.written.set(before + count as u64);
                self.stall = None;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(_)) => Poll::Ready(Err(self.closed(wire))),
            Poll::Pending => self.poll_stalled(wire, cx, before).map(Err),
        }
    }

    /// One write of what waits and what comes behind it.
    fn poll_all(&self, io: &mut Io, cx: &mut Context<'_>, behind: [&[u8]; 2]) -> Poll<std::io::Result<usize>> {
        let waiting = self.pieces.iter().map(|piece| &**piece);
        let parts = self.out.get(self.sent..).into_iter().chain(waiting).chain(behind);
        let slices: SmallVec<[IoSlice<'_>; 4]> = parts.filter(|part| !part.is_empty()).map(IoSlice::new).collect();
        match slices.as_slice() {
            [one] => Pin::new(io).poll_write(cx, one),
            many => Pin::new(io).poll_write_vectored(cx, many),
        }
    }

    /// So many bytes are out; how many of them were none of those that waited.
    fn advance(&mut self, written: usize) -> usize {
        let of_head = written.min(self.out.len() - self.sent);
        self.sent += of_head;
        let mut rest = written - of_head;
        while let Some(piece) = self.pieces.front_mut().filter(|_| rest > 0) {
            let taken = rest.min(piece.len());
            piece.advance(taken);
            rest -= taken;
            self.gathered -= taken;
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
        rest
    }

    fn poll_write(
        &mut self,
        wire: &Wire,
        cx: &mut Context<'_>,
        chunk: &[u8],
        tail: &[u8],
        sent: &mut usize,
    ) -> Poll<std::io::Result<()>> {
        let mut io = wire.io.borrow_mut();
        loop {
            let body = chunk.get(*sent..).unwrap_or_default();
            let tail = tail.get(sent.saturating_sub(chunk.len())..).unwrap_or_default();
            let head = self.out.get(self.sent..).unwrap_or_default();
            let written = if !self.pieces.is_empty() || !body.is_empty() || !tail.is_empty() {
                ready!(self.poll_all(&mut io, cx, [body, tail]))?
            } else if !head.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, head))?
            } else {
                break;
            };
            if written == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            wire.written.set(wire.written.get() + written as u64);
            *sent += self.advance(written);
        }
        Pin::new(&mut *io).poll_flush(cx)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        give_out(std::mem::take(&mut self.out));
    }
}
