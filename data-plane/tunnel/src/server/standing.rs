//! What tunnels stand on: the identity policies in force, and for each tunnel the judgement that let it in, which is
//! made again whenever the policy changes or something expires.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_model::Name;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::HostLease;
use super::identity::{Denial, Grant, Policy, Proof, Wish};
use super::registered::FORBIDDEN;

/// The identity policies of the process, by name. **A name without a policy admits nobody.**
#[derive(Debug, Default)]
pub struct Policies {
    slots: Mutex<HashMap<Name, watch::Sender<Option<Arc<Policy>>>>>,
}

impl Policies {
    /// Puts a policy in force, or (`None`) takes it away. Tunnels that it let in are judged again.
    pub fn publish(&self, name: &Name, policy: Option<Arc<Policy>>) {
        let mut slots = self.slots.lock();
        if policy.is_none() && slots.get(name).is_some_and(|slot| slot.receiver_count() == 0) {
            slots.remove(name);
            return;
        }
        slots.entry(Arc::clone(name)).or_insert_with(|| watch::Sender::new(None)).send_replace(policy);
    }

    /// The policy of that name, now and later.
    pub(super) fn follow(&self, name: &Name) -> watch::Receiver<Option<Arc<Policy>>> {
        let mut slots = self.slots.lock();
        slots.entry(Arc::clone(name)).or_insert_with(|| watch::Sender::new(None)).subscribe()
    }
}

/// What one tunnel stands on.
#[derive(Debug)]
pub(super) struct Standing {
    policy: watch::Receiver<Option<Arc<Policy>>>,
    proof: Proof,
    cluster: Arc<str>,
    /// As claimed.
    host_name: Arc<str>,
    weight: u32,
    grant: Arc<Grant>,
    /// When the agent is to be told that it ends, if it is.
    notice: Option<SystemTime>,
    withdrawn: bool,
    /// When what it carries for clusters that it may serve no more is to end.
    lapses: Option<Instant>,
}

/// What becomes of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It expires soon: an agent that dials now can show something better.
    Expiring,
    /// Something else is granted: see [`Standing::change`].
    Changed(Changed),
    /// What it carries for clusters that it may serve no more has had its time.
    Lapsed,
}

/// What is granted now and was not before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changed {
    Granted {
        /// `None`: as before.
        weight: Option<u32>,
        /// Whether it may serve other clusters.
        clusters: bool,
    },
    /// It is allowed no more.
    Withdrawn(Denial),
}

impl Standing {
    /// The first judgement.
    pub(super) fn new(
        mut policy: watch::Receiver<Option<Arc<Policy>>>,
        proof: Proof,
        wish: Wish<'_>,
    ) -> Result<Self, Denial> {
        let grant = judge(policy.borrow_and_update().as_deref(), &proof, wish)?;
        let Wish { cluster, host_name, weight } = wish;
        let notice = notice(&grant, SystemTime::now());
        Ok(Self {
            policy,
            proof,
            cluster: cluster.into(),
            host_name: host_name.into(),
            weight,
            grant: Arc::new(grant),
            notice,
            withdrawn: false,
            lapses: None,
        })
    }

    /// Whether the last judgement was that it is allowed no more.
    pub(super) fn is_withdrawn(&self) -> bool {
        self.withdrawn
    }

    pub(super) fn grant(&self) -> &Arc<Grant> {
        &self.grant
    }

    /// Waits for what happens next.
    pub(super) async fn turn(&mut self) -> Turn {
        loop {
            let (event, wait) = next_event(self.grant.until, self.notice, SystemTime::now());
            tokio::select! {
                biased;
                Ok(()) = self.policy.changed() => {}
                () = passed(self.lapses) => {
                    self.lapses = None;
                    return Turn::Lapsed;
                }
                () = sleep(wait) => match event {
                    Event::None => continue,
                    Event::Expiring => {
                        self.notice = None;
                        return Turn::Expiring;
                    }
                    Event::Expired => {}
                },
            }
            if let Some(changed) = self.judge_again() {
                self.withdrawn = matches!(changed, Changed::Withdrawn(_));
                return Turn::Changed(changed);
            }
        }
    }

    /// Puts a change in force; why the tunnel is allowed no more, if it is not. A cluster that it may serve no more gets
    /// nothing new through it, and what it carries for that one has its time; others notice nothing.
    pub(super) fn change(&mut self, lease: &impl HostLease, changed: Changed) -> Option<Denial> {
        match changed {
            Changed::Withdrawn(denial) => Some(denial),
            Changed::Granted { weight, clusters } => {
                weight.into_iter().for_each(|weight| lease.set_weight(weight));
                if clusters && lease.set_may_serve(&self.grant.clusters) {
                    // Of several in a row the first one's time counts.
                    self.lapses.get_or_insert_with(|| Instant::now() + FORBIDDEN);
                }
                None
            }
        }
    }

    fn judge_again(&mut self) -> Option<Changed> {
        let wish = Wish { cluster: &self.cluster, host_name: &self.host_name, weight: self.weight };
        let judged = judge(self.policy.borrow_and_update().as_deref(), &self.proof, wish);
        let grant = match judged {
            Ok(grant) => grant,
            Err(denial) => return Some(Changed::Withdrawn(denial)),
        };
        // By these it is known already; a new connection gets what it is now.
        if grant.identity != self.grant.identity {
            return Some(Changed::Withdrawn(Denial::NoRule));
        }
        if grant.host_name != self.grant.host_name {
            return Some(Changed::Withdrawn(Denial::HostName));
        }
        let weight = (grant.weight != self.grant.weight).then_some(grant.weight);
        let clusters = grant.clusters != self.grant.clusters;
        if grant.until != self.grant.until {
            self.notice = notice(&grant, SystemTime::now());
        }
        self.grant = Arc::new(grant);
        (weight.is_some() || clusters).then_some(Changed::Granted { weight, clusters })
    }
}

async fn passed(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// What is due when nothing else happens, and how long until then.
fn next_event(until: Option<SystemTime>, notice: Option<SystemTime>, now: SystemTime) -> (Event, Duration) {
    let Some(until) = until else { return (Event::None, LOOK) };
    let left = |until: SystemTime| until.duration_since(now).unwrap_or(Duration::ZERO);
    let (event, wait) = match notice {
        Some(notice) => (Event::Expiring, left(notice)),
        None => (Event::Expired, left(until)),
    };
    // The clock on the wall may be set meanwhile.
    if wait > LOOK { (Event::None, LOOK) } else { (event, wait) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    None,
    Expiring,
    Expired,
}

fn judge(policy: Option<&Policy>, proof: &Proof, wish: Wish<'_>) -> Result<Grant, Denial> {
    policy.ok_or(Denial::PolicyAbsent)?.judge(proof, wish, SystemTime::now())
}

/// When an agent is to be told that the grant ends: early enough for another tunnel, and not over and over again by
/// tunnels of an agent that has nothing newer to show.
fn notice(grant: &Grant, now: SystemTime) -> Option<SystemTime> {
    let until = grant.until?;
    let early = (until.duration_since(now).ok()? / 5).min(NOTICE);
    (early >= LEAST_NOTICE).then(|| until.checked_sub(early)).flatten()
}

/// How long before something expires agents are asked to dial anew, at most and at least.
const NOTICE: Duration = Duration::from_secs(20);
const LEAST_NOTICE: Duration = Duration::from_millis(200);
/// How often the clock on the wall is looked at, which may be set, and goes on while the machine sleeps.
const LOOK: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    /// Whatever the clock on the wall does, a grant ends when that clock says so, a look later at most.
    #[test]
    fn a_clock_that_jumps_ends_a_grant_in_its_time_and_no_other() {
        const HOURS: u64 = 8 * 3600;
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let (now, until) = (1_000_000, 1_000_000 + 3600);
        let notice = Some(at(until - 20));
        for (what, notice, now, expected) in [
            ("long before", notice, now, (Event::None, LOOK)),
            ("shortly before", notice, until - 50, (Event::Expiring, Duration::from_secs(30))),
            ("told, shortly before", None, until - 10, (Event::Expired, Duration::from_secs(10))),
            ("forward, not told", notice, now + HOURS, (Event::Expiring, Duration::ZERO)),
            ("forward, told", None, now + HOURS, (Event::Expired, Duration::ZERO)),
            ("back", notice, now - HOURS, (Event::None, LOOK)),
            ("back, told", None, now - HOURS, (Event::None, LOOK)),
        ] {
            assert_eq!(next_event(Some(at(until)), notice, at(now)), expected, "{what}");
        }
        assert_eq!(next_event(None, None, at(now)), (Event::None, LOOK), "what does not expire");
        assert!(LOOK <= Duration::from_secs(60), "a jump counts a minute later at most");
    }
}
