//! Where tunnels meet listeners and clusters: the tunnel network filter, and hosting for agents.

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use culvert_http::{ClientExchange, Io};
use culvert_model::tunnel::{NamePattern, TunnelServer};
use culvert_runtime::drain::Watch;
use culvert_runtime::telemetry::{Scope, ScopePath};
use culvert_tunnel::agent::{Hosted, Hosting};
use culvert_tunnel::metrics::ServerMetric;
use culvert_tunnel::server::{
    Acceptor, Arrival, Claim, CloseReason, Ended, HostLease, HostRegistry, Peer, PeerNames, Place, Refusal,
};
use culvert_upstream::{Clusters, RegisterError, ReverseNames, TunnelClaim, TunnelEnd, TunnelLease};
use tokio::time::Instant;

use crate::listener::{Active, Downstream, OfTunnel, Requests, serve_hosted};
use crate::worker::{Counters, Process, Worker};

/// The tunnel network filter of one chain.
#[derive(Debug)]
pub(crate) struct TunnelFilter {
    pub(crate) acceptor: Arc<Acceptor>,
    pub(crate) stats: Scope<ServerMetric>,
}

impl TunnelFilter {
    pub(crate) fn new(config: &TunnelServer, acceptor: Arc<Acceptor>, process: &Process) -> Arc<Self> {
        let path = ScopePath::named("tunnel_server", "culvert_tunnel_server_prefix", Arc::clone(&config.stat_prefix));
        Arc::new(Self { acceptor, stats: process.registry.scope(path) })
    }
}

/// The tunnel filter on one worker.
#[derive(Debug)]
pub(crate) struct WorkerTunnel {
    filter: Arc<TunnelFilter>,
    counters: Counters<ServerMetric>,
}

impl WorkerTunnel {
    pub(crate) fn new(filter: &Arc<TunnelFilter>) -> Rc<Self> {
        Rc::new(Self { counters: Counters::new(&filter.stats), filter: Arc::clone(filter) })
    }
}

/// The place of a connection whose TLS comes before its handshake as a tunnel; counted as that already.
pub(crate) type Admission = Box<(Place, Active<ServerMetric>)>;

/// Before TLS; `None`: the connection is to be closed.
pub(crate) fn admit(tunnel: &WorkerTunnel, address: SocketAddr) -> Option<Admission> {
    let place = tunnel.filter.acceptor.admit(address, &tunnel.counters)?;
    Some(Box::new((place, Active::new(&tunnel.counters, ServerMetric::Pending, None))))
}

/// Runs an accepted connection as a tunnel, from its handshake to its end.
pub(crate) fn serve<'a>(
    tunnel: &'a WorkerTunnel,
    hosts: &'a ClusterHosts<'a>,
    io: Io,
    admission: Option<Admission>,
    downstream: &'a Downstream,
    watch: &'a Watch,
) -> impl Future<Output = Ended> {
    let certificate = downstream.tls.as_ref().and_then(|tls| tls.peer.as_deref());
    let name = certificate.and_then(|peer| peer.uri_sans.first().or(peer.dns_sans.first()));
    let chain = downstream.tls.as_ref().map(|tls| Arc::clone(&tls.chain)).unwrap_or_default();
    let names = certificate.map(|peer| PeerNames {
        uris: peer.uri_sans.clone(),
        dns: peer.dns_sans.clone(),
        expires: Some(peer.not_after),
        chain,
    });
    let agreed =
        downstream.tls.as_ref().map(|tls| Box::new((Instant::now(), format!("{} {}", tls.version, tls.cipher))));
    let peer = Peer {
        address: Some(downstream.remote),
        identity: name.map(|name| name.as_str().into()),
        names: names.map(Arc::new),
        arrival: Some(Arrival { at: downstream.start, tls: agreed }),
    };
    let place = admission.map(|admission| admission.0);
    tunnel.filter.acceptor.serve(io, peer, place, hosts, &tunnel.counters, watch)
}

/// Admitted agents become hosts of clusters.
#[derive(Debug)]
pub(crate) struct ClusterHosts<'a>(pub(crate) &'a Clusters);

impl HostRegistry for ClusterHosts<'_> {
    type Lease = Lease;

    async fn register(&self, claim: Claim) -> Result<Lease, Refusal> {
        let reverse = claim.reverse.as_ref().map(|reverse| {
            let (node, cluster, joins) = (&claim.host_name, &claim.cluster, reverse.joins_named_cluster);
            Box::new(ReverseNames::new(node, cluster, &reverse.tenant, reverse.isolated, joins))
        });
        let claim = TunnelClaim {
            reverse,
            cluster: claim.cluster,
            agent: claim.host_name,
            weight: claim.weight,
            peer: claim.peer.address,
            protocol: claim.protocol,
            http2: claim.http2,
            queue_timeout: claim.queue_timeout,
            reconnect_window: claim.reconnect_window,
            ping_interval: claim.ping_interval,
            max_queued_requests: claim.max_queued_requests,
            max_connections_per_agent: claim.max_connections_per_agent,
            may_serve: claim.may_serve,
        };
        match self.0.register(claim).await {
            Ok(lease) => Ok(Lease(lease)),
            // Whoever admits agents says so, at info and not as often as anybody likes.
            Err(error) => {
                tracing::debug!(%error, "a tunnel is refused");
                Err(match error {
                    RegisterError::ClusterUnknown(_) => Refusal::ClusterUnknown,
                    RegisterError::TooManyConnections { .. } => Refusal::TooManyConnections,
                })
            }
        }
    }
}

/// A tunnel's place among the hosts of its cluster.
#[derive(Debug)]
pub(crate) struct Lease(TunnelLease);

impl HostLease for Lease {
    async fn wanted(&self) {
        self.0.wanted().await;
    }

    fn attach(&self, io: Io) -> impl Future<Output = CloseReason> {
        let mut attached = self.0.attach(io);
        // Smaller than an async block around it.
        std::future::poll_fn(move |cx| Pin::new(&mut attached).poll(cx).map(reason))
    }

    fn drain(&self) {
        self.0.drain();
    }

    fn is_idle(&self) -> bool {
        self.0.is_idle()
    }

    fn carried(&self) -> u64 {
        self.0.carried()
    }

    fn say_goodbye(&self) {
        self.0.say_goodbye();
    }

    fn set_weight(&self, weight: u32) {
        self.0.set_weight(weight);
    }

    fn set_may_serve(&self, clusters: &Arc<[NamePattern]>) -> bool {
        self.0.set_may_serve(Some(Arc::clone(clusters)))
    }

    fn end_lapsed(&self) -> bool {
        self.0.end_lapsed()
    }

    async fn exchange(&self) -> Option<ClientExchange> {
        self.0.exchange().await
    }
}

fn reason(end: TunnelEnd) -> CloseReason {
    match end {
        TunnelEnd::Closed => CloseReason::Closed,
        TunnelEnd::Taken => CloseReason::Taken,
        TunnelEnd::Drained => CloseReason::Drained,
        TunnelEnd::ClusterRemoved => CloseReason::ClusterRemoved,
        TunnelEnd::ProtocolFailure => CloseReason::ProtocolFailure,
        TunnelEnd::TlsFailure => CloseReason::TlsFailure,
    }
}

/// Serves what tunnels bring as accepted connections of this worker's listeners.
#[derive(Debug, Clone)]
pub struct TunnelHosting {
    worker: Rc<Worker>,
}

impl TunnelHosting {
    #[must_use]
    pub fn new(worker: Rc<Worker>) -> Self {
        Self { worker }
    }
}

impl Hosting for TunnelHosting {
    async fn hosted(&self, listener: &str) {
        self.worker.process.listeners.active(listener).await;
    }

    async fn serve(&self, io: Io, hosted: Hosted) {
        let slot = self.worker.process.listeners.active(&hosted.listener).await;
        let outdated = || {
            hosted.outdated.notify_one();
            true
        };
        let ends = (hosted.peer, hosted.local);
        let of_tunnel = OfTunnel {
            ping_interval: Some(hosted.ping_interval),
            destinations: hosted.destinations,
            outdated: Some(Arc::clone(&hosted.outdated)),
        };
        serve_hosted(&self.worker, &slot, io, ends, of_tunnel, hosted.drain.draining(), outdated).await;
    }

    type Requests = Requests;

    fn requests(&self, hosted: &Hosted) -> Requests {
        Requests::new(&self.worker, hosted)
    }
}

#[cfg(test)]
mod tests;
