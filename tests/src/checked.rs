//! A steady load whose every byte is known: what came whole, what failed, and what looked whole and was not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::ensure;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::Result;
use crate::backend::{digest, pattern};
use crate::client::{Answer, send};
use crate::wait::eventually;

/// What came back.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub whole: u64,
    /// Errors, and answers that say so.
    pub failed: Vec<String>,
    /// 200s with other bytes than those that were sent.
    pub wrong: Vec<String>,
}

/// A load under way; ends when dropped.
#[derive(Debug)]
pub struct Checked {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    tasks: JoinSet<()>,
}

impl Checked {
    /// So many clients, each with one idempotent request after the other: bodies of one byte to 40 KB, by turns of the answer
    /// and of the request.
    #[must_use]
    pub fn start(address: SocketAddr, clients: usize) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let mut tasks = JoinSet::new();
        for client in 0..clients {
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            tasks.spawn(async move {
                let mut turn = client;
                while !stop.load(Ordering::Relaxed) {
                    let outcome = exchange(address, turn).await;
                    let mut seen = seen.lock();
                    match outcome {
                        Ok(None) => seen.whole += 1,
                        Ok(Some(wrong)) => seen.wrong.push(wrong),
                        Err(error) => seen.failed.push(format!("{error:#}")),
                    }
                    turn += 1;
                }
            });
        }
        Self { stop, seen, tasks }
    }

    /// The counts so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.seen.lock().clone()
    }

    /// Waits until so many more came whole.
    pub async fn more(&self, count: u64) -> Result {
        let before = self.seen.lock().whole;
        eventually(&format!("{count} more whole answers"), async || {
            let seen = self.seen.lock();
            ensure!(seen.whole >= before + count, "saw {} more, {:?}", seen.whole - before, seen.failed.last());
            Ok(())
        })
        .await
    }

    /// Ends it: what is in flight is finished first. Fails if anything looked whole and was not.
    pub async fn finish(mut self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        let seen = self.seen();
        ensure!(seen.wrong.is_empty(), "answers that look whole and are not: {:#?}", seen.wrong);
        Ok(seen)
    }
}

/// One request, of the turn's kind and size; in words what was wrong with its answer.
async fn exchange(address: SocketAddr, turn: usize) -> Result<Option<String>> {
    let size = [1, 300, 5_000, 40_000][turn / 2 % 4];
    let known = digest(&pattern(size));
    let of_answer = turn.is_multiple_of(2);
    let request = if of_answer {
        Request::get(format!("/pattern/{size}")).header("host", "a").body(Full::default())?
    } else {
        Request::put("/digest").header("host", "a").body(Full::new(Bytes::from(pattern(size))))?
    };
    let answer = send(address, request).await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    let seen = if of_answer { digest(&answer.body) } else { answer.text() };
    Ok((seen != known).then(|| describe(size, of_answer, &answer)))
}

fn describe(size: u64, of_answer: bool, answer: &Answer) -> String {
    let what = if of_answer { "an answer" } else { "a request" };
    format!("{what} of {size} bytes came as other ones: {} bytes of answer", answer.body.len())
}
