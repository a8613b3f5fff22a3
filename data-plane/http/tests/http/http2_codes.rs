//! What a client may not send, and the error that answers it (RFC 9113, 4 to 6); and what looks odd and is allowed.

use std::rc::Rc;
use std::time::Duration;

use culvert_http::ServerOptions;
use tokio::io::AsyncWriteExt;

use crate::http2_wire::{
    DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, frame, frames, literals,
    request,
};
use crate::peers::{Echo, on_worker, read_quiet, serving};

pub(crate) const PRIORITY: u8 = 2;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const PADDED: u8 = 8;
pub(crate) const WITH_PRIORITY: u8 = 0x20;

pub(crate) const PROTOCOL: u32 = 1;
pub(crate) const FLOW_CONTROL: u32 = 3;
pub(crate) const STREAM_CLOSED: u32 = 5;
pub(crate) const FRAME_SIZE: u32 = 6;
pub(crate) const COMPRESSION: u32 = 9;

/// Where an error is to be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Error {
    /// GOAWAY, and the end.
    Connection(u32),
    /// RST_STREAM of stream 1, and the connection goes on. Or, where RFC 9113, 5.4 leaves the choice, GOAWAY.
    Stream(u32),
}

/// The code of a frame of that kind: of the first reset of stream 1, of the last GOAWAY.
pub(crate) fn code(frames: &[Frame], kind: u8) -> Option<u32> {
    let of = |frame: &&Frame| frame.0 == kind && (kind == GOAWAY || frame.2 == 1);
    let frame = if kind == GOAWAY { frames.iter().rfind(of) } else { frames.iter().find(of) };
    let at = if kind == GOAWAY { 4 } else { 0 };
    Some(u32::from_be_bytes(frame?.3.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn judge(name: &str, frames: &[Frame], closed: bool, expected: Error) {
    let (goaway, reset) = (code(frames, GOAWAY), code(frames, RST_STREAM));
    match expected {
        Error::Connection(code) => {
            assert_eq!((goaway, closed), (Some(code), true), "{name}: GOAWAY and end; {frames:?}");
        }
        Error::Stream(code) if closed => assert_eq!(goaway, Some(code), "{name}: GOAWAY; {frames:?}"),
        Error::Stream(code) => assert_eq!((reset, goaway), (Some(code), None), "{name}: RST_STREAM; {frames:?}"),
    }
}

/// What a server answers to `bytes` behind the preface, and whether it closed.
fn answer(bytes: &[u8]) -> (Vec<Frame>, bool) {
    on_worker(async {
        let mut client = serving(&Rc::new(Echo), ServerOptions::default());
        client.write_all(PREFACE).await.unwrap();
        client.write_all(bytes).await.unwrap();
        let (answer, closed) = read_quiet(&mut client, Duration::from_secs(2)).await;
        (frames(&answer), closed)
    })
}

/// The same behind a first SETTINGS.
fn reply(bytes: &[u8]) -> (Vec<Frame>, bool) {
    answer(&[&frame(SETTINGS, 0, 0, b""), bytes].concat())
}

fn open(flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, 1, &request(&[]))
}

pub(crate) fn setting(which: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&which.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

pub(crate) fn window(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

fn check(rows: &[(&str, Vec<u8>, Error)]) {
    for (name, bytes, expected) in rows {
        let (frames, closed) = reply(bytes);
        judge(name, &frames, closed, *expected);
    }
}

/// DATA, HEADERS, PRIORITY and RST_STREAM.
#[test]
fn frames_of_streams_that_may_not_be() {
    use Error::{Connection, Stream};
    let head = |flags, payload: &[u8]| frame(HEADERS, flags, 1, payload);
    let whole = END_HEADERS | END_STREAM;
    let cancel = frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes());
    check(&[
        ("6.1 DATA on stream 0", frame(DATA, 0, 0, b"x"), Connection(PROTOCOL)),
        ("6.1 DATA on an idle stream", frame(DATA, 0, 1, b"x"), Connection(PROTOCOL)),
        (
            "6.1 padding as long as the frame",
            [open(0), frame(DATA, PADDED, 1, &[3, 0, 0])].concat(),
            Connection(PROTOCOL),
        ),
        (
            "6.1 padding longer than the frame",
            [open(0), frame(DATA, PADDED, 1, &[200, 0])].concat(),
            Connection(PROTOCOL),
        ),
        ("5.1 DATA behind the end", [open(END_STREAM), frame(DATA, 0, 1, b"x")].concat(), Stream(STREAM_CLOSED)),
        (
            "5.1 HEADERS behind the end",
            [open(0), frame(DATA, END_STREAM, 1, b""), open(END_STREAM)].concat(),
            Stream(STREAM_CLOSED),
        ),
        ("5.1 DATA behind a reset", [open(0), cancel.clone(), frame(DATA, 0, 1, b"x")].concat(), Stream(STREAM_CLOSED)),
        ("6.2 HEADERS on stream 0", frame(HEADERS, whole, 0, &request(&[])), Connection(PROTOCOL)),
        ("5.1.1 HEADERS on an even stream", frame(HEADERS, whole, 2, &request(&[])), Connection(PROTOCOL)),
        (
            "5.1.1 a stream below the last",
            [frame(HEADERS, whole, 5, &request(&[])), frame(HEADERS, whole, 3, &request(&[]))].concat(),
            Connection(PROTOCOL),
        ),
        (
            "6.2 padding longer than the frame",
            head(whole | PADDED, &[&[255], &request(&[])[..]].concat()),
            Connection(PROTOCOL),
        ),
        ("6.3 PRIORITY on stream 0", frame(PRIORITY, 0, 0, &[0; 5]), Connection(PROTOCOL)),
        ("6.3 PRIORITY of 4 bytes", [open(0), frame(PRIORITY, 0, 1, &[0; 4])].concat(), Stream(FRAME_SIZE)),
        ("6.4 RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, &[0; 4]), Connection(PROTOCOL)),
        ("6.4 RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, &[0; 4]), Connection(PROTOCOL)),
        ("6.4 RST_STREAM of 5 bytes", [open(0), frame(RST_STREAM, 0, 1, &[0; 5])].concat(), Connection(FRAME_SIZE)),
    ]);
}

/// SETTINGS, PUSH_PROMISE, PING, GOAWAY and WINDOW_UPDATE.
#[test]
fn control_frames_that_may_not_be() {
    use Error::{Connection, Stream};
    let most = 0x7fff_ffff;
    check(&[
        ("6.5 SETTINGS on a stream", frame(SETTINGS, 0, 1, b""), Connection(PROTOCOL)),
        ("6.5 an ACK that says something", frame(SETTINGS, 1, 0, &[0; 6]), Connection(FRAME_SIZE)),
        ("6.5 SETTINGS of 5 bytes", frame(SETTINGS, 0, 0, &[0; 5]), Connection(FRAME_SIZE)),
        ("6.5.2 ENABLE_PUSH of 2", setting(2, 2), Connection(PROTOCOL)),
        ("6.5.2 INITIAL_WINDOW_SIZE of 2^31", setting(4, 1 << 31), Connection(FLOW_CONTROL)),
        ("6.5.2 MAX_FRAME_SIZE of 16383", setting(5, 16_383), Connection(PROTOCOL)),
        ("6.5.2 MAX_FRAME_SIZE of 2^24", setting(5, 1 << 24), Connection(PROTOCOL)),
        (
            "6.6 PUSH_PROMISE",
            [open(0), frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])].concat(),
            Connection(PROTOCOL),
        ),
        ("6.7 PING on a stream", frame(PING, 0, 1, &[0; 8]), Connection(PROTOCOL)),
        ("6.7 PING of 7 bytes", frame(PING, 0, 0, &[0; 7]), Connection(FRAME_SIZE)),
        ("6.8 GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), Connection(PROTOCOL)),
        ("6.8 GOAWAY of 7 bytes", frame(GOAWAY, 0, 0, &[0; 7]), Connection(FRAME_SIZE)),
        ("6.9 a window of 0 for all", window(0, 0), Connection(PROTOCOL)),
        ("6.9 a window of 0 for a stream", [open(0), window(1, 0)].concat(), Stream(PROTOCOL)),
        ("6.9 WINDOW_UPDATE on an idle stream", window(1, 1), Connection(PROTOCOL)),
        ("6.9 WINDOW_UPDATE of 3 bytes", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), Connection(FRAME_SIZE)),
        ("6.9.1 a window for all beyond 2^31-1", window(0, most), Connection(FLOW_CONTROL)),
        ("6.9.1 a stream's window beyond 2^31-1", [open(0), window(1, most)].concat(), Stream(FLOW_CONTROL)),
        (
            "6.9.2 windows beyond 2^31-1 by SETTINGS",
            [open(0), window(1, most - 65_535), setting(4, 65_536)].concat(),
            Connection(FLOW_CONTROL),
        ),
    ]);
}

/// Sizes, blocks and what they are made of.
#[test]
fn header_blocks_that_may_not_be() {
    use Error::{Connection, Stream};
    let head = |flags, payload: &[u8]| frame(HEADERS, flags, 1, payload);
    let whole = END_HEADERS | END_STREAM;
    let block = |block: &[u8]| head(whole, block);
    let cancel = frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes());
    check(&[
        ("6.10 CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, b""), Connection(PROTOCOL)),
        (
            "6.10 CONTINUATION behind END_HEADERS",
            [open(0), frame(CONTINUATION, END_HEADERS, 1, b"")].concat(),
            Connection(PROTOCOL),
        ),
        (
            "6.10 CONTINUATION of another stream",
            [head(0, &request(&[])), frame(CONTINUATION, END_HEADERS, 3, b"")].concat(),
            Connection(PROTOCOL),
        ),
        (
            "6.10 PING within a header block",
            [head(0, &request(&[])), frame(PING, 0, 0, &[0; 8])].concat(),
            Connection(PROTOCOL),
        ),
        (
            "6.10 an unknown frame within a header block",
            [head(0, &request(&[])), frame(0x42, 0, 0, b"")].concat(),
            Connection(PROTOCOL),
        ),
        (
            "4.2 a frame of more than 16 KiB",
            [open(0), frame(DATA, 0, 1, &vec![0; 16_385])].concat(),
            Connection(FRAME_SIZE),
        ),
        ("4.2 HEADERS of more than 16 KiB", frame(HEADERS, whole, 1, &vec![0; 16_385]), Connection(FRAME_SIZE)),
        ("4.3 a block that cannot be decoded", block(&[0x80]), Connection(COMPRESSION)),
        ("4.3 a block that ends early", block(&[0x82, 0x40]), Connection(COMPRESSION)),
        ("4.3 trailers that cannot be decoded", [open(0), block(&[0xff])].concat(), Connection(COMPRESSION)),
        (
            "4.3 a block for a stream that was reset, that cannot be decoded",
            [open(0), cancel, block(&[0x80])].concat(),
            Connection(COMPRESSION),
        ),
        (
            "8.1 trailers that do not end their stream",
            [open(0), head(END_HEADERS, &literals(&[("x-t", "1")]))].concat(),
            Stream(PROTOCOL),
        ),
    ]);
}

/// RFC 9113, 3.4.
#[test]
fn settings_come_first() {
    for (name, bytes) in [
        ("PING", frame(PING, 0, 0, &[0; 8])),
        ("HEADERS", open(END_STREAM)),
        ("an answer to our SETTINGS", frame(SETTINGS, 1, 0, b"")),
    ] {
        let (frames, closed) = answer(&bytes);
        judge(name, &frames, closed, Error::Connection(PROTOCOL));
    }
}

/// More DATA than was allowed: on a stream, and on all together.
#[test]
fn windows_are_kept_to() {
    /// Reads no body, and answers nothing.
    struct Deaf;
    impl culvert_http::Handler for Deaf {
        async fn handle(self: &Rc<Self>, mut exchange: culvert_http::Exchange<'_>) {
            exchange.response.flush().await.ok();
            tokio::time::sleep(Duration::from_secs(60)).await;
            exchange.response.reset();
        }
        fn refused(&self, _status: u16, _detail: &'static str) {}
    }
    for (name, stream_window, window, streams, expected) in [
        ("a stream's", 65_535, 1 << 20, 1, Error::Stream(FLOW_CONTROL)),
        ("all streams'", 1 << 20, 65_535, 10, Error::Connection(FLOW_CONTROL)),
    ] {
        on_worker(async {
            let options = ServerOptions {
                initial_stream_window: stream_window,
                initial_connection_window: window,
                ..ServerOptions::default()
            };
            let mut client = serving(&Rc::new(Deaf), options);
            client.write_all(PREFACE).await.unwrap();
            client.write_all(&[frame(SETTINGS, 0, 0, b""), frame(SETTINGS, 1, 0, b"")].concat()).await.unwrap();
            let ids = (0..streams).map(|at| at * 2 + 1);
            let heads: Vec<u8> = ids.clone().flat_map(|id| frame(HEADERS, END_HEADERS, id, &request(&[]))).collect();
            client.write_all(&heads).await.unwrap();
            // 65,536 bytes: one too many.
            for id in ids.cycle().take(4) {
                client.write_all(&frame(DATA, 0, id, &[0; 16_384])).await.unwrap();
            }
            let (answer, closed) = read_quiet(&mut client, Duration::from_secs(2)).await;
            judge(name, &frames(&answer), closed, expected);
        });
    }
}

/// What the specification tells to ignore, and a request behind it that is served.
#[test]
fn what_is_odd_but_allowed_is_taken() {
    let cancel = frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes());
    let behind = |bytes: &[&[u8]]| bytes.concat();
    let request_of = |stream: u32| frame(HEADERS, END_HEADERS | END_STREAM, stream, &request(&[]));
    for (name, bytes) in [
        ("an unknown frame", frame(0x42, 0xff, 0, &[1; 100])),
        ("an unknown frame on a stream", frame(0x42, 0xff, 77, b"")),
        ("an unknown setting", setting(0x4242, 7)),
        ("a setting twice", behind(&[&setting(4, 1), &setting(4, 65_535)])),
        ("unknown flags", frame(PING, 0xfe, 0, b"12345678")),
        ("PRIORITY on an idle stream", frame(PRIORITY, 0, 33, &[0, 0, 0, 0, 1])),
        ("a reserved bit", frame(WINDOW_UPDATE, 0, 1 << 31, &(1_u32 << 31 | 1).to_be_bytes())),
        ("PRIORITY on a closed stream", behind(&[&request_of(1), &frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])])),
        ("WINDOW_UPDATE on a closed stream", behind(&[&request_of(1), &window(1, 1)])),
        ("RST_STREAM on a closed stream", behind(&[&request_of(1), &cancel])),
        ("RST_STREAM twice", behind(&[&open(0), &cancel, &cancel])),
        ("an ACK of nothing", frame(SETTINGS, 1, 0, b"")),
        ("GOAWAY with words", frame(GOAWAY, 0, 0, &[&[0; 8][..], b"good bye"].concat())),
    ] {
        let (frames, closed) = reply(&[bytes, request_of(101)].concat());
        assert!(!closed || name.starts_with("GOAWAY"), "{name}: closed; {frames:?}");
        let served = frames.iter().any(|(kind, _, stream, _)| (*kind, *stream) == (HEADERS, 101));
        assert!(served, "{name}: no answer behind it; {frames:?}");
    }
}

/// Padding and priorities around a head and its pieces mean nothing, wherever it is cut.
#[test]
fn a_head_is_the_same_however_it_is_framed() {
    let block = request(&[("x-a", "b")]);
    for cut in 0..=block.len() {
        for (padding, priority) in [(0, false), (0, true), (7, false), (255, true)] {
            let (first, rest) = block.split_at(cut);
            let mut payload = Vec::new();
            let mut flags = END_STREAM;
            if padding > 0 {
                flags |= PADDED;
                payload.push(padding);
            }
            if priority {
                flags |= WITH_PRIORITY;
                payload.extend([0x80, 0, 0, 7, 200]);
            }
            payload.extend(first);
            payload.resize(payload.len() + usize::from(padding), 0);
            let (middle, last) = rest.split_at(rest.len() / 2);
            let bytes = [
                frame(HEADERS, flags, 1, &payload),
                frame(CONTINUATION, 0, 1, middle),
                frame(CONTINUATION, END_HEADERS, 1, last),
            ];
            let (frames, closed) = reply(&bytes.concat());
            let served = frames.iter().any(|(kind, _, stream, _)| (*kind, *stream) == (HEADERS, 1));
            assert!(served && !closed, "cut at {cut}, padding {padding}, priority {priority}: {frames:?}");
        }
    }
}

/// Padding counts against the windows, and is given back.
#[test]
fn padding_is_no_part_of_a_body() {
    let mut bytes = open(0);
    for piece in 0..1000_u32 {
        let text = piece.to_be_bytes();
        bytes.extend(frame(DATA, PADDED, 1, &[&[255], &text[..], &[0; 255]].concat()));
    }
    bytes.extend(frame(DATA, END_STREAM | PADDED, 1, &[0]));
    on_worker(async {
        let options = ServerOptions {
            initial_connection_window: 300_000,
            initial_stream_window: 300_000,
            ..ServerOptions::default()
        };
        let mut client = serving(&Rc::new(Echo), options);
        client.write_all(PREFACE).await.unwrap();
        client.write_all(&[frame(SETTINGS, 0, 0, b""), frame(SETTINGS, 1, 0, b"")].concat()).await.unwrap();
        for piece in bytes.chunks(10_000) {
            client.write_all(piece).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (answer, closed) = read_quiet(&mut client, Duration::from_secs(2)).await;
        let frames = frames(&answer);
        let body: Vec<u8> = frames.iter().filter(|frame| frame.0 == DATA).flat_map(|frame| frame.3.clone()).collect();
        let expected: Vec<u8> = (0..1000_u32).flat_map(u32::to_be_bytes).collect();
        assert!(!closed && body == expected, "{} bytes of {}, closed {closed}", body.len(), expected.len());
    });
}
