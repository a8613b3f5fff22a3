//! Access logs of listeners, connection managers and TCP proxies: which requests are logged, and as what.
//!
//! A worker writes a line into a buffer of its own; the process's writer thread takes it from there. **A worker never
//! waits for a log**: what does not fit is dropped and counted.

use std::sync::Arc;

use culvert_model::access_log::{AccessLog, Comparison, Filter, LogFormat, Sink};
use culvert_model::runtime::Share;
use culvert_runtime::access_log::{AccessLogs, Destination, LogWriter, OpenError};

use crate::Process;
use crate::format::{Absent, Values, write_format, write_json};
use crate::record::Scene;
use crate::routes::header_matches;
use crate::shares::{BoundShare, Shares};

/// Where access logs go: the process's writer thread and its files.
pub type LogSinks = AccessLogs;

/// Why an access log cannot be used.
pub type LogError = OpenError;

/// The access logs of one place in the configuration; their destinations are open.
#[derive(Debug)]
pub(crate) struct LogTargets {
    logs: Vec<Target>,
    sinks: LogSinks,
    /// Keeps the files open while no worker writes to them, so that a worker's own writer does not fail.
    #[expect(dead_code, reason = "held for its effect")]
    held: Vec<LogWriter>,
}

impl LogTargets {
    pub(crate) fn open(logs: &[Arc<AccessLog>], process: &Process) -> Result<Self, LogError> {
        let sinks = &process.logs;
        let target = |log: &Arc<AccessLog>| Target {
            log: Arc::clone(log),
            destination: destination(&log.sink),
            shares: Arc::new(log.filter.as_ref().map(|filter| bind(filter, &process.shares)).unwrap_or_default()),
        };
        let logs: Vec<_> = logs.iter().map(target).collect();
        let held = logs.iter().map(|target| sinks.writer(&target.destination)).collect::<Result<_, _>>()?;
        Ok(Self { logs, sinks: sinks.clone(), held })
    }

    /// One worker's writers.
    pub(crate) fn for_worker(&self) -> WorkerLogs {
        let writer = |target: &Target| match self.sinks.writer(&target.destination) {
            Ok(writer) => Some((Arc::clone(&target.log), Arc::clone(&target.shares), writer)),
            Err(error) => {
                tracing::warn!(%error, "this worker does not log");
                None
            }
        };
        WorkerLogs(self.logs.iter().filter_map(writer).collect())
    }
}

/// One log and what its filter goes by.
#[derive(Debug)]
struct Target {
    log: Arc<AccessLog>,
    destination: Destination,
    shares: Arc<FilterShares>,
}

/// The shares of a filter, bound to their keys: a few at most.
pub(crate) type FilterShares = Vec<(Share, BoundShare)>;

pub(crate) fn bind(filter: &Filter, shares: &Shares) -> FilterShares {
    match filter {
        Filter::Runtime(share) => vec![(share.clone(), shares.bind(share))],
        Filter::And(filters) | Filter::Or(filters) => filters.iter().flat_map(|filter| bind(filter, shares)).collect(),
        _ => Vec::new(),
    }
}

/// Whether this line is part of the share of a filter, all of whose shares are bound.
pub(crate) fn is_sampled(share: &Share, shares: &FilterShares) -> bool {
    let bound = shares.iter().find(|(known, _)| known == share);
    bound.is_some_and(|(_, bound)| bound.has(fastrand::u64(..)))
}

/// One worker's access logs of one place in the configuration.
#[derive(Debug, Default)]
pub(crate) struct WorkerLogs(Vec<(Arc<AccessLog>, Arc<FilterShares>, LogWriter)>);

impl WorkerLogs {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes a line to every log whose filter lets it pass.
    pub(crate) fn write(&self, scene: &Scene<'_>) {
        for (log, shares, writer) in &self.0 {
            if log.filter.as_ref().is_none_or(|filter| passes(filter, shares, scene)) {
                writer.append(|line| write_line(&log.format, scene, line));
            }
        }
    }
}

/// Appends one line. A text format brings its own line feed, as in Envoy.
pub(crate) fn write_line(format: &LogFormat, values: &impl Values, line: &mut Vec<u8>) {
    match format {
        LogFormat::Text(format) => write_format(format, Absent::Dash, values, line),
        LogFormat::Json(object) => {
            write_json(object, values, line);
            line.push(b'\n');
        }
    }
}

pub(crate) fn passes(filter: &Filter, shares: &FilterShares, scene: &Scene<'_>) -> bool {
    let record = scene.record;
    match filter {
        Filter::StatusCode { op, value } => compare(*op, u64::from(record.status), u64::from(*value)),
        Filter::Duration { op, milliseconds } => {
            let end = record.end.unwrap_or(record.start);
            let taken = end.saturating_duration_since(record.start).as_millis();
            compare(*op, u64::try_from(taken).unwrap_or(u64::MAX), *milliseconds)
        }
        Filter::Header(matcher) => scene.request.is_some_and(|head| header_matches(matcher, head)),
        Filter::ResponseFlags(flags) if flags.is_empty() => !record.flags.is_empty(),
        Filter::ResponseFlags(flags) => {
            record.flags.iter().any(|flag| flags.iter().any(|wanted| **wanted == *flag.short()))
        }
        Filter::Runtime(share) => is_sampled(share, shares),
        // Nothing here answers health checks by itself, so no request is marked as one.
        Filter::NotHealthCheck => true,
        Filter::And(filters) => filters.iter().all(|filter| passes(filter, shares, scene)),
        Filter::Or(filters) => filters.iter().any(|filter| passes(filter, shares, scene)),
    }
}

pub(crate) const fn compare(op: Comparison, value: u64, with: u64) -> bool {
    match op {
        Comparison::Equal => value == with,
        Comparison::NotEqual => value != with,
        Comparison::GreaterOrEqual => value >= with,
        Comparison::LessOrEqual => value <= with,
    }
}

pub(crate) fn destination(sink: &Sink) -> Destination {
    match sink {
        Sink::File(path) => Destination::File(path.clone()),
        Sink::Stdout => Destination::Stdout,
        Sink::Stderr => Destination::Stderr,
    }
}
