//! Files and directories watched by content: what counts is that the bytes differ, however they got there. And files that
//! somebody else names, read within a bound: [`read`].
//!
//! inotify on the parents only says *when* to look (an editor's rename, a Kubernetes symlink swap and a plain write look
//! all different); what is looked at is a hash of the content. Where inotify is not to be had, or misses something,
//! a poll every few seconds notices.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{EventKind, Watcher as _};
use parking_lot::Mutex;
use rustix::fs::OFlags;
use tokio::sync::watch;
use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3;

/// The bytes of a regular file, at most `limit`. A path that a control plane may name leads anywhere: a pipe would be
/// waited for, and a device never ends. Blocks as long as the disk does.
///
/// # Errors
/// It cannot be opened or read, is no regular file (`InvalidInput`), or is longer (`FileTooLarge`).
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    // Not by its length: files of /proc say that they have none.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("is longer than {limit} bytes")));
    }
    Ok(bytes)
}

/// A regular file, opened without waiting for whoever might write into a pipe.
fn open(path: &Path) -> io::Result<File> {
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is no regular file"));
    }
    Ok(file)
}

/// Watches any number of files with one inotify instance. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FileWatcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Counts events; every subscription looks when it changes.
    events: watch::Sender<u64>,
    /// Of those subscriptions that ask which files are whole.
    touched: Arc<Mutex<Vec<Weak<Touched>>>>,
    inotify: Mutex<Option<notify::RecommendedWatcher>>,
    directories: Mutex<Directories>,
}

/// Directories by their paths, with device and inode: one that was deleted and made anew is another.
#[derive(Debug, Default)]
struct Directories {
    /// Watched by inotify.
    watched: BTreeMap<PathBuf, (u64, u64)>,
    /// Which inotify did not take: said once each.
    refused: BTreeSet<PathBuf>,
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
        let touched: Arc<Mutex<Vec<Weak<Touched>>>> = Arc::default();
        let (told, noted) = (events.clone(), Arc::clone(&touched));
        let tell = move |event: notify::Result<notify::Event>| {
            if event.as_ref().map_or(true, |event| is_change(event.kind)) {
                // Before anybody looks.
                noted.lock().iter().filter_map(Weak::upgrade).for_each(|touched| touched.note(event.as_ref().ok()));
                told.send_modify(|count| *count += 1);
            }
        };
        let inotify = notify::recommended_watcher(tell)
            .inspect_err(|error| tracing::warn!(%error, "no inotify: files are polled every two seconds"))
            .ok();
        let inotify = Mutex::new(inotify);
        Self { shared: Arc::new(Shared { events, touched, inotify, directories: Mutex::default() }) }
    }

    /// Watches `paths` (files, or directories with all below them) from their content of this moment on.
    /// `quiet`: how long nothing may happen before a change counts as finished.
    #[must_use]
    pub fn watch(&self, paths: impl IntoIterator<Item = PathBuf>, quiet: Duration) -> Changes {
        let events = self.shared.events.subscribe();
        let shared = Arc::clone(&self.shared);
        let mut changes =
            Changes { shared, quiet, seen: BTreeMap::new(), unlooked: false, events, urgent: None, returned: None };
        changes.follow(paths);
        changes
    }
}

/// Reading a file is an event too, also when it is us who read.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// What has happened since somebody looked.
#[derive(Debug, Default)]
struct Touched(Mutex<Files>);

#[derive(Debug, Default)]
struct Files {
    /// Those to which something has happened, and whether they are whole.
    whole: BTreeMap<PathBuf, bool>,
    /// More has happened than is known.
    unknown: bool,
}

impl Touched {
    /// A file is whole when whoever wrote it has closed it, or has given it its name.
    fn note(&self, event: Option<&notify::Event>) {
        let mut noted = self.0.lock();
        let Files { whole: files, unknown } = &mut *noted;
        let Some(event) = event.filter(|event| files.len() < MAX_TOUCHED && !event.need_rescan()) else {
            *unknown = true;
            return;
        };
        match (event.kind, event.paths.as_slice()) {
            (EventKind::Modify(ModifyKind::Metadata(_)), _) => {}
            // The first one was told of before.
            (EventKind::Modify(ModifyKind::Name(RenameMode::Both)), [_, to]) => drop(files.insert(to.clone(), true)),
            (kind, paths) => {
                let whole = matches!(kind, EventKind::Access(_) | EventKind::Modify(ModifyKind::Name(RenameMode::To)));
                files.extend(paths.iter().map(|path| (path.clone(), whole)));
            }
        }
    }
}

/// Which changes need not wait for quiet: see [`Changes::hurry`].
struct Urgent {
    touched: Arc<Touched>,
    is_urgent: Box<Judge>,
}

type Judge = dyn Fn(&Path) -> Option<bool> + Send + Sync;

impl std::fmt::Debug for Urgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Urgent").field("touched", &self.touched).finish_non_exhaustive()
    }
}

impl Urgent {
    fn is_whole(&self) -> bool {
        let Files { whole, unknown } = &*self.touched.0.lock();
        let mut counts = whole.iter().filter_map(|(path, whole)| Some((self.is_urgent)(path)? && *whole)).peekable();
        !unknown && counts.peek().is_some() && counts.all(|whole| whole)
    }
}

/// Changes of a set of paths.
#[derive(Debug)]
pub struct Changes {
    shared: Arc<Shared>,
    quiet: Duration,
    /// What each path held when it was looked at last.
    seen: BTreeMap<PathBuf, u128>,
    /// Something has happened since.
    unlooked: bool,
    events: watch::Receiver<u64>,
    urgent: Option<Urgent>,
    /// When [`Self::changed`] returned last.
    returned: Option<Instant>,
}

impl Changes {
    /// A change waits for no quiet when all files that it touched are whole and urgent, and there was none for that time. `None`
    /// is for files that do not count.
    pub fn hurry(&mut self, is_urgent: impl Fn(&Path) -> Option<bool> + Send + Sync + 'static) {
        let touched = Arc::default();
        self.shared.touched.lock().push(Arc::downgrade(&touched));
        self.urgent = Some(Urgent { touched, is_urgent: Box::new(is_urgent) });
    }

    /// Watches `paths` instead of those so far: new ones from their content of this moment on; a change of those that
    /// stay, and that nobody was told of yet, is not lost.
    pub fn follow(&mut self, paths: impl IntoIterator<Item = PathBuf>) {
        let before = std::mem::take(&mut self.seen);
        for path in paths {
            // Before its content is read: a change in between is seen.
            self.shared.follow(&path);
            let seen = before.get(&path).copied().unwrap_or_else(|| fingerprint(&path));
            self.seen.insert(path, seen);
        }
    }

    /// Returns when the content of any path differs from what it was at the last return. Cancel-safe.
    pub async fn changed(&mut self) {
        loop {
            if !self.unlooked {
                self.unlooked = tokio::time::timeout(self.shared.poll(), self.events.changed()).await.is_ok();
            }
            if self.unlooked {
                self.settle().await;
            }
            if let Some(urgent) = &self.urgent {
                // What happens from now on has an event of its own.
                *urgent.touched.0.lock() = Files::default();
            }
            let before = self.seen.clone();
            for path in before.keys() {
                self.shared.follow(path);
            }
            let look =
                move || before.into_keys().map(|path| (fingerprint(&path), path)).map(|(seen, path)| (path, seen));
            let looked = tokio::task::spawn_blocking(move || look().collect::<BTreeMap<_, _>>()).await;
            // The runtime ends, or a panic was logged by the hook.
            let Ok(seen) = looked else { continue };
            self.unlooked = false;
            if seen != self.seen {
                self.seen = seen;
                self.returned = Some(Instant::now());
                return;
            }
        }
    }

    /// Waits until nothing happens for a while, or until what has happened need not wait.
    async fn settle(&mut self) {
        let now = Instant::now();
        let deadline = now + 20 * self.quiet;
        // One that follows another at once waits with those that follow it.
        let soonest = self.returned.map_or(now, |returned| returned + self.quiet);
        while Instant::now() < deadline {
            let is_whole = self.urgent.as_ref().is_some_and(Urgent::is_whole);
            if is_whole && soonest <= Instant::now() {
                return;
            }
            let quiet = Instant::now() + self.quiet;
            let until = if is_whole { soonest.min(quiet) } else { quiet };
            match tokio::time::timeout_at(until, self.events.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }
}

impl Shared {
    /// How long to wait for an event before looking without one.
    fn poll(&self) -> Duration {
        let sees_all = self.inotify.lock().is_some() && self.directories.lock().refused.is_empty();
        if sees_all { SLOW_POLL } else { POLL }
    }

    /// Has inotify watch everything on the way to `path` that a swap could replace: its parent, the parents of the links
    /// it goes through, and what is below a directory.
    fn follow(&self, path: &Path) {
        let mut inotify = self.inotify.lock();
        let Some(inotify) = inotify.as_mut() else { return };
        let mut known = self.directories.lock();
        let Directories { watched, refused } = &mut *known;
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
            if watched.get(&directory) == Some(&identity) || !metadata.is_dir() {
                continue;
            }
            match inotify.watch(&directory, notify::RecursiveMode::NonRecursive) {
                Ok(()) => {
                    refused.remove(&directory);
                    watched.insert(directory, identity);
                }
                Err(error) => {
                    if refused.insert(directory.clone()) {
                        let (directory, every) = (directory.display(), POLL);
                        tracing::warn!(%directory, %error, ?every, "no inotify here: its files are polled; is fs.inotify.max_user_watches too low?");
                    }
                }
            }
        }
        watched.retain(|directory, _| directory.is_dir());
        refused.retain(|directory| directory.is_dir());
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
fn fingerprint(path: &Path) -> u128 {
    let mut hash = Xxh3::new();
    hash_path(path, &mut hash, 0);
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
    if let Err(error) = hash_file(path, hash) {
        hash.update(error.kind().to_string().as_bytes());
    }
}

/// Piece by piece, for a file may be large; what is behind [`MAX_LOOK`] bytes counts by when it was written.
fn hash_file(path: &Path, hash: &mut Xxh3) -> io::Result<()> {
    let file = open(path)?;
    let metadata = file.metadata()?;
    hash.update(&metadata.len().to_le_bytes());
    if metadata.len() > MAX_LOOK {
        hash.update(&metadata.mtime().to_le_bytes());
        hash.update(&metadata.mtime_nsec().to_le_bytes());
    }
    let mut file = file.take(MAX_LOOK);
    let mut piece = vec![0; 64 << 10];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(()),
            count => hash.update(piece.get(..count).unwrap_or_default()),
        }
    }
}

/// Without inotify, or where it did not take a directory.
const POLL: Duration = Duration::from_secs(2);
/// With it: for what it cannot see, such as files of a network.
const SLOW_POLL: Duration = Duration::from_secs(10);
/// Files of one change that are looked at singly.
const MAX_TOUCHED: usize = 1024;
const MAX_LINKS: usize = 16;
const MAX_DEPTH: usize = 16;
/// More than any file has that somebody reads whole.
const MAX_LOOK: u64 = 512 << 20;

#[cfg(test)]
mod tests;
