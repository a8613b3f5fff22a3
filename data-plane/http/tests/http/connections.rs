//! Connections over streams of HTTP/2: each direction ends on its own, and nothing is read ahead of its reader.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use culvert_http::{
    BodyKind, Exchange, Handler, Http2Client, Http2ClientOptions, Io, Method, RequestHead, ResponseHead, RoundTrip,
    ServerOptions,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use crate::peers::{on_worker, serving};

/// Takes connections; answers requests by 404.
#[derive(Default)]
struct Ends {
    requests: Cell<u32>,
    broken: Cell<u32>,
}

impl Handler for Ends {
    async fn handle(self: &Rc<Self>, exchange: Exchange<'_>) {
        self.requests.set(self.requests.get() + 1);
        let mut response = exchange.response;
        response.head(&ResponseHead::new(404), BodyKind::Empty).await.unwrap();
        assert!(response.finish(None).await.is_ok());
    }

    /// Ends its direction when it has read a line; then says how much came until the other end ended its own.
    async fn connection(self: &Rc<Self>, mut io: Io) {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            line.push(io.read_u8().await.unwrap());
        }
        io.write_all(&line).await.unwrap();
        if line.starts_with(b"you first") {
            let mut rest = Vec::new();
            match io.read_to_end(&mut rest).await {
                Ok(count) => io.write_all(format!("{count}").as_bytes()).await.unwrap(),
                Err(_) => return self.broken.set(self.broken.get() + 1),
            }
        }
        io.shutdown().await.unwrap();
        let mut rest = Vec::new();
        if io.read_to_end(&mut rest).await.is_err() {
            self.broken.set(self.broken.get() + 1);
        }
        assert!(line.starts_with(b"you first") || rest == b"afterwards", "read after our own end: {rest:?}");
    }

    fn refused(&self, status: u16, detail: &'static str) {
        panic!("refused by {status}: {detail}");
    }
}

async fn client(ends: &Rc<Ends>, options: ServerOptions) -> Http2Client {
    let io = Io::memory(serving(ends, options));
    let (client, driver) = Http2Client::connect(io, &Http2ClientOptions::default());
    tokio::task::spawn_local(async move { assert!(driver.await.is_ok()) });
    client
}

fn options() -> ServerOptions {
    ServerOptions { connections: true, ..ServerOptions::default() }
}

#[test]
fn the_client_ends_first() {
    on_worker(async {
        let client = client(&Rc::default(), options()).await;
        let mut io = client.exchange().connect("edge:1").await.unwrap();
        io.write_all(b"you first\n").await.unwrap();
        // More than the windows hold: it passes only as it is read.
        let piece = vec![7; 100_000];
        for _ in 0..30 {
            io.write_all(&piece).await.unwrap();
        }
        io.shutdown().await.unwrap();
        let mut answer = Vec::new();
        io.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"you first\n3000000");
        assert_eq!(client.active(), 1, "counted as long as it is held");
        drop(io);
        assert_eq!(client.active(), 0);
    });
}

#[test]
fn the_other_end_ends_first() {
    on_worker(async {
        let ends = Rc::<Ends>::default();
        let client = client(&ends, options()).await;
        let mut io = client.exchange().connect("edge:1").await.unwrap();
        io.write_all(b"me first\n").await.unwrap();
        let mut answer = Vec::new();
        io.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"me first\n", "until the other end ended");
        io.write_all(b"afterwards").await.unwrap();
        io.shutdown().await.unwrap();
        drop(io);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(ends.broken.get(), 0, "both directions ended, nothing was reset");
    });
}

#[test]
fn a_connection_that_is_dropped_is_reset() {
    on_worker(async {
        let ends = Rc::<Ends>::default();
        let client = client(&ends, options()).await;
        let mut io = client.exchange().connect("edge:1").await.unwrap();
        io.write_all(b"you first\n").await.unwrap();
        assert_eq!(io.read_u8().await.unwrap(), b'y');
        drop(io);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(ends.broken.get(), 1, "the other end reads no clean end");
    });
}

#[test]
fn a_connect_without_the_mark_is_a_request_and_so_is_one_where_no_connections_are_taken() {
    on_worker(async {
        let ends = Rc::<Ends>::default();
        let marked = client(&ends, ServerOptions::default()).await;
        assert!(marked.exchange().connect("edge:1").await.is_err(), "404 opens no connection");
        let unmarked = client(&ends, options()).await;
        let mut exchange = unmarked.exchange();
        let head = RequestHead { method: Method::Connect, authority: "edge:1".to_owned(), ..RequestHead::default() };
        exchange.send_head(&head, BodyKind::Empty).await.unwrap();
        let mut answer = ResponseHead::default();
        exchange.split().1.head(&mut answer).await.unwrap();
        assert_eq!((answer.status, ends.requests.get()), (404, 2));
    });
}

#[test]
fn the_round_trip_is_measured_from_the_first_second_on_at_both_ends() {
    on_worker(async {
        let (near, far) = (RoundTrip::default(), RoundTrip::default());
        let interval = Some(Duration::from_secs(2));
        let server = ServerOptions { keepalive_interval: interval, round_trip: Some(far.clone()), ..options() };
        let io = Io::memory(serving(&Rc::<Ends>::default(), server));
        let options = Http2ClientOptions {
            keepalive_interval: interval,
            round_trip: Some(near.clone()),
            ..Http2ClientOptions::default()
        };
        let (_client, driver) = Http2Client::connect(io, &options);
        tokio::task::spawn_local(async move { assert!(driver.await.is_ok()) });
        let started = Instant::now();
        for (end, round_trip) in [("client", near), ("server", far)] {
            timeout(Duration::from_secs(10), round_trip.measured()).await.expect(end);
            assert!(round_trip.last().is_some(), "{end}: what was measured is remembered");
            assert!(started.elapsed() < Duration::from_secs(1), "{end}: after {:?}", started.elapsed());
        }
    });
}
