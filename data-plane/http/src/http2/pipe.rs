//! A CONNECT stream as a plain stream of bytes: each direction ends on its own (END_STREAM), and a stream that is dropped
//! before both have ended is reset.

use std::io::{Error, ErrorKind, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::client::Active;

/// The two halves of a stream.
#[derive(Debug)]
pub(crate) struct Pipe {
    receive: RecvStream,
    send: SendStream<Bytes>,
    /// Received and not read yet. Its window is given back as it is read.
    ahead: Bytes,
    read_ended: bool,
    write_ended: bool,
    /// Counts the stream as one of its connection's.
    _active: Option<Active>,
}

impl Pipe {
    pub(crate) fn new(receive: RecvStream, send: SendStream<Bytes>, active: Option<Active>) -> Self {
        Self { receive, send, ahead: Bytes::new(), read_ended: false, write_ended: false, _active: active }
    }

    /// Ready when a read would make progress.
    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        while self.ahead.is_empty() && !self.read_ended {
            match ready!(self.receive.poll_data(cx)) {
                Some(data) => self.ahead = data.map_err(broken)?,
                None => self.read_ended = true,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_readable(cx))?;
        let taken = this.ahead.len().min(buf.remaining());
        if taken > 0 {
            buf.put_slice(&this.ahead[..taken]);
            this.ahead.advance(taken);
            this.receive.flow_control().release_capacity(taken).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        let this = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        this.send.reserve_capacity(buf.len());
        let granted = match ready!(this.send.poll_capacity(cx)) {
            Some(granted) => granted.map_err(broken)?.min(buf.len()),
            None => return Poll::Ready(Err(ErrorKind::BrokenPipe.into())),
        };
        this.send.send_data(Bytes::copy_from_slice(&buf[..granted]), false).map_err(broken)?;
        Poll::Ready(Ok(granted))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        // The connection's driver sends what it has.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        if !this.write_ended {
            this.write_ended = true;
            this.send.send_data(Bytes::new(), true).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        if !self.write_ended || !self.receive.is_end_stream() {
            self.send.send_reset(Reason::CANCEL);
        }
    }
}

fn broken(error: h2::Error) -> Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| ErrorKind::ConnectionReset.into());
    }
    Error::new(ErrorKind::ConnectionReset, error)
}
