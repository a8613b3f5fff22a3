//! HTTP/2 (RFC 9113), behind the same interface as HTTP/1: a codec and a connection of our own, the same for both roles.
//!
//! How a request goes through, and its answer back:
//!
//! ```text
//! socket -> link -> core ------> driver (server.rs) -> a task per stream -> handler
//!           |        | frames                           | receive.rs, transmit.rs, pipe.rs
//!           |        | heads by hpack, read_heads       v
//! socket <- link <- core <----------------------- write_heads, data, end
//! ```
//!
//! - **One lock**: the [`core`] of a connection is all of its state, and stands in the one mutex ([`handle`]). It is held
//!   for as long as it takes to read a buffer of frames or to write one frame; nothing under it waits, calls out or wakes.
//!   Server connections never contend for it; those of a client may be used from any thread.
//! - **Who wakes whom**: the [`link`] wakes the tasks for which something came or became free, after it has let go of the
//!   lock. A task that has put something in wakes the driver, once: it takes the driver's waker away, and the driver gives
//!   one again when it finds nothing to do. Since tasks run between two turns of the driver, what they put in meanwhile
//!   goes out by one write.
//! - **Who owns a stream**: its record stands in a slab within the core. It is *listed* until the protocol is done with it
//!   (both directions have ended, or either side has reset it) and *held* as long as its [`handle::Lease`] lives: a
//!   server's task, a client's exchange, or a [`pipe`]. When it is neither, the record is used for another stream. A lease
//!   that is dropped too early resets the stream.
//! - **What may pile up**: bodies within the windows that we gave, and [`SEND_BUFFER`] a stream within those that the peer
//!   gave; heads within the limits of their size and number; answers to control frames ([`link::Turn::Swamped`]); resets
//!   either way. A frame is judged where it is read ([`core`]'s `receive`, `floods`).
//! - **At rest** a connection holds no buffers: those of the link come from the thread's free lists, and go back.

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
/// So many streams that end well make up for one of those: a tunnel lives for months.
const GOOD_STREAMS: usize = 16;
/// Bytes of a body that wait for the peer's window, per stream.
const SEND_BUFFER: usize = 128 * 1024;

/// What it means to whoever holds a stream that it failed.
fn stream_error(blame: Blame, failure: Failure) -> StreamError {
    let (kind, untouched) = failure.kind(if blame == Blame::Downstream { 400 } else { 502 });
    StreamError::new(blame, kind).untouched(untouched)
}
