//! HTTP/1 or HTTP/2, by the first bytes (RFC 9113, 3.4).

use std::future::poll_fn;
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::Io;
use crate::buffers::Buffer;
use crate::drain::{Drain, GRACE};
use crate::server::{Protocol, ServerOptions};

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longer than any timer is asked to run.
const FOREVER: Duration = Duration::from_secs(86400 * 365);

/// Reads until it is clear which it is (what was read stays in `buffer`); `None`: the connection ended, drained, or
/// said nothing in time (with a client that can only mean HTTP/2 a head's time).
pub(crate) async fn detect<F: Future<Output = ()>>(
    io: &mut Io,
    buffer: &mut Buffer,
    options: &ServerOptions,
    drain: &mut Drain<'_, F>,
) -> Option<bool> {
    let prior = (options.protocol == Protocol::Http2).then_some(options.head_timeout);
    let patience = options.idle_timeout.into_iter().chain(options.max_duration).chain(prior).min();
    let patience = patience.unwrap_or(FOREVER).min(FOREVER);
    let mut timer = Box::pin(sleep_until(Instant::now() + patience));
    let (mut draining, mut begun) = (false, false);
    poll_fn(|cx| {
        loop {
            let data = buffer.data();
            if data.len() >= PREFACE.len() || !PREFACE.starts_with(data) {
                return Poll::Ready(Some(data.starts_with(PREFACE)));
            }
            if !draining && drain.poll(cx) {
                draining = true;
                timer.as_mut().reset(Instant::now() + GRACE.min(options.drain_timeout));
            }
            if !begun && !data.is_empty() {
                begun = true;
                timer.as_mut().reset(Instant::now() + options.head_timeout.min(FOREVER));
            }
            match buffer.poll_fill(io, cx, false) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(None),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => {
                    ready!(timer.as_mut().poll(cx));
                    return Poll::Ready(None);
                }
            }
        }
    })
    .await
}
