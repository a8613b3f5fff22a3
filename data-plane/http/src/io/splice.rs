//! Bytes from one socket to another within the kernel (splice(2), by way of a pipe): they are never copied into this
//! process. Of large bodies that is half of the work.

use std::cell::RefCell;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;

use super::Io;

/// What a pipe is asked to hold. The kernel gives a user no more than 64 MiB of such pipes in all, and then smaller ones.
const CAPACITY: usize = 256 * 1024;
/// Pipes of a thread that are in use at a time: 16 MiB. Who finds none free copies.
const MOST_PIPES: usize = 64;
/// Pipes that a thread keeps.
const KEEP: usize = 16;

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

#[derive(Default)]
struct Pipes {
    free: Vec<Pipe>,
    used: usize,
}

thread_local! {
    static PIPES: RefCell<Pipes> = RefCell::new(Pipes::default());
}

/// A piece of a body in a pipe: one of this thread's, to which it goes back when it is dropped empty. One with bytes in it
/// is closed.
#[derive(Debug)]
pub struct Splice {
    pipe: Option<Pipe>,
    held: usize,
}

impl Splice {
    /// `None`: there is none to be had now.
    #[must_use]
    pub fn take() -> Option<Self> {
        PIPES.with_borrow_mut(|pipes| {
            if pipes.used == MOST_PIPES {
                return None;
            }
            let pipe = pipes.free.pop().or_else(open)?;
            pipes.used += 1;
            Some(Self { pipe: Some(pipe), held: 0 })
        })
    }

    /// How many bytes are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Takes what `from` has received, at most `most` bytes; ready with how many, 0: it has ended.
    ///
    /// # Errors
    /// The connection broke, or it is none that [`Io::can_splice`] likes.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, from: &Io, most: usize) -> Poll<Result<usize>> {
        let (Some(socket), Some(pipe)) = (from.plain_socket(), &self.pipe) else { return unsupported() };
        loop {
            ready!(socket.poll_read_ready(cx))?;
            let moved = socket.try_io(Interest::READABLE, || {
                Ok(splice(socket, None, &pipe.write, None, most.min(CAPACITY), SpliceFlags::NONBLOCK)?)
            });
            match moved {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(count) => {
                    self.held += count;
                    from.count_read(count);
                    return Poll::Ready(Ok(count));
                }
            }
        }
    }

    /// Gives some of what it holds to `to`; ready with how many bytes went.
    ///
    /// # Errors
    /// As [`Self::poll_fill`].
    pub fn poll_drain(&mut self, cx: &mut Context<'_>, to: &Io) -> Poll<Result<usize>> {
        let (Some(socket), Some(pipe)) = (to.plain_socket(), &self.pipe) else { return unsupported() };
        loop {
            ready!(socket.poll_write_ready(cx))?;
            let moved = socket.try_io(Interest::WRITABLE, || {
                Ok(splice(&pipe.read, None, socket, None, self.held, SpliceFlags::NONBLOCK)?)
            });
            match moved {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(0) => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.held = self.held.saturating_sub(count);
                    let went = Poll::Ready(Ok(count));
                    to.count_written(&went);
                    return went;
                }
            }
        }
    }
}

impl Drop for Splice {
    fn drop(&mut self) {
        let (pipe, empty) = (self.pipe.take(), self.held == 0);
        let returned = PIPES.try_with(|pipes| {
            let mut pipes = pipes.borrow_mut();
            pipes.used = pipes.used.saturating_sub(1);
            if empty && pipes.free.len() < KEEP {
                pipes.free.extend(pipe);
            }
        });
        if returned.is_err() {
            tracing::trace!("a pipe was closed with its thread");
        }
    }
}

fn open() -> Option<Pipe> {
    match pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK) {
        Ok((read, write)) => {
            if let Err(error) = fcntl_setpipe_size(&write, CAPACITY) {
                tracing::debug!(%error, "a pipe stays at its default size");
            }
            Some(Pipe { read, write })
        }
        Err(error) => {
            tracing::debug!(%error, "no pipe to move bytes through");
            None
        }
    }
}

fn unsupported<T>() -> Poll<Result<T>> {
    Poll::Ready(Err(Error::from(ErrorKind::Unsupported)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_lends_so_many_pipes_and_no_more() {
        let mut lent: Vec<Splice> = std::iter::from_fn(Splice::take).take(MOST_PIPES + 1).collect();
        assert_eq!(lent.len(), MOST_PIPES, "pipes at a time");
        for piece in lent.iter_mut().step_by(2) {
            piece.held = 1;
        }
        drop(lent);
        let kept = PIPES.with_borrow(|pipes| pipes.free.len());
        assert_eq!(kept, KEEP, "empty ones are kept, as many as may be");
        let again: Vec<Splice> = std::iter::from_fn(Splice::take).take(MOST_PIPES + 1).collect();
        assert_eq!(again.len(), MOST_PIPES, "as many can be lent again");
    }
}
