//! A stretch of network that goes wrong as it is told: passes TCP connections on, slows them, and breaks them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fastrand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::Result;

/// One of the two directions of every connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From who dialled.
    Up,
    /// To who dialled.
    Down,
}

pub const BOTH: [Way; 2] = [Way::Up, Way::Down];

/// How bytes pass: later, slower or in smaller pieces, but all of them and in order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shape {
    pub delay: Duration,
    /// Up to so much more delay, for each piece another.
    pub jitter: Duration,
    /// Bytes a second; 0: as many as come.
    pub rate: u32,
    /// Bytes that are written at a time, at most; 0: as many as come.
    pub split: usize,
    /// What comes within so long a time is written at once.
    pub merge: Duration,
}

/// What befalls the connections that stand, and none that comes later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// Closed at both ends with RST, whatever the way.
    Reset,
    /// The direction's receiver reads the end; the other direction goes on.
    HalfClose,
    /// Nothing is read any more: who sends finds, sooner or later, that there is no room.
    Stall,
    /// Everything is read and thrown away, the end too.
    Blackhole,
    /// In one byte of what passes next, one bit is another.
    Flip,
}

/// A relay on a free port of loopback; ends when dropped, with its connections.
#[derive(Debug)]
pub struct Relay {
    pub address: SocketAddr,
    shapes: watch::Sender<[Shape; 2]>,
    strikes: broadcast::Sender<(Way, Strike)>,
    open: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    /// Passes every connection on to `target`.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        Self::seeded(target, 0).await
    }

    /// The same; what is random (jitter, flips) follows from the seed, the connections' order and what passes.
    pub async fn seeded(target: SocketAddr, seed: u64) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (shapes, strikes) = (watch::Sender::new([Shape::default(); 2]), broadcast::Sender::new(16));
        let open = Arc::new(AtomicUsize::new(0));
        let (shaped, commands, count) = (shapes.clone(), strikes.clone(), Arc::clone(&open));
        let mut random = Rng::with_seed(seed);
        let task = tokio::spawn(async move {
            let mut links = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                while links.try_join_next().is_some() {}
                let ways = BOTH.map(|way| Link {
                    way,
                    shapes: shaped.subscribe(),
                    strikes: commands.subscribe(),
                    random: random.fork(),
                });
                links.spawn(pass(near, target, ways, commands.subscribe(), Arc::clone(&count)));
            }
        });
        Ok(Self { address, shapes, strikes, open, task })
    }

    /// How a direction passes bytes from now on, of connections to come too.
    pub fn shape(&self, way: Way, shape: Shape) {
        self.shapes.send_modify(|shapes| shapes[way as usize] = shape);
    }

    /// Breaks that direction of every connection.
    pub fn strike(&self, way: Way, strike: Strike) {
        // Where no connection stands nobody hears it.
        let _heard = self.strikes.send((way, strike));
    }

    /// Resets every connection, at both ends.
    pub fn reset(&self) {
        self.strike(Way::Up, Strike::Reset);
    }

    /// Connections that are passed on at the moment.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

type Strikes = broadcast::Receiver<(Way, Strike)>;

async fn pass(mut near: TcpStream, target: SocketAddr, ways: [Link; 2], strikes: Strikes, open: Arc<AtomicUsize>) {
    let Ok(mut far) = TcpStream::connect(target).await else { return };
    open.fetch_add(1, Ordering::SeqCst);
    let passed = between(&mut near, &mut far, ways, strikes).await;
    if let Err(error) = passed {
        eprintln!("relay: {error}");
    }
    open.fetch_sub(1, Ordering::SeqCst);
}

async fn between(near: &mut TcpStream, far: &mut TcpStream, ways: [Link; 2], strikes: Strikes) -> std::io::Result<()> {
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ((from_near, to_near), (from_far, to_far)) = (near.split(), far.split());
    let [up, down] = ways;
    let passed = async { tokio::try_join!(up.pass(from_near, to_far), down.pass(from_far, to_near)) };
    tokio::select! {
        passed = passed => passed.map(drop),
        () = reset(strikes) => {
            // Closed with a linger time of zero a socket says RST.
            for socket in [near, far] {
                socket2::SockRef::from(&*socket).set_linger(Some(Duration::ZERO))?;
            }
            Ok(())
        }
    }
}

async fn reset(mut strikes: Strikes) {
    while !matches!(strikes.recv().await, Ok((_, Strike::Reset))) {}
}

/// One direction of a connection.
#[derive(Debug)]
struct Link {
    way: Way,
    shapes: watch::Receiver<[Shape; 2]>,
    strikes: Strikes,
    random: Rng,
}

/// What is written when; nothing is the end.
type Piece = (Instant, Vec<u8>);

impl Link {
    async fn pass(self, from: ReadHalf<'_>, to: WriteHalf<'_>) -> std::io::Result<()> {
        let (way, shapes) = (self.way, self.shapes.clone());
        let (queue, queued) = mpsc::channel(16);
        tokio::try_join!(self.read(from, queue), write(to, queued, way, shapes)).map(drop)
    }

    async fn read(mut self, mut from: ReadHalf<'_>, queue: mpsc::Sender<Piece>) -> std::io::Result<()> {
        let (mut queue, mut flips, mut due) = (Some(queue), false, Instant::now());
        loop {
            let mut piece = vec![0; 4096];
            let read = tokio::select! {
                biased;
                struck = self.strikes.recv() => {
                    match struck {
                        Ok((way, _)) if way != self.way => {}
                        Ok((_, Strike::HalfClose)) => end(queue.take(), due).await,
                        Ok((_, Strike::Stall)) => std::future::pending().await,
                        Ok((_, Strike::Blackhole)) => queue = None,
                        Ok((_, Strike::Flip)) => flips = true,
                        Ok((_, Strike::Reset)) | Err(_) => {}
                    }
                    continue;
                }
                read = from.read(&mut piece) => read,
            };
            let Some(open) = &queue else {
                // Whatever comes, the end too, is lost.
                if matches!(read, Ok(0) | Err(_)) { return Ok(()) } else { continue }
            };
            piece.truncate(read?);
            let shape = self.shapes.borrow()[self.way as usize];
            if !shape.merge.is_zero() && !piece.is_empty() {
                tokio::time::sleep(shape.merge).await;
                // Also nothing may have come.
                let mut more = [0; 4096];
                let came = from.try_read(&mut more).unwrap_or(0);
                piece.extend_from_slice(&more[..came]);
            }
            if piece.is_empty() {
                end(queue, due).await;
                return Ok(());
            }
            if std::mem::take(&mut flips) {
                let place = self.random.usize(..piece.len());
                piece[place] ^= 1 << self.random.u8(..8);
            }
            // In order, whatever the jitter.
            due = due.max(Instant::now() + shape.delay + shape.jitter.mul_f64(self.random.f64()));
            if open.send((due, piece)).await.is_err() {
                return Ok(());
            }
        }
    }
}

async fn end(queue: Option<mpsc::Sender<Piece>>, due: Instant) {
    if let Some(queue) = queue {
        // Who writes may have failed.
        let _written = queue.send((due, Vec::new())).await;
    }
}

async fn write(
    mut to: WriteHalf<'_>,
    mut queued: mpsc::Receiver<Piece>,
    way: Way,
    shapes: watch::Receiver<[Shape; 2]>,
) -> std::io::Result<()> {
    while let Some((due, piece)) = queued.recv().await {
        tokio::time::sleep_until(due).await;
        if piece.is_empty() {
            return to.shutdown().await;
        }
        let shape = shapes.borrow()[way as usize];
        let at_a_time = if shape.split == 0 { piece.len() } else { shape.split };
        for part in piece.chunks(at_a_time) {
            to.write_all(part).await?;
        }
        if shape.rate > 0 {
            tokio::time::sleep(Duration::from_secs_f64(piece.len() as f64 / f64::from(shape.rate))).await;
        }
    }
    Ok(())
}
