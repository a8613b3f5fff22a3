//! The TCP proxy: bytes both ways, each direction closed when its sender closes it.
//!
//! **An idle connection holds no buffer**: one is taken from the worker's free list when bytes are there and given back
//! when they have been passed on.

mod copy;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use culvert_http::{BodyKind, ClientExchange, Io, Method, RequestHead, ResponseHead};
use culvert_model::listener;
use culvert_model::route::{AgentSelector, Priority};
use culvert_runtime::telemetry::{Scope, ScopePath};
use culvert_upstream::{ClusterSlot, DownstreamProtocol, PickContext, TcpCheckout, TcpUpstream, UpstreamFailure};
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
            logs: LogTargets::open(&config.access_log, &process.logs)?,
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
    let outcome = match upstream {
        TcpUpstream::Io(mut upstream) => {
            let both = copy_both(&mut io, &mut upstream, &worker.buffers, &limits, &passed);
            limits.run(&mut timer, both).await
        }
        TcpUpstream::Stream(exchange) => {
            let both = Box::pin(over_stream(&mut io, exchange, record.connection, worker, &limits, &passed));
            limits.run(&mut timer, both).await
        }
    };
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
) -> Option<(TcpCheckout, TcpUpstream)> {
    let agent = target.agent.as_ref().and_then(|agent| match agent {
        AgentSelector::Fixed(name) => Some(&**name),
        // The server name that the client asked for says which agent, as a host does for HTTP.
        AgentSelector::HostLabel => record.connection.server_name.as_deref()?.split('.').next(),
        AgentSelector::Header(_) => None,
    });
    // An agent is asked for and not named: no agent has the empty name.
    let agent = agent.or(target.agent.as_ref().map(|_| ""));
    let context = PickContext {
        priority: Priority::Default,
        agent,
        downstream: DownstreamProtocol::Http1,
        tried: &[],
        fresh_picks: 0,
    };
    for attempt in 1..=tcp.proxy.config.max_connect_attempts.max(1) {
        record.attempts = attempt;
        let failure = match attempt_connect(worker, &target.slot, &context).await {
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

async fn attempt_connect(
    worker: &Rc<Worker>,
    slot: &Arc<ClusterSlot>,
    context: &PickContext<'_>,
) -> Result<(TcpCheckout, TcpUpstream), UpstreamFailure> {
    let mut checkout = worker.pools.checkout_tcp(slot, context).await?;
    // A fresh checkout always has its connection.
    let upstream = checkout.take().ok_or(UpstreamFailure::TunnelClosed)?;
    Ok((checkout, upstream))
}

const fn flag_of(failure: &UpstreamFailure) -> ResponseFlag {
    match failure {
        UpstreamFailure::NoCluster => ResponseFlag::NoClusterFound,
        UpstreamFailure::Overflow(_) | UpstreamFailure::QueueFull | UpstreamFailure::QueueTimeout => {
            ResponseFlag::UpstreamOverflow
        }
        UpstreamFailure::DropOverload => ResponseFlag::DropOverload,
        UpstreamFailure::NoHealthyHost | UpstreamFailure::AgentUnknown | UpstreamFailure::AgentOffline => {
            ResponseFlag::NoHealthyUpstream
        }
        UpstreamFailure::ConnectFailure { .. }
        | UpstreamFailure::ConnectTimeout { .. }
        | UpstreamFailure::TlsFailure { .. }
        | UpstreamFailure::ProtocolFailure { .. }
        | UpstreamFailure::TunnelClosed => ResponseFlag::UpstreamConnectionFailure,
    }
}

/// Carries the connection over a stream of an HTTP/2 tunnel: a CONNECT, then its bytes.
async fn over_stream(
    io: &mut Io,
    mut exchange: ClientExchange,
    downstream: &Downstream,
    worker: &Worker,
    limits: &Limits,
    passed: &Passed,
) -> io::Result<()> {
    let request =
        RequestHead { method: Method::Connect, authority: downstream.local.to_string(), ..RequestHead::default() };
    exchange.send_head(&request, BodyKind::Empty).await.map_err(io::Error::other)?;
    let (mut sink, mut source) = exchange.split();
    sink.flush().await.map_err(io::Error::other)?;
    let mut response = ResponseHead::default();
    let kind = source.head(&mut response).await.map_err(io::Error::other)?;
    if kind != BodyKind::Tunnel {
        return Err(io::Error::other(format!("the tunnel's other end answered {}", response.status)));
    }
    let (reader, writer) = tokio::io::split(io);
    let mut up = pin!(async {
        let mut reader = reader;
        let mut buffer = worker.buffers.take();
        loop {
            let count = tokio::io::AsyncReadExt::read(&mut reader, buffer.space()).await?;
            let bytes = buffer.space().get(..count).unwrap_or_default();
            if bytes.is_empty() {
                return sink.finish(None).await.map_err(io::Error::other);
            }
            limits.touch();
            passed.up.set(passed.up.get() + count as u64);
            sink.data(culvert_http::Chunk::Borrowed(bytes)).await.map_err(io::Error::other)?;
        }
    });
    let mut down = pin!(async {
        let mut writer = writer;
        while let Some(chunk) = source.chunk().await.map_err(io::Error::other)? {
            limits.touch();
            passed.down.set(passed.down.get() + chunk.len() as u64);
            tokio::io::AsyncWriteExt::write_all(&mut writer, &chunk).await?;
        }
        tokio::io::AsyncWriteExt::shutdown(&mut writer).await
    });
    let (mut up_done, mut down_done) = (false, false);
    poll_fn(|cx| {
        if !up_done && let Poll::Ready(result) = up.as_mut().poll(cx) {
            up_done = true;
            result?;
        }
        if !down_done && let Poll::Ready(result) = down.as_mut().poll(cx) {
            down_done = true;
            result?;
        }
        if up_done && down_done { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}
