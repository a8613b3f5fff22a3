//! TLS records, told apart on their way in.

/// Where in the stream of TLS records (RFC 8446 §5.1: type, version, length, content) a reader is.
#[derive(Debug, Default)]
pub(super) struct Records {
    header: [u8; HEADER],
    have: usize,
    content: usize,
}

impl Records {
    /// How many bytes may be read at once: not one behind the record.
    pub(super) fn limit(&self) -> usize {
        if self.content > 0 { self.content } else { HEADER - self.have }
    }

    /// Takes note of bytes that were read, at most [`Self::limit`].
    pub(super) fn note(&mut self, bytes: &[u8]) {
        if self.content > 0 {
            self.content = self.content.saturating_sub(bytes.len());
            return;
        }
        for byte in bytes {
            if let Some(place) = self.header.get_mut(self.have) {
                *place = *byte;
                self.have += 1;
            }
        }
        if self.have == HEADER {
            self.have = 0;
            self.content = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
        }
    }
}

const HEADER: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_read_reaches_behind_a_record() {
        let stream = b"\x16\x03\x03\x00\x03abc\x17\x03\x03\x00\x00\x17\x03\x03\x01\x00";
        for most in 1..=stream.len() {
            let (mut records, mut at, mut ends) = (Records::default(), 0, Vec::new());
            while at < stream.len() {
                let read = records.limit().min(most).min(stream.len() - at);
                records.note(&stream[at..at + read]);
                at += read;
                if records.limit() == HEADER {
                    ends.push(at);
                }
            }
            assert_eq!(ends, [8, 13], "in pieces of {most}");
            assert_eq!(records.limit(), 256, "the last record's content");
        }
    }
}
