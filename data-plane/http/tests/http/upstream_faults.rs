//! What upstreams answer, and whether it is believed and the connection used again.

use std::time::Duration;

use culvert_http::{Blame, BodyKind, Http1Client, Io, Method, RequestHead, ResponseHead, StreamError, StreamErrorKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use crate::peers::on_worker;

enum Expect {
    /// Status, body, and whether the connection may serve another exchange.
    Good(u16, &'static str, bool),
    /// The head is not believed: 502.
    BadHead,
    /// The body is broken: 502 had the head not been sent.
    BadBody,
    /// The upstream closed too early.
    Cut,
}
use Expect::{BadBody, BadHead, Cut, Good};

fn get(method: Method) -> RequestHead {
    let mut head = RequestHead::new();
    head.method = method;
    head.authority.push('h');
    head.path.push('/');
    head
}

async fn play(method: Method, response: &[u8]) -> (Result<(u16, Vec<u8>), (StreamError, bool)>, bool) {
    let (near, mut far) = duplex(1 << 20);
    let mut exchange = Http1Client::new(Io::memory(near)).exchange();
    let mut head = ResponseHead::new(0);
    let mut in_body = false;
    let result: Result<_, StreamError> = async {
        exchange.send_head(&get(method), BodyKind::Empty).await?;
        let (mut sink, mut source) = exchange.split();
        sink.finish(None).await?;
        far.write_all(response).await.unwrap();
        far.shutdown().await.unwrap();
        loop {
            source.head(&mut head).await?;
            if !head.is_informational() {
                break;
            }
        }
        in_body = true;
        let mut body = Vec::new();
        while let Some(chunk) = source.chunk().await? {
            body.extend_from_slice(&chunk);
        }
        Ok((head.status, body))
    }
    .await;
    (result.map_err(|error| (error, in_body)), exchange.finish().is_some())
}

fn check(name: &str, method: Method, response: &[u8], expect: &Expect) {
    let (result, reusable) = on_worker(play(method, response));
    let protocol = |error: &StreamError| {
        error.blame == Blame::Upstream && matches!(error.kind, StreamErrorKind::Protocol { status: 502, .. })
    };
    match (expect, result) {
        (Good(status, body, reuse), Ok((got, bytes))) => {
            assert_eq!((got, String::from_utf8_lossy(&bytes)), (*status, (*body).into()), "{name}");
            assert_eq!(reusable, *reuse, "{name}: reusable");
            return;
        }
        (BadHead, Err((error, false))) | (BadBody, Err((error, true))) => {
            assert!(protocol(&error), "{name}: {error}");
        }
        (Cut, Err((error, _))) => assert_eq!(error.kind, StreamErrorKind::Closed, "{name}"),
        (_, other) => panic!("{name}: {other:?}"),
    }
    assert!(!reusable, "{name}: a broken connection may be used again");
}

const RESPONSES: &[(&str, &[u8], Expect)] = &[
    ("length", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", Good(200, "hello", true)),
    ("no reason", b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", Good(200, "", true)),
    ("empty reason", b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", Good(200, "", true)),
    (
        "chunked",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        Good(200, "hello", true),
    ),
    (
        "chunked, trailers",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\na: b\r\n\r\n",
        Good(200, "hello", true),
    ),
    ("close", b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", Good(200, "hello", false)),
    ("until close", b"HTTP/1.1 200 OK\r\n\r\nhello", Good(200, "hello", false)),
    ("HTTP/1.0", b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", Good(200, "hello", false)),
    (
        "HTTP/1.0 keep-alive",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
        Good(200, "hello", true),
    ),
    ("204", b"HTTP/1.1 204 No Content\r\n\r\n", Good(204, "", true)),
    ("204 with a length", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", Good(204, "", true)),
    ("304 with a length", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", Good(304, "", true)),
    (
        "interim",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        Good(200, "", true),
    ),
    ("odd status", b"HTTP/1.1 799 Odd\r\nContent-Length: 0\r\n\r\n", Good(799, "", true)),
    ("garbage behind", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n", Good(200, "", false)),
    ("body behind a 204", b"HTTP/1.1 204 No Content\r\n\r\nhello", Good(204, "", false)),
    ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", BadHead),
    (
        "length and coding",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        BadHead,
    ),
    ("coding in HTTP/1.0", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BadHead),
    ("unknown coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", BadHead),
    (
        "two codings",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        BadHead,
    ),
    ("length +5", b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello", BadHead),
    ("keep-alive without framing", b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\nhello", BadHead),
    ("status 99", b"HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n", BadHead),
    ("status 1000", b"HTTP/1.1 1000 X\r\nContent-Length: 0\r\n\r\n", BadHead),
    ("status abc", b"HTTP/1.1 abc X\r\n\r\n", BadHead),
    ("HTTP/2.0", b"HTTP/2.0 200 OK\r\n\r\n", BadHead),
    ("no HTTP", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", BadHead),
    ("unasked 101", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", BadHead),
    ("bare LF", b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n", BadHead),
    ("obs-fold", b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n", BadHead),
    ("space before colon", b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n", BadHead),
    ("NUL", b"HTTP/1.1 200 OK\r\nA: b\0\r\nContent-Length: 0\r\n\r\n", BadHead),
    ("bad chunk size", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", BadBody),
    ("bad chunk end", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n", BadBody),
    ("nothing", b"", Cut),
    ("half a head", b"HTTP/1.1 200 OK\r\nContent-", Cut),
    ("half a body", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", BadBody),
    ("no last chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", BadBody),
];

#[test]
fn responses() {
    for (name, response, expect) in RESPONSES {
        check(name, Method::Get, response, expect);
    }
    let large = format!("HTTP/1.1 200 OK\r\nA: {}\r\nContent-Length: 0\r\n\r\n", "b".repeat(65536));
    check("64 KiB head", Method::Get, large.as_bytes(), &BadHead);
    let many: String = (0..101).map(|at| format!("x-{at}: y\r\n")).collect();
    check("101 fields", Method::Get, format!("HTTP/1.1 200 OK\r\n{many}\r\n").as_bytes(), &BadHead);
    let interim =
        |count| "HTTP/1.1 100 Continue\r\n\r\n".repeat(count) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    check("16 interim", Method::Get, interim(16).as_bytes(), &Good(200, "", true));
    check("17 interim", Method::Get, interim(17).as_bytes(), &BadHead);
    check("HEAD", Method::Head, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", &Good(200, "", true));
    check(
        "HEAD, chunked",
        Method::Head,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        &Good(200, "", true),
    );
    check(
        "HEAD with a body",
        Method::Head,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        &Good(200, "", false),
    );
}

/// Wherever the network cuts a response, it is read the same.
#[test]
fn every_split_offset() {
    let raw = b"HTTP/1.1 103 X\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nt: u\r\n\r\n";
    for at in 0..=raw.len() {
        on_worker(async {
            let (near, mut far) = duplex(1 << 20);
            let mut exchange = Http1Client::new(Io::memory(near)).exchange();
            exchange.send_head(&get(Method::Get), BodyKind::Empty).await.unwrap();
            let (mut sink, mut source) = exchange.split();
            sink.finish(None).await.unwrap();
            let write = async {
                far.write_all(&raw[..at]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
                far.write_all(&raw[at..]).await.unwrap();
            };
            let read = async {
                let (mut head, mut body) = (ResponseHead::new(0), Vec::new());
                source.head(&mut head).await.unwrap();
                assert_eq!(head.status, 103, "cut at {at}");
                assert_eq!(source.head(&mut head).await.unwrap(), BodyKind::Stream, "cut at {at}");
                while let Some(chunk) = source.chunk().await.unwrap() {
                    body.extend_from_slice(&chunk);
                }
                assert_eq!(body, b"hello", "cut at {at}");
                assert_eq!(source.trailers().unwrap().get(b"t"), Some(&b"u"[..]), "cut at {at}");
            };
            tokio::join!(write, read);
            assert!(exchange.finish().is_some(), "cut at {at}");
        });
    }
}

/// An exchange on `client` that the upstream answers by `response`.
async fn exchange(client: Http1Client, far: &mut tokio::io::DuplexStream, response: &[u8]) -> Option<Http1Client> {
    let mut exchange = client.exchange();
    exchange.send_head(&get(Method::Get), BodyKind::Empty).await.unwrap();
    let (mut sink, mut source) = exchange.split();
    sink.finish(None).await.unwrap();
    far.write_all(response).await.unwrap();
    source.head(&mut ResponseHead::new(0)).await.unwrap();
    while source.chunk().await.unwrap().is_some() {}
    exchange.finish()
}

const EMPTY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

#[test]
fn what_comes_unasked_is_never_an_answer() {
    on_worker(async {
        let (near, mut far) = duplex(1 << 20);
        let client = exchange(Http1Client::new(Io::memory(near)), &mut far, EMPTY).await.expect("reusable");
        assert!(client.is_reused());
        far.write_all(EMPTY).await.unwrap();
        let mut exchange = client.exchange();
        let error = exchange.send_head(&get(Method::Get), BodyKind::Empty).await.unwrap_err();
        assert_eq!((error.kind, error.untouched), (StreamErrorKind::Closed, true), "the request was not sent");
    });
}

#[test]
fn an_idle_connection_notices_its_end() {
    on_worker(async {
        for unasked in [&b""[..], b"x"] {
            let (near, mut far) = duplex(1 << 20);
            let mut client = exchange(Http1Client::new(Io::memory(near)), &mut far, EMPTY).await.expect("reusable");
            let waited = tokio::time::timeout(Duration::from_secs(1), client.closed()).await;
            assert!(waited.is_err(), "closed before it was");
            far.write_all(unasked).await.unwrap();
            if unasked.is_empty() {
                drop(far);
            }
            tokio::time::timeout(Duration::from_secs(1), client.closed()).await.expect("closed");
            let error = client.exchange().send_head(&get(Method::Get), BodyKind::Empty).await.unwrap_err();
            assert!(error.untouched, "{error}");
        }
    });
}

/// The request was written: whether it was looked at, nobody knows.
#[test]
fn a_connection_that_dies_after_the_request_is_not_untouched() {
    on_worker(async {
        let (near, mut far) = duplex(1 << 20);
        let mut exchange = Http1Client::new(Io::memory(near)).exchange();
        exchange.send_head(&get(Method::Get), BodyKind::Empty).await.unwrap();
        let (mut sink, mut source) = exchange.split();
        sink.finish(None).await.unwrap();
        far.read_buf(&mut Vec::new()).await.unwrap();
        drop(far);
        let error = source.head(&mut ResponseHead::new(0)).await.unwrap_err();
        assert_eq!((error.blame, error.kind, error.untouched), (Blame::Upstream, StreamErrorKind::Closed, false));
        assert!(exchange.finish().is_none(), "reusable");
    });
}

#[test]
fn an_answer_before_the_request_has_ended_leaves_no_reusable_connection() {
    on_worker(async {
        let (near, mut far) = duplex(1 << 20);
        let mut exchange = Http1Client::new(Io::memory(near)).exchange();
        exchange.send_head(&get(Method::Post), BodyKind::Length(10)).await.unwrap();
        let (mut sink, mut source) = exchange.split();
        sink.data(culvert_http::Chunk::Borrowed(b"half")).await.unwrap();
        far.write_all(EMPTY).await.unwrap();
        source.head(&mut ResponseHead::new(0)).await.unwrap();
        assert!(source.chunk().await.unwrap().is_none());
        assert!(exchange.finish().is_none(), "reusable");
    });
}

#[test]
fn heads_that_would_split_are_not_sent() {
    on_worker(async {
        for (authority, path) in [("h\r\na: b", "/"), ("h", "/ HTTP/1.1\r\n"), ("h", "/a b"), ("h h", "/")] {
            let (near, _far) = duplex(1 << 20);
            let mut exchange = Http1Client::new(Io::memory(near)).exchange();
            let mut head = RequestHead::new();
            head.authority.push_str(authority);
            head.path.push_str(path);
            let error = exchange.send_head(&head, BodyKind::Empty).await.unwrap_err();
            assert_eq!(error.blame, Blame::Internal, "{authority:?} {path:?}");
        }
    });
}
