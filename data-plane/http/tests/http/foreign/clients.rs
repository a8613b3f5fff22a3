//! A foreign client against our server.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use culvert_http::{BodyKind, Chunk, Exchange, Handler, ResponseHead, ServerOptions, StreamErrorKind};
use h2::client::{Builder, SendRequest};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use tokio::sync::mpsc;

use super::{assert_same, pattern, receive, send};
use crate::peers::{Echo, on_worker, serving};

/// A connection of the foreign client: requests go in at the one, changes of its initial window at the other.
async fn connect<H: Handler>(
    handler: &Rc<H>,
    options: ServerOptions,
    builder: &Builder,
) -> (SendRequest<Bytes>, mpsc::Sender<u32>) {
    let end = serving(handler, options);
    let (requests, mut connection) = builder.handshake(end).await.expect("a handshake");
    let (windows, mut changes) = mpsc::channel(4);
    tokio::task::spawn_local(async move {
        loop {
            tokio::select! {
                // Tests look at the streams.
                _ = &mut connection => return,
                Some(window) = changes.recv() => connection.set_initial_window_size(window).expect("a window"),
            }
        }
    });
    (requests, windows)
}

fn request(method: Method) -> Request<()> {
    Request::builder().method(method).uri("http://example:8080/a?b=c").body(()).expect("a request")
}

/// Sends a body to the echo and reads it back, at the same time.
async fn ask(
    requests: &SendRequest<Bytes>,
    body: &[u8],
    piece: usize,
    trailers: Option<HeaderMap>,
) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut requests = requests.clone().ready().await?;
    let (response, mut stream) = requests.send_request(request(Method::POST), false)?;
    let upload = send(&mut stream, Bytes::copy_from_slice(body), piece, trailers);
    let download = async { receive(response.await?.into_body()).await };
    let (up, down) = tokio::join!(upload, download);
    up.and(down)
}

#[test]
fn bodies_cross_whatever_the_windows() {
    const SIZES: &[usize] = &[0, 1, 16_383, 16_384, 16_385, 65_535, 65_536, 1 << 20, 8 << 20];
    // Windows of the client's streams, of its connection, its largest frame; of our streams, and our largest frame.
    for (window, connection, frame, ours, our_frame) in [
        (65_535, 65_535, 16_384, 65_536, 16_384),
        (1, 65_535, 16_384, 65_536, 16_384),
        (1000, 65_535, 16_384, 1000, 16_384),
        (1 << 24, 1 << 24, 1 << 20, 1 << 24, 1 << 20),
        (1 << 24, 65_535, 16_384, 65_536, 1 << 20),
        (65_535, 1 << 24, (1 << 24) - 1, 1 << 24, 16_384),
    ] {
        on_worker(async {
            let options = ServerOptions {
                initial_stream_window: ours,
                initial_connection_window: ours.max(65_536),
                max_frame_size: our_frame,
                ..ServerOptions::default()
            };
            let mut builder = Builder::new();
            builder.initial_window_size(window).initial_connection_window_size(connection).max_frame_size(frame);
            let (requests, _windows) = connect(&Rc::new(Echo), options, &builder).await;
            // A frame for each byte of a window of one.
            let most = (window as usize).saturating_mul(1000);
            for &size in SIZES.iter().filter(|size| **size <= most) {
                let body = pattern(size);
                let name = format!("{size} bytes, windows of {window}, {connection} and {ours}");
                let (seen, trailers) = ask(&requests, &body, usize::MAX, None).await.expect(&name);
                assert_same(&name, &seen, &body);
                assert!(trailers.is_none(), "{name}: {trailers:?}");
            }
        });
    }
}

#[test]
fn trailers_cross_behind_any_body() {
    on_worker(async {
        let (requests, _windows) = connect(&Rc::new(Echo), ServerOptions::default(), &Builder::new()).await;
        for (size, piece) in [(0, 1), (1, 1), (1000, 70), (100_000, 9999)] {
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
            let (seen, got) = ask(&requests, &pattern(size), piece, Some(trailers.clone())).await.expect("an answer");
            assert_same(&format!("{size} bytes in pieces of {piece}"), &seen, &pattern(size));
            assert_eq!(got, Some(trailers), "behind {size} bytes");
        }
    });
}

#[test]
fn an_interim_response_comes_before_the_body_is_sent() {
    on_worker(async {
        let (requests, _windows) = connect(&Rc::new(Echo), ServerOptions::default(), &Builder::new()).await;
        let mut request = request(Method::POST);
        request.headers_mut().insert("expect", HeaderValue::from_static("100-continue"));
        let (mut response, mut body) = requests.ready().await.unwrap().send_request(request, false).unwrap();
        let interim = std::future::poll_fn(|cx| response.poll_informational(cx)).await.expect("an interim response");
        assert_eq!(interim.unwrap().status(), StatusCode::CONTINUE);
        send(&mut body, Bytes::from_static(b"hello"), 5, None).await.unwrap();
        let (seen, _) = receive(response.await.unwrap().into_body()).await.unwrap();
        assert_same("the body", &seen, b"hello");
    });
}

#[test]
fn a_thousand_streams_run_at_a_time() {
    on_worker(async {
        let options = ServerOptions { max_concurrent_streams: 1000, ..ServerOptions::default() };
        let mut builder = Builder::new();
        builder.initial_max_send_streams(1000);
        let (requests, _windows) = connect(&Rc::new(Echo), options, &builder).await;
        for round in 0..2 {
            let bodies: Vec<Vec<u8>> = (0..1000).map(|at| pattern(at * 3 + round)).collect();
            let mut streams = tokio::task::JoinSet::new();
            for (at, body) in bodies.iter().cloned().enumerate() {
                let requests = requests.clone();
                streams.spawn_local(async move { (at, ask(&requests, &body, 1000, None).await) });
            }
            while let Some(done) = streams.join_next().await {
                let (at, answer) = done.unwrap();
                assert_same(&format!("stream {at}, round {round}"), &answer.expect("an answer").0, &bodies[at]);
            }
        }
    });
}

/// Copies the request's fields into the response.
struct Mirror;

impl Handler for Mirror {
    async fn handle(self: &Rc<Self>, mut exchange: Exchange<'_>) {
        let mut head = ResponseHead::new(200);
        head.fields = exchange.request.fields.clone();
        exchange.response.head(&head, BodyKind::Empty).await.expect("a head");
    }

    fn refused(&self, status: u16, detail: &'static str) {
        panic!("refused with {status}: {detail}");
    }
}

/// Heads of many frames, whatever the two tables are and keep.
#[test]
fn heads_cross_whatever_the_tables_keep() {
    for table in [0, 100, 4096, 65_536] {
        on_worker(async {
            let mut builder = Builder::new();
            builder.header_table_size(table).max_header_list_size(1 << 20);
            let (requests, _windows) = connect(&Rc::new(Mirror), ServerOptions::default(), &builder).await;
            for round in 0..60_usize {
                let mut request = request(Method::GET);
                for at in 0..round {
                    // Some repeat from head to head, some differ each time, some are as large as a table.
                    let value = match at % 4 {
                        0 => format!("value {at}"),
                        1 => format!("value {round} of {at}"),
                        2 => "\u{e9}~^| ".repeat(at) + "x",
                        _ => "abcdefgh".repeat(if at == 59 { 600 } else { at * round % 97 }),
                    };
                    let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
                    let name = http::HeaderName::from_bytes(format!("x-name-{}", at % 50).as_bytes()).unwrap();
                    request.headers_mut().append(name, value);
                }
                request.headers_mut().insert("authorization", HeaderValue::from_static("secret"));
                let expected = request.headers().clone();
                let mut requests = requests.clone().ready().await.unwrap();
                let response = requests.send_request(request, true).unwrap().0.await.unwrap();
                assert_eq!(response.headers(), &expected, "round {round}, a table of {table}");
            }
        });
    }
}

/// Notes how bodies end, and answers as it is told.
#[derive(Default)]
struct Watch {
    ended: RefCell<Vec<String>>,
    /// Bytes to answer with before a reset.
    answer: Option<usize>,
}

impl Handler for Watch {
    async fn handle(self: &Rc<Self>, mut exchange: Exchange<'_>) {
        if let Some(length) = self.answer {
            let head = ResponseHead::new(200);
            exchange.response.head(&head, BodyKind::Stream).await.expect("a head");
            exchange.response.data(Chunk::Owned(pattern(length).into())).await.expect("a body");
            exchange.response.flush().await.expect("a body");
            exchange.response.reset();
            return;
        }
        let end = loop {
            match exchange.body.chunk().await {
                Ok(Some(_)) => {}
                Ok(None) => break "whole".to_owned(),
                Err(error) => break format!("{:?}", error.kind),
            }
        };
        self.ended.borrow_mut().push(end);
        exchange.response.reset();
    }

    fn refused(&self, _status: u16, _detail: &'static str) {}
}

#[test]
fn a_handler_sees_how_a_client_gave_up() {
    type GiveUp = fn(h2::SendStream<Bytes>);
    let vectors: [(&str, GiveUp, u32); 3] = [
        ("reset", |mut body| body.send_reset(h2::Reason::CANCEL), 8),
        ("reset with another code", |mut body| body.send_reset(h2::Reason::INTERNAL_ERROR), 2),
        ("dropped", drop, 8),
    ];
    for (name, give_up, code) in vectors {
        on_worker(async {
            let watch = Rc::new(Watch::default());
            let (requests, _windows) = connect(&watch, ServerOptions::default(), &Builder::new()).await;
            let (response, mut body) =
                requests.ready().await.unwrap().send_request(request(Method::POST), false).unwrap();
            body.send_data(Bytes::from_static(b"some"), false).unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
            drop(response);
            give_up(body);
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert_eq!(*watch.ended.borrow(), [format!("{:?}", StreamErrorKind::Reset(code))], "{name}");
        });
    }
}

#[test]
fn a_client_sees_a_response_that_is_reset() {
    for length in [0, 1, 100_000] {
        on_worker(async {
            let watch = Rc::new(Watch { answer: Some(length), ..Watch::default() });
            let mut builder = Builder::new();
            builder.initial_window_size(1 << 20).initial_connection_window_size(1 << 20);
            let (requests, _windows) = connect(&watch, ServerOptions::default(), &builder).await;
            for round in 0..3 {
                let mut requests = requests.clone().ready().await.unwrap();
                let (response, _) = requests.send_request(request(Method::GET), true).unwrap();
                let result = match response.await {
                    Ok(response) => receive(response.into_body()).await.map(|(body, _)| body.len()),
                    Err(error) => Err(error),
                };
                let error = result.expect_err("a reset");
                assert!(error.is_reset(), "{length} bytes, round {round}: {error}");
            }
        });
    }
}

/// Answers with a body as long as the query says.
struct Source;

impl Handler for Source {
    async fn handle(self: &Rc<Self>, mut exchange: Exchange<'_>) {
        let body = pattern(300_000);
        let kind = BodyKind::Length(body.len() as u64);
        if exchange.response.head(&ResponseHead::new(200), kind).await.is_ok()
            && exchange.response.data(Chunk::Owned(body.into())).await.is_ok()
            && exchange.response.finish(None).await.is_ok()
        {
            return;
        }
        exchange.response.reset();
    }

    fn refused(&self, _status: u16, _detail: &'static str) {}
}

/// RFC 9113, 6.9.2: a smaller initial window may leave a stream with less than nothing.
#[test]
fn windows_change_while_bodies_are_on_their_way() {
    for changes in [&[0, 65_535][..], &[1, 100_000], &[1 << 20], &[0, 10, 0, 1 << 24], &[10_000, 1000, 100_000]] {
        on_worker(async {
            let mut builder = Builder::new();
            builder.initial_connection_window_size(1 << 24);
            let (requests, windows) = connect(&Rc::new(Source), ServerOptions::default(), &builder).await;
            let mut bodies = Vec::new();
            for _ in 0..3 {
                let mut requests = requests.clone().ready().await.unwrap();
                let (response, _) = requests.send_request(request(Method::GET), true).unwrap();
                bodies.push(response.await.unwrap().into_body());
            }
            for &window in changes {
                tokio::time::sleep(Duration::from_millis(100)).await;
                windows.send(window).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            for (at, body) in bodies.into_iter().enumerate() {
                let reading = tokio::time::timeout(Duration::from_secs(20), receive(body)).await;
                let (seen, _) = reading.expect("no end in 20 s").expect("a body");
                assert_same(&format!("body {at} over windows {changes:?}"), &seen, &pattern(300_000));
            }
        });
    }
}

/// Whoever reads nothing of one stream holds up that one only.
#[test]
fn a_stalled_stream_does_not_stall_its_neighbours() {
    on_worker(async {
        let mut builder = Builder::new();
        builder.initial_connection_window_size(1 << 24);
        let (requests, _windows) = connect(&Rc::new(Source), ServerOptions::default(), &builder).await;
        let mut stalled = Vec::new();
        for _ in 0..50 {
            let mut requests = requests.clone().ready().await.unwrap();
            stalled.push(requests.send_request(request(Method::GET), true).unwrap().0.await.unwrap());
        }
        let mut requests = requests.ready().await.unwrap();
        let response = requests.send_request(request(Method::GET), true).unwrap().0.await.unwrap();
        let (seen, _) = receive(response.into_body()).await.unwrap();
        assert_same("the last", &seen, &pattern(300_000));
        for response in stalled {
            let (seen, _) = receive(response.into_body()).await.unwrap();
            assert_same("one that stalled", &seen, &pattern(300_000));
        }
    });
}
