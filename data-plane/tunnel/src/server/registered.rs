//! A registered connection, from the reply to its end.
//!
//! **Make before break**: an agent that can be told dials elsewhere, or anew, before this connection takes nothing more.
//! A process that ends keeps its tunnels for its last requests: they go when those are answered.

use std::pin::pin;
use std::time::Duration;

use culvert_http::Io;
use culvert_model::control::ServerNotice;
use culvert_model::tunnel::TunnelProtocol;
use culvert_runtime::drain::Watch;
use culvert_runtime::telemetry::Block;
use tokio::time::{Instant, sleep};

use super::control::Notices;
use super::standing::{Standing, Turn};
use super::tunnels::{Place, Tunnels};
use super::{Claim, CloseReason, HostLease};
use crate::history::EventKind;
use crate::keepalive;
use crate::metrics::ServerMetric;

/// What decides over a connection's life.
pub(super) struct Registered<'a, L> {
    pub(super) lease: &'a L,
    pub(super) claim: &'a Claim,
    pub(super) tunnels: &'a Tunnels,
    /// Its own: its agent closes it gracefully.
    pub(super) closed: &'a Watch,
    /// Of the chain that accepted it, its listener, or the process.
    pub(super) drain: &'a Watch,
    /// How its agent is told, if this is the connection for that.
    pub(super) notices: Option<Notices>,
    pub(super) metrics: &'a Block<ServerMetric>,
}

impl<L: HostLease> Registered<'_, L> {
    /// `standing`: on what it stands, where the listener has an identity policy.
    pub(super) async fn run(&self, io: Box<Io>, place: &Place, standing: &mut Option<Box<Standing>>) -> CloseReason {
        let mut lost = pin!(keepalive::lost(keepalive::ends(&io), self.claim.ping_interval, || self
            .metrics
            .inc(ServerMetric::StalledWrites)));
        // A plain connection that an exchange has borrowed whole is not closed by dropping what follows. (A second
        // descriptor, which others need not have.)
        let cord = match self.claim.protocol {
            TunnelProtocol::Http1 => keepalive::Cord::of(&io),
            TunnelProtocol::Http2 => keepalive::Cord::default(),
        };
        let mut attached = pin!(self.lease.attach(unboxed(io)));
        tokio::select! {
            biased;
            reason = &mut attached => return reason,
            () = &mut lost => {
                cord.pull();
                return CloseReason::Lost;
            }
            kind = self.last() => {
                // Its history says why already.
                if !place.is_distrusted() {
                    place.note(kind, None);
                }
                self.lease.drain();
            }
            () = self.weighed(place) => {}
            withdrawal = self.withdrawn(standing) => {
                if withdrawal == Withdrawal::AtOnce {
                    cord.pull();
                    return CloseReason::Forbidden;
                }
                place.note(EventKind::Draining, Some("allowed no more".to_owned()));
                self.lease.drain();
            }
        }
        tokio::select! {
            biased;
            reason = attached => return reason,
            () = Box::pin(self.forbidden(standing)) => {
                cord.pull();
                return CloseReason::Forbidden;
            }
            () = Box::pin(self.closed.expired()) => {}
            () = lost => {
                cord.pull();
                return CloseReason::Lost;
            }
            () = Box::pin(self.drain.expired()) => {}
        }
        tracing::info!(id = %self.claim.id, "a tunnel was cut off at the drain's deadline");
        cord.pull();
        CloseReason::CutOff
    }

    /// Returns when nothing new may be sent: why.
    async fn last(&self) -> EventKind {
        tokio::select! {
            biased;
            () = self.closed.draining() => return EventKind::GracefulClose,
            () = self.drain.draining() => {}
        }
        tokio::select! {
            biased;
            () = self.closed.draining() => EventKind::GracefulClose,
            () = Box::pin(self.replaced()) => EventKind::Draining,
        }
    }

    /// Tells the agent, and gives it its time.
    async fn replaced(&self) {
        let until = self.drain.deadline();
        let within = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
        if self.tunnels.is_ending() {
            self.tell(ServerNotice::Drain { within });
            tokio::select! {
                () = self.tunnels.finishing() => {}
                () = self.leaves() => {}
            }
            return;
        }
        if !self.tunnels.can_tell(self.claim) {
            return;
        }
        // Not all agents of the listener in one moment.
        let delay = self.tunnels.pace();
        if self.drain.is_inherited() {
            // The listener accepts no more: another connection would be refused.
            sleep(delay).await;
            self.tell(ServerNotice::Drain { within });
            return sleep(HANDOVER).await;
        }
        self.tell(ServerNotice::Reconnect { delay, target: None });
        sleep(delay + HANDOVER).await;
    }

    /// Returns when this is the connection of an agent that cannot be told anything which is to go next. One that a long
    /// request holds would go to nobody's use; the last but one is there for requests that still come to this process.
    async fn leaves(&self) {
        if self.tunnels.can_tell(self.claim) {
            return std::future::pending().await;
        }
        let late = Instant::now() + STRAGGLERS;
        loop {
            let least = if Instant::now() < late { 2 } else { 1 };
            if self.lease.is_idle() && self.tunnels.may_leave(self.claim, least) {
                return;
            }
            sleep(NEXT).await;
        }
    }

    /// Returns when its identity policy allows it no more.
    async fn withdrawn(&self, standing: &mut Option<Box<Standing>>) -> Withdrawal {
        match standing {
            // Boxed, for most have none.
            Some(standing) => Box::pin(self.follow(standing)).await,
            None => std::future::pending().await,
        }
    }

    async fn follow(&self, standing: &mut Standing) -> Withdrawal {
        loop {
            match standing.turn().await {
                Turn::Expiring => self.tell(ServerNotice::Reconnect { delay: Duration::ZERO, target: None }),
                Turn::Changed(changed) => {
                    let Some(denial) = standing.change(self.lease, changed) else { continue };
                    self.metrics.inc(ServerMetric::Withdrawn);
                    let identity = self.claim.grant.as_ref().map(|grant| grant.identity.to_string());
                    tracing::info!(id = %self.claim.id, identity, reason = %denial, "a tunnel is allowed no more");
                    return Withdrawal::InTime;
                }
                Turn::Lapsed => {
                    if self.lease.end_lapsed() {
                        return Withdrawal::AtOnce;
                    }
                }
            }
        }
    }

    /// A tunnel that drains and is allowed no more is cut off after a moment.
    async fn forbidden(&self, standing: &mut Option<Box<Standing>>) {
        let known = standing.as_ref().is_some_and(|standing| standing.is_withdrawn());
        if known || self.withdrawn(standing).await == Withdrawal::InTime {
            sleep(FORBIDDEN).await;
        }
    }

    fn tell(&self, notice: ServerNotice) {
        if let Some(notices) = &self.notices {
            notices.send(notice);
        }
    }

    /// Never returns.
    async fn weighed(&self, place: &Place) {
        loop {
            place.weight().changed().await;
            let weight = place.weight().get();
            place.note(EventKind::Weight, Some(weight.to_string()));
            self.lease.set_weight(weight);
        }
    }
}

/// How a tunnel that is allowed no more ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Withdrawal {
    /// What is in flight has its time.
    InTime,
    /// It has had it.
    AtOnce,
}

/// What the box holds; its memory is given back now, where moving out of a variable keeps it for the variable's life.
#[expect(clippy::boxed_local, reason = "the box is what it takes")]
pub(super) fn unboxed<T>(boxed: Box<T>) -> T {
    *boxed
}

/// Between the connections of an agent that are closed one after the other.
const NEXT: Duration = Duration::from_millis(250);
/// Requests that were on their way to a process when it stopped accepting have come by then.
const STRAGGLERS: Duration = Duration::from_secs(1);
/// For what is in flight on a tunnel that is allowed no more.
pub(super) const FORBIDDEN: Duration = Duration::from_secs(5);
/// For an agent that was told to have dialled anew and closed the old connection.
pub(super) const HANDOVER: Duration = Duration::from_secs(5);
