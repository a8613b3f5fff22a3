//! Reads what a `DataSource` names. Called while configuration is compiled, never while a request is served.

use std::path::PathBuf;

use bytes::Bytes;
use culvert_model::source::DataSource;
use culvert_runtime::files;

/// Why a source cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Also a pipe, a device, or a file that is too long.
    #[error("cannot read {}: {source}; check the path and who may read it", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("environment variable {0} is not set; set it where the process is started")]
    Environment(String),
    #[error("{length} bytes are more than the {limit} that are allowed here")]
    TooLong { length: usize, limit: usize },
    /// What was read is not what it should be.
    #[error("{0}")]
    Content(String),
}

/// The bytes of `source`, at most `limit`.
///
/// # Errors
/// See [`SourceError`].
pub fn read_source(source: &DataSource, limit: usize) -> Result<Bytes, SourceError> {
    let bytes = match source {
        DataSource::Inline(bytes) => Bytes::copy_from_slice(bytes),
        DataSource::File { path, .. } => {
            let fail = |source| SourceError::File { path: path.clone(), source };
            files::read(path, u64::try_from(limit).unwrap_or(u64::MAX)).map_err(fail)?.into()
        }
        DataSource::Environment(name) => {
            std::env::var(name).map_err(|_| SourceError::Environment(name.clone()))?.into()
        }
    };
    if bytes.len() > limit {
        return Err(SourceError::TooLong { length: bytes.len(), limit });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_control_plane_names_is_read_within_the_limit_and_only_if_it_is_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("body");
        std::fs::write(&path, "12345").unwrap();
        let read = |path: PathBuf| {
            let file = DataSource::File { path, watched_directory: None };
            read_source(&file, 4).map_err(|error| error.to_string())
        };
        let error = read(path).unwrap_err();
        assert!(error.contains("longer than 4 bytes"), "{error}");
        // Endless: it may not be read whole before its length is looked at.
        let error = read("/dev/zero".into()).unwrap_err();
        assert!(error.contains("/dev/zero") && error.contains("no regular file"), "{error}");
    }
}
