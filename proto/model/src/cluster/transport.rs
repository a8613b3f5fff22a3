//! `transport_socket_matches`: which of a cluster's endpoints are spoken to within TLS, and which in plain text.

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_api::envoy::config::cluster::v3 as api;
use serde_json::{Map, Value};

use super::Cluster;
use crate::metadata;
use crate::report::Report;
use crate::tls::{self, UpstreamTls};

/// Envoy's key in the metadata of endpoints.
const KEY: &str = "envoy.transport_socket_match";

/// One of them; the first that matches an endpoint counts.
#[derive(Debug, Clone, PartialEq)]
pub struct TransportMatch {
    /// What the endpoint's metadata has to say. Empty: any endpoint.
    pub criteria: Map<String, Value>,
    /// By the cluster's TLS context, or in plain text.
    pub secure: bool,
}

impl Cluster {
    /// Whether the cluster's TLS context, if it has one, is for an endpoint with this metadata (JSON by key).
    #[must_use]
    pub fn secures(&self, metadata: &BTreeMap<String, String>) -> bool {
        if self.transports.is_empty() {
            return true;
        }
        let said = metadata.get(KEY).and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
        let says = |(key, wanted): (&String, &Value)| said.as_ref().and_then(|said| said.get(key)) == Some(wanted);
        let first = self.transports.iter().find(|one| one.criteria.iter().all(says));
        first.is_some_and(|one| one.secure)
    }
}

/// The cluster's TLS context, and whom it is for where that differs; `tls` is that of `transport_socket`, which is for whom nothing
/// else matches.
pub(super) fn transports(
    report: &mut Report,
    message: &api::Cluster,
    tls: Option<Arc<UpstreamTls>>,
) -> (Option<Arc<UpstreamTls>>, Arc<[TransportMatch]>) {
    let otherwise = TransportMatch { criteria: Map::new(), secure: tls.is_some() };
    let mut only = tls;
    let mut matches = report.items("transport_socket_matches", &message.transport_socket_matches, |report, one| {
        let Some(socket) = &one.transport_socket else {
            report.error_at("transport_socket", "is missing");
            return None;
        };
        let context = tls::upstream_socket(report, socket);
        match (&only, &context) {
            (Some(only), Some(context)) if only != context => {
                report.error_at("transport_socket", "is another TLS context than that of others; a cluster has one");
            }
            (None, Some(_)) => only.clone_from(&context),
            _ => {}
        }
        let criteria = one.r#match.as_ref().map(metadata::object).unwrap_or_default();
        Some(TransportMatch { criteria, secure: context.is_some() })
    });
    if !matches.is_empty() {
        matches.push(otherwise);
    }
    (only, matches.into())
}
