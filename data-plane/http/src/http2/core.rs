//! A connection's state machine, for both roles, without any input or output of its own: bytes go in by
//! [`Core::receive`], what is to be sent comes out by [`Core::fill`], and whoever holds a stream acts on it by key.
//!
//! **Nothing here blocks, calls out or wakes**: whom to wake is collected and left to the caller, who has the lock.

mod blocks;
mod control;
mod floods;
mod read;
mod receive;
mod send;
mod start;
pub(super) mod streams;

use std::collections::VecDeque;
use std::task::Waker;

use tokio::time::Instant;

use super::frame::{self, MAX_STREAM, code, setting};
use super::hpack::{Decoder, Encoder};
use super::outbox::Outbox;
use super::read_heads::HeadLimits;
use crate::{BodyKind, RequestHead};

use floods::Floods;
pub(super) use read::Piece;
pub(super) use send::Unopened;
use streams::{End, Streams};
pub(super) use streams::{Failure, Key};

/// Streams that we reset, whose frames may still be on their way.
const RECENT: usize = 256;
/// The peer's limit of streams until its SETTINGS arrive; no limit that a peer can set is this.
const UNSETTLED: usize = usize::MAX - 1;
/// Answers that may wait for a peer that takes none, before nothing more is read of it.
const REPLIES: u32 = 1000;
/// And bytes of those, and of heads of responses: a stream whose response has no body ends before anybody has read it.
const UNREAD: usize = 512 * 1024;
/// What our PINGs carry, and the one that asks whether a GOAWAY has arrived.
const ALIVE: &[u8; 8] = b"culvertp";
const GOING: &[u8; 8] = b"culvertg";

/// Why a connection ends by our doing (RFC 9113, 5.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) code: u32,
    pub(super) detail: &'static str,
}

impl Broken {
    const fn protocol(detail: &'static str) -> Self {
        Self { code: code::PROTOCOL_ERROR, detail }
    }

    const fn size(detail: &'static str) -> Self {
        Self { code: code::FRAME_SIZE_ERROR, detail }
    }

    const fn flood(detail: &'static str) -> Self {
        Self { code: code::ENHANCE_YOUR_CALM, detail }
    }
}

/// What a server's driver has to do something about.
#[derive(Debug)]
pub(super) enum Arrival {
    /// A stream, which is held from now on.
    Request { key: Key, head: Box<RequestHead>, kind: BodyKind },
    /// A request that was answered or reset already.
    Refused { status: u16, detail: &'static str },
}

/// How the connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// A first GOAWAY is out, which names no stream: what the peer opens meanwhile is still served.
    Ending,
    /// The last GOAWAY is out. Streams above this one are ignored.
    Ended(u32),
    Broken(Broken),
    /// The peer is gone.
    Closed,
}

#[derive(Debug)]
struct Config {
    server: bool,
    head: HeadLimits,
    max_streams: usize,
    max_frame: usize,
    /// See [`ServerOptions::client_ends`](crate::ServerOptions::client_ends).
    client_ends: bool,
}

/// What the peer takes.
#[derive(Debug)]
struct Peer {
    /// Its SETTINGS have come.
    settled: bool,
    window: u32,
    max_frame: usize,
    max_streams: usize,
    extended_connect: bool,
    /// Its GOAWAY: the last stream that it looks at, and why.
    goaway: Option<(u32, u32)>,
}

/// What we take, all streams together.
#[derive(Debug)]
struct Intake {
    window: i64,
    /// Used up and not given back; below zero: more than we want to take was allowed by default.
    used: i64,
    target: u32,
    /// Each stream's window.
    stream: u32,
    /// What it will be once the peer acknowledges our SETTINGS.
    agreed: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Core {
    config: Config,
    peer: Peer,
    phase: Phase,
    streams: Streams,
    intake: Intake,
    incoming: receive::Incoming,
    encoder: Encoder,
    decoder: Decoder,
    out: Outbox,
    /// How many times `out` was taken away.
    turn: u32,
    /// What all streams together may still send.
    window: i64,
    /// Bytes that wait in the streams' queues.
    queued: usize,
    /// Streams with something to send, in the order of their turns.
    ring: VecDeque<Key>,
    /// The highest stream of the peer's; of ours (`next` is the next one).
    highest: u32,
    next: u32,
    recent: VecDeque<u32>,
    floods: Option<Floods>,
    local_resets: usize,
    /// The highest stream that the driver has taken, and resets of those above it.
    seen: u32,
    pending_resets: usize,
    /// Answers to control frames and faults that are not on their way.
    replies: u32,
    arrivals: VecDeque<Arrival>,
    /// The peer has said that it will leave, and nobody has asked yet.
    leaving: bool,
    pong: bool,
    said_goodbye: bool,
    /// Nobody can open streams any more.
    abandoned: bool,
    /// Those who wait until they may open a stream.
    openers: Vec<Waker>,
    wakes: Vec<Waker>,
    driver: Option<Waker>,
    /// There is something for the driver to do.
    dirty: bool,
}

impl Core {
    /// Why the connection ends by our doing.
    pub(super) fn broken(&self) -> Option<Broken> {
        match self.phase {
            Phase::Broken(broken) => Some(broken),
            _ => None,
        }
    }

    /// Whether nothing more will happen but an end.
    pub(super) fn is_done(&self) -> bool {
        let leaves = self.peer.goaway.is_some() && !self.config.client_ends;
        let ends = matches!(self.phase, Phase::Ended(_)) || leaves || self.abandoned;
        ends && self.streams.listed() == 0 && self.arrivals.is_empty()
    }

    /// Whether the peer makes us answer and takes no answers. A client's end goes on to read: were both to wait until
    /// the other one reads, neither would.
    pub(super) fn is_swamped(&self) -> bool {
        self.replies > REPLIES || self.config.server && self.out.waiting() > UNREAD
    }

    /// Since when a header block has begun and not ended.
    pub(super) fn open_block(&self) -> Option<Instant> {
        self.incoming.open_block()
    }

    /// Hands over what has arrived since the last call; `into` is empty.
    pub(super) fn take_arrivals(&mut self, into: &mut VecDeque<Arrival>) {
        self.pending_resets = 0;
        self.seen = self.highest;
        std::mem::swap(&mut self.arrivals, into);
    }

    /// Whether the client has said since the last call that it will leave.
    pub(super) fn take_leaving(&mut self) -> bool {
        std::mem::take(&mut self.leaving)
    }

    /// The code of the peer's GOAWAY.
    pub(super) fn peer_goaway(&self) -> Option<u32> {
        self.peer.goaway.map(|(_, code)| code)
    }

    /// Nothing more can be sent or received.
    pub(super) fn close(&mut self) {
        if !matches!(self.phase, Phase::Broken(_)) {
            self.phase = Phase::Closed;
        }
        self.fail_all(Failure::Closed);
    }

    /// A last GOAWAY; open streams fail.
    pub(super) fn break_off(&mut self, broken: Broken) {
        if matches!(self.phase, Phase::Broken(_) | Phase::Closed) {
            return;
        }
        frame::write_goaway(self.out.bytes(), self.highest, broken.code);
        self.phase = Phase::Broken(broken);
        self.dirty = true;
        let overflow = matches!(broken.code, code::FLOW_CONTROL_ERROR | code::ENHANCE_YOUR_CALM);
        self.fail_all(if overflow { Failure::Overflow } else { Failure::Broken(broken.detail) });
    }

    fn fail_all(&mut self, failure: Failure) {
        while let Some(key) = self.streams.nth(0) {
            self.shut(key, failure);
        }
        self.wakes.append(&mut self.openers);
    }

    /// GOAWAY: what is open is finished, and nothing new begins once the peer knows (RFC 9113, 6.8).
    pub(super) fn end(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Ending;
            frame::write_goaway(self.out.bytes(), MAX_STREAM, code::NO_ERROR);
            frame::write_ping(self.out.bytes(), 0, GOING);
            self.dirty = true;
        }
    }

    /// GOAWAY of a connection without streams.
    pub(super) fn say_last(&mut self) {
        if self.phase == Phase::Open || self.phase == Phase::Ending {
            self.phase = Phase::Ended(self.highest);
            frame::write_goaway(self.out.bytes(), self.highest, code::NO_ERROR);
        }
    }

    /// GOAWAY of a client that goes on: what it still opens is served.
    pub(super) fn say_goodbye(&mut self) {
        if !std::mem::replace(&mut self.said_goodbye, true) {
            frame::write_goaway(self.out.bytes(), 0, code::NO_ERROR);
            self.dirty = true;
        }
    }

    /// The last one who could open streams is gone.
    pub(super) fn abandon(&mut self) {
        self.abandoned = true;
        self.dirty = true;
    }

    pub(super) fn ping(&mut self) {
        self.pong = false;
        frame::write_ping(self.out.bytes(), 0, ALIVE);
        self.dirty = true;
    }

    /// Whether the last [`Self::ping`] was answered.
    pub(super) fn take_pong(&mut self) -> bool {
        std::mem::take(&mut self.pong)
    }

    /// Larger windows: each stream's, and that of all together. Settings under way are not overtaken.
    pub(super) fn grow(&mut self, stream: u32, connection: u32) {
        self.intake.used += i64::from(connection) - i64::from(self.intake.target);
        self.intake.target = connection;
        self.give_back_all();
        if self.intake.agreed.is_none() {
            frame::write_settings(self.out.bytes(), &[(setting::INITIAL_WINDOW_SIZE, stream)]);
            self.intake.agreed = Some(stream);
        }
        self.dirty = true;
    }

    /// Opens the window of all streams by what was used up.
    fn give_back_all(&mut self) {
        if let Ok(used @ 1..) = u32::try_from(self.intake.used) {
            frame::write_window_update(self.out.bytes(), 0, used.min(MAX_STREAM));
            self.intake.window += i64::from(used);
            self.intake.used = 0;
            self.dirty = true;
        }
    }

    /// Bytes were used up, or will not be.
    fn give_back(&mut self, count: usize) {
        self.intake.used += i64::try_from(count).unwrap_or(i64::MAX);
        if self.intake.used >= i64::from(self.intake.target / 2).max(1) {
            self.give_back_all();
        }
    }

    /// A stream ends early, without a word of ours.
    fn shut(&mut self, key: Key, failure: Failure) {
        let Some(stream) = self.streams.get(key) else { return };
        stream.failed.get_or_insert(failure);
        self.queued -= std::mem::take(&mut stream.send.queued);
        stream.send.queue.clear();
        if std::mem::take(&mut stream.send.in_ring) {
            // It would stay there for as long as the peer takes nothing.
            self.ring.retain(|other| *other != key);
        }
        self.wakes.extend(stream.receive.reader.take());
        self.wakes.extend(stream.send.writer.take());
        self.settle(key);
    }

    /// Takes a stream that has ended off the list, and frees its record if nobody holds it.
    fn settle(&mut self, key: Key) {
        let server = self.config.server;
        let Some(stream) = self.streams.get(key) else { return };
        if !stream.is_closed() {
            if stream.held {
                return;
            }
            return match stream.send.end {
                End::Open => self.reset(key, code::CANCEL),
                End::Queued(_) => {}
                // RFC 9113, 8.1: a request that goes on after its response is reset without an error.
                End::Sent => self.reset(key, if server { code::NO_ERROR } else { code::CANCEL }),
            };
        }
        let (listed, held, well) = (stream.listed, stream.held, stream.failed.is_none());
        let unread = stream.receive.waiting + stream.receive.lent;
        if listed {
            self.local_resets = self.local_resets.saturating_sub(usize::from(well));
            self.streams.unlist(key);
            self.wakes.append(&mut self.openers);
            self.dirty = true;
        }
        if !held {
            self.streams.recycle(key);
            self.give_back(unread);
        }
    }

    /// Whoever held the stream has let go of it.
    pub(super) fn release(&mut self, key: Key) {
        if let Some(stream) = self.streams.get(key) {
            stream.held = false;
            self.settle(key);
        }
    }

    /// Whom to wake that reads, writes or wants to open streams.
    pub(super) fn wakes(&mut self) -> &mut Vec<Waker> {
        &mut self.wakes
    }

    /// Whom to wake that drives, if there is something to do.
    pub(super) fn wake_driver(&mut self) -> Option<Waker> {
        if !self.dirty {
            return None;
        }
        let driver = self.driver.take();
        self.dirty = driver.is_none();
        driver
    }

    /// The driver sleeps until there is something to do; `false`: there is something now.
    pub(super) fn rest(&mut self, driver: &Waker) -> bool {
        if std::mem::take(&mut self.dirty) {
            return false;
        }
        if self.driver.as_ref().is_none_or(|waker| !waker.will_wake(driver)) {
            self.driver = Some(driver.clone());
        }
        true
    }
}

#[cfg(test)]
mod tests;
