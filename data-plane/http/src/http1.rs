//! Our own HTTP/1 codec, from its lines to its bodies.
//!
//! A connection is one [`Wire`] that both directions reach at the same time (borrowed for the length of one poll), a
//! [`read::Reader`] and a [`write::Writer`]. At rest all three hold no buffer.

pub(crate) mod chunked;
pub(crate) mod client;
pub(crate) mod encode;
pub(crate) mod fields;
pub(crate) mod read;
pub(crate) mod request;
pub(crate) mod response;
pub(crate) mod server;
pub(crate) mod target;
pub(crate) mod write;

use std::cell::{Cell, RefCell};

use crate::Io;

/// What both directions of a connection share.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) io: RefCell<Io>,
    /// The connection has been switched (101, or a CONNECT's 2xx): bytes follow, no messages.
    pub(crate) tunnel: Cell<bool>,
    /// The next response head says `connection: close`.
    pub(crate) closing: Cell<bool>,
    /// Bytes of the current message that were handed to the connection.
    pub(crate) written: Cell<u64>,
}

impl Wire {
    pub(crate) fn new(io: Io) -> Self {
        Self { io: RefCell::new(io), tunnel: Cell::new(false), closing: Cell::new(false), written: Cell::new(0) }
    }
}
