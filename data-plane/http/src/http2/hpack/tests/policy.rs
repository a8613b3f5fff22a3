//! What the encoder puts into its table, and what it does not.

use super::*;

fn field(name: &str, value: &str) -> Field {
    (name.as_bytes().to_vec(), value.as_bytes().to_vec())
}

#[test]
fn a_head_that_repeats_takes_a_byte_for_each_field() {
    let head: Vec<Field> = (0..20).map(|n| field(&format!("x-name-{n}"), &format!("value {n}"))).collect();
    let mut encoder = Encoder::new();
    encode(&mut encoder, &head);
    for round in 0..3 {
        assert_eq!(encode(&mut encoder, &head).len(), head.len(), "round {round}");
    }
    let reversed: Vec<Field> = head.iter().rev().cloned().collect();
    assert_eq!(encode(&mut encoder, &reversed).len(), head.len(), "the other way round");
}

#[test]
fn secrets_are_never_indexed() {
    for (name, value, never) in [
        ("authorization", "Bearer abcdefghijklmnopqrstuvwxyz", true),
        ("proxy-authorization", "Basic abc", true),
        ("cookie", "pin=1234", true),
        ("cookie", "session=0123456789abcdef0123456789abcdef", false),
        ("x-a", "b", false),
    ] {
        let mut encoder = Encoder::new();
        for round in 0..3 {
            let block = encode(&mut encoder, &[field(name, value)]);
            // RFC 7541, 6.2.3.
            assert_eq!(block[0] & 0xf0 == 0x10, never, "{name}: {value}, round {round}: {block:?}");
        }
        assert_eq!(encoder.table_size() == 0, never, "{name}: {value}");
    }
}

#[test]
fn what_differs_each_time_does_not_push_out_what_repeats() {
    for name in [":path", "date", "x-request-id"] {
        let mut encoder = Encoder::new();
        let stays = field("x-stays", "as it is");
        encode(&mut encoder, &[stays.clone(), field(name, "value 0")]);
        let size = encoder.table_size();
        for round in 1..1000 {
            let block = encode(&mut encoder, &[stays.clone(), field(name, &format!("value {round}"))]);
            assert_eq!(block[0], 0xbf, "{name}: an index in round {round}");
        }
        assert_eq!(encoder.table_size(), size, "{name}");
        // What comes twice in a row has come to stay.
        for expected in [40, 40, 2] {
            let block = encode(&mut encoder, &[stays.clone(), field(name, "value 7")]);
            assert!(block.len() <= expected, "{name}: {} bytes, expected {expected}", block.len());
        }
    }
}

#[test]
fn a_peer_is_told_of_the_smallest_and_the_last_size() {
    for (sizes, expected) in [
        (&[][..], &[][..]),
        (&[4096], &[]),
        (&[65_536], &[]),
        (&[0], &[0x20]),
        (&[100], &[0x3f, 69]),
        (&[0, 4096], &[0x20, 0x3f, 0xe1, 0x1f]),
        (&[100, 0, 100], &[0x20, 0x3f, 69]),
        (&[100, 65_536], &[0x3f, 69, 0x3f, 0xe1, 0x1f]),
    ] {
        let mut encoder = Encoder::new();
        for &size in sizes {
            encoder.peer_allows(size);
        }
        assert_eq!(encode(&mut encoder, &[]), expected, "{sizes:?}");
        assert_eq!(encode(&mut encoder, &[]), [0; 0], "{sizes:?}, in the second block");
    }
}

#[test]
fn nothing_is_allocated_until_something_is_inserted() {
    let mut encoder = Encoder::new();
    let fields = [field(":method", "GET"), field(":status", "200"), field("authorization", "a")];
    let block = encode(&mut encoder, &fields);
    let mut decoder = Decoder::new(DEFAULT_TABLE);
    decode(&mut decoder, &block).unwrap();
    assert_eq!((encoder.table_size(), decoder.held()), (0, 0));
}
