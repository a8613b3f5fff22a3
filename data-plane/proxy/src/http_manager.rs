//! The HTTP connection manager: what all requests of a filter chain have in common. The codecs are `culvert_http`'s;
//! each request goes through [`crate::router`].

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use culvert_http::server::{FloodLimits, Protocol, ServerOptions};
use culvert_http::{Exchange, FieldLine, FieldName, Handler, Io, Meter, RequestHead, ResponseHead, Version};
use culvert_model::http::{Codec, HttpConnectionManager, ServerHeader};
use culvert_runtime::telemetry::{Scope, ScopePath};
use tokio::time::Instant;

use crate::access_log::{LogTargets, WorkerLogs};
use crate::flags::ResponseFlag;
use crate::format::http_date;
use crate::forwarding::append;
use crate::listener::{Active, CompileError, Downstream};
use crate::record::{Record, Scene};
use crate::router::{self, Origin, Stream};
use crate::routing::{Routing, WorkerRouting};
use crate::stats::HttpMetric;
use crate::timer::ConnectionTimers;
use crate::worker::{Counters, Process, Worker};

/// The compiled connection manager of one filter chain. Shared by the workers.
#[derive(Debug)]
pub(crate) struct HttpManager {
    pub(crate) config: Arc<HttpConnectionManager>,
    routing: Routing,
    /// Of the router filter; what comes for it by name reaches connections that are open.
    suppress_envoy_headers: AtomicBool,
    logs: LogTargets,
    stats: Scope<HttpMetric>,
    /// What is given to responses.
    server: FieldLine,
    options: ServerOptions,
    /// Once ALPN has decided.
    http1_options: ServerOptions,
    http2_options: ServerOptions,
}

impl HttpManager {
    pub(crate) fn compile(
        config: &Arc<HttpConnectionManager>,
        process: &Process,
        tls: bool,
    ) -> Result<Arc<Self>, CompileError> {
        let options = options(config, tls);
        Ok(Arc::new(Self {
            routing: Routing::compile(&config.routes, process)?,
            logs: LogTargets::open(&config.access_log, process)?,
            stats: process.registry.scope(ScopePath::http(Arc::clone(&config.stat_prefix))),
            // The model refuses a name that could not stand in a field.
            server: FieldLine::new(SERVER, config.server_name.as_bytes()).unwrap_or(ENVOY),
            http1_options: ServerOptions { protocol: Protocol::Http1, ..options.clone() },
            http2_options: ServerOptions { protocol: Protocol::Http2, ..options.clone() },
            options,
            suppress_envoy_headers: AtomicBool::new(config.router.suppress_envoy_headers),
            config: Arc::clone(config),
        }))
    }

    /// `suppress_envoy_headers` of the moment.
    pub(crate) fn suppresses_envoy_headers(&self) -> bool {
        self.suppress_envoy_headers.load(Ordering::Relaxed)
    }

    pub(crate) fn differs_in_router_only(&self, other: &Self) -> bool {
        let router = self.config.router.clone();
        *self.config == HttpConnectionManager { router, ..HttpConnectionManager::clone(&other.config) }
    }

    /// From now on the router's options are those of `other`.
    pub(crate) fn take_router(&self, other: &Self) {
        self.suppress_envoy_headers.store(other.suppresses_envoy_headers(), Ordering::Relaxed);
    }
}

fn options(config: &HttpConnectionManager, tls: bool) -> ServerOptions {
    let limits = &config.http2.flood_limits;
    ServerOptions {
        protocol: match config.codec {
            Codec::Auto => Protocol::Auto,
            Codec::Http1 => Protocol::Http1,
            Codec::Http2 => Protocol::Http2,
        },
        max_head_bytes: config.max_request_headers_bytes as usize,
        max_fields: config.max_headers_count as usize,
        // Where it is switched off, Envoy's stream idle timeout still ends a head that does not come (and so does this).
        head_timeout: config.request_headers_timeout.or(config.stream_idle_timeout).unwrap_or(SLOWEST_HEAD),
        linger: config.delayed_close_timeout,
        drain_timeout: config.drain_timeout,
        idle_timeout: config.idle_timeout,
        max_duration: config.max_connection_duration,
        max_requests: config.max_requests_per_connection,
        accept_http_10: config.http1.accept_http_10,
        custom_methods: config.http1.allow_custom_methods,
        max_concurrent_streams: config.http2.max_concurrent_streams,
        initial_stream_window: config.http2.initial_stream_window,
        initial_connection_window: config.http2.initial_connection_window,
        keepalive_interval: config.http2.keepalive_interval,
        keepalive_timeout: config.http2.keepalive_timeout,
        extended_connect: config.http2.allow_connect,
        flood_limits: FloodLimits {
            control_frames: limits.control_frames,
            empty_frames: limits.empty_frames,
            priority_frames: limits.priority_frames,
            window_updates: limits.window_updates,
        },
        scheme: if tls { "https" } else { "http" },
        ..ServerOptions::default()
    }
}

/// A tunnel is open as long as both ends want it, used or not, and its server is pinged.
fn hosted(options: &ServerOptions, ping_interval: Duration) -> ServerOptions {
    let mut hosted = ServerOptions { idle_timeout: None, client_ends: true, ..options.clone() };
    if hosted.keepalive_interval.is_none() {
        hosted.keepalive_interval = Some(ping_interval);
        // An interval until the next PING, and most of two for its answer: three in all.
        hosted.keepalive_timeout = ping_interval.mul_f64(1.75);
    }
    hosted
}

const DATE: FieldName = FieldName::of(b"date: ");
const SERVER: FieldName = FieldName::of(b"server: ");
const ENVOY: FieldLine = FieldLine::of(b"server: envoy\r\n");

/// How long a request head may take where no timeout is configured: Envoy's default for idle streams.
const SLOWEST_HEAD: Duration = Duration::from_secs(300);

/// A connection manager on one worker.
#[derive(Debug)]
pub(crate) struct WorkerHttp {
    pub(crate) manager: Arc<HttpManager>,
    pub(crate) routes: WorkerRouting,
    pub(crate) counters: Counters<HttpMetric>,
    pub(crate) logs: WorkerLogs,
}

impl WorkerHttp {
    pub(crate) fn new(manager: &Arc<HttpManager>, worker: &Worker) -> Rc<Self> {
        Rc::new(Self {
            routes: WorkerRouting::new(&manager.routing, worker),
            counters: Counters::new(&manager.stats),
            logs: manager.logs.for_worker(),
            manager: Arc::clone(manager),
        })
    }
}

/// Serves a connection until it ends; `drain` tells it to finish.
pub(crate) async fn serve(
    http: &Rc<WorkerHttp>,
    worker: &Rc<Worker>,
    mut io: Io,
    downstream: &Rc<Downstream>,
    drain: impl Future<Output = ()>,
) {
    let counters = &http.counters;
    let handler = HttpConnection::open(http, worker, downstream, io.meter());
    let alpn = downstream.tls.as_ref().and_then(|tls| tls.alpn.as_deref());
    let manager = &http.manager;
    let options = match (manager.options.protocol, alpn) {
        (Protocol::Auto, Some(b"h2")) => &manager.http2_options,
        (Protocol::Auto, Some(b"http/1.1" | b"http/1.0")) => &manager.http1_options,
        _ => &manager.options,
    };
    let options = match downstream.hosted.as_ref().and_then(|hosted| hosted.ping_interval) {
        None => options,
        Some(interval) => handler.hosted.get_or_init(|| Box::new(hosted(options, interval))),
    };
    let drain = async {
        drain.await;
        counters.inc(HttpMetric::CxDrainClose);
    };
    culvert_http::server::serve(io, options, Rc::clone(&handler), drain).await;
    handler.count_bytes();
}

/// One downstream connection: what its requests share.
#[derive(Debug)]
pub(crate) struct HttpConnection {
    pub(crate) http: Rc<WorkerHttp>,
    pub(crate) worker: Rc<Worker>,
    pub(crate) downstream: Rc<Downstream>,
    /// Of its requests; known from the first on.
    version: Cell<Option<Version>>,
    meter: Arc<Meter>,
    /// Options of a tunnel that this process hosts. Here, and not in the connection's task: few connections are one.
    hosted: OnceCell<Box<ServerOptions>>,
    /// Bytes read and written that are counted already.
    metered: Cell<(u64, u64)>,
    /// Count it as active while it lives. Here and not in the task, whose size is that of an idle connection.
    _active: Active<HttpMetric>,
    _secure: Option<Active<HttpMetric>>,
    pub(crate) timers: ConnectionTimers,
}

impl Handler for HttpConnection {
    async fn handle(self: &Rc<Self>, exchange: Exchange<'_>) {
        router::serve(self, exchange).await;
    }

    fn refused(&self, status: u16, detail: &'static str) {
        let counters = &self.http.counters;
        counters.inc(HttpMetric::RqTotal);
        counters.inc(HttpMetric::of_status(status));
        counters.inc(match status {
            408 => HttpMetric::RqHeaderTimeout,
            413 => HttpMetric::RqTooLarge,
            _ => HttpMetric::CxProtocolError,
        });
        if self.http.logs.is_empty() {
            return;
        }
        let mut record = Record::new(&self.downstream, Instant::now());
        record.status = status;
        record.end = Some(record.start);
        record.details = refusal_details(status, detail).into();
        let is_http2 = self.version.get() == Some(Version::Http2);
        record.protocol = Some(if is_http2 { Version::Http2 } else { Version::Http11 });
        record.bytes_sent = if is_http2 { 0 } else { culvert_http::refusal_body(status).len() as u64 };
        record.flag(ResponseFlag::DownstreamProtocolError);
        // As the codec has sent it.
        let mut head = ResponseHead::new(status);
        head.fields.push(b"content-type", b"text/plain");
        let response = (!is_http2).then_some(&head);
        let hostname = &*self.worker.process.hostname;
        self.http.logs.write(&Scene { record: &record, request: None, response, trailers: None, hostname });
    }

    /// A tunnel server of Envoy's dialect drains: its agent dials another one.
    fn leaving(&self) {
        if let Some(outdated) = self.downstream.hosted.as_ref().and_then(|hosted| hosted.outdated.as_ref()) {
            outdated.notify_one();
        }
    }

    fn cut_off(&self, detail: &'static str) {
        tracing::debug!(detail, client = %self.downstream.remote, "a connection was cut off");
        self.http.counters.inc(HttpMetric::CxProtocolError);
    }
}

/// What Envoy calls the reason of a request that its codec refuses.
fn refusal_details(status: u16, detail: &'static str) -> &'static str {
    match (status, detail) {
        (408, _) => "request_header_timeout",
        (426 | 505, _) => "low_version",
        (431, "too many header fields") => "http1.too_many_headers",
        (431, _) => "http1.headers_too_large",
        (501, _) => "http1.invalid_transfer_encoding",
        (_, "no host") => "missing_host_header",
        (_, "malformed request target") => "http1.invalid_url",
        (_, "malformed header value" | "malformed header name") => "http1.invalid_characters",
        _ => "http1.codec_error",
    }
}

impl HttpConnection {
    /// A connection, whose bytes `meter` counts.
    pub(crate) fn open(
        http: &Rc<WorkerHttp>,
        worker: &Rc<Worker>,
        downstream: &Rc<Downstream>,
        meter: Arc<Meter>,
    ) -> Rc<Self> {
        let counters = &http.counters;
        counters.inc(HttpMetric::CxTotal);
        let secure = downstream.tls.is_some().then(|| {
            counters.inc(HttpMetric::CxSslTotal);
            Active::new(counters, HttpMetric::CxSslActive, None)
        });
        Rc::new(Self {
            http: Rc::clone(http),
            worker: Rc::clone(worker),
            downstream: Rc::clone(downstream),
            version: Cell::new(None),
            meter,
            hosted: OnceCell::new(),
            metered: Cell::default(),
            _active: Active::new(counters, HttpMetric::CxActive, Some(HttpMetric::CxDestroy)),
            _secure: secure,
            timers: worker.timers.connection(),
        })
    }

    /// Counts a request that begins.
    pub(crate) fn began(&self, version: Version) {
        let counters = &self.http.counters;
        let is_http2 = version == Version::Http2;
        if self.version.replace(Some(version)).is_none() {
            counters.inc(if is_http2 { HttpMetric::CxHttp2Total } else { HttpMetric::CxHttp1Total });
        }
        counters.inc(if is_http2 { HttpMetric::RqHttp2Total } else { HttpMetric::RqHttp1Total });
        counters.inc(HttpMetric::RqTotal);
        counters.inc(HttpMetric::RqActive);
    }

    /// Counts and logs a request that has ended.
    pub(crate) fn finished(&self, stream: &mut Stream<'_>) {
        let counters = &self.http.counters;
        let record = &mut stream.record;
        counters.dec(HttpMetric::RqActive);
        counters.inc(HttpMetric::RqCompleted);
        self.count_bytes();
        if record.status > 0 {
            counters.inc(HttpMetric::of_status(record.status));
        }
        if record.flags.contains(ResponseFlag::DownstreamConnectionTermination) {
            counters.inc(HttpMetric::RqRxReset);
        }
        // Who knows when the response ended has said so: the clock is not asked again, unless somebody reads it.
        let known = record.end.filter(|_| self.http.logs.is_empty());
        let end = known.unwrap_or_else(Instant::now);
        record.end = Some(end);
        counters.record(HttpMetric::RqTime, end.saturating_duration_since(record.start).as_secs_f64() * 1000.0);
        if !self.http.logs.is_empty() {
            self.http.logs.write(&Scene {
                record: &stream.record,
                request: Some(stream.request),
                response: (stream.record.status > 0).then_some(&*stream.head),
                trailers: stream.trailers.as_ref(),
                hostname: &self.worker.process.hostname,
            });
        }
    }

    /// Counts the bytes since the last call.
    fn count_bytes(&self) {
        let (read, written) = (self.meter.read(), self.meter.written());
        let before = self.metered.replace((read, written));
        self.http.counters.add(HttpMetric::CxRxBytesTotal, read - before.0);
        self.http.counters.add(HttpMetric::CxTxBytesTotal, written - before.1);
    }

    /// Counts an upgraded connection while the returned value lives.
    pub(crate) fn upgraded(&self) -> Active<HttpMetric> {
        self.http.counters.inc(HttpMetric::CxUpgradesTotal);
        Active::new(&self.http.counters, HttpMetric::CxUpgradesActive, None)
    }

    /// What every response gets: `date`, `server`, `via`, and the request's id where that is configured.
    pub(crate) fn finish_head(&self, head: &mut ResponseHead, request: &RequestHead, origin: Origin, now: Instant) {
        let config = &self.http.manager.config;
        let fields = &mut head.fields;
        let (mut has_date, mut has_server) = (false, false);
        for (name, _) in fields.iter() {
            has_date |= name == b"date";
            has_server |= name == b"server";
        }
        // An upstream's date is kept (RFC 9110 §6.6.1); a response without one gets it here.
        if !has_date {
            self.worker.date.with(now, |date| fields.push_known(DATE, date));
        }
        match config.server_header {
            ServerHeader::PassThrough if origin == Origin::Upstream => {}
            ServerHeader::AppendIfAbsent if has_server => {}
            _ if has_server => fields.set_line(&self.http.manager.server),
            _ => fields.push_line(&self.http.manager.server),
        }
        if !config.via.is_empty() {
            append(fields, b"via", config.via.as_bytes());
        }
        if config.always_set_request_id_in_response
            && let Some(id) = request.fields.get(b"x-request-id")
        {
            fields.set(b"x-request-id", id);
        }
    }
}

/// The date of the moment, formatted once a second.
#[derive(Debug)]
pub(crate) struct DateCache {
    cached: RefCell<(Instant, Vec<u8>)>,
}

impl Default for DateCache {
    fn default() -> Self {
        Self { cached: RefCell::new((Instant::now(), Vec::new())) }
    }
}

impl DateCache {
    /// Calls `f` with the text at `now`.
    pub(crate) fn with<T>(&self, now: Instant, f: impl FnOnce(&[u8]) -> T) -> T {
        let mut cached = self.cached.borrow_mut();
        let (until, text) = &mut *cached;
        if now >= *until || text.is_empty() {
            let time = std::time::SystemTime::now();
            let into_second = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
            text.clear();
            http_date(time, text);
            *until = now + Duration::from_secs(1) - Duration::from_nanos(u64::from(into_second));
        }
        f(text)
    }
}
