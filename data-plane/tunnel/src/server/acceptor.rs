//! Takes connections of one tunnel listener from their first byte to their end.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::BytesMut;
use culvert_http::{Io, RoundTrip};
use culvert_model::tunnel::TunnelServer;
use culvert_runtime::drain::{self, Watch};
use culvert_runtime::telemetry::Block;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::envoy::EnvoyJoining;
use super::gauge::Gauge;
use super::handshake::{Accepting, Claimed, Opening, OpeningError};
use super::identity::{Credential, Denial, Policy, Proof, Shown, Wish};
use super::joined::{First, Joined};
use super::log_limit::LogLimit;
use super::negotiation::{Agreed, agree};
use super::pending::{Excess, Handshakes, Pending};
use super::policy::{self, PolicyError, Tokens};
use super::standing::Standing;
use super::tunnels::{AsidePlace, Place, Tunnels};
use super::{Claim, ConnectionId, HostRegistry, Peer, Refusal};
use crate::dialect::Dialect;
use crate::envoy::jwt::KeySet;
use crate::envoy::wire::{Answer, RequestReader};
use crate::http2::client_options;
use crate::keepalive;
use crate::metrics::ServerMetric;
use crate::wire::{CAPABILITY, Frame, GracefulClose, GracefulCloseAck, Response, Status};

/// Admits agents on one tunnel listener: policy, limits, live connections. Shared by the workers.
#[derive(Debug)]
pub struct Acceptor {
    pub(super) config: Arc<TunnelServer>,
    pub(super) tokens: ArcSwap<Tokens>,
    /// Of the `jwt_validator`. `None`: every token is refused.
    pub(super) keys: ArcSwapOption<KeySet>,
    /// Of the listener's identity policy, if it has one.
    identities: Option<watch::Receiver<Option<Arc<Policy>>>>,
    pub(super) tunnels: Arc<Tunnels>,
    handshakes: Handshakes,
    /// Log lines that anybody can cause.
    pub(super) refusals: LogLimit,
}

/// How an accepted connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was a tunnel.
    Tunnel,
    /// It was an aside connection.
    Aside,
    /// It never was a tunnel.
    Refused,
}

impl Acceptor {
    /// `tokens`: what the policies' data sources held; see [`Self::replace_tokens`].
    #[must_use]
    pub fn new(config: Arc<TunnelServer>, tokens: Tokens, tunnels: Arc<Tunnels>) -> Arc<Self> {
        let (tokens, handshakes) = (ArcSwap::from_pointee(tokens), Handshakes::new(&config));
        let keys = ArcSwapOption::empty();
        let identities = config.policy.as_ref().map(|name| tunnels.policies().follow(name));
        Arc::new(Self { config, tokens, keys, identities, tunnels, handshakes, refusals: LogLimit::default() })
    }

    /// Takes rotated credentials; they count from the next handshake.
    pub fn replace_tokens(&self, tokens: Tokens) {
        self.tokens.store(Arc::new(tokens));
    }

    /// Takes the keys of the `jwt_validator`; they count from the next handshake.
    pub fn replace_keys(&self, keys: Arc<KeySet>) {
        self.keys.store(Some(keys));
    }

    /// What the tunnel stands on that shows the proof and wants that; `None`: the listener has no identity policy.
    pub(super) fn standing(&self, proof: Proof, wish: Wish<'_>) -> Result<Option<Standing>, Denial> {
        let standing = self.identities.clone().map(|policy| Standing::new(policy, proof, wish)).transpose()?;
        if let Some(token) = standing.as_ref().and_then(|standing| standing.grant().token.as_ref()) {
            self.tunnels.used_tokens().take(token, SystemTime::now())?;
        }
        Ok(standing)
    }

    #[must_use]
    pub fn config(&self) -> &TunnelServer {
        &self.config
    }

    /// Runs one accepted connection (after TLS) to its end; what goes wrong is counted and logged here.
    ///
    /// When `drain` starts, handshakes are refused and a registered connection is drained: it ends once nothing is
    /// in flight on it, or with the drain's deadline.
    pub fn serve<'a, R: HostRegistry>(
        &'a self,
        io: Io,
        peer: Peer,
        registry: &'a R,
        metrics: &'a Block<ServerMetric>,
        drain: &'a Watch,
    ) -> impl Future<Output = Ended> + use<'a, R> {
        let accepted = Accepted { acceptor: self, registry, metrics, drain };
        let address = peer.address;
        // Each phase is boxed by itself: what a handshake needs is given back before the tunnel's life begins, and what is
        // moved into a phase has no place in the task around it.
        let opening = Box::pin(async move {
            match accepted.run(io, peer).await {
                Ok(came) => came,
                Err(failure) => {
                    metrics.inc(failure.metric());
                    let listener = &self.config.stat_prefix;
                    tracing::debug!(%listener, peer = ?address, reason = %failure, "no tunnel");
                    Came::Ended(Ended::Refused)
                }
            }
        });
        async move {
            match opening.await {
                Came::Joined(joined, io) => accepted.attend(joined, io).await,
                Came::Ended(ended) => ended,
            }
        }
    }
}

/// Why a connection came to be no tunnel, where no answer is due any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Opening(#[from] OpeningError),
    #[error(transparent)]
    Excess(#[from] Excess),
    #[error("the listener drains")]
    Draining,
    #[error("refused: {0}")]
    Policy(#[from] PolicyError),
    #[error("refused: {0}")]
    Identity(#[from] Denial),
    #[error("refused: {0}")]
    Registry(#[from] Refusal),
    #[error("refused: {0}")]
    Envoy(#[from] Answer),
    #[error("no randomness for a connection id")]
    Random,
    #[error("an agent's aside connection, silent for {} s or one too many", ASIDE_IDLE.as_secs())]
    Aside,
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Opening(error.into())
    }
}

impl Failure {
    pub(super) fn metric(&self) -> ServerMetric {
        match self {
            Self::Opening(OpeningError::Timeout) => ServerMetric::Timeout,
            Self::Opening(OpeningError::Left | OpeningError::Io(_)) | Self::Random => ServerMetric::Aborted,
            Self::Opening(OpeningError::UnknownDialect | OpeningError::Decode(_) | OpeningError::Unexpected(_)) => {
                ServerMetric::Malformed
            }
            Self::Excess(Excess::Listener) => ServerMetric::PendingOverflow,
            Self::Excess(Excess::Source) => ServerMetric::SourceOverflow,
            Self::Excess(Excess::Rate) => ServerMetric::RateLimited,
            Self::Draining | Self::Registry(Refusal::Unavailable) => ServerMetric::RefusedDraining,
            Self::Policy(PolicyError::HostNameInvalid) => ServerMetric::Malformed,
            Self::Policy(PolicyError::PolicyUnknown) => ServerMetric::RefusedPolicy,
            Self::Identity(Denial::Cluster) => ServerMetric::RefusedCluster,
            Self::Identity(Denial::WayUnknown) => ServerMetric::RefusedPolicy,
            Self::Identity(Denial::PolicyAbsent) => ServerMetric::RefusedDraining,
            Self::Identity(_) => ServerMetric::RefusedAuth,
            Self::Registry(Refusal::Duplicate) => ServerMetric::RefusedDuplicate,
            Self::Policy(
                PolicyError::CredentialMissing | PolicyError::CredentialWrong | PolicyError::CredentialSent,
            ) => ServerMetric::RefusedAuth,
            Self::Policy(PolicyError::ClusterNotAllowed) | Self::Registry(Refusal::ClusterUnknown) => {
                ServerMetric::RefusedCluster
            }
            Self::Registry(Refusal::TooManyConnections | Refusal::SourceFull) => ServerMetric::RefusedLimit,
            Self::Envoy(Answer::Unauthenticated | Answer::ValidationFailed | Answer::TlsLeft) => {
                ServerMetric::RefusedAuth
            }
            Self::Envoy(Answer::UpstreamClusterWrong | Answer::ClusterUnknown) => ServerMetric::RefusedCluster,
            Self::Envoy(Answer::TooMany) => ServerMetric::RefusedLimit,
            Self::Envoy(Answer::Unavailable) => ServerMetric::RefusedDraining,
            Self::Envoy(_) => ServerMetric::Malformed,
            Self::Aside => ServerMetric::AsideClosed,
        }
    }

    /// When the agent is to come back; `None`: as it likes.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Draining | Self::Registry(Refusal::Unavailable) | Self::Identity(Denial::PolicyAbsent) => {
                Some(RETRY_AFTER)
            }
            _ => None,
        }
    }
}

/// What an accepted connection came to.
pub(super) enum Came<L> {
    Joined(Box<Joined<L>>, Box<Io>),
    Ended(Ended),
}

/// One connection on its way.
#[derive(Debug)]
pub(super) struct Accepted<'a, R> {
    pub(super) acceptor: &'a Acceptor,
    pub(super) registry: &'a R,
    pub(super) metrics: &'a Block<ServerMetric>,
    pub(super) drain: &'a Watch,
}

impl<R> Clone for Accepted<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Accepted<'_, R> {}

impl<R: HostRegistry> Accepted<'_, R> {
    /// From the first byte to a tunnel, or to the end of what is none.
    async fn run(&self, io: Io, peer: Peer) -> Result<Came<R::Lease>, Failure> {
        keepalive::enable(&io, self.acceptor.config.ping_interval);
        let pending = self.begin(&peer)?;
        self.metrics.inc(ServerMetric::Handshakes);
        let config = &self.acceptor.config;
        let deadline = Instant::now() + config.handshake_timeout;
        let accepting = Accepting::new(io, peer, config);
        match self.opened(accepting, deadline).await? {
            Opened::Claimed(claimed) => self.join(claimed, deadline, pending).await,
            Opened::Http(io, peer, first) => {
                let joining = EnvoyJoining { io, peer, reader: RequestReader::new(first) };
                Box::pin(self.join_envoy(joining, deadline, pending)).await
            }
            Opened::Aside(accepting, place) => {
                drop(pending);
                Box::pin(self.aside(accepting, place)).await
            }
        }
    }

    /// As [`Self::open`]; when the listener drains, who asks in a moment is told when to come back.
    async fn opened(&self, accepting: Accepting, deadline: Instant) -> Result<Opened, Failure> {
        let mut opening = pin!(self.open(accepting, deadline));
        tokio::select! {
            biased;
            opened = &mut opening => opened,
            () = self.drain.draining() => timeout(LAST_WORD, opening).await.unwrap_or(Err(Failure::Draining)),
        }
    }

    fn begin(&self, peer: &Peer) -> Result<Pending<'_>, Excess> {
        self.acceptor.handshakes.enter(peer.address.map(|address| address.ip()), self.metrics)
    }

    /// To the init frame, or until the connection shows itself as an aside one: **a connection from an agent that has
    /// a registered connection here may stay silent**, as MOSN's aside connections do until the agent stops.
    async fn open(&self, mut accepting: Accepting, deadline: Instant) -> Result<Opened, Failure> {
        loop {
            accepting = match accepting.next(deadline).await? {
                Opening::Claimed(claimed) => return Ok(Opened::Claimed(claimed)),
                Opening::Http(io, peer, first) => return Ok(Opened::Http(io, peer, first)),
                Opening::Close(mut accepting, request) => {
                    self.close(&mut accepting, &request, deadline).await?;
                    accepting
                }
                Opening::Silent(accepting) => {
                    let place = self.acceptor.tunnels.aside(&accepting.origin);
                    let place = place.ok_or(Failure::Opening(OpeningError::Timeout))?;
                    return Ok(Opened::Aside(accepting, place));
                }
            };
        }
    }

    /// An aside connection: graceful closes come in on it, until it ends or has been silent for [`ASIDE_IDLE`].
    /// (MOSN's agents open another one then.)
    async fn aside(&self, mut accepting: Accepting, place: AsidePlace) -> Result<Came<R::Lease>, Failure> {
        let counted = Gauge::enter(self.metrics, ServerMetric::Asides);
        loop {
            let next = tokio::select! {
                biased;
                () = self.drain.draining() => return Ok(Came::Ended(Ended::Aside)),
                next = accepting.next(Instant::now() + ASIDE_IDLE) => next,
            };
            accepting = match next {
                Err(OpeningError::Left | OpeningError::Io(_)) => return Ok(Came::Ended(Ended::Aside)),
                Err(error) => return Err(error.into()),
                Ok(Opening::Silent(_)) => return Err(Failure::Aside),
                Ok(Opening::Close(mut accepting, request)) => {
                    let deadline = Instant::now() + self.acceptor.config.handshake_timeout;
                    self.close(&mut accepting, &request, deadline).await?;
                    accepting
                }
                // An agent of MOSN's dialect does not change over.
                Ok(Opening::Http(..)) => return Err(OpeningError::UnknownDialect.into()),
                Ok(Opening::Claimed(claimed)) => {
                    drop((place, counted));
                    let pending = self.begin(&claimed.peer)?;
                    let deadline = Instant::now() + self.acceptor.config.handshake_timeout;
                    return self.join(claimed, deadline, pending).await;
                }
            };
        }
    }

    /// Does what a graceful close asks for. Only a close that names ids is acknowledged: MOSN's has no answer.
    async fn close(
        &self,
        accepting: &mut Accepting,
        request: &GracefulClose,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let done = self.acceptor.tunnels.close(&accepting.origin, request);
        self.metrics.add(ServerMetric::GracefulClose, done.closed);
        self.metrics.add(ServerMetric::GracefulCloseIgnored, done.ignored);
        if done.closed > 0 || self.acceptor.refusals.allows() {
            tracing::info!(
                origin = %accepting.origin, cluster = shown(&request.cluster_name), closed = done.closed,
                ignored = done.ignored, "graceful close of tunnels"
            );
        }
        if request.connection_ids.is_empty() {
            return Ok(());
        }
        let ack = GracefulCloseAck { closed: i64::try_from(done.closed).unwrap_or(i64::MAX) };
        let frame = Frame::GracefulCloseAck(ack).encode().map_err(std::io::Error::other)?;
        timeout_at(deadline, accepting.write(&frame)).await.map_err(|_| OpeningError::Timeout)??;
        Ok(())
    }

    /// From the init frame to the reply.
    async fn join(&self, claimed: Claimed, deadline: Instant, pending: Pending<'_>) -> Result<Came<R::Lease>, Failure> {
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

/// A registered connection, and what it stands on.
type Registration<L> = (Arc<Claim>, L, Place, Watch, Option<Standing>);

enum Opened {
    Claimed(Claimed),
    Http(Io, Peer, BytesMut),
    Aside(Accepting, AsidePlace),
}

/// What a peer said, for a log line: quoted, and not at any length.
pub(super) fn shown(text: &str) -> String {
    let short: String = text.chars().take(64).collect();
    if short.len() < text.len() { format!("{short:?}...") } else { format!("{short:?}") }
}

/// How long a handshake that is under way when its listener drains may take to be refused.
const LAST_WORD: Duration = Duration::from_millis(500);
/// When who was refused for a moment is to come back: somebody else may listen at the address by then.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How long an aside connection may say nothing.
const ASIDE_IDLE: Duration = Duration::from_secs(60);
