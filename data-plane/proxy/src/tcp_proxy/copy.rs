//! Copying between two connections, buffers held only while bytes are in them.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use culvert_http::{Io, Splice};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::router::limits::Limits;
use crate::worker::{Pool, Pooled, Reusable};

/// Bytes that have passed.
#[derive(Debug, Default)]
pub(super) struct Passed {
    pub(super) up: Cell<u64>,
    pub(super) down: Cell<u64>,
}

/// Copies until both directions have ended, or one of them breaks.
pub(super) async fn copy_both(
    client: &mut Io,
    host: &mut Io,
    buffers: &Pool<CopyBuffer>,
    limits: &Limits,
    passed: &Passed,
) -> io::Result<()> {
    let mut up = Direction::default();
    let mut down = Direction::default();
    poll_fn(|cx| {
        let up_done = up.poll(cx, client, host, buffers, limits, &passed.up)?;
        let down_done = down.poll(cx, host, client, buffers, limits, &passed.down)?;
        if up_done.is_ready() && down_done.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Direction {
    /// Held only while there are bytes in it.
    buffer: Option<Pooled<CopyBuffer>>,
    /// So is a pipe, by which much that comes at once passes without being copied.
    piece: Option<Splice>,
    /// The last read took as much as it could.
    bulk: bool,
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Copying,
    /// The reader has ended; the writer is told.
    Ending,
    Ended,
}

impl Direction {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Io,
        to: &mut Io,
        buffers: &Pool<CopyBuffer>,
        limits: &Limits,
        passed: &Cell<u64>,
    ) -> Poll<io::Result<()>> {
        loop {
            match self.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Ended;
                }
                State::Copying => {
                    if self.piece.is_some() {
                        ready!(self.poll_drain(cx, to, limits, passed))?;
                    }
                    if self.buffer.is_none() && from.poll_quiet(cx) {
                        return Poll::Pending;
                    }
                    if self.bulk
                        && self.buffer.is_none()
                        && from.can_splice(to)
                        && let Some(piece) = Splice::take()
                    {
                        ready!(self.poll_fill(cx, from, piece))?;
                        continue;
                    }
                    let buffer = self.buffer.get_or_insert_with(|| buffers.take());
                    let moved = buffer.poll_move(cx, from, to, passed);
                    if buffer.is_empty() {
                        self.buffer = None;
                    }
                    match ready!(moved)? {
                        0 => self.state = State::Ending,
                        count => {
                            self.bulk = count >= COPY_BUFFER;
                            limits.touch();
                        }
                    }
                }
            }
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, from: &Io, mut piece: Splice) -> Poll<io::Result<()>> {
        let count = ready!(piece.poll_fill(cx, from, usize::MAX))?;
        // Little by little is copied again: that takes as many calls and no pipe.
        self.bulk = count >= COPY_BUFFER / 2;
        if count == 0 {
            self.state = State::Ending;
        } else {
            self.piece = Some(piece);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        to: &Io,
        limits: &Limits,
        passed: &Cell<u64>,
    ) -> Poll<io::Result<()>> {
        while let Some(piece) = self.piece.as_mut().filter(|piece| !piece.is_empty()) {
            let count = ready!(piece.poll_drain(cx, to))?;
            passed.set(passed.get() + count as u64);
            limits.touch();
        }
        self.piece = None;
        Poll::Ready(Ok(()))
    }
}

/// A buffer for bytes on their way.
#[derive(Debug, Default)]
pub(crate) struct CopyBuffer {
    /// Empty until the first use.
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// Something was written that the writer may still hold.
    unflushed: bool,
}

impl Reusable for CopyBuffer {
    fn recycle(&mut self) -> bool {
        self.start = 0;
        self.end = 0;
        self.unflushed = false;
        true
    }
}

/// One `readv`'s worth.
const COPY_BUFFER: usize = 64 * 1024;

impl CopyBuffer {
    /// The memory, for whoever keeps count of what is in it.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = vec![0; COPY_BUFFER].into_boxed_slice();
        }
        &mut self.bytes
    }

    const fn is_empty(&self) -> bool {
        self.start == self.end && !self.unflushed
    }

    /// Reads if there is nothing to write, writes all that there is. Ready with the number of bytes that were passed on;
    /// 0: the reader has ended and everything was written.
    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Io,
        to: &mut Io,
        passed: &Cell<u64>,
    ) -> Poll<io::Result<usize>> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            let mut read = ReadBuf::new(self.space());
            match Pin::new(&mut *from).poll_read(cx, &mut read) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(to).poll_flush(cx))?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
            self.end = read.filled().len();
            if self.end == 0 {
                self.unflushed = false;
                return Poll::Ready(Ok(0));
            }
        }
        let mut written = 0;
        while self.start < self.end {
            let rest = self.bytes.get(self.start..self.end).unwrap_or_default();
            match Pin::new(&mut *to).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => {
                    self.start += count;
                    self.unflushed = true;
                    written += count;
                    passed.set(passed.get() + count as u64);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if written > 0 => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(written))
    }
}
