//! Which agents a cluster has, and which it had: what tells "offline" from "unknown", and whom it pays to wait for.
//!
//! **Only a registration makes an entry**: names that requests bring leave nothing behind.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// The agents of a cluster.
#[derive(Debug, Default)]
pub(super) struct Presence {
    agents: HashMap<Arc<str>, Seen, foldhash::fast::RandomState>,
    /// Those that are gone, in the order in which they went.
    gone: BTreeMap<u64, Departed>,
    departures: u64,
    /// Connections of all agents.
    live: usize,
    /// Until when some connection is expected back.
    expected: Option<Instant>,
    /// Until when agents may come that this process has never seen: they are with the one whose place it takes.
    arrivals: Option<Instant>,
}

#[derive(Debug)]
enum Seen {
    /// With so many connections.
    Here(usize),
    /// Its place among those that are gone.
    Gone(u64),
}

#[derive(Debug)]
struct Departed {
    agent: Arc<str>,
    since: Instant,
    /// Until when it is expected back.
    expected: Instant,
}

/// What a request may hope for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hope {
    /// A connection is there and will become free.
    Live,
    /// None is there; it should be back by then.
    Until(Instant),
    None,
}

/// Why a named agent cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absence {
    /// It never registered, as far as is remembered.
    Unknown,
    /// Its last connection ended so long ago.
    Offline(Duration),
}

impl Presence {
    /// Any agent, also one that was never here, is expected by then.
    pub(super) fn expect(&mut self, until: Instant) {
        self.arrivals = Some(until);
    }

    /// A connection is there, under each of these names.
    pub(super) fn join<'n>(&mut self, names: impl IntoIterator<Item = &'n Arc<str>>) {
        self.live += 1;
        names.into_iter().for_each(|name| self.enter(name));
    }

    fn enter(&mut self, agent: &Arc<str>) {
        match self.agents.get_mut(agent) {
            Some(Seen::Here(count)) => *count += 1,
            Some(seen) => {
                if let Seen::Gone(departure) = std::mem::replace(seen, Seen::Here(1)) {
                    self.gone.remove(&departure);
                }
            }
            None => drop(self.agents.insert(Arc::clone(agent), Seen::Here(1))),
        }
    }

    /// A connection is there no more; another one is expected within `window` (`None`: it is as if it had never been
    /// here).
    pub(super) fn leave<'n>(
        &mut self,
        names: impl IntoIterator<Item = &'n Arc<str>>,
        window: Option<Duration>,
        now: Instant,
    ) {
        self.live = self.live.saturating_sub(1);
        let expected = window.map(|window| now + window);
        self.expected = self.expected.max(expected);
        names.into_iter().for_each(|name| self.exit(name, now, expected));
    }

    fn exit(&mut self, agent: &Arc<str>, now: Instant, expected: Option<Instant>) {
        let Some(seen) = self.agents.get_mut(agent) else { return };
        match (seen, expected) {
            (Seen::Here(count), _) if *count > 1 => *count -= 1,
            (Seen::Here(_), None) => drop(self.agents.remove(agent)),
            (seen @ Seen::Here(_), Some(expected)) => {
                self.departures += 1;
                *seen = Seen::Gone(self.departures);
                self.gone.insert(self.departures, Departed { agent: Arc::clone(agent), since: now, expected });
                if self.gone.len() > MAX_GONE
                    && let Some((_, oldest)) = self.gone.pop_first()
                {
                    self.agents.remove(&oldest.agent);
                }
            }
            (Seen::Gone(_), _) => debug_assert!(false, "a connection that was not counted left"),
        }
    }

    /// For a connection of any agent, or of that one.
    pub(super) fn hope(&self, agent: Option<&str>, now: Instant) -> Hope {
        let (live, expected) = match agent {
            None => (self.live > 0, self.expected.max(self.arrivals)),
            // No agent is called that: agents without a name serve only requests that name none.
            Some("") => return Hope::None,
            Some(agent) => match self.agents.get(agent) {
                Some(Seen::Here(_)) => (true, None),
                Some(Seen::Gone(departure)) => (false, self.gone.get(departure).map(|departed| departed.expected)),
                None => (false, self.arrivals),
            },
        };
        match expected.filter(|expected| *expected > now) {
            _ if live => Hope::Live,
            Some(expected) => Hope::Until(expected),
            None => Hope::None,
        }
    }

    pub(super) fn absence(&self, agent: &str, now: Instant) -> Absence {
        match self.agents.get(agent).filter(|_| !agent.is_empty()) {
            Some(Seen::Gone(departure)) => {
                let departed = self.gone.get(departure);
                Absence::Offline(departed.map_or(Duration::ZERO, |departed| now.duration_since(departed.since)))
            }
            // It came back in this moment.
            Some(Seen::Here(_)) => Absence::Offline(Duration::ZERO),
            None => Absence::Unknown,
        }
    }

    /// Names that are held.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.agents.len()
    }
}

/// Agents that are remembered after they went: the oldest departure is forgotten first.
const MAX_GONE: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(3);

    #[tokio::test(start_paused = true)]
    async fn an_agent_is_here_then_expected_then_offline() {
        let mut presence = Presence::default();
        let now = Instant::now();
        let (edge, nameless): (Arc<str>, Arc<str>) = ("edge".into(), "".into());
        assert_eq!(presence.hope(None, now), Hope::None, "an empty cluster");
        presence.join([&edge]);
        presence.join([&edge]);
        presence.join([&nameless]);
        presence.leave([&edge], Some(WINDOW), now);
        assert_eq!(presence.hope(Some("edge"), now), Hope::Live, "one of two connections is left");
        presence.leave([&edge], Some(WINDOW), now);
        assert_eq!(presence.hope(Some("edge"), now), Hope::Until(now + WINDOW), "expected back");
        assert_eq!(presence.hope(None, now), Hope::Live, "another agent is there");
        presence.leave([&nameless], Some(WINDOW), now);
        assert_eq!(presence.hope(None, now), Hope::Until(now + WINDOW), "any that comes back will do");
        let later = now + WINDOW;
        assert_eq!(presence.hope(Some("edge"), later), Hope::None, "the window is over");
        assert_eq!(presence.hope(None, later), Hope::None, "the window is over");
        assert_eq!(presence.absence("edge", later), Absence::Offline(WINDOW), "it was here");
        for name in ["", "never"] {
            assert_eq!(presence.hope(Some(name), now), Hope::None, "{name:?}");
            assert_eq!(presence.absence(name, now), Absence::Unknown, "{name:?}");
        }
        presence.join([&edge]);
        assert_eq!(presence.hope(Some("edge"), later), Hope::Live, "it came back");
        assert!(presence.gone.len() == 1, "only the nameless one is gone: {:?}", presence.gone);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_with_the_process_before_is_expected_for_a_time() {
        let mut presence = Presence::default();
        let now = Instant::now();
        presence.expect(now + WINDOW);
        for agent in [None, Some("edge")] {
            assert_eq!(presence.hope(agent, now), Hope::Until(now + WINDOW), "{agent:?} may come");
            assert_eq!(presence.hope(agent, now + WINDOW), Hope::None, "{agent:?} has not come");
        }
        assert_eq!(presence.hope(Some(""), now), Hope::None, "no agent is called that");
        assert_eq!(presence.len(), 0, "asking leaves nothing behind");
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_whatever_comes_and_goes() {
        let mut presence = Presence::default();
        let now = Instant::now();
        for index in 0..3 * MAX_GONE {
            let agent: Arc<str> = format!("agent-{index}").into();
            presence.join([&agent]);
            presence.leave([&agent], Some(WINDOW), now);
        }
        assert_eq!((presence.len(), presence.gone.len()), (MAX_GONE, MAX_GONE), "names, departures");
        assert_eq!(presence.absence("agent-0", now), Absence::Unknown, "the oldest are forgotten");
        let last = format!("agent-{}", 3 * MAX_GONE - 1);
        assert_eq!(presence.absence(&last, now), Absence::Offline(Duration::ZERO), "the latest are not");
    }
}
