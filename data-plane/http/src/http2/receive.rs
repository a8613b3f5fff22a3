//! A body off an HTTP/2 stream. The peer's window opens again as pieces are used up, not as they arrive.

use std::future::poll_fn;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;

use super::core::Piece;
use super::handle::StreamRef;
use super::stream_error;
use crate::{Blame, Fields, StreamError};

#[derive(Debug)]
pub(crate) struct Receive {
    stream: StreamRef,
    blame: Blame,
    /// A piece that came ahead of being asked for.
    ahead: Option<Result<Option<Bytes>, StreamError>>,
    trailers: Option<Box<Fields>>,
    ended: bool,
}

impl Receive {
    /// `ended`: nothing comes.
    pub(super) fn new(stream: StreamRef, blame: Blame, ended: bool) -> Self {
        Self { stream, blame, ahead: None, trailers: None, ended }
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }

    pub(crate) fn trailers(&self) -> Option<&Fields> {
        self.trailers.as_deref()
    }

    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, StreamError> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// Whether [`Self::chunk`] would return without waiting.
    pub(crate) fn ready(&mut self) -> bool {
        if self.ahead.is_none()
            && let Poll::Ready(piece) = self.poll_next(&mut Context::from_waker(Waker::noop()))
        {
            self.ahead = Some(piece);
        }
        self.ahead.is_some()
    }

    /// Resolves when the peer reset the stream or is gone.
    pub(crate) fn poll_reset(&self, cx: &Context<'_>) -> Poll<()> {
        self.stream.with(|core, key| core.poll_failed(key, cx))
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        match self.ahead.take() {
            Some(piece) => Poll::Ready(piece),
            None => self.poll_next(cx),
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        if self.ended {
            return Poll::Ready(Ok(None));
        }
        let piece = ready!(self.stream.with(|core, key| core.poll_piece(key, cx)));
        Poll::Ready(match piece {
            Ok(Piece::Data(data)) => Ok(Some(data)),
            Ok(Piece::End(trailers)) => {
                self.ended = true;
                self.trailers = trailers;
                Ok(None)
            }
            Err(failure) => Err(stream_error(self.blame, failure)),
        })
    }
}
