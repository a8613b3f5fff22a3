//! The last accepted configuration on disk: what a cold start without a control plane begins with.
//!
//! One file per node id and bootstrap, replaced as a whole (written beside, synced, renamed), with a checksum over all of
//! it. The directory is locked for the life of the process. **Secrets never get here.** Whatever is wrong with a file
//! makes it as good as absent, with the reason logged: it is a convenience and never an authority.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use culvert_api::Any;
use prost::Message;
use rustix::fs::{FlockOperation, Mode, OFlags};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::inventory::Given;

/// A locked state directory.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    node: String,
    bootstrap: u64,
    warned: bool,
    /// Held for as long as the process lives.
    _lock: OwnedFd,
}

/// Why there is no state directory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{}: {source}", path.display())]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("{}: another process uses it; give every process a --state-dir of its own", path.display())]
    Locked { path: PathBuf },
}

/// Why what is on disk is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("there is none")]
    Absent,
    #[error("cannot be read: {0}")]
    Read(std::io::Error),
    #[error("it is not a regular file")]
    NotAFile,
    #[error("it is {0} bytes long, more than the {MAX_BYTES} allowed")]
    TooLarge(u64),
    #[error("it is cut short")]
    Truncated,
    #[error("it does not begin as one of ours does")]
    NotOurs,
    #[error("it has schema {0}, and this version reads {SCHEMA}")]
    Schema(u32),
    #[error("its checksum does not match")]
    Checksum,
    #[error("it does not decode: {0}")]
    Decode(prost::DecodeError),
    #[error("it was written for another node or another bootstrap")]
    Foreign,
}

#[derive(Clone, PartialEq, Message)]
struct Saved {
    #[prost(string, tag = "1")]
    node: String,
    #[prost(fixed64, tag = "2")]
    bootstrap: u64,
    #[prost(message, repeated, tag = "3")]
    resources: Vec<SavedResource>,
    /// When a control plane last had its word in it, in seconds since 1970; 0: not noted.
    #[prost(uint64, tag = "4")]
    confirmed: u64,
}

#[derive(Clone, PartialEq, Message)]
struct SavedResource {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(message, optional, tag = "3")]
    body: Option<Any>,
}

/// What was saved.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Last {
    pub(crate) resources: Vec<Kept>,
    /// When none of it came from an earlier file.
    pub(crate) confirmed: SystemTime,
}

/// A resource that was accepted once.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Kept {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) body: Any,
}

impl StateDir {
    /// Makes the directory if need be, and locks it.
    ///
    /// # Errors
    /// It cannot be used; the process then runs without persistence.
    pub(crate) fn open(path: &Path, node: &str, bootstrap: u64) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Directory { path: path.to_owned(), source };
        std::fs::create_dir_all(path).map_err(failed)?;
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::open(path.join("lock"), flags, Mode::RUSR | Mode::WUSR).map_err(|e| failed(e.into()))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            if error == rustix::io::Errno::WOULDBLOCK {
                OpenError::Locked { path: path.to_owned() }
            } else {
                failed(error.into())
            }
        })?;
        Ok(Self { path: path.to_owned(), node: node.to_owned(), bootstrap, warned: false, _lock: lock })
    }

    /// What was saved last for this node and bootstrap.
    ///
    /// # Errors
    /// There is none that could be used.
    pub(crate) fn load(&self) -> Result<Last, Unusable> {
        let (bytes, written) = read(&self.file())?;
        let saved = decode(&bytes)?;
        if saved.node != self.node || saved.bootstrap != self.bootstrap {
            return Err(Unusable::Foreign);
        }
        let kept = |resource: SavedResource| {
            Some(Kept { name: resource.name, version: resource.version, body: resource.body? })
        };
        let noted =
            (saved.confirmed > 0).then(|| UNIX_EPOCH.checked_add(Duration::from_secs(saved.confirmed))).flatten();
        Ok(Last {
            resources: saved.resources.into_iter().filter_map(kept).collect(),
            confirmed: noted.unwrap_or(written),
        })
    }

    /// Replaces what was saved. `confirmed`: see [`Last`]. The first of a row of failures is logged; configuration applies either
    /// way.
    pub(crate) fn save(&mut self, resources: &[(String, Given)], confirmed: SystemTime) {
        match self.try_save(resources, confirmed) {
            Ok(()) => self.warned = false,
            Err(error) if !self.warned => {
                self.warned = true;
                let path = self.path.display();
                tracing::warn!(%path, %error, "accepted configuration cannot be saved; a cold start would do without it");
            }
            Err(error) => tracing::debug!(%error, "still cannot save"),
        }
    }

    /// The file of this node and bootstrap.
    pub(crate) fn file(&self) -> PathBuf {
        let hash = xxh3_64(format!("{}\0{:016x}", self.node, self.bootstrap).as_bytes());
        self.path.join(format!("dynamic-{hash:016x}"))
    }

    fn try_save(&self, resources: &[(String, Given)], confirmed: SystemTime) -> std::io::Result<()> {
        let resources = resources.iter().map(|(name, given)| SavedResource {
            name: name.clone(),
            version: given.version.to_string(),
            body: Some(given.resource.clone()),
        });
        let saved = Saved {
            node: self.node.clone(),
            bootstrap: self.bootstrap,
            resources: resources.collect(),
            confirmed: confirmed.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        };
        let file = self.file();
        let fresh = file.with_extension("new");
        // What a crash left behind, or what somebody put there, is not written through.
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut out = OpenOptions::new().write(true).create_new(true).open(&fresh)?;
        rustix::fs::fchmod(&out, Mode::RUSR | Mode::WUSR)?;
        out.write_all(&encode(&saved))?;
        out.sync_all()?;
        std::fs::rename(&fresh, &file)?;
        File::open(&self.path)?.sync_all()
    }
}

fn encode(saved: &Saved) -> Vec<u8> {
    let payload = saved.encode_to_vec();
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend(MAGIC);
    bytes.extend(SCHEMA.to_le_bytes());
    bytes.extend((payload.len() as u64).to_le_bytes());
    bytes.extend(xxh3_128(&payload).to_le_bytes());
    bytes.extend(payload);
    bytes
}

fn decode(bytes: &[u8]) -> Result<Saved, Unusable> {
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(Unusable::Truncated)?;
    if *magic != MAGIC {
        return Err(Unusable::NotOurs);
    }
    let (schema, rest) = rest.split_first_chunk::<4>().ok_or(Unusable::Truncated)?;
    let schema = u32::from_le_bytes(*schema);
    if schema != SCHEMA {
        return Err(Unusable::Schema(schema));
    }
    let (length, rest) = rest.split_first_chunk::<8>().ok_or(Unusable::Truncated)?;
    let (checksum, payload) = rest.split_first_chunk::<16>().ok_or(Unusable::Truncated)?;
    if payload.len() as u64 != u64::from_le_bytes(*length) {
        return Err(Unusable::Truncated);
    }
    if xxh3_128(payload) != u128::from_le_bytes(*checksum) {
        return Err(Unusable::Checksum);
    }
    Saved::decode(payload).map_err(Unusable::Decode)
}

/// Its bytes, and when it was written.
fn read(path: &Path) -> Result<(Vec<u8>, SystemTime), Unusable> {
    // Not through a symbolic link, and not into a pipe that somebody put there.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| match error {
        rustix::io::Errno::NOENT => Unusable::Absent,
        rustix::io::Errno::LOOP => Unusable::NotAFile,
        other => Unusable::Read(other.into()),
    })?;
    let file = File::from(file);
    let metadata = file.metadata().map_err(Unusable::Read)?;
    if !metadata.is_file() {
        return Err(Unusable::NotAFile);
    }
    if metadata.len() > MAX_BYTES {
        return Err(Unusable::TooLarge(metadata.len()));
    }
    let written = metadata.modified().map_err(Unusable::Read)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(Unusable::Read)?;
    Ok((bytes, written))
}

const MAGIC: [u8; 8] = *b"CULVERT\x01";
const SCHEMA: u32 = 1;
const HEADER: usize = 8 + 4 + 8 + 16;
const MAX_BYTES: u64 = 256 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use culvert_api::type_url;

    use super::*;

    fn given(name: &str) -> (String, Given) {
        (name.to_owned(), Given::now("v1", Any { type_url: type_url::CLUSTER.into(), value: name.to_owned().into() }))
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn saved_in(path: &Path) -> StateDir {
        let mut state = StateDir::open(path, "node", 7).unwrap();
        state.save(&[given("a"), given("b")], at(1_000));
        state
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = saved_in(dir.path());
        let names =
            |state: &StateDir| state.load().unwrap().resources.into_iter().map(|kept| kept.name).collect::<Vec<_>>();
        assert_eq!(names(&state), ["a", "b"]);
        state.save(&[given("c")], at(2_000));
        assert_eq!(names(&state), ["c"]);
        assert_eq!(state.load().unwrap().confirmed, at(2_000), "when it was confirmed is kept with it");
        assert!(!state.file().with_extension("new").exists(), "the file written beside it was renamed");
    }

    #[test]
    fn a_directory_has_one_user() {
        let dir = tempfile::tempdir().unwrap();
        let state = saved_in(dir.path());
        assert!(matches!(StateDir::open(dir.path(), "node", 7), Err(OpenError::Locked { .. })));
        drop(state);
        StateDir::open(dir.path(), "node", 7).unwrap();
    }

    #[test]
    fn another_node_or_bootstrap_finds_nothing_and_a_renamed_file_is_foreign() {
        let dir = tempfile::tempdir().unwrap();
        let file = saved_in(dir.path()).file();
        for (node, bootstrap) in [("other", 7), ("node", 8)] {
            let state = StateDir::open(dir.path(), node, bootstrap).unwrap();
            assert!(matches!(state.load(), Err(Unusable::Absent)), "{:?}", state.load());
            std::fs::copy(&file, state.file()).unwrap();
            assert!(matches!(state.load(), Err(Unusable::Foreign)), "{:?}", state.load());
        }
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let state = saved_in(dir.path());
        let good = std::fs::read(state.file()).unwrap();
        for length in 0..good.len() {
            assert!(decode(&good[..length]).is_err(), "{length} of {} bytes were taken", good.len());
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_err(), "flipped bit {bit} was not noticed");
        }
    }

    #[test]
    fn links_directories_empty_and_huge_files_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let state = saved_in(dir.path());
        let file = state.file();
        let elsewhere = dir.path().join("elsewhere");
        std::fs::rename(&file, &elsewhere).unwrap();
        symlink(&elsewhere, &file).unwrap();
        assert!(matches!(state.load(), Err(Unusable::NotAFile)), "{:?}", state.load());
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, b"").unwrap();
        assert!(matches!(state.load(), Err(Unusable::Truncated)), "{:?}", state.load());
        File::options().write(true).open(&file).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert!(matches!(state.load(), Err(Unusable::TooLarge(_))), "{:?}", state.load());
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert!(matches!(state.load(), Err(Unusable::NotAFile)), "{:?}", state.load());
    }

    #[test]
    fn a_failure_to_write_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = saved_in(dir.path());
        std::fs::create_dir(state.file().with_extension("new")).unwrap();
        state.save(&[given("c")], at(2_000));
        assert_eq!(state.load().unwrap().resources.len(), 2, "what was there stays");
    }
}
