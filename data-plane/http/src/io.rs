//! The one connection type of the data plane: a socket, TLS over it, memory, or a stream of HTTP/2; with bytes that were
//! read ahead.

mod meter;
mod records;
mod socket;
pub(crate) mod splice;
mod tls;

use std::io::{ErrorKind, IoSlice, Result};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;

use crate::http2::pipe::Pipe;

pub use meter::Meter;
use records::Records;
pub use tls::TlsInfo;

/// A byte stream towards a peer.
#[derive(Debug)]
pub struct Io {
    /// Read before anything else: what an inspector or a handshake read ahead.
    prefix: Bytes,
    kind: IoKind,
    meter: Option<Arc<Meter>>,
    /// No read reaches behind a TLS record: see [`Self::record_by_record`].
    records: Option<Box<Records>>,
}

#[derive(Debug)]
enum IoKind {
    Tcp(TcpStream),
    TlsServer(Box<tokio_rustls::server::TlsStream<Box<Io>>>),
    TlsClient(Box<tokio_rustls::client::TlsStream<Box<Io>>>),
    Memory(DuplexStream),
    Stream(Box<Pipe>),
}

impl Io {
    fn new(kind: IoKind) -> Self {
        Self { prefix: Bytes::new(), kind, meter: None, records: None }
    }

    /// Of a TCP socket.
    #[must_use]
    pub fn tcp(stream: TcpStream) -> Self {
        Self::new(IoKind::Tcp(stream))
    }

    /// Of memory: both ends are in this process.
    #[must_use]
    pub fn memory(stream: DuplexStream) -> Self {
        Self::new(IoKind::Memory(stream))
    }

    /// A stream of HTTP/2.
    pub(crate) fn stream(pipe: Pipe) -> Self {
        Self::new(IoKind::Stream(Box::new(pipe)))
    }

    /// Of the server's end of TLS, over another stream.
    #[must_use]
    pub fn tls_server(stream: tokio_rustls::server::TlsStream<Box<Self>>) -> Self {
        Self::new(IoKind::TlsServer(Box::new(stream)))
    }

    /// Of the client's end of TLS, over another stream.
    #[must_use]
    pub fn tls_client(stream: tokio_rustls::client::TlsStream<Box<Self>>) -> Self {
        Self::new(IoKind::TlsClient(Box::new(stream)))
    }

    /// What TLS over this stream reads ends with the record that it needs, so that [`Self::leave_tls`] loses nothing. Until
    /// then two reads per record.
    #[must_use]
    pub fn record_by_record(mut self) -> Self {
        self.records = Some(Box::default());
        self
    }

    /// Ends [`Self::record_by_record`], of this stream and of the one under its TLS.
    #[must_use]
    pub fn as_one_stream(mut self) -> Self {
        self.records = None;
        match &mut self.kind {
            IoKind::TlsServer(stream) => stream.get_mut().0.records = None,
            IoKind::TlsClient(stream) => stream.get_mut().0.records = None,
            IoKind::Tcp(_) | IoKind::Stream(_) | IoKind::Memory(_) => {}
        }
        self
    }

    /// The byte stream under TLS, as it is: TLS says no goodbye, and what it had read already is lost. For protocols that
    /// leave TLS at a point where both sides are silent. A stream without TLS stays what it is.
    #[must_use]
    pub fn leave_tls(self) -> Self {
        match self.kind {
            IoKind::TlsServer(stream) => stream.into_inner().0.as_one_stream(),
            IoKind::TlsClient(stream) => stream.into_inner().0.as_one_stream(),
            IoKind::Tcp(_) | IoKind::Stream(_) | IoKind::Memory(_) => self,
        }
    }

    /// Whether the outermost layer is TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        matches!(self.kind, IoKind::TlsServer(_) | IoKind::TlsClient(_))
    }

    /// Puts bytes back in front of what is still to be read.
    #[must_use]
    pub fn with_prefix(mut self, prefix: Bytes) -> Self {
        if self.prefix.is_empty() {
            self.prefix = prefix;
        } else if !prefix.is_empty() {
            self.prefix = [prefix, self.prefix].concat().into();
        }
        self
    }

    /// Counts the bytes that pass this layer from now on (not those of a prefix that was read before).
    pub fn meter(&mut self) -> Arc<Meter> {
        Arc::clone(self.meter.get_or_insert_default())
    }

    /// Whether closing needs a last word on the wire (TLS: `close_notify`) before the socket is dropped.
    pub(crate) fn says_goodbye(&self) -> bool {
        !matches!(self.kind, IoKind::Tcp(_))
    }

    /// Whether the peer has sent nothing, not even its end, as far as the reactor knows. Registers no waker with a plain
    /// socket and asks the kernel only if there was an event: cheap enough for each request. What it may have read is
    /// lost: a connection that is not quiet is one to be closed.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        match &self.kind {
            IoKind::Tcp(stream) if self.prefix.is_empty() => {
                matches!(stream.try_read(&mut byte), Err(error) if error.kind() == ErrorKind::WouldBlock)
            }
            _ => {
                let mut context = Context::from_waker(Waker::noop());
                Pin::new(self).poll_read(&mut context, &mut ReadBuf::new(&mut byte)).is_pending()
            }
        }
    }

    /// Whether a read would have to wait, as far as the reactor knows; then the task is woken when it would not. Needs no
    /// buffer, and costs less than the read. `false` where only the read itself can tell.
    pub fn poll_quiet(&self, cx: &mut Context<'_>) -> bool {
        match &self.kind {
            _ if !self.prefix.is_empty() => false,
            IoKind::Tcp(stream) => socket::poll_quiet(stream, cx),
            // While it wants to be read for, it has no plaintext left.
            IoKind::TlsServer(stream) => stream.get_ref().1.wants_read() && stream.get_ref().0.poll_quiet(cx),
            IoKind::TlsClient(stream) => stream.get_ref().1.wants_read() && stream.get_ref().0.poll_quiet(cx),
            IoKind::Memory(_) | IoKind::Stream(_) => false,
        }
    }

    /// Waits until a read would make progress, holding no buffer. May wake spuriously.
    ///
    /// # Errors
    /// The socket is gone.
    pub async fn readable(&mut self) -> Result<()> {
        if !self.prefix.is_empty() {
            return Ok(());
        }
        match &mut self.kind {
            IoKind::Tcp(stream) => stream.readable().await,
            // Plaintext that rustls holds already wakes nobody.
            IoKind::TlsServer(stream) if !stream.get_ref().1.wants_read() => Ok(()),
            IoKind::TlsClient(stream) if !stream.get_ref().1.wants_read() => Ok(()),
            IoKind::TlsServer(stream) => Box::pin(stream.get_mut().0.readable()).await,
            IoKind::TlsClient(stream) => Box::pin(stream.get_mut().0.readable()).await,
            IoKind::Stream(pipe) => std::future::poll_fn(|cx| pipe.poll_readable(cx)).await,
            // A pipe cannot be asked: one byte is read ahead. At its end later reads say so again.
            IoKind::Memory(stream) => {
                let mut byte = [0];
                if stream.read(&mut byte).await? == 1 {
                    self.prefix = Bytes::copy_from_slice(&byte);
                }
                Ok(())
            }
        }
    }

    /// The other end; `None` in memory, or when the socket is gone.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.tcp_stream().and_then(|stream| stream.peer_addr().ok())
    }

    /// Our end; `None` in memory, or when the socket is gone.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.tcp_stream().and_then(|stream| stream.local_addr().ok())
    }

    /// The socket under all layers, for its options; `None` in memory.
    #[must_use]
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.tcp_stream().map(AsFd::as_fd)
    }

    /// Whether what is read from here can go to `to` within the kernel, by a [`Splice`](crate::Splice).
    #[must_use]
    pub fn can_splice(&self, to: &Self) -> bool {
        self.plain_socket().is_some() && to.plain_socket().is_some()
    }

    /// The socket itself, if the bytes of this stream are the bytes on it, and all of them are still to be read there.
    pub(crate) fn plain_socket(&self) -> Option<&TcpStream> {
        match &self.kind {
            IoKind::Tcp(stream) if self.prefix.is_empty() && self.records.is_none() => Some(stream),
            _ => None,
        }
    }

    /// Closing resets the connection instead of ending it: what was sent is visibly not all.
    pub(crate) fn reset_on_close(&self) {
        if let Some(stream) = self.tcp_stream()
            && let Err(error) = stream.set_zero_linger()
        {
            tracing::debug!(%error, "a connection could not be made to reset");
        }
    }

    fn poll_record(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>, records: &mut Records) -> Poll<Result<()>> {
        let limit = records.limit().min(buf.remaining());
        let mut limited = ReadBuf::new(buf.initialize_unfilled_to(limit));
        let result = Pin::new(self).poll_read(cx, &mut limited);
        records.note(limited.filled());
        let read = limited.filled().len();
        buf.advance(read);
        result
    }

    fn count_read(&self, count: usize) {
        if let Some(meter) = &self.meter {
            meter.count_read(count);
        }
    }

    fn count_written(&self, result: &Poll<Result<usize>>) {
        if let (Some(meter), Poll::Ready(Ok(count))) = (&self.meter, result) {
            meter.count_written(*count);
        }
    }

    fn tcp_stream(&self) -> Option<&TcpStream> {
        match &self.kind {
            IoKind::Tcp(stream) => Some(stream),
            IoKind::TlsServer(stream) => stream.get_ref().0.tcp_stream(),
            IoKind::TlsClient(stream) => stream.get_ref().0.tcp_stream(),
            IoKind::Memory(_) | IoKind::Stream(_) => None,
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        if !this.prefix.is_empty() {
            let taken = this.prefix.len().min(buf.remaining());
            buf.put_slice(&this.prefix[..taken]);
            this.prefix.advance(taken);
            if this.prefix.is_empty() {
                // Lets go of the buffer that it was cut from.
                this.prefix = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        if let Some(mut records) = this.records.take() {
            let result = this.poll_record(cx, buf, &mut records);
            this.records = Some(records);
            return result;
        }
        let before = buf.filled().len();
        let result = match &mut this.kind {
            IoKind::Tcp(stream) => socket::poll_read(stream, cx, buf),
            IoKind::TlsServer(stream) => Pin::new(stream).poll_read(cx, buf),
            IoKind::TlsClient(stream) => Pin::new(stream).poll_read(cx, buf),
            IoKind::Memory(stream) => Pin::new(stream).poll_read(cx, buf),
            IoKind::Stream(pipe) => Pin::new(pipe).poll_read(cx, buf),
        };
        this.count_read(buf.filled().len() - before);
        result
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        let this = self.get_mut();
        let result = match &mut this.kind {
            IoKind::Tcp(stream) => socket::poll_write(stream, cx, buf),
            IoKind::TlsServer(stream) => Pin::new(stream).poll_write(cx, buf),
            IoKind::TlsClient(stream) => Pin::new(stream).poll_write(cx, buf),
            IoKind::Memory(stream) => Pin::new(stream).poll_write(cx, buf),
            IoKind::Stream(pipe) => Pin::new(pipe).poll_write(cx, buf),
        };
        this.count_written(&result);
        result
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        let this = self.get_mut();
        let result = match &mut this.kind {
            IoKind::Tcp(stream) => socket::poll_write_vectored(stream, cx, bufs),
            IoKind::TlsServer(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            IoKind::TlsClient(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            IoKind::Memory(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            IoKind::Stream(pipe) => Pin::new(pipe).poll_write_vectored(cx, bufs),
        };
        this.count_written(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        match &self.kind {
            IoKind::Tcp(stream) => stream.is_write_vectored(),
            IoKind::TlsServer(stream) => stream.is_write_vectored(),
            IoKind::TlsClient(stream) => stream.is_write_vectored(),
            IoKind::Memory(stream) => stream.is_write_vectored(),
            IoKind::Stream(pipe) => pipe.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match &mut self.get_mut().kind {
            IoKind::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            IoKind::TlsServer(stream) => Pin::new(stream).poll_flush(cx),
            IoKind::TlsClient(stream) => Pin::new(stream).poll_flush(cx),
            IoKind::Memory(stream) => Pin::new(stream).poll_flush(cx),
            IoKind::Stream(pipe) => Pin::new(pipe).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match &mut self.get_mut().kind {
            IoKind::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            IoKind::TlsServer(stream) => Pin::new(stream).poll_shutdown(cx),
            IoKind::TlsClient(stream) => Pin::new(stream).poll_shutdown(cx),
            IoKind::Memory(stream) => Pin::new(stream).poll_shutdown(cx),
            IoKind::Stream(pipe) => Pin::new(pipe).poll_shutdown(cx),
        }
    }
}
