//! What a server answers.

use std::fmt;

/// The server's verdict. Any integer is accepted, as MOSN's agent does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Status {
    /// 0, which is also what `{}` says.
    #[default]
    Unknown,
    /// 1: the connection is a tunnel now.
    Success,
    /// 2
    AuthFailed,
    /// 3: the server has no policy of the name.
    PolicyNotFound,
    /// 4
    ClusterNotFound,
    Other(i64),
}

impl Status {
    /// The number on the wire.
    #[must_use]
    pub fn code(self) -> i64 {
        match self {
            Self::Unknown => 0,
            Self::Success => 1,
            Self::AuthFailed => 2,
            Self::PolicyNotFound => 3,
            Self::ClusterNotFound => 4,
            Self::Other(code) => code,
        }
    }

    pub(super) fn from_code(code: i64) -> Self {
        match code {
            0 => Self::Unknown,
            1 => Self::Success,
            2 => Self::AuthFailed,
            3 => Self::PolicyNotFound,
            4 => Self::ClusterNotFound,
            code => Self::Other(code),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meaning = match self {
            Self::Unknown => "not accepted",
            Self::Success => "accepted",
            Self::AuthFailed => "credential or cluster not allowed",
            Self::PolicyNotFound => "credential policy unknown to the server",
            Self::ClusterNotFound => "cluster unknown to the server",
            Self::Other(_) => "unknown status",
        };
        write!(f, "{} ({meaning})", self.code())
    }
}
