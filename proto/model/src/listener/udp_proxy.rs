//! UDP: what a listener of datagrams does with them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_api::envoy::config::core::v3 as core;
use culvert_api::envoy::config::listener::v3 as listener;
use culvert_api::envoy::extensions::filters::udp::udp_proxy::v3 as api;
use culvert_api::xds::r#type::matcher::v3::matcher;
use prost::Name as _;

use crate::Name;
use crate::access_log::{self, AccessLog};
use crate::report::{Report, clip};
use crate::route::{self, HeaderMutations};
use crate::scalar;

/// `UdpProxyConfig`.
#[derive(Debug, Clone, PartialEq)]
pub struct UdpProxy {
    pub stat_prefix: Name,
    pub cluster: Name,
    /// No datagram either way. Default 1 min.
    pub idle_timeout: Duration,
    /// The longest datagram that is taken from clients, in bytes. Default 1500.
    pub max_downstream_datagram: usize,
    /// The longest that is taken from hosts. Default 1500.
    pub max_upstream_datagram: usize,
    /// Of sessions.
    pub access_log: Vec<Arc<AccessLog>>,
    /// `None`: to the hosts of the cluster as UDP.
    pub tunneling: Option<UdpTunneling>,
}

/// `UdpTunnelingConfig`: each session is a CONNECT-UDP stream (RFC 9298) to a host of the cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct UdpTunneling {
    /// `:authority`: `proxy_host` and `proxy_port`.
    pub authority: Arc<str>,
    /// `:path`: the target in the default template of RFC 9298.
    pub path: Arc<str>,
    pub headers: Arc<HeaderMutations>,
    /// At least 1.
    pub max_connect_attempts: u32,
    /// What may wait for a stream; `None`: nothing.
    pub buffer: Option<DatagramBuffer>,
}

/// `BufferOptions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramBuffer {
    pub datagrams: usize,
    pub bytes: usize,
}

/// Parses the one listener filter of a listener of datagrams.
pub(super) fn listener_filter(report: &mut Report, message: &listener::Listener) -> Option<UdpProxy> {
    if !message.filter_chains.is_empty() || message.default_filter_chain.is_some() {
        let reason = "has no meaning for UDP; let udp_proxy be the listener filter";
        report.error_at("filter_chains", reason);
    }
    if message.bind_to_port == Some(false) {
        report.error_at("bind_to_port", "is false, but datagrams come from a socket; remove it");
    }
    if !message.access_log.is_empty() {
        report.warn_at("access_log", "a listener of datagrams has no connections; sessions are logged by udp_proxy");
    }
    let socket = message.udp_listener_config.as_ref().and_then(|config| config.downstream_socket_config.as_ref());
    let max_downstream_datagram =
        report.field("udp_listener_config", |report| datagram_size(report, "downstream_socket_config", socket));
    let [filter] = message.listener_filters.as_slice() else {
        report.error_at("listener_filters", format!("a listener of datagrams needs one, {UDP_PROXY}"));
        return None;
    };
    let mut proxy = report.item("listener_filters", 0, |report| {
        let Some(listener::listener_filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
            report.error_at("typed_config", format!("is missing for {:?}", clip(&filter.name)));
            return None;
        };
        report.field("typed_config", |report| {
            if config.type_name() != api::UdpProxyConfig::full_name() {
                report.error(format!("{} is not there; use {UDP_PROXY}", config.type_name()));
                return None;
            }
            let message: api::UdpProxyConfig = report.unpack(config)?;
            parse(report, &message)
        })
    })?;
    proxy.max_downstream_datagram = max_downstream_datagram;
    Some(proxy)
}

/// Parses the `UdpProxyConfig` at hand.
fn parse(report: &mut Report, message: &api::UdpProxyConfig) -> Option<UdpProxy> {
    let stat_prefix = scalar::name(report, "stat_prefix", &message.stat_prefix);
    let cluster = cluster(report, message);
    let idle_timeout = scalar::positive(report, "idle_timeout", message.idle_timeout.as_ref(), IDLE_TIMEOUT);
    let socket = message.upstream_socket_config.as_ref();
    let max_upstream_datagram = datagram_size(report, "upstream_socket_config", socket);
    let access_log = access_log::list(report, "access_log", &message.access_log);
    let tunneling = match &message.tunneling_config {
        Some(config) => Some(report.field("tunneling_config", |report| tunneling(report, config))?),
        None => None,
    };
    let capsules = session_filters(report, message);
    if tunneling.is_some() && !capsules && message.session_filters.is_empty() {
        let reason =
            format!("has no {HTTP_CAPSULE}: an Envoy sends datagrams bare then, here they are capsules all the same");
        report.warn_at("session_filters", reason);
    } else if tunneling.is_none() && capsules {
        report.error_at("session_filters", format!("{HTTP_CAPSULE} is for tunneling_config, which is missing"));
    }
    Some(UdpProxy {
        stat_prefix: stat_prefix?,
        cluster: cluster?,
        idle_timeout,
        max_downstream_datagram: DATAGRAM_SIZE,
        max_upstream_datagram,
        access_log,
        tunneling,
    })
}

/// Whether datagrams become capsules. No other filter is there: each may decide where traffic goes.
fn session_filters(report: &mut Report, message: &api::UdpProxyConfig) -> bool {
    use api::udp_proxy_config::session_filter::ConfigType;
    let mut capsules = false;
    report.items("session_filters", &message.session_filters, |report, filter| -> Option<()> {
        let config = match &filter.config_type {
            Some(ConfigType::TypedConfig(config)) => config,
            // The coverage tables have refused it.
            Some(ConfigType::ConfigDiscovery(_)) => return None,
            None => {
                report.error_at("typed_config", format!("is missing for {:?}", clip(&filter.name)));
                return None;
            }
        };
        let name = config.type_name();
        if name == HTTP_CAPSULE {
            capsules = true;
        } else {
            report
                .error_at("typed_config", format!("{name} is not there: it may decide where traffic goes; remove it"));
        }
        None
    });
    capsules
}

#[expect(deprecated, reason = "configurations still use cluster, as does Envoy's documentation")]
fn cluster(report: &mut Report, message: &api::UdpProxyConfig) -> Option<Name> {
    use api::udp_proxy_config::RouteSpecifier;
    match &message.route_specifier {
        Some(RouteSpecifier::Cluster(cluster)) => scalar::name(report, "cluster", cluster),
        Some(RouteSpecifier::Matcher(matcher)) => report.field("matcher", |report| {
            let Some(otherwise) = &matcher.on_no_match else {
                report.error_at("on_no_match", "is missing; it is the one place that names the cluster here");
                return None;
            };
            report.field("on_no_match", |report| match &otherwise.on_match {
                Some(matcher::on_match::OnMatch::Action(action)) => report.field("action", |report| {
                    let Some(config) = &action.typed_config else {
                        report.error_at("typed_config", format!("is missing; let it be a {}", api::Route::full_name()));
                        return None;
                    };
                    report.field("typed_config", |report| {
                        let route: api::Route = report.unpack(config)?;
                        scalar::name(report, "cluster", &route.cluster)
                    })
                }),
                // The coverage tables have refused a matcher within the matcher.
                Some(matcher::on_match::OnMatch::Matcher(_)) | None => {
                    report.error_at("action", "is missing; let it name the cluster");
                    None
                }
            })
        }),
        None => {
            report.error("names no cluster; set matcher.on_no_match.action, or cluster");
            None
        }
    }
}

fn datagram_size(report: &mut Report, field: &'static str, message: Option<&core::UdpSocketConfig>) -> usize {
    let Some(size) = message.and_then(|message| message.max_rx_datagram_size) else { return DATAGRAM_SIZE };
    match usize::try_from(size).ok().filter(|size| (1..=MAX_DATAGRAM_SIZE).contains(size)) {
        Some(size) => size,
        None => {
            let reason = format!("{size} is not from 1 to {MAX_DATAGRAM_SIZE}");
            report.field(field, |report| report.error_at("max_rx_datagram_size", reason));
            DATAGRAM_SIZE
        }
    }
}

fn tunneling(report: &mut Report, message: &api::udp_proxy_config::UdpTunnelingConfig) -> Option<UdpTunneling> {
    let proxy = host(report, "proxy_host", &message.proxy_host);
    let proxy_port = match message.proxy_port {
        Some(port) => Some(scalar::port(report, "proxy_port", port)?),
        None => None,
    };
    let target = host(report, "target_host", &message.target_host);
    let port = scalar::port(report, "default_target_port", message.default_target_port);
    let retry = message.retry_options.as_ref();
    let max_connect_attempts = report.field("retry_options", |report| {
        let attempts = retry.and_then(|retry| retry.max_connect_attempts);
        scalar::within(report, "max_connect_attempts", attempts, 1, MAX_CONNECT_ATTEMPTS, 1)
    });
    let buffer =
        message.buffer_options.as_ref().map(|options| report.field("buffer_options", |report| buffer(report, options)));
    let request_add = route::added_headers(report, "headers_to_add", &message.headers_to_add);
    let (proxy, target, port) = (proxy?, target?, port?);
    let proxy = if proxy.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{proxy}]") } else { proxy.to_owned() };
    Some(UdpTunneling {
        authority: proxy_port.map_or_else(|| proxy.clone(), |port| format!("{proxy}:{port}")).into(),
        // RFC 9298, 3: the colons of an IPv6 address are percent-encoded.
        path: format!("/.well-known/masque/udp/{}/{port}/", target.replace(':', "%3A")).into(),
        headers: Arc::new(HeaderMutations { request_add, ..HeaderMutations::default() }),
        max_connect_attempts,
        buffer,
    })
}

/// A host that stands there as it is.
fn host<'m>(report: &mut Report, field: &'static str, host: &'m str) -> Option<&'m str> {
    if host.contains('%') {
        let reason = format!("{:?}: command operators are not evaluated here; write the host itself", clip(host));
        report.error_at(field, reason);
        return None;
    }
    let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let valid = !host.is_empty() && host.len() <= 253 && host.bytes().all(named) || host.parse::<IpAddr>().is_ok();
    if !valid {
        report.error_at(field, format!("{:?} is neither an IP address nor a host name", clip(host)));
    }
    valid.then_some(host)
}

fn buffer(report: &mut Report, message: &api::udp_proxy_config::udp_tunneling_config::BufferOptions) -> DatagramBuffer {
    let datagrams = scalar::within(
        report,
        "max_buffered_datagrams",
        message.max_buffered_datagrams,
        1,
        MAX_BUFFERED_DATAGRAMS,
        BUFFERED_DATAGRAMS,
    );
    let bytes = message.max_buffered_bytes.unwrap_or(BUFFERED_BYTES);
    if !(1..=MAX_BUFFERED_BYTES).contains(&bytes) {
        report.error_at("max_buffered_bytes", format!("{bytes} is not from 1 to {MAX_BUFFERED_BYTES}"));
    }
    DatagramBuffer { datagrams: datagrams as usize, bytes: usize::try_from(bytes).unwrap_or(usize::MAX) }
}

const UDP_PROXY: &str =
    "envoy.filters.udp_listener.udp_proxy (envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig)";
/// A message without fields.
const HTTP_CAPSULE: &str = "envoy.extensions.filters.udp.udp_proxy.session.http_capsule.v3.FilterConfig";
/// Envoy's defaults.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const DATAGRAM_SIZE: usize = 1500;
const BUFFERED_DATAGRAMS: u32 = 1024;
const BUFFERED_BYTES: u64 = 16_384;
/// What RFC 9298, 5 lets a datagram have.
const MAX_DATAGRAM_SIZE: usize = 65_527;
/// Bounds of ours: each session may hold as much, and ask as often.
const MAX_BUFFERED_DATAGRAMS: u32 = 65_536;
const MAX_BUFFERED_BYTES: u64 = 1 << 20;
const MAX_CONNECT_ATTEMPTS: u32 = 64;

#[cfg(test)]
mod tests;
