//! Bodies that break or do not come: what the client is told, and what of the request reaches the host.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use culvert_model::route::PathMatch;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::testing::{Gateway, backend, cluster, forward, manager_of, ok, on_worker, route, to, virtual_host};

/// A host that answers nothing; what it reads.
pub(super) async fn silent() -> (SocketAddr, Rc<RefCell<Vec<u8>>>) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, seen) = (socket.local_addr().unwrap(), Rc::<RefCell<Vec<u8>>>::default());
    let log = Rc::clone(&seen);
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            let log = Rc::clone(&log);
            tokio::task::spawn_local(async move {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    log.borrow_mut().extend_from_slice(&buffer[..count]);
                }
            });
        }
    });
    (address, seen)
}

fn gateway(address: SocketAddr) -> Gateway {
    let manager = manager_of(vec![virtual_host(vec![route("/", forward(to("a")))])]);
    Gateway::http(vec![cluster("a", &[address])], manager)
}

/// Envoy's answer, whatever of the body was good: 400 and close, and no whole request upstream.
/// Without `connect_matcher` no route is for it; without `connect_config` it is not allowed.
#[test]
fn a_connect_that_is_not_configured_goes_nowhere() {
    on_worker(async {
        let host = backend(|_| ok("reached")).await;
        for (path, expected) in [(PathMatch::Prefix("/".into()), "404"), (PathMatch::Connect, "403")] {
            let mut only = route("/", forward(to("a")));
            only.matches.path = path.clone();
            let gateway = Gateway::http(vec![cluster("a", &[host])], manager_of(vec![virtual_host(vec![only])]));
            let request = "CONNECT a.example:443 HTTP/1.1\r\nhost: a.example:443\r\n\r\n";
            let answer = gateway.exchange(request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{path:?}: {answer}");
            assert!(!answer.contains("reached"), "{path:?}: {answer}");
        }
    });
}

#[test]
fn a_body_that_breaks_is_answered_400_and_never_completed() {
    for (name, body) in [
        ("size", "zz\r\n"),
        ("size with prefix", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("negative size", "-1\r\nhello"),
        ("no size", "\r\nhello"),
        ("more than 2^63", "ffffffffffffffff\r\n"),
        ("a later size", "5\r\nhello\r\nzz\r\n"),
        ("no line end after data", "5\r\nhelloX"),
        ("bare LF ends an extension", "5;a\nhello\r\n0\r\n\r\n"),
        ("bare LF", "5\nhello\r\n0\r\n\r\n"),
        ("trailer", "0\r\na b\r\n\r\n"),
    ] {
        on_worker(async {
            let (address, seen) = silent().await;
            let head = "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
            let response = gateway(address).exchange(&format!("{head}{body}")).await;
            assert!(response.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{name}: {response}");
            assert!(response.contains("connection: close\r\n"), "{name}: {response}");
            let seen = String::from_utf8(seen.borrow().clone()).unwrap();
            assert!(!seen.ends_with("0\r\n\r\n"), "{name}: the host saw a whole request: {seen}");
        });
    }
}

/// An announced body that drips is answered 408; one that is merely slow, and one without a length, go on.
#[test]
fn an_announced_body_has_to_come() {
    let length = "content-length: 100000";
    for (name, framing, piece, pause, answered) in [
        ("stops", length, "", 10, Some(30)),
        ("drips", length, "x", 1, Some(30)),
        ("slow", length, "0123456789012345678901234567890123456789012345678901234567890123456789", 1, None),
        ("bursts", length, &*"x".repeat(1950), 29, None),
        ("a conversation", "transfer-encoding: chunked", "1\r\nx\r\n", 40, None),
    ] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let (address, _seen) = silent().await;
            let mut client = gateway(address).connect();
            client.write_all(format!("POST / HTTP/1.1\r\nhost: h\r\n{framing}\r\n\r\n").as_bytes()).await.unwrap();
            // The connection to the host is made before time is ours.
            tokio::time::sleep(Duration::from_millis(50)).await;
            tokio::time::pause();
            let begun = tokio::time::Instant::now();
            let mut answer = Vec::new();
            while begun.elapsed() < Duration::from_secs(120) && answer.is_empty() {
                client.write_all(piece.as_bytes()).await.ok();
                tokio::time::timeout(Duration::from_secs(pause), client.read_buf(&mut answer)).await.ok();
            }
            let took = begun.elapsed().as_secs();
            let answer = String::from_utf8(answer).unwrap();
            match answered {
                None => assert_eq!(answer, "", "{name}: answered after {took} s"),
                Some(seconds) => {
                    assert!(answer.starts_with("HTTP/1.1 408 "), "{name}: {answer:?} after {took} s");
                    assert!((seconds - 1..seconds * 2 + 5).contains(&took), "{name}: after {took} s");
                }
            }
        });
    }
}
