use proptest::collection::vec;
use proptest::prelude::*;

use super::{Decoder, Step, write_size};

/// Decodes `wire`, cut into pieces of these sizes; the body, or what is wrong.
fn decode(wire: &[u8], cuts: &[usize]) -> Result<(Vec<u8>, bool), &'static str> {
    let (mut decoder, mut body) = (Decoder::new(), Vec::new());
    let mut rest = wire;
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let (mut piece, after) = rest.split_at((*cuts.next().unwrap_or(&1)).clamp(1, rest.len()));
        rest = after;
        loop {
            match decoder.step(piece)? {
                Step::More => break,
                Step::Data(range) => {
                    body.extend_from_slice(&piece[range.clone()]);
                    piece = &piece[range.end..];
                }
                Step::Trailers(_) => return Ok((body, true)),
            }
        }
    }
    Ok((body, false))
}

proptest! {
    #[test]
    fn what_is_written_is_read(chunks in vec(vec(any::<u8>(), 1..300), 0..8), cuts in vec(1usize..40, 1..8)) {
        let mut wire = Vec::new();
        for chunk in &chunks {
            write_size(&mut wire, chunk.len());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b"0\r\n\r\n");
        prop_assert_eq!(decode(&wire, &cuts), Ok((chunks.concat(), true)));
    }

    #[test]
    fn garbage_neither_panics_nor_depends_on_the_cuts(wire in vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b';'), Just(b'1'), Just(b'0'), any::<u8>()], 0..60), cuts in vec(1usize..9, 1..4)) {
        prop_assert_eq!(decode(&wire, &cuts), decode(&wire, &[usize::MAX]));
    }
}

#[test]
fn sizes_have_a_limit() {
    for (wire, expected) in [
        (&b"7fffffffffffffff\r\n"[..], true),
        (b"8000000000000000\r\n", false),
        (b"ffffffffffffffff\r\n", false),
        (b"00000000000000000\r\n", false),
    ] {
        assert_eq!(decode(wire, &[1]).is_ok(), expected, "{}", wire.escape_ascii());
    }
}
