//! How a connection ends whose peer may still be sending: a socket that is closed with bytes unread resets, and takes our
//! last words with it (RFC 9112, 9.6; RFC 9113, 5.4.1).

use std::io::Result;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::Instant;

use crate::Io;
use crate::buffers::Buffer;
use crate::deadline::Deadline;

/// Ends our direction, then reads what still comes until the peer ends too.
#[derive(Debug)]
pub(crate) struct Farewell {
    until: Instant,
    deadline: Deadline,
    buffer: Buffer,
    said: bool,
}

impl Farewell {
    /// The peer has so long.
    pub(crate) fn new(limit: Duration) -> Self {
        let now = Instant::now();
        let until = now.checked_add(limit).unwrap_or(now);
        Self { until, deadline: Deadline::new(), buffer: Buffer::default(), said: false }
    }

    /// Ready when the peer has ended, is gone, or had its time.
    ///
    /// # Errors
    /// Our direction could not be ended.
    pub(crate) fn poll(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match self.poll_end(io, cx) {
            Poll::Pending if self.deadline.poll(cx, self.until).is_ready() => {
                tracing::trace!("a peer went on sending after our last words");
                Poll::Ready(Ok(()))
            }
            poll => poll,
        }
    }

    fn poll_end(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if !self.said {
            ready!(Pin::new(&mut *io).poll_shutdown(cx))?;
            self.said = true;
        }
        loop {
            self.buffer.consume(usize::MAX);
            match ready!(self.buffer.poll_fill(io, cx, false)) {
                // Gone by a reset or by an end: there is nobody left to be waited for.
                Ok(0) | Err(_) => return Poll::Ready(Ok(())),
                Ok(_) => {}
            }
        }
    }
}
