//! What waits to be written: one run of bytes, with large pieces of bodies put in at their places without a copy.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

use super::frame::{self, FrameHead};
use crate::Chunk;
use crate::buffers::{give_out, take_large_out, take_out};

/// Pieces of at least so many bytes are not copied.
const SHARED: usize = 4 * 1024;
/// From so many bytes on the next buffer is a large one.
const LARGE: usize = 16 * 1024;
/// Pieces of one write.
const SLICES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    /// How much of `bytes` is written.
    at: usize,
    /// Pieces, each with the place in `bytes` before which it stands.
    shared: VecDeque<(usize, Bytes)>,
    shared_bytes: usize,
    /// The last time there was much.
    large: bool,
}

/// Where a DATA frame stands that is not on its way yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    head: usize,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.at == self.bytes.len() && self.shared.is_empty()
    }

    /// Bytes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.bytes.len() - self.at + self.shared_bytes
    }

    /// Where frames are appended.
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            self.bytes = if self.large { take_large_out() } else { take_out() };
        }
        &mut self.bytes
    }

    /// Appends a frame of DATA; says where it stands.
    pub(super) fn data(&mut self, stream: u32, flags: u8, piece: Chunk<'_>) -> Place {
        let length = piece.len();
        let bytes = self.bytes();
        let place = Place { head: bytes.len() };
        bytes.extend_from_slice(&frame::head(length, frame::DATA, flags, stream));
        if length < SHARED {
            bytes.extend_from_slice(&piece);
        } else {
            let at = bytes.len();
            self.shared.push_back((at, piece.into_owned()));
            self.shared_bytes += length;
        }
        place
    }

    /// Makes a DATA frame longer by `piece`, if it is the last one and stays within `most` bytes.
    pub(super) fn extend(&mut self, place: Place, piece: &[u8], most: usize) -> bool {
        let end = self.bytes.len();
        let Some(head) = self.bytes.get_mut(place.head..) else { return false };
        let Some(FrameHead { length, .. }) = FrameHead::read(head) else { return false };
        let longer = length + piece.len();
        if place.head + FrameHead::LENGTH + length != end || longer > most || longer >= SHARED {
            return false;
        }
        let [_, length @ ..] = u32::try_from(longer).unwrap_or(u32::MAX).to_be_bytes();
        if let Some(place) = head.first_chunk_mut() {
            *place = length;
        }
        self.bytes.extend_from_slice(piece);
        true
    }

    /// Sets END_STREAM in a DATA frame.
    pub(super) fn end(&mut self, place: Place) -> bool {
        let flags = self.bytes.get_mut(place.head + 4);
        flags.map(|flags| *flags |= frame::END_STREAM).is_some()
    }

    /// What is to be written next.
    pub(super) fn slices<'a>(&'a self, slices: &mut smallvec::SmallVec<[IoSlice<'a>; SLICES]>) {
        let mut at = self.at;
        for (place, piece) in &self.shared {
            if slices.len() + 2 > SLICES {
                return;
            }
            if let Some(before) = self.bytes.get(at..*place).filter(|before| !before.is_empty()) {
                slices.push(IoSlice::new(before));
            }
            at = *place;
            slices.push(IoSlice::new(piece));
        }
        if let Some(rest) = self.bytes.get(at..).filter(|rest| !rest.is_empty()) {
            slices.push(IoSlice::new(rest));
        }
    }

    /// So many bytes are written. Gives its memory back when that was all.
    pub(super) fn advance(&mut self, mut count: usize) {
        while let Some((place, piece)) = self.shared.front_mut() {
            let before = count.min(*place - self.at);
            self.at += before;
            count -= before;
            if count == 0 {
                return;
            }
            let taken = count.min(piece.len());
            piece.advance(taken);
            count -= taken;
            self.shared_bytes -= taken;
            if !piece.is_empty() {
                return;
            }
            self.shared.pop_front();
        }
        self.at = self.bytes.len().min(self.at + count);
        if self.is_empty() {
            self.at = 0;
            self.large = self.bytes.len() > LARGE;
            give_out(std::mem::take(&mut self.bytes));
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        give_out(std::mem::take(&mut self.bytes));
    }
}
