//! A registered connection, from the reply to its end.
//!
//! **Make before break**: an agent that can be told dials elsewhere, or anew, before this connection takes nothing more.
//! A process that ends keeps its tunnels for its last requests: they go when those are answered.

use std::pin::pin;
use std::time::Duration;

use culvert_http::Io;
use culvert_model::control::ServerNotice;
use culvert_runtime::drain::Watch;
use culvert_runtime::telemetry::Block;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::control::Notices;
use super::standing::{Standing, Turn};
use super::tunnels::Tunnels;
use super::{Claim, HostLease};
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
    pub(super) async fn run(&self, io: Io, weight: watch::Receiver<u32>, mut standing: Option<Standing>) {
        let mut lost = pin!(keepalive::lost(keepalive::ends(&io), self.claim.ping_interval));
        // A connection that an exchange has borrowed whole is not closed by dropping what follows.
        let cord = keepalive::Cord::of(&io);
        let mut attached = pin!(self.lease.attach(io));
        tokio::select! {
            biased;
            () = &mut attached => return,
            () = &mut lost => return cord.pull(),
            () = self.last() => self.lease.drain(),
            () = self.weighed(weight) => {}
            () = self.withdrawn(&mut standing) => self.lease.drain(),
        }
        tokio::select! {
            biased;
            () = attached => {}
            () = lost => cord.pull(),
            () = self.forbidden(&mut standing) => cord.pull(),
            () = self.closed.expired() => cord.pull(),
            () = self.drain.expired() => {
                tracing::info!(id = %self.claim.id, "a tunnel was cut off at the drain's deadline");
                cord.pull();
            }
        }
    }

    /// Returns when nothing new may be sent.
    async fn last(&self) {
        tokio::select! {
            biased;
            () = self.closed.draining() => return,
            () = self.drain.draining() => {}
        }
        tokio::select! {
            biased;
            () = self.closed.draining() => {}
            () = self.replaced() => {}
        }
    }

    /// Tells the agent, and gives it its time.
    async fn replaced(&self) {
        if self.tunnels.is_ending() {
            let until = self.drain.deadline();
            let within = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
            self.tell(ServerNotice::Drain { within });
            return self.tunnels.finishing().await;
        }
        if !self.tunnels.can_tell(self.claim) {
            return;
        }
        // Not all agents of the listener in one moment.
        let delay = self.tunnels.pace();
        self.tell(ServerNotice::Reconnect { delay, target: None });
        sleep(delay + HANDOVER).await;
    }

    /// Returns when its identity policy allows it no more.
    async fn withdrawn(&self, standing: &mut Option<Standing>) {
        let Some(standing) = standing.as_mut() else { return std::future::pending().await };
        loop {
            match standing.turn().await {
                Turn::Expiring => self.tell(ServerNotice::Reconnect { delay: Duration::ZERO, target: None }),
                Turn::Weight(weight) => self.lease.set_weight(weight),
                Turn::Withdrawn(denial) => {
                    self.metrics.inc(ServerMetric::Withdrawn);
                    let identity = self.claim.grant.as_ref().map(|grant| grant.identity.to_string());
                    tracing::info!(id = %self.claim.id, identity, reason = %denial, "a tunnel is allowed no more");
                    return;
                }
            }
        }
    }

    /// A tunnel that drains and is allowed no more is cut off after a moment.
    async fn forbidden(&self, standing: &mut Option<Standing>) {
        if !standing.as_ref().is_some_and(Standing::is_withdrawn) {
            self.withdrawn(standing).await;
        }
        sleep(FORBIDDEN).await;
    }

    fn tell(&self, notice: ServerNotice) {
        if let Some(notices) = &self.notices {
            notices.send(notice);
        }
    }

    /// Never returns.
    async fn weighed(&self, mut weight: watch::Receiver<u32>) {
        while weight.changed().await.is_ok() {
            let weight = *weight.borrow_and_update();
            self.lease.set_weight(weight);
        }
        std::future::pending().await
    }
}

/// For what is in flight on a tunnel that is allowed no more.
pub(super) const FORBIDDEN: Duration = Duration::from_secs(5);
/// For an agent that was told to have dialled anew and closed the old connection.
const HANDOVER: Duration = Duration::from_secs(5);
