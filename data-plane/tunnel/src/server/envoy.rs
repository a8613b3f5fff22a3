//! Envoy's dialect on the server: from an initiator's request to the end of its tunnel.
//!
//! ```text
//! request -> checks -> registry -> answer, alone -> (TLS left) -> RPING while unused -> HTTP/2
//! ```
//! **A success is never a lie**: what Envoy answers with 200 and then closes is refused here.

mod checks;

use std::cell::Cell;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use culvert_http::{Http2ClientOptions, Io, RoundTrip};
use culvert_model::control::ServerNotice;
use culvert_model::tunnel::TunnelProtocol;
use culvert_runtime::drain::{Trigger, Watch};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout_at};

use self::checks::Admitted;
use super::acceptor::{Accepted, Came, Ended, shown};
use super::chronicle::Chronicle;
use super::control::Notices;
use super::failure::Failure;
use super::handshake::{OpeningError, linger};
use super::identity::Denial;
use super::joined::{First, Joined, run};
use super::pending::Pending;
use super::policy::{PolicyError, may_serve};
use super::registered::{FORBIDDEN, HANDOVER};
use super::standing::{Standing, Turn};
use super::tunnels::Place;
use super::{Claim, CloseReason, ConnectionId, HostLease, HostRegistry, Peer, Refusal, ReverseClaim};
use crate::dialect::Dialect;
use crate::envoy::ping::{self, Pings};
use crate::envoy::wire::{Answer, Request, RequestReader};
use crate::http2::client_options;
use crate::keepalive;
use crate::metrics::ServerMetric;

/// A connection whose first bytes are those of an HTTP request.
pub(super) struct EnvoyJoining {
    pub(super) io: Io,
    pub(super) peer: Peer,
    pub(super) reader: RequestReader,
}

/// A registered connection, and what drains it.
type Registration<L> = (Arc<Claim>, L, Place, Watch, Arc<Trigger>);

impl<R: HostRegistry> Accepted<'_, R> {
    /// From the first bytes of the request to the answer.
    pub(super) async fn join_envoy(
        &self,
        mut joining: EnvoyJoining,
        deadline: Instant,
        pending: Pending<'_>,
    ) -> Result<Came<R::Lease>, Failure> {
        let opening = timeout_at(deadline, async {
            match joining.read().await? {
                Ok(request) => self.register_envoy(&joining, &request).await,
                Err(answer) => Err(Failure::Envoy(answer)),
            }
        });
        let (admitted, (claim, lease, place, closed, trigger)) =
            match opening.await.map_err(|_| OpeningError::Timeout)? {
                Ok(registered) => registered,
                Err(failure) => return self.refuse_envoy(joining, failure, deadline).await,
            };
        let tls_kept = joining.io.is_tls() && admitted.keeps_tls;
        let answer = Answer::Accepted { upgrade: admitted.upgrade, tls_kept };
        let io = timeout_at(deadline, joining.accept(answer)).await.map_err(|_| OpeningError::Timeout)??;
        drop(pending);
        tracing::info!(id = %claim.id, tenant = shown(&admitted.identity.tenant), tls_kept, "an Envoy is answered");
        let pings = Pings {
            interval: self.acceptor.config.reverse.ping_interval,
            threshold: self.acceptor.tunnels.reverse().ping_failure_threshold,
        };
        let first = First::WhenWanted(pings, trigger);
        let standing = admitted.standing.map(Box::new);
        let initiator = admitted.initiator;
        let joined = Joined { place, lease, claim, closed, standing, first, initiator, chronicle: None };
        Ok(Came::Joined(Box::new(joined), Box::new(io)))
    }

    /// Runs a registered connection: idle until somebody wants it, then as any tunnel.
    pub(super) async fn host(
        &self,
        lease: &R::Lease,
        mut io: Io,
        (closed, place): (&Watch, &Place),
        pings: Pings,
        chronicle: Option<&Chronicle>,
    ) -> CloseReason {
        let ping_interval = self.acceptor.config.ping_interval;
        // What has left TLS has no session that another certificate would concern.
        let notices = io.is_tls().then(Notices::default);
        notices.iter().for_each(|notices| place.told_by(notices.clone()));
        let (mut renewed, asked) = (pin!(renewed(notices.as_ref())), Cell::new(false));
        let stalled = || self.metrics.inc(ServerMetric::StalledWrites);
        {
            let mut lost = pin!(keepalive::lost(keepalive::ends(&io), ping_interval, stalled));
            // An agent can be told that its tunnel ends only over HTTP/2.
            let wanted = async {
                tokio::select! {
                    () = lease.wanted() => {}
                    () = self.drain.draining() => {}
                    () = &mut renewed => asked.set(true),
                }
            };
            let idle = tokio::select! {
                biased;
                () = self.singled_out(closed) => {
                    lease.drain();
                    return CloseReason::Drained;
                }
                () = &mut lost => return CloseReason::Lost,
                idle = ping::idle(&mut io, pings, wanted, |ping| chronicle.iter().for_each(|told| told.pinged(ping))) => idle,
            };
            if let Err(reason) = idle {
                tracing::info!(%reason, "an unused Envoy tunnel ends");
                return CloseReason::Idle(reason);
            }
        }
        if let Some(chronicle) = chronicle {
            chronicle.handed_off();
        }
        let renewed = async {
            if !asked.get() {
                renewed.await;
            }
        };
        let leaving = async {
            tokio::select! {
                () = self.singled_out(closed) => {}
                () = self.replaced_envoy(lease, renewed) => {}
            }
        };
        Box::pin(run(lease, io, leaving, closed, (ping_interval, stalled))).await
    }

    /// Returns when this tunnel alone is to end.
    async fn singled_out(&self, watch: &Watch) {
        watch.draining().await;
        if self.drain.is_draining() {
            std::future::pending().await
        }
    }

    /// **Make before break**: when the listener or the process drains, the agent is told by GOAWAY, upon which a drain-aware
    /// Envoy dials anew, and has its time. So is one whose TLS session began with a certificate that was `renewed`; it closes this tunnel
    /// itself when it has another one.
    async fn replaced_envoy(&self, lease: &R::Lease, renewed: impl Future<Output = ()>) {
        tokio::select! {
            biased;
            () = self.drain.draining() => goodbye(lease).await,
            () = renewed => {
                goodbye(lease).await;
                self.drain.draining().await;
            }
        }
        let tunnels = &self.acceptor.tunnels;
        if tunnels.is_ending() {
            return tunnels.finishing().await;
        }
        sleep(HANDOVER).await;
    }

    /// Drains the tunnel when the identity policy allows it no more. Never returns.
    pub(super) async fn follow_envoy(
        &self,
        (standing, claim): (&mut Option<Box<Standing>>, &Claim),
        lease: &R::Lease,
        trigger: &Trigger,
    ) {
        while let Some(standing) = standing.as_mut() {
            match standing.turn().await {
                // Its dialect has no word for it.
                Turn::Expiring => {}
                Turn::Changed(changed) => {
                    let Some(denial) = standing.change(lease, changed) else { continue };
                    self.metrics.inc(ServerMetric::Withdrawn);
                    tracing::info!(id = %claim.id, reason = %denial, "an Envoy tunnel is allowed no more");
                    trigger.start(FORBIDDEN);
                    break;
                }
                Turn::Lapsed => {
                    if lease.end_lapsed() {
                        trigger.start(Duration::ZERO);
                        break;
                    }
                }
            }
        }
        std::future::pending().await
    }

    /// Checks, limits, then the registry. What it yields goes back when dropped.
    async fn register_envoy(
        &self,
        joining: &EnvoyJoining,
        request: &Request,
    ) -> Result<(Admitted, Registration<R::Lease>), Failure> {
        if self.drain.is_draining() {
            return Err(Failure::Draining);
        }
        let acceptor = self.acceptor;
        let admitted = self.admit(joining, request)?;
        let config = &acceptor.config;
        let most = match acceptor.tunnels.reverse().max_connections_per_node {
            // Envoy: with the limit on, 0 rejects all.
            limit if config.reverse.limited => limit,
            _ => config.max_connections_per_agent,
        };
        let mut claim = Claim {
            id: ConnectionId::random().ok_or(Failure::Random)?,
            dialect: Dialect::Envoy,
            cluster: admitted.identity.cluster.as_str().into(),
            host_name: admitted.identity.node.as_str().into(),
            weight: 1,
            peer: joining.peer.clone(),
            policy: admitted.policy.clone(),
            may_serve: may_serve(config, admitted.policy.as_deref()),
            reverse: Some(ReverseClaim {
                tenant: admitted.identity.tenant.as_str().into(),
                isolated: acceptor.tunnels.reverse().tenant_isolation,
                joins_named_cluster: config.reverse.joins_named_cluster,
            }),
            protocol: TunnelProtocol::Http2,
            http2: Some(Box::new(Http2ClientOptions {
                first_ping: Some(NUDGE),
                says_goodbye: true,
                ..client_options(RoundTrip::default(), config.ping_interval)
            })),
            queue_timeout: config.queue_timeout,
            reconnect_window: config.reconnect_window,
            ping_interval: config.ping_interval,
            max_queued_requests: config.max_queued_requests,
            max_connections_per_agent: most,
            grant: None,
            instance: None,
        };
        if let Some(standing) = &admitted.standing {
            claim.take_grant(standing.grant());
        }
        let claim = Arc::new(claim);
        let (trigger, watch) = self.drain.child();
        let trigger = Arc::new(trigger);
        let place = acceptor.tunnels.place(&claim, false, Arc::clone(&trigger), &config.stat_prefix)?;
        self.metrics.add(ServerMetric::Superseded, place.superseded());
        let lease = self.registry.register(Claim::clone(&claim)).await?;
        Ok((admitted, (claim, lease, place, watch, trigger)))
    }

    /// Answers a refusal, closes, and ends.
    async fn refuse_envoy(
        &self,
        mut joining: EnvoyJoining,
        failure: Failure,
        deadline: Instant,
    ) -> Result<Came<R::Lease>, Failure> {
        let answer = match &failure {
            Failure::Envoy(answer) => *answer,
            Failure::Policy(
                PolicyError::CredentialMissing | PolicyError::CredentialWrong | PolicyError::CredentialSent,
            ) => Answer::Unauthenticated,
            Failure::Identity(Denial::PolicyAbsent | Denial::TokensFull) => Answer::Unavailable,
            Failure::Identity(
                Denial::Token(_)
                | Denial::StaticToken
                | Denial::Nobody
                | Denial::WayUnknown
                | Denial::TokenWithoutTls
                | Denial::NoTokenId
                | Denial::TokenUsed
                | Denial::TokenSent,
            ) => Answer::Unauthenticated,
            Failure::Identity(_) | Failure::Policy(_) => Answer::ValidationFailed,
            Failure::Registry(Refusal::ClusterUnknown) => Answer::ClusterUnknown,
            Failure::Registry(Refusal::TooManyConnections | Refusal::SourceFull | Refusal::Duplicate) => {
                Answer::TooMany
            }
            Failure::Registry(Refusal::Unavailable) | Failure::Draining | Failure::Random => Answer::Unavailable,
            // Nobody is there to be told.
            _ => return Err(failure),
        };
        self.metrics.inc(failure.metric());
        if self.acceptor.refusals.allows() {
            let (peer, identity) = (joining.peer.address, &joining.peer.identity);
            tracing::info!(?peer, ?identity, reason = %failure, "Envoy agent refused");
        }
        let told = timeout_at(deadline, async {
            joining.io.write_all(&answer.encode()).await?;
            joining.io.flush().await?;
            joining.io.shutdown().await?;
            linger(&mut joining.io).await;
            Ok::<_, std::io::Error>(())
        });
        match told.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the refusal was not written"),
            Err(_) => tracing::debug!("the refusal was not taken within the deadline"),
        }
        Ok(Came::Ended(Ended::Refused))
    }
}

impl EnvoyJoining {
    /// The request, or the answer that is due.
    async fn read(&mut self) -> Result<Result<Request, Answer>, OpeningError> {
        loop {
            match self.reader.next_request() {
                Ok(None) => {}
                Ok(Some(request)) => return Ok(Ok(request)),
                Err(answer) => return Ok(Err(answer)),
            }
            let buffer = self.reader.buffer();
            buffer.reserve(READ);
            if self.io.read_buf(buffer).await? == 0 {
                return Err(OpeningError::Left);
            }
        }
    }

    /// Writes the success, alone, and yields the tunnel's byte stream. What an initiator sent before it knew the answer
    /// is not part of it, as in Envoy.
    async fn accept(mut self, answer: Answer) -> Result<Io, OpeningError> {
        self.io.write_all(&answer.encode()).await?;
        self.io.flush().await?;
        let stays = matches!(answer, Answer::Accepted { tls_kept: true, .. });
        Ok(if self.io.is_tls() && !stays { self.io.leave_tls() } else { self.io })
    }
}

/// Opens HTTP/2 where it is not open yet: GOAWAY is all that the dialect has to say that another connection is wanted.
async fn goodbye<L: HostLease>(lease: &L) {
    drop(lease.exchange().await);
    lease.say_goodbye();
}

/// Resolves when the agent is to dial anew, at a time of its own, since the listener presents another certificate.
async fn renewed(notices: Option<&Notices>) {
    let Some(notices) = notices else { return std::future::pending().await };
    loop {
        if let ServerNotice::Reconnect { delay, .. } = notices.next().await {
            return sleep(delay).await;
        }
    }
}

/// An Envoy 1.40 that got the first request's bytes too early holds them until more come: a PING is more.
const NUDGE: Duration = Duration::from_millis(15);
/// Bytes that are asked for at once.
const READ: usize = 2048;
