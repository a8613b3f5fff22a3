//! What whoever holds a stream takes of it.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::ReadBuf;

use super::send::register;
use super::{Core, Failure, Key};
use crate::http2::frame::{self, MAX_STREAM};
use crate::{Fields, ResponseHead};

/// What comes of a stream.
#[derive(Debug)]
pub(in crate::http2) enum Piece {
    Data(Bytes),
    End(Option<Box<Fields>>),
}

impl Core {
    /// The next head of a response, and whether nothing comes behind it.
    pub(in crate::http2) fn poll_head(
        &mut self,
        key: Key,
        cx: &Context<'_>,
    ) -> Poll<Result<(Box<ResponseHead>, bool), Failure>> {
        let Some(stream) = self.streams.get(key) else { return Poll::Ready(Err(Failure::Closed)) };
        let receive = &mut stream.receive;
        if let Some(head) = receive.heads.pop_front() {
            let empty = receive.ended && receive.pieces.is_empty() && receive.trailers.is_none();
            return Poll::Ready(Ok((head, empty && receive.heads.is_empty())));
        }
        if let Some(failure) = stream.failed {
            return Poll::Ready(Err(failure));
        }
        register(&mut receive.reader, cx);
        Poll::Pending
    }

    /// The next piece of what the peer sends. The window of the last one is given back by this call.
    pub(in crate::http2) fn poll_piece(&mut self, key: Key, cx: &Context<'_>) -> Poll<Result<Piece, Failure>> {
        let Some(stream) = self.streams.get(key) else { return Poll::Ready(Err(Failure::Closed)) };
        let lent = std::mem::take(&mut stream.receive.lent);
        self.used_up(key, lent);
        let Some(stream) = self.streams.get(key) else { return Poll::Ready(Err(Failure::Closed)) };
        let receive = &mut stream.receive;
        if let Some(piece) = receive.pieces.pop_front() {
            receive.waiting -= piece.len();
            receive.lent = piece.len();
            return Poll::Ready(Ok(Piece::Data(piece)));
        }
        if receive.ended {
            return Poll::Ready(Ok(Piece::End(receive.trailers.take())));
        }
        if let Some(failure) = stream.failed {
            return Poll::Ready(Err(failure));
        }
        register(&mut receive.reader, cx);
        Poll::Pending
    }

    /// Ready when there is something to read, or an end of it.
    pub(in crate::http2) fn poll_readable(&mut self, key: Key, cx: &Context<'_>) -> Poll<Result<(), Failure>> {
        let Some(stream) = self.streams.get(key) else { return Poll::Ready(Err(Failure::Closed)) };
        let receive = &mut stream.receive;
        if !receive.pieces.is_empty() || receive.ended {
            return Poll::Ready(Ok(()));
        }
        if let Some(failure) = stream.failed {
            return Poll::Ready(Err(failure));
        }
        register(&mut receive.reader, cx);
        Poll::Pending
    }

    /// Moves what has come into `into`; nothing at its end.
    pub(in crate::http2) fn poll_read(
        &mut self,
        key: Key,
        into: &mut ReadBuf<'_>,
        cx: &Context<'_>,
    ) -> Poll<Result<(), Failure>> {
        ready!(self.poll_readable(key, cx))?;
        let Some(stream) = self.streams.get(key) else { return Poll::Ready(Err(Failure::Closed)) };
        let receive = &mut stream.receive;
        let before = into.filled().len();
        while let Some(first) = receive.pieces.front_mut().filter(|_| into.remaining() > 0) {
            let piece = first.split_to(first.len().min(into.remaining()));
            into.put_slice(&piece);
            if first.is_empty() {
                receive.pieces.pop_front();
            }
        }
        let count = into.filled().len() - before;
        receive.waiting -= count;
        self.used_up(key, count);
        Poll::Ready(Ok(()))
    }

    /// Resolves when the stream has failed.
    pub(in crate::http2) fn poll_failed(&mut self, key: Key, cx: &Context<'_>) -> Poll<()> {
        let Some(stream) = self.streams.get(key) else { return Poll::Ready(()) };
        if stream.failed.is_some() {
            return Poll::Ready(());
        }
        register(&mut stream.receive.reader, cx);
        Poll::Pending
    }

    /// Whether the peer's direction has ended, and nothing of it is unread.
    pub(in crate::http2) fn is_read(&mut self, key: Key) -> bool {
        self.streams.get(key).is_none_or(|stream| stream.receive.ended && stream.receive.pieces.is_empty())
    }

    /// Bytes of a stream that nobody will read, or that were read.
    pub(super) fn used_up(&mut self, key: Key, count: usize) {
        if count == 0 {
            return;
        }
        self.give_back(count);
        let half = self.intake.stream / 2;
        let Some(stream) = self.streams.get(key).filter(|stream| stream.listed && !stream.receive.ended) else {
            return;
        };
        let receive = &mut stream.receive;
        receive.used = receive.used.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        if receive.used >= half.max(1) {
            frame::write_window_update(self.out.bytes(), key.id, receive.used.min(MAX_STREAM));
            receive.window += i64::from(receive.used);
            receive.used = 0;
            self.dirty = true;
        }
    }
}
