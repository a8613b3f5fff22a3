//! Asks agents to dial anew, and not all of them in one moment.

use std::time::Duration;

use culvert_model::control::ServerNotice;

use super::{AgentKey, Place, Tunnels};
use crate::server::Claim;
use crate::server::control::Notices;

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
