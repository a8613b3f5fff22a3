//! Where a resource comes from (`envoy.config.core.v3.ConfigSource`) and where bytes come from (`DataSource`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::Name;

/// `ConfigSource`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigSource {
    pub kind: ConfigSourceKind,
    /// How long a dependant waits for the first answer. Default 15 s; zero: for ever.
    pub initial_fetch_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigSourceKind {
    /// The one ADS stream of the bootstrap.
    Ads,
    /// A stream of its own for this type.
    Grpc(GrpcSource),
    /// A file in which a DiscoveryResponse stands, as JSON, YAML or binary.
    Path { path: PathBuf, watched_directory: Option<PathBuf> },
}

/// `ApiConfigSource` with `api_type` GRPC or DELTA_GRPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcSource {
    pub delta: bool,
    /// Names of static clusters, in order of preference.
    pub clusters: Vec<Name>,
    pub set_node_on_first_message_only: bool,
    /// `:authority` of the stream; `None`: the cluster's name.
    pub authority: Option<Arc<str>>,
    /// `initial_metadata`: sent with the request, names in lower case.
    pub metadata: Vec<(Arc<str>, Arc<str>)>,
}

/// `DataSource`; read when it is used, never while parsing.
#[derive(Clone, PartialEq, Eq)]
pub enum DataSource {
    Inline(Arc<[u8]>),
    File { path: PathBuf, watched_directory: Option<PathBuf> },
    Environment(String),
}

impl std::fmt::Debug for DataSource {
    /// Inline bytes may be a secret: only their length is shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inline(bytes) => write!(f, "Inline({} bytes)", bytes.len()),
            Self::File { path, .. } => write!(f, "File({})", path.display()),
            Self::Environment(name) => write!(f, "Environment({name})"),
        }
    }
}
