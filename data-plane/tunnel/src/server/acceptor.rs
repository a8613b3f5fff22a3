//! Takes connections of one tunnel listener from their first byte to their end.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::BytesMut;
use culvert_http::Io;
use culvert_model::tunnel::TunnelServer;
use culvert_runtime::drain::Watch;
use culvert_runtime::log::LogLimit;
use culvert_runtime::telemetry::Block;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::envoy::EnvoyJoining;
use super::failure::Failure;
use super::gauge::Gauge;
use super::handshake::{Accepting, Claimed, Opening, OpeningError};
use super::identity::{Denial, Policy, Proof, Wish};
use super::joined::Joined;
use super::pending::{Excess, Handshakes, Pending, Place};
use super::policy::Tokens;
use super::standing::Standing;
use super::tunnels::{AsidePlace, Tunnels};
use super::{HostRegistry, Peer};
use crate::envoy::jwt::KeySet;
use crate::envoy::wire::RequestReader;
use crate::keepalive;
use crate::metrics::ServerMetric;
use crate::wire::{Frame, GracefulClose, GracefulCloseAck};

/// Admits agents on one tunnel listener: policy, limits, live connections. Shared by the workers.
#[derive(Debug)]
pub struct Acceptor {
    pub(super) config: Arc<TunnelServer>,
    pub(super) tokens: ArcSwap<Tokens>,
    /// Of the `jwt_validator`. `None`: every token is refused.
    pub(super) keys: ArcSwapOption<KeySet>,
    /// Of the listener's identity policy, if it has one.
    pub(super) identities: Option<watch::Receiver<Option<Arc<Policy>>>>,
    pub(super) tunnels: Arc<Tunnels>,
    handshakes: Arc<Handshakes>,
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
        let (tokens, handshakes) = (ArcSwap::from_pointee(tokens), Arc::new(Handshakes::new(&config)));
        let keys = ArcSwapOption::empty();
        let identities = config.policy.as_ref().map(|name| tunnels.policies().follow(name));
        Arc::new(Self {
            config,
            tokens,
            keys,
            identities,
            tunnels,
            handshakes,
            refusals: LogLimit::new("refusals of tunnel agents"),
        })
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

    /// A place for a connection that has TLS before it: **who floods the listener is turned away before it costs a
    /// signature**. `None`: it is to be closed, which is counted and logged here.
    pub fn admit(&self, address: SocketAddr, metrics: &Block<ServerMetric>) -> Option<Place> {
        let entered = self.handshakes.enter(Some(address.ip()));
        entered.inspect_err(|excess| self.refuse(&Failure::Excess(*excess), Some(address), metrics)).ok()
    }

    fn refuse(&self, failure: &Failure, peer: Option<SocketAddr>, metrics: &Block<ServerMetric>) {
        metrics.inc(failure.metric());
        tracing::debug!(listener = %self.config.stat_prefix, ?peer, reason = %failure, "no tunnel");
    }

    /// Runs one accepted connection (after TLS) to its end; what goes wrong is counted and logged here. `place`: of
    /// [`Self::admit`], if it was asked.
    ///
    /// When `drain` starts, handshakes are refused and a registered connection is drained: it ends once nothing is
    /// in flight on it, or with the drain's deadline.
    pub fn serve<'a, R: HostRegistry>(
        &'a self,
        io: Io,
        peer: Peer,
        place: Option<Place>,
        registry: &'a R,
        metrics: &'a Block<ServerMetric>,
        drain: &'a Watch,
    ) -> impl Future<Output = Ended> + use<'a, R> {
        let accepted = Accepted { acceptor: self, registry, metrics, drain };
        let address = peer.address;
        // Each phase is boxed by itself: what a handshake needs is given back before the tunnel's life begins, and what is
        // moved into a phase has no place in the task around it.
        let opening = Box::pin(async move {
            accepted.run(io, peer, place).await.unwrap_or_else(|failure| {
                self.refuse(&failure, address, metrics);
                Came::Ended(Ended::Refused)
            })
        });
        async move {
            match opening.await {
                Came::Joined(joined, io) => accepted.attend(joined, io).await,
                Came::Ended(ended) => ended,
            }
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
    async fn run(&self, io: Io, peer: Peer, place: Option<Place>) -> Result<Came<R::Lease>, Failure> {
        keepalive::enable(&io, self.acceptor.config.ping_interval);
        let pending = self.begin(&peer, place)?;
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

    fn begin(&self, peer: &Peer, place: Option<Place>) -> Result<Pending<'_>, Excess> {
        let enter = || self.acceptor.handshakes.enter(peer.address.map(|address| address.ip()));
        Ok(Pending::new(place.map_or_else(enter, Ok)?, self.metrics))
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
                    let pending = self.begin(&claimed.peer, None)?;
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
}

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
/// How long an aside connection may say nothing.
pub(super) const ASIDE_IDLE: Duration = Duration::from_secs(60);
