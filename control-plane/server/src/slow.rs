//! Readers that do not read: a stream whose transport takes nothing more of a response for too long is reset, alone.
//!
//! Hyper asks for the next piece of a body only when there is room for it, so that a body cannot tell that it is never asked.
//! What can is whoever polls the stream as a whole: [`Streams`] spawns it for hyper, and sees by [`note`] whether pieces
//! are left.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::rt::Executor;
use tokio::time::{Instant, sleep_until};

use crate::control::Control;

tokio::task_local! {
    /// How many pieces were taken, while there are more.
    static TAKEN: Cell<Option<u64>>;
}

/// What a stream's body says whenever it is asked for a piece: so many were taken, and there are more; `None`: there are none.
pub(crate) fn note(taken: Option<u64>) {
    // Outside of a connection, as in tests of bodies, nobody wants to know.
    let _nobody = TAKEN.try_with(|cell| cell.set(taken));
}

/// Runs the streams of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Streams {
    pub(crate) control: Arc<Control>,
    pub(crate) peer: Arc<str>,
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let (control, peer) = (Arc::clone(&self.control), Arc::clone(&self.peer));
        tokio::spawn(TAKEN.scope(Cell::new(None), async move {
            if !ends(stream, control.send_timeout).await {
                control.metrics.slow_readers.add();
                let limit = control.send_timeout;
                tracing::warn!(peer = &*peer, ?limit, "a response is not read; its stream is reset");
            }
        }));
    }
}

/// False: its transport took nothing for so long; it is over.
async fn ends(stream: impl Future<Output = ()>, limit: Duration) -> bool {
    let mut stream = pin!(stream);
    let mut timer = pin!(sleep_until(Instant::now()));
    let mut watched = None;
    poll_fn(|cx| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(true);
        }
        let taken = TAKEN.with(Cell::get);
        if taken != watched {
            watched = taken;
            timer.as_mut().reset(Instant::now() + limit);
        }
        match watched {
            Some(_) => timer.as_mut().poll(cx).map(|()| false),
            None => Poll::Pending,
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// Takes a piece each so many seconds, then nothing for ever, or ends.
    async fn taken(pieces: u64, each: Duration, ends: bool) {
        for piece in 0..pieces {
            tokio::time::sleep(each).await;
            note(Some(piece));
        }
        if ends {
            note(None);
            tokio::time::sleep(10 * LIMIT).await;
        } else {
            std::future::pending::<()>().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_over_when_nothing_more_of_a_response_is_taken() {
        for (case, pieces, each, over, expected) in [
            ("nothing is to be sent for long", 0, 1, true, true),
            ("a slow reader that reads", 20, 29, true, true),
            ("a reader that stops", 3, 1, false, false),
        ] {
            let began = Instant::now();
            let stream = taken(pieces, Duration::from_secs(each), over);
            let ended = TAKEN.scope(Cell::new(None), ends(stream, LIMIT)).await;
            assert_eq!(ended, expected, "{case}");
            if !expected {
                assert_eq!(began.elapsed(), Duration::from_secs(pieces * each) + LIMIT, "{case}");
            }
        }
    }
}
