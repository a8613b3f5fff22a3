//! Counts the fields of a header block without decoding them (RFC 7541, 6). A reference to a field in the table is one
//! byte on the wire and a hundred in memory, and the library counts bytes only: who asks for many has to be seen before
//! they are there.

/// Fields of one block, as it comes in pieces of frames.
#[derive(Debug, Default)]
pub(super) struct FieldCount {
    fields: usize,
    /// Bytes of the frame that are no part of the block: its priority, and padding at its end.
    before: usize,
    padded: bool,
    padding: usize,
    expect: Expect,
}

#[derive(Debug, Default, Clone, Copy)]
enum Expect {
    #[default]
    Field,
    /// The rest of a number.
    Number {
        value: usize,
        shift: u32,
        of: Of,
    },
    /// A string's length, with so many strings behind it.
    Length {
        behind: u8,
    },
    String {
        left: usize,
        behind: u8,
    },
}

#[derive(Debug, Clone, Copy)]
enum Of {
    /// An entry of the table, or the table's size.
    Nothing,
    /// The name of a literal field: 0 if it comes as a string.
    Name,
    String {
        behind: u8,
    },
}

impl FieldCount {
    /// A frame begins: with the length of its padding in front, and so many bytes more.
    pub(super) fn frame(&mut self, padded: bool, before: usize) {
        (self.padded, self.before, self.padding) = (padded, before, 0);
    }

    /// So many fields so far, with what comes next: `left` bytes of the frame, of which `piece` are the first.
    pub(super) fn count(&mut self, piece: &[u8], mut left: usize) -> usize {
        for &byte in piece {
            if self.padded {
                (self.padded, self.padding) = (false, usize::from(byte));
            } else if self.before > 0 {
                self.before -= 1;
            } else if left > self.padding {
                self.byte(byte);
            }
            left -= 1;
        }
        self.fields
    }

    fn byte(&mut self, byte: u8) {
        self.expect = match self.expect {
            Expect::Field if byte & 0x80 != 0 => self.number(byte, 0x7f, Of::Nothing, 1),
            Expect::Field if byte & 0x40 != 0 => self.number(byte, 0x3f, Of::Name, 1),
            Expect::Field if byte & 0x20 != 0 => self.number(byte, 0x1f, Of::Nothing, 0),
            Expect::Field => self.number(byte, 0x0f, Of::Name, 1),
            Expect::Length { behind } => self.number(byte, 0x7f, Of::String { behind }, 0),
            Expect::Number { value, shift, of } => {
                // A number beyond all measure is an error of the library's, and of this connection's end.
                let part = usize::from(byte & 0x7f).checked_shl(shift).unwrap_or(usize::MAX);
                let value = value.saturating_add(part);
                if byte & 0x80 == 0 { of.after(value) } else { Expect::Number { value, shift: shift + 7, of } }
            }
            Expect::String { left, behind } => Of::String { behind }.after(left - 1),
        };
    }

    /// The first byte of a number (RFC 7541, 5.1) that begins so many `fields`.
    fn number(&mut self, byte: u8, mask: u8, of: Of, fields: usize) -> Expect {
        self.fields += fields;
        let value = usize::from(byte & mask);
        if value < usize::from(mask) { of.after(value) } else { Expect::Number { value, shift: 0, of } }
    }
}

impl Of {
    fn after(self, value: usize) -> Expect {
        match (self, value) {
            (Self::Nothing, _) | (Self::String { behind: 0 }, 0) => Expect::Field,
            (Self::Name, 0) => Expect::Length { behind: 1 },
            (Self::Name, _) => Expect::Length { behind: 0 },
            (Self::String { behind }, 0) => Expect::Length { behind: behind - 1 },
            (Self::String { behind }, left) => Expect::String { left, behind },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_whatever_their_form_and_pieces() {
        let long = [&[0x40, 1, b'a', 127, 0x85, 0x01][..], &[0xff; 260]].concat();
        for (name, block, expected) in [
            ("nothing", &[][..], 0),
            ("indexed", &[0x82, 0xbe, 0xbe], 3),
            ("an index of three bytes", &[0xff, 0x80, 0x01, 0xbe], 2),
            ("a literal with a known name", &[0x44, 2, b'/', b'a', 0x82], 2),
            ("a literal with a new name", &[0x40, 1, b'a', 1, b'b', 0x82], 2),
            ("never indexed", &[0x10, 1, b'a', 1, b'b', 0x0f, 3, 1, 0xff], 2),
            ("an empty value", &[0x00, 1, b'a', 0, 0x82], 2),
            ("no name at all", &[0x00, 0, 0, 0x82], 2),
            ("the table's size, twice", &[0x20, 0x3f, 0xe1, 0x1f, 0x82], 1),
            ("a long value", &long, 1),
            ("a number without end", &[0xff; 40], 1),
        ] {
            for piece in 1..=block.len().max(1) {
                for (padded, before) in [(false, 0), (true, 0), (true, 5)] {
                    let mut frame = if padded { vec![3] } else { Vec::new() };
                    frame.extend(vec![0x82; before]);
                    frame.extend(block);
                    frame.extend(vec![0x82; if padded { 3 } else { 0 }]);
                    let mut count = FieldCount::default();
                    count.frame(padded, before);
                    let (mut left, mut seen) = (frame.len(), 0);
                    for piece in frame.chunks(piece) {
                        seen = count.count(piece, left);
                        left -= piece.len();
                    }
                    assert_eq!(seen, expected, "{name}, in pieces of {piece}, padded {padded}, behind {before}");
                }
            }
        }
    }
}
