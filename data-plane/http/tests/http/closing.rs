//! How long the ends of connections may take, as it is configured.

use std::rc::Rc;
use std::time::Duration;

use culvert_http::ServerOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::http2_wire::{END_HEADERS, END_STREAM, GOAWAY, HEADERS, begin, frame, frames, request};
use crate::peers::{Echo, on_worker, read_quiet, serving, serving_until};

/// `delayed_close_timeout`: a client that goes on sending may read our last answer for so long.
#[test]
fn closing_lingers_as_long_as_it_may() {
    for linger in [0, 1, 7] {
        on_worker(async {
            let options = ServerOptions { linger: Duration::from_secs(linger), ..ServerOptions::default() };
            let mut client = serving(&Rc::new(Echo), options);
            client.write_all(b"GET / HTTP/9.9\r\n\r\n").await.unwrap();
            let begun = Instant::now();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 505"), "{}", String::from_utf8_lossy(&answer));
            while client.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert_eq!(begun.elapsed().as_secs(), linger, "read for so long");
        });
    }
}

/// `drain_timeout`: a client that does not acknowledge the end of its connection is not waited for any longer.
#[test]
fn draining_waits_as_long_as_it_may() {
    for (drain_timeout, head) in [(2, ""), (5, ""), (0, "GET"), (5, "GET")] {
        on_worker(async {
            let options =
                ServerOptions { drain_timeout: Duration::from_secs(drain_timeout), ..ServerOptions::default() };
            let mut client = serving_until(&Rc::new(Echo), options, tokio::time::sleep(Duration::from_secs(1)));
            let http1 = !head.is_empty();
            if http1 {
                client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
            } else {
                begin(&mut client).await;
            }
            read_quiet(&mut client, Duration::from_millis(900)).await;
            let begun = Instant::now();
            let (answer, ended) = read_quiet(&mut client, Duration::from_secs(60)).await;
            assert!(ended, "still open");
            let most = if http1 { 500.min(drain_timeout * 1000) } else { drain_timeout * 1000 };
            let took = u64::try_from(begun.elapsed().as_millis()).unwrap();
            assert!((most + 80..=most + 120).contains(&took), "closed after {took} ms of {most}");
            assert_eq!(frames(&answer).iter().any(|(kind, ..)| *kind == GOAWAY), !http1, "announced");
        });
    }
}

/// A client's GOAWAY ends a connection without streams, unless its end is the client's to say.
#[test]
fn a_client_that_says_goodbye_ends_the_connection_or_goes_on() {
    for client_ends in [false, true] {
        on_worker(async {
            let mut client = serving(&Rc::new(Echo), ServerOptions { client_ends, ..ServerOptions::default() });
            begin(&mut client).await;
            client.write_all(&frame(GOAWAY, 0, 0, &[0; 8])).await.unwrap();
            let (_, ended) = read_quiet(&mut client, Duration::from_secs(10)).await;
            assert_eq!(ended, !client_ends, "whether it has ended");
            if client_ends {
                client.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &request(&[]))).await.unwrap();
                let (answer, ended) = read_quiet(&mut client, Duration::from_secs(10)).await;
                assert!(!ended && frames(&answer).iter().any(|(kind, ..)| *kind == HEADERS), "{answer:?}");
            }
        });
    }
}
