//! The records of a connection's streams: a slab whose records are used again, and an index of the open ones by id.

use std::collections::VecDeque;
use std::task::Waker;

use bytes::Bytes;

use crate::http2::outbox::Place;
use crate::{Fields, ResponseHead, StreamErrorKind};

/// Names a record. Ids are never used twice, so a key that has outlived its stream finds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http2) struct Key {
    at: usize,
    pub(in crate::http2) id: u32,
}

/// Why a stream ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http2) enum Failure {
    /// The peer reset it, with its error code.
    Reset(u32),
    /// The peer has not looked at it.
    Refused,
    /// The connection is gone.
    Closed,
    /// We reset it for what the peer did, or gave it up ourselves.
    Broken(&'static str),
    /// A limit of ours was hit.
    Overflow,
}

/// Where our direction stands.
#[derive(Debug, Default)]
pub(super) enum End {
    #[default]
    Open,
    /// All is queued, and these trailers come behind it.
    Queued(Option<Box<Fields>>),
    Sent,
}

/// A stream. It is **listed** until both directions have ended or either side has reset it; its record is freed when it is
/// no more listed and nobody holds it.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) id: u32,
    /// What a client opened it for.
    pub(super) group: u64,
    pub(super) listed: bool,
    pub(super) held: bool,
    pub(super) failed: Option<Failure>,
    pub(super) receive: Receiving,
    pub(super) send: Sending,
}

#[derive(Debug, Default)]
pub(super) struct Receiving {
    /// Heads of a response, interim ones first.
    pub(super) heads: VecDeque<Box<ResponseHead>>,
    /// The final head has come.
    pub(super) begun: bool,
    pub(super) interim: u8,
    /// Answers a HEAD.
    pub(super) asked_head: bool,
    pub(super) connect: bool,
    pub(super) pieces: VecDeque<Bytes>,
    /// Bytes of all pieces.
    pub(super) waiting: usize,
    /// Bytes of the last piece that was read, whose window is given back with the next.
    pub(super) lent: usize,
    /// Bytes that are still to come, where the head said how many.
    pub(super) left: Option<u64>,
    pub(super) trailers: Option<Box<Fields>>,
    pub(super) ended: bool,
    /// What the peer may still send.
    pub(super) window: i64,
    /// What was used up and is not given back yet.
    pub(super) used: u32,
    pub(super) reader: Option<Waker>,
}

#[derive(Debug, Default)]
pub(super) struct Sending {
    /// What the peer takes beside what was framed.
    pub(super) window: i64,
    pub(super) queue: VecDeque<Bytes>,
    pub(super) queued: usize,
    pub(super) end: End,
    /// It takes its turn in the ring.
    pub(super) in_ring: bool,
    /// The last DATA frame, and the turn in which it was framed.
    pub(super) last: Option<(u32, Place)>,
    pub(super) writer: Option<Waker>,
}

impl Stream {
    /// Whether the protocol is done with it.
    pub(super) fn is_closed(&self) -> bool {
        self.failed.is_some() || self.receive.ended && matches!(self.send.end, End::Sent)
    }

    fn clear(&mut self) {
        (self.id, self.group, self.listed, self.held, self.failed) = (0, 0, false, false, None);
        self.receive = Receiving {
            heads: emptied(&mut self.receive.heads),
            pieces: emptied(&mut self.receive.pieces),
            ..Receiving::default()
        };
        self.send = Sending { queue: emptied(&mut self.send.queue), ..Sending::default() };
    }
}

/// A queue for another stream: it keeps its memory, unless that is much.
fn emptied<T>(queue: &mut VecDeque<T>) -> VecDeque<T> {
    let mut queue = std::mem::take(queue);
    queue.clear();
    queue.shrink_to(KEPT_QUEUE);
    queue
}

#[derive(Debug, Default)]
pub(super) struct Streams {
    slab: Vec<Stream>,
    free: Vec<usize>,
    /// The listed ones by id, ascending, and where their records are.
    index: VecDeque<(u32, usize)>,
}

/// Places that a record's queue keeps.
const KEPT_QUEUE: usize = 16;
/// Records that a connection without streams keeps.
const KEPT: usize = 2;

impl Streams {
    /// How many are listed.
    pub(super) fn listed(&self) -> usize {
        self.index.len()
    }

    #[cfg(test)]
    pub(super) fn is_unused(&self) -> bool {
        self.free.len() == self.slab.len()
    }

    /// A record for a stream with a higher id than any before.
    pub(super) fn insert(&mut self, id: u32) -> (Key, &mut Stream) {
        let at = self.free.pop().unwrap_or_else(|| {
            if self.slab.len() < KEPT {
                // Not four at once: they would be too many to be kept.
                self.slab.reserve_exact(1);
            }
            self.slab.push(Stream::default());
            self.slab.len() - 1
        });
        self.index.push_back((id, at));
        let stream = &mut self.slab[at];
        stream.id = id;
        stream.listed = true;
        (Key { at, id }, stream)
    }

    /// A listed stream.
    pub(super) fn find(&self, id: u32) -> Option<Key> {
        let place = self.index.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        self.index.get(place).map(|&(id, at)| Key { at, id })
    }

    pub(super) fn get(&mut self, key: Key) -> Option<&mut Stream> {
        self.slab.get_mut(key.at).filter(|stream| stream.id == key.id)
    }

    /// The listed ones from the lowest id on.
    pub(super) fn nth(&self, place: usize) -> Option<Key> {
        self.index.get(place).map(|&(id, at)| Key { at, id })
    }

    pub(super) fn unlist(&mut self, key: Key) {
        if let Ok(place) = self.index.binary_search_by_key(&key.id, |(id, _)| *id) {
            self.index.remove(place);
        }
        if let Some(stream) = self.get(key) {
            stream.listed = false;
        }
    }

    /// Frees a record.
    pub(super) fn recycle(&mut self, key: Key) {
        let Some(stream) = self.get(key) else { return };
        stream.clear();
        self.free.push(key.at);
        if self.free.len() == self.slab.len() && self.slab.capacity() > KEPT {
            *self = Self::default();
        }
    }
}

impl Failure {
    /// As whoever holds the stream is told, by whose peer it was; and whether the peer has not touched it.
    pub(in crate::http2) fn kind(self, status: u16) -> (StreamErrorKind, bool) {
        match self {
            Self::Refused => (StreamErrorKind::Refused, true),
            Self::Reset(code) => (StreamErrorKind::Reset(code), false),
            Self::Closed => (StreamErrorKind::Closed, false),
            Self::Broken(detail) => (StreamErrorKind::Protocol { status, detail }, false),
            Self::Overflow => (StreamErrorKind::Overflow, false),
        }
    }
}
