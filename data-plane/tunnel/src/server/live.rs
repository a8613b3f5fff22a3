//! A registered connection as the process knows it, for those who ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use culvert_http::Meter;
use culvert_runtime::drain::Trigger;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use super::control::Notices;
use super::{Claim, ConnectionId};
use crate::history::{EventKind, History};
use crate::status::TunnelStatus;

/// What is remembered of a connection as long as it is registered.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) claim: Arc<Claim>,
    pub(super) since: Instant,
    /// Its graceful close must name it by id.
    pub(super) knows_id: bool,
    pub(super) drain: Arc<Trigger>,
    pub(super) weight: Arc<Weight>,
    /// The way to tell its agent something, where it is this connection.
    pub(super) notices: Option<Notices>,
    /// From the reply on.
    pub(super) meter: Option<Arc<Meter>>,
    pub(super) history: History,
    /// Requests and connections, once it has ended.
    pub(super) carried: u64,
    pub(super) created: SystemTime,
    pub(super) listener: Arc<str>,
}

/// A connection's weight, as claimed or as its agent said later.
#[derive(Debug)]
pub(super) struct Weight {
    value: AtomicU32,
    changed: Notify,
}

impl Weight {
    pub(super) fn new(value: u32) -> Arc<Self> {
        Arc::new(Self { value: AtomicU32::new(value), changed: Notify::new() })
    }

    pub(super) fn get(&self) -> u32 {
        self.value.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, value: u32) {
        self.value.store(value, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// Resolves when another one is set. For one waiter.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }
}

impl Live {
    pub(super) fn new(
        claim: &Arc<Claim>,
        knows_id: bool,
        drain: Arc<Trigger>,
        weight: Arc<Weight>,
        listener: &Arc<str>,
    ) -> Self {
        let since = Instant::now();
        let arrival = claim.peer.arrival.as_ref();
        let mut history = History::new(arrival.map_or(since, |arrival| arrival.at));
        if let Some((at, agreed)) = arrival.and_then(|arrival| arrival.tls.as_deref()) {
            history.note(*at, EventKind::Tls, Some(agreed.clone()));
        }
        history.note(since, EventKind::Handshake, Some(claim.dialect.name().to_owned()));
        Self {
            claim: Arc::clone(claim),
            since,
            knows_id,
            drain,
            weight,
            notices: None,
            meter: None,
            history,
            carried: 0,
            created: SystemTime::now(),
            listener: Arc::clone(listener),
        }
    }

    fn round_trip(&self) -> Option<Duration> {
        self.claim.http2.as_ref()?.round_trip.as_ref()?.last()
    }

    pub(super) fn status(&self, id: ConnectionId, now: Instant) -> TunnelStatus {
        TunnelStatus {
            id: id.to_string(),
            dialect: self.claim.dialect,
            protocol: self.claim.protocol.name(),
            round_trip_us: self.round_trip().and_then(|time| u64::try_from(time.as_micros()).ok()),
            cluster: self.claim.cluster.to_string(),
            further_clusters: Vec::new(),
            host_name: self.claim.host_name.to_string(),
            weight: self.weight.get(),
            peer: self.claim.peer.address,
            identity: match &self.claim.grant {
                Some(grant) => Some(grant.identity.to_string()),
                None => self.claim.peer.identity.as_deref().map(str::to_owned),
            },
            policy: self.claim.policy.as_deref().map(str::to_owned),
            draining: self.drain.watch().is_draining(),
            tenant: self.claim.reverse.as_ref().map(|reverse| reverse.tenant.to_string()),
            listener: self.listener.to_string(),
            age_seconds: now.duration_since(self.since).as_secs(),
            created_at: self.created,
            received_bytes: self.meter.as_ref().map_or(0, |meter| meter.read()),
            sent_bytes: self.meter.as_ref().map_or(0, |meter| meter.written()),
            requests: self.carried,
            active: 0,
            events: self.history.events(self.meter.as_ref().and_then(|meter| meter.first_read())),
        }
    }
}
