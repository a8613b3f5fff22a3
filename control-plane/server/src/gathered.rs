//! A connection on which many small messages go out in one write.
//!
//! The h2 crate writes each DATA frame of 256 bytes and more by itself as long as the transport takes many buffers at once, and gathers
//! frames of up to 1 KiB when it does not (`CHAIN_THRESHOLD`). Only what is larger has a head apart from its body then: **a small write
//! waits for the next one, or for the flush.** And whoever wakes a connection because it has something to say is followed by the
//! connection, and only then by others that have something to say on it (tokio's LIFO slot): **a flush of little is put off for those who
//! are about to run**, and again as long as somebody had something to say. With a hundred streams on a connection a push of a hundred
//! responses is some twenty writes then.

use std::io::{Error, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is held for the next write: the first KiB of a large frame with its head, and what stands before that.
const HELD: usize = 2048;
/// How often in a row a flush is put off.
const PATIENCE: u8 = 8;
/// So many flushes are not put off after one that was put off for nothing: maybe there is but one stream.
const RARELY: u8 = 3;

/// Over a transport that takes many buffers at once.
#[derive(Debug)]
pub(crate) struct Gathered<T> {
    inner: T,
    /// Nothing, most of the time: no memory then.
    held: BytesMut,
    flush: Flush,
}

/// What becomes of a flush of what is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flush {
    /// It is put off once so many others were not.
    Next(u8),
    /// It was put off so many times.
    PutOff(u8),
    /// And more was written since.
    Joined(u8),
}

impl<T: AsyncWrite + Unpin> Gathered<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self { inner, held: BytesMut::new(), flush: Flush::Next(0) }
    }

    /// Whether to flush later, as the task was told to come back for.
    fn puts_off(&mut self, cx: &mut Context<'_>) -> bool {
        self.flush = match self.flush {
            Flush::Next(later) if self.held.is_empty() => Flush::Next(later),
            Flush::Next(0) => Flush::PutOff(1),
            Flush::Next(later) => Flush::Next(later - 1),
            Flush::PutOff(1) => Flush::Next(RARELY),
            Flush::Joined(times) if times < PATIENCE && !self.held.is_empty() => Flush::PutOff(times + 1),
            Flush::PutOff(_) | Flush::Joined(_) => Flush::Next(0),
        };
        let puts_off = matches!(self.flush, Flush::PutOff(_));
        if puts_off {
            // A task that wakes itself runs after all others.
            cx.waker().wake_by_ref();
        }
        puts_off
    }

    /// Writes what is held, and as much of `more` as goes with it.
    fn poll_write_out(&mut self, cx: &mut Context<'_>, more: &[u8]) -> Poll<Result<usize, Error>> {
        while !self.held.is_empty() {
            let both = [IoSlice::new(&self.held), IoSlice::new(more)];
            let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, &both))?;
            if written == 0 {
                return Poll::Ready(Err(ErrorKind::WriteZero.into()));
            }
            let of_more = written.saturating_sub(self.held.len());
            self.held.advance(written - of_more);
            if self.held.is_empty() {
                self.held = BytesMut::new();
            }
            if of_more > 0 {
                return Poll::Ready(Ok(of_more));
            }
        }
        if more.is_empty() { Poll::Ready(Ok(0)) } else { Pin::new(&mut self.inner).poll_write(cx, more) }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gathered<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize, Error>> {
        if let Flush::PutOff(times) = self.flush {
            self.flush = Flush::Joined(times);
        }
        if self.held.len() + buf.len() > HELD {
            return self.poll_write_out(cx, buf);
        }
        self.held.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.puts_off(cx) {
            return Poll::Pending;
        }
        ready!(self.poll_write_out(cx, &[]))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        ready!(self.poll_write_out(cx, &[]))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gathered<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Takes so many bytes at a time, and every second time none yet; says what came in which write.
    #[derive(Debug)]
    struct Reluctant {
        at_once: usize,
        takes: bool,
        writes: Vec<Vec<u8>>,
    }

    impl AsyncWrite for Reluctant {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize, Error>> {
            self.poll_write_vectored(cx, &[IoSlice::new(buf)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<Result<usize, Error>> {
            self.takes = !self.takes;
            if !self.takes {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).take(self.at_once).collect();
            let written = all.len();
            self.writes.push(all);
            Poll::Ready(Ok(written))
        }

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
            Poll::Ready(Ok(()))
        }
    }

    fn gathered(at_once: usize) -> Gathered<Reluctant> {
        Gathered::new(Reluctant { at_once, takes: false, writes: Vec::new() })
    }

    #[tokio::test]
    async fn a_small_write_goes_with_the_next_one_or_with_the_flush() {
        let large = vec![b'l'; HELD];
        for (writes, lengths) in [
            (&[&b"a"[..], b"b", b"c"][..], &[3][..]),
            (&[b"a", &large], &[1 + HELD]),
            (&[&large, b"a"], &[HELD + 1]),
            (&[&large[1..], b"a", &large[1..], b"b"], &[HELD + HELD - 1, 1]),
            (&[], &[]),
        ] {
            let mut io = gathered(usize::MAX);
            for bytes in writes {
                io.write_all(bytes).await.unwrap();
            }
            io.flush().await.unwrap();
            let seen: Vec<usize> = io.inner.writes.iter().map(Vec::len).collect();
            assert_eq!(seen, lengths);
            assert_eq!(io.held.capacity(), 0, "nothing is held, and no memory");
        }
    }

    /// Writes `a` and flushes so often; whether that was put off, each time.
    fn flushes(io: &mut Gathered<Reluctant>, writes: usize) -> Vec<bool> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let flush = |_| {
            assert!(Pin::new(&mut *io).poll_write(&mut cx, b"a").is_ready());
            io.inner.takes = false;
            Pin::new(&mut *io).poll_flush(&mut cx).is_pending()
        };
        (0..writes).map(flush).collect()
    }

    #[test]
    fn a_flush_is_put_off_as_long_as_others_write() {
        let mut io = gathered(usize::MAX);
        assert_eq!(flushes(&mut io, 9), [true, true, true, true, true, true, true, true, false]);
        assert_eq!(io.inner.writes, [b"aaaaaaaaa"]);
    }

    #[test]
    fn a_flush_is_rarely_put_off_where_nobody_else_writes() {
        let mut io = gathered(usize::MAX);
        for _ in 0..3 {
            io.inner.writes.clear();
            assert_eq!(flushes(&mut io, 1), [true]);
            let alone = Pin::new(&mut io).poll_flush(&mut Context::from_waker(std::task::Waker::noop()));
            assert!(alone.is_ready(), "nobody wrote meanwhile");
            assert_eq!(flushes(&mut io, 3), [false, false, false]);
            assert_eq!(io.inner.writes, [b"a"; 4]);
        }
    }

    #[tokio::test]
    async fn every_byte_arrives_once_and_in_order_however_little_is_taken_at_a_time() {
        let mut random = fastrand::Rng::with_seed(7);
        for at_once in [1, 7, HELD - 1, HELD, 3 * HELD] {
            let (mut io, mut sent) = (gathered(at_once), Vec::new());
            for _ in 0..50 {
                let length = random.usize(..2 * HELD);
                let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
                io.write_all(&bytes).await.unwrap();
                sent.extend(bytes);
                if random.bool() {
                    io.flush().await.unwrap();
                    assert_eq!(io.inner.writes.concat().len(), sent.len(), "all is out after a flush");
                }
            }
            io.shutdown().await.unwrap();
            assert_eq!(io.inner.writes.concat(), sent, "{at_once} at a time");
        }
    }
}
