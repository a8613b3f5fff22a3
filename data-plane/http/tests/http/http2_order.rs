//! HTTP/2 frames in an order, or of a form, that the protocol does not know; and the limits that answer excess.

use std::rc::Rc;
use std::time::Duration;

use culvert_http::{Protocol, ServerOptions};
use tokio::io::AsyncWriteExt;

use crate::http2_wire::{
    DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, RST_STREAM, begin, frame, frames, literals, request,
};
use crate::peers::{Echo, on_worker, read_quiet, serving};

fn code(frames: &[Frame], wanted: u8) -> Option<u32> {
    let (.., payload) = frames.iter().rfind(|(kind, ..)| *kind == wanted)?;
    let at = if wanted == GOAWAY { 4 } else { 0 };
    Some(u32::from_be_bytes(payload.get(at..at + 4)?.try_into().ok()?))
}

/// What a server answers to `bytes` after the preface, and whether it closed.
fn answer(bytes: &[u8]) -> (Vec<Frame>, bool) {
    on_worker(async {
        let mut client = serving(&Rc::new(Echo), ServerOptions::default());
        begin(&mut client).await;
        client.write_all(bytes).await.unwrap();
        let (answer, closed) = read_quiet(&mut client, Duration::from_secs(2)).await;
        (frames(&answer), closed)
    })
}

fn open(stream: u32, flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &request(&[]))
}

/// The whole connection is at fault: GOAWAY with the code, and closed.
#[test]
fn errors_of_the_connection_end_it() {
    const PROTOCOL: u32 = 1;
    const FRAME_SIZE: u32 = 6;
    const COMPRESSION: u32 = 9;
    let block = |block: &[u8]| frame(HEADERS, END_HEADERS | END_STREAM, 1, block);
    for (name, bytes, expected) in [
        ("HPACK index 0", block(&[0x80]), COMPRESSION),
        ("HPACK index that is not there", block(&[0xff, 0x7f]), COMPRESSION),
        ("HPACK table larger than agreed", block(&[0x3f, 0xff, 0xff, 0x03]), COMPRESSION),
        ("Huffman padding of more than 7 bits", block(&[0x00, 0x82, 0xff, 0xff, 0x01, b'x']), COMPRESSION),
        ("an even stream", open(2, END_STREAM), PROTOCOL),
        ("a stream below the last", [open(5, END_STREAM), open(3, END_STREAM)].concat(), PROTOCOL),
        ("HEADERS on stream 0", frame(HEADERS, END_HEADERS, 0, &request(&[])), PROTOCOL),
        ("DATA on a stream that never was", frame(DATA, 0, 1, b"x"), PROTOCOL),
        ("CONTINUATION without HEADERS", frame(9, END_HEADERS, 1, b""), PROTOCOL),
        ("another frame inside a header block", [frame(HEADERS, 0, 1, &request(&[])), open(3, 0)].concat(), PROTOCOL),
        ("PRIORITY of 4 bytes", frame(2, 0, 1, &[0; 4]), FRAME_SIZE),
        ("PING of 7 bytes", frame(6, 0, 0, &[0; 7]), FRAME_SIZE),
        ("SETTINGS of 5 bytes", frame(4, 0, 0, &[0; 5]), FRAME_SIZE),
        ("a frame of more than 16 KiB", frame(DATA, 0, 1, &vec![0; 16 * 1024 + 1]), FRAME_SIZE),
        ("a window of 0 for all", frame(8, 0, 0, &[0; 4]), PROTOCOL),
        ("PUSH_PROMISE", frame(5, END_HEADERS, 1, &[0, 0, 0, 2]), PROTOCOL),
    ] {
        let (frames, closed) = answer(&bytes);
        let seen = code(&frames, GOAWAY).or_else(|| code(&frames, RST_STREAM));
        // Where the protocol has a code of its own the library may say PROTOCOL_ERROR, which is as final.
        let expected = [expected, PROTOCOL];
        assert!(
            seen.is_some_and(|seen| expected.contains(&seen)),
            "{name}: expected a code of {expected:?}, saw {seen:?} in {frames:?}"
        );
        assert!(closed || code(&frames, RST_STREAM).is_some(), "{name}: neither closed nor reset");
    }
}

/// What is no HTTP/2 from its first byte on, where nothing else is spoken.
#[test]
fn a_client_without_the_preface_is_closed() {
    for bytes in [&b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nXX", &[0x16, 3, 1]] {
        on_worker(async {
            let options = ServerOptions { protocol: Protocol::Http2, ..ServerOptions::default() };
            let mut client = serving(&Rc::new(Echo), options);
            client.write_all(bytes).await.unwrap();
            let (answer, closed) = read_quiet(&mut client, Duration::from_secs(2)).await;
            assert!(closed && answer.is_empty(), "{}: closed {closed}, {answer:?}", bytes.escape_ascii());
        });
    }
}

/// One stream more than was agreed is refused, and the others go on.
#[test]
fn a_stream_too_many_is_refused() {
    let many: Vec<u8> = (0..101).flat_map(|at| open(at * 2 + 1, 0)).collect();
    let (frames, closed) = answer(&many);
    let refused: Vec<u32> =
        frames.iter().filter(|(kind, ..)| *kind == RST_STREAM).map(|(_, _, stream, _)| *stream).collect();
    assert_eq!((refused, code(&frames, RST_STREAM)), (vec![201], Some(7)), "REFUSED_STREAM for the last");
    assert!(!closed, "the connection goes on");
}

/// They go no further.
#[test]
fn trailers_have_no_pseudo_headers() {
    let trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, &literals(&[(":path", "/other")]));
    let (frames, _) = answer(&[open(1, 0), frame(DATA, 0, 1, b"x"), trailers].concat());
    let heads = frames.iter().filter(|(kind, ..)| *kind == HEADERS).count();
    assert!(heads <= 1, "the echo has trailers: {frames:?}");
    assert_eq!(code(&frames, RST_STREAM), Some(1), "PROTOCOL_ERROR for the stream: {frames:?}");
}

/// A client that says goodbye gets what it had asked for.
#[test]
fn a_goaway_of_the_client_lets_its_streams_finish() {
    let goodbye = frame(GOAWAY, 0, 0, &[0; 8]);
    let (frames, _) = answer(&[open(1, 0), goodbye, frame(DATA, END_STREAM, 1, b"hello")].concat());
    let body: Vec<u8> =
        frames.iter().filter(|(kind, ..)| *kind == DATA).flat_map(|(.., payload)| payload.clone()).collect();
    assert_eq!(String::from_utf8_lossy(&body), "hello", "{frames:?}");
}
