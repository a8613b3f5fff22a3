//! What whoever holds a stream does with it, and frames that go out.

use std::task::{Context, Poll, Waker};

use super::streams::End;
use super::{Core, Failure, Key, Phase};
use crate::http2::SEND_BUFFER;
use crate::http2::core::receive::join;
use crate::http2::frame::{END_HEADERS, END_STREAM, MAX_STREAM, code};
use crate::http2::outbox::Outbox;
use crate::http2::write_heads;
use crate::{BodyKind, Chunk, Fields, Method, RequestHead};

/// Bytes that one write may have.
const OUT: usize = 128 * 1024;
/// Bytes that the streams' queues may have together, beside a little of each.
const QUEUED: usize = 4 * 1024 * 1024;
const LITTLE: usize = 16 * 1024;
/// The largest frame while several streams take turns: half a millisecond at 1 Gbit/s.
const TURN: usize = 64 * 1024;

/// Why no stream can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http2) enum Unopened {
    /// The connection takes no more streams.
    Closed,
    /// Not now: whoever asked is woken when it may be otherwise.
    Full,
}

impl Core {
    /// Streams that the peer lets us have at a time, and we ourselves.
    pub(in crate::http2) fn most_streams(&self) -> usize {
        self.peer.max_streams.min(self.config.max_streams)
    }

    /// Whether streams can still be opened.
    pub(in crate::http2) fn is_open(&self) -> bool {
        self.phase == Phase::Open && self.peer.goaway.is_none() && self.next <= MAX_STREAM
    }

    /// Whether the peer takes extended CONNECT (RFC 8441, 3); pending until its SETTINGS have come.
    pub(in crate::http2) fn poll_extended_connect(&mut self, cx: &Context<'_>) -> Poll<bool> {
        if self.peer.settled || !self.is_open() {
            return Poll::Ready(self.peer.extended_connect);
        }
        self.await_opening(cx);
        Poll::Pending
    }

    fn await_opening(&mut self, cx: &Context<'_>) {
        if !self.openers.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.openers.push(cx.waker().clone());
        }
    }

    /// Opens a stream by a request that HTTP/2 can carry; `ends`: nothing follows.
    pub(in crate::http2) fn open(
        &mut self,
        head: &RequestHead,
        body: BodyKind,
        ends: bool,
        group: u64,
        cx: &Context<'_>,
    ) -> Result<Key, Unopened> {
        if !self.is_open() {
            return Err(Unopened::Closed);
        }
        if self.streams.listed() >= self.peer.max_streams {
            self.await_opening(cx);
            return Err(Unopened::Full);
        }
        let id = self.next;
        self.next += 2;
        let flags = if ends { END_HEADERS | END_STREAM } else { END_HEADERS };
        self.write_block(id, flags, |encoder, out| write_heads::request(head, body, encoder, out));
        let (intake, window) = (i64::from(self.intake.stream), i64::from(self.peer.window));
        let (key, stream) = self.streams.insert(id);
        stream.held = true;
        stream.group = group;
        stream.receive.asked_head = head.method == Method::Head;
        stream.receive.connect = head.method == Method::Connect || head.upgrade.is_some();
        stream.receive.window = intake;
        stream.send.window = window;
        if ends {
            stream.send.end = End::Sent;
        }
        Ok(key)
    }

    /// Whether a stream has failed already.
    pub(in crate::http2) fn failure(&mut self, key: Key) -> Option<Failure> {
        self.streams.get(key).map_or(Some(Failure::Closed), |stream| stream.failed)
    }

    /// Sends a response's head; `ends`: nothing follows.
    pub(in crate::http2) fn respond(
        &mut self,
        key: Key,
        status: u16,
        head: (&Fields, BodyKind, bool),
        ends: bool,
    ) -> Result<(), Failure> {
        if let Some(failure) = self.failure(key) {
            return Err(failure);
        }
        let flags = if ends { END_HEADERS | END_STREAM } else { END_HEADERS };
        self.write_block(key.id, flags, |encoder, out| write_heads::response(status, head, encoder, out));
        if ends {
            self.sent_all(key);
        }
        Ok(())
    }

    fn sent_all(&mut self, key: Key) {
        if let Some(stream) = self.streams.get(key) {
            stream.send.end = End::Sent;
            self.settle(key);
        }
    }

    /// Sends or queues of `chunk` what there is room for; pending while something is left. Whether something was taken
    /// shows by its length.
    pub(in crate::http2) fn poll_send(
        &mut self,
        key: Key,
        chunk: &mut Chunk<'_>,
        cx: &Context<'_>,
    ) -> Poll<Result<(), Failure>> {
        let Some(stream) = self.streams.get(key) else { return Poll::Ready(Err(Failure::Closed)) };
        if let Some(failure) = stream.failed {
            return Poll::Ready(Err(failure));
        }
        if stream.send.queue.is_empty() {
            self.send_now(key, chunk);
        }
        if chunk.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let Some(stream) = self.streams.get(key) else { return Poll::Ready(Err(Failure::Closed)) };
        let send = &mut stream.send;
        let most = if self.queued < QUEUED { SEND_BUFFER } else { LITTLE };
        let window = usize::try_from(send.window).unwrap_or(0);
        let count = most.min(window).saturating_sub(send.queued).min(chunk.len());
        if count > 0 {
            match chunk.split_to(count) {
                Chunk::Borrowed(piece) => join(&mut send.queue, piece),
                Chunk::Owned(piece) => send.queue.push_back(piece),
            }
            send.queued += count;
            self.queued += count;
            self.dirty = true;
            if !std::mem::replace(&mut send.in_ring, true) {
                self.ring.push_back(key);
            }
        }
        if chunk.is_empty() {
            return Poll::Ready(Ok(()));
        }
        register(&mut send.writer, cx);
        Poll::Pending
    }

    /// Frames as much as windows and the outbox have room for, unless others wait for their turn.
    fn send_now(&mut self, key: Key, chunk: &mut Chunk<'_>) {
        let turn = self.turn;
        let Some(stream) = self.streams.get(key) else { return };
        let send = &mut stream.send;
        while !chunk.is_empty() && self.ring.is_empty() {
            let window = usize::try_from(send.window.min(self.window)).unwrap_or(0);
            let room = window.min(OUT.saturating_sub(self.out.waiting()));
            let count = room.min(self.peer.max_frame).min(chunk.len());
            if count == 0 {
                return;
            }
            let piece = chunk.split_to(count);
            let extended = send
                .last
                .is_some_and(|(when, place)| when == turn && self.out.extend(place, &piece, self.peer.max_frame));
            if !extended {
                send.last = Some((turn, self.out.data(key.id, 0, piece)));
                if let Some(floods) = &mut self.floods {
                    floods.data_sent += 1;
                }
            }
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            send.window -= count;
            self.window -= count;
            self.dirty = true;
        }
    }

    /// Ends our direction, behind what is queued; `true`: that is nothing.
    pub(in crate::http2) fn finish(&mut self, key: Key, trailers: Option<&Fields>) -> Result<bool, Failure> {
        let Some(stream) = self.streams.get(key) else { return Err(Failure::Closed) };
        if let Some(failure) = stream.failed {
            return Err(failure);
        }
        if !matches!(stream.send.end, End::Open) {
            return Ok(true);
        }
        let empty = stream.send.queue.is_empty();
        if empty {
            self.send_end(key, trailers);
        } else {
            stream.send.end = End::Queued(trailers.map(|trailers| Box::new(trailers.clone())));
        }
        Ok(empty)
    }

    /// Bytes that wait in a stream's queue.
    pub(in crate::http2) fn queued(&mut self, key: Key) -> usize {
        self.streams.get(key).map_or(0, |stream| stream.send.queued)
    }

    /// Ready when nothing is queued.
    pub(in crate::http2) fn poll_drained(&mut self, key: Key, cx: &Context<'_>) -> Poll<Result<(), Failure>> {
        let Some(stream) = self.streams.get(key) else { return Poll::Ready(Ok(())) };
        if let Some(failure) = stream.failed {
            return Poll::Ready(Err(failure));
        }
        if stream.send.queue.is_empty() {
            return Poll::Ready(Ok(()));
        }
        register(&mut stream.send.writer, cx);
        Poll::Pending
    }

    fn send_end(&mut self, key: Key, trailers: Option<&Fields>) {
        match trailers {
            Some(trailers) => {
                let flags = END_HEADERS | END_STREAM;
                self.write_block(key.id, flags, |encoder, out| write_heads::trailers(trailers, encoder, out));
            }
            None => {
                let last = self.streams.get(key).and_then(|stream| stream.send.last);
                let turn = self.turn;
                if !last.is_some_and(|(when, place)| when == turn && self.out.end(place)) {
                    self.out.data(key.id, END_STREAM, Chunk::Borrowed(b""));
                }
            }
        }
        self.dirty = true;
        self.sent_all(key);
    }

    /// Gives a stream up.
    pub(in crate::http2) fn reset(&mut self, key: Key, code: u32) {
        if self.streams.get(key).is_some_and(|stream| stream.listed) {
            self.write_reset(key.id, code);
            self.shut(key, Failure::Broken("the stream was given up"));
        }
    }

    /// Resets all streams that were opened for the group.
    pub(in crate::http2) fn reset_group(&mut self, group: u64) {
        let mut place = 0;
        while let Some(key) = self.streams.nth(place) {
            match self.streams.get(key) {
                // As if the peer had reset it; it is listed no more then.
                Some(stream) if stream.group == group => {
                    self.write_reset(key.id, code::CANCEL);
                    self.shut(key, Failure::Reset(code::CANCEL));
                }
                _ => place += 1,
            }
        }
    }

    /// The peer's window of a stream opens (or closes) by `more`; an error: beyond what it may have.
    pub(super) fn open_window(&mut self, key: Key, more: i64) -> Result<(), ()> {
        let Some(stream) = self.streams.get(key) else { return Ok(()) };
        let send = &mut stream.send;
        send.window += more;
        if send.window > i64::from(MAX_STREAM) {
            return Err(());
        }
        if send.window > 0 {
            self.wakes.extend(send.writer.take());
            if !send.queue.is_empty() && !std::mem::replace(&mut send.in_ring, true) {
                self.ring.push_back(key);
            }
        }
        Ok(())
    }

    /// Hands out what is to be written now: the streams take turns by frame.
    pub(in crate::http2) fn fill(&mut self, writing: &mut Outbox) {
        self.dirty = false;
        while self.window > 0 && self.out.waiting() < OUT {
            let Some(key) = self.ring.pop_front() else { break };
            self.take_turn(key);
        }
        if !self.out.is_empty() {
            std::mem::swap(writing, &mut self.out);
            self.turn = self.turn.wrapping_add(1);
            self.replies = 0;
        }
    }

    /// One frame of a stream's queue.
    fn take_turn(&mut self, key: Key) {
        let most = if self.ring.is_empty() { self.peer.max_frame } else { self.peer.max_frame.min(TURN) };
        let Some(stream) = self.streams.get(key) else { return };
        let send = &mut stream.send;
        send.in_ring = false;
        let window = usize::try_from(send.window.min(self.window)).unwrap_or(0);
        let Some(first) = send.queue.front_mut() else { return };
        let count = most.min(window).min(first.len());
        if count == 0 {
            // Its window opens again by a WINDOW_UPDATE.
            return;
        }
        let piece = first.split_to(count);
        if first.is_empty() {
            send.queue.pop_front();
        }
        send.queued -= count;
        self.queued -= count;
        let taken = i64::try_from(count).unwrap_or(i64::MAX);
        send.window -= taken;
        self.window -= taken;
        send.last = Some((self.turn, self.out.data(key.id, 0, Chunk::Owned(piece))));
        if let Some(floods) = &mut self.floods {
            floods.data_sent += 1;
        }
        self.wakes.extend(send.writer.take());
        if !send.queue.is_empty() {
            send.in_ring = true;
            self.ring.push_back(key);
            return;
        }
        if let End::Queued(trailers) = &mut send.end {
            let trailers = trailers.take();
            send.end = End::Open;
            self.send_end(key, trailers.as_deref());
        }
    }
}

pub(super) fn register(place: &mut Option<Waker>, cx: &Context<'_>) {
    if place.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
        *place = Some(cx.waker().clone());
    }
}
