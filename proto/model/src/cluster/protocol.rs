//! Which protocol a cluster speaks: `typed_extension_protocol_options`, or the fields that it took the place of.

use culvert_api::Any;
use culvert_api::envoy::config::cluster::v3 as api;
use culvert_api::envoy::config::core::v3 as core;
use culvert_api::envoy::extensions::upstreams::http::reverse_tunnel::v3::ReverseTunnelUpstreamCodecOptions;
use culvert_api::envoy::extensions::upstreams::http::v3 as upstream;
use prost::Name as _;

use super::UpstreamProtocol;
use crate::http::{CommonOptions, Http1Options, Http2Options, UnderscoreAction, check_upstream_filters, options};
use crate::report::Report;

/// What the options of a cluster amount to.
pub(super) struct ProtocolOptions {
    pub(super) protocol: UpstreamProtocol,
    pub(super) common: CommonOptions,
    pub(super) http1: Http1Options,
    pub(super) http2: Http2Options,
}

/// Parses the protocol options of the `Cluster` at hand.
pub(super) fn protocol_options(report: &mut Report, message: &api::Cluster, tls: bool) -> ProtocolOptions {
    let mut typed = None;
    for (key, config) in &message.typed_extension_protocol_options {
        report.entry("typed_extension_protocol_options", key, |report| {
            if config.type_name() == upstream::HttpProtocolOptions::full_name() {
                typed = options_of(report, config, tls);
            } else if config.type_name() == ReverseTunnelUpstreamCodecOptions::full_name() {
                if report.unpack::<ReverseTunnelUpstreamCodecOptions>(config).is_some() {
                    report.warn(
                        "a tunnel that this side drains ends when nothing is in flight; no GOAWAY is sent before",
                    );
                }
            } else {
                report.warn(format!("{} is not known; it changes nothing", config.type_name()));
            }
        });
    }
    let old = outdated(report, message);
    match (typed, old) {
        (Some(typed), None) => typed,
        (Some(typed), Some(_)) => {
            let reason = "stands beside http2_protocol_options and the like, which it takes the place of; remove those";
            report.error_at("typed_extension_protocol_options", reason);
            typed
        }
        (None, Some(old)) => old,
        (None, None) => ProtocolOptions {
            protocol: UpstreamProtocol::Http1,
            common: common(report, None),
            http1: Http1Options::default(),
            http2: Http2Options::default(),
        },
    }
}

fn common(report: &mut Report, message: Option<&core::HttpProtocolOptions>) -> CommonOptions {
    let Some(message) = message else { return options::common(report, &core::HttpProtocolOptions::default()) };
    report.field("common_http_protocol_options", |report| {
        let common = options::common(report, message);
        if message.max_headers_count.is_some() {
            report.warn_at("max_headers_count", "is set, and culvert-proxy does not honour it towards upstreams");
        }
        if common.headers_with_underscores != UnderscoreAction::Allow {
            report.warn_at("headers_with_underscores_action", "is set, and does nothing towards upstreams");
        }
        common
    })
}

fn options_of(report: &mut Report, config: &Any, tls: bool) -> Option<ProtocolOptions> {
    use upstream::http_protocol_options::UpstreamProtocolOptions as Kind;
    let message: upstream::HttpProtocolOptions = report.unpack(config)?;
    check_upstream_filters(report, &message.http_filters);
    let common = common(report, message.common_http_protocol_options.as_ref());
    let (field, protocol, http1, http2) = match &message.upstream_protocol_options {
        Some(Kind::ExplicitHttpConfig(explicit)) => return explicit_config(report, explicit, common),
        Some(Kind::UseDownstreamProtocolConfig(config)) => (
            "use_downstream_protocol_config",
            UpstreamProtocol::Downstream,
            config.http_protocol_options.as_ref(),
            config.http2_protocol_options.as_ref(),
        ),
        Some(Kind::AutoConfig(config)) => {
            if !tls {
                report.error_at("auto_config", "needs a TLS transport_socket: ALPN is what decides");
            }
            (
                "auto_config",
                UpstreamProtocol::Auto,
                config.http_protocol_options.as_ref(),
                config.http2_protocol_options.as_ref(),
            )
        }
        None => {
            report.error("names no protocol; set explicit_http_config");
            return None;
        }
    };
    let (http1, http2) = report.field(field, |report| (http1_options(report, http1), http2_options(report, http2)));
    Some(ProtocolOptions { protocol, common, http1, http2 })
}

fn http1_options(report: &mut Report, http1: Option<&core::Http1ProtocolOptions>) -> Http1Options {
    http1.map_or_else(Http1Options::default, |http1| {
        report.field("http_protocol_options", |report| options::http1(report, http1))
    })
}

fn http2_options(report: &mut Report, http2: Option<&core::Http2ProtocolOptions>) -> Http2Options {
    http2.map_or_else(Http2Options::default, |http2| {
        report.field("http2_protocol_options", |report| options::http2(report, http2))
    })
}

fn explicit_config(
    report: &mut Report,
    message: &upstream::http_protocol_options::ExplicitHttpConfig,
    common: CommonOptions,
) -> Option<ProtocolOptions> {
    use upstream::http_protocol_options::explicit_http_config::ProtocolConfig;
    report.field("explicit_http_config", |report| match &message.protocol_config {
        Some(ProtocolConfig::HttpProtocolOptions(http1)) => Some(ProtocolOptions {
            protocol: UpstreamProtocol::Http1,
            common,
            http1: http1_options(report, Some(http1)),
            http2: Http2Options::default(),
        }),
        Some(ProtocolConfig::Http2ProtocolOptions(http2)) => Some(ProtocolOptions {
            protocol: UpstreamProtocol::Http2,
            common,
            http1: Http1Options::default(),
            http2: http2_options(report, Some(http2)),
        }),
        // The coverage tables have refused it.
        Some(ProtocolConfig::Http3ProtocolOptions(_)) => None,
        None => {
            report.error("names no protocol; set http_protocol_options or http2_protocol_options");
            None
        }
    })
}

/// The deprecated fields of the cluster itself; `None` when none is set.
#[expect(deprecated, reason = "configurations still use them")]
fn outdated(report: &mut Report, message: &api::Cluster) -> Option<ProtocolOptions> {
    use api::cluster::ClusterProtocolSelection as Selection;
    let selection = crate::scalar::enumeration::<Selection>(report, "protocol_selection", message.protocol_selection);
    let downstream = selection == Some(Selection::UseDownstreamProtocol);
    let set = downstream
        || message.http2_protocol_options.is_some()
        || message.http_protocol_options.is_some()
        || message.common_http_protocol_options.is_some()
        || message.max_requests_per_connection.is_some();
    if !set {
        return None;
    }
    let mut common = common(report, message.common_http_protocol_options.as_ref());
    let requests = message.max_requests_per_connection.filter(|requests| *requests > 0);
    common.max_requests_per_connection = common.max_requests_per_connection.or(requests);
    Some(ProtocolOptions {
        protocol: match (downstream, &message.http2_protocol_options) {
            (true, _) => UpstreamProtocol::Downstream,
            (false, Some(_)) => UpstreamProtocol::Http2,
            (false, None) => UpstreamProtocol::Http1,
        },
        common,
        http1: http1_options(report, message.http_protocol_options.as_ref()),
        http2: http2_options(report, message.http2_protocol_options.as_ref()),
    })
}
