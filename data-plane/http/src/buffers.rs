//! Buffers from per-thread free lists: a connection holds one only while it has bytes in it.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};

use crate::{Chunk, Io, RequestHead, ResponseHead};

/// Enough for almost every head and small body.
pub(crate) const SMALL: usize = 16 * 1024;
/// For bodies that stream: fewer system calls a byte.
pub(crate) const LARGE: usize = 128 * 1024;

/// A piece of so many bytes takes its block along.
const HANDED: usize = 32 * 1024;

/// What a thread keeps: 4 MiB of small blocks, 4 MiB of large ones, 512 heads.
const KEEP_SMALL: usize = 256;
const KEEP_LARGE: usize = 32;
const KEEP_HEADS: usize = 512;
/// A head or output buffer that grew beyond this is freed rather than kept.
const KEEP_CAPACITY: usize = 32 * 1024;

#[derive(Default)]
#[expect(clippy::vec_box, reason = "the boxes themselves are what is kept for reuse")]
struct Lists {
    small: Vec<Box<[u8]>>,
    large: Vec<Box<[u8]>>,
    out: Vec<Vec<u8>>,
    large_out: Vec<Vec<u8>>,
    input: Vec<BytesMut>,
    requests: Vec<Box<RequestHead>>,
    responses: Vec<Box<ResponseHead>>,
}

thread_local! {
    static LISTS: RefCell<Lists> = RefCell::new(Lists::default());
}

/// Runs on this thread's lists; not while the thread ends (then memory is simply freed).
fn lists<T>(run: impl FnOnce(&mut Lists) -> T) -> Option<T> {
    LISTS.try_with(|lists| lists.try_borrow_mut().ok().map(|mut lists| run(&mut lists))).ok().flatten()
}

fn take_block(large: bool) -> Box<[u8]> {
    lists(|lists| if large { lists.large.pop() } else { lists.small.pop() })
        .flatten()
        .unwrap_or_else(|| vec![0; if large { LARGE } else { SMALL }].into_boxed_slice())
}

fn give_block(block: Box<[u8]>) {
    lists(|lists| {
        let (list, keep) =
            if block.len() == LARGE { (&mut lists.large, KEEP_LARGE) } else { (&mut lists.small, KEEP_SMALL) };
        if list.len() < keep {
            list.push(block);
        }
    });
}

/// A large block on its way with a piece of a body; back on a list when that is dropped.
struct Handed(Box<[u8]>);

impl AsRef<[u8]> for Handed {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        give_block(std::mem::take(&mut self.0));
    }
}

/// An empty output buffer.
pub(crate) fn take_out() -> Vec<u8> {
    lists(|lists| lists.out.pop()).flatten().unwrap_or_else(|| Vec::with_capacity(4 * 1024))
}

/// An empty output buffer for much.
pub(crate) fn take_large_out() -> Vec<u8> {
    lists(|lists| lists.large_out.pop()).flatten().unwrap_or_else(|| Vec::with_capacity(LARGE))
}

pub(crate) fn give_out(mut out: Vec<u8>) {
    if out.capacity() == 0 || out.capacity() > 2 * LARGE {
        return;
    }
    out.clear();
    lists(|lists| {
        let large = out.capacity() > KEEP_CAPACITY;
        let (list, keep) = if large { (&mut lists.large_out, KEEP_LARGE) } else { (&mut lists.out, KEEP_SMALL) };
        if list.len() < keep {
            list.push(out);
        }
    });
}

/// An empty buffer to read into, from which pieces can be cut off.
pub(crate) fn take_input() -> BytesMut {
    lists(|lists| lists.input.pop()).flatten().unwrap_or_else(|| BytesMut::with_capacity(SMALL))
}

/// Keeps what is whole and nobody else has a piece of.
pub(crate) fn give_input(mut input: BytesMut) {
    input.clear();
    if input.capacity() > LARGE || !input.try_reclaim(SMALL) {
        return;
    }
    lists(|lists| {
        if lists.input.len() < KEEP_SMALL {
            lists.input.push(input);
        }
    });
}

pub(crate) fn take_request() -> Box<RequestHead> {
    lists(|lists| lists.requests.pop()).flatten().unwrap_or_default()
}

pub(crate) fn give_request(mut head: Box<RequestHead>) {
    if head.fields.capacity() + head.path.capacity() + head.authority.capacity() > KEEP_CAPACITY {
        return;
    }
    head.clear();
    lists(|lists| {
        if lists.requests.len() < KEEP_HEADS {
            lists.requests.push(head);
        }
    });
}

/// A response head from this thread's free list: give it back by [`give_response`] when the exchange is over, so that
/// the next one allocates nothing.
#[must_use]
pub fn take_response() -> Box<ResponseHead> {
    lists(|lists| lists.responses.pop()).flatten().unwrap_or_default()
}

/// The counterpart of [`take_response`].
pub fn give_response(mut head: Box<ResponseHead>) {
    if head.fields.capacity() > KEEP_CAPACITY {
        return;
    }
    head.clear();
    lists(|lists| {
        if lists.responses.len() < KEEP_HEADS {
            lists.responses.push(head);
        }
    });
}

/// Bytes read and not yet consumed.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    block: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub(crate) fn data(&self) -> &[u8] {
        self.slice(self.start..self.end)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// A piece that [`Self::consume`] named; valid until the next fill.
    pub(crate) fn slice(&self, range: Range<usize>) -> &[u8] {
        self.block.as_deref().and_then(|block| block.get(range)).unwrap_or_default()
    }

    /// Takes up to `count` bytes off the front and says where they stand.
    pub(crate) fn consume(&mut self, count: usize) -> Range<usize> {
        let from = self.start;
        self.start = self.end.min(from.saturating_add(count));
        from..self.start
    }

    /// The same as what can be passed on. A large piece with nothing behind it takes the block along: who has to keep it
    /// need not copy it.
    pub(crate) fn piece(&mut self, range: Range<usize>) -> Chunk<'_> {
        if self.is_empty()
            && range.len() >= HANDED
            && let Some(block) = self.block.take_if(|block| block.len() == LARGE)
        {
            (self.start, self.end) = (0, 0);
            return Chunk::Owned(Bytes::from_owner(Handed(block)).slice(range));
        }
        Chunk::Borrowed(self.slice(range))
    }

    /// Gives the block back if there is nothing in it.
    pub(crate) fn release(&mut self) {
        if self.is_empty()
            && let Some(block) = self.block.take()
        {
            self.start = 0;
            self.end = 0;
            give_block(block);
        }
    }

    /// One read behind what is there; how many bytes came (0: the peer sends no more). `large` prefers a large block for
    /// a fresh one. While it waits with nothing in hand it holds no block.
    pub(crate) fn poll_fill(&mut self, io: &mut Io, cx: &mut Context<'_>, large: bool) -> Poll<io::Result<usize>> {
        if self.is_empty() && io.poll_quiet(cx) {
            self.release();
            return Poll::Pending;
        }
        self.make_room(large);
        let Some(block) = self.block.as_deref_mut() else {
            return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
        };
        let mut room = ReadBuf::new(block.get_mut(self.end..).unwrap_or_default());
        if room.capacity() == 0 {
            return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
        }
        let result = Pin::new(io).poll_read(cx, &mut room);
        let count = room.filled().len();
        if count == 0 {
            self.release();
        }
        ready!(result)?;
        self.end += count;
        Poll::Ready(Ok(count))
    }

    fn make_room(&mut self, large: bool) {
        if self.is_empty() {
            self.start = 0;
            self.end = 0;
            if large && self.block.as_ref().is_some_and(|block| block.len() == SMALL) {
                self.release();
            }
        }
        let Some(block) = self.block.as_deref_mut() else {
            self.block = Some(take_block(large));
            return;
        };
        if self.end < block.len() {
            return;
        }
        if self.start > 0 {
            block.copy_within(self.start..self.end, 0);
        } else if block.len() == SMALL {
            let mut larger = take_block(true);
            larger[..self.end].copy_from_slice(&block[..self.end]);
            if let Some(old) = self.block.replace(larger) {
                give_block(old);
            }
        }
        self.end -= self.start;
        self.start = 0;
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.start = self.end;
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn filled(bytes: usize, large: bool) -> Buffer {
        let (mut far, near) = tokio::io::duplex(2 * LARGE);
        tokio::io::AsyncWriteExt::write_all(&mut far, &vec![7; bytes]).await.expect("room");
        let (mut io, mut buffer) = (Io::memory(near), Buffer::default());
        std::future::poll_fn(|cx| buffer.poll_fill(&mut io, cx, large)).await.expect("bytes");
        buffer
    }

    /// What leaves with a piece comes back when that is gone.
    #[tokio::test]
    async fn a_large_piece_takes_its_block_along() {
        let mut buffer = filled(HANDED + 5, true).await;
        buffer.consume(5);
        let range = buffer.consume(usize::MAX);
        let Chunk::Owned(piece) = buffer.piece(range) else { panic!("copied") };
        assert_eq!((piece.len(), buffer.block.is_none(), buffer.is_empty()), (HANDED, true, true));
        let kept = || lists(|lists| lists.large.len()).expect("lists");
        let before = kept();
        drop(piece);
        assert_eq!(kept(), before + 1, "the block was not kept for others");
    }

    #[tokio::test]
    async fn other_pieces_stay_where_they_are() {
        for (what, bytes, large, first) in [
            ("a small block", SMALL, false, SMALL),
            ("a small piece", HANDED - 1, true, HANDED - 1),
            ("something behind it", HANDED + 1, true, HANDED),
        ] {
            let mut buffer = filled(bytes, large).await;
            let range = buffer.consume(first);
            assert!(matches!(buffer.piece(range), Chunk::Borrowed(piece) if piece.len() == first), "{what}");
        }
    }
}
