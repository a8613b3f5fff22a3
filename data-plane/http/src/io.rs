//! The one connection type of the data plane: a socket, TLS over it, or memory; with bytes that were read ahead.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;

/// A byte stream towards a peer.
#[derive(Debug)]
pub struct Io {
    /// Read before anything else: what an inspector or a handshake read ahead.
    prefix: bytes::Bytes,
    kind: IoKind,
}

#[derive(Debug)]
enum IoKind {
    Tcp(TcpStream),
    TlsServer(Box<tokio_rustls::server::TlsStream<Box<Io>>>),
    TlsClient(Box<tokio_rustls::client::TlsStream<Box<Io>>>),
    Memory(DuplexStream),
}

impl Io {
    #[must_use]
    pub fn tcp(stream: TcpStream) -> Self {
        Self { prefix: bytes::Bytes::new(), kind: IoKind::Tcp(stream) }
    }

    #[must_use]
    pub fn memory(stream: DuplexStream) -> Self {
        Self { prefix: bytes::Bytes::new(), kind: IoKind::Memory(stream) }
    }

    #[must_use]
    pub fn tls_server(stream: tokio_rustls::server::TlsStream<Box<Self>>) -> Self {
        Self { prefix: bytes::Bytes::new(), kind: IoKind::TlsServer(Box::new(stream)) }
    }

    #[must_use]
    pub fn tls_client(stream: tokio_rustls::client::TlsStream<Box<Self>>) -> Self {
        Self { prefix: bytes::Bytes::new(), kind: IoKind::TlsClient(Box::new(stream)) }
    }

    /// Puts bytes back in front.
    #[must_use]
    pub fn with_prefix(mut self, prefix: bytes::Bytes) -> Self {
        debug_assert!(self.prefix.is_empty(), "bytes are put back once");
        self.prefix = prefix;
        self
    }

    /// Waits until a read would make progress, holding no buffer. May wake spuriously.
    pub async fn readable(&mut self) -> std::io::Result<()> {
        todo!()
    }

    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        todo!()
    }

    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        todo!()
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let _ = (cx, buf);
        todo!()
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let _ = (cx, buf);
        todo!()
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let _ = cx;
        todo!()
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let _ = cx;
        todo!()
    }
}
