//! What is asked for only when a request needs it: `envoy.filters.http.on_demand`.

use std::time::Duration;

use culvert_api::envoy::config::core::v3 as core;
use culvert_api::envoy::extensions::filters::http::on_demand::v3 as api;

use crate::report::Report;
use crate::scalar;
use crate::source::{self, ConfigSource, ConfigSourceKind};

/// The filter: virtual hosts and scopes are asked for when a request needs them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnDemand {
    /// `odcds`: so are clusters. `None`: a cluster that is not there is none.
    pub clusters: Option<OnDemandClusters>,
}

/// `OnDemandCds`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnDemandClusters {
    pub source: ConfigSource,
    /// How long a request waits. Default 5 s.
    pub timeout: Duration,
}

/// Parses the `OnDemand` or `PerRouteConfig` at hand.
pub(crate) fn on_demand(report: &mut Report, odcds: Option<&api::OnDemandCds>) -> Option<OnDemand> {
    let Some(odcds) = odcds else { return Some(OnDemand { clusters: None }) };
    report.field("odcds", |report| {
        let source = delta_source(report, "source", odcds.source.as_ref());
        let timeout = scalar::positive(report, "timeout", odcds.timeout.as_ref(), CLUSTER_TIME);
        Some(OnDemand { clusters: Some(OnDemandClusters { source: source?, timeout }) })
    })
}

/// A source that says of single names that they do not exist. Envoy: delta only. (Whether an ADS stream is of that kind is
/// known where it is asked.)
pub(crate) fn delta_source(
    report: &mut Report,
    field: &'static str,
    message: Option<&core::ConfigSource>,
) -> Option<ConfigSource> {
    let Some(message) = message else {
        report.error_at(field, "is missing; use `ads: {}`");
        return None;
    };
    report.field(field, |report| {
        let source = source::config_source(report, message)?;
        match &source.kind {
            ConfigSourceKind::Ads => Some(source),
            ConfigSourceKind::Grpc(grpc) if grpc.delta => Some(source),
            ConfigSourceKind::Grpc(_) | ConfigSourceKind::Path { .. } => {
                report.error("is not asked for single names; use ads, or api_type DELTA_GRPC");
                None
            }
        }
    })
}

/// Envoy's default.
const CLUSTER_TIME: Duration = Duration::from_secs(5);
