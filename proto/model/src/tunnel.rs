//! `culvert.tunnel.v1.TunnelServer`: what a tunnel listener demands of agents.

pub mod destinations;
pub mod id_format;
pub mod jwks;
pub mod policy;
pub mod reverse;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use culvert_api::culvert::tunnel::v1 as api;
use culvert_api::envoy::extensions::filters::network::reverse_tunnel::v3 as envoy;

use self::reverse::ReverseTunnel;
use crate::Name;
use crate::report::{Report, clip};
use crate::scalar;
use crate::source::{self, DataSource};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelServer {
    pub stat_prefix: Name,
    /// Not empty: default deny.
    pub policies: Vec<CredentialPolicy>,
    /// Empty: any cluster.
    pub allowed_clusters: Arc<[NamePattern]>,
    pub handshake_timeout: Duration,
    pub max_handshake_bytes: usize,
    pub max_pending_handshakes: usize,
    pub max_connections_per_agent: usize,
    pub protocol: ProtocolChoice,
    pub queue_timeout: Duration,
    pub max_queued_requests: usize,
    /// Whether MOSN's frames are taken.
    pub mosn: bool,
    /// How Envoy's handshake is taken.
    pub reverse: Box<ReverseTunnel>,
    /// Zero: requests do not wait for an agent that is gone.
    pub reconnect_window: Duration,
    pub max_pending_handshakes_per_source: usize,
    /// `None`: any number.
    pub max_handshakes_per_second_per_source: Option<NonZeroU32>,
    /// At least a second.
    pub ping_interval: Duration,
    /// Says who agents are, in the place of `policies`.
    pub policy: Option<Name>,
}

impl TunnelServer {
    /// Whether whoever reaches the listener may be any agent, unless TLS demands a certificate.
    pub(crate) fn believes_everybody(&self) -> bool {
        self.policy.is_none() && self.policies.is_empty() && self.reverse.jwt.is_none()
    }
}

/// How often a tunnel's other end is asked whether it is there.
pub(crate) fn ping_interval(report: &mut Report, value: Option<&prost_types::Duration>) -> Duration {
    let interval = scalar::positive(report, "ping_interval", value, PING_INTERVAL);
    if interval < Duration::from_secs(1) {
        report.error_at("ping_interval", "is less than 1 s, which is as often as the kernel probes");
    }
    interval
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialPolicy {
    pub name: Name,
    pub tokens: Vec<DataSource>,
    /// Empty: those of the filter.
    pub clusters: Arc<[NamePattern]>,
    /// Who sends the credential itself is refused.
    pub bound: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamePattern {
    Exact(Arc<str>),
    /// `edge-*`.
    Prefix(Arc<str>),
    /// `*.example`; in policies only.
    Suffix(Arc<str>),
}

impl NamePattern {
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => &**exact == name,
            Self::Prefix(prefix) => name.starts_with(&**prefix),
            Self::Suffix(suffix) => name.ends_with(&**suffix),
        }
    }
}

/// What a connection carries towards its agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelProtocol {
    Http1,
    Http2,
}

impl TunnelProtocol {
    /// As it is shown.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
        }
    }
}

/// Who says what connections carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolChoice {
    /// The two ends agree; with a stranger it is HTTP/1.
    Negotiated,
    /// The operator.
    Fixed(TunnelProtocol),
}

/// Parses the `TunnelServer` at hand.
pub(crate) fn server(report: &mut Report, message: &api::TunnelServer) -> Option<TunnelServer> {
    let policies = report.items("credential_policies", &message.credential_policies, policy);
    let mut names: Vec<_> = policies.iter().map(|policy| &policy.name).collect();
    names.sort();
    if let Some(twice) =
        names.windows(2).find_map(|pair| pair.first().filter(|first| Some(first) == pair.last().as_ref()))
    {
        report
            .error_at("credential_policies", format!("{:?} stands there twice; put its tokens into one", clip(twice)));
    }
    let allowed_clusters =
        report.items("allowed_clusters", &message.allowed_clusters, |report, text| pattern(report, text));
    let handshake_timeout =
        scalar::positive(report, "handshake_timeout", message.handshake_timeout.as_ref(), Duration::from_secs(5));
    let queue_timeout =
        scalar::positive(report, "queue_timeout", message.queue_timeout.as_ref(), Duration::from_secs(5));
    let max_handshake_bytes =
        scalar::within(report, "max_handshake_bytes", message.max_handshake_bytes, 64, 65535, 16 * 1024);
    let max_pending_handshakes =
        scalar::at_least(report, "max_pending_handshakes", message.max_pending_handshakes, 1, 1024);
    let max_connections_per_agent =
        scalar::at_least(report, "max_connections_per_agent", message.max_connections_per_agent, 1, 1024);
    let per_source = message.max_pending_handshakes_per_source;
    let max_pending_per_source =
        scalar::at_least(report, "max_pending_handshakes_per_source", per_source, 1, PENDING_PER_SOURCE);
    let reconnect_window = scalar::duration(report, "reconnect_window", message.reconnect_window.as_ref());
    let policy = Some(message.policy.as_str()).filter(|name| !name.is_empty()).map(Name::from);
    if policy.is_some() {
        one_policy(report, message);
    }
    let protocol = protocol(report, message.protocol)?;
    let reverse = match &message.reverse_tunnel {
        Some(message) => report.field("reverse_tunnel", |report| own_reverse(report, message))?,
        None => ReverseTunnel::default(),
    };
    Some(TunnelServer {
        stat_prefix: message.stat_prefix.as_str().into(),
        policies,
        allowed_clusters: allowed_clusters.into(),
        handshake_timeout,
        max_handshake_bytes: size(max_handshake_bytes),
        max_pending_handshakes: size(max_pending_handshakes),
        max_connections_per_agent: size(max_connections_per_agent),
        protocol,
        queue_timeout,
        max_queued_requests: size(message.max_queued_requests.unwrap_or(1024)),
        mosn: true,
        reverse: Box::new(ReverseTunnel { leaves_tls: message.allow_envoy_to_leave_tls, ..reverse }),
        reconnect_window: reconnect_window.unwrap_or(RECONNECT_WINDOW),
        max_pending_handshakes_per_source: size(max_pending_per_source),
        max_handshakes_per_second_per_source: NonZeroU32::new(
            message.max_handshakes_per_second_per_source.unwrap_or(HANDSHAKES_PER_SECOND),
        ),
        ping_interval: ping_interval(report, message.ping_interval.as_ref()),
        policy,
    })
}

/// Two answers to the question who may join would have to be read together.
fn one_policy(report: &mut Report, message: &api::TunnelServer) {
    if !message.credential_policies.is_empty() {
        report.error_at("credential_policies", "stands beside policy; make them rules of that policy");
    }
    if !message.allowed_clusters.is_empty() {
        report.error_at("allowed_clusters", "stands beside policy, whose rules say it");
    }
    if message.reverse_tunnel.as_ref().is_some_and(|reverse| reverse.jwt_validator.is_some()) {
        report.error_at("reverse_tunnel", "has a jwt_validator beside policy; make it a jwt_provider of that policy");
    }
}

/// The field `protocol`.
pub(crate) fn protocol(report: &mut Report, value: i32) -> Option<ProtocolChoice> {
    Some(match scalar::enumeration(report, "protocol", value)? {
        api::TunnelProtocol::Negotiated => ProtocolChoice::Negotiated,
        api::TunnelProtocol::Http1 => ProtocolChoice::Fixed(TunnelProtocol::Http1),
        api::TunnelProtocol::Http2 => ProtocolChoice::Fixed(TunnelProtocol::Http2),
    })
}

/// What the filter says itself is not said a second time.
fn own_reverse(report: &mut Report, message: &envoy::ReverseTunnel) -> Option<ReverseTunnel> {
    if message.handshake_timeout.is_some() {
        report.error_at("handshake_timeout", "stands in the filter itself");
    }
    if message.enable_connection_limit {
        report.error_at("enable_connection_limit", "use max_connections_per_agent of the filter itself");
    }
    reverse::reverse(report, message)
}

fn policy(report: &mut Report, message: &api::CredentialPolicy) -> Option<CredentialPolicy> {
    let name = scalar::name(report, "name", &message.name);
    let tokens = report.items("tokens", &message.tokens, |report, token| source::data_source(report, token, None));
    if message.tokens.is_empty() {
        report.error_at("tokens", "is empty; a policy that nobody can meet would refuse every agent");
    }
    for (index, token) in tokens.iter().enumerate() {
        if matches!(token, DataSource::Inline(bytes) if bytes.is_empty()) {
            report.item("tokens", index, |report| report.error("is empty; anybody could present it"));
        }
    }
    let clusters = report.items("clusters", &message.clusters, |report, text| pattern(report, text));
    Some(CredentialPolicy { name: name?, tokens, clusters: clusters.into(), bound: message.require_tls_binding })
}

pub(crate) fn pattern(report: &mut Report, text: &str) -> Option<NamePattern> {
    match text.split_once('*') {
        None if text.is_empty() => {
            report.error("is empty; give a name or a pattern such as `edge-*`");
            None
        }
        None => Some(NamePattern::Exact(text.into())),
        Some((prefix, "")) => Some(NamePattern::Prefix(prefix.into())),
        Some(_) => {
            report.error(format!("{:?}: a `*` stands at the end only", clip(text)));
            None
        }
    }
}

fn size(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// How often a tunnel's other end is asked where nothing is said.
pub const PING_INTERVAL: Duration = Duration::from_secs(2);
const RECONNECT_WINDOW: Duration = Duration::from_secs(5);
const PENDING_PER_SOURCE: u32 = 64;
const HANDSHAKES_PER_SECOND: u32 = 500;
