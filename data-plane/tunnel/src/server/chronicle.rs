//! What the lifecycle logs are told of one registered tunnel.

use std::borrow::Cow;
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;

use culvert_http::{Io, Meter};
use tokio::time::Instant;

use super::{Claim, CloseReason, Tunnels};
use crate::dialect::Dialect;
use crate::envoy::ping::{IdleError, Ping};
use crate::lifecycle::{self, Journal, Lifecycle};

/// One tunnel's story. There is none where nobody logs.
#[derive(Debug)]
pub(super) struct Chronicle {
    journal: Arc<dyn Journal>,
    claim: Arc<Claim>,
    initiator: Option<Box<Initiator>>,
    local: Option<SocketAddr>,
    began: Instant,
    meter: Arc<Meter>,
    state: Cell<State>,
}

/// What an initiator in Envoy's dialect says of its own end.
#[derive(Debug, Clone)]
pub(super) struct Initiator {
    pub(super) worker: String,
    pub(super) connection: String,
}

/// Envoy's `socket_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    HandedOff,
    InUse,
}

impl Chronicle {
    pub(super) fn begin(
        tunnels: &Tunnels,
        claim: &Arc<Claim>,
        initiator: Option<Box<Initiator>>,
        io: &mut Io,
    ) -> Option<Box<Self>> {
        let journal = Arc::clone(tunnels.journal()?);
        // Only Envoy's dialect has an idle phase of its own.
        let state = if claim.dialect == Dialect::Envoy { State::Idle } else { State::InUse };
        let chronicle = Self {
            journal,
            claim: Arc::clone(claim),
            initiator,
            local: io.local_addr(),
            began: Instant::now(),
            meter: io.meter(),
            state: Cell::new(state),
        };
        chronicle.tell("tunnel_setup", &[]);
        Some(Box::new(chronicle))
    }

    pub(super) fn pinged(&self, ping: Ping) {
        match ping {
            Ping::Sent => self.tell("idle_ping_sent", &[]),
            Ping::Answered => self.tell("idle_ping_ack", &[]),
            Ping::Missed(count) => self.tell("idle_ping_miss", &[("miss_count", &count.to_string())]),
            Ping::Silent(count) => self.tell("idle_ping_timeout", &[("miss_count", &count.to_string())]),
        }
    }

    /// The idle phase is over.
    pub(super) fn handed_off(&self) {
        self.state.set(State::HandedOff);
        self.tell("socket_handoff", &[("handoff_kind", "pool_to_upstream")]);
        self.state.set(State::InUse);
    }

    pub(super) fn closed(&self, reason: &CloseReason) {
        // Ours beside Envoy's word, which are few.
        self.tell("tunnel_closed", &[("close_reason", envoys(reason)), ("close_details", &reason.to_string())]);
    }

    fn tell(&self, event: &str, more: &[(&'static str, &str)]) {
        let claim = &self.claim;
        let worker = std::thread::current().name().unwrap_or_default().replace('-', "_");
        let tenant = claim.reverse.as_ref().map_or("", |reverse| &reverse.tenant);
        let state = match self.state.get() {
            State::Idle => "idle",
            State::HandedOff => "handed_off",
            State::InUse => "in_use",
        };
        let mut fields: Vec<(&'static str, Cow<'_, str>)> = vec![
            ("event", event.into()),
            ("node_id", (&*claim.host_name).into()),
            ("cluster_id", (&*claim.cluster).into()),
            ("tenant_id", tenant.into()),
            ("worker", worker.into()),
            ("socket_state", state.into()),
            // Ours.
            ("connection_id", claim.id.to_string().into()),
            ("dialect", claim.dialect.name().into()),
        ];
        if let Some(initiator) = &self.initiator {
            fields.push(("initiator_worker_id", initiator.worker.as_str().into()));
            fields.push(("initiator_connection_id", initiator.connection.as_str().into()));
        }
        fields.extend(more.iter().map(|(name, value)| (*name, Cow::Borrowed(*value))));
        fields.sort_unstable_by_key(|(name, _)| *name);
        self.journal.log(&Lifecycle {
            namespace: lifecycle::SERVER,
            fields,
            age: self.began.elapsed(),
            remote: claim.peer.address,
            local: self.local,
            received: self.meter.read(),
            sent: self.meter.written(),
            names: claim.peer.names.as_deref(),
        });
    }
}

/// Envoy's word for it.
fn envoys(reason: &CloseReason) -> &'static str {
    match reason {
        CloseReason::Idle(IdleError::Closed) => "idle_peer_close",
        CloseReason::Idle(IdleError::Silent(_) | IdleError::Missed(_)) => "idle_ping_timeout",
        CloseReason::Idle(IdleError::Io(_) | IdleError::Poisoned | IdleError::Unexpected | IdleError::Flood) => {
            "idle_read_error"
        }
        CloseReason::Closed => "remote_close",
        CloseReason::Lost => "http2_ping_timeout",
        CloseReason::Taken
        | CloseReason::Drained
        | CloseReason::ClusterRemoved
        | CloseReason::ProtocolFailure
        | CloseReason::TlsFailure
        | CloseReason::CutOff
        | CloseReason::Forbidden
        | CloseReason::Distrusted => "local_close",
    }
}
