//! Asks agents to dial anew, and not all of them in one moment.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::control::ServerNotice;
use rustls_pki_types::CertificateDer;
use tokio::time::Instant;

use super::{AgentKey, Live, Place, Tunnels};
use crate::history::EventKind;
use crate::server::control::Notices;
use crate::server::registered::FORBIDDEN;
use crate::server::{Claim, ConnectionId};

impl Place {
    /// How the connection's agent is told something, if by this connection.
    pub(in crate::server) fn told_by(&self, notices: Notices) {
        if let Some(live) = self.tunnels.inner.lock().live.get_mut(&self.id) {
            live.notices = Some(notices);
        }
    }
}

impl Tunnels {
    /// A delay for one of many agents that are to dial anew: at random, so that no more than [`PACE`] do in a second.
    pub(in crate::server) fn pace(&self) -> Duration {
        delay(self.inner.lock().agents.len())
    }

    /// The tunnel listeners with that `stat_prefix` present another certificate, or trust others, from now on: agents
    /// that can be told replace their connections, each at a time of its own. How many connections were asked for
    /// that. Those whose agent can be told nothing keep the session that they have.
    pub fn renewed(&self, listener: &str) -> usize {
        let inner = self.inner.lock();
        let agents = inner.agents.len();
        let told =
            inner.live.values().filter(|live| *live.listener == *listener).filter_map(|live| live.notices.as_ref());
        told.map(|notices| notices.send(ServerNotice::Reconnect { delay: delay(agents), target: None })).count()
    }

    /// Judges again the certificates by which agents opened their tunnels to the listeners with that `stat_prefix`. Who is
    /// trusted no more gets nothing new, and what is in flight has its time. How many that are.
    pub fn judge_certificates<E: fmt::Display>(
        &self,
        listener: &str,
        judge: impl Fn(&[CertificateDer<'static>]) -> Result<(), E>,
    ) -> usize {
        let shown: Vec<(ConnectionId, Arc<[CertificateDer<'static>]>)> = {
            let inner = self.inner.lock();
            let of_listener = inner.live.iter().filter(|(_, live)| *live.listener == *listener);
            let chain = |live: &Live| live.claim.peer.names.as_ref().map(|names| Arc::clone(&names.chain));
            of_listener.filter_map(|(id, live)| Some((*id, chain(live).filter(|chain| !chain.is_empty())?))).collect()
        };
        // Signatures are verified with nobody waiting at the lock.
        let judged = shown.into_iter().filter_map(|(id, chain)| Some((id, judge(&chain).err()?)));
        judged.filter(|(id, error)| self.distrust(*id, error)).count()
    }

    fn distrust(&self, id: ConnectionId, error: &impl fmt::Display) -> bool {
        let mut inner = self.inner.lock();
        let Some(live) = inner.live.get_mut(&id) else { return false };
        let identity = live.claim.peer.identity.as_deref();
        tracing::info!(%id, identity, reason = %error, "a tunnel's certificate is trusted no more");
        live.history.note(Instant::now(), EventKind::Distrusted, Some(error.to_string()));
        live.drain.start(FORBIDDEN);
        drop(inner);
        self.changed();
        true
    }

    /// Whether this connection may leave as the process ends, where its agent cannot be told: **one at a time, and `least`
    /// stay**. The agent dials again when one ends, and meets whoever listens then; the others serve meanwhile.
    pub(in crate::server) fn may_leave(&self, claim: &Claim, least: usize) -> bool {
        let mut inner = self.inner.lock();
        let key = Box::new(AgentKey::of(claim));
        let others = inner.agents.get(&key).is_some_and(|count| *count > least);
        let leaves = inner.leaving.get(&key).is_some_and(|id| inner.live.contains_key(id));
        let may = others && !leaves;
        if may {
            inner.leaving.insert(key, claim.id);
        }
        may
    }
}

fn delay(agents: usize) -> Duration {
    let agents = u32::try_from(agents).unwrap_or(u32::MAX);
    (Duration::from_secs(1) / PACE * agents.saturating_sub(1)).mul_f64(fastrand::f64())
}

/// Agents that are asked to dial anew in a second.
const PACE: u32 = 500;
