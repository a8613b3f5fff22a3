//! Which cluster a request goes to, and which tunnel agent of it.

use std::borrow::Cow;
use std::sync::Arc;

use culvert_model::route::{AgentChoice, AgentSelector};
use culvert_upstream::{ClusterMetric, ClusterSlot};

use super::Stream;
use crate::flags::ResponseFlag;
use crate::local_reply::LocalReply;
use crate::routes::{Forward, RouteTable, Target, Targets};
use crate::stats::HttpMetric;

/// Where a request goes.
#[derive(Debug)]
pub(super) struct Chosen<'a> {
    slot: Slot<'a>,
    pub(super) weighted_host: Option<&'a Arc<str>>,
    pub(super) agent: Option<Box<str>>,
}

#[derive(Debug)]
enum Slot<'a> {
    Routed(&'a Target),
    Named(Arc<ClusterSlot>),
}

impl Chosen<'_> {
    pub(super) fn slot(&self) -> &Arc<ClusterSlot> {
        match &self.slot {
            Slot::Routed(target) => &target.slot,
            Slot::Named(slot) => slot,
        }
    }
}

impl<'a> Stream<'a> {
    /// Which cluster, and which tunnel agent of it.
    pub(super) fn choose(
        &mut self,
        table: Option<&'a RouteTable>,
        action: &'a Forward,
    ) -> Result<Chosen<'a>, LocalReply> {
        let (target, weighted_host) = match &action.targets {
            Targets::One(target) => (target, None),
            Targets::Weighted { targets, total } => {
                let point = fastrand::u64(..(*total).max(1));
                let chosen = targets.iter().find(|(end, _)| point < *end).map(|(_, target)| target);
                let Some(chosen) = chosen else {
                    // All weights are zero: the model refuses that, so no request comes here.
                    return Err(LocalReply::new(503, "", "cluster_not_found").flagged(ResponseFlag::NoClusterFound));
                };
                self.weighted = chosen.headers.as_ref();
                (&chosen.target, chosen.host_rewrite.as_ref())
            }
            Targets::Header(name) => return self.choose_by_header(table, action, name),
        };
        self.record.cluster = Some(Cow::Borrowed(&target.name));
        let agent = match &target.agent {
            Some(choice) => Some(self.allowed_agent(target, choice)?),
            None => None,
        };
        Ok(Chosen { slot: Slot::Routed(target), weighted_host, agent })
    }

    /// `cluster_header`.
    fn choose_by_header(
        &mut self,
        table: Option<&'a RouteTable>,
        action: &Forward,
        name: &str,
    ) -> Result<Chosen<'a>, LocalReply> {
        let value = self.request.fields.get(name.as_bytes()).and_then(|value| std::str::from_utf8(value).ok());
        let slot = value.zip(table).and_then(|(value, table)| table.clusters().lookup(value));
        let Some(slot) = slot else {
            self.connection.http.counters.inc(HttpMetric::NoCluster);
            let status = action.config.cluster_not_found;
            return Err(LocalReply::new(status, "", "cluster_not_found").flagged(ResponseFlag::NoClusterFound));
        };
        self.record.cluster = Some(Cow::Owned(slot.name().to_string()));
        Ok(Chosen { slot: Slot::Named(slot), weighted_host: None, agent: None })
    }

    /// The tunnel agent that the request wants, if it may.
    fn allowed_agent(&self, target: &Target, choice: &AgentChoice) -> Result<Box<str>, LocalReply> {
        let agent = self.agent(&choice.selector);
        if choice.allows(&agent) {
            return Ok(agent.into());
        }
        self.connection.worker.pools.count(&target.slot, ClusterMetric::TunnelAgentDenied);
        Err(LocalReply::new(403, "tunnel agent denied", "tunnel_agent_denied").flagged(ResponseFlag::TunnelAgentDenied))
    }

    /// The name of the tunnel agent that the request wants; empty if it names none (no agent is called that).
    fn agent(&self, selector: &AgentSelector) -> String {
        match selector {
            AgentSelector::Fixed(name) => name.to_string(),
            AgentSelector::HostLabel => {
                self.request.authority.split(['.', ':']).next().unwrap_or_default().to_ascii_lowercase()
            }
            AgentSelector::Header(name) => {
                let value = self.request.fields.get(name.as_bytes()).and_then(|value| std::str::from_utf8(value).ok());
                value.unwrap_or_default().to_owned()
            }
        }
    }
}
