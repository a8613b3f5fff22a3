//! Why a connection broke. The gRPC client says only that it did: in TLS 1.3 a server refuses a client's certificate after
//! the client's handshake is over.

use std::io::{Error, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The first error of a connection, if there was one. Shared.
#[derive(Debug, Clone, Default)]
pub(in crate::ads) struct Cause(Arc<OnceLock<String>>);

impl Cause {
    /// What went wrong, for people.
    pub(in crate::ads) fn get(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    fn note<T>(&self, polled: Poll<Result<T, Error>>) -> Poll<Result<T, Error>> {
        if let Poll::Ready(Err(error)) = &polled {
            // Only the first one tells the cause.
            let _later = self.0.set(error.to_string());
        }
        polled
    }
}

/// A byte stream, encrypted or not.
pub(super) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// A connection that notes its first error.
pub(super) struct Noting {
    pub(super) inner: Box<dyn Connection>,
    pub(super) cause: Cause,
}

impl AsyncRead for Noting {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<(), Error>> {
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.cause.note(polled)
    }
}

impl Noting {
    /// Whoever closes a connection on us may have said why before: that stands in what is still to be read.
    fn note_write<T>(&mut self, cx: &mut Context<'_>, polled: Poll<Result<T, Error>>) -> Poll<Result<T, Error>> {
        if let Poll::Ready(Err(_)) = &polled {
            let mut scratch = [0; 1024];
            let last_words = Pin::new(&mut self.inner).poll_read(cx, &mut ReadBuf::new(&mut scratch));
            drop(self.cause.note(last_words));
        }
        self.cause.note(polled)
    }
}

impl AsyncWrite for Noting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize, Error>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.note_write(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize, Error>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.note_write(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.note_write(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
