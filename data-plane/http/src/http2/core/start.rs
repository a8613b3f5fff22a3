//! How a connection begins: by our SETTINGS, a client's behind its preface.

use std::collections::VecDeque;

use super::floods::Floods;
use super::streams::Streams;
use super::{Config, Core, Intake, Peer, Phase, UNSETTLED, receive};
use crate::client::Http2ClientOptions;
use crate::http2::frame::{self, DEFAULT_FRAME, DEFAULT_WINDOW, MAX_FRAME, setting};
use crate::http2::hpack::{Decoder, Encoder};
use crate::http2::outbox::Outbox;
use crate::http2::preface::PREFACE;
use crate::http2::read_heads::HeadLimits;
use crate::server::ServerOptions;

/// Bytes of the peer's table for header compression: what it may use unless told otherwise (RFC 9113, 6.5.2).
const TABLE: usize = 4096;
impl Core {
    fn new(config: Config, windows: (u32, u32), floods: Option<Floods>) -> Self {
        let (stream, connection) = windows;
        Self {
            peer: Peer {
                settled: false,
                window: DEFAULT_WINDOW,
                max_frame: DEFAULT_FRAME,
                max_streams: UNSETTLED,
                extended_connect: false,
                goaway: None,
            },
            intake: Intake {
                window: i64::from(DEFAULT_WINDOW),
                used: i64::from(connection) - i64::from(DEFAULT_WINDOW),
                target: connection,
                stream: DEFAULT_WINDOW,
                agreed: Some(stream),
            },
            config,
            phase: Phase::Open,
            streams: Streams::default(),
            incoming: receive::Incoming::default(),
            encoder: Encoder::new(),
            decoder: Decoder::new(TABLE),
            out: Outbox::default(),
            turn: 0,
            window: i64::from(DEFAULT_WINDOW),
            queued: 0,
            ring: VecDeque::new(),
            highest: 0,
            next: 1,
            recent: VecDeque::new(),
            floods,
            local_resets: 0,
            seen: 0,
            pending_resets: 0,
            replies: 0,
            arrivals: VecDeque::new(),
            leaving: false,
            pong: false,
            said_goodbye: false,
            abandoned: false,
            openers: Vec::new(),
            wakes: Vec::new(),
            driver: None,
            dirty: true,
        }
    }

    /// The end that answers; its SETTINGS wait to be sent.
    pub(in crate::http2) fn server(options: &ServerOptions) -> Self {
        let head = HeadLimits {
            bytes: options.max_head_bytes,
            fields: options.max_fields,
            custom_methods: options.custom_methods,
            extended_connect: options.extended_connect,
            scheme: options.scheme,
        };
        let config = Config {
            server: true,
            head,
            max_streams: options.max_concurrent_streams as usize,
            max_frame: (options.max_frame_size as usize).clamp(DEFAULT_FRAME, MAX_FRAME),
            client_ends: options.client_ends,
        };
        let floods = Floods::new(options.flood_limits, options.connections);
        let windows = (options.initial_stream_window, options.initial_connection_window);
        let mut core = Self::new(config, windows, Some(floods));
        let settings = [
            (setting::MAX_CONCURRENT_STREAMS, options.max_concurrent_streams),
            (setting::INITIAL_WINDOW_SIZE, options.initial_stream_window),
            (setting::MAX_FRAME_SIZE, options.max_frame_size.clamp(16_384, 0xff_ffff)),
            (setting::MAX_HEADER_LIST_SIZE, u32::try_from(options.max_head_bytes).unwrap_or(u32::MAX)),
            (setting::ENABLE_CONNECT_PROTOCOL, 1),
        ];
        let settings = if options.extended_connect { &settings[..] } else { &settings[..4] };
        frame::write_settings(core.out.bytes(), settings);
        core.give_back_all();
        core
    }

    /// The end that asks; its preface and SETTINGS wait to be sent.
    pub(in crate::http2) fn client(options: &Http2ClientOptions) -> Self {
        let head = HeadLimits {
            bytes: options.max_head_bytes as usize,
            fields: 0,
            custom_methods: true,
            extended_connect: false,
            scheme: "http",
        };
        let config = Config {
            server: false,
            head,
            max_streams: options.max_concurrent_streams as usize,
            max_frame: (options.max_frame_size as usize).clamp(DEFAULT_FRAME, MAX_FRAME),
            client_ends: false,
        };
        let windows = (options.initial_stream_window, options.initial_connection_window);
        let mut core = Self::new(config, windows, None);
        core.out.bytes().extend_from_slice(PREFACE);
        let settings = [
            (setting::ENABLE_PUSH, 0),
            (setting::INITIAL_WINDOW_SIZE, options.initial_stream_window),
            (setting::MAX_FRAME_SIZE, options.max_frame_size.clamp(16_384, 0xff_ffff)),
            (setting::MAX_HEADER_LIST_SIZE, options.max_head_bytes),
        ];
        frame::write_settings(core.out.bytes(), &settings);
        core.give_back_all();
        core
    }
}
