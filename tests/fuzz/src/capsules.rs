//! Datagrams in capsules: pieces make no difference, and what came out can be sent again.

use culvert_http::capsule::{CapsuleError, CapsuleReader, HEADER_ROOM, MAX_DATAGRAM, put_header};

type Read = (Vec<Vec<u8>>, Result<(), CapsuleError>);

fn read<'p>(pieces: impl Iterator<Item = &'p [u8]>) -> Read {
    let (mut reader, mut out) = (CapsuleReader::default(), Vec::new());
    for piece in pieces {
        if let Err(error) = reader.read(piece, |datagram| out.push(datagram.to_vec())) {
            return (out, Err(error));
        }
    }
    let end = reader.finish();
    (out, end)
}

fn sent(datagrams: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for datagram in datagrams {
        let mut room = [0; HEADER_ROOM];
        let start = put_header(&mut room, datagram.len());
        out.extend_from_slice(room.get(start..).unwrap_or_default());
        out.extend_from_slice(datagram);
    }
    out
}

pub(crate) fn streams(bytes: &[u8]) {
    let whole = read(std::iter::once(bytes));
    for size in [1, 2, 3, 7, 100] {
        assert!(read(bytes.chunks(size)) == whole, "the same in pieces of {size}");
    }
    let (datagrams, _) = whole;
    assert!(datagrams.iter().all(|datagram| datagram.len() <= MAX_DATAGRAM), "none is longer than UDP carries");
    let again = sent(&datagrams);
    assert!(read(std::iter::once(&*again)) == (datagrams, Ok(())), "what came out is sent and comes out again");
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    vec![
        sent(&[b"one".to_vec(), Vec::new(), vec![7; 100]]),
        [&[0x29, 3, 1, 2, 3, 0, 2, 7, 9], &*sent(&[b"behind others".to_vec()])].concat(),
        vec![0xc0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 4, 0, b'a', b'b', b'c'],
    ]
}
