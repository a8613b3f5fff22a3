//! Bodies from one connection to another, at the pace of the slower one.

use crate::stream::{Sink, Source};
use crate::{RequestBody, RequestSink, ResponseSink, ResponseSource, StreamError};

/// Sends what comes until it ends, trailers too. What is there is sent together; nothing waits for what is not.
async fn relay(source: &mut Source<'_>, sink: &mut Sink<'_>) -> Result<u64, StreamError> {
    let mut bytes = 0;
    loop {
        if sink.can_splice(source) {
            sink.flush().await?;
            if let Some(piece) = source.splice().await? {
                bytes += piece.len() as u64;
                sink.splice(piece).await?;
                continue;
            }
        }
        if !source.ready() {
            sink.flush().await?;
        }
        match source.chunk().await? {
            Some(chunk) => {
                bytes += chunk.len() as u64;
                sink.data(chunk, true).await?;
            }
            None => break,
        }
    }
    sink.finish(source.trailers()).await?;
    Ok(bytes)
}

/// Relays a request's body from downstream to upstream; the number of bytes.
///
/// # Errors
/// Either side failed; the error's blame says which.
pub async fn relay_request(body: &mut RequestBody<'_>, sink: &mut RequestSink<'_>) -> Result<u64, StreamError> {
    relay(&mut body.source, &mut sink.0).await
}

/// Relays a response's body from upstream to downstream; the number of bytes.
///
/// # Errors
/// Either side failed; the error's blame says which.
pub async fn relay_response(source: &mut ResponseSource<'_>, sink: &mut ResponseSink<'_>) -> Result<u64, StreamError> {
    relay(&mut source.body()?, &mut sink.body()).await
}
