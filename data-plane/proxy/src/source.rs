//! Reads what a `DataSource` names. Called while configuration is compiled, never while a request is served.

use std::path::PathBuf;

use bytes::Bytes;
use culvert_model::source::DataSource;

/// Why a source cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
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
            std::fs::read(path).map_err(|source| SourceError::File { path: path.clone(), source })?.into()
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
