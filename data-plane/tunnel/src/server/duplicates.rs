//! Two agents with one identity, where there may be one.

use culvert_model::tunnel::policy::DuplicateAgents;

use super::Claim;
use crate::wire::Instance;

/// The agent that has an identity.
#[derive(Debug)]
pub(super) struct Holder {
    instance: Instance,
    connections: usize,
}

/// What a newcomer is to a holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The same agent, or one that may serve beside it.
    Joins,
    Supersedes,
    Refused,
}

/// By which the claim's agent is told from others with its identity; `None`: nobody asks. A stranger says nothing: then
/// each connection is an agent, and a later one the greater.
pub(super) fn instance(claim: &Claim) -> Option<Instance> {
    let grant = claim.grant.as_ref()?;
    (grant.duplicates != DuplicateAgents::Replicas).then_some(claim.instance).flatten()
}

impl Holder {
    pub(super) fn new(instance: Instance) -> Self {
        Self { instance, connections: 0 }
    }

    /// Those of the agent that holds the identity.
    pub(super) fn connections(&self) -> usize {
        self.connections
    }

    /// **Fenced**: who was replaced does not replace its successor, however often it dials.
    pub(super) fn judge(&self, newcomer: Instance, duplicates: DuplicateAgents) -> Verdict {
        match duplicates {
            _ if newcomer == self.instance => Verdict::Joins,
            DuplicateAgents::Replicas => Verdict::Joins,
            DuplicateAgents::Replace if newcomer > self.instance => Verdict::Supersedes,
            DuplicateAgents::Replace | DuplicateAgents::Reject => Verdict::Refused,
        }
    }

    /// Counts a connection; that of a later agent makes it the holder.
    pub(super) fn enter(&mut self, instance: Instance) {
        if instance != self.instance {
            *self = Self::new(instance);
        }
        self.connections += 1;
    }

    /// Whether that was its last one. Connections of agents that were replaced do not count.
    pub(super) fn leave(&mut self, instance: Instance) -> bool {
        if instance == self.instance {
            self.connections = self.connections.saturating_sub(1);
        }
        self.connections == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_later_replaces_and_is_not_replaced_back() {
        let at = |epoch, nonce| Instance { epoch, nonce };
        let (joins, supersedes, refused) = (Verdict::Joins, Verdict::Supersedes, Verdict::Refused);
        for (newcomer, expected) in [
            (at(5, 5), [joins, joins, joins]),
            (at(5, 6), [joins, supersedes, refused]),
            (at(6, 0), [joins, supersedes, refused]),
            (at(5, 4), [joins, refused, refused]),
            (at(4, 9), [joins, refused, refused]),
        ] {
            let holder = Holder::new(at(5, 5));
            let policies = [DuplicateAgents::Replicas, DuplicateAgents::Replace, DuplicateAgents::Reject];
            let seen = policies.map(|duplicates| holder.judge(newcomer, duplicates));
            assert_eq!(seen, expected, "{newcomer:?}");
        }
        let mut holder = Holder::new(at(1, 1));
        holder.enter(at(1, 1));
        holder.enter(at(2, 2));
        assert!(!holder.leave(at(1, 1)), "the successor holds the identity");
        assert_eq!(holder.judge(at(1, 1), DuplicateAgents::Replace), refused, "fenced");
        assert!(holder.leave(at(2, 2)), "nobody holds it any more");
    }
}
