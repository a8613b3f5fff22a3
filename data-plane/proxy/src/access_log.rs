//! Access logs of listeners, connection managers and TCP proxies: which requests are logged, and as what.
//!
//! A worker writes a line into a buffer of its own; the process's writer thread takes it from there. **A worker never
//! waits for a log**: what does not fit is dropped and counted.

use std::sync::Arc;

use culvert_model::access_log::{AccessLog, Comparison, Filter, LogFormat, Sink};
use culvert_runtime::access_log::{AccessLogs, Destination, LogWriter, OpenError};

use crate::format::{Absent, Values, write_format, write_json};
use crate::record::Scene;
use crate::routes::header_matches;

/// Where access logs go: the process's writer thread and its files.
pub type LogSinks = AccessLogs;

/// Why an access log cannot be used.
pub type LogError = OpenError;

/// The access logs of one place in the configuration; their destinations are open.
#[derive(Debug)]
pub(crate) struct LogTargets {
    logs: Vec<(Arc<AccessLog>, Destination)>,
    sinks: LogSinks,
    /// Keeps the files open while no worker writes to them, so that a worker's own writer does not fail.
    #[expect(dead_code, reason = "held for its effect")]
    held: Vec<LogWriter>,
}

impl LogTargets {
    pub(crate) fn open(logs: &[Arc<AccessLog>], sinks: &LogSinks) -> Result<Self, LogError> {
        let logs: Vec<_> = logs.iter().map(|log| (Arc::clone(log), destination(&log.sink))).collect();
        let held = logs.iter().map(|(_, destination)| sinks.writer(destination)).collect::<Result<_, _>>()?;
        Ok(Self { logs, sinks: sinks.clone(), held })
    }

    /// One worker's writers.
    pub(crate) fn for_worker(&self) -> WorkerLogs {
        let writer = |(log, destination): &(Arc<AccessLog>, Destination)| match self.sinks.writer(destination) {
            Ok(writer) => Some((Arc::clone(log), writer)),
            Err(error) => {
                tracing::warn!(%error, "this worker does not log");
                None
            }
        };
        WorkerLogs(self.logs.iter().filter_map(writer).collect())
    }
}

/// One worker's access logs of one place in the configuration.
#[derive(Debug, Default)]
pub(crate) struct WorkerLogs(Vec<(Arc<AccessLog>, LogWriter)>);

impl WorkerLogs {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes a line to every log whose filter lets it pass.
    pub(crate) fn write(&self, scene: &Scene<'_>) {
        for (log, writer) in &self.0 {
            if log.filter.as_ref().is_none_or(|filter| passes(filter, scene)) {
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

pub(crate) fn passes(filter: &Filter, scene: &Scene<'_>) -> bool {
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
        Filter::Runtime(fraction) => fastrand::u32(..1_000_000) < *fraction,
        // Nothing here answers health checks by itself, so no request is marked as one.
        Filter::NotHealthCheck => true,
        Filter::And(filters) => filters.iter().all(|filter| passes(filter, scene)),
        Filter::Or(filters) => filters.iter().any(|filter| passes(filter, scene)),
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
