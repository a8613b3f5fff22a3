//! A body onto an HTTP/2 stream.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, SendStream};

use super::{convert, stream_error};
use crate::deadline::Stall;
use crate::{Blame, BodyKind, Chunk, Fields, StreamError, StreamErrorKind};

/// Queued pieces up to this are copied together, so that many small pieces make one frame.
const JOIN: usize = 16 * 1024;

/// Where a response stands, for both halves of an exchange: the request's watches it for a reset.
#[derive(Debug, Clone)]
pub(crate) struct Respond(pub(super) Rc<RefCell<Stage>>);

#[derive(Debug)]
pub(super) enum Stage {
    Waiting(SendResponse<Bytes>),
    Sent(SendStream<Bytes>),
}

impl Respond {
    pub(super) fn new(respond: SendResponse<Bytes>) -> Self {
        Self(Rc::new(RefCell::new(Stage::Waiting(respond))))
    }

    /// Resolves when the client reset the stream or is gone.
    pub(crate) fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut *self.0.borrow_mut() {
            Stage::Waiting(respond) => respond.poll_reset(cx).map(|_| ()),
            Stage::Sent(stream) => stream.poll_reset(cx).map(|_| ()),
        }
    }

    pub(super) fn reset(&self, reason: Reason) {
        match &mut *self.0.borrow_mut() {
            Stage::Waiting(respond) => respond.send_reset(reason),
            Stage::Sent(stream) => stream.send_reset(reason),
        }
    }
}

/// The library's half of a stream that we send on.
#[derive(Debug)]
pub(super) enum Out {
    /// The head was not sent yet.
    None,
    Request(SendStream<Bytes>),
    Response(Respond),
}

impl Out {
    fn with<T>(&mut self, run: impl FnOnce(&mut SendStream<Bytes>) -> T) -> Result<T, StreamError> {
        const EARLY: StreamError = StreamError::misuse("a body without a head");
        match self {
            Self::None => Err(EARLY),
            Self::Request(stream) => Ok(run(stream)),
            Self::Response(respond) => match &mut *respond.0.borrow_mut() {
                Stage::Waiting(_) => Err(EARLY),
                Stage::Sent(stream) => Ok(run(stream)),
            },
        }
    }
}

#[derive(Debug)]
pub(crate) struct Transmit {
    out: Out,
    blame: Blame,
    /// Bytes still owed, where the head said how many.
    left: Option<u64>,
    /// A piece that waits for the next: the last one carries the end of the stream.
    held: Bytes,
    /// More such pieces, joined.
    joined: BytesMut,
    ended: bool,
    /// A response whose body is dropped (HEAD).
    discard: bool,
    tunnel: bool,
}

impl Transmit {
    pub(super) fn new(out: Out, blame: Blame) -> Self {
        Self {
            out,
            blame,
            left: None,
            held: Bytes::new(),
            joined: BytesMut::new(),
            ended: false,
            discard: false,
            tunnel: false,
        }
    }

    /// The head is out: `ended` with it, or with as many bytes as it said.
    pub(super) fn begin(&mut self, body: BodyKind, ended: bool, discard: bool) {
        self.left = match body {
            BodyKind::Length(length) => Some(length),
            _ => None,
        };
        self.ended = ended;
        self.discard = discard;
        self.tunnel = body == BodyKind::Tunnel;
    }

    pub(super) fn set_out(&mut self, out: Out) {
        self.out = out;
    }

    /// The library's half of a request, which is sent on by other means from now on.
    pub(super) fn take_request(&mut self) -> Option<SendStream<Bytes>> {
        self.ended = true;
        match std::mem::replace(&mut self.out, Out::None) {
            Out::Request(stream) => Some(stream),
            Out::None | Out::Response(_) => None,
        }
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }

    pub(crate) async fn data(&mut self, chunk: Chunk<'_>, queue: bool) -> Result<(), StreamError> {
        if self.discard || chunk.is_empty() {
            return Ok(());
        }
        if self.ended {
            return Err(StreamError::misuse("a body after its end"));
        }
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(chunk.len() as u64).ok_or(StreamError::misuse("more body than its length"))?;
        }
        let waiting = self.held.len().max(self.joined.len());
        if queue && waiting > 0 && waiting + chunk.len() <= JOIN {
            if self.joined.is_empty() {
                self.joined.extend_from_slice(&self.held);
            }
            self.joined.extend_from_slice(&chunk);
            return Ok(());
        }
        self.flush().await?;
        if queue {
            self.held = chunk.into_owned();
            return Ok(());
        }
        self.send(chunk.into_owned(), false).await
    }

    pub(crate) async fn flush(&mut self) -> Result<(), StreamError> {
        let held = self.take_held();
        self.send(held, false).await
    }

    fn take_held(&mut self) -> Bytes {
        let held = std::mem::take(&mut self.held);
        if self.joined.is_empty() { held } else { std::mem::take(&mut self.joined).freeze() }
    }

    pub(crate) async fn finish(&mut self, trailers: Option<&Fields>) -> Result<(), StreamError> {
        if self.ended {
            return Ok(());
        }
        if self.left.is_some_and(|left| left > 0) && !self.discard {
            return Err(StreamError::misuse("less body than its length"));
        }
        let held = self.take_held();
        match trailers.filter(|fields| !fields.is_empty()) {
            Some(fields) => {
                if !held.is_empty() {
                    self.send(held, false).await?;
                }
                self.ended = true;
                let trailers = convert::fields_to_trailers(fields);
                self.out
                    .with(|stream| stream.send_trailers(trailers))?
                    .map_err(|error| stream_error(self.blame, &error))
            }
            None => self.send(held, true).await,
        }
    }

    /// Sends as the peer's window opens.
    async fn send(&mut self, mut data: Bytes, end: bool) -> Result<(), StreamError> {
        let blame = self.blame;
        while !data.is_empty() {
            self.out.with(|stream| stream.reserve_capacity(data.len()))?;
            // As in HTTP/1: a client has to take something now and then, but for tunnels.
            let mut stall = (blame == Blame::Downstream && !self.tunnel).then(Stall::default);
            let granted = poll_fn(|cx| match self.out.with(|stream| stream.poll_capacity(cx)) {
                Ok(Poll::Ready(granted)) => Poll::Ready(Ok(granted)),
                Ok(Poll::Pending) => match &mut stall {
                    Some(stall) => {
                        stall.poll(cx, false).map(|()| Err(StreamError::new(blame, StreamErrorKind::Timeout)))
                    }
                    None => Poll::Pending,
                },
                Err(error) => Poll::Ready(Err(error)),
            });
            let granted = match granted.await? {
                Some(Ok(granted)) => granted,
                Some(Err(error)) => return Err(stream_error(blame, &error)),
                // The stream is not sending any more: the peer reset it, or the connection is gone.
                None => return Err(self.why_not(blame)),
            };
            let piece = data.split_to(granted.min(data.len()));
            let last = end && data.is_empty();
            self.out.with(|stream| stream.send_data(piece, last))?.map_err(|error| stream_error(blame, &error))?;
            self.ended = last;
        }
        if end && !self.ended {
            self.ended = true;
            self.out
                .with(|stream| stream.send_data(Bytes::new(), true))?
                .map_err(|error| stream_error(blame, &error))?;
        }
        Ok(())
    }

    fn why_not(&mut self, blame: Blame) -> StreamError {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match self.out.with(|stream| stream.poll_reset(&mut cx)) {
            Ok(Poll::Ready(Ok(reason))) => StreamError::new(blame, StreamErrorKind::Reset(reason.into())),
            Ok(Poll::Ready(Err(error))) => stream_error(blame, &error),
            Ok(Poll::Pending) => StreamError::closed(blame),
            Err(error) => error,
        }
    }

    /// Resets the stream, if there is one.
    pub(super) fn cancel(&mut self, reason: Reason) {
        if let Out::Request(stream) = &mut self.out {
            stream.send_reset(reason);
        }
    }
}
