//! Filters and extensions that are not there, and need not be: traffic goes the same way without them.

use std::borrow::Cow;

use culvert_api::Any;
use prost::Message;

use crate::report::{Report, clip};

/// They watch and decide nothing, or nothing unless a route says so, which is refused. Istio puts most of them into every listener;
/// `alpn` names protocols in TLS by which Istio's own proxies tell HTTP from other traffic that they sniff.
/// Internal listeners, which one extension is for, are refused where they stand.
const KINDS: [&str; 8] = [
    "envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
    "envoy.extensions.filters.http.cors.v3.Cors",
    "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
    "envoy.tcp.metadataexchange.config.MetadataExchange",
    "io.istio.http.peer_metadata.Config",
    "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
    "istio.workload.BootstrapExtension",
    "stats.PluginConfig",
];

/// Injects faults where it is told to, here or by a route, which is refused.
const FAULT: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";

/// `xds.type.v3.TypedStruct` and `udpa.type.v1.TypedStruct`: a message of another type, as JSON.
#[derive(Clone, PartialEq, Message)]
struct TypedStruct {
    #[prost(string, tag = "1")]
    type_url: String,
}

/// Whether everything goes the same way without what is configured so.
pub(crate) fn is(config: &Any) -> bool {
    let kind = kind(config);
    KINDS.contains(&&*kind) || (kind == FAULT && config.value.is_empty())
}

/// Says of what is at hand that it is left out.
pub(crate) fn warn(report: &mut Report, config: &Any) {
    let kind = kind(config);
    report.warn(format!("{} is not there; it decides nothing as it stands here, and is left out", clip(&kind)));
}

/// Full name of what is configured.
fn kind(config: &Any) -> Cow<'_, str> {
    match config.type_name() {
        "xds.type.v3.TypedStruct" | "udpa.type.v1.TypedStruct" => {
            let inner = TypedStruct::decode(&*config.value).unwrap_or_default().type_url;
            Cow::Owned(inner.rsplit('/').next().unwrap_or_default().to_owned())
        }
        name => Cow::Borrowed(name),
    }
}
