//! A registered connection, from the reply to its end.
//!
//! **Make before break**: an agent that can be told dials elsewhere, or anew, before this connection takes nothing more.
//! A process that ends keeps its tunnels for its last requests: they go when those are answered.

use std::pin::pin;
use std::time::Duration;

use culvert_http::Io;
use culvert_model::control::ServerNotice;
use culvert_runtime::drain::Watch;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::control::Notices;
use super::tunnels::Tunnels;
use super::{Claim, HostLease};
use crate::keepalive;

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
}

impl<L: HostLease> Registered<'_, L> {
    pub(super) async fn run(&self, io: Io, weight: watch::Receiver<u32>) {
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
        }
        tokio::select! {
            biased;
            () = attached => {}
            () = lost => cord.pull(),
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

/// For an agent that was told to have dialled anew and closed the old connection.
const HANDOVER: Duration = Duration::from_secs(5);
