//! HTTP/2, behind the same interface as HTTP/1.

pub(crate) mod client;
mod core;
mod frame;
mod handle;
mod hpack;
mod keepalive;
mod link;
mod outbox;
pub(crate) mod path;
pub(crate) mod pipe;
pub(crate) mod preface;
mod read_heads;
pub(crate) mod receive;
pub(crate) mod server;
pub(crate) mod transmit;
mod write_heads;

use self::core::Failure;
use crate::{Blame, StreamError};

/// A peer that resets more streams than it lets us answer is cut off (CVE-2023-44487 and its family).
const MAX_PENDING_RESETS: usize = 20;
/// Streams that we reset for a peer's errors before the connection is cut off ("MadeYouReset").
const MAX_LOCAL_RESETS: usize = 1024;
/// Bytes of a body that wait for the peer's window, per stream.
const SEND_BUFFER: usize = 128 * 1024;

/// What it means to whoever holds a stream that it failed.
fn stream_error(blame: Blame, failure: Failure) -> StreamError {
    let (kind, untouched) = failure.kind(if blame == Blame::Downstream { 400 } else { 502 });
    StreamError::new(blame, kind).untouched(untouched)
}
