//! What is wrong with a directory, for people.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use culvert_api::document::{Position, Problem};

/// One mistake, or one thing worth a second look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// As given on the command line, and the way below it.
    pub file: Arc<Path>,
    /// `None`: the file or directory as a whole.
    pub at: Option<Position>,
    /// Proto field names; empty: the whole resource.
    pub path: String,
    /// What is wrong and what to do: a lower-case fragment.
    pub reason: String,
}

impl Finding {
    pub(crate) fn whole(file: &Arc<Path>, reason: impl Into<String>) -> Self {
        Self { file: Arc::clone(file), at: None, path: String::new(), reason: reason.into() }
    }

    pub(crate) fn at(file: &Arc<Path>, at: Position, reason: impl Into<String>) -> Self {
        Self { file: Arc::clone(file), at: Some(at), path: String::new(), reason: reason.into() }
    }

    pub(crate) fn of(file: &Arc<Path>, problem: Problem) -> Self {
        Self { file: Arc::clone(file), at: Some(problem.at), path: problem.path, reason: problem.reason }
    }
}

impl fmt::Display for Finding {
    /// `FILE:LINE:COLUMN: PATH: REASON`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(at) = self.at {
            write!(f, "{at}:")?;
        }
        if !self.path.is_empty() {
            write!(f, " {}:", self.path)?;
        }
        write!(f, " {}", self.reason)
    }
}
