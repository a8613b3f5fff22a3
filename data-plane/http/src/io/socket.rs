//! A plain socket with little between us and the kernel. Tokio's own reads and writes register a waker before each system
//! call and make it by way of libc, where it is a point at which a thread may be cancelled; here a waker is registered
//! only for what has to wait.

use std::io::{ErrorKind, IoSlice, Result};
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, SendFlags};
use tokio::io::{Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::coop::poll_proceed;

/// Whether the reactor knows of nothing that could be read; then the task is woken when it does.
pub(super) fn poll_quiet(stream: &TcpStream, cx: &mut Context<'_>) -> bool {
    stream.try_io(Interest::READABLE, || Ok(())).is_err() && stream.poll_read_ready(cx).is_pending()
}

pub(super) fn poll_read(stream: &TcpStream, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
    let budget = ready!(poll_proceed(cx));
    let room = buf.initialize_unfilled();
    loop {
        let tried = attempt(stream, Interest::READABLE, room.len(), || {
            Ok(rustix::net::recv(stream, &mut *room, RecvFlags::empty())?.1)
        });
        if let Some(read) = tried {
            budget.made_progress();
            buf.advance(read?);
            return Poll::Ready(Ok(()));
        }
        ready!(stream.poll_read_ready(cx))?;
    }
}

pub(super) fn poll_write(stream: &TcpStream, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
    poll_send(stream, cx, bytes.len(), || Ok(rustix::net::send(stream, bytes, SendFlags::NOSIGNAL)?))
}

pub(super) fn poll_write_vectored(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    parts: &[IoSlice<'_>],
) -> Poll<Result<usize>> {
    let length = parts.iter().map(|part| part.len()).sum();
    poll_send(stream, cx, length, || Ok(rustix::io::writev(stream, parts)?))
}

fn poll_send(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    length: usize,
    send: impl Fn() -> Result<usize>,
) -> Poll<Result<usize>> {
    let budget = ready!(poll_proceed(cx));
    loop {
        if let Some(sent) = attempt(stream, Interest::WRITABLE, length, &send) {
            budget.made_progress();
            return Poll::Ready(sent);
        }
        ready!(stream.poll_write_ready(cx))?;
    }
}

/// One system call for up to `most` bytes, if the reactor has not said that it would have to wait; `None`: it would.
fn attempt(
    stream: &TcpStream,
    interest: Interest,
    most: usize,
    call: impl FnOnce() -> Result<usize>,
) -> Option<Result<usize>> {
    let mut part = None;
    let tried = stream.try_io(interest, || {
        let count = call()?;
        if count == 0 || count == most {
            return Ok(count);
        }
        // The kernel had no more, or has no more room, and the reactor will tell when that changes (epoll(7) on
        // `EPOLLET`): asking it again would be in vain.
        part = Some(count);
        Err(ErrorKind::WouldBlock.into())
    });
    match (part, tried) {
        (Some(count), _) => Some(Ok(count)),
        (None, Err(error)) if error.kind() == ErrorKind::WouldBlock => None,
        (None, tried) => Some(tried),
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.expect("connected"), far.expect("accepted").0)
    }

    async fn read(stream: &TcpStream, room: usize) -> Vec<u8> {
        let mut bytes = vec![0; room];
        let mut buf = ReadBuf::new(&mut bytes);
        poll_fn(|cx| poll_read(stream, cx, &mut buf)).await.expect("open");
        buf.filled().to_vec()
    }

    /// The kernel is not asked twice.
    #[tokio::test]
    async fn what_fills_less_than_its_room_was_all_there_is() {
        let (near, mut far) = pair().await;
        far.write_all(b"one two").await.expect("room");
        assert_eq!(read(&near, 3).await, b"one", "as much as there is room for");
        near.try_io(Interest::READABLE, || Ok(())).expect("there may be more, as far as is known");
        assert_eq!(read(&near, 100).await, b" two", "what was left");
        let asked = near.try_io(Interest::READABLE, || Ok(())).map_err(|error| error.kind());
        assert_eq!(asked, Err(ErrorKind::WouldBlock), "the reactor waits for an event");
        far.write_all(b"three").await.expect("room");
        assert_eq!(read(&near, 100).await, b"three", "the event has come");
        drop(far);
        assert_eq!(read(&near, 100).await, b"", "and so has the end");
    }

    #[tokio::test]
    async fn a_write_that_has_to_wait_is_woken() {
        let (near, far) = pair().await;
        let bytes = vec![7; 64 * 1024];
        let mut sent = 0;
        let full = |sent: &mut usize, cx: &mut Context<'_>| loop {
            match poll_write_vectored(&near, cx, &[IoSlice::new(&bytes), IoSlice::new(&bytes)]) {
                Poll::Ready(count) => *sent += count.expect("open"),
                Poll::Pending => return,
            }
        };
        // One poll may have used up its task's budget: the socket is full when another one brings nothing.
        loop {
            let before = sent;
            poll_fn(|cx| {
                full(&mut sent, cx);
                Poll::Ready(())
            })
            .await;
            if sent == before {
                break;
            }
            tokio::task::yield_now().await;
        }
        // A task of its own, which nothing else wakes.
        let more = tokio::spawn(async move { poll_fn(|cx| poll_write(&near, cx, b"more")).await });
        tokio::task::yield_now().await;
        let mut received = 0;
        while received < sent {
            received += read(&far, 1 << 20).await.len();
        }
        let more = tokio::time::timeout(Duration::from_secs(10), more).await.expect("woken within 10 s");
        assert_eq!(more.expect("no panic").expect("open"), 4, "there was room again");
    }
}
