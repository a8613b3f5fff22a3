//! HTTP/2 by the `h2` crate, behind the same interface as HTTP/1.

pub(crate) mod client;
pub(crate) mod convert;
mod fields;
mod goodbye;
mod guard;
mod hpack;
mod keepalive;
pub(crate) mod path;
pub(crate) mod pipe;
pub(crate) mod preface;
pub(crate) mod receive;
pub(crate) mod server;
pub(crate) mod transmit;

use crate::{Blame, StreamError, StreamErrorKind};

/// A peer that resets more streams than it lets us answer is cut off (CVE-2023-44487 and its family).
pub(crate) const MAX_PENDING_RESETS: usize = 20;
/// Streams that we reset for a peer's errors before the connection is cut off ("MadeYouReset").
pub(crate) const MAX_LOCAL_RESETS: usize = 1024;
/// Bytes of a body that wait for the peer's window, per stream.
pub(crate) const SEND_BUFFER: usize = 128 * 1024;

/// What an error of the library means to a stream.
pub(crate) fn stream_error(blame: Blame, error: &h2::Error) -> StreamError {
    let remote = error.is_remote();
    match error.reason() {
        // A GOAWAY fails only the streams above the last one that the peer looked at (RFC 9113, 6.8).
        Some(h2::Reason::REFUSED_STREAM) if remote => StreamError::new(blame, StreamErrorKind::Refused).untouched(true),
        Some(_) if error.is_go_away() && remote => StreamError::new(blame, StreamErrorKind::Refused).untouched(true),
        Some(reason) if error.is_reset() && remote => StreamError::new(blame, StreamErrorKind::Reset(reason.into())),
        Some(h2::Reason::FLOW_CONTROL_ERROR | h2::Reason::ENHANCE_YOUR_CALM) => {
            StreamError::new(blame, StreamErrorKind::Overflow)
        }
        Some(_) if error.is_library() || error.is_reset() || error.is_go_away() => {
            let status = if blame == Blame::Downstream { 400 } else { 502 };
            StreamError::protocol(blame, status, "the peer broke HTTP/2")
        }
        _ => StreamError::closed(blame),
    }
}
