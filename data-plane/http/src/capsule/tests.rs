use proptest::prelude::*;

use super::*;

fn varint_of(value: u64, out: &mut Vec<u8>) {
    match value {
        0..=0x3f => out.push(value as u8),
        0x40..=0x3fff => out.extend((value as u16 | 0x4000).to_be_bytes()),
        0x4000..=0x3fff_ffff => out.extend((value as u32 | 0x8000_0000).to_be_bytes()),
        _ => out.extend((value | 0xc000_0000_0000_0000).to_be_bytes()),
    }
}

fn capsule(kind: u64, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint_of(kind, &mut out);
    varint_of(value.len() as u64, &mut out);
    out.extend(value);
    out
}

fn datagram(context: u64, payload: &[u8]) -> Vec<u8> {
    let mut value = Vec::new();
    varint_of(context, &mut value);
    value.extend(payload);
    capsule(0, &value)
}

/// A payload as it is sent.
fn sent(payload: &[u8]) -> Vec<u8> {
    let mut room = [0xff; HEADER_ROOM];
    let start = put_header(&mut room, payload.len());
    [&room[start..], payload].concat()
}

/// What comes out of `pieces`, and how it ended.
fn read<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> (Vec<Vec<u8>>, Result<(), CapsuleError>) {
    let mut reader = CapsuleReader::default();
    let mut out = Vec::new();
    for piece in pieces {
        if let Err(error) = reader.read(piece, |payload| out.push(payload.to_vec())) {
            return (out, Err(error));
        }
    }
    let end = reader.finish();
    (out, end)
}

#[test]
fn what_is_sent_is_what_the_rfc_says() {
    for length in [0, 1, 61, 62, 63, 64, 16_381, 16_382, 16_383, 16_384, 65_507, MAX_DATAGRAM] {
        let payload = vec![7; length];
        assert_eq!(sent(&payload), datagram(0, &payload), "a payload of {length} bytes");
        let (out, end) = read([sent(&payload).as_slice()]);
        assert_eq!((out.as_slice(), end), ([payload].as_slice(), Ok(())), "a payload of {length} bytes comes back");
    }
}

#[test]
fn datagrams_of_other_contexts_are_dropped_and_counted_and_nothing_else_is() {
    let mut reader = CapsuleReader::default();
    let capsules = [datagram(2, b"a"), datagram(0, b"b"), capsule(41, b"c"), datagram((1 << 62) - 1, b"")].concat();
    let mut out = Vec::new();
    for byte in capsules.chunks(1) {
        reader.read(byte, |payload| out.push(payload.to_vec())).expect("it is well formed");
    }
    assert_eq!(out, [b"b".to_vec()], "what comes out");
    assert_eq!((reader.take_foreign(), reader.take_foreign()), (2, 0), "datagrams of other contexts, counted once");
}

/// Datagrams, capsules of other types and of other contexts, and numbers that take more bytes than they need.
#[test]
fn every_split_gives_the_same_datagrams() {
    let mut stream = Vec::new();
    stream.extend(sent(b"first"));
    stream.extend(capsule(0x2843_73ff, &[1; 300]));
    stream.extend(datagram(2, b"of another context"));
    stream.extend(sent(b""));
    stream.extend(capsule(41, b""));
    // 0 and 4 in eight bytes each.
    stream.extend([0xc0, 0, 0, 0, 0, 0, 0, 0, 0xc0, 0, 0, 0, 0, 0, 0, 4, 0, b'a', b'b', b'c']);
    stream.extend(sent(&[9; 100]));
    let expected: Vec<Vec<u8>> = vec![b"first".to_vec(), Vec::new(), b"abc".to_vec(), vec![9; 100]];
    for at in 0..=stream.len() {
        let (head, tail) = stream.split_at(at);
        assert_eq!(read([head, tail]), (expected.clone(), Ok(())), "split at {at}");
    }
    assert_eq!(read(stream.chunks(1)), (expected, Ok(())), "byte by byte");
}

#[test]
fn what_is_malformed_ends_the_stream() {
    let long = |length: u64| {
        let mut bytes = vec![0];
        varint_of(length, &mut bytes);
        bytes
    };
    let mut over = long(MAX_DATAGRAM as u64 + 2);
    over.push(0);
    over.extend(vec![1; MAX_DATAGRAM + 1]);
    let cases: [(&str, Vec<u8>, CapsuleError); 6] = [
        ("a length beyond every datagram", long(MAX_VALUE + 1), CapsuleError::TooLong(MAX_VALUE + 1)),
        ("the greatest length", long((1 << 62) - 1), CapsuleError::TooLong((1 << 62) - 1)),
        ("one byte too many", over, CapsuleError::TooLong(MAX_DATAGRAM as u64 + 1)),
        ("no context", vec![0, 0], CapsuleError::NoContext),
        ("half a context", vec![0, 1, 0x40], CapsuleError::NoContext),
        ("an end within a capsule", vec![0, 5, 0, 1], CapsuleError::Truncated),
    ];
    for (what, bytes, expected) in cases {
        let (out, end) = read([bytes.as_slice()]);
        assert_eq!((out.len(), end), (0, Err(expected)), "{what}, at once");
        assert_eq!(read(bytes.chunks(1)), (Vec::new(), Err(expected)), "{what}, byte by byte");
    }
}

#[test]
fn what_is_skipped_is_not_held() {
    let mut reader = CapsuleReader::default();
    let mut head = Vec::new();
    varint_of(1234, &mut head);
    varint_of(1 << 40, &mut head);
    let never = |_: &[u8]| panic!("no datagram is in there");
    reader.read(&head, never).expect("any length of another type is skipped");
    for _ in 0..100 {
        reader.read(&[0; 65_536], never).expect("what is skipped is not looked at");
    }
    assert_eq!(reader.held.capacity(), 0, "nothing of it is kept");
    assert_eq!(reader.finish(), Err(CapsuleError::Truncated), "more of it is to come");
}

#[test]
fn memory_is_given_back_after_a_large_datagram_in_pieces() {
    let stream = sent(&vec![3; MAX_DATAGRAM]);
    let mut reader = CapsuleReader::default();
    let mut count = 0;
    for piece in stream.chunks(1000) {
        reader.read(piece, |payload| count += payload.len()).expect("it is well formed");
    }
    assert_eq!(count, MAX_DATAGRAM, "bytes that came out");
    assert!(reader.held.capacity() <= KEPT, "{} bytes are kept", reader.held.capacity());
}

proptest! {
    #[test]
    fn any_datagrams_in_any_pieces_come_out_as_they_went_in(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
        sizes in prop::collection::vec(1_usize..700, 1..50),
    ) {
        let stream: Vec<u8> = payloads.iter().flat_map(|payload| sent(payload)).collect();
        let (mut rest, mut pieces) = (stream.as_slice(), Vec::new());
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, behind) = rest.split_at((*size).min(rest.len()));
            pieces.push(piece);
            rest = behind;
        }
        prop_assert_eq!(read(pieces), (payloads, Ok(())));
    }

    #[test]
    fn any_bytes_in_any_two_pieces_read_as_in_one(
        bytes in prop::collection::vec(prop_oneof![0_u8..70, any::<u8>()], 0..400),
        at in 0_usize..400,
    ) {
        let at = at.min(bytes.len());
        let (head, tail) = bytes.split_at(at);
        prop_assert_eq!(read([head, tail]), read([bytes.as_slice()]));
    }
}
