//! The HTTP connection manager out of its message.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::http_filter::ConfigType;
use culvert_api::Any;
use culvert_api::envoy::config::route::v3::FilterConfig;
use culvert_api::envoy::extensions::filters::http::on_demand::v3::{OnDemand as ApiOnDemand, PerRouteConfig};
use culvert_api::envoy::extensions::filters::http::router::v3::Router as ApiRouter;
use culvert_api::envoy::extensions::filters::network::http_connection_manager::v3 as api;
use prost::Name as _;

use super::{
    ClientCertDetails, Codec, DEFAULT_SERVER_NAME, EscapedSlashes, ForwardClientCert, Http1Options, Http2Options,
    HttpConnectionManager, RouteSource, RouterOptions, ServerHeader, StripPort, UpgradeConfig, options,
};
use crate::access_log;
use crate::bystander;
use crate::extension::{self, Discovery, may_be};
use crate::listener::{Cidr, cidr};
use crate::on_demand::{self, OnDemand};
use crate::report::{Report, clip};
use crate::route;
use crate::scalar;
use crate::scope;
use crate::source;

/// Parses the `HttpConnectionManager` at hand.
pub(crate) fn connection_manager(
    report: &mut Report,
    message: &api::HttpConnectionManager,
) -> Option<HttpConnectionManager> {
    let routes = routes(report, message);
    let router = filters(report, &message.http_filters);
    let timers = timers(report, message);
    let common = message.common_http_protocol_options.unwrap_or_default();
    let common = report.field("common_http_protocol_options", |report| options::common(report, &common));
    let http1 = message.http_protocol_options.as_ref().map_or_else(Http1Options::default, |message| {
        report.field("http_protocol_options", |report| options::http1(report, message))
    });
    let http2 = message.http2_protocol_options.as_ref().map_or_else(Http2Options::default, |message| {
        report.field("http2_protocol_options", |report| options::http2(report, message))
    });
    let server_name = server_name(report, message);
    let via = scalar::header_value(report, "via", &message.via);
    let upgrades = report.items("upgrade_configs", &message.upgrade_configs, |report, upgrade| {
        let kind = scalar::name(report, "upgrade_type", &upgrade.upgrade_type)?.to_ascii_lowercase().into();
        Some(UpgradeConfig { kind, enabled: upgrade.enabled.unwrap_or(true), terminate_connect: false })
    });
    let stat_prefix = scalar::name(report, "stat_prefix", &message.stat_prefix);
    let codec = codec(report, message);
    let access_log = access_log::list(report, "access_log", &message.access_log);
    let strip_port = strip_port(report, message);
    let scheme_override = scheme(report, message);
    let server_header = server_header(report, message);
    let forward_client_cert = forward_client_cert(report, message);
    let escaped_slashes = escaped_slashes(report, message);
    let internal_addresses = internal_addresses(report, message);
    let kilobytes = scalar::within(report, "max_request_headers_kb", message.max_request_headers_kb, 1, 8192, 60);
    let router = router?;
    Some(HttpConnectionManager {
        stat_prefix: stat_prefix?,
        codec: codec?,
        routes: routes?,
        http1,
        http2,
        server_name: server_name?,
        server_header: server_header?,
        via: via?,
        generate_request_id: message.generate_request_id.unwrap_or(true),
        preserve_external_request_id: message.preserve_external_request_id,
        always_set_request_id_in_response: message.always_set_request_id_in_response,
        use_remote_address: message.use_remote_address.unwrap_or(false),
        xff_num_trusted_hops: message.xff_num_trusted_hops,
        skip_xff_append: message.skip_xff_append,
        internal_addresses,
        forward_client_cert: forward_client_cert?,
        client_cert_details: client_cert_details(message),
        normalize_path: message.normalize_path.unwrap_or(false),
        merge_slashes: message.merge_slashes,
        escaped_slashes: escaped_slashes?,
        max_request_headers_bytes: kilobytes.saturating_mul(1024),
        max_headers_count: common.max_headers_count,
        headers_with_underscores: common.headers_with_underscores,
        idle_timeout: common.idle_timeout,
        max_connection_duration: common.max_connection_duration,
        max_requests_per_connection: common.max_requests_per_connection,
        stream_idle_timeout: timers.stream_idle,
        request_timeout: timers.request,
        request_headers_timeout: timers.request_headers,
        drain_timeout: timers.drain,
        delayed_close_timeout: timers.delayed_close,
        upgrades,
        access_log,
        strip_port,
        strip_trailing_host_dot: message.strip_trailing_host_dot,
        stream_error_on_invalid: message.stream_error_on_invalid_http_message.unwrap_or(false),
        scheme_override,
        router: router.options,
        router_discovery: router.discovery,
        on_demand: router.on_demand,
    })
}

fn server_name(report: &mut Report, message: &api::HttpConnectionManager) -> Option<Arc<str>> {
    let name = if message.server_name.is_empty() { DEFAULT_SERVER_NAME } else { &message.server_name };
    scalar::header_value(report, "server_name", name)
}

fn internal_addresses(report: &mut Report, message: &api::HttpConnectionManager) -> Vec<Cidr> {
    message.internal_address_config.as_ref().map_or_else(Vec::new, |config| {
        report.field("internal_address_config", |report| {
            if config.cidr_ranges.is_empty() {
                // Envoy takes private addresses for internal then: who that is should be said.
                report.warn_at("cidr_ranges", "is empty: no client counts as internal; name the ranges");
            } else {
                report
                    .warn("lets no client set timeouts or retries by x-envoy-* fields; they are removed all the same");
            }
            report.items("cidr_ranges", &config.cidr_ranges, cidr)
        })
    })
}

struct Timers {
    stream_idle: Option<Duration>,
    request: Option<Duration>,
    request_headers: Option<Duration>,
    drain: Duration,
    delayed_close: Duration,
}

fn timers(report: &mut Report, message: &api::HttpConnectionManager) -> Timers {
    let mut limit = |field, value: &Option<prost_types::Duration>, default: Option<u64>| {
        scalar::limit(report, field, value.as_ref(), default.map(Duration::from_secs))
    };
    Timers {
        stream_idle: limit("stream_idle_timeout", &message.stream_idle_timeout, Some(300)),
        request: limit("request_timeout", &message.request_timeout, None),
        request_headers: limit("request_headers_timeout", &message.request_headers_timeout, Some(10)),
        drain: limit("drain_timeout", &message.drain_timeout, Some(5)).unwrap_or_default(),
        delayed_close: limit("delayed_close_timeout", &message.delayed_close_timeout, Some(1)).unwrap_or_default(),
    }
}

fn routes(report: &mut Report, message: &api::HttpConnectionManager) -> Option<RouteSource> {
    use api::http_connection_manager::RouteSpecifier;
    match &message.route_specifier {
        Some(RouteSpecifier::RouteConfig(routes)) => {
            let routes =
                report.field("route_config", |report| route::configuration(report, routes, route::Place::Inline));
            Some(RouteSource::Inline(Arc::new(routes?)))
        }
        Some(RouteSpecifier::Rds(rds)) => report.field("rds", |report| {
            let name = scalar::name(report, "route_config_name", &rds.route_config_name);
            let Some(config) = &rds.config_source else {
                report.error_at("config_source", "is missing; use `ads: {}`");
                return None;
            };
            let config = report.field("config_source", |report| source::config_source(report, config));
            Some(RouteSource::Rds { name: name?, config: config? })
        }),
        Some(RouteSpecifier::ScopedRoutes(scoped)) => {
            let scoped = report.field("scoped_routes", |report| scope::scoped_routes(report, scoped))?;
            Some(RouteSource::Scoped(Arc::new(scoped)))
        }
        None => {
            report.error("names no routes; set route_config, rds or scoped_routes");
            None
        }
    }
}

/// The last filter: its options, and where they come from if not from here; and the one that may stand before it.
struct Router {
    options: RouterOptions,
    discovery: Option<Arc<Discovery<RouterOptions>>>,
    on_demand: Option<OnDemand>,
}

/// The filters before the router must be such that leaving them out was foreseen.
fn filters(report: &mut Report, filters: &[api::HttpFilter]) -> Option<Router> {
    let (mut router, mut on_demand) = (None, None);
    report.items("http_filters", filters, |report, filter| -> Option<()> {
        if router.is_some() {
            report.error("stands behind the router, which is the last filter");
            return None;
        }
        match &filter.config_type {
            Some(ConfigType::TypedConfig(config)) if config.type_name() == ApiRouter::full_name() => {
                let options = report.field("typed_config", |report| router_options(report, config));
                router = Some(options.map(|options| Router { options, discovery: None, on_demand: on_demand.take() }));
            }
            Some(ConfigType::ConfigDiscovery(source))
                if may_be(source, &ApiRouter::full_name()) && !filter.disabled =>
            {
                let discovered = report.field("config_discovery", |report| {
                    extension::discovery(report, &filter.name, source, &[ApiRouter::full_name()], router_options)
                });
                router = Some(discovered.map(|discovery| Router {
                    options: discovery.default.clone().unwrap_or_default(),
                    discovery: Some(Arc::new(discovery)),
                    on_demand: on_demand.take(),
                }));
            }
            Some(ConfigType::TypedConfig(config))
                if config.type_name() == ApiOnDemand::full_name() && !filter.disabled =>
            {
                on_demand = report.field("typed_config", |report| {
                    let message: ApiOnDemand = report.unpack(config)?;
                    on_demand::on_demand(report, message.odcds.as_ref())
                });
            }
            _ => left_out(report, filter),
        }
        None
    });
    if router.is_none() {
        let name = ApiRouter::full_name();
        report.error_at("http_filters", format!("has no router; the last filter is a {name} that is not disabled"));
    }
    router.flatten()
}

/// Parses the router filter at hand.
pub(crate) fn router_options(report: &mut Report, config: &Any) -> Option<RouterOptions> {
    let router: ApiRouter = report.unpack(config)?;
    Some(RouterOptions {
        suppress_envoy_headers: router.suppress_envoy_headers,
        respect_expected_rq_timeout: router.respect_expected_rq_timeout,
    })
}

/// An HTTP filter that is not there: refused unless the configuration allows for that, or everything goes the same way without it.
fn left_out(report: &mut Report, filter: &api::HttpFilter) {
    let (field, name) = match &filter.config_type {
        Some(ConfigType::TypedConfig(config)) if bystander::is(config) => {
            return report.field("typed_config", |report| bystander::warn(report, config));
        }
        Some(ConfigType::TypedConfig(config)) => ("typed_config", config.type_name()),
        Some(ConfigType::ConfigDiscovery(_)) => ("config_discovery", clip(&filter.name)),
        None => ("typed_config", clip(&filter.name)),
    };
    if filter.disabled {
        report.warn_at(field, format!("{name} is not there; it is disabled, and routes cannot enable it"));
    } else if filter.is_optional {
        report.warn_at(field, format!("{name} is not there; it is optional and left out"));
    } else {
        let reason = "it may decide who may connect; remove it, or set is_optional to go without it";
        report.error_at(field, format!("{name} is not there: {reason}"));
    }
}

fn typed_config(filter: &api::HttpFilter) -> Option<&Any> {
    match &filter.config_type {
        Some(ConfigType::TypedConfig(config)) => Some(config),
        Some(ConfigType::ConfigDiscovery(_)) | None => None,
    }
}

/// The HTTP filters of a cluster: only the codec, which is always there, may stand among them.
pub(crate) fn check_upstream_filters(report: &mut Report, filters: &[api::HttpFilter]) {
    report.items("http_filters", filters, |report, filter| -> Option<()> {
        if typed_config(filter).is_none_or(|config| config.type_name() != UPSTREAM_CODEC) {
            left_out(report, filter);
        }
        None
    });
}

/// `typed_per_filter_config`: what it says of what is asked for on demand. Other filters are refused, unless it allows for
/// their not being there.
pub(crate) fn per_filter_config(report: &mut Report, configs: &BTreeMap<String, Any>) -> Option<OnDemand> {
    let mut on_demand = None;
    for (name, config) in configs {
        report.entry("typed_per_filter_config", name, |report| {
            let wrapper = if config.type_name() == FilterConfig::full_name() {
                report.unpack::<FilterConfig>(config)
            } else {
                None
            };
            let is_disabled = wrapper.as_ref().is_some_and(|wrapper| wrapper.disabled);
            let inner = wrapper.as_ref().map_or(Some(config), |wrapper| wrapper.config.as_ref());
            if let Some(inner) = inner.filter(|inner| inner.type_name() == PerRouteConfig::full_name()) {
                if let Some(message) = report.unpack::<PerRouteConfig>(inner) {
                    let clusters = message.odcds.as_ref().filter(|_| !is_disabled);
                    on_demand = on_demand::on_demand(report, clusters);
                }
                return;
            }
            // Without a configuration of its own it is the filter of that name that is turned on.
            let kind = inner.map(Any::type_name).filter(|kind| !kind.is_empty()).unwrap_or(name);
            if wrapper.as_ref().is_some_and(|wrapper| wrapper.is_optional || wrapper.disabled) {
                report.warn(format!("{kind} is not there; it is optional or disabled, and left out"));
            } else {
                report.error(format!("{kind} is not there: it may decide what is checked; remove it"));
            }
        });
    }
    on_demand
}

fn codec(report: &mut Report, message: &api::HttpConnectionManager) -> Option<Codec> {
    use api::http_connection_manager::CodecType;
    match scalar::enumeration(report, "codec_type", message.codec_type)? {
        CodecType::Auto => Some(Codec::Auto),
        CodecType::Http1 => Some(Codec::Http1),
        CodecType::Http2 => Some(Codec::Http2),
        CodecType::Http3 => {
            report.error_at("codec_type", "HTTP3 is not served; use AUTO, HTTP1 or HTTP2");
            None
        }
    }
}

fn server_header(report: &mut Report, message: &api::HttpConnectionManager) -> Option<ServerHeader> {
    use api::http_connection_manager::ServerHeaderTransformation as Kind;
    Some(match scalar::enumeration(report, "server_header_transformation", message.server_header_transformation)? {
        Kind::Overwrite => ServerHeader::Overwrite,
        Kind::AppendIfAbsent => ServerHeader::AppendIfAbsent,
        Kind::PassThrough => ServerHeader::PassThrough,
    })
}

fn forward_client_cert(report: &mut Report, message: &api::HttpConnectionManager) -> Option<ForwardClientCert> {
    use api::http_connection_manager::ForwardClientCertDetails as Kind;
    Some(match scalar::enumeration(report, "forward_client_cert_details", message.forward_client_cert_details)? {
        Kind::Sanitize => ForwardClientCert::Sanitize,
        Kind::ForwardOnly => ForwardClientCert::ForwardOnly,
        Kind::AppendForward => ForwardClientCert::AppendForward,
        Kind::SanitizeSet => ForwardClientCert::SanitizeSet,
        Kind::AlwaysForwardOnly => ForwardClientCert::AlwaysForwardOnly,
    })
}

fn client_cert_details(message: &api::HttpConnectionManager) -> ClientCertDetails {
    message.set_current_client_cert_details.as_ref().map_or_else(ClientCertDetails::default, |details| {
        ClientCertDetails {
            subject: details.subject.unwrap_or(false),
            cert: details.cert,
            chain: details.chain,
            dns: details.dns,
            uri: details.uri,
        }
    })
}

fn escaped_slashes(report: &mut Report, message: &api::HttpConnectionManager) -> Option<EscapedSlashes> {
    use api::http_connection_manager::PathWithEscapedSlashesAction as Kind;
    let field = "path_with_escaped_slashes_action";
    Some(match scalar::enumeration(report, field, message.path_with_escaped_slashes_action)? {
        Kind::ImplementationSpecificDefault | Kind::KeepUnchanged => EscapedSlashes::Keep,
        Kind::RejectRequest => EscapedSlashes::Reject,
        Kind::UnescapeAndRedirect => EscapedSlashes::UnescapeAndRedirect,
        Kind::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
    })
}

fn strip_port(report: &mut Report, message: &api::HttpConnectionManager) -> StripPort {
    use api::http_connection_manager::StripPortMode;
    let any = matches!(message.strip_port_mode, Some(StripPortMode::StripAnyHostPort(true)));
    match (any, message.strip_matching_host_port) {
        (true, true) => {
            report.error_at("strip_matching_host_port", "stands beside strip_any_host_port; set one of them");
            StripPort::Any
        }
        (true, false) => StripPort::Any,
        (false, true) => StripPort::Matching,
        (false, false) => StripPort::Keep,
    }
}

fn scheme(report: &mut Report, message: &api::HttpConnectionManager) -> Option<Arc<str>> {
    use culvert_api::envoy::config::core::v3::scheme_header_transformation::Transformation;
    let transformation = message.scheme_header_transformation.as_ref()?.transformation.as_ref()?;
    let Transformation::SchemeToOverwrite(scheme) = transformation;
    match scheme.as_str() {
        "http" | "https" => Some(scheme.as_str().into()),
        _ => {
            report.field("scheme_header_transformation", |report| {
                report.error_at("scheme_to_overwrite", "is neither http nor https");
            });
            None
        }
    }
}

const UPSTREAM_CODEC: &str = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec";
