//! The bytes of a directory, all of one moment.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use culvert_api::document::Syntax;

use crate::report::Finding;

/// Files of one directory.
const MAX_FILES: usize = 10_000;
/// Bytes of all files together.
const MAX_BYTES: u64 = 512 << 20;
/// Directories inside each other.
const MAX_DEPTH: usize = 16;
/// How often a directory that changes while it is read is read anew.
const ATTEMPTS: usize = 5;

/// One file with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) path: Arc<Path>,
    pub(crate) syntax: Syntax,
    pub(crate) bytes: Vec<u8>,
}

/// Whether what is at `path` is a part of the directory's content: a .yaml, .yml or .json file, or a directory of them. (Of the path only
/// the last part counts: what is in a hidden directory is to be asked about from there.)
#[must_use]
pub fn is_content(path: &Path) -> bool {
    !is_hidden(path) && (Syntax::of(path).is_some() || path.is_dir())
}

/// What begins with a dot is left out: editors' and version control's files, and the `..data` of a mounted Kubernetes volume,
/// whose files are reached by their links.
fn is_hidden(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Every .yaml, .yml and .json file below a directory that [is content](is_content), in order of path.
pub(crate) fn read(root: &Path) -> Result<Vec<Text>, Vec<Finding>> {
    let mut last = read_once(root)?;
    for _ in 1..ATTEMPTS {
        // Two equal readings are one moment's content: a swap in between would show.
        let again = read_once(root)?;
        if again == last {
            return Ok(again);
        }
        last = again;
    }
    Err(vec![Finding::whole(
        &root.into(),
        format!("changed while it was read, {ATTEMPTS} times; it is read again later"),
    )])
}

/// The same of files that somebody gives; what is not named like a configuration file is a mistake there.
pub(crate) fn given(files: Vec<(PathBuf, Vec<u8>)>) -> Result<Vec<Text>, Vec<Finding>> {
    let mut reading = Reading { bytes: 0, texts: Vec::new(), visited: BTreeSet::new(), findings: Vec::new() };
    for (path, bytes) in files {
        reading.bytes = reading.bytes.saturating_add(bytes.len() as u64);
        match Syntax::of(&path) {
            Some(_) if reading.is_full() => reading.report_full(&path),
            Some(syntax) => reading.texts.push(Text { path: path.into(), syntax, bytes }),
            None => reading.report(&path, "is named like no configuration file; use .yaml, .yml or .json".to_owned()),
        }
    }
    reading.texts.sort_by(|a, b| a.path.cmp(&b.path));
    let pairs = reading.texts.windows(2);
    let twice =
        pairs.filter_map(|pair| pair.first().filter(|first| pair.last().is_some_and(|last| last.path == first.path)));
    let twice: Vec<_> = twice.map(|text| Finding::whole(&text.path, "is given twice")).collect();
    reading.findings.extend(twice);
    if !reading.findings.is_empty() {
        return Err(reading.findings);
    }
    Ok(reading.texts)
}

fn read_once(root: &Path) -> Result<Vec<Text>, Vec<Finding>> {
    let mut reading = Reading { bytes: 0, texts: Vec::new(), visited: BTreeSet::new(), findings: Vec::new() };
    reading.folder(root, 0);
    if !reading.findings.is_empty() {
        return Err(reading.findings);
    }
    reading.texts.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(reading.texts)
}

struct Reading {
    bytes: u64,
    texts: Vec<Text>,
    /// Directories on the way, by their real paths: a link may lead upwards.
    visited: BTreeSet<PathBuf>,
    findings: Vec<Finding>,
}

impl Reading {
    fn folder(&mut self, folder: &Path, depth: usize) {
        if depth > MAX_DEPTH {
            return self.report(folder, format!("directories are nested deeper than {MAX_DEPTH}"));
        }
        let real = match folder.canonicalize() {
            Ok(real) => real,
            Err(error) => return self.report(folder, format!("cannot be read: {error}")),
        };
        if !self.visited.insert(real) {
            return;
        }
        let entries = match std::fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
            Ok(entries) => entries,
            Err(error) => return self.report(folder, format!("cannot be read: {error}")),
        };
        let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            // Through links; one that leads nowhere is a mistake only if it is named like a configuration file.
            let found = std::fs::metadata(&path);
            match (is_hidden(&path), Syntax::of(&path), found) {
                (true, ..) => {}
                (_, _, Ok(found)) if found.is_dir() => self.folder(&path, depth + 1),
                (_, Some(syntax), Ok(found)) if found.is_file() => self.file(&path, syntax, found.len()),
                (_, Some(_), Ok(_)) => self.report(&path, "is no regular file".to_owned()),
                (_, Some(_), Err(error)) => self.report(&path, format!("cannot be read: {error}")),
                (_, None, _) => {}
            }
        }
    }

    fn file(&mut self, path: &Path, syntax: Syntax, length: u64) {
        self.bytes = self.bytes.saturating_add(length);
        if self.is_full() {
            return self.report_full(path);
        }
        match std::fs::read(path) {
            Ok(bytes) => self.texts.push(Text { path: path.into(), syntax, bytes }),
            Err(error) => self.report(path, format!("cannot be read: {error}")),
        }
    }

    fn is_full(&self) -> bool {
        self.bytes > MAX_BYTES || self.texts.len() >= MAX_FILES
    }

    fn report_full(&mut self, path: &Path) {
        // Said once.
        if self.findings.is_empty() {
            self.report(path, format!("more than {MAX_FILES} files or {MAX_BYTES} bytes"));
        }
    }

    fn report(&mut self, path: &Path, reason: String) {
        self.findings.push(Finding::whole(&path.into(), reason));
    }
}
