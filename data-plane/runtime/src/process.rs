//! The process as the operating system sees it: signals, limits, panics.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// Raises the limit on open files to what the process may have; returns the limit that now holds (`None`: no limit).
pub fn raise_open_files() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, ?before, "cannot raise the limit on open files");
        return before;
    }
    limit.current
}

/// How many files this process may have open at a time; `None`: no limit.
#[must_use]
pub fn open_files() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Has the kernel give this process small pages only. The allocator asks for pages of 2 MiB, of which each is resident whole
/// as soon as one byte of it is used, and is given back only when nothing in it is in use: an idle process had 25 MB
/// more than it used, and each of its idle tunnels some KB.
pub fn refuse_huge_pages() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "the kernel may use huge pages: more memory is resident than is used");
    }
}

/// Logs every panic with its place and counts it; see [`panics`].
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::current();
        let payload = info.payload();
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        let trace = std::backtrace::Backtrace::capture();
        tracing::error!(thread = thread.name().unwrap_or("unnamed"), "panic at {place}: {message}\n{trace}");
    }));
}

/// Panics since the start, of tasks too.
#[must_use]
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

static PANICS: AtomicU64 = AtomicU64::new(0);

/// A request of the operator's. SIGPIPE is ignored from the start (the standard library sees to it).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT: finish and end.
    Terminate,
    /// SIGHUP: read files again.
    Reload,
    /// SIGUSR1: open log files again.
    ReopenLogs,
}

/// Signals as they come.
#[derive(Debug)]
pub struct Signals {
    terminate: Stream,
    interrupt: Stream,
    hangup: Stream,
    user1: Stream,
}

impl Signals {
    /// Takes the signals over. Must be called inside a runtime.
    ///
    /// # Errors
    /// The operating system refuses a handler.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
        })
    }

    /// The next signal. Cancel-safe.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.interrupt.recv() => Signal::Terminate,
            _ = self.hangup.recv() => Signal::Reload,
            _ = self.user1.recv() => Signal::ReopenLogs,
        }
    }
}
