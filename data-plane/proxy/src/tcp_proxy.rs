//! The TCP proxy: bytes both ways, each direction closed when its sender closes it.
//!
//! **An idle connection holds no buffer**: one is taken from the worker's free list when bytes are there and given back
//! when they have been passed on.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use culvert_http::{BodyKind, ClientExchange, Io, Method, RequestHead, ResponseHead};
use culvert_model::listener;
use culvert_model::route::{AgentSelector, Priority};
use culvert_runtime::telemetry::{Scope, ScopePath};
use culvert_upstream::{ClusterSlot, DownstreamProtocol, PickContext, TcpCheckout, TcpUpstream, UpstreamFailure};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::access_log::{LogTargets, WorkerLogs};
use crate::flags::ResponseFlag;
use crate::listener::{CompileError, Downstream};
use crate::record::{Record, Scene, UpstreamSide};
use crate::router::limits::{Expired, Limits};
use crate::routes::{Target, Targets};
use crate::stats::TcpMetric;
use crate::worker::{Counters, Pool, Pooled, Process, Reusable, Worker};

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
    let mut timer = worker.timers.timer();
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
        Err(Expired::Overall | Expired::Attempt) => {
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
    let context = PickContext { priority: Priority::Default, agent, downstream: DownstreamProtocol::Http1 };
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

/// Bytes that have passed.
#[derive(Debug, Default)]
struct Passed {
    up: Cell<u64>,
    down: Cell<u64>,
}

/// Copies until both directions have ended, or one of them breaks.
async fn copy_both(
    client: &mut Io,
    host: &mut Io,
    buffers: &Pool<CopyBuffer>,
    limits: &Limits,
    passed: &Passed,
) -> io::Result<()> {
    let mut up = Direction::default();
    let mut down = Direction::default();
    poll_fn(|cx| {
        let up_done = up.poll(cx, client, host, buffers, limits, &passed.up)?;
        let down_done = down.poll(cx, host, client, buffers, limits, &passed.down)?;
        if up_done.is_ready() && down_done.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Direction {
    /// Held only while there are bytes in it.
    buffer: Option<Pooled<CopyBuffer>>,
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Copying,
    /// The reader has ended; the writer is told.
    Ending,
    Ended,
}

impl Direction {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Io,
        to: &mut Io,
        buffers: &Pool<CopyBuffer>,
        limits: &Limits,
        passed: &Cell<u64>,
    ) -> Poll<io::Result<()>> {
        loop {
            match self.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Ended;
                }
                State::Copying => {
                    let buffer = self.buffer.get_or_insert_with(|| buffers.take());
                    let moved = buffer.poll_move(cx, from, to, passed);
                    if buffer.is_empty() {
                        self.buffer = None;
                    }
                    match ready!(moved)? {
                        0 => self.state = State::Ending,
                        _ => limits.touch(),
                    }
                }
            }
        }
    }
}

/// A buffer for bytes on their way.
#[derive(Debug)]
pub(crate) struct CopyBuffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// Something was written that the writer may still hold.
    unflushed: bool,
}

impl Default for CopyBuffer {
    fn default() -> Self {
        Self { bytes: vec![0; COPY_BUFFER].into_boxed_slice(), start: 0, end: 0, unflushed: false }
    }
}

impl Reusable for CopyBuffer {
    fn recycle(&mut self) -> bool {
        self.start = 0;
        self.end = 0;
        self.unflushed = false;
        true
    }
}

/// One `readv`'s worth.
const COPY_BUFFER: usize = 64 * 1024;

impl CopyBuffer {
    const fn is_empty(&self) -> bool {
        self.start == self.end && !self.unflushed
    }

    /// Reads if there is nothing to write, writes all that there is. Ready with the number of bytes that were passed on;
    /// 0: the reader has ended and everything was written.
    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Io,
        to: &mut Io,
        passed: &Cell<u64>,
    ) -> Poll<io::Result<usize>> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            let mut read = ReadBuf::new(&mut self.bytes);
            match Pin::new(&mut *from).poll_read(cx, &mut read) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(to).poll_flush(cx))?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
            self.end = read.filled().len();
            if self.end == 0 {
                self.unflushed = false;
                return Poll::Ready(Ok(0));
            }
        }
        let mut written = 0;
        while self.start < self.end {
            let rest = self.bytes.get(self.start..self.end).unwrap_or_default();
            match Pin::new(&mut *to).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => {
                    self.start += count;
                    self.unflushed = true;
                    written += count;
                    passed.set(passed.get() + count as u64);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if written > 0 => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(written))
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
            let count = tokio::io::AsyncReadExt::read(&mut reader, &mut buffer.bytes).await?;
            let bytes = buffer.bytes.get(..count).unwrap_or_default();
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
