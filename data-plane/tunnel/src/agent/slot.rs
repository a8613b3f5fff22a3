//! One of the `connection_num` connections to a server, as it is shown.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_http::{Meter, RoundTrip};
use tokio::time::Instant;

use crate::dialect::Dialect;
use crate::history::{EventKind, History};
use crate::status::{ConnectionState, ConnectionStatus};

#[derive(Debug)]
pub(super) struct Slot {
    worker: usize,
    state: ConnectionState,
    since: Instant,
    /// As long as it stands.
    tunnel: Option<Tunnel>,
    last_error: Option<String>,
    last_end: Option<String>,
    attempts: u64,
    history: History,
}

/// What stands.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) local: SocketAddr,
    /// The server's id for it, if it gave one.
    pub(super) id: Option<String>,
    pub(super) dialect: Dialect,
    /// `http1` or `http2`; `None`: the first request will tell.
    pub(super) protocol: Option<&'static str>,
    /// Where both ends ask for it.
    pub(super) round_trip: Option<RoundTrip>,
    pub(super) meter: Arc<Meter>,
    /// It has answered a PING.
    pub(super) pinged: bool,
}

impl Slot {
    /// To [`Slot::enter`] its first state.
    pub(super) fn new(worker: usize, state: ConnectionState) -> Self {
        let since = Instant::now();
        Self {
            worker,
            state,
            since,
            tunnel: None,
            last_error: None,
            last_end: None,
            attempts: 0,
            history: History::new(since),
        }
    }

    pub(super) fn tunnel(&self) -> Option<&Tunnel> {
        self.tunnel.as_ref()
    }

    /// `since` moves only when the state does.
    pub(super) fn enter(&mut self, state: ConnectionState) {
        if self.state != state || self.attempts == 0 {
            self.state = state;
            self.since = Instant::now();
            if let Some(kind) = event_of(state) {
                self.history.note(self.since, kind, None);
            }
        }
        self.attempts += u64::from(state == ConnectionState::Dialing);
        if !matches!(state, ConnectionState::Established | ConnectionState::Draining) {
            self.take_tunnel(None);
        }
    }

    /// An attempt has succeeded.
    pub(super) fn stands(&mut self, tunnel: Tunnel) {
        self.last_error = None;
        self.take_tunnel(Some(tunnel));
    }

    fn take_tunnel(&mut self, next: Option<Tunnel>) {
        if let Some(first) = std::mem::replace(&mut self.tunnel, next).and_then(|before| before.meter.first_read()) {
            self.history.note_first_byte(first);
        }
    }

    /// Why an attempt failed, or a tunnel ended.
    pub(super) fn failed(&mut self, kind: EventKind, error: String) {
        self.history.note(Instant::now(), kind, Some(error.clone()));
        if kind == EventKind::Ended {
            self.last_end = Some(error.clone());
        }
        self.last_error = Some(error);
    }

    /// How far an attempt has come.
    pub(super) fn step(&mut self, kind: EventKind, detail: String) {
        self.history.note(Instant::now(), kind, Some(detail));
    }

    /// The latest PING was answered after that time; the first one is told.
    pub(super) fn pinged(&mut self, time: Duration) {
        if let Some(tunnel) = self.tunnel.as_mut().filter(|tunnel| !tunnel.pinged) {
            tunnel.pinged = true;
            self.history.note(Instant::now(), EventKind::FirstPing, Some(format!("{time:?}")));
        }
    }

    pub(super) fn status(&self, index: u32, now: Instant) -> ConnectionStatus {
        let tunnel = self.tunnel.as_ref();
        let round_trip = tunnel.and_then(|tunnel| tunnel.round_trip.as_ref()?.last());
        ConnectionStatus {
            index,
            worker: self.worker,
            state: self.state,
            since_seconds: now.duration_since(self.since).as_secs(),
            local: tunnel.map(|tunnel| tunnel.local),
            id: tunnel.and_then(|tunnel| tunnel.id.clone()),
            dialect: tunnel.map(|tunnel| tunnel.dialect),
            protocol: tunnel.and_then(|tunnel| tunnel.protocol),
            round_trip_us: round_trip.and_then(|time| u64::try_from(time.as_micros()).ok()),
            last_error: self.last_error.clone(),
            last_end: self.last_end.clone(),
            received_bytes: tunnel.map_or(0, |tunnel| tunnel.meter.read()),
            sent_bytes: tunnel.map_or(0, |tunnel| tunnel.meter.written()),
            events: self.history.events(tunnel.and_then(|tunnel| tunnel.meter.first_read())),
            reconnects: self.attempts.saturating_sub(1),
        }
    }
}

/// What a change of state is in the history. (Failures and ends are noted with their reasons.)
fn event_of(state: ConnectionState) -> Option<EventKind> {
    match state {
        ConnectionState::WaitingForListener => Some(EventKind::Waiting),
        ConnectionState::Dialing => Some(EventKind::Dialing),
        ConnectionState::Established => Some(EventKind::Established),
        ConnectionState::BackingOff => Some(EventKind::BackingOff),
        ConnectionState::Draining => Some(EventKind::Draining),
        ConnectionState::GivenUp => Some(EventKind::GivenUp),
        ConnectionState::WaitingForSecret | ConnectionState::Closed => None,
    }
}
