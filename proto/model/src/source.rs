//! Where a resource comes from (`envoy.config.core.v3.ConfigSource`) and where bytes come from (`DataSource`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use culvert_api::envoy::config::core::v3 as api;

use crate::Name;
use crate::report::Report;
use crate::scalar;

/// `ConfigSource`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigSource {
    pub kind: ConfigSourceKind,
    /// How long a dependant waits for the first answer. Default 15 s; zero: for ever.
    pub initial_fetch_timeout: Duration,
}

/// Where discovered configuration comes from.
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

/// Parses the `ConfigSource` at hand.
#[expect(deprecated, reason = "path is still used")]
pub(crate) fn config_source(report: &mut Report, message: &api::ConfigSource) -> Option<ConfigSource> {
    use api::config_source::ConfigSourceSpecifier as Specifier;
    version(report, "resource_api_version", message.resource_api_version);
    let timeout = scalar::duration(report, "initial_fetch_timeout", message.initial_fetch_timeout.as_ref());
    let kind = match &message.config_source_specifier {
        Some(Specifier::Ads(_)) => ConfigSourceKind::Ads,
        Some(Specifier::ApiConfigSource(source)) => {
            ConfigSourceKind::Grpc(report.field("api_config_source", |report| grpc_source(report, source))?)
        }
        Some(Specifier::PathConfigSource(source)) => ConfigSourceKind::Path {
            path: report.field("path_config_source", |report| path(report, "path", &source.path))?,
            watched_directory: watched(source.watched_directory.as_ref()),
        },
        Some(Specifier::Path(file)) => {
            ConfigSourceKind::Path { path: path(report, "path", file)?, watched_directory: None }
        }
        // The coverage tables have refused it.
        Some(Specifier::Self_(_)) => return None,
        None => {
            report.error("names no source; set ads, api_config_source or path_config_source");
            return None;
        }
    };
    Some(ConfigSource { kind, initial_fetch_timeout: timeout.unwrap_or(INITIAL_FETCH_TIMEOUT) })
}

/// Parses the `ApiConfigSource` at hand.
pub(crate) fn grpc_source(report: &mut Report, message: &api::ApiConfigSource) -> Option<GrpcSource> {
    use api::api_config_source::ApiType;
    version(report, "transport_api_version", message.transport_api_version);
    let delta = match scalar::enumeration::<ApiType>(report, "api_type", message.api_type)? {
        ApiType::Grpc => false,
        ApiType::DeltaGrpc => true,
        other => {
            report.error_at("api_type", format!("{} is not served; use GRPC or DELTA_GRPC", other.as_str_name()));
            return None;
        }
    };
    let services = report.items("grpc_services", &message.grpc_services, grpc_service);
    if message.grpc_services.is_empty() {
        report.error_at("grpc_services", "is empty; name the static cluster of the control plane in envoy_grpc");
        return None;
    }
    let mut source = GrpcSource {
        delta,
        clusters: Vec::with_capacity(services.len()),
        set_node_on_first_message_only: message.set_node_on_first_message_only,
        authority: None,
        metadata: Vec::new(),
    };
    for (index, service) in services.into_iter().enumerate() {
        if index == 0 {
            (source.authority, source.metadata) = (service.authority, service.metadata);
        } else if source.authority != service.authority || source.metadata != service.metadata {
            report.error_at("grpc_services", "differ in authority or initial_metadata; give all of them the same");
        }
        source.clusters.push(service.cluster);
    }
    Some(source)
}

struct Service {
    cluster: Name,
    authority: Option<Arc<str>>,
    metadata: Vec<(Arc<str>, Arc<str>)>,
}

fn grpc_service(report: &mut Report, message: &api::GrpcService) -> Option<Service> {
    use api::grpc_service::TargetSpecifier;
    let Some(TargetSpecifier::EnvoyGrpc(target)) = &message.target_specifier else {
        if message.target_specifier.is_none() {
            report.error("names no service; set envoy_grpc");
        }
        return None;
    };
    let metadata = report.items("initial_metadata", &message.initial_metadata, |report, header| {
        let name = scalar::header_name(report, "key", &header.key);
        let value = header_value(report, header);
        name.zip(value)
    });
    report.field("envoy_grpc", |report| {
        let cluster = scalar::name(report, "cluster_name", &target.cluster_name)?;
        let authority = scalar::header_value(report, "authority", &target.authority)?;
        Some(Service { cluster, authority: Some(authority).filter(|authority| !authority.is_empty()), metadata })
    })
}

/// The value of the `HeaderValue` at hand: `value` or, in its place, `raw_value`.
pub(crate) fn header_value(report: &mut Report, header: &api::HeaderValue) -> Option<Arc<str>> {
    if header.raw_value.is_empty() {
        return scalar::header_value(report, "value", &header.value);
    }
    if !header.value.is_empty() {
        report.error_at("raw_value", "stands beside value; give one of them");
        return None;
    }
    let Ok(text) = std::str::from_utf8(&header.raw_value) else {
        report.error_at("raw_value", "is not UTF-8");
        return None;
    };
    scalar::header_value(report, "raw_value", text)
}

/// Parses the `DataSource` at hand. `watched` is the `watched_directory` beside it, if there is one.
pub(crate) fn data_source(
    report: &mut Report,
    message: &api::DataSource,
    beside: Option<&api::WatchedDirectory>,
) -> Option<DataSource> {
    use api::data_source::Specifier;
    match &message.specifier {
        Some(Specifier::Filename(file)) => Some(DataSource::File {
            path: path(report, "filename", file)?,
            watched_directory: watched(message.watched_directory.as_ref().or(beside)),
        }),
        Some(Specifier::InlineBytes(bytes)) => Some(DataSource::Inline(bytes.as_ref().into())),
        Some(Specifier::InlineString(text)) => Some(DataSource::Inline(text.as_bytes().into())),
        Some(Specifier::EnvironmentVariable(name)) if name.is_empty() || name.contains(['=', '\0']) => {
            report.error_at("environment_variable", "is not the name of an environment variable");
            None
        }
        Some(Specifier::EnvironmentVariable(name)) => Some(DataSource::Environment(name.clone())),
        None => {
            report.error("names no source; set filename, inline_string, inline_bytes or environment_variable");
            None
        }
    }
}

fn path(report: &mut Report, field: &'static str, path: &str) -> Option<PathBuf> {
    if path.is_empty() || path.contains('\0') {
        report.error_at(field, "is not the path of a file");
        return None;
    }
    Some(path.into())
}

fn watched(directory: Option<&api::WatchedDirectory>) -> Option<PathBuf> {
    directory.filter(|directory| !directory.path.is_empty()).map(|directory| PathBuf::from(&directory.path))
}

/// xDS: only v3 is spoken; AUTO means it here.
#[expect(deprecated, reason = "V2 is named to be refused")]
fn version(report: &mut Report, field: &'static str, value: i32) {
    if scalar::enumeration::<api::ApiVersion>(report, field, value) == Some(api::ApiVersion::V2) {
        report.error_at(field, "V2 is not spoken; use V3");
    }
}

/// Envoy's default.
const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);
