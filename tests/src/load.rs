//! A steady load over kept connections that counts every failure.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Result;
use crate::client::whole;
use crate::wait::{PATIENCE, eventually};

/// What to send.
#[derive(Debug, Clone)]
pub struct Load {
    pub address: SocketAddr,
    pub path: String,
    pub connections: usize,
    /// Pause of each connection between two requests.
    pub pause: Duration,
    /// A new connection for each request.
    pub reconnect: bool,
}

impl Load {
    /// Four kept connections, a request every 2 ms on each.
    #[must_use]
    pub fn new(address: SocketAddr, path: &str) -> Self {
        Self { address, path: path.to_owned(), connections: 4, pause: Duration::from_millis(2), reconnect: false }
    }

    /// Starts it.
    #[must_use]
    pub fn start(self) -> Running {
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(Mutex::new(Counts::default()));
        let mut tasks = JoinSet::new();
        for _ in 0..self.connections {
            tasks.spawn(connection(self.clone(), Arc::clone(&stop), Arc::clone(&counts)));
        }
        Running { stop, counts, tasks }
    }
}

/// What came back.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// 200s, by the first line of the body.
    pub answers: BTreeMap<String, u64>,
    pub failed: u64,
    /// The first few failures, in words.
    pub failures: Vec<String>,
    /// The slowest answer.
    pub slowest: Duration,
}

impl Counts {
    /// All 200s.
    #[must_use]
    pub fn ok(&self) -> u64 {
        self.answers.values().sum()
    }

    fn fail(&mut self, what: String) {
        self.failed += 1;
        if self.failures.len() < 8 {
            self.failures.push(what);
        }
    }
}

/// A load under way; ends when dropped.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    counts: Arc<Mutex<Counts>>,
    tasks: JoinSet<()>,
}

impl Running {
    /// The counts so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts.lock().clone()
    }

    /// Requests that were answered with 200 by `name` so far.
    #[must_use]
    pub fn by(&self, name: &str) -> u64 {
        self.counts.lock().answers.get(name).copied().unwrap_or(0)
    }

    /// Waits until so many more requests were answered, and fails when one was not.
    pub async fn more(&self, count: u64) -> Result {
        let before = self.counts().ok();
        let counts = eventually(&format!("{count} more answers"), async || {
            let counts = self.counts();
            ensure!(counts.failed > 0 || counts.ok() >= before + count, "saw {counts:?}");
            Ok(counts)
        })
        .await?;
        ensure!(counts.failed == 0, "expected {count} more answers, saw a failure: {counts:#?}");
        Ok(())
    }

    /// Ends it: what is in flight is finished first.
    pub async fn stop(mut self) -> Counts {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        self.counts.lock().clone()
    }

    /// Ends it and fails unless every request was answered with 200 and there were at least `least`.
    pub async fn finish(self, least: u64) -> Result<Counts> {
        let counts = self.stop().await;
        ensure!(
            counts.failed == 0,
            "expected 0 failed requests, saw {} beside {} good ones: {:#?}",
            counts.failed,
            counts.ok(),
            counts.failures
        );
        ensure!(counts.ok() >= least, "expected at least {least} requests, saw {}", counts.ok());
        Ok(counts)
    }
}

async fn connection(load: Load, stop: Arc<AtomicBool>, counts: Arc<Mutex<Counts>>) {
    let mut sender = None;
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let outcome = tokio::time::timeout(PATIENCE, request(&load, &mut sender)).await;
        match outcome {
            Ok(Ok(line)) => {
                let mut counts = counts.lock();
                counts.slowest = counts.slowest.max(began.elapsed());
                *counts.answers.entry(line).or_default() += 1;
            }
            Ok(Err(error)) => {
                counts.lock().fail(format!("{error:#}"));
                sender = None;
            }
            Err(_) => {
                counts.lock().fail("no answer within 20 s".to_owned());
                sender = None;
            }
        }
        tokio::time::sleep(load.pause).await;
    }
}

type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

async fn request(load: &Load, kept: &mut Option<Sender>) -> Result<String> {
    let mut sender = match kept.take() {
        Some(sender) => sender,
        None => connect(load.address).await?,
    };
    // A server may have announced `connection: close` with its last answer; opening another is no failure.
    if sender.ready().await.is_err() {
        sender = connect(load.address).await?;
    }
    let request = Request::get(&load.path).header("host", "culvert.test").body(Full::default())?;
    let answer = whole(sender.send_request(request).await?).await?;
    ensure!(answer.status == 200, "status {}: {}", answer.status, answer.text());
    if !load.reconnect {
        *kept = Some(sender);
    }
    Ok(answer.text().lines().next().unwrap_or("").to_owned())
}

async fn connect(address: SocketAddr) -> Result<Sender> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            eprintln!("load: {error}");
        }
    });
    Ok(sender)
}
