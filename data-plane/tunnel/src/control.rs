//! gRPC's framing of the control service: a byte that says "not compressed", the length, the message.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

/// Takes bytes as they come and yields messages.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    buffer: BytesMut,
}

/// Why received bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("a compressed message, which nobody asked for")]
    Compressed,
    #[error("a message of {0} bytes, at most {MAX_MESSAGE} are taken")]
    TooLong(usize),
}

impl Messages {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message; `None`: more bytes are needed.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, MessageError> {
        let Some(&[compressed, a, b, c, d]) = self.buffer.first_chunk::<PREFIX>() else { return Ok(None) };
        if compressed != 0 {
            return Err(MessageError::Compressed);
        }
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            return Err(MessageError::TooLong(length));
        }
        if self.buffer.len() < PREFIX + length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

/// A message in its frame.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    // Ours are far shorter than the length field can say.
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut frame = BytesMut::with_capacity(PREFIX + message.len());
    frame.extend_from_slice(&[0]);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(message);
    frame.freeze()
}

/// `content-type` of requests and responses.
pub(crate) const CONTENT_TYPE: &[u8] = b"application/grpc";
/// The least time between two notices of one peer that are acted upon: some have all tunnels looked at.
pub(crate) const PACE: Duration = Duration::from_millis(10);
const PREFIX: usize = 5;
/// 1024 ids fit, and then some.
const MAX_MESSAGE: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_in_any_pieces() {
        let bytes = [framed(b"one"), framed(b""), framed(&[7; 1000])].concat();
        for piece in [1, 2, 5, 6, 1018] {
            let (mut messages, mut seen) = (Messages::default(), Vec::new());
            for chunk in bytes.chunks(piece) {
                messages.push(chunk);
                while let Some(message) = messages.next().unwrap() {
                    seen.push(message.len());
                }
            }
            assert_eq!(seen, [3, 0, 1000], "in pieces of {piece}");
        }
    }

    #[test]
    fn what_is_no_message_is_refused_before_it_is_held() {
        for (bytes, expected) in [
            (&b"\x01\0\0\0\x01"[..], Err(MessageError::Compressed)),
            (b"\0\0\x01\0\0", Ok(None)),
            (b"\0\0\x01\0\x01", Err(MessageError::TooLong(65_537))),
            (b"\0\xff\xff\xff\xff", Err(MessageError::TooLong(0xffff_ffff))),
            (b"\0\0\0\0", Ok(None)),
        ] {
            let mut messages = Messages::default();
            messages.push(bytes);
            assert_eq!(messages.next(), expected, "{bytes:?}");
        }
    }
}
