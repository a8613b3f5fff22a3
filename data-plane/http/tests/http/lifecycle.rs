//! Connections over time: deadlines, limits, drain, and peers that go away.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use culvert_http::{
    BodyKind, Chunk, Exchange, Handler, Http1Client, Io, Method, RequestHead, ResponseHead, ServerOptions,
    StreamErrorKind,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::http2_wire::{self, DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, frame};
use crate::peers::{Echo, http2_client, http2_over, on_worker, read_quiet, serving, serving_until};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
const LONG: Duration = Duration::from_secs(100_000);

fn get() -> RequestHead {
    let mut head = RequestHead::new();
    head.authority.push('h');
    head.path.push('/');
    head
}

/// Answers when told to, and notes when its client is gone.
#[derive(Default)]
struct Slow {
    go: Notify,
    entered: Cell<u32>,
    abandoned: Cell<u32>,
    refused: RefCell<Vec<u16>>,
    /// Returns without an answer.
    silent: bool,
    /// Answers without reading the body.
    hasty: bool,
}

impl Handler for Slow {
    async fn handle(self: &Rc<Self>, mut exchange: Exchange<'_>) {
        self.entered.set(self.entered.get() + 1);
        if self.silent {
            return;
        }
        if !self.hasty {
            while let Ok(Some(_)) = exchange.body.chunk().await {}
            tokio::select! {
                () = self.go.notified() => {}
                () = exchange.body.closed() => {
                    self.abandoned.set(self.abandoned.get() + 1);
                    return exchange.response.reset();
                }
            }
        }
        let head = ResponseHead::new(200);
        if exchange.response.head(&head, BodyKind::Length(2)).await.is_ok()
            && exchange.response.data(Chunk::Borrowed(b"ok")).await.is_ok()
        {
            exchange.response.finish(None).await.unwrap();
        }
    }

    fn refused(&self, status: u16, _detail: &'static str) {
        self.refused.borrow_mut().push(status);
    }
}

/// Until this is so, or a minute has passed.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_slow_head_is_answered_408_counted_from_its_first_byte() {
    on_worker(async {
        let slow = Rc::new(Slow::default());
        let mut client = serving(&slow, ServerOptions::default());
        tokio::time::sleep(Duration::from_secs(60)).await;
        let begun = Instant::now();
        for byte in b"GET / HT" {
            client.write_all(&[*byte]).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let (answer, closed) = read_quiet(&mut client, LONG).await;
        assert!(text(&answer).starts_with("HTTP/1.1 408 "), "{}", text(&answer));
        assert!(closed, "not closed");
        let took = begun.elapsed().as_secs();
        assert!((10..=12).contains(&took), "{took} s");
        assert_eq!(*slow.refused.borrow(), [408]);
    });
}

#[test]
fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    on_worker(async {
        let slow = Rc::new(Slow::default());
        let options = ServerOptions { idle_timeout: Some(Duration::from_secs(60)), ..ServerOptions::default() };
        let mut client = serving(&slow, options);
        client.write_all(GET).await.unwrap();
        tokio::time::sleep(Duration::from_secs(600)).await;
        slow.go.notify_one();
        let begun = Instant::now();
        let (answer, closed) = read_quiet(&mut client, LONG).await;
        assert!(text(&answer).starts_with("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n"), "{}", text(&answer));
        assert!(closed && begun.elapsed().as_secs().abs_diff(60) < 2, "idle for {:?}", begun.elapsed());
    });
}

#[test]
fn an_http_2_connection_that_is_idle_is_closed() {
    on_worker(async {
        let options = ServerOptions { idle_timeout: Some(Duration::from_secs(60)), ..ServerOptions::default() };
        let client = http2_client(&Rc::new(Echo), options).await;
        assert!(client.is_open());
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert!(client.is_open(), "closed too early");
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(!client.is_open(), "still open");
    });
}

#[test]
fn the_last_request_of_a_connection_says_so() {
    on_worker(async {
        let options = ServerOptions { max_requests: Some(2), ..ServerOptions::default() };
        let mut client = serving(&Rc::new(Echo), options);
        client.write_all(&GET.repeat(3)).await.unwrap();
        let (answer, closed) = read_quiet(&mut client, Duration::from_millis(100)).await;
        let answer = text(&answer);
        assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
        assert_eq!(answer.matches("connection: close").count(), 1, "{answer}");
        assert!(closed);
    });
}

#[test]
fn a_connection_that_is_too_old_ends_after_its_exchange() {
    on_worker(async {
        let slow = Rc::new(Slow::default());
        let options = ServerOptions { max_duration: Some(Duration::from_secs(60)), ..ServerOptions::default() };
        let mut client = serving(&slow, options.clone());
        let begun = Instant::now();
        assert!(read_quiet(&mut client, LONG).await.1, "an idle one is closed");
        assert!(begun.elapsed().as_secs().abs_diff(60) < 2, "after {:?}", begun.elapsed());

        let mut client = serving(&slow, options);
        tokio::time::sleep(Duration::from_secs(30)).await;
        client.write_all(GET).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        slow.go.notify_one();
        let (answer, closed) = read_quiet(&mut client, Duration::from_secs(1)).await;
        assert!(text(&answer).starts_with("HTTP/1.1 200"), "{}", text(&answer));
        assert!(closed, "a busy one after its exchange");
    });
}

/// A drain that is wanted by `Notify`.
fn drain() -> (Rc<Notify>, impl Future<Output = ()> + 'static) {
    let wish = Rc::new(Notify::new());
    let waiting = Rc::clone(&wish);
    (wish, async move { waiting.notified().await })
}

#[test]
fn draining_finishes_what_runs_and_says_close() {
    on_worker(async {
        let slow = Rc::new(Slow::default());
        let (wish, drained) = drain();
        let mut client = serving_until(&slow, ServerOptions::default(), drained);
        client.write_all(GET).await.unwrap();
        until("the request is handled", || slow.entered.get() == 1).await;
        wish.notify_one();
        tokio::time::sleep(Duration::from_secs(5)).await;
        slow.go.notify_one();
        let (answer, closed) = read_quiet(&mut client, Duration::from_secs(1)).await;
        let answer = text(&answer);
        assert!(answer.contains("connection: close\r\n") && answer.ends_with("ok"), "{answer}");
        assert!(closed, "not closed");
    });
}

#[test]
fn draining_an_idle_connection_still_answers_a_request_that_is_on_its_way() {
    on_worker(async {
        for late in [false, true] {
            let (wish, drained) = drain();
            let mut client = serving_until(&Rc::new(Echo), ServerOptions::default(), drained);
            client.write_all(GET).await.unwrap();
            read_quiet(&mut client, Duration::from_millis(10)).await;
            wish.notify_one();
            tokio::time::sleep(Duration::from_millis(if late { 2000 } else { 100 })).await;
            let answered = client.write_all(GET).await.is_ok();
            let (answer, closed) = read_quiet(&mut client, Duration::from_secs(5)).await;
            assert!(closed, "not closed");
            assert_eq!(answered && text(&answer).contains("connection: close"), !late, "{}", text(&answer));
        }
    });
}

#[test]
fn draining_http_2_finishes_its_streams_and_takes_no_more() {
    on_worker(async {
        let slow = Rc::new(Slow::default());
        let (wish, drained) = drain();
        let client = http2_over(serving_until(&slow, ServerOptions::default(), drained)).await;
        let mut exchange = client.exchange();
        exchange.send_head(&get(), BodyKind::Empty).await.unwrap();
        until("the request is handled", || slow.entered.get() == 1).await;
        wish.notify_one();
        until("GOAWAY arrives", || !client.is_open()).await;
        slow.go.notify_one();
        let (_, mut source) = exchange.split();
        let mut head = ResponseHead::new(0);
        source.head(&mut head).await.unwrap();
        assert_eq!((head.status, &source.chunk().await.unwrap().unwrap()[..]), (200, &b"ok"[..]));
        let error = client.exchange().send_head(&get(), BodyKind::Empty).await.unwrap_err();
        assert!(error.untouched, "{error}");
    });
}

#[test]
fn a_client_that_goes_away_is_noticed() {
    on_worker(async {
        let slow = Rc::new(Slow::default());
        let mut client = serving(&slow, ServerOptions::default());
        client.write_all(GET).await.unwrap();
        until("the request is handled", || slow.entered.get() == 1).await;
        drop(client);
        until("HTTP/1 abandons it", || slow.abandoned.get() == 1).await;

        let client = http2_client(&slow, ServerOptions::default()).await;
        let mut exchange = client.exchange();
        exchange.send_head(&get(), BodyKind::Empty).await.unwrap();
        until("the request is handled", || slow.entered.get() == 2).await;
        drop(exchange);
        until("HTTP/2 abandons it", || slow.abandoned.get() == 2).await;
    });
}

#[test]
fn no_answer_is_no_clean_end() {
    on_worker(async {
        let silent = Rc::new(Slow { silent: true, ..Slow::default() });
        let mut client = serving(&silent, ServerOptions::default());
        client.write_all(GET).await.unwrap();
        assert_eq!(read_quiet(&mut client, LONG).await, (Vec::new(), true));

        let client = http2_client(&silent, ServerOptions::default()).await;
        let mut exchange = client.exchange();
        exchange.send_head(&get(), BodyKind::Empty).await.unwrap();
        let error = exchange.split().1.head(&mut ResponseHead::new(0)).await.unwrap_err();
        assert_eq!(error.kind, StreamErrorKind::Reset(h2_internal_error()), "the stream is reset");
    });
}

fn h2_internal_error() -> u32 {
    2
}

/// What a handler leaves unread is read away if it is little, else the connection ends; it is never taken for a request.
#[test]
fn unread_bodies() {
    let hasty = || Rc::new(Slow { hasty: true, ..Slow::default() });
    for (name, body, follow, answers, closed) in
        [("small", 1000, true, 2, false), ("large", 200_000, true, 1, true), ("missing", 1000, false, 1, true)]
    {
        on_worker(async {
            let mut client = serving(&hasty(), ServerOptions::default());
            let head = format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {body}\r\n\r\n");
            client.write_all(head.as_bytes()).await.unwrap();
            if follow {
                // The body looks like requests.
                let mut bytes = GET.repeat(body / GET.len() + 1);
                bytes.truncate(body);
                client.write_all(&bytes).await.unwrap();
                client.write_all(GET).await.ok();
            }
            let (answer, ended) = read_quiet(&mut client, Duration::from_secs(2)).await;
            let answer = text(&answer);
            assert_eq!(answer.matches("HTTP/1.1 200").count(), answers, "{name}: {answer}");
            assert_eq!(ended, closed, "{name}: closed");
        });
    }
}

/// RFC 9113, 8.1: over HTTP/2 the answer comes whole, and then the stream is reset without an error.
#[test]
fn unread_bodies_over_http_2() {
    for pieces in [0, 1, 3] {
        on_worker(async {
            let mut client = serving(&Rc::new(Slow { hasty: true, ..Slow::default() }), ServerOptions::default());
            http2_wire::begin(&mut client).await;
            let head = http2_wire::request(&[("content-length", "300000")]);
            client.write_all(&frame(HEADERS, END_HEADERS, 1, &head)).await.unwrap();
            for _ in 0..pieces {
                client.write_all(&frame(DATA, 0, 1, &[b'x'; 10_000])).await.unwrap();
            }
            let (answer, closed) = read_quiet(&mut client, Duration::from_secs(2)).await;
            let frames = http2_wire::frames(&answer);
            let seen: Vec<_> = frames.iter().filter(|(.., stream, _)| *stream == 1).collect();
            let [(HEADERS, ..), body @ .., (RST_STREAM, _, _, code)] = seen.as_slice() else {
                panic!("{pieces} pieces sent: expected head, body and reset, saw {seen:?}");
            };
            assert!(body.iter().any(|(.., payload)| payload == b"ok"), "{pieces} pieces sent: the body, in {seen:?}");
            let ended = matches!(body, [.., (DATA, END_STREAM, ..)]);
            assert!(ended, "{pieces} pieces sent: its end, in {seen:?}");
            assert_eq!(code.as_slice(), [0; 4], "{pieces} pieces sent: NO_ERROR");
            assert!(!closed, "{pieces} pieces sent: other streams go on");
        });
    }
}

#[test]
fn an_expectation_that_was_not_met_ends_the_connection() {
    on_worker(async {
        let mut client = serving(&Rc::new(Slow { hasty: true, ..Slow::default() }), ServerOptions::default());
        let head = b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 30\r\n\r\n";
        client.write_all(head).await.unwrap();
        let (answer, closed) = read_quiet(&mut client, Duration::from_secs(5)).await;
        assert!(text(&answer).starts_with("HTTP/1.1 200"), "{}", text(&answer));
        assert!(closed, "the next bytes may be body or request");
    });
}

/// Peers may send more while they read our last answer.
#[test]
fn closing_lingers_for_a_second_at_most() {
    on_worker(async {
        let mut client = serving(&Rc::new(Echo), ServerOptions::default());
        client.write_all(b"GET / HTTP/9.9\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(text(&answer).starts_with("HTTP/1.1 505"), "{}", text(&answer));
        client.write_all(&[b'x'; 4096]).await.expect("still read for a while");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(client.write_all(&[b'x'; 4096]).await.is_err(), "for ever");
    });
}

#[test]
fn capacity_counts_streams_of_all_clones() {
    on_worker(async {
        let slow = Rc::new(Slow::default());
        let options = ServerOptions { max_concurrent_streams: 3, ..ServerOptions::default() };
        let client = http2_client(&slow, options).await;
        let clone = client.clone();
        assert_eq!(client.capacity(), 3, "the peer's limit");
        let first = client.exchange();
        let second = clone.exchange();
        assert_eq!((client.capacity(), clone.active()), (1, 2));
        drop((first, second));
        assert_eq!(client.capacity(), 3);
    });
}

#[test]
fn a_dead_http_2_peer_is_noticed() {
    on_worker(async {
        let (near, _far) = tokio::io::duplex(1 << 16);
        let options = culvert_http::Http2ClientOptions {
            keepalive_interval: Some(Duration::from_secs(10)),
            keepalive_timeout: Duration::from_secs(5),
            ..culvert_http::Http2ClientOptions::default()
        };
        let begun = Instant::now();
        let (client, driver) = culvert_http::Http2Client::connect(Io::memory(near), &options);
        let error = driver.await.unwrap_err();
        assert_eq!((error.kind, begun.elapsed().as_secs()), (StreamErrorKind::Timeout, 15));
        assert!(!client.is_open());
    });
}

#[test]
fn a_broken_http_2_connection_fails_its_streams() {
    on_worker(async {
        let (near, far) = tokio::io::duplex(1 << 16);
        let client = http2_over(near).await;
        let mut exchange = client.exchange();
        exchange.send_head(&get(), BodyKind::Empty).await.unwrap();
        drop(far);
        let error = exchange.split().1.head(&mut ResponseHead::new(0)).await.unwrap_err();
        assert_eq!((error.kind, error.untouched), (StreamErrorKind::Closed, false));
        assert!(!client.is_open());
    });
}

#[test]
fn what_is_at_rest_may_change_threads() {
    fn is_send<T: Send>() {}
    is_send::<Http1Client>();
    is_send::<culvert_http::Http2Client>();
    is_send::<Io>();
}

#[test]
fn an_idle_connection_is_small() {
    on_worker(async {
        let options = ServerOptions::default();
        let io = Io::memory(tokio::io::duplex(64).0);
        let serve = culvert_http::serve(io, &options, Rc::new(Echo), std::future::pending());
        let size = size_of_val(&serve);
        assert!(size <= 1536, "the future of a connection takes {size} bytes");
        assert!(size_of::<Http1Client>() <= 8, "an idle client");
        assert_eq!(Method::Get.as_str(), "GET");
    });
}
