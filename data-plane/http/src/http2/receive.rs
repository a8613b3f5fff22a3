//! A body off an HTTP/2 stream. The peer's window opens again as pieces are used up, not as they arrive.

use std::future::poll_fn;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::RecvStream;

use super::{convert, stream_error};
use crate::{Blame, Fields, StreamError};

#[derive(Debug)]
pub(crate) struct Receive {
    stream: RecvStream,
    blame: Blame,
    /// Bytes of the last piece, whose window is given back when the next is asked for.
    lent: usize,
    /// A piece that came ahead of being asked for.
    ahead: Option<Result<Option<Bytes>, StreamError>>,
    trailers: Option<Fields>,
    ended: bool,
}

impl Receive {
    pub(crate) fn new(stream: RecvStream, blame: Blame) -> Self {
        let ended = stream.is_end_stream();
        Self { stream, blame, lent: 0, ahead: None, trailers: None, ended }
    }

    /// The stream itself, of which nothing was read.
    pub(super) fn into_stream(self) -> RecvStream {
        self.stream
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }

    pub(crate) fn trailers(&self) -> Option<&Fields> {
        self.trailers.as_ref()
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

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        match self.ahead.take() {
            Some(piece) => Poll::Ready(piece),
            None => self.poll_next(cx),
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        if self.lent > 0 {
            let lent = std::mem::take(&mut self.lent);
            if let Err(error) = self.stream.flow_control().release_capacity(lent) {
                tracing::debug!(%error, "a window could not be given back");
            }
        }
        if self.ended {
            return Poll::Ready(Ok(None));
        }
        loop {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    self.lent = data.len();
                    return Poll::Ready(Ok(Some(data)));
                }
                Some(Err(error)) => return Poll::Ready(Err(stream_error(self.blame, &error))),
                None => break,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx)).map_err(|error| stream_error(self.blame, &error))?;
        self.ended = true;
        self.trailers = trailers.as_ref().map(convert::trailers_to_fields);
        Poll::Ready(Ok(None))
    }
}
