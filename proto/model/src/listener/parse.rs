//! Listeners out of their messages.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use culvert_api::Any;
use culvert_api::culvert::tunnel::v1::TunnelServer;
use culvert_api::envoy::config::core::v3 as core;
use culvert_api::envoy::config::listener::v3 as api;
use culvert_api::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use culvert_api::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use culvert_api::envoy::extensions::filters::network::reverse_tunnel::v3::{
    DrainAwareHttpConnectionManager, ReverseTunnel,
};
use culvert_api::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use culvert_api::envoy::extensions::filters::udp::udp_proxy::v3::UdpProxyConfig;
use prost::Name as _;

use super::{
    Cidr, FilterChain, FilterChainMatch, Listener, NetworkFilter, SourceType, TransportProtocol, reverse, tcp_proxy,
    udp_proxy,
};
use crate::access_log;
use crate::bystander;
use crate::endpoint::{self, Address, Names};
use crate::extension;
use crate::http;
use crate::report::{Report, clip};
use crate::scalar;
use crate::tls;
use crate::tunnel;

/// Parses the `Listener` at hand.
#[expect(deprecated, reason = "deprecated_v1.bind_to_port still means what it says")]
pub(crate) fn listener(report: &mut Report, message: &api::Listener) -> Option<Listener> {
    let name = scalar::name(report, "name", &message.name);
    let bind = message.bind_to_port.or(message.deprecated_v1.as_ref().and_then(|old| old.bind_to_port));
    let reverse = reverse::addresses(report, message);
    if reverse.is_none() && !message.additional_addresses.is_empty() {
        let reason = "decides where clients may connect and is not honoured; give each address a listener of its own";
        report.error_at("additional_addresses", reason);
    }
    if let Some(address) = datagram_address(message) {
        return datagrams(report, message, &address);
    }
    if message.udp_listener_config.is_some() {
        report.error_at(
            "udp_listener_config",
            "is for listeners of datagrams; set address.socket_address.protocol to UDP",
        );
    }
    let address = match &message.address {
        _ if reverse.is_some() => None,
        Some(address) => report.field("address", |report| socket(report, address)),
        None if bind == Some(false) => None,
        None => {
            report.error_at("address", "is missing; set socket_address");
            None
        }
    };
    if message.enable_reuse_port == Some(false) {
        report.warn_at("enable_reuse_port", "is false, and every worker has a socket of its own all the same");
    }
    let inspector = listener_filters(report, &message.listener_filters);
    let filter_chains = report.items("filter_chains", &message.filter_chains, chain);
    let default = message.default_filter_chain.as_ref();
    let default = default.and_then(|message| report.field("default_filter_chain", |report| chain(report, message)));
    if message.filter_chains.is_empty() && message.default_filter_chain.is_none() {
        report.error_at("filter_chains", "is empty; a listener needs something that serves its connections");
    }
    distinct(report, &filter_chains);
    let open = address.is_some_and(|address: SocketAddr| !address.ip().is_loopback()) && bind != Some(false);
    if open && filter_chains.iter().chain(&default).any(|chain| lets_in_anybody(chain)) {
        report.warn_at("filter_chains", LETS_IN_ANYBODY);
    }
    let timeout = scalar::duration(report, "listener_filters_timeout", message.listener_filters_timeout.as_ref());
    let access_log = access_log::list(report, "access_log", &message.access_log);
    let drain = scalar::enumeration::<api::listener::DrainType>(report, "drain_type", message.drain_type)?;
    Some(Listener {
        name: name?,
        address: address.filter(|_| bind != Some(false)),
        reverse: reverse.unwrap_or_default(),
        // Envoy inspects where a chain needs it, whether or not the filter is listed.
        inspect_tls: inspector || filter_chains.iter().any(|chain| needs_inspection(&chain.matches)),
        filter_chains,
        default_filter_chain: default,
        listener_filters_timeout: timeout.unwrap_or(LISTENER_FILTERS_TIMEOUT),
        buffer_limit: message.per_connection_buffer_limit_bytes.unwrap_or(BUFFER_LIMIT),
        access_log,
        tcp_backlog: scalar::within(report, "tcp_backlog_size", message.tcp_backlog_size, 1, 1 << 16, TCP_BACKLOG),
        accepts_per_event: accepts_per_event(report, message),
        max_connections: None,
        drain_modify_only: drain == api::listener::DrainType::ModifyOnly,
        udp: None,
        ipv4_compat: ipv4_compat(message),
    })
}

fn accepts_per_event(report: &mut Report, message: &api::Listener) -> u32 {
    let (field, given) =
        ("max_connections_to_accept_per_socket_event", message.max_connections_to_accept_per_socket_event);
    scalar::within(report, field, given, 1, u32::MAX, ACCEPTS_PER_EVENT)
}

/// Envoy: it has a meaning for `::` alone.
fn ipv4_compat(message: &api::Listener) -> bool {
    use core::address::Address;
    let address = message.address.as_ref().and_then(|address| address.address.as_ref());
    matches!(address, Some(Address::SocketAddress(socket)) if socket.ipv4_compat)
}

/// The address of a listener of datagrams, as one of TCP.
fn datagram_address(message: &api::Listener) -> Option<core::Address> {
    use core::address::Address;
    match message.address.as_ref()?.address.as_ref()? {
        Address::SocketAddress(socket) if socket.protocol == core::socket_address::Protocol::Udp as i32 => {
            let socket = core::SocketAddress { protocol: 0, ..socket.clone() };
            Some(core::Address { address: Some(Address::SocketAddress(socket)) })
        }
        _ => None,
    }
}

fn datagrams(report: &mut Report, message: &api::Listener, address: &core::Address) -> Option<Listener> {
    let name = scalar::name(report, "name", &message.name);
    let address = report.field("address", |report| socket(report, address));
    if ipv4_compat(message) {
        report.field("address", |report| {
            report.field("socket_address", |report| {
                report.error_at("ipv4_compat", "is for connections; give IPv4 a listener of datagrams of its own");
            });
        });
    }
    let udp = udp_proxy::listener_filter(report, message);
    let drain = scalar::enumeration::<api::listener::DrainType>(report, "drain_type", message.drain_type)?;
    Some(Listener {
        name: name?,
        address: Some(address?),
        reverse: Vec::new(),
        filter_chains: Vec::new(),
        default_filter_chain: None,
        inspect_tls: false,
        listener_filters_timeout: LISTENER_FILTERS_TIMEOUT,
        buffer_limit: BUFFER_LIMIT,
        access_log: Vec::new(),
        tcp_backlog: TCP_BACKLOG,
        accepts_per_event: ACCEPTS_PER_EVENT,
        max_connections: None,
        drain_modify_only: drain == api::listener::DrainType::ModifyOnly,
        udp: Some(Arc::new(udp?)),
        ipv4_compat: false,
    })
}

/// Parses the `Address` at hand, which must be one that a socket can be bound to.
pub(crate) fn socket(report: &mut Report, message: &core::Address) -> Option<SocketAddr> {
    match endpoint::address_of(report, message, Names::Refused)? {
        Address::Ip(address) => Some(address),
        Address::Name { .. } | Address::Path(_) => None,
    }
}

fn needs_inspection(matches: &FilterChainMatch) -> bool {
    !matches.server_names.is_empty()
        || !matches.application_protocols.is_empty()
        || matches.transport_protocol.is_some()
}

/// Whether TLS is inspected.
fn listener_filters(report: &mut Report, filters: &[api::ListenerFilter]) -> bool {
    let mut inspect = false;
    report.items("listener_filters", filters, |report, filter| -> Option<()> {
        let Some(api::listener_filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
            if filter.config_type.is_none() {
                report.error_at("typed_config", format!("is missing for {:?}", clip(&filter.name)));
            }
            return None;
        };
        report.field("typed_config", |report| {
            let name = config.type_name();
            if name == TlsInspector::full_name() {
                inspect |= report.unpack::<TlsInspector>(config).is_some();
            } else if name == HTTP_INSPECTOR {
                report.warn(format!("{name} is not there; plaintext HTTP is told apart where it is served"));
            } else if name == UdpProxyConfig::full_name() {
                report.error(format!("{name} is for datagrams; set address.socket_address.protocol to UDP"));
            } else if name == PROXY_PROTOCOL {
                report.error(format!(
                    "{name} is not there; take the client's address from x-forwarded-for (xff_num_trusted_hops)"
                ));
            } else {
                report.error(format!("{name} is not there: it may decide which source or destination is believed"));
            }
        });
        None
    });
    inspect
}

fn chain(report: &mut Report, message: &api::FilterChain) -> Option<Arc<FilterChain>> {
    let matches = message.filter_chain_match.as_ref().map_or_else(
        || Some(FilterChainMatch::default()),
        |matches| report.field("filter_chain_match", |report| chain_match(report, matches)),
    );
    let tls = message.transport_socket.as_ref().and_then(|socket| tls::downstream_socket(report, socket));
    let field = "transport_socket_connect_timeout";
    let timeout = message.transport_socket_connect_timeout.as_ref();
    let transport_timeout = scalar::positive(report, field, timeout, TRANSPORT_TIMEOUT);
    let filter = network_filter(report, &message.filters);
    if message.transport_socket.is_some()
        && matches!(&filter, Some(NetworkFilter::Tunnel(server)) if server.reverse.leaves_tls)
    {
        report.warn_at("transport_socket", LEAVES_TLS);
    }
    let name = message.name.as_str().into();
    Some(Arc::new(FilterChain { name, matches: matches?, tls, transport_timeout, filter: filter?, asked: None }))
}

/// Whether agents need nothing but to reach it.
fn lets_in_anybody(chain: &FilterChain) -> bool {
    let certified = chain.tls.as_ref().is_some_and(|tls| tls.require_client_certificate);
    !certified && matches!(&chain.filter, NetworkFilter::Tunnel(server) if server.believes_everybody())
}

/// The terminal filter, before which none may stand: each decides who may connect, or where traffic goes.
fn network_filter(report: &mut Report, filters: &[api::Filter]) -> Option<NetworkFilter> {
    let mut terminal = None;
    let mut index = 0;
    report.items("filters", filters, |report, filter| -> Option<()> {
        index += 1;
        if let Some(api::filter::ConfigType::TypedConfig(config)) = &filter.config_type
            && bystander::is(config)
        {
            report.field("typed_config", |report| bystander::warn(report, config));
            return None;
        }
        let parsed = one_filter(report, filter);
        if index < filters.len() && parsed.is_some() {
            report.error("is a terminal filter, but others stand behind it; let it be the last");
        }
        terminal = parsed;
        None
    });
    if filters.is_empty() {
        report.error_at("filters", "is empty; end it with an HttpConnectionManager, a TcpProxy or a TunnelServer");
    }
    terminal
}

fn one_filter(report: &mut Report, filter: &api::Filter) -> Option<NetworkFilter> {
    match &filter.config_type {
        Some(api::filter::ConfigType::TypedConfig(config)) => {
            report.field("typed_config", |report| typed_filter(report, config))
        }
        Some(api::filter::ConfigType::ConfigDiscovery(source)) => report.field("config_discovery", |report| {
            let discovery = extension::discovery(report, &filter.name, source, &known(), typed_filter)?;
            Some(NetworkFilter::Discovered(Arc::new(discovery)))
        }),
        None => {
            report.error_at("typed_config", format!("is missing for {:?}", clip(&filter.name)));
            None
        }
    }
}

/// The filters that are there.
fn known() -> [String; 5] {
    [
        HttpConnectionManager::full_name(),
        DrainAwareHttpConnectionManager::full_name(),
        TcpProxy::full_name(),
        TunnelServer::full_name(),
        ReverseTunnel::full_name(),
    ]
}

/// Parses the network filter at hand, which must be one that is there.
pub(crate) fn typed_filter(report: &mut Report, config: &Any) -> Option<NetworkFilter> {
    let name = config.type_name();
    if name == HttpConnectionManager::full_name() {
        let message: HttpConnectionManager = report.unpack(config)?;
        http::connection_manager(report, &message).map(|manager| NetworkFilter::Http(Arc::new(manager)))
    } else if name == DrainAwareHttpConnectionManager::full_name() {
        let message: DrainAwareHttpConnectionManager = report.unpack(config)?;
        // GOAWAY is what every connection manager sends when it drains.
        let Some(manager) = &message.hcm_config else {
            report.error_at("hcm_config", "is missing");
            return None;
        };
        let manager = report.field("hcm_config", |report| http::connection_manager(report, manager));
        manager.map(|manager| NetworkFilter::Http(Arc::new(manager)))
    } else if name == TcpProxy::full_name() {
        let message: TcpProxy = report.unpack(config)?;
        tcp_proxy::parse(report, &message).map(|proxy| NetworkFilter::Tcp(Arc::new(proxy)))
    } else if name == TunnelServer::full_name() {
        let message: TunnelServer = report.unpack(config)?;
        tunnel::server(report, &message).map(|server| NetworkFilter::Tunnel(Arc::new(server)))
    } else if name == ReverseTunnel::full_name() {
        let message: ReverseTunnel = report.unpack(config)?;
        tunnel::reverse::filter(report, &message).map(|server| NetworkFilter::Tunnel(Arc::new(server)))
    } else {
        report.error(format!("{name} is not there: it may decide who may connect or where traffic goes; remove it"));
        None
    }
}

fn chain_match(report: &mut Report, message: &api::FilterChainMatch) -> Option<FilterChainMatch> {
    use api::filter_chain_match::ConnectionSourceType;
    let destination_port = match message.destination_port {
        Some(port) => Some(scalar::port(report, "destination_port", port)?),
        None => None,
    };
    let source_type = match scalar::enumeration(report, "source_type", message.source_type)? {
        ConnectionSourceType::Any => SourceType::Any,
        ConnectionSourceType::SameIpOrLoopback => SourceType::SameIpOrLoopback,
        ConnectionSourceType::External => SourceType::External,
    };
    let transport_protocol = match message.transport_protocol.as_str() {
        "" => None,
        "raw_buffer" => Some(TransportProtocol::RawBuffer),
        "tls" => Some(TransportProtocol::Tls),
        other => {
            report
                .error_at("transport_protocol", format!("{:?} is never detected; use tls or raw_buffer", clip(other)));
            return None;
        }
    };
    let mut source_ports = Vec::with_capacity(message.source_ports.len());
    for port in &message.source_ports {
        source_ports.push(scalar::port(report, "source_ports", *port)?);
    }
    Some(FilterChainMatch {
        destination_port,
        prefix_ranges: report.items("prefix_ranges", &message.prefix_ranges, cidr),
        server_names: report.items("server_names", &message.server_names, |report, name| server_name(report, name)),
        transport_protocol,
        application_protocols: message.application_protocols.iter().map(|name| name.as_bytes().into()).collect(),
        source_type,
        direct_source_prefix_ranges: report.items(
            "direct_source_prefix_ranges",
            &message.direct_source_prefix_ranges,
            cidr,
        ),
        source_prefix_ranges: report.items("source_prefix_ranges", &message.source_prefix_ranges, cidr),
        source_ports,
    })
}

/// Envoy: whole labels only; `*` alone is to be left out.
fn server_name(report: &mut Report, name: &str) -> Option<Arc<str>> {
    let plain = name.strip_prefix("*.").unwrap_or(name);
    if plain.is_empty() || plain.contains('*') {
        report.error(format!("{:?} is neither a name nor `*.` and a name; leave it out to match any", clip(name)));
        return None;
    }
    Some(name.to_ascii_lowercase().into())
}

pub(crate) fn cidr(report: &mut Report, message: &core::CidrRange) -> Option<Cidr> {
    let Ok(address) = message.address_prefix.parse::<IpAddr>() else {
        report.error_at("address_prefix", format!("{:?} is not an IP address", clip(&message.address_prefix)));
        return None;
    };
    let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
    let length = u8::try_from(message.prefix_len.unwrap_or(0)).ok().filter(|length| *length <= bits);
    let Some(length) = length else {
        report.error_at("prefix_len", format!("is more than {bits}"));
        return None;
    };
    Some(Cidr { address: masked(address, length), length })
}

/// The address with the bits behind the prefix cleared, so that equal ranges compare equal.
pub(super) fn masked(address: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(length)).unwrap_or(0);
            IpAddr::from((v4.to_bits() & mask).to_be_bytes())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length)).unwrap_or(0);
            IpAddr::from((v6.to_bits() & mask).to_be_bytes())
        }
    }
}

/// Envoy: two chains with the same match would leave the choice to chance.
fn distinct(report: &mut Report, chains: &[Arc<FilterChain>]) {
    let mut names = HashSet::new();
    let mut seen = HashMap::new();
    for (index, chain) in chains.iter().enumerate() {
        let same = *seen.entry(&chain.matches).or_insert(index);
        if same != index {
            report.item("filter_chains", index, |report| {
                report.error_at("filter_chain_match", format!("is the same as that of filter_chains[{same}]"));
            });
        }
        if !chain.name.is_empty() && !names.insert(&chain.name) {
            report.item("filter_chains", index, |report| {
                report.warn_at("name", format!("{:?} names another chain as well", clip(&chain.name)));
            });
        }
    }
}

const LEAVES_TLS: &str = "covers no more than the handshake of Envoy's tunnels, for an Envoy leaves TLS behind it; \
    requests to it pass in plaintext (to agents of Culvert they do not)";
const LETS_IN_ANYBODY: &str = "let in whoever reaches the listener, as any agent that they say they are: give the TunnelServer a policy or \
    credential_policies, or demand a certificate (require_client_certificate)";
const PROXY_PROTOCOL: &str = "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol";
const HTTP_INSPECTOR: &str = "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector";
/// Envoy's defaults.
const LISTENER_FILTERS_TIMEOUT: Duration = Duration::from_secs(15);
const BUFFER_LIMIT: u32 = 1024 * 1024;
/// Few, so that a storm of new connections delays nobody who is served; and not one, so that a worker with thousands of busy
/// connections goes on taking new ones. (Envoy's is all that wait, and its documentation recommends fewer.)
const ACCEPTS_PER_EVENT: u32 = 4;
/// Linux's net.core.somaxconn.
const TCP_BACKLOG: u32 = 4096;
/// Envoy has none; a handshake that takes longer is not going to end.
const TRANSPORT_TIMEOUT: Duration = Duration::from_secs(10);
