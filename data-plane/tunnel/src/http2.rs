//! HTTP/2 as our two ends speak it over a tunnel: the numbers. The server is its client, the agent its server.
//!
//! **A window is sized to the path**: it begins with what a near peer needs, and with every answered PING grows to what a
//! path of 1 Gbit/s has under way in one round trip, within the limits below.

use std::pin::Pin;
use std::time::Duration;

use culvert_http::{Http2ClientOptions, Protocol, RoundTrip, ServerOptions};
use culvert_runtime::telemetry::{Block, Metrics};

use crate::keepalive;

/// The server's end, which opens the streams.
pub(crate) fn client_options(round_trip: RoundTrip, ping_interval: Duration) -> Http2ClientOptions {
    Http2ClientOptions {
        initial_stream_window: STREAM_WINDOW,
        initial_connection_window: CONNECTION_WINDOW,
        max_frame_size: FRAME,
        max_concurrent_streams: STREAMS,
        max_head_bytes: HEAD,
        keepalive_interval: Some(ping_interval),
        keepalive_timeout: keepalive::patience(ping_interval),
        most_stream_window: MOST_STREAM_WINDOW,
        round_trip: Some(round_trip),
        first_ping: None,
        says_goodbye: false,
    }
}

/// The agent's end, which serves the streams. What listeners limit (idle times, age) is not the tunnel's to limit.
pub(crate) fn server_options(round_trip: RoundTrip, ping_interval: Duration) -> ServerOptions {
    ServerOptions {
        protocol: Protocol::Http2,
        max_head_bytes: HEAD as usize,
        max_fields: FIELDS,
        idle_timeout: None,
        max_concurrent_streams: STREAMS,
        initial_stream_window: STREAM_WINDOW,
        initial_connection_window: CONNECTION_WINDOW,
        max_frame_size: FRAME,
        keepalive_interval: Some(ping_interval),
        keepalive_timeout: keepalive::patience(ping_interval),
        most_stream_window: MOST_STREAM_WINDOW,
        round_trip: Some(round_trip),
        connections: true,
        extended_connect: true,
        custom_methods: true,
        ..ServerOptions::default()
    }
}

/// Runs `connection` and records each round trip that its PINGs measure; `measured` is told of each.
pub(crate) async fn recorded<M: Metrics, T>(
    round_trip: &RoundTrip,
    block: &Block<M>,
    metric: impl Fn() -> M,
    measured: impl Fn(Duration),
    mut connection: Pin<&mut impl Future<Output = T>>,
) -> T {
    loop {
        tokio::select! {
            biased;
            ended = &mut connection => return ended,
            time = round_trip.measured() => {
                block.record(metric(), time.as_secs_f64() * 1000.0);
                measured(time);
            }
        }
    }
}

const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Four times HTTP/2's default: a long body takes a quarter of the frames, and another stream waits for one no longer than
/// half a millisecond at 1 Gbit/s.
const FRAME: u32 = 64 * 1024;
const MOST_STREAM_WINDOW: u32 = 8 * 1024 * 1024;
/// At a time on one connection.
const STREAMS: u32 = 1024;
/// The gateway has limited heads already, and its limits are the operator's.
const HEAD: u32 = 256 * 1024;
const FIELDS: usize = 1000;
