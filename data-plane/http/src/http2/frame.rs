//! The frames of HTTP/2 as bytes (RFC 9113, 4 and 6): the nine bytes in front of each, and those frames that are short.

/// The nine bytes in front of a frame's payload (RFC 9113, 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHead {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl FrameHead {
    pub(super) const LENGTH: usize = 9;

    /// The head at the front, if it is there whole.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *bytes.first_chunk()?;
        let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        let stream = u32::from_be_bytes([s0, s1, s2, s3]) & MAX_STREAM;
        Some(Self { length, kind, flags, stream })
    }

    /// Of DATA and HEADERS.
    pub(super) fn ends_stream(self) -> bool {
        self.flags & END_STREAM != 0
    }

    /// Of HEADERS and CONTINUATION.
    pub(super) fn ends_block(self) -> bool {
        self.flags & END_HEADERS != 0
    }

    /// Of DATA and HEADERS.
    pub(super) fn is_padded(self) -> bool {
        self.flags & PADDED != 0
    }

    /// Of HEADERS.
    pub(super) fn has_priority(self) -> bool {
        self.flags & PRIORITY_FLAG != 0
    }

    /// Of SETTINGS and PING.
    pub(super) fn is_ack(self) -> bool {
        self.flags & ACK != 0
    }
}

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;
pub(super) const PRIORITY_FLAG: u8 = 0x20;

/// The largest id of a stream, and the largest window.
pub(super) const MAX_STREAM: u32 = 0x7fff_ffff;
/// Both windows, until something else is agreed (RFC 9113, 6.5.2 and 6.9.2).
pub(super) const DEFAULT_WINDOW: u32 = 65_535;
/// The largest payload, until something else is agreed.
pub(super) const DEFAULT_FRAME: usize = 16_384;
/// The largest payload there can be.
pub(super) const MAX_FRAME: usize = 0xff_ffff;

/// RFC 9113, 7.
pub(super) mod code {
    pub(in crate::http2) const NO_ERROR: u32 = 0;
    pub(in crate::http2) const PROTOCOL_ERROR: u32 = 1;
    pub(in crate::http2) const INTERNAL_ERROR: u32 = 2;
    pub(in crate::http2) const FLOW_CONTROL_ERROR: u32 = 3;
    pub(in crate::http2) const STREAM_CLOSED: u32 = 5;
    pub(in crate::http2) const FRAME_SIZE_ERROR: u32 = 6;
    pub(in crate::http2) const REFUSED_STREAM: u32 = 7;
    pub(in crate::http2) const CANCEL: u32 = 8;
    pub(in crate::http2) const COMPRESSION_ERROR: u32 = 9;
    pub(in crate::http2) const ENHANCE_YOUR_CALM: u32 = 11;
}

/// RFC 9113, 6.5.2, and RFC 8441, 3.
pub(super) mod setting {
    pub(in crate::http2) const HEADER_TABLE_SIZE: u16 = 1;
    pub(in crate::http2) const ENABLE_PUSH: u16 = 2;
    pub(in crate::http2) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(in crate::http2) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(in crate::http2) const MAX_FRAME_SIZE: u16 = 5;
    pub(in crate::http2) const MAX_HEADER_LIST_SIZE: u16 = 6;
    pub(in crate::http2) const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// The settings of a payload, whose length is a multiple of six.
pub(super) fn settings(payload: &[u8]) -> impl Iterator<Item = (u16, u32)> {
    payload
        .as_chunks()
        .0
        .iter()
        .map(|&[i0, i1, v0, v1, v2, v3]| (u16::from_be_bytes([i0, i1]), u32::from_be_bytes([v0, v1, v2, v3])))
}

/// The number at the front, if it is there: all that RST_STREAM and WINDOW_UPDATE have.
pub(super) fn number(payload: &[u8]) -> Option<u32> {
    payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// The bytes of a frame's head.
pub(super) fn head(length: usize, kind: u8, flags: u8, stream: u32) -> [u8; FrameHead::LENGTH] {
    // Whoever frames has cut what is longer than a frame can be.
    let [_, l0, l1, l2] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    let [s0, s1, s2, s3] = stream.to_be_bytes();
    [l0, l1, l2, kind, flags, s0, s1, s2, s3]
}

pub(super) fn write_settings(out: &mut Vec<u8>, values: &[(u16, u32)]) {
    out.extend_from_slice(&head(values.len() * 6, SETTINGS, 0, 0));
    for (setting, value) in values {
        out.extend_from_slice(&setting.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

pub(super) fn write_settings_ack(out: &mut Vec<u8>) {
    out.extend_from_slice(&head(0, SETTINGS, ACK, 0));
}

pub(super) fn write_ping(out: &mut Vec<u8>, flags: u8, payload: &[u8; 8]) {
    out.extend_from_slice(&head(8, PING, flags, 0));
    out.extend_from_slice(payload);
}

pub(super) fn write_goaway(out: &mut Vec<u8>, last: u32, code: u32) {
    out.extend_from_slice(&head(8, GOAWAY, 0, 0));
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&code.to_be_bytes());
}

pub(super) fn write_window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    out.extend_from_slice(&head(4, WINDOW_UPDATE, 0, stream));
    out.extend_from_slice(&increment.to_be_bytes());
}

pub(super) fn write_reset(out: &mut Vec<u8>, stream: u32, code: u32) {
    out.extend_from_slice(&head(4, RST_STREAM, 0, stream));
    out.extend_from_slice(&code.to_be_bytes());
}
