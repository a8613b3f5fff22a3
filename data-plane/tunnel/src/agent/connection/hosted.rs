//! An established tunnel while it serves: until it ends, is silently gone, or its peer is closed.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use culvert_http::Io;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::super::chronicle::Stood;
use super::super::dial::Established;
use super::super::peer::Phase;
use super::super::slot::Tunnel;
use super::super::tenure::Tenure;
use super::super::{Hosted, Hosting, mux};
use super::{Connection, SETTLE};
use crate::dialect::Dialect;
use crate::envoy::ping;
use crate::http2::recorded;
use crate::keepalive;
use crate::metrics::AgentMetric;
use crate::status::ConnectionState;

impl<H: Hosting> Connection<H> {
    /// Has the tunnel served until it ends; when the peer is closed, as long as that lets it.
    pub(super) async fn host(self: Rc<Self>, mut tunnel: Established, tenure: Rc<Tenure>) {
        let _live = Live::begin(&self, &mut tunnel);
        let hosted = Hosted {
            listener: self.agent.config.hosting_listener.clone(),
            agent: self.agent.config.name.clone(),
            peer: self.peer.address,
            local: tunnel.local,
            drain: tenure.watch(),
            ping_interval: self.agent.config.ping_interval,
            destinations: Arc::clone(&self.agent.config.destinations),
            outdated: Arc::clone(&tenure.outdated),
        };
        let mut lost = pin!(keepalive::lost(keepalive::ends(&tunnel.io), self.agent.config.ping_interval, || self
            .metrics
            .inc(AgentMetric::StalledWrites)));
        // A task of its own: each of its requests would wake everything that is waited for here. A panic is logged by its
        // hook, and the tunnel is dialled anew.
        let (serving, used) = (Rc::clone(&self), Rc::clone(&tenure));
        let mut served =
            AbortOnDropHandle::new(spawn_local(Box::pin(async move { serving.serve(tunnel, hosted, &used).await })));
        let phase = tokio::select! {
            biased;
            _ = &mut served => return,
            () = &mut lost => return tenure.note_end(SILENT),
            phase = self.peer.reached(|phase| phase > Phase::Leaving) => phase,
        };
        if !tenure.is_retired() {
            self.note(ConnectionState::Draining);
        }
        let cut = async {
            if let Phase::Draining { deadline, acknowledged: false } = phase {
                // The server has been told but does not say when it knows: a request may be on its way still.
                sleep_until(deadline.min(Instant::now() + SETTLE)).await;
                tenure.drain(deadline.saturating_duration_since(Instant::now()));
            }
            self.peer.reached(|phase| phase == Phase::Cut).await
        };
        let (agent, server) = (&self.agent.config.name, self.peer.address);
        tokio::select! {
            biased;
            _ = served => {}
            () = lost => tenure.note_end(SILENT),
            _ = cut => tracing::info!(
                %agent, %server, connection = self.index, "tunnel cut off: graceful_close_max_wait is over"
            ),
        }
    }

    fn dialect(&self, capable: bool) -> Dialect {
        match (&self.agent.config.envoy, capable) {
            (Some(_), _) => Dialect::Envoy,
            (None, true) => Dialect::Culvert,
            (None, false) => Dialect::Mosn,
        }
    }

    /// As what was agreed on.
    async fn serve(&self, tunnel: Established, hosted: Hosted, tenure: &Rc<Tenure>) {
        if self.agent.config.envoy.is_some() {
            return self.serve_envoy(tunnel.io, hosted, tenure).await;
        }
        let Some(round_trip) = tunnel.round_trip else { return self.hosting.serve(tunnel.io, hosted).await };
        self.metrics.inc(AgentMetric::ActiveHttp2);
        let (agent, peer) = (Arc::clone(&self.agent), Arc::clone(&self.peer));
        let link = mux::Link { agent, peer, tenure: Rc::clone(tenure) };
        let serving = pin!(mux::serve(&self.hosting, tunnel.io, hosted, link, round_trip.clone()));
        let measured = |time: Duration| self.peer.with_slot(self.index, |slot| slot.pinged(time));
        recorded(&round_trip, &self.metrics, || AgentMetric::RoundTripMs, measured, serving).await;
        self.metrics.dec(AgentMetric::ActiveHttp2);
    }

    /// In Envoy's dialect, from the first byte that is no ping.
    async fn serve_envoy(&self, mut io: Io, hosted: Hosted, tenure: &Tenure) {
        let first = tokio::select! {
            biased;
            () = hosted.drain.draining() => return,
            first = ping::echo(&mut io, Bytes::new(), &self.peer.patience, || tenure.note_unpinged()) => first,
        };
        match first {
            Ok(first) => self.hosting.serve(io.with_prefix(first), hosted).await,
            Err(reason) => {
                let (agent, server) = (&self.agent.config.name, self.peer.address);
                tracing::info!(%agent, %server, connection = self.index, %reason, "an unused tunnel ends");
                tenure.note_end(reason.to_string());
            }
        }
    }
}

/// Counts an established connection as long as it lives.
struct Live<'a, H> {
    connection: &'a Connection<H>,
    stood: Stood,
}

impl<'a, H: Hosting> Live<'a, H> {
    fn begin(connection: &'a Connection<H>, tunnel: &mut Established) -> Self {
        let (peer, metrics) = (&*connection.peer, &*connection.metrics);
        metrics.inc(AgentMetric::Established);
        metrics.inc(AgentMetric::Active);
        connection.note(ConnectionState::Established);
        let meter = tunnel.io.meter();
        let dialect = connection.dialect(tunnel.capable);
        peer.with_slot(connection.index, |slot| {
            slot.stands(Tunnel {
                local: tunnel.local,
                id: tunnel.id.clone(),
                dialect,
                protocol: (dialect != Dialect::Envoy).then(|| tunnel.protocol().name()),
                round_trip: tunnel.round_trip.clone(),
                meter: Arc::clone(&meter),
                pinged: false,
            });
        });
        peer.learn(tunnel.capable);
        peer.count_live(true);
        tracing::info!(
            event = "handshake_success",
            agent = %connection.agent.config.name, server = %peer.address, connection = connection.index,
            local = %tunnel.local, id = tunnel.id, "tunnel established"
        );
        let stood = Stood { local: tunnel.local, began: Instant::now(), meter };
        connection.tell("handshake_success", "", Some(&stood));
        Self { connection, stood }
    }
}

impl<H> Drop for Live<'_, H> {
    fn drop(&mut self) {
        self.connection.metrics.dec(AgentMetric::Active);
        self.connection.peer.count_live(false);
        self.connection.tell("connection_closed", "", Some(&self.stood));
    }
}

const SILENT: &str = "the server is silently gone";
