//! A tunnel's life, from the reply to its end.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use culvert_http::Io;
use culvert_runtime::drain::{Trigger, Watch};

use super::acceptor::{Accepted, Ended, shown};
use super::chronicle::{Chronicle, Initiator};
use super::control::Notices;
use super::gauge::Gauge;
use super::registered::{Registered, unboxed};
use super::standing::Standing;
use super::tunnels::Place;
use super::{Claim, CloseReason, HostLease, HostRegistry, acknowledged, control};
use crate::envoy::ping::Pings;
use crate::history::EventKind;
use crate::http2::recorded;
use crate::keepalive;
use crate::metrics::ServerMetric;

/// A registered connection whose reply was written.
pub(super) struct Joined<L> {
    pub(super) place: Place,
    pub(super) lease: L,
    pub(super) claim: Arc<Claim>,
    /// Drains when its agent closes it gracefully.
    pub(super) closed: Watch,
    /// On what it stands, where the listener has an identity policy.
    pub(super) standing: Option<Box<Standing>>,
    pub(super) first: First,
    /// Only where lifecycles are logged.
    pub(super) initiator: Option<Box<Initiator>>,
    pub(super) chronicle: Option<Box<Chronicle>>,
}

/// When its first byte may follow the reply.
#[derive(Debug)]
pub(super) enum First {
    /// The agent takes both at once.
    AtOnce,
    /// When the agent has read the reply.
    WhenRead,
    /// Then, and when somebody wants it: Envoy's dialect.
    /// With what drains it.
    WhenWanted(Pings, Arc<Trigger>),
}

impl<R: HostRegistry> Accepted<'_, R> {
    /// A tunnel's life, from the reply on. What it knows of the tunnel stays in the box: a future has room for everything
    /// that it ever holds.
    pub(super) async fn attend(&self, mut joined: Box<Joined<R::Lease>>, mut io: Box<Io>) -> Ended {
        self.tell_begin(&mut joined, &mut io);
        let _counted = Gauge::enter(self.metrics, ServerMetric::Active);
        if !matches!(joined.first, First::AtOnce) {
            Box::pin(acknowledged::reply_read(&io)).await;
        }
        let Joined { place, lease, claim, closed, standing, first, chronicle, .. } = &mut *joined;
        // Boxed by kind: a plain tunnel's task does not carry the state of one that does more.
        let reason = match first {
            First::AtOnce | First::WhenRead if claim.carries_ours() => {
                Box::pin(self.attend_streams(claim, lease, place, closed, standing, io)).await
            }
            First::AtOnce | First::WhenRead => {
                let registered = self.registered(claim, lease, closed, None);
                Box::pin(registered.run(io, place, standing)).await
            }
            First::WhenWanted(pings, trigger) => {
                let (pings, chronicle) = (*pings, chronicle.as_deref());
                Box::pin(async {
                    tokio::select! {
                        biased;
                        reason = self.host(lease, unboxed(io), (closed, place), pings, chronicle) => reason,
                        () = self.follow_envoy((standing, claim), lease, trigger) => CloseReason::Forbidden,
                    }
                })
                .await
            }
        };
        let reason = if joined.place.is_distrusted() {
            self.metrics.inc(ServerMetric::Withdrawn);
            CloseReason::Distrusted
        } else {
            reason
        };
        self.tell_end(&joined, &reason);
        Ended::Tunnel
    }

    fn tell_begin(&self, joined: &mut Joined<R::Lease>, io: &mut Io) {
        let claim = &joined.claim;
        joined.place.note(EventKind::Established, None);
        joined.place.metered(io.meter());
        self.metrics.inc(ServerMetric::Accepted);
        let tenant = claim.reverse.as_ref().map(|reverse| shown(&reverse.tenant));
        // The events have the names that Envoy's lifecycle logs give them.
        tracing::info!(
            event = "tunnel_setup", id = %claim.id, dialect = claim.dialect.name(), tenant, cluster = shown(&claim.cluster), host_name = shown(&claim.host_name),
            origin = %claim.peer.origin(), weight = claim.weight, "tunnel registered"
        );
        joined.chronicle = Chronicle::begin(&self.acceptor.tunnels, claim, joined.initiator.take(), io);
    }

    fn tell_end(&self, joined: &Joined<R::Lease>, reason: &CloseReason) {
        let claim = &joined.claim;
        if matches!(reason, CloseReason::TlsFailure) {
            self.metrics.inc(ServerMetric::TlsFailures);
        }
        if let Some(chronicle) = &joined.chronicle {
            chronicle.closed(reason);
        }
        joined.place.note_end(reason, joined.lease.carried());
        tracing::info!(
            event = "tunnel_closed", id = %claim.id, cluster = shown(&claim.cluster),
            host_name = shown(&claim.host_name), close_reason = %reason, "tunnel ended"
        );
    }

    fn registered<'c>(
        &'c self,
        claim: &'c Claim,
        lease: &'c R::Lease,
        closed: &'c Watch,
        notices: Option<Notices>,
    ) -> Registered<'c, R::Lease> {
        Registered {
            lease,
            claim,
            tunnels: &self.acceptor.tunnels,
            metrics: self.metrics,
            closed,
            drain: self.drain,
            notices,
        }
    }

    /// Runs a connection that carries HTTP/2 as our two ends speak it, with the control service.
    async fn attend_streams(
        &self,
        claim: &Claim,
        lease: &R::Lease,
        place: &Place,
        closed: &Watch,
        standing: &mut Option<Box<Standing>>,
        io: Box<Io>,
    ) -> CloseReason {
        let Some(round_trip) = claim.http2.as_ref().and_then(|options| options.round_trip.as_ref()) else {
            debug_assert!(false, "what carries ours has a round trip");
            return CloseReason::ProtocolFailure;
        };
        let _counted = Gauge::enter(self.metrics, ServerMetric::ActiveHttp2);
        let notices = Notices::default();
        place.told_by(notices.clone());
        let registered = self.registered(claim, lease, closed, Some(notices.clone()));
        // Pinned here and passed by reference: each function that takes a future by value has its size once more.
        let control = pin!(control::run(lease, claim, &self.acceptor.tunnels, self.metrics, &notices));
        let running = pin!(registered.run(io, place, standing));
        let running = pin!(control::beside(control, running));
        let measured = |time: Duration| place.note_once(EventKind::FirstPing, || format!("{time:?}"));
        recorded(round_trip, self.metrics, || ServerMetric::RoundTripMs, measured, running).await
    }
}

/// Runs a registered connection that carries HTTP/2 to its end: dropping it closes it. It drains from when `leaving` returns.
pub(super) async fn run<L: HostLease>(
    lease: &L,
    io: Io,
    leaving: impl Future<Output = ()>,
    drain: &Watch,
    (ping_interval, stalled): (Duration, impl Fn()),
) -> CloseReason {
    let mut lost = pin!(keepalive::lost(keepalive::ends(&io), ping_interval, stalled));
    let mut attached = pin!(lease.attach(io));
    tokio::select! {
        biased;
        reason = &mut attached => return reason,
        () = &mut lost => return CloseReason::Lost,
        () = leaving => lease.drain(),
    }
    tokio::select! {
        biased;
        reason = &mut attached => reason,
        () = lost => CloseReason::Lost,
        () = Box::pin(drain.expired()) => {
            tracing::info!("a tunnel was cut off at the drain's deadline");
            CloseReason::CutOff
        }
    }
}
