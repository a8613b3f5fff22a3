//! Requests that end a stream.

/// Why a request cannot be answered. The stream it came on is to be closed with [`RequestError::code`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("a request on an aggregated stream must carry a type_url")]
    MissingTypeUrl,
    #[error("this stream serves {expected}, and the request asks for {found}")]
    WrongType { expected: String, found: String },
    #[error("the node of a later request is {found:?}, and the stream belongs to {expected:?}")]
    NodeChanged { expected: String, found: String },
    #[error("more than {limit} resource names of {type_url} on one stream")]
    TooManyNames { type_url: String, limit: usize },
    #[error("more than {limit} collections of {type_url} on one stream")]
    TooManyGlobs { type_url: String, limit: usize },
    #[error("a resource name of {found} bytes is longer than the {limit} allowed")]
    NameTooLong { found: usize, limit: usize },
    #[error("more than {limit} resource types on one stream")]
    TooManyTypes { limit: usize },
    #[error("the stream is not open, or speaks the other variant of the protocol")]
    NoSuchStream,
}

impl RequestError {
    /// The gRPC status code to close the stream with.
    #[must_use]
    pub fn code(&self) -> i32 {
        const INVALID_ARGUMENT: i32 = 3;
        const RESOURCE_EXHAUSTED: i32 = 8;
        const INTERNAL: i32 = 13;
        match self {
            Self::MissingTypeUrl
            | Self::WrongType { .. }
            | Self::NodeChanged { .. }
            | Self::NameTooLong { .. }
            | Self::TooManyNames { .. } => INVALID_ARGUMENT,
            Self::TooManyGlobs { .. } | Self::TooManyTypes { .. } => RESOURCE_EXHAUSTED,
            Self::NoSuchStream => INTERNAL,
        }
    }
}
