//! Places among the connections of a process, given up when dropped.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;

use culvert_http::Meter;
use tokio::time::Instant;

use super::admission::{AgentKey, source};
use super::{Tunnels, canonical};
use crate::history::EventKind;
use crate::server::live::Weight;
use crate::server::{CloseReason, ConnectionId, Origin, duplicates};
use crate::status::EndedTunnel;

/// A place among the live connections; dropping it gives it up.
#[derive(Debug)]
#[must_use = "the connection is live as long as this value"]
pub(in crate::server) struct Place {
    pub(super) tunnels: Arc<Tunnels>,
    pub(super) id: ConnectionId,
    pub(super) weight: Arc<Weight>,
    pub(super) superseded: u64,
}

impl Place {
    /// Connections of earlier agents with its identity that are drained for it.
    pub(in crate::server) fn superseded(&self) -> u64 {
        self.superseded
    }

    /// Changes with [`Tunnels::reweigh`].
    pub(in crate::server) fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Remembers what has happened to the connection.
    pub(in crate::server) fn note(&self, kind: EventKind, detail: Option<String>) {
        if let Some(live) = self.tunnels.inner.lock().live.get_mut(&self.id) {
            live.history.note(Instant::now(), kind, detail);
        }
        if matches!(kind, EventKind::Draining | EventKind::GracefulClose) {
            self.tunnels.changed();
        }
    }

    /// Remembers why the connection has ended, and how many requests and connections it has carried.
    pub(in crate::server) fn note_end(&self, reason: &CloseReason, carried: u64) {
        if let Some(live) = self.tunnels.inner.lock().live.get_mut(&self.id) {
            live.carried = carried;
            live.history.note(Instant::now(), EventKind::Ended, Some(reason.to_string()));
        }
    }

    /// Remembers the first of its kind.
    pub(in crate::server) fn note_once(&self, kind: EventKind, detail: impl FnOnce() -> String) {
        if let Some(live) = self.tunnels.inner.lock().live.get_mut(&self.id)
            && !live.history.has(kind)
        {
            live.history.note(Instant::now(), kind, Some(detail()));
        }
    }

    /// Whether its agent's certificate is trusted no more.
    pub(in crate::server) fn is_distrusted(&self) -> bool {
        let inner = self.tunnels.inner.lock();
        inner.live.get(&self.id).is_some_and(|live| live.history.has(EventKind::Distrusted))
    }

    /// What counts the connection's bytes.
    pub(in crate::server) fn metered(&self, meter: Arc<Meter>) {
        if let Some(live) = self.tunnels.inner.lock().live.get_mut(&self.id) {
            live.meter = Some(meter);
        }
    }
}

/// A place among the aside connections of an origin.
#[derive(Debug)]
#[must_use = "the aside connection counts as long as this value"]
pub(in crate::server) struct AsidePlace {
    pub(super) tunnels: Arc<Tunnels>,
    pub(super) origin: Origin,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.tunnels.inner.lock();
        let Some(live) = inner.live.remove(&self.id) else { return };
        let now = Instant::now();
        if inner.ended.len() >= MOST_ENDED {
            inner.ended.pop_front();
        }
        let reason = live.history.last(EventKind::Ended).map(str::to_owned);
        inner.ended.push_back((now, EndedTunnel { tunnel: live.status(self.id, now), reason, ended_seconds_ago: 0 }));
        self.tunnels.changed();
        if live.claim.http2.is_some() {
            take_one(&mut inner.told, Box::new(AgentKey::of(&live.claim)));
        }
        take_one(&mut inner.agents, Box::new(AgentKey::of(&live.claim)));
        take_one(&mut inner.origins, live.claim.peer.origin());
        if let Some(grant) = &live.claim.grant {
            if let Some(source) = source(&live.claim) {
                take_one(&mut inner.sources, source);
            }
            if let Some(instance) = duplicates::instance(&live.claim)
                && let Entry::Occupied(mut holder) = inner.holders.entry(grant.identity.clone())
                && holder.get_mut().leave(instance)
            {
                holder.remove();
            }
        }
        if let Some(address) = live.claim.peer.address.map(canonical)
            // A later connection may have come from the same address already.
            && inner.by_address.get(&address) == Some(&self.id)
        {
            inner.by_address.remove(&address);
        }
    }
}

impl Drop for AsidePlace {
    fn drop(&mut self) {
        take_one(&mut self.tunnels.inner.lock().asides, self.origin.clone());
    }
}

fn take_one<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: K) {
    if let Entry::Occupied(mut count) = counts.entry(key) {
        *count.get_mut() = count.get().saturating_sub(1);
        if *count.get() == 0 {
            count.remove();
        }
    }
}

/// Connections that ended, and are remembered.
const MOST_ENDED: usize = 256;
