//! One raw request, played through the relay and judged.

use std::time::Duration;

use culvert_http::ServerOptions;
use tokio::io::{AsyncWriteExt, duplex};

use crate::peers::{Relay, on_worker, read_quiet, scripted, serving};

/// What must become of the connection, and of the upstream's.
pub(crate) enum Expect {
    /// Answered with this status by us, closed, and not a byte upstream.
    Refused(u16),
    /// Forwarded as these bytes, answered 200, and kept open.
    Forwarded(&'static str),
    /// Forwarded as these bytes, answered 200, and closed.
    ForwardedLast(&'static str),
    /// The head is forwarded, then the body turns out broken: answered with this status and closed, and what the
    /// upstream sees is no complete request.
    Aborted(u16),
    /// Several requests, each answered 200.
    Answered(usize),
    /// Neither answered nor closed: more must come.
    Waits,
}
use Expect::{Aborted, Answered, Forwarded, ForwardedLast, Refused, Waits};

pub(crate) struct Outcome {
    pub(crate) statuses: Vec<u16>,
    pub(crate) closed: bool,
    pub(crate) upstream: Vec<String>,
    pub(crate) refused: Vec<u16>,
}

/// Sends `pieces` with a moment between them.
pub(crate) async fn play(pieces: &[&[u8]], options: ServerOptions) -> Outcome {
    let (mut ends, mut uplinks) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        let (near, far) = duplex(1 << 20);
        ends.push(near);
        uplinks.push(scripted(far, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
    }
    let relay = Relay::http1(ends);
    let mut client = serving(&relay, options);
    for piece in pieces {
        // The server may have refused what came before.
        client.write_all(piece).await.ok();
        tokio::task::yield_now().await;
    }
    let (answer, closed) = read_quiet(&mut client, Duration::from_millis(200)).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let statuses = answer
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|response| response.get(..3).and_then(|status| status.parse().ok()).unwrap_or(0))
        .collect();
    drop(client);
    // A connection that is still busy notices that its client is gone.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let refused = relay.refused.borrow().clone();
    drop(relay);
    let mut upstream = Vec::new();
    for uplink in uplinks {
        let read = tokio::time::timeout(Duration::from_secs(5), uplink).await.expect("the upstream ends").unwrap();
        if !read.is_empty() {
            upstream.push(String::from_utf8_lossy(&read).into_owned());
        }
    }
    Outcome { statuses, closed, upstream, refused }
}

pub(crate) fn judge(name: &str, outcome: &Outcome, expect: &Expect) {
    let Outcome { statuses, closed, upstream, refused } = outcome;
    match expect {
        Refused(status) => {
            assert_eq!(statuses, &[*status], "{name}: the answer");
            assert!(closed, "{name}: not closed");
            assert_eq!(refused, &[*status], "{name}: what the handler was told");
            assert!(upstream.is_empty(), "{name}: went upstream: {upstream:?}");
        }
        Forwarded(bytes) | ForwardedLast(bytes) => {
            assert_eq!(upstream.concat(), *bytes, "{name}: upstream saw");
            assert_eq!(statuses, &[200], "{name}: the answer");
            assert_eq!(*closed, matches!(expect, ForwardedLast(_)), "{name}: closed");
        }
        Aborted(status) => {
            assert_eq!(statuses, &[*status], "{name}: the answer");
            assert!(closed, "{name}: not closed");
            let upstream = upstream.concat();
            assert!(!upstream.ends_with("0\r\n\r\n"), "{name}: upstream saw a whole request: {upstream:?}");
        }
        Answered(count) => {
            assert_eq!(statuses, &vec![200; *count], "{name}: the answers");
        }
        Waits => {
            assert!(statuses.is_empty(), "{name}: answered {statuses:?}");
            assert!(!closed, "{name}: closed");
        }
    }
}

pub(crate) fn check(vectors: &[(&str, &str, Expect)], options: &ServerOptions) {
    for (name, raw, expect) in vectors {
        let outcome = on_worker(play(&[raw.as_bytes()], options.clone()));
        judge(name, &outcome, expect);
    }
}
