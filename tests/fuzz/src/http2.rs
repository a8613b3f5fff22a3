//! HTTP/2 from clients: what comes out of it and goes on over HTTP/1 is one request, whatever its fields say.

use culvert_http::{Protocol, ServerOptions};

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
    let exchanges: [Vec<Vec<u8>>; 7] = [
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
