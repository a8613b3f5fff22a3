//! Access logs of listeners, connection managers and TCP proxies.

use std::sync::Arc;

use culvert_model::access_log::{AccessLog, Sink};
use culvert_runtime::access_log::{AccessLogs, Destination, LogWriter, OpenError};

/// Where access logs go: the process's writer thread and its files.
pub type LogSinks = AccessLogs;

/// Why an access log cannot be used.
pub type LogError = OpenError;

/// The access logs of one place in the configuration; their destinations are open.
#[derive(Debug)]
pub(crate) struct LogTargets {
    logs: Vec<(Arc<AccessLog>, Destination)>,
    /// Keeps the files open while no worker writes to them, so that a worker's own writer cannot fail.
    #[expect(dead_code, reason = "held for its effect")]
    held: Vec<LogWriter>,
}

impl LogTargets {
    pub(crate) fn open(logs: &[Arc<AccessLog>], sinks: &LogSinks) -> Result<Self, LogError> {
        let logs: Vec<_> = logs.iter().map(|log| (Arc::clone(log), destination(&log.sink))).collect();
        let held = logs.iter().map(|(_, destination)| sinks.writer(destination)).collect::<Result<_, _>>()?;
        Ok(Self { logs, held })
    }
}

fn destination(sink: &Sink) -> Destination {
    match sink {
        Sink::File(path) => Destination::File(path.clone()),
        Sink::Stdout => Destination::Stdout,
        Sink::Stderr => Destination::Stderr,
    }
}
