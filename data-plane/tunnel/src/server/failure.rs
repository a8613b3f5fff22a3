//! Why a connection came to be no tunnel: what it is counted as, and when its agent may come back.

use std::time::Duration;

use super::Refusal;
use super::acceptor::ASIDE_IDLE;
use super::handshake::OpeningError;
use super::identity::Denial;
use super::pending::Excess;
use super::policy::PolicyError;
use crate::envoy::wire::Answer;
use crate::metrics::ServerMetric;

/// Why a connection came to be no tunnel, where no answer is due any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Opening(#[from] OpeningError),
    #[error(transparent)]
    Excess(#[from] Excess),
    #[error("the listener drains")]
    Draining,
    #[error("refused: {0}")]
    Policy(#[from] PolicyError),
    #[error("refused: {0}")]
    Identity(#[from] Denial),
    #[error("refused: {0}")]
    Registry(#[from] Refusal),
    #[error("refused: {0}")]
    Envoy(#[from] Answer),
    #[error("no randomness for a connection id")]
    Random,
    #[error("an agent's aside connection, silent for {} s or one too many", ASIDE_IDLE.as_secs())]
    Aside,
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Opening(error.into())
    }
}

impl Failure {
    pub(super) fn metric(&self) -> ServerMetric {
        match self {
            Self::Opening(OpeningError::Timeout) => ServerMetric::Timeout,
            Self::Opening(OpeningError::Left | OpeningError::Io(_)) | Self::Random => ServerMetric::Aborted,
            Self::Opening(OpeningError::UnknownDialect | OpeningError::Decode(_) | OpeningError::Unexpected(_)) => {
                ServerMetric::Malformed
            }
            Self::Excess(Excess::Listener) => ServerMetric::PendingOverflow,
            Self::Excess(Excess::Source) => ServerMetric::SourceOverflow,
            Self::Excess(Excess::Rate) => ServerMetric::RateLimited,
            Self::Draining | Self::Registry(Refusal::Unavailable) => ServerMetric::RefusedDraining,
            Self::Policy(PolicyError::HostNameInvalid) => ServerMetric::Malformed,
            Self::Policy(PolicyError::PolicyUnknown) => ServerMetric::RefusedPolicy,
            Self::Identity(Denial::Cluster) => ServerMetric::RefusedCluster,
            Self::Identity(Denial::WayUnknown) => ServerMetric::RefusedPolicy,
            Self::Identity(Denial::PolicyAbsent) => ServerMetric::RefusedDraining,
            Self::Identity(_) => ServerMetric::RefusedAuth,
            Self::Registry(Refusal::Duplicate) => ServerMetric::RefusedDuplicate,
            Self::Policy(
                PolicyError::CredentialMissing | PolicyError::CredentialWrong | PolicyError::CredentialSent,
            ) => ServerMetric::RefusedAuth,
            Self::Policy(PolicyError::ClusterNotAllowed) | Self::Registry(Refusal::ClusterUnknown) => {
                ServerMetric::RefusedCluster
            }
            Self::Registry(Refusal::TooManyConnections | Refusal::SourceFull) => ServerMetric::RefusedLimit,
            Self::Envoy(Answer::Unauthenticated | Answer::ValidationFailed | Answer::TlsLeft) => {
                ServerMetric::RefusedAuth
            }
            Self::Envoy(Answer::UpstreamClusterWrong | Answer::ClusterUnknown) => ServerMetric::RefusedCluster,
            Self::Envoy(Answer::TooMany) => ServerMetric::RefusedLimit,
            Self::Envoy(Answer::Unavailable) => ServerMetric::RefusedDraining,
            Self::Envoy(_) => ServerMetric::Malformed,
            Self::Aside => ServerMetric::AsideClosed,
        }
    }

    /// When the agent is to come back; `None`: as it likes.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Draining | Self::Registry(Refusal::Unavailable) | Self::Identity(Denial::PolicyAbsent) => {
                Some(RETRY_AFTER)
            }
            _ => None,
        }
    }
}

/// When who was refused for a moment is to come back: somebody else may listen at the address by then.
const RETRY_AFTER: Duration = Duration::from_millis(500);
