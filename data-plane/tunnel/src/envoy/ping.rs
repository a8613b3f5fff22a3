//! The idle phase: until the server sends its first byte of HTTP/2 (or TLS), it sends `RPING` and the agent echoes it.
//! **After any other byte the phase is over for good.**

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use culvert_http::Io;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout};

/// What is sent and echoed.
pub const RPING: &[u8] = b"RPING";

/// How often an idle tunnel is asked, and how long it may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pings {
    /// The longest time between two.
    pub interval: Duration,
    /// Intervals without a word of the agent after which the tunnel is dead.
    pub threshold: u32,
}

impl Pings {
    /// When a tunnel is dead of which nothing was `heard` since, and which was `asked` then: so early that whoever looks after so
    /// many intervals sees it. However small the threshold, a ping has one interval to be answered.
    fn deadline(&self, heard: Instant, asked: Instant) -> Instant {
        (heard + self.interval * self.threshold - self.interval / 10).max(asked + self.interval)
    }
}

/// What befalls an idle tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ping {
    Sent,
    Answered,
    /// So many in a row were not answered in their interval.
    Missed(u32),
    /// And that was too many.
    Silent(u32),
}

/// Why an idle tunnel is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum IdleError {
    #[error("the peer closed it")]
    Closed,
    #[error("{0} pings in a row were not answered")]
    Silent(u32),
    /// Envoy 1.40 does so when `RPING` and HTTP/2 reach it in the wrong order.
    #[error("the peer answers as an HTTP/1 server: its parser has lost the tunnel's beginning")]
    Poisoned,
    #[error("the peer sent bytes that are no answer to a ping")]
    Unexpected,
    #[error("the peer floods it with pings")]
    Flood,
    #[error("no ping for {0:?}")]
    Missed(Duration),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Takes whole pings off the front; how many.
pub fn take_pings(buffer: &mut BytesMut) -> u32 {
    let mut taken = 0;
    while buffer.starts_with(RPING) {
        buffer.advance(RPING.len());
        taken += 1;
    }
    taken
}

/// Whether the bytes may still become a ping.
#[must_use]
pub fn may_become_ping(bytes: &[u8]) -> bool {
    bytes.len() < RPING.len() && RPING.starts_with(bytes)
}

/// The server's side: pings until `wanted` resolves; `told` hears of each. **No answer is under way when it returns**, so that what comes next
/// from the peer is HTTP/2.
///
/// # Errors
/// The tunnel is dead.
pub async fn idle(
    io: &mut Io,
    pings: Pings,
    wanted: impl Future<Output = ()>,
    told: impl Fn(Ping),
) -> Result<(), IdleError> {
    let mut wanted = std::pin::pin!(wanted);
    let (mut is_wanted, mut unanswered, mut missed) = (false, 0_u32, 0_u32);
    let mut buffer = BytesMut::new();
    let mut next = Instant::now() + jittered(pings.interval);
    // When it was heard last, and asked first since then.
    let (mut heard, mut asked) = (Instant::now(), Instant::now());
    loop {
        if is_wanted && unanswered == 0 && buffer.is_empty() {
            return Ok(());
        }
        buffer.reserve(READ);
        tokio::select! {
            biased;
            () = &mut wanted, if !is_wanted => is_wanted = true,
            read = io.read_buf(&mut buffer) => {
                if read? == 0 {
                    return Err(IdleError::Closed);
                }
                let answered = take_pings(&mut buffer);
                if answered > unanswered || !(buffer.is_empty() || may_become_ping(&buffer)) {
                    let poisoned = buffer.starts_with(b"HTTP/1.");
                    return Err(if poisoned { IdleError::Poisoned } else { IdleError::Unexpected });
                }
                if answered > 0 {
                    // What is still to come was asked lately.
                    (heard, asked) = (Instant::now(), Instant::now());
                    (unanswered, missed) = (unanswered - answered, 0);
                    told(Ping::Answered);
                }
            }
            () = sleep_until(pings.deadline(heard, asked)), if unanswered > 0 => {
                told(Ping::Silent(unanswered));
                return Err(IdleError::Silent(unanswered));
            }
            () = sleep_until(next) => {
                if unanswered > 0 {
                    missed += 1;
                    told(Ping::Missed(missed));
                }
                // Once the tunnel is wanted, nothing may be asked that would be answered later.
                if !is_wanted {
                    write(io, RPING, pings.interval).await?;
                    asked = if unanswered == 0 { Instant::now() } else { asked };
                    unanswered += 1;
                    told(Ping::Sent);
                }
                next = Instant::now() + jittered(pings.interval);
            }
        }
    }
}

/// The agent's side: echoes pings until other bytes come, and hands these back. `first` came with the handshake's answer
/// and is looked at before anything is read.
///
/// # Errors
/// The tunnel is dead. Once pings have come regularly, 2.4 of their longest intervals without one (at least [`LEAST_SILENCE`])
/// tell that the server is gone. Until then `patience` is all there is: after three fifths of it, without a ping, `doubt` is called, **so that
/// another tunnel can take the place of this one before it ends**.
pub async fn echo(io: &mut Io, first: Bytes, patience: &Patience, doubt: impl Fn()) -> Result<Bytes, IdleError> {
    let mut buffer = BytesMut::from(&*first);
    let mut rhythm = Rhythm::default();
    loop {
        let pings = take_pings(&mut buffer);
        if !(buffer.is_empty() || may_become_ping(&buffer)) {
            // Pings that came right before need no answer any more: the server waits for none once it has begun.
            return Ok(buffer.freeze());
        }
        if pings > 0 {
            rhythm.heard(pings)?;
            if let Some(silence) = rhythm.silence() {
                patience.learn(silence);
            }
            let count = usize::try_from(pings).unwrap_or(0);
            write(io, &RPING.repeat(count), ECHO_TIMEOUT).await?;
        }
        buffer.reserve(READ);
        let read = match rhythm.silence() {
            Some(silence) => came_within(silence, io, &mut buffer).await.ok_or(IdleError::Missed(silence))?,
            None => came_in_patience(patience, &doubt, io, &mut buffer).await?,
        };
        if read? == 0 {
            return Err(IdleError::Closed);
        }
    }
}

/// What is read before the server counts as gone, as long as nobody knows how often it pings.
async fn came_in_patience(
    patience: &Patience,
    doubt: impl Fn(),
    io: &mut Io,
    buffer: &mut BytesMut,
) -> Result<std::io::Result<usize>, IdleError> {
    let silence = patience.get();
    let doubted = silence * 3 / 5;
    if let Some(read) = came_within(doubted, io, buffer).await {
        return Ok(read);
    }
    patience.doubt(silence);
    doubt();
    came_within(silence - doubted, io, buffer).await.ok_or_else(|| patience.missed(silence))
}

/// What is read within that time. When a process that was stopped goes on, its timers are over before it knows what has come meanwhile: so
/// the last of the time is another look.
async fn came_within(limit: Duration, io: &mut Io, buffer: &mut BytesMut) -> Option<std::io::Result<usize>> {
    if let Ok(read) = timeout(limit.saturating_sub(ANOTHER_LOOK), io.read_buf(buffer)).await {
        return Some(read);
    }
    timeout(ANOTHER_LOOK, io.read_buf(buffer)).await.ok()
}

/// How long a server may leave its tunnels without a ping, from one of its tunnels to the next: **a guess, as no word of the dialect says
/// it**, until one of them has been pinged twice. In the guess a server that is stopped right after its answer is noticed as any other; one
/// that pings less often sees a few tunnels replaced, each after twice the time, until its interval is known.
#[derive(Debug)]
pub struct Patience(Mutex<Duration>);

impl Default for Patience {
    fn default() -> Self {
        Self(Mutex::new(FIRST_SILENCE))
    }
}

impl Patience {
    fn get(&self) -> Duration {
        *self.0.lock()
    }

    fn learn(&self, silence: Duration) {
        *self.0.lock() = silence;
    }

    /// Nothing came for most of that time: the next tunnel waits for longer. Several tunnels that doubt at once count once.
    fn doubt(&self, silence: Duration) {
        let mut current = self.0.lock();
        *current = (silence * 2).min(GREATEST_SILENCE).max(*current);
    }

    /// And no tunnel has taken the place of that one: it was right to doubt.
    fn missed(&self, silence: Duration) -> IdleError {
        self.learn(silence);
        IdleError::Missed(silence)
    }
}

/// How pings come in.
#[derive(Debug, Default)]
struct Rhythm {
    last: Option<Instant>,
    /// The longest time between two so far.
    longest: Option<Duration>,
    /// Since the start of the second that is counted.
    burst: Option<(Instant, u32)>,
}

impl Rhythm {
    fn heard(&mut self, pings: u32) -> Result<(), IdleError> {
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.longest = self.longest.max(Some(now - last));
        }
        let (since, count) = match self.burst {
            Some((since, count)) if now - since < Duration::from_secs(1) => (since, count + pings),
            _ => (now, pings),
        };
        self.burst = Some((since, count));
        if count > MAX_PINGS { Err(IdleError::Flood) } else { Ok(()) }
    }

    /// After which the server is gone, once that is known.
    fn silence(&self) -> Option<Duration> {
        // An Envoy pings every 2.05 to 2.45 s where 2 s were configured: the third one is due by then, and two were missed.
        self.longest.map(|longest| (longest * 12 / 5).max(LEAST_SILENCE))
    }
}

/// A peer that takes not even this is dead.
async fn write(io: &mut Io, bytes: &[u8], limit: Duration) -> Result<(), IdleError> {
    let written = timeout(limit, async {
        io.write_all(bytes).await?;
        io.flush().await
    });
    written.await.map_err(|_| IdleError::Silent(1))?.map_err(IdleError::Io)
}

/// Up to a fifth less, so that tunnels that came together do not ping together.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(1.0 - fastrand::f64() / 5.0)
}

/// Less silence than this tells an agent nothing.
pub const LEAST_SILENCE: Duration = Duration::from_secs(5);
/// As if 2 s were known to be the interval, which it is where an Envoy is configured with none: doubted after 3 s, when one ping has had to
/// come, and over before three intervals are.
const FIRST_SILENCE: Duration = LEAST_SILENCE;
/// Three times the longest interval that an Envoy can be given.
const GREATEST_SILENCE: Duration = Duration::from_secs(900);
const ANOTHER_LOOK: Duration = Duration::from_millis(10);
/// Bytes that are asked for at once.
const READ: usize = 1024;
const ECHO_TIMEOUT: Duration = Duration::from_secs(5);
/// In one second: 64 KiB of pings, as Envoy's initiator takes.
const MAX_PINGS: u32 = 64 * 1024 / 5;

#[cfg(test)]
mod tests;
