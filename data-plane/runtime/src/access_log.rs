//! Where access-log lines go: files, stdout, stderr.
//!
//! A worker appends to a buffer of its own; one thread for the whole process writes buffers out every 100 ms, or
//! sooner when one is half full. **A worker never waits**: when the disk or the pipe does not keep up, lines are dropped
//! and counted.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Where lines of one log end up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    Stdout,
    Stderr,
    /// Created when missing, appended to.
    File(PathBuf),
}

/// All access logs of the process; one per destination, whoever asks for it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AccessLogs {
    shared: Arc<Shared>,
    /// Files are looked at and left as they are.
    dry: bool,
}

#[derive(Debug, Default)]
struct Shared {
    sinks: Mutex<HashMap<Destination, Arc<Sink>>>,
    wake: Condvar,
    /// Guarded state of `wake`.
    state: Mutex<State>,
    /// Some buffer holds lines; set by whoever appends to an empty one.
    dirty: AtomicBool,
    dropped: AtomicU64,
    written: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    dirty: bool,
    urgent: bool,
    reopen: bool,
    stop: bool,
    /// Passes the writer has finished; see [`AccessLogs::flush`].
    passes: u64,
}

#[derive(Debug)]
struct Sink {
    output: Mutex<Output>,
    buffers: Mutex<Vec<Weak<Buffer>>>,
}

#[derive(Debug)]
enum Output {
    Stdout,
    Stderr,
    File { path: PathBuf, file: File },
}

#[derive(Debug)]
struct Buffer {
    lines: Mutex<Vec<u8>>,
    sink: Arc<Sink>,
    shared: Arc<Shared>,
}

/// Why a log cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("access log {} cannot be opened: {source}", path.display())]
pub struct OpenError {
    pub path: PathBuf,
    pub source: std::io::Error,
}

impl AccessLogs {
    /// Starts the writer thread.
    ///
    /// # Errors
    /// The operating system refuses a thread.
    pub fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || write_out(&writer))?;
        Ok(Self { shared, dry: false })
    }

    /// Logs to which nothing is ever written: a writer is had if the file could be opened or made, and no file is made.
    #[must_use]
    pub fn dry() -> Self {
        Self { shared: Arc::default(), dry: true }
    }

    /// A writer for one worker. Opens the file when nobody has it open.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn writer(&self, destination: &Destination) -> Result<LogWriter, OpenError> {
        let sink = self.sink(destination)?;
        let buffer =
            Arc::new(Buffer { lines: Mutex::default(), sink: Arc::clone(&sink), shared: Arc::clone(&self.shared) });
        let mut buffers = sink.buffers.lock();
        buffers.retain(|buffer| buffer.strong_count() > 0);
        buffers.push(Arc::downgrade(&buffer));
        drop(buffers);
        Ok(LogWriter { buffer })
    }

    fn sink(&self, destination: &Destination) -> Result<Arc<Sink>, OpenError> {
        let mut sinks = self.shared.sinks.lock();
        if let Some(sink) = sinks.get(destination) {
            return Ok(Arc::clone(sink));
        }
        let output = match destination {
            Destination::Stdout => Output::Stdout,
            Destination::Stderr => Output::Stderr,
            Destination::File(path) if self.dry => {
                could_open(path).map_err(|source| OpenError { path: path.clone(), source })?;
                Output::Stderr
            }
            Destination::File(path) => {
                let file = open(path).map_err(|source| OpenError { path: path.clone(), source })?;
                Output::File { path: path.clone(), file }
            }
        };
        // Nobody writes to it any more: close its file.
        sinks.retain(|_, sink| sink.buffers.lock().iter().any(|buffer| buffer.strong_count() > 0));
        let sink = Arc::new(Sink { output: Mutex::new(output), buffers: Mutex::default() });
        sinks.insert(destination.clone(), Arc::clone(&sink));
        Ok(sink)
    }

    /// Opens all files again under their names: after a log rotation has moved them away.
    pub fn reopen(&self) {
        self.shared.request(|state| state.reopen = true);
    }

    /// Blocks until everything that was logged before the call is written.
    pub fn flush(&self) {
        let mut state = self.shared.state.lock();
        // The pass under way may have begun before the last line: wait for the one after it.
        let wanted = state.passes + 2;
        while state.passes < wanted && !state.stop {
            state.urgent = true;
            self.shared.wake.notify_all();
            self.shared.wake.wait_for(&mut state, FLUSH_EVERY);
        }
    }

    /// Lines that were dropped because a destination did not keep up or failed.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Writes to destinations (Envoy: `filesystem.write_completed`).
    #[must_use]
    pub fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Relaxed)
    }
}

/// One worker's way into a log.
#[derive(Debug)]
pub struct LogWriter {
    buffer: Arc<Buffer>,
}

impl LogWriter {
    /// Appends what `line` writes: whole lines, each with its line feed. Dropped and counted when the buffer (1 MiB) is
    /// full.
    pub fn append(&self, line: impl FnOnce(&mut Vec<u8>)) {
        let shared = &self.buffer.shared;
        let mut lines = self.buffer.lines.lock();
        if lines.len() >= BUFFER_LIMIT {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let before = lines.len();
        line(&mut lines);
        let after = lines.len();
        drop(lines);
        if before < BUFFER_LIMIT / 2 && after >= BUFFER_LIMIT / 2 {
            shared.request(|state| state.urgent = true);
        } else if !shared.dirty.load(Ordering::Relaxed) && !shared.dirty.swap(true, Ordering::AcqRel) {
            shared.request(|state| state.dirty = true);
        }
    }
}

impl Drop for LogWriter {
    /// What is still in the buffer is written here: the writer thread no longer sees it.
    fn drop(&mut self) {
        let lines = std::mem::take(&mut *self.buffer.lines.lock());
        if !lines.is_empty() {
            self.buffer.sink.write(&lines, &self.buffer.shared);
        }
    }
}

impl Shared {
    fn request(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        drop(state);
        self.wake.notify_all();
    }
}

impl Sink {
    fn write(&self, lines: &[u8], shared: &Shared) {
        let result = match &mut *self.output.lock() {
            Output::Stdout => std::io::stdout().lock().write_all(lines).and_then(|()| std::io::stdout().flush()),
            Output::Stderr => std::io::stderr().lock().write_all(lines),
            Output::File { file, .. } => file.write_all(lines),
        };
        match result {
            Ok(()) => shared.written.fetch_add(1, Ordering::Relaxed),
            Err(_) => {
                let lost = lines.iter().filter(|byte| **byte == b'\n').count();
                shared.dropped.fetch_add(lost.try_into().unwrap_or(u64::MAX), Ordering::Relaxed)
            }
        };
    }

    fn reopen(&self) {
        if let Output::File { path, file } = &mut *self.output.lock() {
            match open(path) {
                Ok(fresh) => *file = fresh,
                Err(error) => tracing::warn!(%error, path = %path.display(), "access log cannot be opened again"),
            }
        }
    }
}

fn open(path: &PathBuf) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Whether [`open`] would succeed.
fn could_open(path: &Path) -> std::io::Result<()> {
    match OpenOptions::new().append(true).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        opened => return opened.map(drop),
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !std::fs::metadata(folder)?.is_dir() {
        return Err(std::io::ErrorKind::NotADirectory.into());
    }
    Ok(rustix::fs::access(folder, rustix::fs::Access::WRITE_OK)?)
}

/// The writer thread.
fn write_out(shared: &Shared) {
    loop {
        let mut state = shared.state.lock();
        while !(state.dirty || state.urgent || state.reopen) {
            shared.wake.wait(&mut state);
        }
        if !state.urgent && !state.reopen {
            // Lines gather for a while; whoever is in a hurry wakes us.
            shared.wake.wait_for(&mut state, FLUSH_EVERY);
        }
        let reopen = std::mem::take(&mut state.reopen);
        state.dirty = false;
        state.urgent = false;
        drop(state);
        shared.dirty.store(false, Ordering::Release);
        let sinks: Vec<Arc<Sink>> = shared.sinks.lock().values().cloned().collect();
        for sink in sinks {
            if reopen {
                sink.reopen();
            }
            let buffers: Vec<_> = sink.buffers.lock().iter().filter_map(Weak::upgrade).collect();
            for buffer in buffers {
                let lines = std::mem::take(&mut *buffer.lines.lock());
                if !lines.is_empty() {
                    sink.write(&lines, shared);
                }
            }
        }
        shared.request(|state| state.passes += 1);
    }
}

const FLUSH_EVERY: Duration = Duration::from_millis(100);
const BUFFER_LIMIT: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_workers_reach_the_file_and_survive_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let logs = AccessLogs::start().unwrap();
        let to = Destination::File(path.clone());
        let (one, two) = (logs.writer(&to).unwrap(), logs.writer(&to).unwrap());
        one.append(|line| line.extend(b"one\n"));
        two.append(|line| line.extend(b"two\n"));
        logs.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "one\ntwo\n", "both workers' lines");

        let rotated = dir.path().join("access.log.1");
        std::fs::rename(&path, &rotated).unwrap();
        logs.reopen();
        logs.flush();
        one.append(|line| line.extend(b"three\n"));
        drop(one);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n", "a new file after the rotation");
        assert_eq!(logs.dropped(), 0, "nothing was dropped");
    }

    #[test]
    fn a_full_buffer_drops_lines_and_counts_them() {
        let logs = AccessLogs { shared: Arc::default(), dry: false };
        let writer = logs.writer(&Destination::Stderr).unwrap();
        writer.append(|line| line.resize(BUFFER_LIMIT, b' '));
        writer.append(|line| line.extend(b"lost\n"));
        assert_eq!(logs.dropped(), 1, "the second line found no room");
        writer.buffer.lines.lock().clear();
    }

    #[test]
    fn a_dry_log_makes_no_file_and_knows_what_could_be_opened() {
        let dir = tempfile::tempdir().unwrap();
        let logs = AccessLogs::dry();
        let fresh = dir.path().join("access.log");
        drop(logs.writer(&Destination::File(fresh.clone())).unwrap());
        assert!(!fresh.exists(), "a file was made");
        std::fs::write(&fresh, "before").unwrap();
        drop(logs.writer(&Destination::File(fresh.clone())).unwrap());
        assert_eq!(std::fs::read_to_string(&fresh).unwrap(), "before", "a file that is there stays as it is");
        for bad in [dir.path().join("none/access.log"), dir.path().to_owned(), fresh.join("access.log")] {
            assert!(logs.writer(&Destination::File(bad.clone())).is_err(), "{} could be opened", bad.display());
        }
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let logs = AccessLogs { shared: Arc::default(), dry: false };
        let error = logs.writer(&Destination::File("/nonexistent/access.log".into())).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/access.log"), "the path is named, got {error}");
    }
}
