//! MOSN's frames, without I/O: bytes in, frames out, and back.
//!
//! ```text
//! offset  0    1    2     3     4    5     6    7      8 ...
//!       +----+----+-----+-----+----+----+-----+-----+---------------+
//!       | 20 | 88 | ver | flag|  type   | length BE |  JSON payload |
//!       +----+----+-----+-----+----+----+-----+-----+---------------+
//! ```
//! **A decoder refuses as early as the bytes allow and never waits for more after a wrong one**: the magic with its
//! first bytes, flag and length with the eighth, before anything of the payload is held.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};

mod message;
mod status;

pub use crate::binding::Proof;
pub use message::{
    CAPABILITY, CAPABILITY_HTTP2, Carried, GracefulClose, GracefulCloseAck, Init, Instance, Response, Secret,
};
pub use status::Status;

/// First two bytes of every frame.
pub const MAGIC: [u8; 2] = [0x20, 0x88];
/// Bytes before the payload.
pub const HEADER_LEN: usize = 8;
/// What the length field can say.
pub const MAX_PAYLOAD: usize = u16::MAX as usize;

/// Sent and ignored when received: MOSN checks neither this nor the type bytes.
const VERSION: u8 = 1;

/// A frame's kind: the flag byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Agent to server, the first frame of a tunnel connection.
    Init = 1,
    /// The server's answer to it.
    Response = 2,
    /// Agent to server, on an aside connection.
    GracefulClose = 3,
    /// Server to agent, on an aside connection. Ours: sent only for a graceful close that names connection ids, which
    /// only an agent has that announced [`CAPABILITY`].
    GracefulCloseAck = 4,
}

impl Kind {
    fn from_flag(flag: u8) -> Option<Self> {
        [Self::Init, Self::Response, Self::GracefulClose, Self::GracefulCloseAck]
            .into_iter()
            .find(|kind| *kind as u8 == flag)
    }

    /// `01 00` from an agent, `02 00` from a server.
    fn type_bytes(self) -> [u8; 2] {
        match self {
            Self::Init | Self::GracefulClose => [1, 0],
            Self::Response | Self::GracefulCloseAck => [2, 0],
        }
    }
}

/// A whole message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Init(Init),
    Response(Response),
    GracefulClose(GracefulClose),
    GracefulCloseAck(GracefulCloseAck),
}

impl Frame {
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Init(_) => Kind::Init,
            Self::Response(_) => Kind::Response,
            Self::GracefulClose(_) => Kind::GracefulClose,
            Self::GracefulCloseAck(_) => Kind::GracefulCloseAck,
        }
    }

    /// The frame's bytes.
    ///
    /// # Errors
    /// The payload does not fit the length field. (MOSN truncates the length and sends everything.)
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let payload = match self {
            Self::Init(message) => serde_json::to_vec(message),
            Self::Response(message) => serde_json::to_vec(message),
            Self::GracefulClose(message) => serde_json::to_vec(message),
            Self::GracefulCloseAck(message) => serde_json::to_vec(message),
        }
        .map_err(|error| EncodeError::Json(error.to_string()))?;
        let length = u16::try_from(payload.len()).map_err(|_| EncodeError::TooLong(payload.len()))?;
        let mut frame = Vec::with_capacity(HEADER_LEN + payload.len());
        frame.extend_from_slice(&MAGIC);
        frame.push(VERSION);
        frame.push(self.kind() as u8);
        frame.extend_from_slice(&self.kind().type_bytes());
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&payload);
        Ok(frame)
    }

    fn decode(kind: Kind, payload: &[u8]) -> Result<Self, DecodeError> {
        message::check_depth(payload)?;
        let decoded = match kind {
            Kind::Init => serde_json::from_slice(payload).map(Self::Init),
            Kind::Response => serde_json::from_slice(payload).map(Self::Response),
            Kind::GracefulClose => serde_json::from_slice(payload).map(Self::GracefulClose),
            Kind::GracefulCloseAck => serde_json::from_slice(payload).map(Self::GracefulCloseAck),
        };
        decoded.map_err(|error| DecodeError::Json { kind, reason: error.to_string() })
    }
}

/// Why a message cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("payload of {0} bytes, the frame's length field takes {MAX_PAYLOAD}; shorten the credential or the names")]
    TooLong(usize),
    #[error("cannot be written as JSON: {0}")]
    Json(String),
}

/// Why received bytes are no frame. The connection is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("magic {0:02x?} instead of 20 88: the peer speaks something else")]
    Magic(Vec<u8>),
    #[error("unknown frame kind {0:#04x}")]
    Kind(u8),
    #[error("payload of zero bytes")]
    Empty,
    #[error("payload of {length} bytes, at most {max} are accepted")]
    TooLong { length: usize, max: usize },
    #[error("JSON nested deeper than {}", message::MAX_DEPTH)]
    TooDeep,
    #[error("{kind} frame: {reason}")]
    Json { kind: Kind, reason: String },
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Init => "init",
            Self::Response => "init response",
            Self::GracefulClose => "graceful close",
            Self::GracefulCloseAck => "graceful close ack",
        })
    }
}

/// Takes bytes as they come, in pieces of any size, and yields frames. One per connection, never reused.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    max_payload: usize,
}

impl Decoder {
    /// Refuses payloads over `max_payload` bytes (capped at [`MAX_PAYLOAD`]).
    #[must_use]
    pub fn new(max_payload: usize) -> Self {
        Self { buffer: BytesMut::new(), max_payload: max_payload.min(MAX_PAYLOAD) }
    }

    /// Appends received bytes. The caller takes out every frame before it reads on, so no more than one frame and one
    /// read are ever held.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; `None`: more bytes are needed.
    ///
    /// # Errors
    /// The bytes are no frame and cannot become one.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, DecodeError> {
        let started = self.buffer.len().min(MAGIC.len());
        if self.buffer[..started] != MAGIC[..started] {
            return Err(DecodeError::Magic(self.buffer[..started].to_vec()));
        }
        let Some(&[_, _, _version, flag, _, _, high, low]) = self.buffer.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let kind = Kind::from_flag(flag).ok_or(DecodeError::Kind(flag))?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length == 0 {
            return Err(DecodeError::Empty);
        }
        if length > self.max_payload {
            return Err(DecodeError::TooLong { length, max: self.max_payload });
        }
        if self.buffer.len() < HEADER_LEN + length {
            return Ok(None);
        }
        self.buffer.advance(HEADER_LEN);
        let payload = self.buffer.split_to(length);
        Frame::decode(kind, &payload).map(Some)
    }

    /// Where received bytes may be appended without a copy; as [`Self::push`].
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// What is no whole frame yet.
    #[must_use]
    pub fn buffered(&self) -> &[u8] {
        &self.buffer
    }

    /// What came behind the last frame: it belongs to the application protocol.
    #[must_use]
    pub fn into_surplus(self) -> Bytes {
        // An empty view of the buffer would keep all of it for as long as the tunnel lives.
        if self.buffer.is_empty() { Bytes::new() } else { self.buffer.freeze() }
    }
}

#[cfg(test)]
mod tests;
