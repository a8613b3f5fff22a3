//! What befell a tunnel: the latest events of one connection, for those who ask why it is as it is.

use std::collections::VecDeque;

use serde::Serialize;
use tokio::time::Instant;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Milliseconds since the history began.
    pub at_ms: u64,
    pub kind: EventKind,
    pub detail: Option<Box<str>>,
}

/// What may happen to a tunnel, at either end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// The agent waits for its listener or its secrets.
    Waiting,
    /// The agent dials: connect, TLS, handshake.
    Dialing,
    /// TCP stands; our end of it.
    Connected,
    /// TLS stands; what was agreed on.
    Tls,
    /// The server has read the agent's handshake and admitted it; its dialect.
    Handshake,
    /// The tunnel stands.
    Established,
    /// The first byte that came in after the handshake.
    FirstByte,
    /// The first PING that was answered; the round trip.
    FirstPing,
    /// The agent has given itself another weight.
    Weight,
    /// Its agent's certificate is trusted no more; why.
    Distrusted,
    /// The agent has asked for its end.
    GracefulClose,
    /// It takes nothing new.
    Draining,
    /// It has ended; why.
    Ended,
    /// An attempt has failed; why.
    Failed,
    /// The agent waits before its next attempt.
    BackingOff,
    /// The agent dials no more.
    GivenUp,
}

impl EventKind {
    /// As it is written in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Dialing => "dialing",
            Self::Connected => "connected",
            Self::Tls => "tls",
            Self::Handshake => "handshake",
            Self::Established => "established",
            Self::FirstByte => "first_byte",
            Self::FirstPing => "first_ping",
            Self::Weight => "weight",
            Self::Distrusted => "distrusted",
            Self::GracefulClose => "graceful_close",
            Self::Draining => "draining",
            Self::Ended => "ended",
            Self::Failed => "failed",
            Self::BackingOff => "backing_off",
            Self::GivenUp => "given_up",
        }
    }
}

/// The latest [`MOST_EVENTS`]. An idle tunnel has four or five, and holds no room for more.
#[derive(Debug)]
pub(crate) struct History {
    began: Instant,
    events: VecDeque<Event>,
}

impl History {
    pub(crate) fn new(began: Instant) -> Self {
        Self { began, events: VecDeque::new() }
    }

    pub(crate) fn note(&mut self, at: Instant, kind: EventKind, detail: Option<String>) {
        if self.events.len() >= MOST_EVENTS {
            self.events.pop_front();
        }
        // One by one at first: most never have a sixth.
        if self.events.len() < 5 {
            self.events.reserve_exact(1);
        }
        let at_ms = self.millis(at);
        self.events.push_back(Event { at_ms, kind, detail: detail.map(String::into_boxed_str) });
    }

    /// That the first byte came at a time that nobody watched for.
    pub(crate) fn note_first_byte(&mut self, at: Instant) {
        if self.events.len() >= MOST_EVENTS {
            self.events.pop_front();
        }
        let (place, event) = self.first_byte(at);
        self.events.insert(place, event);
    }

    /// The event, and where it belongs: before the first PING of the same millisecond, whose answer it may have been.
    fn first_byte(&self, at: Instant) -> (usize, Event) {
        let at_ms = self.millis(at);
        let is_later = |event: &Event| (event.at_ms, event.kind == EventKind::FirstPing) > (at_ms, false);
        let place = self.events.iter().position(is_later).unwrap_or(self.events.len());
        (place, Event { at_ms, kind: EventKind::FirstByte, detail: None })
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether that has happened, as far as is remembered.
    pub(crate) fn has(&self, kind: EventKind) -> bool {
        self.events.iter().any(|event| event.kind == kind)
    }

    /// The detail of the last event of that kind.
    pub(crate) fn last(&self, kind: EventKind) -> Option<&str> {
        self.events.iter().rev().find(|event| event.kind == kind)?.detail.as_deref()
    }

    /// Oldest first; with when the first byte came, of which nobody takes note as it comes.
    pub(crate) fn events(&self, first_byte: Option<Instant>) -> Vec<Event> {
        let mut events: Vec<Event> = self.events.iter().cloned().collect();
        if let Some(at) = first_byte {
            let (place, event) = self.first_byte(at);
            events.insert(place, event);
        }
        events
    }
}

/// Events of one connection that are remembered.
pub const MOST_EVENTS: usize = 32;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_latest_are_remembered_with_their_times() {
        let began = Instant::now();
        let mut history = History::new(began);
        for round in 0..100_u64 {
            let at = began + Duration::from_millis(round * 10);
            history.note(at, EventKind::Dialing, None);
            history.note(at + Duration::from_millis(5), EventKind::Failed, Some(format!("failure {round}")));
        }
        let events = history.events(None);
        assert_eq!(events.len(), MOST_EVENTS, "bounded");
        assert_eq!((events[0].at_ms, events[0].kind), (840, EventKind::Dialing), "the oldest that is left");
        assert_eq!(history.last(EventKind::Failed), Some("failure 99"), "the latest");
        assert!(!history.has(EventKind::Established), "what never was");
        for event in &events {
            let written = serde_json::to_value(event.kind).unwrap();
            assert_eq!(written, event.kind.name(), "one name everywhere");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_byte_stands_where_it_came() {
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        let mut history = History::new(began);
        for (millis, kind) in
            [(1, EventKind::Established), (5, EventKind::FirstPing), (5, EventKind::Draining), (9, EventKind::Ended)]
        {
            history.note(at(millis), kind, None);
        }
        let places = [0, 1, 4, 5, 9].map(|millis| history.first_byte(at(millis)).0);
        assert_eq!(places, [0, 1, 1, 1, 4]);
        let shown: Vec<_> = history.events(Some(at(3))).iter().map(|event| event.kind).collect();
        history.note_first_byte(at(3));
        let noted: Vec<_> = history.events(None).iter().map(|event| event.kind).collect();
        assert_eq!(shown, noted, "as it is shown while it stands, it is remembered");
        assert_eq!(noted[1], EventKind::FirstByte);
    }
}
