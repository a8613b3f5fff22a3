//! Chunked transfer coding (RFC 9112, 7.1), strict: CRLF only, no white space, no sign or prefix before a size.

use std::ops::Range;

/// All chunk extensions of one message together.
const MAX_EXTENSION_BYTES: u32 = 16 * 1024;
/// 2^63 - 1: 16 digits.
const MAX_SIZE: u64 = i64::MAX as u64;
const MAX_DIGITS: u8 = 16;

/// Where in the coding the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size { value: u64, digits: u8 },
    Extension { value: u64 },
    SizeLf { value: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    Trailers,
}

/// Takes the coding off.
#[derive(Debug, Clone)]
pub(crate) struct Decoder {
    state: State,
    extensions: u32,
}

/// What stands at the front of the input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Framing that ends mid-way: take it off and come back with more.
    More,
    /// A piece of the body, after framing that is before the range's start.
    Data(Range<usize>),
    /// The trailer section begins at this offset.
    Trailers(usize),
}

impl Decoder {
    pub(crate) const fn new() -> Self {
        Self { state: State::Size { value: 0, digits: 0 }, extensions: 0 }
    }

    /// Reads on. The caller takes off everything up to the end of what is returned (all input on [`Step::More`]).
    ///
    /// # Errors
    /// What is wrong with the coding: the message cannot be trusted any more.
    pub(crate) fn step(&mut self, input: &[u8]) -> Result<Step, &'static str> {
        for (at, &byte) in input.iter().enumerate() {
            self.state = match self.state {
                State::Size { value, digits } => self.size(value, digits, byte)?,
                State::Extension { value } => self.extension(value, byte)?,
                State::SizeLf { value: 0 } if byte == b'\n' => State::Trailers,
                State::SizeLf { value } if byte == b'\n' => State::Data { left: value },
                State::SizeLf { .. } => return Err("a chunk size is not followed by CRLF"),
                State::Data { left } => {
                    let here = input.len() - at;
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(here);
                    let left = left - taken as u64;
                    self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                    return Ok(Step::Data(at..at + taken));
                }
                State::DataCr if byte == b'\r' => State::DataLf,
                State::DataLf if byte == b'\n' => State::Size { value: 0, digits: 0 },
                State::DataCr | State::DataLf => return Err("chunk data is not followed by CRLF"),
                State::Trailers => return Ok(Step::Trailers(at)),
            };
        }
        Ok(if self.state == State::Trailers { Step::Trailers(input.len()) } else { Step::More })
    }

    fn size(&self, value: u64, digits: u8, byte: u8) -> Result<State, &'static str> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            b';' if digits > 0 => return Ok(State::Extension { value }),
            b'\r' if digits > 0 => return Ok(State::SizeLf { value }),
            _ => return Err("a chunk size is not hexadecimal"),
        };
        if digits == MAX_DIGITS || value > MAX_SIZE >> 4 {
            return Err("a chunk size exceeds 2^63");
        }
        Ok(State::Size { value: value << 4 | u64::from(digit), digits: digits + 1 })
    }

    fn extension(&mut self, value: u64, byte: u8) -> Result<State, &'static str> {
        self.extensions += 1;
        match byte {
            b'\r' => Ok(State::SizeLf { value }),
            _ if self.extensions > MAX_EXTENSION_BYTES => Err("chunk extensions exceed 16 KiB"),
            b'\t' | b' '..=b'~' | 0x80.. => Ok(State::Extension { value }),
            // A bare LF would end the line for a lenient neighbour (the TERM.EXT family of request smuggling).
            _ => Err("a control byte in a chunk extension"),
        }
    }
}

/// Writes the line before a chunk of `len` bytes.
pub(crate) fn write_size(out: &mut Vec<u8>, len: usize) {
    let mut digits = [0; 16];
    let mut at = digits.len();
    let mut rest = len;
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[rest & 15];
        rest >>= 4;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
