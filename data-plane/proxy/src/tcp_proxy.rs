//! The TCP proxy: bytes both ways, each direction closed when its sender closes it.
//!
//! **An idle connection holds no buffer**: one is taken from the worker's free list when bytes are there and given back
//! when they have been passed on.

mod copy;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use culvert_http::Io;
use culvert_model::listener;
use culvert_model::route::{AgentSelector, Priority};
use culvert_runtime::telemetry::{Scope, ScopePath};
use culvert_upstream::{
    ClusterMetric, ClusterSlot, DownstreamProtocol, PickContext, TcpCheckout, TcpUpstream, UpstreamFailure,
};
use tokio::time::Instant;

pub(crate) use copy::CopyBuffer;

use self::copy::{Passed, copy_both};
use crate::access_log::{LogTargets, WorkerLogs};
use crate::flags::ResponseFlag;
use crate::listener::{CompileError, Downstream};
use crate::record::{Record, Scene, UpstreamSide};
use crate::router::limits::{Expired, Limits};
use crate::routes::{Target, Targets};
use crate::stats::TcpMetric;
use crate::worker::{Counters, Process, Worker};

/// The compiled TCP proxy of one filter chain.
#[derive(Debug)]
pub(crate) struct TcpProxy {
    config: Arc<listener::TcpProxy>,
    targets: Targets,
    logs: LogTargets,
    stats: Scope<TcpMetric>,
}

impl TcpProxy {
    pub(crate) fn compile(config: &Arc<listener::TcpProxy>, process: &Process) -> Result<Arc<Self>, CompileError> {
        Ok(Arc::new(Self {
            targets: Targets::compile(&config.clusters, &process.clusters),
            logs: LogTargets::open(&config.access_log, process)?,
            stats: process.registry.scope(ScopePath::tcp(Arc::clone(&config.stat_prefix))),
            config: Arc::clone(config),
        }))
    }

    fn target(&self) -> Option<&Target> {
        match &self.targets {
            Targets::One(target) => Some(target),
            Targets::Weighted { targets, total } => {
                let point = fastrand::u64(..(*total).max(1));
                targets.iter().find(|(end, _)| point < *end).map(|(_, weighted)| &weighted.target)
            }
            // A TCP connection has no headers; the model refuses this.
            Targets::Header(_) => None,
        }
    }
}

/// A TCP proxy on one worker.
#[derive(Debug)]
pub(crate) struct WorkerTcp {
    proxy: Arc<TcpProxy>,
    counters: Counters<TcpMetric>,
    logs: WorkerLogs,
}

impl WorkerTcp {
    pub(crate) fn new(proxy: &Arc<TcpProxy>) -> Rc<Self> {
        Rc::new(Self { counters: Counters::new(&proxy.stats), logs: proxy.logs.for_worker(), proxy: Arc::clone(proxy) })
    }
}

/// Carries one connection to its end.
pub(crate) async fn serve(tcp: &WorkerTcp, worker: &Rc<Worker>, io: Io, downstream: &Downstream) {
    tcp.counters.inc(TcpMetric::CxTotal);
    let mut record = Record::new(downstream, Instant::now());
    carry(tcp, worker, io, &mut record).await;
    tcp.counters.add(TcpMetric::CxRxBytesTotal, record.bytes_received);
    tcp.counters.add(TcpMetric::CxTxBytesTotal, record.bytes_sent);
    if !tcp.logs.is_empty() {
        record.end = Some(Instant::now());
        let hostname = &*worker.process.hostname;
        tcp.logs.write(&Scene { record: &record, request: None, response: None, trailers: None, hostname });
    }
}

async fn carry<'a>(tcp: &'a WorkerTcp, worker: &Rc<Worker>, mut io: Io, record: &mut Record<'a>) {
    let config = &tcp.proxy.config;
    let Some(target) = tcp.proxy.target() else {
        tcp.counters.inc(TcpMetric::CxNoRoute);
        record.flag(ResponseFlag::NoRouteFound);
        return;
    };
    record.cluster = Some(std::borrow::Cow::Borrowed(&target.name));
    let Some((checkout, upstream)) = connect(tcp, worker, target, record).await else { return };
    let host = checkout.host();
    record.upstream = Some(UpstreamSide {
        host: host.address(),
        host_name: Some(Arc::clone(host.hostname())),
        local: None,
        remote: host.address(),
        protocol: None,
    });
    let limits = Limits::new(Instant::now(), config.idle_timeout);
    limits.overall.set(config.max_downstream_connection_duration.map(|limit| record.start + limit));
    let timers = worker.timers.connection();
    let mut timer = timers.timer();
    let passed = Passed::default();
    let mut upstream = upstream;
    let both = copy_both(&mut io, &mut upstream, &worker.buffers, &limits, &passed);
    let outcome = limits.run(&mut timer, pin!(both)).await;
    record.bytes_received = passed.up.get();
    record.bytes_sent = passed.down.get();
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, connection = record.connection.id, "a TCP connection broke"),
        Err(Expired::Idle) => {
            tcp.counters.inc(TcpMetric::IdleTimeout);
            record.flag(ResponseFlag::StreamIdleTimeout);
        }
        Err(Expired::Overall | Expired::Attempt | Expired::SlowBody) => {
            tcp.counters.inc(TcpMetric::MaxDurationReached);
            record.flag(ResponseFlag::DurationTimeout);
        }
    }
}

/// A connection to a host, after as many attempts as are configured.
async fn connect(
    tcp: &WorkerTcp,
    worker: &Rc<Worker>,
    target: &Target,
    record: &mut Record<'_>,
) -> Option<(TcpCheckout, Io)> {
    let agent = target.agent.as_ref().and_then(|agent| match &agent.selector {
        AgentSelector::Fixed(name) => Some(&**name),
        // The server name that the client asked for says which agent, as a host does for HTTP.
        AgentSelector::HostLabel => record.connection.server_name.as_deref()?.split('.').next(),
        AgentSelector::Header(_) => None,
    });
    // An agent is asked for and not named: no agent has the empty name.
    let agent = agent.or(target.agent.as_ref().map(|_| ""));
    if let Some((choice, agent)) = target.agent.as_ref().zip(agent)
        && !choice.allows(agent)
    {
        worker.pools.count(&target.slot, ClusterMetric::TunnelAgentDenied);
        record.flag(ResponseFlag::TunnelAgentDenied);
        return None;
    }
    let context = PickContext {
        priority: Priority::Default,
        agent,
        request: None,
        downstream: DownstreamProtocol::Http1,
        tried: &[],
        fresh_picks: 0,
        destinations: record.connection.destinations(),
    };
    for attempt in 1..=tcp.proxy.config.max_connect_attempts.max(1) {
        record.attempts = attempt;
        let failure = match attempt_connect(worker, &target.slot, &context, record.connection.local).await {
            Ok(connected) => return Some(connected),
            Err(failure) => failure,
        };
        tracing::debug!(cluster = %target.name, %failure, attempt, "no upstream connection for a TCP connection");
        record.transport_failure = Some(failure.to_string());
        if !failure.is_connect_failure() {
            record.flag(flag_of(&failure));
            return None;
        }
    }
    record.flag(ResponseFlag::UpstreamConnectionFailure);
    if tcp.proxy.config.max_connect_attempts > 1 {
        record.flag(ResponseFlag::UpstreamRetryLimitExceeded);
    }
    None
}

/// A connection to a host; over HTTP/2 of a tunnel, a stream that its other end takes as one. `target` is what the
/// client connected to.
pub(crate) async fn attempt_connect(
    worker: &Rc<Worker>,
    slot: &Arc<ClusterSlot>,
    context: &PickContext<'_>,
    target: SocketAddr,
) -> Result<(TcpCheckout, Io), UpstreamFailure> {
    let mut checkout = worker.pools.checkout_tcp(slot, context).await?;
    // A fresh checkout always has its connection.
    let io = match checkout.take().ok_or(UpstreamFailure::TunnelClosed)? {
        TcpUpstream::Io(io) => io,
        TcpUpstream::Stream(exchange) => {
            let limit = slot.config().map_or(STREAM_TIMEOUT, |config| config.cluster.connect_timeout);
            match tokio::time::timeout(limit, exchange.connect(&target.to_string())).await {
                Ok(Ok(io)) => io,
                Ok(Err(error)) => {
                    tracing::debug!(cluster = %slot.name(), %error, "a tunnel takes no connection");
                    return Err(UpstreamFailure::TunnelClosed);
                }
                Err(_) => {
                    tracing::debug!(cluster = %slot.name(), ?limit, "a tunnel did not take a connection in time");
                    return Err(UpstreamFailure::TunnelClosed);
                }
            }
        }
    };
    Ok((checkout, io))
}

const fn flag_of(failure: &UpstreamFailure) -> ResponseFlag {
    match failure {
        UpstreamFailure::NoCluster => ResponseFlag::NoClusterFound,
        UpstreamFailure::Overflow(_) | UpstreamFailure::QueueFull | UpstreamFailure::QueueTimeout => {
            ResponseFlag::UpstreamOverflow
        }
        UpstreamFailure::DropOverload => ResponseFlag::DropOverload,
        UpstreamFailure::NoHealthyHost => ResponseFlag::NoHealthyUpstream,
        UpstreamFailure::AgentUnknown => ResponseFlag::TunnelAgentUnknown,
        UpstreamFailure::AgentOffline { .. } => ResponseFlag::TunnelAgentOffline,
        UpstreamFailure::DestinationDenied { .. } => ResponseFlag::TunnelDestinationDenied,
        UpstreamFailure::ConnectFailure { .. }
        | UpstreamFailure::ConnectTimeout { .. }
        | UpstreamFailure::TlsFailure { .. }
        | UpstreamFailure::OtherTransport
        | UpstreamFailure::TunnelClosed => ResponseFlag::UpstreamConnectionFailure,
    }
}

/// For a stream to be taken, where the cluster is being removed.
const STREAM_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
