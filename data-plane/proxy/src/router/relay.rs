//! Bodies on their way: chunk by chunk, each direction under the other side's back-pressure. What is buffered is flushed
//! as soon as nothing more is there to send, so that streams are as prompt as their senders.

use std::cell::Cell;

use culvert_http::{
    Blame, BodyKind, Chunk, Fields, RequestBody, RequestSink, ResponseSink, ResponseSource, StreamError,
    StreamErrorKind,
};
use tokio::time::Instant;

use super::limits::{Limits, Patience};

/// How far a request's body has come, over all attempts.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub(super) bytes: Cell<u64>,
    /// Bytes that can be sent again.
    kept: Cell<u64>,
    /// When it had been received whole.
    pub(super) whole: Cell<Option<Instant>>,
}

impl Received {
    /// Whether everything that was received can be sent again.
    pub(super) fn is_kept(&self) -> bool {
        self.kept.get() == self.bytes.get()
    }
}

/// The part of a request's body that another attempt would have to send again.
#[derive(Debug, Default)]
pub(super) struct Replay {
    bytes: Vec<u8>,
    /// No further attempt will need it.
    off: bool,
}

impl Replay {
    /// `kept`: whether there may be another attempt.
    pub(super) fn new(kept: bool) -> Self {
        Self { off: !kept, ..Self::default() }
    }

    fn keep(&mut self, chunk: &[u8], received: &Received) {
        if self.off {
            return;
        }
        if self.bytes.len() + chunk.len() > MAX_REPLAY {
            self.off = true;
            self.bytes = Vec::new();
        } else {
            self.bytes.extend_from_slice(chunk);
        }
        received.kept.set(self.bytes.len() as u64);
    }
}

/// Bodies up to this may be sent again.
const MAX_REPLAY: usize = 64 * 1024;

/// Sends the request's body: what an earlier attempt sent, then the rest as it comes. Calls `whole` when the client
/// has sent everything, and then watches it: **ends only when the client has failed or is gone**.
pub(super) async fn upload(
    body: &mut RequestBody<'_>,
    sink: &mut RequestSink<'_>,
    replay: &mut Replay,
    received: &Received,
    limits: &Limits,
    whole: impl FnOnce(Instant),
) -> StreamError {
    let sent = match pump_up(body, sink, replay, received, limits).await {
        Ok(sent) => sent,
        Err(error) => return error,
    };
    // Upstream takes no more; its response, if there is one, says why.
    if let Err(error) = sent {
        tracing::debug!(%error, "upstream takes no more of a request");
        return std::future::pending().await;
    }
    let now = Instant::now();
    received.whole.set(Some(now));
    whole(now);
    body.closed().await;
    gone()
}

/// The client is gone.
pub(super) const fn gone() -> StreamError {
    StreamError { blame: Blame::Downstream, kind: StreamErrorKind::Closed, untouched: false }
}

/// Outer: the client's failure. Inner: upstream's.
async fn pump_up(
    body: &mut RequestBody<'_>,
    sink: &mut RequestSink<'_>,
    replay: &mut Replay,
    received: &Received,
    limits: &Limits,
) -> Result<Result<(), StreamError>, StreamError> {
    if !replay.bytes.is_empty()
        && let Err(error) = sink.queue(Chunk::Borrowed(&replay.bytes)).await
    {
        return Ok(Err(error));
    }
    // A body without an announced length may be a conversation, in which silence is no fault.
    let mut patience = matches!(body.kind(), BodyKind::Length(_)).then(Patience::new);
    while received.whole.get().is_none() {
        if replay.off && sink.can_splice(body) {
            if let Err(error) = sink.flush().await {
                return Ok(Err(error));
            }
            if let Some(patience) = &patience {
                patience.begin(limits);
            }
            if let Some(piece) = body.splice().await? {
                limits.touch();
                if let Some(patience) = &mut patience {
                    patience.end(limits, piece.len());
                }
                received.bytes.set(received.bytes.get() + piece.len() as u64);
                if let Err(error) = Box::pin(sink.splice(piece)).await {
                    return Ok(Err(error));
                }
                continue;
            }
        }
        if !body.ready() {
            if let Err(error) = sink.flush().await {
                return Ok(Err(error));
            }
            if let Some(patience) = &patience {
                patience.begin(limits);
            }
        }
        let chunk = body.chunk().await?;
        limits.touch();
        if let Some(patience) = &mut patience {
            patience.end(limits, chunk.as_deref().map_or(0, <[u8]>::len));
        }
        let Some(chunk) = chunk else { break };
        received.bytes.set(received.bytes.get() + chunk.len() as u64);
        replay.keep(&chunk, received);
        if let Err(error) = sink.queue(chunk).await {
            return Ok(Err(error));
        }
    }
    Ok(sink.finish(body.trailers()).await)
}

/// A tunnel's bytes towards upstream, until the client ends its direction.
pub(super) async fn tunnel_up(
    body: &mut RequestBody<'_>,
    sink: &mut RequestSink<'_>,
    received: &Received,
    limits: &Limits,
) -> Result<(), StreamError> {
    while let Some(chunk) = body.chunk().await? {
        limits.touch();
        received.bytes.set(received.bytes.get() + chunk.len() as u64);
        sink.data(chunk).await?;
    }
    sink.finish(None).await
}

/// Sends the response's body.
///
/// # Errors
/// Either side failed; the error says which.
pub(super) async fn download(
    source: &mut ResponseSource<'_>,
    sink: &mut ResponseSink<'_>,
    limits: &Limits,
    counts: &mut Counts,
) -> Result<(), StreamError> {
    // Nearly always it is small and came with its head.
    if let Some(count) = sink.take_rest(source) {
        counts.sent += count;
        return sink.flush().await;
    }
    loop {
        if sink.can_splice(source) {
            // Boxed: large bodies are fewer, and the others should not carry this state.
            if let Some(count) = Box::pin(splice(source, sink)).await? {
                limits.touch();
                (counts.sent, counts.waited) = (counts.sent + count, true);
                continue;
            }
        }
        if !source.ready() {
            sink.flush().await?;
            counts.waited = true;
        }
        let Some(chunk) = source.chunk().await? else { break };
        if counts.waited {
            limits.touch();
        }
        counts.sent += chunk.len() as u64;
        sink.queue(chunk).await?;
    }
    sink.finish(source.trailers()).await
}

/// Passes the next piece of a response on within the kernel; how many bytes it had. `None`: that is not possible now.
async fn splice(source: &mut ResponseSource<'_>, sink: &mut ResponseSink<'_>) -> Result<Option<u64>, StreamError> {
    sink.flush().await?;
    let Some(piece) = source.splice().await? else { return Ok(None) };
    let count = piece.len() as u64;
    sink.splice(piece).await?;
    Ok(Some(count))
}

/// What was sent of a response's body.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    pub(super) sent: u64,
    /// The body did not come in one piece with the head.
    pub(super) waited: bool,
}

/// A copy of trailers, for the log.
pub(super) fn copied(trailers: Option<&Fields>) -> Option<Fields> {
    trailers.filter(|trailers| !trailers.is_empty()).cloned()
}
