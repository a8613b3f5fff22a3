//! Counts the frames of a client's connection that cost their sender next to nothing and make the receiver work.

use std::time::Duration;

use tokio::time::Instant;

use crate::http2::frame::{self, FrameHead};
use crate::server::FloodLimits;

/// What is known of a client's frames.
#[derive(Debug)]
pub(super) struct Floods {
    limits: FloodLimits,
    /// The peer is a trusted proxy: what one of its clients resets is not the others' fault.
    speaks_for_many: bool,
    /// Streams that the client opened.
    streams: u64,
    pub(super) data_sent: u64,
    data_received: u64,
    priorities: u64,
    window_updates: u64,
    /// Frames without payload in a row.
    empty: u32,
    control: Window,
    resets: Resets,
}

impl Floods {
    pub(super) fn new(limits: FloodLimits, speaks_for_many: bool) -> Self {
        Self {
            limits,
            speaks_for_many,
            streams: 0,
            data_sent: 0,
            data_received: 0,
            priorities: 0,
            window_updates: 0,
            empty: 0,
            control: Window::default(),
            resets: Resets::default(),
        }
    }

    /// How many streams the client has opened.
    pub(super) fn streams(&self) -> u64 {
        self.streams
    }

    /// Counts a frame; `highest`: the highest stream before it.
    ///
    /// # Errors
    /// It is one too many.
    pub(super) fn judge(&mut self, head: FrameHead, highest: u32) -> Result<(), &'static str> {
        match head.kind {
            frame::DATA => self.data_received += u64::from(head.length > 0),
            frame::HEADERS => self.streams += u64::from(head.stream > highest),
            frame::CONTINUATION => {}
            frame::PRIORITY => {
                self.priorities += 1;
                let most = u64::from(self.limits.priority_frames) * (1 + self.streams);
                return within(self.priorities <= most, "a flood of PRIORITY");
            }
            frame::RST_STREAM if self.speaks_for_many => return Ok(()),
            frame::RST_STREAM => {
                let premature = self.resets.count(head.stream, highest);
                let most = self.streams.max(RESETS_JUDGED_FROM);
                return within(premature * 2 < most, "too many premature resets");
            }
            frame::WINDOW_UPDATE => {
                self.window_updates += 1;
                // Envoy's formula.
                let due = 5 + 2 * (self.streams + u64::from(self.limits.window_updates) * self.data_sent);
                return within(self.window_updates <= due, "a flood of WINDOW_UPDATE");
            }
            // PING, SETTINGS, and whatever we do not know.
            _ => {
                let useful = self.streams + self.data_sent + self.data_received;
                let cost = if head.is_ack() || head.kind != frame::SETTINGS { 1 } else { 2 };
                let exceeds = self.control.exceeds(cost, useful, self.limits.control_frames);
                return within(!exceeds, "a flood of control frames");
            }
        }
        self.empty = if head.length == 0 && !head.ends_stream() { self.empty + 1 } else { 0 };
        within(self.empty <= self.limits.empty_frames, "a flood of empty frames")
    }
}

fn within(limit: bool, otherwise: &'static str) -> Result<(), &'static str> {
    if limit { Ok(()) } else { Err(otherwise) }
}

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
