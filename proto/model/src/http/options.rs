//! The protocol options that listeners and clusters share.

use std::time::Duration;

use culvert_api::envoy::config::core::v3 as api;

use super::{FloodLimits, Http1Options, Http2Options, UnderscoreAction};
use crate::report::Report;
use crate::scalar;

/// `HttpProtocolOptions`.
#[derive(Debug)]
pub(crate) struct CommonOptions {
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) max_connection_duration: Option<Duration>,
    pub(crate) max_requests_per_connection: Option<u32>,
    pub(crate) max_headers_count: u32,
    pub(crate) headers_with_underscores: UnderscoreAction,
}

/// Parses the `HttpProtocolOptions` at hand.
pub(crate) fn common(report: &mut Report, message: &api::HttpProtocolOptions) -> CommonOptions {
    use api::http_protocol_options::HeadersWithUnderscoresAction as Action;
    let field = "headers_with_underscores_action";
    let action = scalar::enumeration::<Action>(report, field, message.headers_with_underscores_action);
    CommonOptions {
        idle_timeout: scalar::limit(report, "idle_timeout", message.idle_timeout.as_ref(), Some(IDLE_TIMEOUT)),
        max_connection_duration: scalar::limit(
            report,
            "max_connection_duration",
            message.max_connection_duration.as_ref(),
            None,
        ),
        max_requests_per_connection: message.max_requests_per_connection.filter(|requests| *requests > 0),
        max_headers_count: scalar::at_least(report, "max_headers_count", message.max_headers_count, 1, 100),
        headers_with_underscores: match action {
            Some(Action::Allow) | None => UnderscoreAction::Allow,
            Some(Action::RejectRequest) => UnderscoreAction::Reject,
            Some(Action::DropHeader) => UnderscoreAction::Drop,
        },
    }
}

/// Parses the `Http1ProtocolOptions` at hand.
pub(crate) fn http1(report: &mut Report, message: &api::Http1ProtocolOptions) -> Http1Options {
    // RFC 9112 §3.2.2: a server must accept the absolute form.
    if message.allow_absolute_url == Some(false) {
        report.warn_at("allow_absolute_url", "is false, and absolute URLs are served all the same");
    }
    Http1Options {
        allow_absolute_url: message.allow_absolute_url,
        accept_http_10: message.accept_http_10,
        default_host_for_http_10: message.default_host_for_http_10.as_str().into(),
        allow_chunked_length: message.allow_chunked_length,
        allow_custom_methods: message.allow_custom_methods,
    }
}

/// Parses the `Http2ProtocolOptions` at hand.
pub(crate) fn http2(report: &mut Report, message: &api::Http2ProtocolOptions) -> Http2Options {
    let default = Http2Options::default();
    let mut number = |field, value, least, default| scalar::within(report, field, value, least, MAX_31_BITS, default);
    let max_concurrent_streams =
        number("max_concurrent_streams", message.max_concurrent_streams, 1, default.max_concurrent_streams);
    // RFC 9113 §6.9.2: the window cannot be announced as smaller than the peer may already have used.
    let initial_stream_window =
        number("initial_stream_window_size", message.initial_stream_window_size, 65535, default.initial_stream_window);
    let initial_connection_window = number(
        "initial_connection_window_size",
        message.initial_connection_window_size,
        65535,
        default.initial_connection_window,
    );
    let keepalive = message.connection_keepalive.as_ref();
    let (keepalive_interval, keepalive_timeout) = keepalive.map_or((None, default.keepalive_timeout), |keepalive| {
        report.field("connection_keepalive", |report| {
            let interval = scalar::limit(report, "interval", keepalive.interval.as_ref(), None);
            (interval, scalar::positive(report, "timeout", keepalive.timeout.as_ref(), default.keepalive_timeout))
        })
    });
    Http2Options {
        max_concurrent_streams,
        initial_stream_window,
        initial_connection_window,
        keepalive_interval,
        keepalive_timeout,
        allow_connect: message.allow_connect,
        flood_limits: flood_limits(report, message),
    }
}

fn flood_limits(report: &mut Report, message: &api::Http2ProtocolOptions) -> FloodLimits {
    let default = FloodLimits::default();
    let empty = message.max_consecutive_inbound_frames_with_empty_payload;
    if empty.is_some_and(|empty| empty > default.empty_frames) {
        let field = "max_consecutive_inbound_frames_with_empty_payload";
        report.warn_at(
            field,
            format!("is more than {}, beyond which connections end all the same", default.empty_frames),
        );
    }
    let mut number = |field, value, least, default| scalar::at_least(report, field, value, least, default);
    FloodLimits {
        control_frames: number(
            "max_outbound_control_frames",
            message.max_outbound_control_frames,
            1,
            default.control_frames,
        ),
        empty_frames: number("max_consecutive_inbound_frames_with_empty_payload", empty, 0, default.empty_frames),
        priority_frames: number(
            "max_inbound_priority_frames_per_stream",
            message.max_inbound_priority_frames_per_stream,
            0,
            default.priority_frames,
        ),
        window_updates: number(
            "max_inbound_window_update_frames_per_data_frame_sent",
            message.max_inbound_window_update_frames_per_data_frame_sent,
            1,
            default.window_updates,
        ),
    }
}

/// Envoy's default.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
const MAX_31_BITS: u32 = 0x7fff_ffff;
