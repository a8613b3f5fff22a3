//! Where a request stands in line for a tunnel.

use std::sync::Arc;

use crate::failure::UpstreamFailure;
use crate::slot::ClusterSlot;
use crate::tunnel::{Opening, Queue, TunnelConnection};

/// A queue, and the name under which the request waits there.
#[derive(Debug)]
pub(super) struct Line {
    /// The cluster's own, or that of all agents in Envoy's dialect.
    slot: Arc<ClusterSlot>,
    /// `None`: any connection will do.
    name: Option<Box<str>>,
    /// Whether the request said which agent.
    is_named: bool,
    /// Envoy does not tell an agent that nobody knows from one that is gone.
    as_envoy: bool,
    /// How the tunnel has to be opened.
    opening: Opening,
    /// The one that the balancer chose.
    pub(super) chosen: Option<Arc<TunnelConnection>>,
}

impl Line {
    /// For agents that serve this cluster.
    pub(super) fn own(slot: &Arc<ClusterSlot>, agent: Option<&str>) -> Self {
        Self {
            slot: Arc::clone(slot),
            name: agent.map(Box::from),
            is_named: agent.is_some(),
            as_envoy: false,
            opening: Opening::default(),
            chosen: None,
        }
    }

    /// For agents in Envoy's dialect that have that name of their own.
    pub(super) fn reverse(reverse: &Arc<ClusterSlot>, name: String, opening: &Opening) -> Self {
        let opening = opening.clone();
        Self { name: Some(name.into()), is_named: true, as_envoy: true, opening, ..Self::own(reverse, None) }
    }

    pub(super) fn at(self, chosen: &Arc<TunnelConnection>) -> Self {
        Self { chosen: Some(Arc::clone(chosen)), ..self }
    }

    pub(super) fn queue(&self) -> &Arc<Queue> {
        self.slot.queue()
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub(super) fn opening(&self) -> &Opening {
        &self.opening
    }

    /// Whether it is the line of that slot.
    pub(super) fn is_of(&self, slot: &Arc<ClusterSlot>) -> bool {
        Arc::ptr_eq(&self.slot, slot)
    }

    /// Whether one of its connections is expected back.
    pub(super) fn is_hopeful(&self) -> bool {
        self.queue().expects(self.name())
    }

    /// Why the agent cannot be reached; `None`: the request named none, or there is no more to say than that.
    pub(super) fn absence(&self) -> Option<UpstreamFailure> {
        let failure = self.name().filter(|_| self.is_named).map(|name| self.slot.agent_failure(name));
        failure.filter(|failure| !self.as_envoy || *failure != UpstreamFailure::AgentUnknown)
    }
}
