//! `HttpConnectionManager` and the protocol options of both sides.

pub(crate) mod options;
mod parse;

use std::sync::Arc;
use std::time::Duration;

use crate::Name;
use crate::access_log::AccessLog;
use crate::extension::Discovery;
use crate::listener::Cidr;
use crate::on_demand::OnDemand;
use crate::route::RouteConfiguration;
use crate::scope::ScopedRoutes;
use crate::source::ConfigSource;

pub(crate) use options::CommonOptions;
pub(crate) use parse::{check_upstream_filters, connection_manager, per_filter_config, router_options};

/// `envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager`. Of limits in time, `None` is none.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpConnectionManager {
    pub stat_prefix: Name,
    pub codec: Codec,
    pub routes: RouteSource,
    pub http1: Http1Options,
    pub http2: Http2Options,
    /// `server` header of responses. Default [`DEFAULT_SERVER_NAME`].
    pub server_name: Arc<str>,
    pub server_header: ServerHeader,
    /// `via`: appended to requests and responses when not empty.
    pub via: Arc<str>,
    pub generate_request_id: bool,
    pub preserve_external_request_id: bool,
    pub always_set_request_id_in_response: bool,
    pub use_remote_address: bool,
    pub xff_num_trusted_hops: u32,
    pub skip_xff_append: bool,
    /// `internal_address_config`: whose requests count as internal, and may carry Envoy's own fields. Default: nobody's.
    pub internal_addresses: Vec<Cidr>,
    pub forward_client_cert: ForwardClientCert,
    /// What `x-forwarded-client-cert` says about the client, besides the certificate's hash.
    pub client_cert_details: ClientCertDetails,
    pub normalize_path: bool,
    pub merge_slashes: bool,
    pub escaped_slashes: EscapedSlashes,
    /// Default 60 KiB.
    pub max_request_headers_bytes: u32,
    /// Default 100.
    pub max_headers_count: u32,
    pub headers_with_underscores: UnderscoreAction,
    /// Connection without streams. Default 1 h.
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    pub max_requests_per_connection: Option<u32>,
    /// Stream without activity. Default 5 min.
    pub stream_idle_timeout: Option<Duration>,
    /// The whole request received. Default: none.
    pub request_timeout: Option<Duration>,
    /// Request headers received. Default 10 s (safer than Envoy's none).
    pub request_headers_timeout: Option<Duration>,
    pub drain_timeout: Duration,
    pub delayed_close_timeout: Duration,
    /// Upgrade types allowed by default, lower-case (`websocket`, `connect`).
    pub upgrades: Vec<UpgradeConfig>,
    pub access_log: Vec<Arc<AccessLog>>,
    pub strip_port: StripPort,
    pub strip_trailing_host_dot: bool,
    /// `stream_error_on_invalid_http_message`.
    pub stream_error_on_invalid: bool,
    pub scheme_override: Option<Arc<str>>,
    /// Options of the router filter, which must be the last HTTP filter.
    pub router: RouterOptions,
    /// They come by name; until [`crate::listener::Listener::resolve`] has put them into `router`, defaults stand there.
    pub router_discovery: Option<Arc<Discovery<RouterOptions>>>,
    /// The filter that asks for what only a request needs, if it stands before the router.
    pub on_demand: Option<OnDemand>,
}

/// Envoy's default, kept so that dashboards and tests that look for it need no change.
pub const DEFAULT_SERVER_NAME: &str = "envoy";

/// `SetCurrentClientCertDetails`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientCertDetails {
    pub subject: bool,
    pub cert: bool,
    pub chain: bool,
    pub dns: bool,
    pub uri: bool,
}

/// `envoy.extensions.filters.http.router.v3.Router`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouterOptions {
    pub suppress_envoy_headers: bool,
    pub respect_expected_rq_timeout: bool,
}

/// Which HTTP a connection speaks (`codec_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// HTTP/2 by ALPN or by its preface, else HTTP/1.
    Auto,
    Http1,
    Http2,
}

/// Where the routes stand.
#[derive(Debug, Clone, PartialEq)]
pub enum RouteSource {
    Inline(Arc<RouteConfiguration>),
    Rds { name: Name, config: ConfigSource },
    Scoped(Arc<ScopedRoutes>),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Http1Options {
    pub allow_absolute_url: Option<bool>,
    /// HTTP/1.0 is answered 426 unless this is set.
    pub accept_http_10: bool,
    pub default_host_for_http_10: Arc<str>,
    pub allow_chunked_length: bool,
    pub allow_custom_methods: bool,
}

/// `Http2ProtocolOptions`; defaults are those of Envoy's edge guide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http2Options {
    pub max_concurrent_streams: u32,
    pub initial_stream_window: u32,
    pub initial_connection_window: u32,
    pub keepalive_interval: Option<Duration>,
    pub keepalive_timeout: Duration,
    pub allow_connect: bool,
    pub flood_limits: FloodLimits,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 100,
            initial_stream_window: 64 * 1024,
            initial_connection_window: 1024 * 1024,
            keepalive_interval: None,
            keepalive_timeout: Duration::from_secs(10),
            allow_connect: false,
            flood_limits: FloodLimits::default(),
        }
    }
}

/// From how many frames on that are of no use a client's HTTP/2 connection is closed. Defaults are Envoy's, but for
/// [`Self::empty_frames`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloodLimits {
    /// `max_outbound_control_frames`: PING, SETTINGS and the like in 10 s, with ten more for each stream and frame of data.
    pub control_frames: u32,
    /// `max_consecutive_inbound_frames_with_empty_payload`. Envoy allows one; two streams that begin at the same time
    /// may have one each.
    pub empty_frames: u32,
    /// `max_inbound_priority_frames_per_stream`
    pub priority_frames: u32,
    /// `max_inbound_window_update_frames_per_data_frame_sent`
    pub window_updates: u32,
}

impl Default for FloodLimits {
    fn default() -> Self {
        Self { control_frames: 1000, empty_frames: 100, priority_frames: 100, window_updates: 10 }
    }
}

/// What becomes of an upstream's `server` field (`server_header_transformation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerHeader {
    Overwrite,
    AppendIfAbsent,
    PassThrough,
}

/// What becomes of `x-forwarded-client-cert` (`forward_client_cert_details`): named as in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardClientCert {
    Sanitize,
    ForwardOnly,
    AppendForward,
    SanitizeSet,
    AlwaysForwardOnly,
}

/// What becomes of `%2F` and `%5C` in a path (`path_with_escaped_slashes_action`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscapedSlashes {
    Keep,
    Reject,
    UnescapeAndRedirect,
    UnescapeAndForward,
}

/// What becomes of fields with an underscore in their names (`headers_with_underscores_action`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnderscoreAction {
    Allow,
    Reject,
    Drop,
}

/// Which port is taken off a request's authority: none, the listener's own, or any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StripPort {
    Keep,
    Matching,
    Any,
}

/// One type of upgrade (`upgrade_configs`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpgradeConfig {
    /// Lower-case.
    pub kind: Arc<str>,
    pub enabled: bool,
    /// `connect_config` is set: a CONNECT ends here and its payload goes upstream as it is. Else it is forwarded.
    pub terminate_connect: bool,
}
