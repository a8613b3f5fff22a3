//! Which protocol a cluster speaks: `typed_extension_protocol_options`, or the fields that it took the place of.

use std::sync::Arc;

use culvert_api::Any;
use culvert_api::envoy::config::cluster::v3 as api;
use culvert_api::envoy::config::core::v3 as core;
use culvert_api::envoy::extensions::upstreams::http::reverse_tunnel::v3::ReverseTunnelUpstreamCodecOptions;
use culvert_api::envoy::extensions::upstreams::http::v3 as upstream;
use prost::Name as _;

use super::{AutoSni, UpstreamProtocol};
use crate::http::{
    CommonOptions, FloodLimits, Http1Options, Http2Options, UnderscoreAction, check_upstream_filters, options,
};
use crate::report::Report;
use crate::scalar;
use crate::tls::UpstreamTls;

/// What the options of a cluster amount to.
pub(super) struct ProtocolOptions {
    pub(super) protocol: UpstreamProtocol,
    pub(super) common: CommonOptions,
    pub(super) http1: Http1Options,
    pub(super) http2: Http2Options,
    pub(super) auto_sni: Option<AutoSni>,
}

/// Parses the protocol options of the `Cluster` at hand.
pub(super) fn protocol_options(
    report: &mut Report,
    message: &api::Cluster,
    tls: Option<&Arc<UpstreamTls>>,
) -> ProtocolOptions {
    let mut typed = None;
    for (key, config) in &message.typed_extension_protocol_options {
        report.entry("typed_extension_protocol_options", key, |report| {
            if config.type_name() == upstream::HttpProtocolOptions::full_name() {
                typed = options_of(report, config, tls);
            } else if config.type_name() == ReverseTunnelUpstreamCodecOptions::full_name() {
                // What it asks for is always done; the message itself is checked all the same.
                let _: Option<ReverseTunnelUpstreamCodecOptions> = report.unpack(config);
            } else {
                report.warn(format!("{} is not known; it changes nothing", config.type_name()));
            }
        });
    }
    // As in Envoy, which refuses neither and reads one.
    match typed {
        Some(mut typed) => {
            if is_outdated(message) {
                let reason = "takes the place of http2_protocol_options and the like, which stand beside it and do not count; remove those";
                report.warn_at("typed_extension_protocol_options", reason);
            }
            typed.common.max_requests_per_connection = typed.common.max_requests_per_connection.or(requests(message));
            typed
        }
        None => outdated(report, message, tls),
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

fn options_of(report: &mut Report, config: &Any, tls: Option<&Arc<UpstreamTls>>) -> Option<ProtocolOptions> {
    use upstream::http_protocol_options::UpstreamProtocolOptions as Kind;
    let message: upstream::HttpProtocolOptions = report.unpack(config)?;
    check_upstream_filters(report, &message.http_filters);
    let common = common(report, message.common_http_protocol_options.as_ref());
    let auto_sni = message
        .upstream_http_protocol_options
        .as_ref()
        .and_then(|options| report.field("upstream_http_protocol_options", |report| auto_sni_of(report, options, tls)));
    let (field, protocol, http1, http2) = match &message.upstream_protocol_options {
        Some(Kind::ExplicitHttpConfig(explicit)) => return explicit_config(report, explicit, common, auto_sni),
        Some(Kind::UseDownstreamProtocolConfig(config)) => (
            "use_downstream_protocol_config",
            UpstreamProtocol::Downstream,
            config.http_protocol_options.as_ref(),
            config.http2_protocol_options.as_ref(),
        ),
        Some(Kind::AutoConfig(config)) => {
            if tls.is_none() {
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
    Some(ProtocolOptions { protocol, common, http1, http2, auto_sni })
}

fn http1_options(report: &mut Report, http1: Option<&core::Http1ProtocolOptions>) -> Http1Options {
    http1.map_or_else(Http1Options::default, |http1| {
        report.field("http_protocol_options", |report| options::http1(report, http1))
    })
}

fn http2_options(report: &mut Report, http2: Option<&core::Http2ProtocolOptions>) -> Http2Options {
    http2.map_or_else(Http2Options::default, |http2| {
        report.field("http2_protocol_options", |report| {
            let options = options::http2(report, http2);
            if options.flood_limits != FloodLimits::default() {
                report.warn("limits frames of clients; towards upstreams it does nothing");
            }
            options
        })
    })
}

/// `auto_sni` and what stands beside it.
fn auto_sni_of(
    report: &mut Report,
    message: &core::UpstreamHttpProtocolOptions,
    tls: Option<&Arc<UpstreamTls>>,
) -> Option<AutoSni> {
    let header = match message.override_auto_sni_header.as_str() {
        "" | ":authority" | "host" => None,
        name => Some(scalar::header_name(report, "override_auto_sni_header", name)?),
    };
    if !message.auto_sni {
        if message.auto_san_validation {
            report.error_at("auto_san_validation", "needs auto_sni: the name that is checked is the one that is sent");
        }
        return None;
    }
    let Some(tls) = tls else {
        report.warn_at("auto_sni", "does nothing: the cluster has no TLS transport_socket");
        return None;
    };
    if message.auto_san_validation && tls.common.validation.is_none() {
        // Envoy looks at the name alone then, which everybody can write into a certificate of his own.
        report.error_at("auto_san_validation", "needs a validation_context; set trusted_ca");
    }
    Some(AutoSni { header, validates: message.auto_san_validation })
}

fn explicit_config(
    report: &mut Report,
    message: &upstream::http_protocol_options::ExplicitHttpConfig,
    common: CommonOptions,
    auto_sni: Option<AutoSni>,
) -> Option<ProtocolOptions> {
    use upstream::http_protocol_options::explicit_http_config::ProtocolConfig;
    report.field("explicit_http_config", |report| match &message.protocol_config {
        Some(ProtocolConfig::HttpProtocolOptions(http1)) => Some(ProtocolOptions {
            protocol: UpstreamProtocol::Http1,
            common,
            http1: http1_options(report, Some(http1)),
            http2: Http2Options::default(),
            auto_sni,
        }),
        Some(ProtocolConfig::Http2ProtocolOptions(http2)) => Some(ProtocolOptions {
            protocol: UpstreamProtocol::Http2,
            common,
            http1: Http1Options::default(),
            http2: http2_options(report, Some(http2)),
            auto_sni,
        }),
        // The coverage tables have refused it.
        Some(ProtocolConfig::Http3ProtocolOptions(_)) => None,
        None => {
            report.error("names no protocol; set http_protocol_options or http2_protocol_options");
            None
        }
    })
}

/// Whether options stand where they stood before `HttpProtocolOptions`.
#[expect(deprecated, reason = "configurations still use them")]
fn is_outdated(message: &api::Cluster) -> bool {
    message.protocol_selection != 0
        || message.http2_protocol_options.is_some()
        || message.http_protocol_options.is_some()
        || message.common_http_protocol_options.is_some()
        || message.upstream_http_protocol_options.is_some()
}

/// `max_requests_per_connection` of the cluster itself.
#[expect(deprecated, reason = "configurations still use them")]
fn requests(message: &api::Cluster) -> Option<u32> {
    message.max_requests_per_connection.filter(|requests| *requests > 0)
}

/// What the cluster's own fields say.
#[expect(deprecated, reason = "configurations still use them")]
fn outdated(report: &mut Report, message: &api::Cluster, tls: Option<&Arc<UpstreamTls>>) -> ProtocolOptions {
    use api::cluster::ClusterProtocolSelection as Selection;
    let selection = scalar::enumeration::<Selection>(report, "protocol_selection", message.protocol_selection);
    let mut common = common(report, message.common_http_protocol_options.as_ref());
    common.max_requests_per_connection = common.max_requests_per_connection.or(requests(message));
    let auto_sni = message
        .upstream_http_protocol_options
        .as_ref()
        .and_then(|options| report.field("upstream_http_protocol_options", |report| auto_sni_of(report, options, tls)));
    ProtocolOptions {
        protocol: match (selection, &message.http2_protocol_options) {
            (Some(Selection::UseDownstreamProtocol), _) => UpstreamProtocol::Downstream,
            (_, Some(_)) => UpstreamProtocol::Http2,
            (_, None) => UpstreamProtocol::Http1,
        },
        common,
        http1: http1_options(report, message.http_protocol_options.as_ref()),
        http2: http2_options(report, message.http2_protocol_options.as_ref()),
        auto_sni,
    }
}
