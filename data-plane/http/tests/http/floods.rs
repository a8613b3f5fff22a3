//! Frames that cost their sender next to nothing: each flood is cut off by a GOAWAY, and what busy clients really send
//! is not.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use culvert_http::{BodyKind, Exchange, FloodLimits, Handler, ResponseHead, ServerOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::http2_wire::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, begin, frame, frames, request,
};
use crate::peers::{Echo, on_worker, read_quiet, serving};

const PRIORITY: u8 = 2;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// Counts what is cut off, and answers nothing before it is reset.
#[derive(Default)]
struct Silent {
    cut_off: Cell<u32>,
}

impl Handler for Silent {
    async fn handle(self: &Rc<Self>, mut exchange: Exchange<'_>) {
        while let Ok(Some(_)) = exchange.body.chunk().await {}
        exchange.body.closed().await;
        exchange.response.reset();
    }

    fn refused(&self, _status: u16, _detail: &'static str) {}

    fn cut_off(&self, _detail: &'static str) {
        self.cut_off.set(self.cut_off.get() + 1);
    }
}

fn open(stream: u32, flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &request(&[]))
}

fn cancel(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())
}

/// Sends until the connection is cut off; how many were sent, and the last GOAWAY's code.
async fn flood(client: &mut DuplexStream, most: u32, make: impl Fn(u32) -> Vec<u8>) -> (u32, Option<u32>) {
    let (mut answers, mut sent) = (Vec::new(), 0);
    let mut closed = false;
    while sent < most && !closed {
        closed = client.write_all(&make(sent)).await.is_err();
        sent += 1;
        if sent.is_multiple_of(16) || sent == most || closed {
            let (read, ended) = read_quiet(client, Duration::from_micros(10)).await;
            answers.extend_from_slice(&read);
            closed |= ended;
        }
    }
    let (read, _) = read_quiet(client, Duration::from_secs(6)).await;
    answers.extend_from_slice(&read);
    let code = frames(&answers)
        .into_iter()
        .rfind(|(kind, ..)| *kind == GOAWAY)
        .map(|(.., payload)| u32::from_be_bytes(payload.get(4..8).expect("a code").try_into().expect("four bytes")));
    (sent, code)
}

#[test]
fn floods_are_cut_off() {
    type Make = fn(u32) -> Vec<u8>;
    let vectors: [(&str, &[u8], Make, u32); 17] = [
        ("PING", b"", |_| frame(PING, 0, 0, b"12345678"), 1_100),
        ("answers to no PING", b"", |_| frame(PING, 1, 0, b"12345678"), 1_100),
        ("SETTINGS", b"", |_| frame(SETTINGS, 0, 0, b""), 600),
        ("unknown frames", b"", |_| frame(0x42, 0, 0, b"x"), 1_100),
        ("PRIORITY", b"", |at| frame(PRIORITY, 0, at * 2 + 1, &[0, 0, 0, 0, 16]), 200),
        ("WINDOW_UPDATE", b"", |_| frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()), 50),
        ("WINDOW_UPDATE of a stream", &open(1, 0), |_| frame(WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes()), 50),
        ("empty DATA", &open(1, 0), |_| frame(DATA, 0, 1, b""), 200),
        ("empty CONTINUATION", &frame(HEADERS, END_STREAM, 1, &request(&[])), |_| frame(CONTINUATION, 0, 1, b""), 200),
        (
            "CONTINUATION",
            &frame(HEADERS, END_STREAM, 1, &request(&[])),
            |_| frame(CONTINUATION, 0, 1, &crate::http2_wire::literals(&[("x-a", &"b".repeat(100))])),
            3_000,
        ),
        ("rapid reset", b"", |at| [open(at * 2 + 1, END_STREAM), cancel(at * 2 + 1)].concat(), 1_000),
        ("window of 0", b"", |at| [open(at * 2 + 1, 0), frame(WINDOW_UPDATE, 0, at * 2 + 1, &[0; 4])].concat(), 1_100),
        (
            "window that overflows",
            b"",
            |at| [open(at * 2 + 1, 0), frame(WINDOW_UPDATE, 0, at * 2 + 1, &0x7fff_ffffu32.to_be_bytes())].concat(),
            1_100,
        ),
        (
            "DATA after its end",
            b"",
            |at| [open(at * 2 + 1, END_STREAM), frame(DATA, 0, at * 2 + 1, b"x")].concat(),
            1_100,
        ),
        (
            "malformed requests",
            b"",
            |at| frame(HEADERS, END_HEADERS | END_STREAM, at * 2 + 1, &request(&[("connection", "close")])),
            1_100,
        ),
        (
            "PRIORITY on itself",
            b"",
            |at| frame(PRIORITY, 0, at * 2 + 1, &[&(at * 2 + 1).to_be_bytes()[..], &[1]].concat()),
            200,
        ),
        ("more streams than allowed", b"", |at| open(at * 2 + 1, 0), 1_200),
    ];
    for (name, before, make, most) in vectors {
        on_worker(async {
            let silent = Rc::new(Silent::default());
            let mut client = serving(&silent, ServerOptions::default());
            begin(&mut client).await;
            client.write_all(before).await.unwrap();
            let (sent, code) = flood(&mut client, most + 1, make).await;
            assert!(sent <= most, "{name}: {sent} frames were taken");
            assert!(matches!(code, Some(1 | 11)), "{name}: GOAWAY says {code:?}");
            // It may linger.
            drop(client);
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(silent.cut_off.get(), 1, "{name}: counted");
        });
    }
}

/// Limits are the configuration's.
#[test]
fn flood_limits_are_what_is_configured() {
    type Make = fn(u32) -> Vec<u8>;
    let tight = FloodLimits { control_frames: 5, empty_frames: 3, priority_frames: 4, window_updates: 1 };
    let wide = FloodLimits { control_frames: 400, empty_frames: 100, priority_frames: 400, window_updates: 10 };
    let vectors: [(&str, &[u8], Make, [u32; 2]); 4] = [
        ("PING", b"", |_| frame(PING, 0, 0, b"12345678"), [6, 401]),
        ("SETTINGS", b"", |_| frame(SETTINGS, 0, 0, b""), [3, 201]),
        ("PRIORITY", b"", |at| frame(PRIORITY, 0, at * 2 + 1, &[0, 0, 0, 0, 16]), [5, 401]),
        ("empty DATA", &open(1, 0), |_| frame(DATA, 0, 1, b""), [4, 101]),
    ];
    for (name, before, make, least) in vectors {
        for (limits, least) in [tight, wide].into_iter().zip(least) {
            on_worker(async {
                let silent = Rc::new(Silent::default());
                let mut client = serving(&silent, ServerOptions { flood_limits: limits, ..ServerOptions::default() });
                begin(&mut client).await;
                client.write_all(before).await.unwrap();
                let (sent, code) = flood(&mut client, 1_000, make).await;
                // What is in the buffer between the two ends may be written before the other one reads.
                // The client's own SETTINGS count too.
                assert!((least - 3..=least + 32).contains(&sent), "{name}: cut off after {sent}, not about {least}");
                assert!(matches!(code, Some(1 | 11)), "{name}: GOAWAY says {code:?}");
            });
        }
    }
}

/// One stream opened at a time, cancelled when its handler runs.
#[test]
fn rapid_resets_are_cut_off_at_any_pace() {
    on_worker(async {
        let silent = Rc::new(Silent::default());
        let mut client = serving(&silent, ServerOptions::default());
        begin(&mut client).await;
        let mut taken = 0;
        for at in 0..1_000 {
            if client.write_all(&open(at * 2 + 1, END_STREAM)).await.is_err() {
                break;
            }
            let (_, ended) = read_quiet(&mut client, Duration::from_millis(1)).await;
            if ended || client.write_all(&cancel(at * 2 + 1)).await.is_err() {
                break;
            }
            taken += 1;
        }
        assert!((200..=260).contains(&taken), "cut off after {taken}: Envoy's half of 500");
        assert_eq!(silent.cut_off.get(), 1, "counted");
    });
}

/// A proxy that is trusted to bring connections speaks for many clients, who may all cancel.
#[test]
fn a_trusted_proxy_may_reset_for_its_clients() {
    on_worker(async {
        let silent = Rc::new(Silent::default());
        let options = ServerOptions { connections: true, ..ServerOptions::default() };
        let mut client = serving(&silent, options);
        begin(&mut client).await;
        for at in 0..1_000 {
            client.write_all(&open(at * 2 + 1, END_STREAM)).await.unwrap();
            let (_, ended) = read_quiet(&mut client, Duration::from_millis(1)).await;
            assert!(!ended, "cut off after {at}");
            client.write_all(&cancel(at * 2 + 1)).await.unwrap();
        }
    });
}

/// Clients that cancel what took long, measure round trips, and open windows as they read.
#[test]
fn busy_clients_are_not_floods() {
    on_worker(async {
        let silent = Rc::new(Silent::default());
        let mut client = serving(&silent, ServerOptions::default());
        begin(&mut client).await;
        for at in 0..600 {
            client.write_all(&open(at * 2 + 1, END_STREAM)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1500)).await;
            if at >= 2 {
                client.write_all(&cancel(at * 2 - 3)).await.unwrap();
            }
            client.write_all(&frame(PING, 0, 0, b"keepaliv")).await.unwrap();
        }
        let (answers, ended) = read_quiet(&mut client, Duration::from_secs(1)).await;
        assert!(!ended, "slow cancels were taken for an attack: {:?}", frames(&answers).last());
    });
    on_worker(async {
        let mut client = serving(&Rc::new(Echo), ServerOptions::default());
        begin(&mut client).await;
        client.write_all(&open(1, 0)).await.unwrap();
        for at in 0..3_000 {
            let pieces = [
                frame(DATA, 0, 1, b"x"),
                frame(PING, 0, 0, b"bandwidt"),
                frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()),
                frame(WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes()),
            ];
            client.write_all(&pieces.concat()).await.unwrap();
            let (_, ended) = read_quiet(&mut client, Duration::from_micros(10)).await;
            assert!(!ended, "cut off after {at} messages");
        }
    });
}

/// A connection may live for months: an error now and then, among streams that end well, is no flood.
#[test]
fn errors_among_what_goes_well_are_forgotten() {
    on_worker(async {
        let mut client = serving(&Rc::new(Echo), ServerOptions::default());
        begin(&mut client).await;
        let mut ids = (1..).step_by(2);
        let mut next = || ids.next().expect("an id");
        for at in 0..1_100 {
            let bad = frame(HEADERS, END_HEADERS | END_STREAM, next(), &request(&[("connection", "close")]));
            client.write_all(&bad).await.unwrap();
            for _ in 0..16 {
                client.write_all(&open(next(), END_STREAM)).await.unwrap();
            }
            let (_, ended) = read_quiet(&mut client, Duration::from_micros(10)).await;
            assert!(!ended, "cut off after {at} errors");
        }
    });
}

/// Requests are read one at a time: what a client sends ahead stays where flow control finds it.
#[test]
fn requests_sent_ahead_are_not_hoarded() {
    on_worker(async {
        let silent = Rc::new(Silent::default());
        let mut client = serving(&silent, ServerOptions::default());
        let ahead = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n".repeat(1 << 14);
        let mut taken = 0;
        let more = async {
            while taken < 4 << 20 {
                taken += client.write(&ahead).await.expect("open");
            }
        };
        tokio::time::timeout(Duration::from_secs(5), more).await.ok();
        // The pipe itself holds a mebibyte.
        let read = taken.saturating_sub(1 << 20);
        assert!(taken >= 1 << 20 && read <= 128 << 10, "{read} bytes were read ahead of their turn");
    });
}

/// A header block that never ends.
#[test]
fn an_open_header_block_has_the_time_of_a_head() {
    on_worker(async {
        let silent = Rc::new(Silent::default());
        let mut client = serving(&silent, ServerOptions::default());
        begin(&mut client).await;
        client.write_all(&frame(HEADERS, END_STREAM, 1, &request(&[]))).await.unwrap();
        let begun = tokio::time::Instant::now();
        let (_, ended) = read_quiet(&mut client, Duration::from_secs(60)).await;
        let took = begun.elapsed().as_secs();
        assert!(ended && (10..=11).contains(&took), "open for {took} s");
        assert_eq!(silent.cut_off.get(), 1, "counted");
    });
}

/// Answers with more than the client's window, and notes how that ended.
#[derive(Default)]
struct Large {
    failed: Cell<bool>,
}

impl Handler for Large {
    async fn handle(self: &Rc<Self>, mut exchange: Exchange<'_>) {
        let body = vec![0; 3 << 20];
        let length = BodyKind::Length(body.len() as u64);
        exchange.response.head(&ResponseHead::new(200), length).await.expect("a head");
        let sent = exchange.response.data(culvert_http::Chunk::Borrowed(&body)).await;
        self.failed.set(sent.is_err());
        exchange.response.reset();
    }

    fn refused(&self, _status: u16, _detail: &'static str) {}
}

/// A client that reads nothing, or opens its window by a byte now and then.
#[test]
fn a_reader_that_stalls_is_reset() {
    for drip in [false, true] {
        on_worker(async {
            let large = Rc::new(Large::default());
            let mut client = serving(&large, ServerOptions::default());
            begin(&mut client).await;
            client.write_all(&open(1, END_STREAM)).await.unwrap();
            read_quiet(&mut client, Duration::from_secs(50)).await;
            if drip {
                for stream in [0, 1] {
                    client.write_all(&frame(WINDOW_UPDATE, 0, stream, &1u32.to_be_bytes())).await.unwrap();
                }
                read_quiet(&mut client, Duration::from_secs(15)).await;
                assert!(!large.failed.get(), "reset although the client had taken a byte");
            }
            let (answers, ended) = read_quiet(&mut client, Duration::from_secs(50)).await;
            assert!(large.failed.get(), "drip {drip}: still sending");
            assert!(!ended, "drip {drip}: one stream's fault closed the connection");
            assert!(frames(&answers).iter().any(|(kind, ..)| *kind == RST_STREAM), "drip {drip}: no reset");
        });
    }
}

/// The same over HTTP/1: nothing may look like the end of the response.
#[test]
fn an_http_1_reader_that_stalls_is_cut_off() {
    on_worker(async {
        let large = Rc::new(Large::default());
        let mut client = serving(&large, ServerOptions::default());
        client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_secs(50)).await;
        let mut some = vec![0; 1000];
        client.read_exact(&mut some).await.unwrap();
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(!large.failed.get(), "cut off although the client had taken something");
        tokio::time::sleep(Duration::from_secs(35)).await;
        assert!(large.failed.get(), "still sending");
        let (answer, ended) = read_quiet(&mut client, Duration::from_secs(1)).await;
        assert!(ended && answer.len() < 3 << 20, "{} bytes came, closed {ended}", answer.len());
    });
}

/// Trailers that come byte by byte cost what they are long, not its square.
#[test]
fn trailers_in_small_pieces_are_cheap() {
    let begun = std::time::SystemTime::now();
    on_worker(async {
        let mut client = serving(&Rc::new(Echo), ServerOptions::default());
        let head = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n";
        client.write_all(head).await.unwrap();
        let trailers: String = (0..99).map(|at| format!("x-{at}: {}\r\n", "y".repeat(590))).collect();
        for byte in trailers.as_bytes() {
            client.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        client.write_all(b"\r\n").await.unwrap();
        let (answer, _) = read_quiet(&mut client, Duration::from_millis(10)).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains("x-98: yyy"), "no trailers came back: {:.200}", answer);
    });
    let took = begun.elapsed().unwrap();
    assert!(took < Duration::from_secs(10), "{took:?}");
}
