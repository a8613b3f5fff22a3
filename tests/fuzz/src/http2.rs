//! HTTP/2 from clients and from servers: what comes out of it and goes on over HTTP/1 is one message, whatever its fields
//! say.

use culvert_http::{Protocol, ServerOptions, Version};

use crate::http1::{answered, check_answer};
use crate::message::Kind;
use crate::relay::{check_forwarded, converse, on_worker};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The first byte says how the connection is cut into pieces; the rest is what follows the preface.
pub(crate) fn requests(data: &[u8]) {
    let Some((&how, frames)) = data.split_first() else { return };
    let options = ServerOptions {
        protocol: Protocol::Http2,
        extended_connect: how & 0x80 != 0,
        custom_methods: how & 0x40 != 0,
        ..ServerOptions::default()
    };
    on_worker(async {
        let bytes = [PREFACE, frames].concat();
        let (forward, _) = converse(&bytes, usize::from(how & 0x3f) * 16 + 1, options).await;
        check_forwarded(&forward).await;
    });
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short frame");
    [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// Fields as literals that no table keeps (RFC 7541, 6.2.2).
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("a short text")], text.as_bytes()].concat();
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let head = |method, more: &[(&str, &str)]| {
        let base = [(":method", method), (":scheme", "http"), (":authority", "h"), (":path", "/a?b")];
        block(&[&base[..], more].concat())
    };
    let settings = frame(4, 0, 0, &[]);
    let coded = b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
    let exchanges: [Vec<Vec<u8>>; 8] = [
        // RFC 7541, C.4, and again out of the table.
        vec![frame(1, 5, 1, coded), frame(1, 5, 3, &[0x20, 0x3f, 0x21, 0x82, 0x86, 0x84, 0x41, 1, b'h', 0xbe])],
        vec![frame(1, 5, 1, &head("GET", &[("x-a", "b"), ("cookie", "a=b"), ("cookie", "c=d")]))],
        vec![frame(1, 4, 1, &head("POST", &[])), frame(0, 1, 1, b"hello")],
        vec![
            frame(1, 4, 1, &head("POST", &[("content-length", "5"), ("te", "trailers")])),
            frame(0, 0, 1, b"hello"),
            frame(1, 5, 1, &block(&[("x-t", "1")])),
        ],
        vec![
            frame(1, 5, 1, &head("GET", &[("x", "a\r\nhost: b")])),
            frame(1, 5, 3, &head("GET", &[("transfer-encoding", "chunked")])),
        ],
        vec![frame(1, 4, 1, &head("CONNECT", &[(":protocol", "websocket")])), frame(0, 0, 1, b"bytes")],
        vec![frame(1, 1, 1, &head("GET", &[])), frame(9, 4, 1, &block(&[("x-b", "c")])), frame(3, 0, 1, &[0, 0, 0, 8])],
        vec![frame(6, 0, 0, b"12345678"), frame(8, 0, 0, &[0, 0, 1, 0]), frame(2, 0, 1, &[0, 0, 0, 0, 7])],
    ];
    exchanges.iter().map(|frames| [&[0xbf][..], &settings, &frames.concat()].concat()).collect()
}

/// A response: the first byte says what was asked and how it is cut into pieces, the rest is what an upstream sends.
pub(crate) fn responses(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else { return };
    let (method, kind) = if how >> 6 == 2 { ("HEAD", Kind::Bodyless) } else { ("GET", Kind::Response) };
    let request = format!("{method} / HTTP/1.1\r\nhost: h\r\n\r\n");
    on_worker(async {
        let (whole, answer) = answered(Version::Http2, bytes, bytes.len(), &request).await;
        check_answer(&whole, &answer, kind);
        let (cut, answer) = answered(Version::Http2, bytes, usize::from(how & 0x3f) + 1, &request).await;
        check_answer(&cut, &answer, kind);
        assert!(!(whole.whole && cut.whole) || cut == whole, "in pieces {cut:?}, and in one {whole:?}");
    });
}

pub(crate) fn response_seeds() -> Vec<Vec<u8>> {
    let ok = block(&[(":status", "200"), ("x-a", "b")]);
    let settings = frame(4, 0, 0, &[]);
    // Fields by number, in Huffman's code, into the table and out of it (RFC 7541, C.6).
    let coded = b"\x88\x58\x85\xae\xc3\x77\x1a\x4b\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x05value\xbf\xbe";
    let exchanges: [(u8, Vec<Vec<u8>>); 9] = [
        (0x02, vec![frame(1, 4, 1, &ok), frame(0, 1, 1, b"hello")]),
        (0x05, vec![frame(1, 5, 1, coded)]),
        (0x00, vec![frame(1, 4, 1, &ok), frame(0, 0, 1, b"hello"), frame(1, 5, 1, &block(&[("x-t", "1")]))]),
        (
            0x07,
            vec![
                frame(1, 4, 1, &block(&[(":status", "100")])),
                frame(1, 4, 1, &block(&[(":status", "103"), ("link", "a")])),
                frame(1, 5, 1, &block(&[(":status", "404"), ("content-length", "0")])),
            ],
        ),
        (0x83, vec![frame(1, 5, 1, &block(&[(":status", "200"), ("content-length", "1000")]))]),
        (0x01, vec![frame(1, 0, 1, &ok), frame(9, 4, 1, coded), frame(0, 9, 1, b"\x02hello\0\0")]),
        (0x3f, vec![frame(1, 4, 1, &ok), frame(0, 0, 1, b"some"), frame(3, 0, 1, &[0, 0, 0, 8])]),
        (0x04, vec![frame(1, 4, 1, &ok), frame(7, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]), frame(0, 1, 1, b"last")]),
        (
            0x01,
            vec![frame(8, 0, 0, &[0, 0, 1, 0]), frame(6, 0, 0, b"12345678"), frame(1, 5, 1, &[0x3f, 0xe1, 0x1f, 0x88])],
        ),
    ];
    exchanges.iter().map(|(how, frames)| [&[*how][..], &settings, &frames.concat()].concat()).collect()
}
