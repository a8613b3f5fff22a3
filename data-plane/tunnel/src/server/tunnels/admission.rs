//! Who may have one more connection: limits, and duplicates of an identity.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Inner;
use crate::server::duplicates::{self, Holder, Verdict};
use crate::server::live::Live;
use crate::server::pending::network;
use crate::server::{Claim, Identity, Origin, Refusal};

/// What connections are counted by: the certificate's name, else the host name, else the address. **A host name is only
/// claimed**: it counts within the policy and the cluster that the agent was admitted to, so that strangers who claim it
/// elsewhere do not use up what its owner may have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::server) enum AgentKey {
    Named { policy: Option<Arc<str>>, cluster: Arc<str>, tenant: Option<Arc<str>>, host_name: Arc<str> },
    Unnamed(Origin),
    Identity(Identity),
}

impl AgentKey {
    pub(super) fn of(claim: &Claim) -> Self {
        if let Some(grant) = &claim.grant {
            return Self::Identity(grant.identity.clone());
        }
        match claim.peer.origin() {
            Origin::Certificate(name) => Self::Unnamed(Origin::Certificate(name)),
            origin if claim.host_name.is_empty() => Self::Unnamed(origin),
            _ => Self::Named {
                policy: claim.policy.clone(),
                cluster: Arc::clone(&claim.cluster),
                tenant: claim.reverse.as_ref().map(|claim| Arc::clone(&claim.tenant)),
                host_name: Arc::clone(&claim.host_name),
            },
        }
    }
}

impl Inner {
    /// Limits and duplicates; how many connections of earlier agents are drained for this one.
    pub(super) fn admit(&self, claim: &Claim, key: &AgentKey) -> Result<u64, Refusal> {
        let grant = claim.grant.as_deref();
        let most = grant.map_or(claim.max_connections_per_agent, |grant| grant.max_connections);
        let most = most.min(claim.max_connections_per_agent);
        let Some(grant) = grant else {
            return if self.agents.get(key).is_some_and(|count| *count >= most) {
                Err(Refusal::TooManyConnections)
            } else {
                Ok(0)
            };
        };
        let here = source(claim).and_then(|source| self.sources.get(&source)).copied().unwrap_or(0);
        if grant.max_connections_per_source.is_some_and(|most| here >= most) {
            return Err(Refusal::SourceFull);
        }
        let verdict = match (self.holders.get(&grant.identity), duplicates::instance(claim)) {
            (Some(holder), Some(instance)) => holder.judge(instance, grant.duplicates),
            _ => Verdict::Joins,
        };
        match verdict {
            Verdict::Refused => Err(Refusal::Duplicate),
            // They leave: the limit is the newcomer's.
            Verdict::Supersedes => Ok(self.supersede(&grant.identity)),
            Verdict::Joins => {
                let holder = self.holders.get(&grant.identity).map(Holder::connections);
                let count = holder.or_else(|| self.agents.get(key).copied()).unwrap_or(0);
                if count >= most { Err(Refusal::TooManyConnections) } else { Ok(0) }
            }
        }
    }

    fn supersede(&self, identity: &Identity) -> u64 {
        let same = |live: &&Live| live.claim.grant.as_ref().is_some_and(|grant| grant.identity == *identity);
        let mut superseded = 0;
        for live in self.live.values().map(|live| &**live).filter(same) {
            live.drain.start(SUPERSEDED);
            superseded += 1;
        }
        superseded
    }
}

/// What the connections of one source are counted by.
pub(super) fn source(claim: &Claim) -> Option<IpAddr> {
    claim.peer.address.map(|address| network(address.ip()))
}

/// For what is in flight on connections of an agent that was replaced.
const SUPERSEDED: Duration = Duration::from_secs(15);
