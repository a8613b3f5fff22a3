//! Liveness of tunnel sockets. A tunnel has no idle timeout: a dead peer is found by what TCP hears of it, at both ends.
//!
//! **A peer that reads slowly is not dead.** The kernel's own TCP_USER_TIMEOUT cannot tell: it also ends a connection
//! whose peer answers every probe that its window is still closed. So it is long here, and [`lost`] looks at when the
//! peer's TCP last acknowledged anything.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use culvert_http::Io;
use culvert_runtime::sockets::{KeepAlive, set_keepalive, set_nodelay, set_user_timeout};
use rustix::net::{Shutdown, shutdown};
use tokio::time::sleep;

use crate::diagnosis::{Diagnosis, diagnose};

/// Sets the socket's options; a connection in memory has none. An idle peer is probed every `interval`.
pub(crate) fn enable(io: &Io, interval: Duration) {
    let Some(socket) = io.socket() else { return };
    let keepalive = KeepAlive { time: Some(interval), interval: Some(interval), probes: Some(PROBES) };
    let set = set_nodelay(&socket)
        .and_then(|()| set_keepalive(&socket, keepalive))
        .and_then(|()| set_user_timeout(&socket, USER_TIMEOUT));
    if let Err(error) = set {
        tracing::debug!(%error, "keep-alive of a tunnel socket could not be set; a dead peer is noticed later");
    }
}

/// The ends of a connection, if it has any.
pub(crate) fn ends(io: &Io) -> Option<(SocketAddr, SocketAddr)> {
    io.local_addr().zip(io.peer_addr())
}

/// Ends a connection from the side, whoever holds it. By default it ends none.
#[derive(Debug, Default)]
pub(crate) struct Cord(Option<OwnedFd>);

impl Cord {
    /// Does nothing for a connection in memory, or when there is no file descriptor left.
    pub(crate) fn of(io: &Io) -> Self {
        Self(io.socket().and_then(|socket| {
            let cloned = socket.try_clone_to_owned();
            cloned.inspect_err(|error| tracing::debug!(%error, "a tunnel cannot be cut off from the side")).ok()
        }))
    }

    /// Both directions end: the holder reads the end of the connection and cannot write.
    pub(crate) fn pull(self) {
        if let Some(socket) = self.0
            && let Err(error) = shutdown(&socket, Shutdown::Both)
        {
            tracing::trace!(%error, "the tunnel was closed already");
        }
    }
}

/// Resolves when the peer is silently gone: within three intervals, idle or with bytes on their way. Never resolves
/// where the kernel cannot be asked: there [`USER_TIMEOUT`] ends it. `stalled` is called when bytes of ours
/// have not been acknowledged for too long.
#[expect(clippy::manual_async_fn, reason = "an async function has each argument twice, and every idle tunnel has this")]
pub(crate) fn lost(
    ends: Option<(SocketAddr, SocketAddr)>,
    interval: Duration,
    stalled: impl Fn(),
) -> impl Future<Output = ()> {
    async move {
        let Some((local, peer)) = &ends else { return std::future::pending().await };
        let mut suspected = false;
        let mut pause = patience(interval);
        loop {
            sleep(pause).await;
            match look((*local, *peer), interval, suspected, &stalled) {
                Look::Alive { silent, next } => (suspected, pause) = (silent, next),
                Look::Gone => return,
                Look::Ended => return std::future::pending().await,
            }
        }
    }
}

/// What one look at a connection has found.
enum Look {
    /// When to look again, and whether it has been silent for long.
    Alive {
        silent: bool,
        next: Duration,
    },
    Gone,
    /// The kernel has no such connection any more: whoever reads it hears of its end.
    Ended,
}

fn look((local, peer): (SocketAddr, SocketAddr), interval: Duration, suspected: bool, stalled: &impl Fn()) -> Look {
    let patience = patience(interval);
    match diagnose(local, peer) {
        // Once is not enough: a probe may have been sent just now, and its answer be on its way.
        Ok(diagnosis) if is_silent(diagnosis, patience) && suspected => {
            tracing::info!(%peer, silence = ?diagnosis.silence, "the other end of a tunnel is silently gone");
            Look::Gone
        }
        Ok(diagnosis) => {
            let silent = is_silent(diagnosis, patience);
            if silent && !suspected && diagnosis.unacknowledged > 0 {
                let bytes = diagnosis.unacknowledged;
                tracing::info!(%peer, bytes, silence = ?diagnosis.silence, "bytes of a tunnel are not acknowledged");
                stalled();
            }
            // No sooner than it can have been silent for too long.
            Look::Alive { silent, next: patience.saturating_sub(diagnosis.silence).max(interval / 4) }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            tracing::trace!(%peer, "a tunnel's connection is over");
            Look::Ended
        }
        // Of descriptors or memory there may be enough the next time.
        Err(error) => {
            tracing::debug!(%peer, %error, "a tunnel's socket cannot be looked at now; the next look is in an interval");
            Look::Alive { silent: suspected, next: interval }
        }
    }
}

/// Something was asked of the peer's TCP, by a probe or by bytes sent once more, and it has not answered for long.
fn is_silent(diagnosis: Diagnosis, patience: Duration) -> bool {
    diagnosis.unanswered > 0 && diagnosis.silence >= patience
}

/// Since the last answer: an interval until the next probe, and most of another for its answer.
pub(crate) fn patience(interval: Duration) -> Duration {
    interval.mul_f64(1.75)
}

/// Then the kernel ends an idle connection by itself.
const PROBES: u32 = 3;
/// Where the kernel cannot be asked. Also how long a peer's window may stay closed.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
