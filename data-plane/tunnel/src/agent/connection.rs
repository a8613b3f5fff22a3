//! One of a peer's connections: dials, is hosted, dials again. Independent of the others.

mod hosted;

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use culvert_model::tunnel::{ProtocolChoice, TunnelProtocol};
use culvert_runtime::backoff::Backoff;
use culvert_runtime::telemetry::Block;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::dial::{self, DialError, Established, Retry, Target};
use super::envoy::Initiator;
use super::pace::{Pace, Served, USED, after_tunnel};
use super::peer::{Peer, Phase};
use super::tenure::{Reason, Tenure};
use super::{Agent, Hosting, credential, keeper};
use crate::envoy::wire::ResponseError;
use crate::history::EventKind;
use crate::metrics::AgentMetric;
use crate::status::ConnectionState;
use crate::wire::{CAPABILITY, CAPABILITY_HTTP2, Carried, Init};

/// A connection's task.
pub(super) struct Connection<H> {
    pub(super) agent: Arc<Agent>,
    pub(super) peer: Arc<Peer>,
    pub(super) index: u32,
    pub(super) worker: usize,
    pub(super) hosting: H,
    pub(super) metrics: Rc<Block<AgentMetric>>,
    /// Its replacement is being dialled.
    pub(super) renewing: Cell<bool>,
    /// A server is being dialled: it may have accepted already.
    pub(super) dialling: Cell<bool>,
}

type LocalBoxFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// Something is under way.
struct Under<'a>(&'a Cell<bool>);

impl<'a> Under<'a> {
    fn way(flag: &'a Cell<bool>) -> Self {
        flag.set(true);
        Self(flag)
    }
}

impl Drop for Under<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl<H: Hosting> Connection<H> {
    /// Until the peer is left, or the connection given up.
    pub(super) async fn run(self) {
        let this = Rc::new(self);
        let mut backoff = Backoff::new(this.agent.config.reconnect_base, this.agent.config.reconnect_max);
        let mut retired = JoinSet::new();
        loop {
            let tunnel = tokio::select! {
                biased;
                () = this.peer.leaving() => break,
                tunnel = Box::pin(this.establish(&mut backoff)) => tunnel,
            };
            let Some(tunnel) = tunnel else {
                this.note(ConnectionState::GivenUp);
                this.peer.leaving().await;
                break;
            };
            let served = Box::pin(this.keep(tunnel, &mut backoff, &mut retired)).await;
            if this.peer.phase() != Phase::Open {
                break;
            }
            this.metrics.inc(AgentMetric::Lost);
            let delay = after_tunnel(&mut backoff, &served);
            let (agent, server) = (&this.agent.config.name, this.peer.address);
            tracing::info!(
                event = "connection_closed", %agent, %server, connection = this.index, reason = %served.end,
                lived = ?served.lived, used = served.used, ?delay, "tunnel ended"
            );
            this.peer.with_slot(this.index, |slot| slot.failed(EventKind::Ended, served.end.into_owned()));
            this.pause(delay).await;
        }
        while retired.join_next().await.is_some() {}
        this.note(ConnectionState::Closed);
    }

    /// Has the tunnel served until it ends, and replaced whenever that is due: **the replacement is accepted before the old
    /// one is closed**. What became of the last one.
    async fn keep(
        self: &Rc<Self>,
        mut tunnel: Established,
        backoff: &mut Backoff,
        retired: &mut JoinSet<()>,
    ) -> Served {
        let mut pace = Pace::default();
        loop {
            let (established, meter, protocol) = (Instant::now(), tunnel.io.meter(), tunnel.protocol());
            let (tenure, mut orders) = (Tenure::new(&tunnel), self.peer.orders());
            let served = || Served {
                lived: established.elapsed(),
                used: match protocol {
                    TunnelProtocol::Http1 => meter.read() >= USED,
                    TunnelProtocol::Http2 => tenure.is_used(),
                },
                end: tenure.end(),
            };
            let mut hosted = Box::pin(Rc::clone(self).host(tunnel, Rc::clone(&tenure)));
            let mut replaced = Box::pin(async {
                let reason = tenure.due(&self.agent, &mut orders).await;
                at_most(MOST_RETIRED - 1, retired).await;
                if reason.is_the_servers() {
                    sleep(pace.pause(established.elapsed(), backoff)).await;
                }
                (reason, self.replacement(reason, backoff).await)
            });
            let came = tokio::select! {
                biased;
                () = &mut hosted => self.under_way(replaced.as_mut()).await.map(|(_, next)| (None, next)),
                () = self.peer.leaving() => {
                    hosted.as_mut().await;
                    None
                }
                (reason, next) = &mut replaced => Some((Some(reason), next)),
            };
            drop(replaced);
            let Some((reason, next)) = came else { return served() };
            self.metrics.inc(AgentMetric::Replaced);
            tunnel = next;
            // Unless the old one is over.
            if let Some(reason) = reason {
                tenure.retire();
                let (agent, server) = (&self.agent.config.name, self.peer.address);
                tracing::info!(%agent, %server, connection = self.index, ?reason, "tunnel replaced");
                retired.spawn_local(Rc::clone(self).retire(hosted, tenure, reason));
            }
            while retired.try_join_next().is_some() {}
        }
    }

    /// Establishes another tunnel, which is to take the place of one that serves. Whatever fails, the old one goes on.
    async fn replacement(&self, reason: Reason, backoff: &mut Backoff) -> Established {
        let _renewing = Under::way(&self.renewing);
        let mut failures = 0_u32;
        loop {
            let error = match self.attempt().await {
                Ok(tunnel) => return tunnel,
                Err(error) => error,
            };
            self.count(&error);
            failures += 1;
            if reason == Reason::Listener && failures.is_multiple_of(UNREACHABLE) && error.is_unreachable() {
                // Envoy's dialect has one word for a server that drains and for a listener that changes.
                self.agent.avoid(self.peer.address);
            }
            let delay = self.delay(&error, backoff);
            let (agent, server) = (&self.agent.config.name, self.peer.address);
            tracing::info!(%agent, %server, connection = self.index, ?reason, %error, ?delay, "not replaced yet");
            self.tell("handshake_failure", &error.to_string(), None);
            sleep(delay).await;
        }
    }

    /// What the dial that is under way brings, though the old tunnel is over: its server may have accepted, and have sent requests
    /// by now.
    async fn under_way<T>(&self, mut replaced: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        let answer = std::future::poll_fn(|cx| {
            if !self.dialling.get() {
                return Poll::Ready(None);
            }
            match replaced.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(Some(answer)),
                Poll::Pending if self.dialling.get() => Poll::Pending,
                Poll::Pending => Poll::Ready(None),
            }
        });
        tokio::select! {
            biased;
            () = self.peer.leaving() => None,
            answer = answer => answer,
        }
    }

    /// Has the old tunnel closed by the server once nothing is in flight on it.
    async fn retire(self: Rc<Self>, mut hosted: LocalBoxFuture<()>, tenure: Rc<Tenure>, reason: Reason) {
        let most = self.agent.config.graceful_close_max_wait;
        let close = async {
            if let Reason::ServerDrains(within) = reason {
                // It sends its last requests through it, and closes it itself.
                return sleep(within.max(most)).await;
            }
            let announced = async {
                // Envoy's dialect has no word for it: HTTP/2's GOAWAY says it.
                match self.agent.config.envoy {
                    Some(_) => Ok(false),
                    None => keeper::announce(&self.agent, &self.peer, None, &tenure.names).await,
                }
            };
            let told = timeout(most, announced).await;
            if !matches!(told, Ok(Ok(true))) {
                tracing::debug!(server = %self.peer.address, ?told, "a replaced tunnel's close is not acknowledged");
                sleep(SETTLE).await;
                tenure.drain(most);
            }
            sleep(most).await;
        };
        tokio::select! {
            biased;
            () = &mut hosted => {}
            () = close => tracing::info!(server = %self.peer.address, "a replaced tunnel was cut off"),
        }
    }

    /// Tries until a tunnel stands; `None`: given up.
    async fn establish(&self, backoff: &mut Backoff) -> Option<Established> {
        let config = &self.agent.config;
        let mut failures = 0_u32;
        loop {
            let error = match self.attempt().await {
                Ok(tunnel) => return Some(tunnel),
                Err(error) => error,
            };
            failures += 1;
            self.count(&error);
            let delay = self.delay(&error, backoff);
            tracing::warn!(
                event = "handshake_failure",
                agent = %config.name, server = %self.peer.address, connection = self.index, %error, ?delay,
                "no tunnel"
            );
            self.tell("handshake_failure", &error.to_string(), None);
            self.peer.with_slot(self.index, |slot| slot.failed(EventKind::Failed, error.to_string()));
            if failures.is_multiple_of(UNREACHABLE) && error.is_unreachable() && self.peer.live() == 0 {
                // Another one of the list takes its place, if there is any.
                self.agent.avoid(self.peer.address);
            }
            if config.retry_times.is_some_and(|times| failures >= times) {
                self.metrics.inc(AgentMetric::GivenUp);
                tracing::error!(
                    agent = %config.name, server = %self.peer.address, connection = self.index, failures,
                    "tunnel connection given up after connect_retry_times failures"
                );
                return None;
            }
            self.pause(delay).await;
        }
    }

    fn delay(&self, error: &DialError, backoff: &mut Backoff) -> Duration {
        match error.retry() {
            Retry::Normal => backoff.next_delay(),
            Retry::Slow => self.agent.config.reconnect_max.mul_f64(fastrand::f64().midpoint(1.0)),
            // Its word, and not all at once, but neither sooner nor later than our own back-off could be.
            Retry::After(after) => {
                let config = &self.agent.config;
                after.min(config.reconnect_max).max(config.reconnect_base).mul_f64(1.0 + fastrand::f64() / 2.0)
            }
        }
    }

    /// One attempt, once there is a listener to host it, and secrets to dial with.
    async fn attempt(&self) -> Result<Established, DialError> {
        let config = &self.agent.config;
        self.note(ConnectionState::WaitingForListener);
        self.hosting.hosted(&config.hosting_listener).await;
        self.note(ConnectionState::WaitingForSecret);
        let target = self.agent.target(&self.peer).await;
        // Never closed.
        let _permit = self.peer.dials.acquire().await;
        self.note(ConnectionState::Dialing);
        self.metrics.inc(AgentMetric::Dials);
        let _dialling = Under::way(&self.dialling);
        timeout(config.connect_timeout, self.dial(&target)).await.map_err(|_| DialError::Timeout)?
    }

    async fn dial(&self, target: &Target) -> Result<Established, DialError> {
        let config = &self.agent.config;
        let told = |kind, detail| self.peer.with_slot(self.index, |slot| slot.step(kind, detail));
        if let Some(envoy) = &config.envoy {
            let token = match &config.credential {
                Some(configured) => Some(credential::read(&configured.value).await?),
                None => None,
            };
            let initiator = Initiator {
                config: envoy,
                node: self.agent.host_name(),
                cluster: &config.cluster,
                worker: self.worker,
                connection: self.index,
                token,
            };
            return super::envoy::establish(target, &initiator, &told).await;
        }
        let mut init = Init {
            cluster_name: config.cluster.to_string(),
            weight: i64::from(*self.agent.weight.borrow()),
            host_name: self.agent.host_name().to_owned(),
            instance: Some(self.agent.instance),
            ..Init::default()
        };
        offer(&mut init, config.protocol, self.index);
        if let Some(configured) = &config.credential {
            init.credential_policy = configured.policy.to_string();
            init.credential = credential::read(&configured.value).await?;
        }
        let bound = config.credential.as_ref().is_some_and(|credential| credential.bound);
        dial::establish(target, init, bound, &told).await
    }

    fn count(&self, error: &DialError) {
        self.metrics.inc(match error {
            DialError::Refused(..) | DialError::Envoy(ResponseError::Refused { .. }) => {
                self.metrics.inc(AgentMetric::Refused);
                AgentMetric::HandshakeFailures
            }
            error if error.in_handshake() => AgentMetric::HandshakeFailures,
            _ => AgentMetric::DialFailures,
        });
    }

    async fn pause(&self, delay: Duration) {
        self.note(ConnectionState::BackingOff);
        tokio::select! {
            biased;
            () = self.peer.leaving() => {}
            () = sleep(delay) => self.metrics.inc(AgentMetric::Reconnects),
        }
    }

    fn note(&self, state: ConnectionState) {
        // While it is replaced, a connection is established.
        if self.renewing.get() && state != ConnectionState::Established {
            return;
        }
        self.peer.note(self.index, self.worker, state);
    }
}

/// Waits until no more than so many tunnels that were replaced are left.
async fn at_most(count: usize, retired: &mut JoinSet<()>) {
    while retired.len() > count {
        retired.join_next().await;
    }
}

/// Says what we can do beyond MOSN, and what the connection of that index should carry: the first one HTTP/2, the others
/// HTTP/1, whose requests then share a connection with nobody.
fn offer(init: &mut Init, choice: ProtocolChoice, index: u32) {
    init.caps = vec![CAPABILITY.to_owned()];
    let wish = match choice {
        ProtocolChoice::Fixed(TunnelProtocol::Http1) => return,
        ProtocolChoice::Fixed(TunnelProtocol::Http2) => Carried::Http2,
        ProtocolChoice::Negotiated if index == 0 => Carried::Http2,
        ProtocolChoice::Negotiated => Carried::Http1,
    };
    init.caps.push(CAPABILITY_HTTP2.to_owned());
    init.protocol = Some(wish);
}

/// A server that so many dials in a row have not reached is replaced by the next one in the agent's ranking.
const UNREACHABLE: u32 = 3;
/// Tunnels that were replaced and are not closed yet: no further one is dialled before one of them is.
const MOST_RETIRED: usize = 8;
/// How long a request that the server sent before it read the graceful close may be on its way.
const SETTLE: Duration = Duration::from_millis(500);
