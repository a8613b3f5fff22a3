//! Joins a connection's core to its bytes: one read and one write a turn.

use std::io::{ErrorKind, Result};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use smallvec::SmallVec;
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::time::Instant;

use super::core::Core;
use super::handle::Shared;
use super::outbox::Outbox;
use crate::Io;
use crate::buffers::{SMALL, give_input, take_input};
use crate::farewell::Farewell;

/// A read asks for so much where bodies stream.
const LARGE: usize = 128 * 1024;
/// Least room of a read.
const ROOM: usize = 4 * 1024;
/// Reads of one turn: then others have theirs.
const READS: usize = 8;

#[derive(Debug)]
pub(super) struct Link {
    pub(super) io: Io,
    pub(super) shared: Arc<Shared>,
    /// What was read and is no whole frame yet. Holds memory only then.
    input: BytesMut,
    /// What is being written; what comes meanwhile waits in the core.
    writing: Outbox,
    /// Something was written that may wait in TLS.
    unflushed: bool,
    /// The last read took all the room that it had.
    busy: bool,
    swamped: bool,
    open_block: Option<Instant>,
    wakes: Vec<Waker>,
}

/// What became of a turn.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing more to do for now.
    Resting,
    /// There may be more at once.
    Busy,
    /// The peer sends no more.
    Ended,
    /// The peer takes no answers, so nothing more is read before it does.
    Swamped,
}

impl Link {
    /// `ahead`: what was read already.
    pub(super) fn new(io: Io, core: Core, ahead: &[u8]) -> Self {
        let shared = Shared::new(core);
        let input = BytesMut::from(ahead);
        Self {
            io,
            shared,
            input,
            writing: Outbox::default(),
            unflushed: false,
            busy: false,
            swamped: false,
            open_block: None,
            wakes: Vec::new(),
        }
    }

    /// Reads what has come and gives it to the core.
    ///
    /// # Errors
    /// The connection is gone.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<Turn> {
        if !self.input.is_empty() {
            self.receive();
        }
        for _ in 0..READS {
            if self.swamped {
                return Ok(Turn::Swamped);
            }
            match self.poll_fill(cx) {
                Poll::Pending => return Ok(Turn::Resting),
                Poll::Ready(Ok(0)) => return Ok(Turn::Ended),
                Poll::Ready(Ok(_)) => self.receive(),
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        Ok(Turn::Busy)
    }

    fn receive(&mut self) {
        let mut core = self.shared.lock();
        core.receive(&mut self.input);
        std::mem::swap(core.wakes(), &mut self.wakes);
        self.swamped = core.is_swamped();
        self.open_block = core.open_block();
        drop(core);
        self.wakes.drain(..).for_each(Waker::wake);
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize>> {
        if self.input.is_empty() {
            if self.io.poll_quiet(cx) {
                self.rest();
                return Poll::Pending;
            }
            if !self.busy && self.input.capacity() == 0 {
                self.input = take_input();
            }
        }
        if self.input.capacity() - self.input.len() < if self.busy { LARGE / 2 } else { ROOM } {
            self.input.reserve(if self.busy { LARGE } else { SMALL });
        }
        let room = self.input.capacity() - self.input.len();
        let poll = pin!(self.io.read_buf(&mut self.input)).poll(cx);
        match &poll {
            Poll::Ready(Ok(count)) => self.busy = *count >= room,
            _ => self.rest(),
        }
        poll
    }

    /// Holds no buffer while there is nothing in it.
    fn rest(&mut self) {
        self.busy = false;
        if self.input.is_empty() {
            give_input(std::mem::take(&mut self.input));
        }
    }

    /// Writes what the core has: `Resting` when all is out, `Busy` while the peer takes no more.
    ///
    /// # Errors
    /// The connection is gone.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<Turn> {
        loop {
            if self.writing.is_empty() && !self.refill() {
                if self.unflushed {
                    match Pin::new(&mut self.io).poll_flush(cx)? {
                        Poll::Ready(()) => self.unflushed = false,
                        Poll::Pending => {}
                    }
                }
                return Ok(Turn::Resting);
            }
            let mut slices = SmallVec::new();
            self.writing.slices(&mut slices);
            let written = match slices.as_slice() {
                [one] => Pin::new(&mut self.io).poll_write(cx, one),
                many => Pin::new(&mut self.io).poll_write_vectored(cx, many),
            };
            drop(slices);
            match written? {
                Poll::Ready(0) => return Err(ErrorKind::WriteZero.into()),
                Poll::Ready(count) => self.writing.advance(count),
                Poll::Pending => return Ok(Turn::Busy),
            }
            self.unflushed = true;
        }
    }

    /// Takes what the core has to be written; `false`: nothing.
    fn refill(&mut self) -> bool {
        let mut core = self.shared.lock();
        core.fill(&mut self.writing);
        self.swamped = false;
        std::mem::swap(core.wakes(), &mut self.wakes);
        drop(core);
        self.wakes.drain(..).for_each(Waker::wake);
        !self.writing.is_empty()
    }

    /// Writes the last words and closes, for as long as the peer takes to read them (`linger`).
    pub(super) async fn close(mut self, linger: std::time::Duration) {
        let last = std::future::poll_fn(|cx| match self.poll_write(cx) {
            Ok(Turn::Busy) => Poll::Pending,
            Ok(_) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error)),
        });
        match tokio::time::timeout(linger, last).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return tracing::debug!(%error, "a peer was gone before our last words"),
            Err(_) => return tracing::debug!("a peer did not take our last words"),
        }
        let mut farewell = Farewell::new(linger);
        if let Err(error) = std::future::poll_fn(|cx| farewell.poll(&mut self.io, cx)).await {
            tracing::debug!(%error, "a peer was gone before our last words");
        }
    }

    /// Since when a header block has begun and not ended.
    pub(super) fn open_block(&self) -> Option<Instant> {
        self.open_block
    }
}

impl Drop for Link {
    /// Whoever still has a stream learns that the connection is gone.
    fn drop(&mut self) {
        self.input.advance(self.input.len());
        self.rest();
        self.shared.with(Core::close);
    }
}
