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
        let at_ms = u64::try_from(at.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX);
        self.events.push_back(Event { at_ms, kind, detail: detail.map(String::into_boxed_str) });
    }

    /// When it began.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Whether that has happened, as far as is remembered.
    pub(crate) fn has(&self, kind: EventKind) -> bool {
        self.events.iter().any(|event| event.kind == kind)
    }

    /// The detail of the last event of that kind.
    pub(crate) fn last(&self, kind: EventKind) -> Option<&str> {
        self.events.iter().rev().find(|event| event.kind == kind)?.detail.as_deref()
    }

    /// Oldest first.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.iter().cloned().collect()
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
        let events = history.events();
        assert_eq!(events.len(), MOST_EVENTS, "bounded");
        assert_eq!((events[0].at_ms, events[0].kind), (840, EventKind::Dialing), "the oldest that is left");
        assert_eq!(history.last(EventKind::Failed), Some("failure 99"), "the latest");
        assert!(!history.has(EventKind::Established), "what never was");
        for event in &events {
            let written = serde_json::to_value(event.kind).unwrap();
            assert_eq!(written, event.kind.name(), "one name everywhere");
        }
    }
}
