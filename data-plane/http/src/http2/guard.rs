//! Watches the frames of a client's connection for floods: frames that cost their sender next to nothing and make the
//! receiver work. **Reads nine bytes of each frame and nothing else** (of trailers how many there are); what frames mean
//! is the library's part, and so are the limits on what it stores (headers, windows, streams that wait to be reset).

use std::cell::RefCell;
use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::fields::FieldCount;
use super::preface::PREFACE;
use crate::Io;
use crate::farewell::Farewell;
use crate::server::{FloodLimits, ServerOptions};

/// A client's connection under watch.
#[derive(Debug)]
pub(super) struct Guarded {
    io: Io,
    guard: Guard,
    linger: Duration,
    farewell: Option<Box<Farewell>>,
}

impl Guarded {
    pub(super) fn new(io: Io, options: &ServerOptions) -> (Self, Guard) {
        let counts = Counts {
            limits: options.flood_limits,
            most_trailers: options.max_fields,
            speaks_for_many: options.connections,
            ..Counts::default()
        };
        let guard = Guard(Rc::new(RefCell::new(counts)));
        (Self { io, guard: guard.clone(), linger: options.linger, farewell: None }, guard)
    }
}

/// What is known of a connection's frames.
#[derive(Debug, Clone)]
pub(super) struct Guard(Rc<RefCell<Counts>>);

impl Guard {
    /// Why the connection has to end; nothing more is read then.
    pub(super) fn verdict(&self) -> Option<&'static str> {
        self.0.borrow().verdict
    }

    /// Whether the client has said since the last call that it will leave.
    pub(super) fn take_goaway(&self) -> bool {
        std::mem::take(&mut self.0.borrow_mut().goaway)
    }

    /// Since when a header block has begun and not ended.
    pub(super) fn open_block(&self) -> Option<Instant> {
        self.0.borrow().open_block
    }
}

impl AsyncRead for Guarded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        let mut counts = this.guard.0.borrow_mut();
        if counts.verdict.is_some() {
            // Whoever drives the connection looks at the verdict after each poll, and needs no waker.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        counts.received(buf.filled().get(before..).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.io).poll_write(cx, buf))?;
        this.guard.0.borrow_mut().sent(buf.get(..count).unwrap_or_default());
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, bufs))?;
        let mut counts = this.guard.0.borrow_mut();
        let mut left = count;
        for buf in bufs {
            let taken = left.min(buf.len());
            counts.sent(buf.get(..taken).unwrap_or_default());
            left -= taken;
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    /// Lasts until the client has ended too, or `linger`: what it sent before it saw our GOAWAY must not reset it.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        let farewell = this.farewell.get_or_insert_with(|| Box::new(Farewell::new(this.linger)));
        farewell.poll(&mut this.io, cx)
    }
}

/// A frame's head (RFC 9113, 4.1).
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Frame {
    fn is_ack(self) -> bool {
        self.flags & 1 != 0
    }

    fn ends_stream(self) -> bool {
        self.flags & 1 != 0
    }

    fn ends_block(self) -> bool {
        self.flags & 4 != 0
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// Walks over a byte stream from frame to frame.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// Bytes to skip: a payload.
    skip: usize,
    head: [u8; 9],
    have: usize,
}

impl Walk {
    /// The first frame begins behind so many bytes.
    pub(super) fn behind(skip: usize) -> Self {
        Self { skip, ..Self::default() }
    }

    /// Bytes that are still to come of the payload.
    fn payload(&self) -> usize {
        self.skip
    }

    /// Whether the last frame is whole and the next one has not begun.
    pub(super) fn is_between_frames(&self) -> bool {
        self.skip == 0 && self.have == 0
    }

    /// The next frame whose head ends in `bytes`; takes what it looked at off their front.
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> Option<Frame> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        let (_, rest) = bytes.split_at(skipped);
        let taken = (self.head.len() - self.have).min(rest.len());
        let (part, rest) = rest.split_at(taken);
        *bytes = rest;
        self.head.get_mut(self.have..self.have + taken)?.copy_from_slice(part);
        self.have += taken;
        if self.have < self.head.len() {
            return None;
        }
        self.have = 0;
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = self.head;
        self.skip = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        let stream = u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff;
        Some(Frame { length: self.skip, kind, flags, stream })
    }
}

#[derive(Debug)]
struct Counts {
    limits: FloodLimits,
    inbound: Walk,
    outbound: Walk,
    verdict: Option<&'static str>,
    /// The client has said that it will leave, and nobody has asked yet.
    goaway: bool,
    open_block: Option<Instant>,
    /// The fields of trailers that come. They wait for whoever reads the body before them, which may be nobody.
    trailers: Option<FieldCount>,
    most_trailers: usize,
    /// The highest stream that the client opened, and how many there were.
    highest: u32,
    streams: u64,
    data_sent: u64,
    data_received: u64,
    /// The peer is a trusted proxy: what one of its clients resets is not the others' fault.
    speaks_for_many: bool,
    priorities: u64,
    window_updates: u64,
    /// Frames without payload in a row.
    empty: u32,
    control: Window,
    resets: Resets,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            limits: FloodLimits::default(),
            inbound: Walk::behind(PREFACE.len()),
            outbound: Walk::default(),
            verdict: None,
            goaway: false,
            open_block: None,
            trailers: None,
            most_trailers: usize::MAX,
            highest: 0,
            streams: 0,
            data_sent: 0,
            data_received: 0,
            speaks_for_many: false,
            priorities: 0,
            window_updates: 0,
            empty: 0,
            control: Window::default(),
            resets: Resets::default(),
        }
    }
}

impl Counts {
    fn sent(&mut self, mut bytes: &[u8]) {
        while let Some(frame) = self.outbound.next(&mut bytes) {
            self.data_sent += u64::from(frame.kind == DATA);
        }
    }

    fn received(&mut self, mut bytes: &[u8]) {
        loop {
            if let Some(trailers) = &mut self.trailers {
                let left = self.inbound.payload();
                let piece = bytes.get(..left.min(bytes.len())).unwrap_or_default();
                if trailers.count(piece, left) > self.most_trailers {
                    self.verdict.get_or_insert("too many trailers");
                }
            }
            let Some(frame) = self.inbound.next(&mut bytes) else { return };
            self.count_trailers(frame);
            if let Some(flood) = self.judge(frame) {
                self.verdict.get_or_insert(flood);
            }
        }
    }

    /// A head on a stream that has begun already is its trailers.
    fn count_trailers(&mut self, frame: Frame) {
        let begins = frame.kind == HEADERS && frame.stream <= self.highest;
        if begins || frame.kind == CONTINUATION && self.trailers.is_some() {
            let before = if frame.kind == HEADERS && frame.flags & 0x20 != 0 { PRIORITY_BYTES } else { 0 };
            let trailers = self.trailers.get_or_insert_default();
            if begins {
                *trailers = FieldCount::default();
            }
            trailers.frame(frame.kind == HEADERS && frame.flags & 8 != 0, before);
        } else {
            self.trailers = None;
        }
    }

    fn judge(&mut self, frame: Frame) -> Option<&'static str> {
        self.goaway |= frame.kind == GOAWAY;
        match frame.kind {
            DATA => self.data_received += u64::from(frame.length > 0),
            HEADERS => {
                if frame.stream > self.highest {
                    self.highest = frame.stream;
                    self.streams += 1;
                }
                self.open_block = if frame.ends_block() { None } else { Some(Instant::now()) };
            }
            CONTINUATION if frame.ends_block() => self.open_block = None,
            CONTINUATION => {}
            PRIORITY => {
                self.priorities += 1;
                return (self.priorities > u64::from(self.limits.priority_frames) * (1 + self.streams))
                    .then_some("a flood of PRIORITY");
            }
            RST_STREAM if self.speaks_for_many => return None,
            RST_STREAM => {
                let premature = self.resets.count(frame.stream, self.highest);
                return (premature * 2 >= self.streams.max(RESETS_JUDGED_FROM)).then_some("too many premature resets");
            }
            WINDOW_UPDATE => {
                self.window_updates += 1;
                // Envoy's formula.
                let due = 5 + 2 * (self.streams + u64::from(self.limits.window_updates) * self.data_sent);
                return (self.window_updates > due).then_some("a flood of WINDOW_UPDATE");
            }
            // PING, SETTINGS, and whatever we do not know.
            _ => {
                let useful = self.streams + self.data_sent + self.data_received;
                let cost = if frame.is_ack() || frame.kind != SETTINGS { 1 } else { 2 };
                return self
                    .control
                    .exceeds(cost, useful, self.limits.control_frames)
                    .then_some("a flood of control frames");
            }
        }
        self.empty = if frame.length == 0 && !frame.ends_stream() { self.empty + 1 } else { 0 };
        (self.empty > self.limits.empty_frames).then_some("a flood of empty frames")
    }
}

const SETTINGS: u8 = 4;
/// Of a HEADERS frame that has some (RFC 9113, 6.2).
const PRIORITY_BYTES: usize = 5;

/// Envoy's `overload.premature_reset_total_stream_count`: half of as many streams, if reset within a second, are enough.
const RESETS_JUDGED_FROM: u64 = 500;

/// Control frames of a span of time. Who measures a round trip for each piece of data may do so.
#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    count: u64,
    useful_before: u64,
}

impl Window {
    const SPAN: Duration = Duration::from_secs(10);

    /// Counts; whether that is too much beside what was `useful` meanwhile.
    fn exceeds(&mut self, cost: u64, useful: u64, free: u32) -> bool {
        let now = Instant::now();
        if self.began.is_none_or(|began| now.duration_since(began) >= Self::SPAN) {
            *self = Self { began: Some(now), count: 0, useful_before: useful };
        }
        self.count += cost;
        self.count > u64::from(free) + 10 * (useful - self.useful_before)
    }
}

/// Streams that a client reset within about a second of opening them.
#[derive(Debug, Default)]
struct Resets {
    premature: u64,
    marked: Option<Instant>,
    /// The highest stream when the clock was last marked, and the time before that: those are older than a second.
    recent: u32,
    old: u32,
}

impl Resets {
    fn count(&mut self, stream: u32, highest: u32) -> u64 {
        let now = Instant::now();
        let since = self.marked.map(|marked| now.duration_since(marked));
        if since.is_none_or(|since| since >= Duration::from_secs(1)) {
            // After a pause nobody knows how old the streams are; they get the benefit of the doubt.
            let known = since.is_some_and(|since| since < Duration::from_secs(2));
            *self = Self {
                old: if known { self.recent } else { highest },
                recent: highest,
                marked: Some(now),
                premature: self.premature,
            };
        }
        self.premature += u64::from(stream > self.old);
        self.premature
    }
}
