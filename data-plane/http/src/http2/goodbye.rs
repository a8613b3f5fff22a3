//! A GOAWAY of the client's side: the library's client has no call for one, so it is put between two of its frames.
//!
//! **Only on connections that ask for it**: on any other nothing is looked at.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::guard::Walk;
use super::preface::PREFACE;
use crate::Io;

/// RFC 9113, 6.8: NO_ERROR. No stream of a server was ever opened, so none is the last one.
const GOAWAY: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Whether the peer is to be told that the connection ends.
#[derive(Debug, Default)]
pub(super) struct Goodbye {
    wanted: AtomicBool,
    driver: Mutex<Option<Waker>>,
}

impl Goodbye {
    /// Any number of times; it is said once.
    pub(super) fn say(&self) {
        self.wanted.store(true, Ordering::Release);
        let driver = self.driver.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// Whom to wake when it is to be said. The library flushes whenever it is driven.
    pub(super) fn driven_by(&self, waker: &Waker) {
        let mut driver = self.driver.lock().unwrap_or_else(PoisonError::into_inner);
        if driver.as_ref().is_none_or(|driver| !driver.will_wake(waker)) {
            *driver = Some(waker.clone());
        }
    }
}

/// A connection on which the last word can be said.
#[derive(Debug)]
pub(super) struct Parting {
    io: Io,
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    goodbye: Arc<Goodbye>,
    /// Where the library's frames end.
    sent: Walk,
    left: &'static [u8],
    said: bool,
}

impl Parting {
    pub(super) fn new(io: Io, goodbye: Option<Arc<Goodbye>>) -> Self {
        let last = goodbye.map(|goodbye| Last { goodbye, sent: Walk::behind(PREFACE.len()), left: &[], said: false });
        Self { io, last }
    }

    /// Before the library's next frame.
    fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Some(last) = &mut self.last else { return Poll::Ready(Ok(())) };
        if !last.said && last.sent.is_between_frames() && last.goodbye.wanted.load(Ordering::Acquire) {
            (last.said, last.left) = (true, GOAWAY);
        }
        while !last.left.is_empty() {
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, last.left))?;
            if count == 0 {
                return Poll::Ready(Err(Error::from(ErrorKind::WriteZero)));
            }
            last.left = last.left.get(count..).unwrap_or_default();
        }
        Poll::Ready(Ok(()))
    }

    fn sent(&mut self, mut bytes: &[u8]) {
        if let Some(last) = &mut self.last {
            while last.sent.next(&mut bytes).is_some() {}
        }
    }
}

impl AsyncRead for Parting {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Parting {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_goodbye(cx))?;
        let count = ready!(Pin::new(&mut this.io).poll_write(cx, buf))?;
        this.sent(buf.get(..count).unwrap_or_default());
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_goodbye(cx))?;
        let count = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, bufs))?;
        let mut left = count;
        for buf in bufs {
            let taken = left.min(buf.len());
            this.sent(buf.get(..taken).unwrap_or_default());
            left -= taken;
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_goodbye(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A frame without payload, and one with.
    const FRAMES: &[u8] = &[0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 1, 7, 7, 7];

    /// Whatever the library has written when it is wanted, and in whatever pieces: it comes between two frames, once.
    #[tokio::test]
    async fn it_comes_between_two_frames_wherever_it_is_wanted() {
        let whole = [PREFACE, FRAMES, FRAMES].concat();
        let ends: Vec<usize> = [0, 9, 21, 30, 42].iter().map(|end| PREFACE.len() + end).collect();
        for wanted in 0..=whole.len() {
            for piece in [1, 5, whole.len()] {
                let (near, mut far) = tokio::io::duplex(4096);
                let goodbye = Arc::new(Goodbye::default());
                let mut parting = Parting::new(Io::memory(near), Some(Arc::clone(&goodbye)));
                let (before, after) = whole.split_at(wanted);
                for bytes in before.chunks(piece) {
                    parting.write_all(bytes).await.unwrap();
                }
                goodbye.say();
                goodbye.say();
                for bytes in after.chunks(piece) {
                    parting.write_all(bytes).await.unwrap();
                }
                parting.flush().await.unwrap();
                drop(parting);
                let mut seen = Vec::new();
                far.read_to_end(&mut seen).await.unwrap();
                let place = (0..=seen.len() - GOAWAY.len())
                    .find(|place| seen[*place..].starts_with(GOAWAY))
                    .unwrap_or_else(|| panic!("wanted after {wanted} bytes: not in {seen:?}"));
                let rest = [&seen[..place], &seen[place + GOAWAY.len()..]].concat();
                assert_eq!(rest, whole, "wanted after {wanted} bytes, in pieces of {piece}: all else as it was");
                let next = ends.iter().find(|end| **end >= wanted);
                assert!(ends.contains(&place), "wanted after {wanted} bytes, came after {place}, within a frame");
                assert!(
                    piece < whole.len() || next == Some(&place) || place >= wanted,
                    "wanted after {wanted}, came {place}"
                );
            }
        }
    }

    #[tokio::test]
    async fn who_did_not_ask_is_left_alone() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut parting = Parting::new(Io::memory(near), None);
        parting.write_all(b"any bytes").await.unwrap();
        drop(parting);
        let mut seen = Vec::new();
        far.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, b"any bytes");
    }
}
