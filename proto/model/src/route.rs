//! `envoy.config.route.v3.RouteConfiguration`: virtual hosts, matches and what to do with a match. Plain values in
//! configuration order; the tables that answer in O(path) are compiled from them where requests are served.

mod action;
mod headers;
mod matches;
mod parse;
mod pieces;
mod retry;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use culvert_api::envoy::config::route::v3 as api;

use crate::Name;
use crate::access_log::Format;
use crate::http::UpgradeConfig;
use crate::matcher::{HeaderMatcher, QueryMatcher, SafeRegex};
use crate::on_demand::OnDemand;
use crate::runtime::Share;

use crate::report::{Parsed, Report};
use crate::source::ConfigSource;
use crate::tunnel::NamePattern;
pub(crate) use action::total_weight;
pub(crate) use headers::added as added_headers;
pub(crate) use parse::{configuration, discovered_host};
pub(crate) use pieces::discovered;

#[derive(Debug, Clone, PartialEq)]
pub struct RouteConfiguration {
    pub name: Name,
    pub virtual_hosts: Vec<VirtualHost>,
    pub headers: HeaderMutations,
    pub most_specific_header_mutations_wins: bool,
    pub validate_clusters: bool,
    pub ignore_port_in_host: bool,
    pub max_direct_response_body: u32,
    /// Where more virtual hosts come from (VHDS): those named `NAME/...` after this configuration.
    pub vhds: Option<ConfigSource>,
    /// In place of the filter's.
    pub on_demand: Option<OnDemand>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct VirtualHost {
    pub name: Name,
    /// Lower-case: `www.example.com`, `*.example.com`, `www.example.*`, `*`.
    pub domains: Vec<Arc<str>>,
    /// Each on its own: one that a push does not change stays the same value.
    pub routes: Vec<Arc<Route>>,
    pub require_tls: RequireTls,
    pub headers: HeaderMutations,
    pub retry: Option<Arc<RetryPolicy>>,
    pub include_attempt_count_in_request: bool,
    pub include_attempt_count_in_response: bool,
    /// In place of the route configuration's.
    pub on_demand: Option<OnDemand>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequireTls {
    None,
    ExternalOnly,
    All,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub name: Name,
    pub matches: RouteMatch,
    pub action: Action,
    pub headers: HeaderMutations,
    /// In place of the virtual host's.
    pub on_demand: Option<OnDemand>,
    /// What its regular expressions may take: it counts against the limit of a resource.
    pub regex_bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteMatch {
    pub path: PathMatch,
    pub ignore_case: bool,
    pub headers: Vec<HeaderMatcher>,
    pub query: Vec<QueryMatcher>,
    /// `grpc`: only requests whose content type is application/grpc.
    pub grpc: bool,
    /// `None`: always.
    pub runtime_fraction: Option<Share>,
    pub tls_context: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    Prefix(Arc<str>),
    Exact(Arc<str>),
    /// `/api` matches `/api` and `/api/…`, not `/apis`.
    PathSeparatedPrefix(Arc<str>),
    Regex(SafeRegex),
    /// `connect_matcher`: CONNECT requests.
    Connect,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Forward(Arc<RouteAction>),
    Redirect(Arc<Redirect>),
    Direct(Arc<DirectResponse>),
    /// `non_forwarding_action`: for gRPC servers; here it answers 404.
    NonForwarding,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteAction {
    pub clusters: ClusterChoice,
    /// Status when the cluster is unknown. Default 503.
    pub cluster_not_found: u16,
    pub path_rewrite: Option<PathRewrite>,
    pub host_rewrite: Option<HostRewrite>,
    pub append_x_forwarded_host: bool,
    /// Default 15 s; zero: none.
    pub timeout: Duration,
    /// `None`: that of the connection manager; zero: none.
    pub idle_timeout: Option<Duration>,
    /// `max_stream_duration.grpc_timeout_header_max`: the client's `grpc-timeout` counts, up to this (zero: any).
    pub grpc_timeout_max: Option<Duration>,
    pub retry: Option<Arc<RetryPolicy>>,
    pub upgrades: Vec<UpgradeConfig>,
    pub priority: Priority,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    Default,
    High,
}

/// Which cluster: one, a weighted one of several, or the one that a header names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterChoice {
    One(ClusterRef),
    Weighted { clusters: Vec<WeightedCluster>, total: u32 },
    Header(Arc<str>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterRef {
    pub cluster: Name,
    /// Picks one tunnel agent of the cluster by name: `metadata.filter_metadata["culvert.tunnel"]` of the route (its
    /// `metadata_match` where a weighted cluster or a TCP proxy chooses), see docs/xds.md.
    pub agent: Option<AgentChoice>,
}

/// The tunnel agent that a request goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentChoice {
    pub selector: AgentSelector,
    /// Agents that requests may name; empty: any.
    pub allowed: Vec<NamePattern>,
}

impl AgentChoice {
    /// Whether a request may name this agent.
    #[must_use]
    pub fn allows(&self, agent: &str) -> bool {
        self.allowed.is_empty() || self.allowed.iter().any(|pattern| pattern.matches(agent))
    }
}

/// How a request names the tunnel agent that it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentSelector {
    /// The value of this request header (lower-case name).
    Header(Arc<str>),
    /// The left-most label of the request's host; of the SNI name for a TCP proxy.
    HostLabel,
    /// This agent.
    Fixed(Arc<str>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightedCluster {
    pub target: ClusterRef,
    pub weight: u32,
    pub headers: HeaderMutations,
    pub host_rewrite: Option<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathRewrite {
    /// Replaces the matched prefix or path.
    Prefix(Arc<str>),
    Regex {
        pattern: SafeRegex,
        substitution: Arc<str>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostRewrite {
    Literal(Arc<str>),
    /// The picked host's name.
    Auto,
    Header(Arc<str>),
    PathRegex {
        pattern: SafeRegex,
        substitution: Arc<str>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    pub scheme: Option<Arc<str>>,
    pub host: Option<Arc<str>>,
    pub port: Option<u16>,
    pub path: RedirectPath,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    pub strip_query: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedirectPath {
    Keep,
    Full(Arc<str>),
    Prefix(Arc<str>),
    Regex { pattern: SafeRegex, substitution: Arc<str> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectResponse {
    pub status: u16,
    pub body: Body,
}

/// The body of a direct response; a file is read when the route table is compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Empty,
    Source(crate::source::DataSource),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderMutations {
    pub request_add: Vec<HeaderAdd>,
    pub request_remove: Vec<Arc<str>>,
    pub response_add: Vec<HeaderAdd>,
    pub response_remove: Vec<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderAdd {
    /// Lower-case, a valid field name.
    pub name: Arc<str>,
    /// May hold command operators (`%DOWNSTREAM_REMOTE_ADDRESS%`).
    pub value: Format,
    pub append: AppendAction,
    pub keep_empty: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendAction {
    AppendIfExistsOrAdd,
    AddIfAbsent,
    OverwriteIfExistsOrAdd,
    OverwriteIfExists,
}

/// `RetryPolicy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    pub on: RetryOn,
    pub statuses: Vec<u16>,
    /// Default 1.
    pub num_retries: u32,
    pub per_try_timeout: Option<Duration>,
    pub per_try_idle_timeout: Option<Duration>,
    pub base_interval: Duration,
    pub max_interval: Duration,
    pub retriable_headers: Vec<HeaderMatcher>,
    pub retriable_request_headers: Vec<HeaderMatcher>,
    /// How often another host is asked for when the balancer names one that was tried already (`previous_hosts`; the
    /// last one named is then taken). `None`: any host will do.
    pub fresh_host_picks: Option<u32>,
}

/// `retry_on`, as a set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetryOn {
    pub connect_failure: bool,
    pub reset: bool,
    pub reset_before_request: bool,
    pub refused_stream: bool,
    pub any_5xx: bool,
    pub gateway_error: bool,
    pub retriable_4xx: bool,
    pub retriable_status_codes: bool,
    pub retriable_headers: bool,
    pub grpc_cancelled: bool,
    pub grpc_deadline_exceeded: bool,
    pub grpc_internal: bool,
    pub grpc_resource_exhausted: bool,
    pub grpc_unavailable: bool,
}

/// Parses a `RouteConfiguration` as RDS delivers it.
#[must_use]
pub fn parse(message: &api::RouteConfiguration) -> Parsed<RouteConfiguration> {
    let mut report = Report::default();
    report.check(message);
    let routes = configuration(&mut report, message, Place::Rds);
    report.finish(routes)
}

/// Where a route configuration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Rds,
    Inline,
}
