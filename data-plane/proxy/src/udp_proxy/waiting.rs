//! Datagrams of one session on their way into its stream: as capsules one behind the other, in one buffer.

use std::cell::{Cell, RefCell};

use culvert_http::capsule::{HEADER_ROOM, put_header};
use culvert_model::listener::DatagramBuffer;
use tokio::sync::Notify;

/// What the receiver puts in and the session's task takes out, all at once.
#[derive(Debug)]
pub(super) struct Waiting {
    capsules: RefCell<Vec<u8>>,
    datagrams: Cell<usize>,
    limits: Cell<DatagramBuffer>,
    came: Notify,
}

impl Waiting {
    /// `buffer`: what may wait until there is a stream.
    pub(super) fn new(buffer: Option<DatagramBuffer>) -> Self {
        let limits = Cell::new(buffer.unwrap_or(NOTHING));
        Self { capsules: RefCell::default(), datagrams: Cell::new(0), limits, came: Notify::new() }
    }

    /// There is a stream: what waits from now on waits for room in it.
    pub(super) fn open(&self) {
        self.limits.set(HANDED_OVER);
        self.came.notify_one();
    }

    /// There will be none: nothing waits any more.
    pub(super) fn close(&self) {
        self.limits.set(NOTHING);
        self.datagrams.set(0);
        *self.capsules.borrow_mut() = Vec::new();
    }

    /// Whether there was room; without it the datagram is lost, and those before it are not.
    pub(super) fn push(&self, payload: &[u8]) -> bool {
        let limits = self.limits.get();
        let mut capsules = self.capsules.borrow_mut();
        if self.datagrams.get() >= limits.datagrams || capsules.len() + payload.len() > limits.bytes {
            return false;
        }
        let mut room = [0; HEADER_ROOM];
        let start = put_header(&mut room, payload.len());
        capsules.extend_from_slice(room.get(start..).unwrap_or_default());
        capsules.extend_from_slice(payload);
        self.datagrams.set(self.datagrams.get() + 1);
        self.came.notify_one();
        true
    }

    /// Everything that waits, as soon as there is something, into the empty `batch`; how many datagrams that is.
    pub(super) async fn take(&self, batch: &mut Vec<u8>) -> u64 {
        loop {
            if self.datagrams.get() > 0 {
                std::mem::swap(batch, &mut self.capsules.borrow_mut());
                return self.datagrams.take() as u64;
            }
            self.came.notified().await;
        }
    }
}

const NOTHING: DatagramBuffer = DatagramBuffer { datagrams: 0, bytes: 0 };
/// While the stream takes what it can: two of the largest datagrams.
const HANDED_OVER: DatagramBuffer = DatagramBuffer { datagrams: 4096, bytes: 128 * 1024 };
