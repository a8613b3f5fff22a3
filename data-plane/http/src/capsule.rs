//! Datagrams in capsules (RFC 9297), as CONNECT-UDP carries them (RFC 9298): what a stream of bytes brings is taken
//! apart piece by piece, and what is sent gets a few bytes in front.
//!
//! ```text
//! capsule := type (varint), length (varint), value          type 0: DATAGRAM; others are skipped
//! value   := context (varint), payload                      context 0: a UDP payload; others are dropped
//! ```

/// The longest payload of a UDP datagram (RFC 9298, 5).
pub const MAX_DATAGRAM: usize = 65_527;
/// The most bytes that [`put_header`] puts in front of a payload.
pub const HEADER_ROOM: usize = 6;

const DATAGRAM: u64 = 0;
/// A context takes eight bytes at most.
const MAX_VALUE: u64 = MAX_DATAGRAM as u64 + 8;

/// What no capsule of CONNECT-UDP looks like: the stream is to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CapsuleError {
    #[error("a datagram of {0} bytes, more than UDP carries")]
    TooLong(u64),
    #[error("a datagram without a whole context id")]
    NoContext,
    #[error("the stream ends within a capsule")]
    Truncated,
}

/// Takes a stream of capsules apart. Holds no more than one datagram, and nothing between them.
#[derive(Debug, Default)]
pub struct CapsuleReader {
    /// The beginning of a capsule that has not come whole.
    held: Vec<u8>,
    /// Bytes of a capsule of another type that are still to come.
    skip: u64,
    /// Datagrams of contexts that nobody has registered.
    foreign: u64,
}

/// What a capsule's beginning says of it.
struct Head {
    datagram: bool,
    /// Bytes of type and length.
    header: usize,
    /// Bytes of the value.
    length: u64,
}

impl CapsuleReader {
    /// Takes the next bytes of the stream and hands over every payload that is complete with them, in order.
    ///
    /// # Errors
    /// The stream does not carry datagrams; nothing behind the error is read.
    pub fn read(&mut self, mut bytes: &[u8], mut datagram: impl FnMut(&[u8])) -> Result<(), CapsuleError> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                self.skip -= skipped as u64;
                bytes = bytes.get(skipped..).unwrap_or_default();
            } else if self.held.is_empty() {
                bytes = self.whole(bytes, &mut datagram)?;
            } else {
                bytes = self.completed(bytes, &mut datagram)?;
            }
        }
        Ok(())
    }

    /// Whether the stream may end here.
    ///
    /// # Errors
    /// It is within a capsule.
    pub fn finish(&self) -> Result<(), CapsuleError> {
        if self.held.is_empty() && self.skip == 0 { Ok(()) } else { Err(CapsuleError::Truncated) }
    }

    /// How many datagrams were dropped since the last call: of contexts that nobody has registered (RFC 9298, 4).
    pub fn take_foreign(&mut self) -> u64 {
        std::mem::take(&mut self.foreign)
    }

    /// The capsule at the beginning of `bytes`; returns what is behind it, or keeps what is not whole.
    fn whole<'b>(&mut self, bytes: &'b [u8], datagram: &mut impl FnMut(&[u8])) -> Result<&'b [u8], CapsuleError> {
        let Some(head) = head(bytes)? else {
            self.held.extend_from_slice(bytes);
            return Ok(&[]);
        };
        let (_, value) = bytes.split_at_checked(head.header).unwrap_or_default();
        if !head.datagram {
            self.skip = head.length;
            return Ok(value);
        }
        match usize::try_from(head.length).ok().and_then(|length| value.split_at_checked(length)) {
            Some((value, rest)) => {
                self.foreign += deliver(value, datagram)?;
                Ok(rest)
            }
            None => {
                self.held.extend_from_slice(bytes);
                Ok(&[])
            }
        }
    }

    /// As much of `bytes` as the capsule that is held lacks; returns the rest.
    fn completed<'b>(&mut self, bytes: &'b [u8], datagram: &mut impl FnMut(&[u8])) -> Result<&'b [u8], CapsuleError> {
        let Some(head) = head(&self.held)? else {
            // Type and length are sixteen bytes at most: they come byte by byte.
            let (next, rest) = bytes.split_at_checked(1).unwrap_or_default();
            self.held.extend_from_slice(next);
            return self.settle(rest, datagram);
        };
        let whole = usize::try_from(head.length).unwrap_or(usize::MAX).saturating_add(head.header);
        let missing = whole.saturating_sub(self.held.len()).min(bytes.len());
        let (next, rest) = bytes.split_at_checked(missing).unwrap_or_default();
        self.held.extend_from_slice(next);
        self.settle(rest, datagram)
    }

    /// Hands over what is held if it is whole by now.
    fn settle<'b>(&mut self, rest: &'b [u8], datagram: &mut impl FnMut(&[u8])) -> Result<&'b [u8], CapsuleError> {
        let Some(head) = head(&self.held)? else { return Ok(rest) };
        let value = self.held.get(head.header..).unwrap_or_default();
        if !head.datagram {
            self.skip = head.length;
        } else if value.len() as u64 == head.length {
            self.foreign += deliver(value, datagram)?;
        } else {
            return Ok(rest);
        }
        self.held.clear();
        // An idle session holds no datagram's worth of memory.
        self.held.shrink_to(KEPT);
        Ok(rest)
    }
}

/// Type and length; `None`: more bytes are needed.
fn head(bytes: &[u8]) -> Result<Option<Head>, CapsuleError> {
    let Some((kind, first)) = varint(bytes) else { return Ok(None) };
    let Some((length, second)) = varint(bytes.get(first..).unwrap_or_default()) else { return Ok(None) };
    let datagram = kind == DATAGRAM;
    if datagram && length > MAX_VALUE {
        return Err(CapsuleError::TooLong(length));
    }
    Ok(Some(Head { datagram, header: first + second, length }))
}

/// Hands over what is of the one context that there is; how many others that was.
fn deliver(value: &[u8], datagram: &mut impl FnMut(&[u8])) -> Result<u64, CapsuleError> {
    let (context, length) = varint(value).ok_or(CapsuleError::NoContext)?;
    let payload = value.get(length..).unwrap_or_default();
    if payload.len() > MAX_DATAGRAM {
        return Err(CapsuleError::TooLong(payload.len() as u64));
    }
    if context == 0 {
        datagram(payload);
        return Ok(0);
    }
    Ok(1)
}

/// A number of RFC 9000, 16, and how many bytes it takes.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let length = 1_usize << (first >> 6);
    let rest = bytes.get(1..length)?;
    let value = rest.iter().fold(u64::from(first & 0x3f), |value, byte| (value << 8) | u64::from(*byte));
    Some((value, length))
}

/// Writes what stands in front of a payload of `length` bytes (at most [`MAX_DATAGRAM`]) to the end of `room`, behind which
/// the payload is; returns where it begins.
pub fn put_header(room: &mut [u8; HEADER_ROOM], length: usize) -> usize {
    // Of the value, with a context that takes one byte.
    let value = u32::try_from(length).unwrap_or(u32::MAX).saturating_add(1);
    let [one, two, three, four] = value.to_be_bytes();
    let (bytes, start) = match value {
        0..=0x3f => ([0, 0, 0, 0, four, 0], 3),
        0x40..=0x3fff => ([0, 0, 0, 0x40 | three, four, 0], 2),
        _ => ([0, 0x80 | one, two, three, four, 0], 0),
    };
    *room = bytes;
    start
}

/// Bytes of memory that are kept for the next capsule that comes in pieces.
const KEPT: usize = 2048;

#[cfg(test)]
mod tests;
