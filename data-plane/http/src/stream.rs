//! The two directions of a body over either protocol.

use crate::http1::Wire;
use crate::http1::read::Reader;
use crate::http1::write::Writer;
use crate::http2::receive::Receive;
use crate::http2::transmit::Transmit;
use crate::io::splice::Splice;
use crate::{Chunk, Fields, StreamError};

/// Where a body comes from.
#[derive(Debug)]
pub(crate) enum Source<'a> {
    Http1 { wire: &'a Wire, read: &'a mut Reader },
    Http2(&'a mut Receive),
}

impl Source<'_> {
    pub(crate) async fn chunk(&mut self) -> Result<Option<Chunk<'_>>, StreamError> {
        match self {
            Self::Http1 { wire, read } => {
                let range = std::future::poll_fn(|cx| read.poll_chunk(wire, cx)).await?;
                Ok(range.map(|range| read.buffer.piece(range)))
            }
            Self::Http2(receive) => Ok(receive.chunk().await?.map(Chunk::Owned)),
        }
    }

    pub(crate) fn ready(&mut self) -> bool {
        match self {
            Self::Http1 { wire, read } => read.ready(wire),
            Self::Http2(receive) => receive.ready(),
        }
    }

    /// The next piece of the body, within the kernel; `None`: it has to be asked for by [`Self::chunk`].
    pub(crate) async fn splice(&mut self) -> Result<Option<Splice>, StreamError> {
        match self {
            Self::Http1 { wire, read } => std::future::poll_fn(|cx| read.poll_splice(wire, cx)).await,
            Self::Http2(_) => Ok(None),
        }
    }

    pub(crate) fn trailers(&self) -> Option<&Fields> {
        match self {
            Self::Http1 { read, .. } => read.trailers(),
            Self::Http2(receive) => receive.trailers(),
        }
    }
}

/// Where a body goes.
#[derive(Debug)]
pub(crate) enum Sink<'a> {
    Http1 { wire: &'a Wire, write: &'a mut Writer },
    Http2(&'a mut Transmit),
}

impl Sink<'_> {
    pub(crate) async fn data(&mut self, chunk: Chunk<'_>, queue: bool) -> Result<(), StreamError> {
        match self {
            Self::Http1 { wire, write } => write.data(wire, chunk, queue).await,
            Self::Http2(send) => send.data(chunk, queue).await,
        }
    }

    pub(crate) async fn flush(&mut self) -> Result<(), StreamError> {
        match self {
            Self::Http1 { wire, write } => write.flush(wire).await,
            Self::Http2(send) => send.flush().await,
        }
    }

    pub(crate) async fn finish(&mut self, trailers: Option<&Fields>) -> Result<(), StreamError> {
        match self {
            Self::Http1 { wire, write } => write.finish(wire, trailers).await,
            Self::Http2(send) => send.finish(trailers).await,
        }
    }

    /// Whether [`Source::splice`] is worth while: much of a body of known length is still on a plain socket, and goes to one.
    pub(crate) fn can_splice(&self, source: &Source<'_>) -> bool {
        match (self, source) {
            (Self::Http1 { wire: to, write }, Source::Http1 { wire: from, read }) => {
                let left = read.left_on_socket();
                left >= SPLICED_FROM && write.takes(left) && from.io.borrow().can_splice(&to.io.borrow())
            }
            _ => false,
        }
    }

    /// Takes over all that is left of a body, if that is short and here; how long it is. It waits for [`Self::flush`].
    pub(crate) fn take_rest(&mut self, source: &mut Source<'_>) -> Option<u64> {
        let (Self::Http1 { write, .. }, Source::Http1 { read, .. }) = (self, source) else { return None };
        let rest = read.take_rest(write.short_rest()?)?;
        write.append_rest(read.buffer.slice(rest.clone()));
        Some(rest.len() as u64)
    }

    pub(crate) async fn splice(&mut self, piece: Splice) -> Result<(), StreamError> {
        match self {
            Self::Http1 { wire, write } => {
                write.flush(wire).await?;
                write.splice(wire, piece).await
            }
            Self::Http2(_) => Err(StreamError::misuse("a piece within the kernel for HTTP/2")),
        }
    }
}

/// From how many bytes of body on pipes pay.
const SPLICED_FROM: u64 = 64 * 1024;
