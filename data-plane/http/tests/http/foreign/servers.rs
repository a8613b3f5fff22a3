//! Our client against a foreign server.

use std::time::Duration;

use bytes::Bytes;
use culvert_http::{
    BodyKind, Chunk, Fields, Http2Client, Http2ClientOptions, Io, Method, RequestHead, ResponseHead, StreamError,
    StreamErrorKind,
};
use h2::Reason;
use h2::server::{Builder, SendResponse};
use http::{Request, Response, StatusCode};
use tokio::io::duplex;
use tokio::sync::mpsc;

use super::{assert_same, pattern, receive, send};
use crate::peers::on_worker;

/// What the server is told while it runs.
enum Order {
    Window(u32),
    Leave,
    Break(Reason),
}

/// Our client of a foreign server that answers each request by `answer`.
async fn connect<F: Future<Output = ()> + 'static>(
    options: &Http2ClientOptions,
    builder: Builder,
    answer: impl Fn(Request<h2::RecvStream>, SendResponse<Bytes>) -> F + 'static,
) -> (Http2Client, mpsc::Sender<Order>) {
    let (near, far) = duplex(1 << 20);
    let (orders, mut told) = mpsc::channel(4);
    tokio::task::spawn_local(async move {
        let mut connection = builder.handshake(far).await.expect("a handshake");
        loop {
            tokio::select! {
                request = connection.accept() => match request {
                    Some(Ok((request, respond))) => drop(tokio::task::spawn_local(answer(request, respond))),
                    _ => return,
                },
                Some(order) = told.recv() => match order {
                    Order::Window(window) => connection.set_initial_window_size(window).expect("a window"),
                    Order::Leave => connection.graceful_shutdown(),
                    Order::Break(reason) => connection.abrupt_shutdown(reason),
                },
            }
        }
    });
    let (client, driver) = Http2Client::connect(Io::memory(near), options);
    tokio::task::spawn_local(async move {
        // Tests look at the streams.
        driver.await.ok();
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    (client, orders)
}

fn head() -> RequestHead {
    let mut head = RequestHead::new();
    head.method = Method::Post;
    head.authority.push_str("example:8080");
    head.path.push_str("/a?b=c");
    head
}

async fn echo(request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>) {
    let mut body = request.into_body();
    let mut stream = respond.send_response(Response::new(()), false).expect("a response");
    while let Some(piece) = body.data().await {
        let Ok(mut piece) = piece else { return };
        body.flow_control().release_capacity(piece.len()).expect("a window");
        while !piece.is_empty() {
            stream.reserve_capacity(piece.len());
            let Some(Ok(room)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { return };
            stream.send_data(piece.split_to(room.min(piece.len())), false).expect("room");
        }
    }
    match body.trailers().await {
        Ok(Some(trailers)) => stream.send_trailers(trailers).expect("trailers"),
        Ok(None) => stream.send_data(Bytes::new(), true).expect("an end"),
        Err(_) => {}
    }
}

/// Sends a body and reads the answer, at the same time: interim statuses, status, body and trailers.
async fn ask(
    client: &Http2Client,
    body: &[u8],
    piece: usize,
    trailers: Option<&Fields>,
) -> Result<(Vec<u16>, u16, Vec<u8>, Option<Fields>), StreamError> {
    let mut exchange = client.exchange();
    exchange.send_head(&head(), BodyKind::Stream).await?;
    let (mut sink, mut source) = exchange.split();
    let upload = async {
        for piece in body.chunks(piece) {
            sink.data(Chunk::Borrowed(piece)).await?;
        }
        sink.finish(trailers).await
    };
    let download = async {
        let (mut head, mut interim, mut body) = (ResponseHead::new(0), Vec::new(), Vec::new());
        loop {
            source.head(&mut head).await?;
            if !head.is_informational() {
                break;
            }
            interim.push(head.status);
        }
        while let Some(piece) = source.chunk().await? {
            body.extend_from_slice(&piece);
        }
        Ok((interim, head.status, body, source.trailers().cloned()))
    };
    let (up, down) = tokio::join!(upload, download);
    up.and(down)
}

#[test]
fn bodies_cross_whatever_the_windows() {
    const SIZES: &[usize] = &[0, 1, 16_383, 16_384, 16_385, 65_535, 65_536, 1 << 20, 8 << 20];
    // Windows of the server's streams, its largest frame; windows of our streams, of our connection, our largest frame.
    for (theirs, frame, window, connection, our_frame) in [
        (65_535, 16_384, 65_535, 65_535, 16_384),
        (1, 16_384, 65_535, 65_535, 16_384),
        (1000, 16_384, 1000, 65_535, 16_384),
        (1 << 24, 1 << 20, 1 << 24, 1 << 24, 1 << 20),
        (65_535, (1 << 24) - 1, 1 << 24, 65_535, 1 << 20),
    ] {
        on_worker(async {
            let mut builder = Builder::new();
            builder.initial_window_size(theirs).max_frame_size(frame);
            let options = Http2ClientOptions {
                initial_stream_window: window,
                initial_connection_window: connection,
                max_frame_size: our_frame,
                ..Http2ClientOptions::default()
            };
            let (client, _orders) = connect(&options, builder, echo).await;
            let most = (theirs as usize).saturating_mul(1000);
            for &size in SIZES.iter().filter(|size| **size <= most) {
                for piece in [1000, 1 << 20] {
                    let name = format!("{size} bytes by {piece}, windows of {theirs}, {window} and {connection}");
                    let (_, status, seen, trailers) = ask(&client, &pattern(size), piece, None).await.expect(&name);
                    assert_same(&name, &seen, &pattern(size));
                    assert_eq!((status, trailers.is_some()), (200, false), "{name}");
                }
            }
        });
    }
}

#[test]
fn trailers_cross_behind_any_body() {
    on_worker(async {
        let (client, _orders) = connect(&Http2ClientOptions::default(), Builder::new(), echo).await;
        let mut trailers = Fields::new();
        trailers.push(b"grpc-status", b"0");
        for size in [0, 1, 1000, 100_000] {
            let (_, _, seen, got) = ask(&client, &pattern(size), 777, Some(&trailers)).await.expect("an answer");
            assert_same(&format!("{size} bytes"), &seen, &pattern(size));
            let got = got.expect("trailers");
            assert_eq!((got.get(b"grpc-status"), got.len()), (Some(&b"0"[..]), 1), "behind {size} bytes");
        }
    });
}

#[test]
fn interim_responses_come_before_the_final_one() {
    on_worker(async {
        let answer = |_request, mut respond: SendResponse<Bytes>| async move {
            for status in [103, 103, 199] {
                let mut interim = Response::new(());
                *interim.status_mut() = StatusCode::from_u16(status).expect("a status");
                respond.send_informational(interim).expect("an interim response");
            }
            let mut body = respond.send_response(Response::new(()), false).expect("a response");
            send(&mut body, Bytes::from_static(b"hello"), 5, None).await.expect("a body");
        };
        let (client, _orders) = connect(&Http2ClientOptions::default(), Builder::new(), answer).await;
        let (interim, status, body, _) = ask(&client, b"", 1, None).await.expect("an answer");
        assert_eq!((interim, status), (vec![103, 103, 199], 200));
        assert_same("the body", &body, b"hello");
    });
}

/// How a stream that the server resets looks to us, before the head and behind it.
#[test]
fn resets_of_the_server_are_seen_as_they_are() {
    for (reason, kind, untouched) in [
        (Reason::CANCEL, StreamErrorKind::Reset(8), false),
        (Reason::INTERNAL_ERROR, StreamErrorKind::Reset(2), false),
        (Reason::REFUSED_STREAM, StreamErrorKind::Refused, true),
        (Reason::ENHANCE_YOUR_CALM, StreamErrorKind::Reset(11), false),
    ] {
        for body in [None, Some(0), Some(1000)] {
            on_worker(async {
                let answer = move |_request, mut respond: SendResponse<Bytes>| async move {
                    match body {
                        None => respond.send_reset(reason),
                        Some(length) => {
                            let mut stream = respond.send_response(Response::new(()), false).expect("a response");
                            if length > 0 {
                                stream.send_data(pattern(length).into(), false).expect("a body");
                            }
                            tokio::time::sleep(Duration::from_millis(10)).await;
                            stream.send_reset(reason);
                        }
                    }
                };
                let (client, _orders) = connect(&Http2ClientOptions::default(), Builder::new(), answer).await;
                let error = ask(&client, b"", 1, None).await.expect_err("a reset");
                assert_eq!((error.kind, error.untouched), (kind, untouched), "{reason:?} behind {body:?}");
                assert!(client.is_open(), "{reason:?} behind {body:?}: one stream's end closed the connection");
            });
        }
    }
}

/// What we drop is reset for the server to see, and its window comes back.
#[test]
fn what_is_dropped_is_cancelled() {
    on_worker(async {
        let (seen, mut resets) = mpsc::channel(64);
        let answer = move |request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>| {
            let seen = seen.clone();
            async move {
                let mut stream = respond.send_response(Response::new(()), false).expect("a response");
                stream.send_data(pattern(60_000).into(), false).expect("a body");
                let reason = std::future::poll_fn(|cx| stream.poll_reset(cx)).await.expect("a reset");
                seen.send(reason).await.expect("a listener");
                drop(request);
            }
        };
        let options = Http2ClientOptions { initial_connection_window: 65_535, ..Http2ClientOptions::default() };
        let (client, _orders) = connect(&options, Builder::new(), answer).await;
        for round in 0..20 {
            let mut exchange = client.exchange();
            exchange.send_head(&head(), BodyKind::Stream).await.expect("a stream");
            let (mut sink, mut source) = exchange.split();
            sink.data(Chunk::Borrowed(b"some")).await.expect("room");
            source.head(&mut ResponseHead::new(0)).await.expect("a head");
            if round % 2 == 0 {
                source.chunk().await.expect("a body");
            }
            drop(exchange);
            let reason = tokio::time::timeout(Duration::from_secs(5), resets.recv()).await;
            assert_eq!(reason.expect("nothing in 5 s"), Some(Reason::CANCEL), "round {round}");
        }
        assert_eq!(client.active(), 0, "nothing is left");
    });
}

#[test]
fn a_server_that_leaves_finishes_what_it_took() {
    on_worker(async {
        let (client, orders) = connect(&Http2ClientOptions::default(), Builder::new(), echo).await;
        let mut exchange = client.exchange();
        exchange.send_head(&head(), BodyKind::Stream).await.expect("a stream");
        let (mut sink, mut source) = exchange.split();
        sink.data(Chunk::Borrowed(b"hello ")).await.expect("room");
        source.head(&mut ResponseHead::new(0)).await.expect("a head");
        orders.send(Order::Leave).await.ok();
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!client.is_open(), "a GOAWAY was not seen");
        let error = ask(&client, b"late", 4, None).await.expect_err("a stream behind a GOAWAY");
        assert!(error.untouched, "{error:?}");
        sink.data(Chunk::Borrowed(b"world")).await.expect("room");
        sink.finish(None).await.expect("an end");
        let mut body = Vec::new();
        while let Some(piece) = source.chunk().await.expect("a body") {
            body.extend_from_slice(&piece);
        }
        assert_same("what was begun", &body, b"hello world");
    });
}

#[test]
fn a_server_that_breaks_off_fails_what_runs() {
    on_worker(async {
        let (client, orders) = connect(&Http2ClientOptions::default(), Builder::new(), echo).await;
        let mut exchange = client.exchange();
        exchange.send_head(&head(), BodyKind::Stream).await.expect("a stream");
        let (mut sink, mut source) = exchange.split();
        sink.data(Chunk::Borrowed(b"hello ")).await.expect("room");
        source.head(&mut ResponseHead::new(0)).await.expect("a head");
        orders.send(Order::Break(Reason::INTERNAL_ERROR)).await.ok();
        let end = loop {
            match tokio::time::timeout(Duration::from_secs(5), source.chunk()).await.expect("nothing in 5 s") {
                Ok(Some(_)) => {}
                end => break end.map(|_| ()),
            }
        };
        assert!(end.is_err(), "a body that was cut off looks whole");
        assert!(!client.is_open());
        let error = ask(&client, b"late", 4, None).await.expect_err("a stream behind a GOAWAY");
        assert!(error.untouched, "{error:?}");
    });
}

/// More than the server takes at a time wait for their turn.
#[test]
fn streams_beyond_the_servers_limit_wait() {
    on_worker(async {
        let mut builder = Builder::new();
        builder.max_concurrent_streams(3);
        let (client, _orders) = connect(&Http2ClientOptions::default(), builder, echo).await;
        let mut streams = tokio::task::JoinSet::new();
        for at in 0..200_usize {
            let client = client.clone();
            streams.spawn_local(async move { (at, ask(&client, &pattern(at * 100), 999, None).await) });
        }
        while let Some(done) = streams.join_next().await {
            let (at, answer) = done.expect("a stream");
            assert_same(&format!("stream {at}"), &answer.expect("an answer").2, &pattern(at * 100));
        }
    });
}

/// RFC 9113, 6.9.2: a smaller initial window may leave a stream with less than nothing.
#[test]
fn windows_change_while_a_body_is_on_its_way() {
    for changes in [&[0, 65_535][..], &[1, 100_000], &[1 << 20], &[0, 10, 0, 1 << 24]] {
        on_worker(async {
            let answer = |request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>| async move {
                tokio::time::sleep(Duration::from_secs(2)).await;
                let (body, _) = receive(request.into_body()).await.expect("a body");
                assert_same("the request's body", &body, &pattern(300_000));
                respond.send_response(Response::new(()), true).expect("a response");
            };
            let (client, orders) = connect(&Http2ClientOptions::default(), Builder::new(), answer).await;
            let body = pattern(300_000);
            let asking = async {
                let answer = tokio::time::timeout(Duration::from_secs(30), ask(&client, &body, 10_000, None)).await;
                assert_eq!(answer.expect("no end in 30 s").expect("an answer").1, 200, "{changes:?}");
            };
            let changing = async {
                for &window in changes {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    orders.send(Order::Window(window)).await.ok();
                }
            };
            tokio::join!(asking, changing);
        });
    }
}
