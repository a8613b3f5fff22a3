//! The agent's credential, read anew before every dial: what was rotated counts at once.

use std::path::PathBuf;

use culvert_model::source::DataSource;
use culvert_runtime::files;

use crate::wire::Secret;

/// Why there is no credential.
#[derive(Debug, thiserror::Error)]
pub(super) enum CredentialError {
    /// Also a pipe, a device, or a file that is too long.
    #[error("credential file {}: {source}; check the path and who may read it", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("environment variable {0} holds no credential; set it")]
    Environment(String),
    #[error("the credential is not UTF-8 text")]
    NotText,
}

/// Without the line break that files end in.
pub(super) async fn read(source: &DataSource) -> Result<Secret, CredentialError> {
    let text = match source {
        DataSource::Inline(bytes) => String::from_utf8(bytes.to_vec()).map_err(|_| CredentialError::NotText)?,
        DataSource::Environment(name) => std::env::var(name).map_err(|_| CredentialError::Environment(name.clone()))?,
        DataSource::File { path, .. } => {
            let fail = |source| CredentialError::File { path: path.clone(), source };
            let named = path.clone();
            let read = tokio::task::spawn_blocking(move || files::read(&named, MAX)).await;
            let bytes = read.map_err(|error| fail(error.into()))?.map_err(fail)?;
            String::from_utf8(bytes).map_err(|_| CredentialError::NotText)?
        }
    };
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Secret(text.strip_suffix('\r').unwrap_or(text).to_owned()))
}

/// What fits into a frame, and then some.
const MAX: u64 = 65_536;
