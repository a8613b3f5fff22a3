//! A CONNECT stream as a plain stream of bytes: each direction ends on its own (END_STREAM), and a stream that is dropped
//! before both have ended is reset.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::client::Active;
use super::core::{Core, Failure, Key};
use super::frame::code;
use super::handle::Lease;
use crate::Chunk;

#[derive(Debug)]
pub(crate) struct Pipe {
    lease: Lease,
    write_ended: bool,
    /// Counts the stream as one of its connection's.
    _active: Option<Active>,
}

impl Pipe {
    pub(super) fn new(lease: Lease, active: Option<Active>) -> Self {
        Self { lease, write_ended: false, _active: active }
    }

    fn poll<T>(&self, run: impl FnOnce(&mut Core, Key) -> Poll<std::result::Result<T, Failure>>) -> Poll<Result<T>> {
        self.lease.stream().with(run).map_err(broken)
    }

    /// Ready when a read would make progress.
    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll(|core, key| core.poll_readable(key, cx))
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        self.poll(|core, key| core.poll_read(key, buf, cx))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        if self.write_ended {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        }
        self.poll(|core, key| {
            let mut taken = 0;
            for buf in bufs {
                let mut chunk = Chunk::Borrowed(buf);
                let sent = core.poll_send(key, &mut chunk, cx);
                taken += buf.len() - chunk.len();
                match sent {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(failure)) => return Poll::Ready(Err(failure)),
                    Poll::Pending if taken > 0 => break,
                    Poll::Pending => return Poll::Pending,
                }
            }
            Poll::Ready(Ok(taken))
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        // The connection's driver sends what it has.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.write_ended, true) {
            this.lease.stream().with(|core, key| core.finish(key, None)).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let read = self.lease.stream().with(Core::is_read);
        if !self.write_ended || !read {
            self.lease.reset(code::CANCEL);
        }
    }
}

fn broken(failure: Failure) -> Error {
    let text = match failure {
        Failure::Closed => return ErrorKind::ConnectionReset.into(),
        Failure::Reset(_) => "the peer reset the stream",
        Failure::Refused => "the peer refused the stream",
        Failure::Broken(detail) => detail,
        Failure::Overflow => "the peer sent more than it may",
    };
    Error::new(ErrorKind::ConnectionReset, text)
}
