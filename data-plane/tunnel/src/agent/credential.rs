//! The agent's credential, read anew before every dial: what was rotated counts at once.

use std::path::PathBuf;

use culvert_model::source::DataSource;

use crate::wire::Secret;

/// Why there is no credential.
#[derive(Debug, thiserror::Error)]
pub(super) enum CredentialError {
    #[error("credential file {path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("credential file {0} is longer than {MAX} bytes")]
    TooLong(PathBuf),
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
            if tokio::fs::metadata(path).await.map_err(fail)?.len() > MAX {
                return Err(CredentialError::TooLong(path.clone()));
            }
            let bytes = tokio::fs::read(path).await.map_err(fail)?;
            String::from_utf8(bytes).map_err(|_| CredentialError::NotText)?
        }
    };
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Secret(text.strip_suffix('\r').unwrap_or(text).to_owned()))
}

/// What fits into a frame, and then some.
const MAX: u64 = 65_536;
