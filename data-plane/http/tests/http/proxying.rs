//! Through the relay, in every combination of protocols.

use std::rc::Rc;
use std::time::Duration;

use culvert_http::{
    BodyKind, Chunk, ClientExchange, Fields, Http1Client, Http2Client, Http2ClientOptions, Io, Method, RequestHead,
    ResponseHead, ServerOptions,
};

use crate::peers::{Echo, Relay, Upstream, http2_client, on_worker, serving};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Via {
    Http1,
    Http2,
}

const ALL: [(Via, Via); 4] =
    [(Via::Http1, Via::Http1), (Via::Http1, Via::Http2), (Via::Http2, Via::Http1), (Via::Http2, Via::Http2)];

fn options() -> ServerOptions {
    ServerOptions { extended_connect: true, ..ServerOptions::default() }
}

/// A client's exchange through a relay to the echo.
async fn through(down: Via, up: Via) -> ClientExchange {
    let echo = Rc::new(Echo);
    let relay = match up {
        Via::Http1 => Relay::http1((0..4).map(|_| serving(&echo, options())).collect()),
        Via::Http2 => Relay::new(Upstream::Http2(http2_client(&echo, options()).await)),
    };
    match down {
        Via::Http1 => Http1Client::new(Io::memory(serving(&relay, options()))).exchange(),
        Via::Http2 => http2_client(&relay, options()).await.exchange(),
    }
}

fn request(method: Method) -> RequestHead {
    let mut head = RequestHead::new();
    head.method = method;
    head.authority.push_str("example:8080");
    head.path.push_str("/a?b=c");
    head.fields.push(b"x-a", b"1");
    head
}

/// Sends a request with this body; the response's interim statuses, head, body and trailers.
async fn ask(
    exchange: &mut ClientExchange,
    head: &RequestHead,
    body: BodyKind,
    chunks: &[&[u8]],
    trailers: Option<&Fields>,
) -> (Vec<u16>, ResponseHead, Vec<u8>, Option<Fields>) {
    exchange.send_head(head, body).await.unwrap();
    let (mut sink, mut source) = exchange.split();
    let upload = async {
        for chunk in chunks {
            sink.data(Chunk::Borrowed(chunk)).await.unwrap();
        }
        sink.finish(trailers).await.unwrap();
    };
    let download = async {
        let (mut head, mut interim, mut body) = (ResponseHead::new(0), Vec::new(), Vec::new());
        loop {
            source.head(&mut head).await.unwrap();
            if !head.is_informational() {
                break;
            }
            interim.push(head.status);
        }
        while let Some(chunk) = source.chunk().await.unwrap() {
            body.extend_from_slice(&chunk);
        }
        (interim, head, body, source.trailers().cloned())
    };
    tokio::join!(upload, download).1
}

#[test]
fn heads_cross_unchanged() {
    for (down, up) in ALL {
        on_worker(async {
            let mut exchange = through(down, up).await;
            let (_, head, body, _) = ask(&mut exchange, &request(Method::Get), BodyKind::Empty, &[], None).await;
            assert_eq!(head.status, 200, "{down:?} to {up:?}");
            for (name, value) in [("x-method", "GET"), ("x-target", "/a?b=c"), ("x-authority", "example:8080")] {
                assert_eq!(head.fields.get(name.as_bytes()), Some(value.as_bytes()), "{name}, {down:?} to {up:?}");
            }
            assert!(body.is_empty(), "a body out of nowhere");
            assert_eq!(exchange.finish().is_some(), down == Via::Http1, "an HTTP/1 connection may be used again");
        });
    }
}

#[test]
fn lengths_and_bodies_cross() {
    for (down, up) in ALL {
        on_worker(async {
            let mut exchange = through(down, up).await;
            let (_, head, body, _) =
                ask(&mut exchange, &request(Method::Post), BodyKind::Length(10), &[b"hello", b"world"], None).await;
            assert_eq!(head.fields.get(b"x-kind"), Some(&b"Length(10)"[..]), "{down:?} to {up:?}");
            assert_eq!(head.fields.get(b"content-length"), Some(&b"10"[..]), "{down:?} to {up:?}");
            assert_eq!(body, b"helloworld", "{down:?} to {up:?}");
        });
    }
}

#[test]
fn streams_cross_with_their_trailers() {
    for (down, up) in ALL {
        on_worker(async {
            let mut trailers = Fields::new();
            trailers.push(b"grpc-status", b"0");
            trailers.push(b"host", b"smuggled");
            let mut exchange = through(down, up).await;
            let chunks = [&b"a"[..], b"bc", b"def"];
            let (_, head, body, got) =
                ask(&mut exchange, &request(Method::Post), BodyKind::Stream, &chunks, Some(&trailers)).await;
            assert_eq!(head.fields.get(b"x-kind"), Some(&b"Stream"[..]), "{down:?} to {up:?}");
            assert_eq!(body, b"abcdef", "{down:?} to {up:?}");
            let got = got.expect("trailers");
            assert_eq!(got.get(b"grpc-status"), Some(&b"0"[..]), "{down:?} to {up:?}");
            assert_eq!(got.len(), 1, "forbidden trailers stay behind: {got:?}");
        });
    }
}

#[test]
fn interim_responses_cross() {
    for (down, up) in ALL {
        on_worker(async {
            let mut head = request(Method::Post);
            head.fields.push(b"expect", b"100-continue");
            let mut exchange = through(down, up).await;
            let (interim, head, body, _) = ask(&mut exchange, &head, BodyKind::Length(2), &[b"ok"], None).await;
            assert_eq!(interim, [100], "{down:?} to {up:?}");
            assert_eq!((head.status, &body[..]), (200, &b"ok"[..]), "{down:?} to {up:?}");
        });
    }
}

/// WebSocket by HTTP/1's upgrade and HTTP/2's extended CONNECT, each translated into the other.
#[test]
fn upgrades_cross() {
    for (down, up) in ALL {
        on_worker(async {
            let mut head = request(if down == Via::Http1 { Method::Get } else { Method::Connect });
            head.upgrade = Some("websocket".into());
            let mut exchange = through(down, up).await;
            tunnel(&mut exchange, &head, if down == Via::Http1 { 101 } else { 200 }, &format!("{down:?} to {up:?}"))
                .await;
        });
    }
}

/// Whether an upstream takes extended CONNECT stands in its SETTINGS, which a new connection still waits for.
#[test]
fn an_extended_connect_waits_for_settings() {
    for (name, silence, enabled, refused_after) in [
        ("late", Duration::from_secs(2), true, None),
        ("not enabled", Duration::from_secs(2), false, Some(2)),
        ("silent", Duration::from_secs(60), true, Some(5)),
    ] {
        on_worker(async {
            let (near, far) = tokio::io::duplex(1 << 16);
            tokio::task::spawn_local(async move {
                tokio::time::sleep(silence).await;
                let options = ServerOptions { extended_connect: enabled, ..ServerOptions::default() };
                culvert_http::serve(Io::memory(far), &options, Rc::new(Echo), std::future::pending()).await;
            });
            let (client, driver) = Http2Client::connect(Io::memory(near), &Http2ClientOptions::default());
            tokio::task::spawn_local(async move { driver.await.ok() });
            let mut head = request(Method::Get);
            head.upgrade = Some("websocket".into());
            let begun = tokio::time::Instant::now();
            let mut exchange = client.exchange();
            match refused_after {
                None => tunnel(&mut exchange, &head, 200, name).await,
                Some(seconds) => {
                    let error = exchange.send_head(&head, BodyKind::Empty).await.unwrap_err();
                    assert!(error.untouched, "{name}: {error}");
                    assert_eq!(begun.elapsed().as_secs(), seconds, "{name}: {error}");
                }
            }
        });
    }
}

#[test]
fn connect_crosses() {
    for (down, up) in ALL {
        on_worker(async {
            let mut head = request(Method::Connect);
            head.path.clear();
            let mut exchange = through(down, up).await;
            tunnel(&mut exchange, &head, 200, &format!("{down:?} to {up:?}")).await;
        });
    }
}

async fn tunnel(exchange: &mut ClientExchange, head: &RequestHead, status: u16, which: &str) {
    exchange.send_head(head, BodyKind::Empty).await.unwrap();
    let (mut sink, mut source) = exchange.split();
    sink.flush().await.unwrap();
    let mut head = ResponseHead::new(0);
    assert_eq!(source.head(&mut head).await.unwrap(), BodyKind::Tunnel, "{which}");
    assert_eq!(head.status, status, "{which}");
    for message in [&b"ping"[..], b"GET / HTTP/1.1\r\n\r\n"] {
        sink.data(Chunk::Borrowed(message)).await.unwrap();
        let mut echoed = Vec::new();
        while echoed.len() < message.len() {
            echoed.extend_from_slice(&source.chunk().await.unwrap().expect("the tunnel is open"));
        }
        assert_eq!(echoed, message, "{which}");
    }
    sink.finish(None).await.unwrap();
    assert!(source.chunk().await.unwrap().is_none(), "{which}: the end crosses too");
}

/// A reader that stops stops the writer: what is under way between them is bounded.
#[test]
fn back_pressure() {
    for (down, up) in ALL {
        on_worker(async {
            let mut exchange = through(down, up).await;
            exchange.send_head(&request(Method::Post), BodyKind::Stream).await.unwrap();
            let (mut sink, mut source) = exchange.split();
            let piece = vec![7; 64 * 1024];
            let mut sent = 0usize;
            let stalled = async {
                loop {
                    sink.data(Chunk::Borrowed(&piece)).await.unwrap();
                    sent += piece.len();
                }
            };
            let stalled = tokio::time::timeout(Duration::from_secs(5), stalled).await;
            assert!(stalled.is_err(), "it went on for ever");
            // Pipes hold 1 MiB each in both directions, windows less.
            assert!(sent < 12 << 20, "{sent} bytes are under way, {down:?} to {up:?}");
            let mut head = ResponseHead::new(0);
            source.head(&mut head).await.unwrap();
            let mut received = 0;
            while received < sent {
                received += source.chunk().await.unwrap().expect("more").len();
            }
        });
    }
}

/// 64 MiB through the relay, whole.
#[test]
fn large_bodies() {
    for (down, up) in ALL {
        on_worker(async {
            let mut exchange = through(down, up).await;
            let piece: Vec<u8> = (0..=255).cycle().take(100_000).collect();
            let chunks = vec![&piece[..]; 160];
            let total = piece.len() * chunks.len();
            let kind = BodyKind::Length(total as u64);
            let (_, _, body, _) = ask(&mut exchange, &request(Method::Put), kind, &chunks, None).await;
            assert_eq!(body.len(), total, "{down:?} to {up:?}");
            assert!(body.chunks(piece.len()).all(|got| got == piece), "{down:?} to {up:?}: bytes changed");
        });
    }
}

#[test]
fn head_responses_have_a_length_and_no_body() {
    for (down, up) in ALL {
        on_worker(async {
            let mut exchange = through(down, up).await;
            let (_, head, body, _) = ask(&mut exchange, &request(Method::Head), BodyKind::Empty, &[], None).await;
            assert_eq!((head.status, body.len()), (200, 0), "{down:?} to {up:?}");
            assert_eq!(head.fields.get(b"content-length"), Some(&b"0"[..]), "{down:?} to {up:?}");
            assert_eq!(exchange.finish().is_some(), down == Via::Http1, "reusable, {down:?} to {up:?}");
        });
    }
}
