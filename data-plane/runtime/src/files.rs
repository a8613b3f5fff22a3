//! Files and directories watched by content: what counts is that the bytes differ, however they got there.
//!
//! inotify on the parents only says *when* to look (an editor's rename, a Kubernetes symlink swap and a plain write look
//! all different); what is looked at is a hash of the content. Where inotify is not to be had, or misses something,
//! a poll every few seconds notices.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, Watcher as _};
use parking_lot::Mutex;
use tokio::sync::watch;
use xxhash_rust::xxh3::Xxh3;

/// Watches any number of files with one inotify instance. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FileWatcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Counts events; every subscription looks when it changes.
    events: watch::Sender<u64>,
    inotify: Mutex<Option<notify::RecommendedWatcher>>,
    /// Directories that inotify watches, with device and inode: one that was deleted and made anew is another.
    watched: Mutex<BTreeMap<PathBuf, (u64, u64)>>,
}

impl Default for FileWatcher {
    fn default() -> Self {
        Self::new()
    }
}

impl FileWatcher {
    /// A watcher; without inotify (its limits are per user) it polls.
    #[must_use]
    pub fn new() -> Self {
        let events = watch::Sender::new(0);
        let told = events.clone();
        let tell = move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| is_change(event.kind)) {
                told.send_modify(|count| *count += 1);
            }
        };
        let inotify = notify::recommended_watcher(tell)
            .inspect_err(|error| tracing::warn!(%error, "no inotify: files are polled every two seconds"))
            .ok();
        Self { shared: Arc::new(Shared { events, inotify: Mutex::new(inotify), watched: Mutex::default() }) }
    }

    /// Watches `paths` (files, or directories with all below them) from their content of this moment on.
    /// `quiet`: how long nothing may happen before a change counts as finished.
    #[must_use]
    pub fn watch(&self, paths: Vec<PathBuf>, quiet: Duration) -> Changes {
        // Subscribed before the content is read: a change in between is seen.
        let events = self.shared.events.subscribe();
        for path in &paths {
            self.shared.follow(path);
        }
        let seen = fingerprint(&paths);
        Changes { shared: Arc::clone(&self.shared), paths, quiet, seen, events }
    }
}

/// Reading a file is an event too, also when it is us who read.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// Changes of a set of paths.
#[derive(Debug)]
pub struct Changes {
    shared: Arc<Shared>,
    paths: Vec<PathBuf>,
    quiet: Duration,
    seen: u128,
    events: watch::Receiver<u64>,
}

impl Changes {
    /// Returns when the content of any path differs from what it was at the last return. Cancel-safe.
    pub async fn changed(&mut self) {
        loop {
            let poll = if self.shared.inotify.lock().is_some() { SLOW_POLL } else { POLL };
            let polled = tokio::time::timeout(poll, self.events.changed()).await;
            if polled.is_ok() {
                self.settle().await;
            }
            for path in &self.paths {
                self.shared.follow(path);
            }
            let paths = self.paths.clone();
            let Ok(seen) = tokio::task::spawn_blocking(move || fingerprint(&paths)).await else { continue };
            if seen != self.seen {
                self.seen = seen;
                return;
            }
        }
    }

    /// Waits until nothing happens for a while.
    async fn settle(&mut self) {
        let deadline = tokio::time::Instant::now() + 20 * self.quiet;
        while tokio::time::Instant::now() < deadline {
            match tokio::time::timeout(self.quiet, self.events.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }
}

impl Shared {
    /// Has inotify watch everything on the way to `path` that a swap could replace: its parent, the parents of the links
    /// it goes through, and what is below a directory.
    fn follow(&self, path: &Path) {
        let mut inotify = self.inotify.lock();
        let Some(inotify) = inotify.as_mut() else { return };
        let mut watched = self.watched.lock();
        let mut wanted = BTreeSet::new();
        let mut step = path.to_path_buf();
        for _ in 0..MAX_LINKS {
            wanted.extend(
                step.parent()
                    .map(|parent| if parent.as_os_str().is_empty() { ".".into() } else { parent.to_path_buf() }),
            );
            match std::fs::read_link(&step) {
                Ok(target) => step = step.parent().map_or_else(|| target.clone(), |parent| parent.join(&target)),
                Err(_) => break,
            }
        }
        wanted.extend(path.canonicalize().ok().and_then(|real| real.parent().map(Path::to_path_buf)));
        directories(path, &mut wanted, 0);
        // Of one that is not there (yet), whatever it will appear in.
        let there = wanted.iter().filter_map(|directory| directory.ancestors().find(|directory| directory.is_dir()));
        for directory in there.map(Path::to_path_buf).collect::<BTreeSet<_>>() {
            let Ok(metadata) = std::fs::metadata(&directory) else { continue };
            let identity = (metadata.dev(), metadata.ino());
            if watched.get(&directory) != Some(&identity)
                && metadata.is_dir()
                && inotify.watch(&directory, notify::RecursiveMode::NonRecursive).is_ok()
            {
                watched.insert(directory, identity);
            }
        }
        watched.retain(|directory, _| directory.is_dir());
    }
}

fn directories(path: &Path, into: &mut BTreeSet<PathBuf>, depth: usize) {
    if depth > MAX_DEPTH || !path.is_dir() {
        return;
    }
    into.insert(path.to_path_buf());
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        directories(&entry.path(), into, depth + 1);
    }
}

/// A hash over names and contents; what cannot be read counts as such, with its reason.
fn fingerprint(paths: &[PathBuf]) -> u128 {
    let mut hash = Xxh3::new();
    for path in paths {
        hash_path(path, &mut hash, 0);
    }
    hash.digest128()
}

fn hash_path(path: &Path, hash: &mut Xxh3, depth: usize) {
    hash.update(path.as_os_str().as_encoded_bytes());
    hash.update(&[0]);
    if path.is_dir() && depth <= MAX_DEPTH {
        let mut entries: Vec<_> =
            std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        entries.sort();
        for entry in entries {
            hash_path(&entry, hash, depth + 1);
        }
        return;
    }
    match std::fs::read(path) {
        Ok(bytes) => {
            hash.update(&bytes.len().to_le_bytes());
            hash.update(&bytes);
        }
        Err(error) => hash.update(error.kind().to_string().as_bytes()),
    }
}

/// Without inotify.
const POLL: Duration = Duration::from_secs(2);
/// With it: for what it cannot see, such as files of a network.
const SLOW_POLL: Duration = Duration::from_secs(10);
const MAX_LINKS: usize = 16;
const MAX_DEPTH: usize = 16;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const QUIET: Duration = Duration::from_millis(10);
    const DEADLINE: Duration = Duration::from_secs(10);

    async fn expect_change(changes: &mut Changes, what: &str) {
        let changed = tokio::time::timeout(DEADLINE, changes.changed()).await;
        assert!(changed.is_ok(), "{what} was not noticed within {DEADLINE:?}");
    }

    #[tokio::test]
    async fn writes_renames_and_deletions_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cert.pem");
        std::fs::write(&file, "one").unwrap();
        let mut changes = FileWatcher::new().watch(vec![file.clone()], QUIET);
        std::fs::write(&file, "two").unwrap();
        expect_change(&mut changes, "a write").await;
        let fresh = dir.path().join("fresh");
        std::fs::write(&fresh, "three").unwrap();
        std::fs::rename(&fresh, &file).unwrap();
        expect_change(&mut changes, "a rename").await;
        std::fs::remove_file(&file).unwrap();
        expect_change(&mut changes, "a deletion").await;
    }

    #[tokio::test]
    async fn a_swap_of_the_directory_behind_a_link_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        for (generation, content) in [("..1", "one"), ("..2", "two")] {
            std::fs::create_dir(dir.path().join(generation)).unwrap();
            std::fs::write(dir.path().join(generation).join("tls.crt"), content).unwrap();
        }
        symlink("..1", dir.path().join("..data")).unwrap();
        symlink("..data/tls.crt", dir.path().join("tls.crt")).unwrap();
        let mut changes = FileWatcher::new().watch(vec![dir.path().join("tls.crt")], QUIET);
        symlink("..2", dir.path().join("..next")).unwrap();
        std::fs::rename(dir.path().join("..next"), dir.path().join("..data")).unwrap();
        expect_change(&mut changes, "the swap").await;
    }

    #[tokio::test]
    async fn a_directory_is_watched_with_all_below_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut changes = FileWatcher::new().watch(vec![dir.path().to_path_buf()], QUIET);
        let below = dir.path().join("below");
        std::fs::create_dir(&below).unwrap();
        std::fs::write(below.join("listener.yaml"), "a").unwrap();
        expect_change(&mut changes, "a new directory").await;
        std::fs::write(below.join("listener.yaml"), "b").unwrap();
        expect_change(&mut changes, "a write below").await;
    }

    #[tokio::test]
    async fn a_directory_that_was_made_anew_is_watched_again() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("certs");
        let file = below.join("cert.pem");
        let mut changes = FileWatcher::new().watch(vec![file.clone()], QUIET);
        for content in ["one", "two", "three"] {
            std::fs::create_dir(&below).unwrap();
            std::fs::write(&file, content).unwrap();
            expect_change(&mut changes, "a directory that came").await;
            std::fs::write(&file, "again").unwrap();
            expect_change(&mut changes, "a write in it").await;
            std::fs::remove_dir_all(&below).unwrap();
            expect_change(&mut changes, "a directory that went").await;
        }
    }

    #[tokio::test]
    async fn looking_at_a_file_is_no_event() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cert.pem");
        std::fs::write(&file, "one").unwrap();
        let watcher = FileWatcher::new();
        let mut changes = watcher.watch(vec![file.clone()], QUIET);
        std::fs::write(&file, "two").unwrap();
        expect_change(&mut changes, "a write").await;
        let seen = *watcher.shared.events.borrow();
        for _ in 0..20 {
            std::fs::read(&file).unwrap();
        }
        // The next write's events come after those of the reads, if there were any.
        std::fs::write(&file, "three").unwrap();
        expect_change(&mut changes, "another write").await;
        let more = *watcher.shared.events.borrow() - seen;
        assert!(more < 10, "{more} events for one write, so reading counts as a change");
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_bytes_again_are_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key.pem");
        std::fs::write(&file, "same").unwrap();
        let mut changes = FileWatcher::new().watch(vec![file.clone()], QUIET);
        std::fs::write(&file, "same").unwrap();
        let changed = tokio::time::timeout(DEADLINE, changes.changed()).await;
        assert!(changed.is_err(), "the content did not change");
    }
}
