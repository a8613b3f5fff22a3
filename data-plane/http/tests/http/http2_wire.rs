//! HTTP/2 by hand: what a well-behaved library would not send.

use std::rc::Rc;
use std::time::Duration;

use culvert_http::ServerOptions;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use crate::peers::{Echo, Relay, on_worker, read_quiet, scripted, serving};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const HEADERS: u8 = 1;
pub(crate) const DATA: u8 = 0;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
const PROTOCOL_ERROR: u32 = 1;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as HPACK literals without indexing (RFC 7541, 6.2.2).
pub(crate) fn literals(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "one byte of length");
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

pub(crate) fn request(extra: &[(&str, &str)]) -> Vec<u8> {
    let mut fields = vec![(":method", "GET"), (":scheme", "http"), (":authority", "h"), (":path", "/")];
    fields.extend_from_slice(extra);
    literals(&fields)
}

/// A frame that came: kind, flags, stream, payload.
pub(crate) type Frame = (u8, u8, u32, Vec<u8>);

pub(crate) fn frames(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, flags, s1, s2, s3, s4, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let (payload, after) = rest.split_at(length);
        frames.push((*kind, *flags, u32::from_be_bytes([*s1, *s2, *s3, *s4]), payload.to_vec()));
        bytes = after;
    }
    frames
}

pub(crate) async fn begin(client: &mut DuplexStream) {
    client.write_all(PREFACE).await.unwrap();
    client.write_all(&frame(SETTINGS, 0, 0, b"")).await.unwrap();
}

/// The error code of stream 1's reset.
fn reset(frames: &[Frame]) -> Option<u32> {
    let (.., payload) = frames.iter().find(|(kind, _, stream, _)| *kind == RST_STREAM && *stream == 1)?;
    Some(u32::from_be_bytes(payload.as_slice().try_into().unwrap()))
}

fn websocket(protocol: &str) -> Vec<u8> {
    let rest = [(":scheme", "http"), (":authority", "h"), (":path", "/")];
    literals(&[&[(":method", "CONNECT"), (":protocol", protocol)][..], &rest].concat())
}

/// Malformed requests never get as far as the upstream (RFC 9113, 8.1.1, 8.2, 8.3).
#[test]
fn malformed_requests_are_reset() {
    let large = "x".repeat(100);
    let vectors: Vec<(&str, Vec<u8>)> = vec![
        ("upper-case name", request(&[("X-A", "b")])),
        ("connection", request(&[("connection", "close")])),
        ("transfer-encoding", request(&[("transfer-encoding", "chunked")])),
        ("upgrade", request(&[("upgrade", "websocket")])),
        ("keep-alive", request(&[("keep-alive", "5")])),
        ("proxy-connection", request(&[("proxy-connection", "x")])),
        ("te: gzip", request(&[("te", "gzip")])),
        ("CR LF in a value", request(&[("x-a", "b\r\nc: d")])),
        ("LF in a value", request(&[("x-a", "b\nc")])),
        ("NUL in a value", request(&[("x-a", "b\0c")])),
        ("colon in a name", request(&[("a:b", "c")])),
        ("space in a name", request(&[("a b", "c")])),
        ("unknown pseudo-header", request(&[(":foo", "x")])),
        ("pseudo-header twice", request(&[(":path", "/x")])),
        (
            "pseudo-header last",
            literals(&[(":method", "GET"), (":scheme", "http"), ("x", &large), (":path", "/"), (":authority", "h")]),
        ),
        ("no path", literals(&[(":method", "GET"), (":scheme", "http"), (":authority", "h")])),
        ("empty path", literals(&[(":method", "GET"), (":scheme", "http"), (":authority", "h"), (":path", "")])),
        ("no method", literals(&[(":scheme", "http"), (":authority", "h"), (":path", "/")])),
        ("no scheme", literals(&[(":method", "GET"), (":authority", "h"), (":path", "/")])),
        ("status in a request", request(&[(":status", "200")])),
        ("host differs", request(&[("host", "other")])),
        ("protocol without extended CONNECT", websocket("websocket")),
        ("protocol with a NUL", websocket("websocket\0")),
        ("protocol of two", websocket("a, b")),
        ("no protocol", websocket("")),
        ("space before a value", request(&[("x-a", " b")])),
        ("space behind a value", request(&[("x-a", "b ")])),
        ("tab before a value", request(&[("x-a", "\tb")])),
        (
            "two hosts",
            literals(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "h"), ("host", "other")]),
        ),
        ("two hosts, one as :authority", request(&[("host", "h"), ("host", "other")])),
        ("two lengths", request(&[("content-length", "1"), ("content-length", "2")])),
    ];
    for (name, block) in vectors {
        on_worker(async {
            let (near, far) = duplex(1 << 16);
            let upstream = scripted(far, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
            let relay = Relay::http1(vec![near]);
            let extended_connect = name != "protocol without extended CONNECT";
            let mut client = serving(&relay, ServerOptions { extended_connect, ..ServerOptions::default() });
            begin(&mut client).await;
            client.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).await.unwrap();
            let (answer, _) = read_quiet(&mut client, Duration::from_millis(100)).await;
            let frames = frames(&answer);
            let cut = reset(&frames) == Some(PROTOCOL_ERROR) || frames.iter().any(|(kind, ..)| *kind == GOAWAY);
            assert!(cut, "{name}: neither reset nor closed: {frames:?}");
            drop(client);
            drop(relay);
            assert!(upstream.await.unwrap().is_empty(), "{name}: went upstream");
        });
    }
}

#[test]
fn requests_that_cannot_be_routed_are_answered() {
    let many: Vec<(String, String)> = (0..101).map(|at| (format!("x-{at}"), "y".into())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    for (name, block, status) in [
        ("no authority", literals(&[(":method", "GET"), (":scheme", "http"), (":path", "/")]), "400"),
        (
            "unknown method",
            literals(&[(":method", "get"), (":scheme", "http"), (":authority", "h"), (":path", "/")]),
            "400",
        ),
        ("many fields", request(&many), "431"),
        ("Expect", request(&[("expect", "foo")]), "417"),
    ] {
        on_worker(async {
            let relay = Relay::http1(Vec::new());
            let mut client = serving(&relay, ServerOptions::default());
            begin(&mut client).await;
            client.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).await.unwrap();
            let (answer, closed) = read_quiet(&mut client, Duration::from_millis(100)).await;
            let frames = frames(&answer);
            assert!(frames.iter().any(|(kind, _, stream, _)| *kind == HEADERS && *stream == 1), "{name}: {frames:?}");
            assert!(!closed, "{name}: one stream's fault closed the connection");
            assert_eq!(relay.refused.borrow()[0].to_string(), status, "{name}");
        });
    }
}

/// RFC 9113, 8.1.1: more or less DATA than `content-length` says; the upstream never sees a whole request.
#[test]
fn a_length_that_lies_is_reset() {
    for (name, body) in [("less", &b"abc"[..]), ("more", b"abcdefg")] {
        on_worker(async {
            let (near, far) = duplex(1 << 16);
            let upstream = scripted(far, b"");
            let relay = Relay::http1(vec![near]);
            let mut client = serving(&relay, ServerOptions::default());
            begin(&mut client).await;
            let block = request(&[("content-length", "5")]);
            client.write_all(&frame(HEADERS, END_HEADERS, 1, &block)).await.unwrap();
            client.write_all(&frame(DATA, END_STREAM, 1, body)).await.unwrap();
            let (answer, _) = read_quiet(&mut client, Duration::from_millis(100)).await;
            assert_eq!(reset(&frames(&answer)), Some(PROTOCOL_ERROR), "{name}");
            drop(client);
            drop(relay);
            let upstream = String::from_utf8(upstream.await.unwrap()).unwrap();
            let body = upstream.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            assert!(body.len() < 5, "{name}: upstream saw a whole request: {upstream:?}");
        });
    }
}

/// Cookie crumbs become one field (RFC 9113, 8.2.3), and `host` alone is an authority.
#[test]
fn requests_become_canonical() {
    on_worker(async {
        let (near, far) = duplex(1 << 16);
        let upstream = scripted(far, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        let relay = Relay::http1(vec![near]);
        let mut client = serving(&relay, ServerOptions::default());
        begin(&mut client).await;
        let block = literals(&[
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            ("cookie", "a=1"),
            ("x", "y"),
            ("host", "h"),
            ("cookie", "b=2"),
        ]);
        client.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).await.unwrap();
        read_quiet(&mut client, Duration::from_millis(100)).await;
        drop(client);
        drop(relay);
        let upstream = String::from_utf8(upstream.await.unwrap()).unwrap();
        assert_eq!(upstream.matches("cookie").count(), 1, "{upstream}");
        assert!(upstream.contains("cookie: a=1; b=2\r\n"), "{upstream}");
        assert!(upstream.starts_with("GET / HTTP/1.1\r\nhost: h\r\n"), "{upstream}");
    });
}

/// CVE-2023-44487: a client that opens and resets is cut off, and soon.
#[test]
fn rapid_resets_are_cut_off() {
    on_worker(async {
        let mut client = serving(&Rc::new(Echo), ServerOptions::default());
        begin(&mut client).await;
        let block = request(&[]);
        let mut sent = 0;
        for at in 0..20_000u32 {
            let stream = at * 2 + 1;
            let open = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block);
            let cancel = frame(RST_STREAM, 0, stream, &8u32.to_be_bytes());
            if client.write_all(&[open, cancel].concat()).await.is_err() {
                break;
            }
            sent = at;
        }
        let (answer, closed) = read_quiet(&mut client, Duration::from_secs(2)).await;
        let goaway = frames(&answer).into_iter().find(|(kind, ..)| *kind == GOAWAY).expect("a GOAWAY");
        assert_eq!(&goaway.3[4..8], &11u32.to_be_bytes(), "ENHANCE_YOUR_CALM");
        assert!(closed && sent < 20_000, "cut off after {sent}");
    });
}
