//! A body onto an HTTP/2 stream.

use std::future::poll_fn;
use std::task::Poll;

use super::core::Failure;
use super::handle::StreamRef;
use super::stream_error;
use crate::deadline::Stall;
use crate::{Blame, BodyKind, Chunk, Fields, StreamError, StreamErrorKind};

#[derive(Debug)]
pub(crate) struct Transmit {
    /// `None`: the head was not sent yet.
    stream: Option<StreamRef>,
    blame: Blame,
    /// Bytes still owed, where the head said how many.
    left: Option<u64>,
    ended: bool,
    /// A response whose body is dropped (HEAD).
    discard: bool,
    tunnel: bool,
}

impl Transmit {
    pub(super) const fn new(blame: Blame) -> Self {
        Self { stream: None, blame, left: None, ended: false, discard: false, tunnel: false }
    }

    /// The head is out: `ended` with it, or with as many bytes as it said.
    pub(super) fn begin(&mut self, stream: StreamRef, body: BodyKind, ended: bool, discard: bool) {
        self.stream = Some(stream);
        self.left = match body {
            BodyKind::Length(length) => Some(length),
            _ => None,
        };
        self.ended = ended;
        self.discard = discard;
        self.tunnel = body == BodyKind::Tunnel;
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Nothing more is sent.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    fn stream(&self) -> Result<&StreamRef, StreamError> {
        self.stream.as_ref().ok_or(StreamError::misuse("a body without a head"))
    }

    /// Sends as the peer's window opens. A piece that is queued goes out with the next, or when the sink is flushed.
    pub(crate) async fn data(&mut self, mut chunk: Chunk<'_>, queue: bool) -> Result<(), StreamError> {
        if self.discard || chunk.is_empty() {
            return Ok(());
        }
        let stream = self.stream()?;
        if self.ended {
            return Err(StreamError::misuse("a body after its end"));
        }
        let mut stall = self.stall();
        let (length, mut before) = (chunk.len() as u64, chunk.len());
        if self.left.is_some_and(|left| left < length) {
            return Err(StreamError::misuse("more body than its length"));
        }
        poll_fn(|cx| {
            let run = |core: &mut super::core::Core| core.poll_send(stream.key, &mut chunk, cx);
            let sent = if queue { stream.shared.with_quietly(run) } else { stream.shared.with(run) };
            if sent.is_pending() && queue {
                stream.shared.with(|_| ());
            }
            let progress = chunk.len() < before;
            before = chunk.len();
            self.stalled(sent, &mut stall, progress, cx)
        })
        .await?;
        if let Some(left) = &mut self.left {
            *left -= length;
        }
        Ok(())
    }

    /// As in HTTP/1: a client has to take something now and then, but for tunnels.
    fn stall(&self) -> Option<Stall> {
        (self.blame == Blame::Downstream && !self.tunnel).then(Stall::default)
    }

    fn stalled(
        &self,
        sent: Poll<Result<(), Failure>>,
        stall: &mut Option<Stall>,
        progress: bool,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        match (sent, stall) {
            (Poll::Ready(sent), _) => Poll::Ready(sent.map_err(|failure| stream_error(self.blame, failure))),
            (Poll::Pending, Some(stall)) => {
                stall.poll(cx, progress).map(|()| Err(StreamError::new(self.blame, StreamErrorKind::Timeout)))
            }
            (Poll::Pending, None) => Poll::Pending,
        }
    }

    pub(crate) async fn flush(&mut self) -> Result<(), StreamError> {
        if let Some(stream) = &self.stream {
            stream.shared.with(|_| ());
        }
        Ok(())
    }

    /// Ends the body; returns when the peer's window has taken it.
    pub(crate) async fn finish(&mut self, trailers: Option<&Fields>) -> Result<(), StreamError> {
        if self.ended {
            return Ok(());
        }
        let stream = self.stream()?;
        if self.left.is_some_and(|left| left > 0) && !self.discard {
            return Err(StreamError::misuse("less body than its length"));
        }
        let trailers = trailers.filter(|fields| !fields.is_empty());
        let finished = stream.with(|core, key| core.finish(key, trailers));
        if finished.map_err(|failure| stream_error(self.blame, failure))? {
            self.ended = true;
            return Ok(());
        }
        let mut stall = self.stall();
        let mut before = 0;
        poll_fn(|cx| {
            let (drained, left) = stream.with(|core, key| (core.poll_drained(key, cx), core.queued(key)));
            let progress = left != before;
            before = left;
            self.stalled(drained, &mut stall, progress, cx)
        })
        .await?;
        self.ended = true;
        Ok(())
    }
}
