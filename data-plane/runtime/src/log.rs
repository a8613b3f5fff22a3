//! The process's own log: lines on stderr, with a level that can be changed while it runs.
//!
//! **Nobody waits for the log**: lines go through a bounded queue to a thread; when stderr is blocked they are dropped and
//! counted.

mod limit;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

pub use self::limit::LogLimit;

/// Envoy's words for levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Trace,
    Debug,
    Info,
    Warning,
    /// `critical` too: there is nothing above an error here.
    Error,
    Off,
}

/// A word that is no level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown log level '{0}'; use trace, debug, info, warning, error, critical or off")]
pub struct UnknownLevel(pub String);

impl std::str::FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(word: &str) -> Result<Self, UnknownLevel> {
        Ok(match word {
            "trace" => Self::Trace,
            "debug" => Self::Debug,
            "info" => Self::Info,
            "warning" | "warn" => Self::Warning,
            "error" | "err" | "critical" => Self::Error,
            "off" => Self::Off,
            _ => return Err(UnknownLevel(word.to_owned())),
        })
    }
}

impl Level {
    /// Envoy's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Off => "off",
        }
    }

    fn filter(self) -> LevelFilter {
        match self {
            Self::Trace => LevelFilter::TRACE,
            Self::Debug => LevelFilter::DEBUG,
            Self::Info => LevelFilter::INFO,
            Self::Warning => LevelFilter::WARN,
            Self::Error => LevelFilter::ERROR,
            Self::Off => LevelFilter::OFF,
        }
    }
}

/// Changes levels at run time. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LogControl {
    handle: reload::Handle<Targets, Registry>,
    levels: Arc<Mutex<Levels>>,
    writer: LogThread,
}

#[derive(Debug)]
struct Levels {
    default: Level,
    targets: BTreeMap<String, Level>,
}

/// Starts logging at `level`.
///
/// # Errors
/// A thread cannot be started, or logging was started before.
pub fn init(level: Level) -> Result<LogControl, InitError> {
    let levels = Levels { default: level, targets: BTreeMap::new() };
    let (filter, handle) = reload::Layer::new(levels.filter());
    let writer = LogThread::start().map_err(InitError::Thread)?;
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer.clone());
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|_| InitError::Twice)?;
    Ok(LogControl { handle, levels: Arc::new(Mutex::new(levels)), writer })
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("cannot start the log thread: {0}")]
    Thread(std::io::Error),
    #[error("logging was started before")]
    Twice,
}

impl LogControl {
    /// Everything at one level.
    pub fn set_all(&self, level: Level) {
        self.change(|levels| {
            levels.default = level;
            levels.targets.clear();
        });
    }

    /// One target (a crate or module path such as `culvert_proxy`) at a level of its own.
    pub fn set(&self, target: &str, level: Level) {
        self.change(|levels| {
            levels.targets.insert(target.to_owned(), level);
        });
    }

    /// The level of all that has no level of its own, and those that have one.
    #[must_use]
    pub fn levels(&self) -> (Level, Vec<(String, Level)>) {
        let levels = self.levels.lock();
        (levels.default, levels.targets.iter().map(|(target, level)| (target.clone(), *level)).collect())
    }

    /// Lines that were dropped because stderr was blocked.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.writer.dropped.load(Ordering::Relaxed)
    }

    /// Waits until what was logged is written, or `within` has passed. Blocks; for the end of the process.
    pub fn flush(&self, within: Duration) {
        let (done, written) = sync_channel(1);
        if self.writer.queue.try_send(Message::Flush(done)).is_ok() {
            // Either way there is nothing more to do.
            let _ = written.recv_timeout(within);
        }
    }

    fn change(&self, change: impl FnOnce(&mut Levels)) {
        let mut levels = self.levels.lock();
        change(&mut levels);
        if let Err(error) = self.handle.reload(levels.filter()) {
            tracing::error!(%error, "log levels cannot be changed");
        }
    }
}

impl Levels {
    fn filter(&self) -> Targets {
        // Crates below the data plane say at `debug` and `trace` what only their authors want to read.
        let mut filter = Targets::new().with_default(self.default.filter());
        for quiet in [
            "h2",
            "hyper",
            "hyper_util",
            "tower",
            "tonic",
            "rustls",
            "hickory_resolver",
            "hickory_proto",
            "hickory_net",
        ] {
            filter = filter.with_target(quiet, self.default.filter().min(LevelFilter::WARN));
        }
        self.targets.iter().fold(filter, |filter, (target, level)| filter.with_target(target, level.filter()))
    }
}

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// The thread that writes to stderr.
#[derive(Debug, Clone)]
struct LogThread {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

impl LogThread {
    fn start() -> std::io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUE);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || write_lines(&lines))?;
        Ok(Self { queue, dropped: Arc::default() })
    }
}

fn write_lines(messages: &Receiver<Message>) {
    for message in messages {
        match message {
            // There is nowhere left to complain.
            Message::Line(line) => drop(std::io::stderr().write_all(&line)),
            Message::Flush(done) => drop(done.try_send(())),
        }
    }
}

/// One event's line: gathered, then queued when dropped.
struct Line {
    bytes: Vec<u8>,
    thread: LogThread,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let line = std::mem::take(&mut self.bytes);
        if !line.is_empty() && self.thread.queue.try_send(Message::Line(line)).is_err() {
            self.thread.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<'a> MakeWriter<'a> for LogThread {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { bytes: Vec::new(), thread: self.clone() }
    }
}

/// Lines that may wait for stderr.
const QUEUE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoys_words_are_levels() {
        let cases =
            [("trace", "trace"), ("warn", "warning"), ("warning", "warning"), ("critical", "error"), ("off", "off")];
        for (word, expected) in cases {
            assert_eq!(word.parse::<Level>().map(Level::word), Ok(expected), "level of {word}");
        }
        let refused = "loud".parse::<Level>().unwrap_err().to_string();
        assert!(refused.contains("'loud'") && refused.contains("warning"), "the word and a remedy, got {refused}");
    }

    #[test]
    fn a_target_of_its_own_level_wins() {
        let levels = Levels { default: Level::Error, targets: [("culvert_proxy".to_owned(), Level::Debug)].into() };
        let filter = levels.filter();
        assert!(filter.would_enable("culvert_proxy::route", &tracing::Level::DEBUG), "its own level");
        assert!(!filter.would_enable("culvert_http", &tracing::Level::INFO), "the default");
        assert!(!filter.would_enable("h2::codec", &tracing::Level::WARN), "never louder than the default");
    }
}
