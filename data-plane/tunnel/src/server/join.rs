//! MOSN's dialect and ours on the server: from the init frame to the reply.
//!
//! ```text
//! init frame -> policy -> limits -> registry -> reply, alone
//! ```

use std::sync::Arc;

use culvert_http::RoundTrip;
use culvert_runtime::drain::{self, Watch};
use tokio::time::{Instant, timeout_at};

use super::acceptor::{Accepted, Came, Ended, shown};
use super::failure::Failure;
use super::handshake::{Claimed, OpeningError};
use super::identity::{Credential, Denial, Proof, Shown, Wish};
use super::joined::{First, Joined};
use super::negotiation::{Agreed, agree};
use super::pending::Pending;
use super::policy;
use super::standing::Standing;
use super::tunnels::Place;
use super::{Claim, ConnectionId, HostRegistry};
use crate::dialect::Dialect;
use crate::http2::client_options;
use crate::metrics::ServerMetric;
use crate::wire::{CAPABILITY, Response, Status};

/// A registered connection, and what it stands on.
type Registration<L> = (Arc<Claim>, L, Place, Watch, Option<Standing>);

impl<R: HostRegistry> Accepted<'_, R> {
    /// From the init frame to the reply.
    pub(super) async fn join(
        &self,
        claimed: Claimed,
        deadline: Instant,
        pending: Pending<'_>,
    ) -> Result<Came<R::Lease>, Failure> {
        let agreed = agree(self.acceptor.config.protocol, claimed.dialect, &claimed.init);
        let knows_id = agreed.dialect == Dialect::Culvert;
        let registered = timeout_at(deadline, self.register(&claimed, agreed)).await;
        let (claim, lease, place, closed, standing) = match registered.map_err(|_| OpeningError::Timeout)? {
            Ok(registered) => registered,
            Err(failure) => {
                self.metrics.inc(failure.metric());
                self.refuse(claimed, &failure, deadline).await;
                return Ok(Came::Ended(Ended::Refused));
            }
        };
        let response = Response {
            status: Status::Success,
            caps: if knows_id { vec![CAPABILITY.to_owned()] } else { Vec::new() },
            connection_id: knows_id.then(|| claim.id.to_string()),
            protocol: agreed.announced(&claimed.init),
            retry_after: None,
        };
        let io = timeout_at(deadline, claimed.accept(response)).await.map_err(|_| OpeningError::Timeout)??;
        drop(pending);
        let first = if knows_id { First::AtOnce } else { First::WhenRead };
        let standing = standing.map(Box::new);
        let joined = Joined { place, lease, claim, closed, standing, first, initiator: None, chronicle: None };
        Ok(Came::Joined(Box::new(joined), Box::new(io)))
    }

    /// Policy, limits, then the registry. What it yields goes back when dropped.
    async fn register(&self, claimed: &Claimed, agreed: Agreed) -> Result<Registration<R::Lease>, Failure> {
        let acceptor = self.acceptor;
        if self.drain.is_draining() {
            return Err(Failure::Draining);
        }
        let shown = claimed.shown()?;
        let policy = match acceptor.identities {
            Some(_) => None,
            None => policy::check(&acceptor.config, &acceptor.tokens.load_full(), &claimed.init, &shown)?,
        };
        let standing = self.stand(claimed, shown)?;
        let mut claim = self.claim(claimed, policy, agreed)?;
        if let Some(standing) = &standing {
            claim.take_grant(standing.grant());
        }
        let claim = Arc::new(claim);
        let knows_id = agreed.dialect == Dialect::Culvert;
        let (trigger, closed) = drain::channel();
        let place = acceptor.tunnels.place(&claim, knows_id, Arc::new(trigger), &acceptor.config.stat_prefix)?;
        self.metrics.add(ServerMetric::Superseded, place.superseded());
        let lease = self.registry.register(Claim::clone(&claim)).await?;
        Ok((claim, lease, place, closed, standing))
    }

    /// What the listener's identity policy, if it has one, says of the agent.
    fn stand(&self, claimed: &Claimed, shown: Shown) -> Result<Option<Standing>, Denial> {
        let init = &claimed.init;
        let any = shown.is_bound() || !init.credential.0.is_empty() || !init.credential_policy.is_empty();
        let credential = any.then(|| Credential { way: Some(init.credential_policy.as_str().into()), shown });
        let wish = Wish { cluster: &init.cluster_name, host_name: &init.host_name, weight: init.clamped_weight() };
        self.acceptor.standing(Proof::new(&claimed.peer, claimed.is_tls(), credential), wish)
    }

    fn claim(&self, claimed: &Claimed, policy: Option<Arc<str>>, agreed: Agreed) -> Result<Claim, Failure> {
        let config = &self.acceptor.config;
        let weight = claimed.init.clamped_weight();
        if i64::from(weight) != claimed.init.weight {
            tracing::debug!(peer = ?claimed.peer.address, sent = claimed.init.weight, used = weight, "weight clamped");
        }
        Ok(Claim {
            id: ConnectionId::random().ok_or(Failure::Random)?,
            dialect: agreed.dialect,
            cluster: Arc::from(&*claimed.init.cluster_name),
            host_name: Arc::from(&*claimed.init.host_name),
            weight,
            peer: claimed.peer.clone(),
            may_serve: policy::may_serve(config, policy.as_deref()),
            policy,
            reverse: None,
            protocol: agreed.protocol,
            http2: agreed.ours.then(|| Box::new(client_options(RoundTrip::default(), config.ping_interval))),
            queue_timeout: config.queue_timeout,
            reconnect_window: config.reconnect_window,
            ping_interval: config.ping_interval,
            max_queued_requests: config.max_queued_requests,
            max_connections_per_agent: config.max_connections_per_agent,
            grant: None,
            instance: claimed.init.instance,
        })
    }

    /// Answers a refusal. What MOSN has no status for is not answered to its agents: any status but 1 ends them for
    /// good, while after a plain close they try again.
    async fn refuse(&self, claimed: Claimed, failure: &Failure, deadline: Instant) {
        let status = match failure {
            Failure::Policy(error) => error.status(),
            Failure::Identity(denial) => denial.status(),
            Failure::Registry(refusal) => refusal.status(),
            _ => Status::Unknown,
        };
        if self.acceptor.refusals.allows() {
            tracing::info!(
                peer = ?claimed.peer.address, identity = ?claimed.peer.identity,
                cluster = shown(&claimed.init.cluster_name), host_name = shown(&claimed.init.host_name),
                policy = shown(&claimed.init.credential_policy), reason = %failure, "agent refused"
            );
        }
        if status == Status::Unknown && !claimed.init.can(CAPABILITY) {
            return;
        }
        let response = Response { status, retry_after: failure.retry_after(), ..Response::default() };
        match timeout_at(deadline, claimed.refuse(response)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the refusal was not written"),
            Err(_) => tracing::debug!("the refusal was not taken within the deadline"),
        }
    }
}
