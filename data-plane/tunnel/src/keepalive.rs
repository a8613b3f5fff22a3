//! Liveness of tunnel sockets. A tunnel has no idle timeout: a dead peer is found by what TCP hears of it, at both ends.
//!
//! **A peer that reads slowly is not dead.** The kernel's own TCP_USER_TIMEOUT cannot tell: it also ends a connection
//! whose peer answers every probe that its window is still closed. So it is long here, and [`lost`] looks at when the
//! peer's TCP last acknowledged anything.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use culvert_http::Io;
use culvert_runtime::sockets::{KeepAlive, set_keepalive, set_nodelay, set_user_timeout};
use rustix::net::{Shutdown, shutdown};
use tokio::time::sleep;

use crate::diagnosis::{Diagnosis, diagnose};

/// Sets the socket's options; a connection in memory has none.
pub(crate) fn enable(io: &Io) {
    let Some(socket) = io.socket() else { return };
    let set = set_nodelay(&socket)
        .and_then(|()| set_keepalive(&socket, KEEPALIVE))
        .and_then(|()| set_user_timeout(&socket, USER_TIMEOUT));
    if let Err(error) = set {
        tracing::debug!(%error, "keep-alive of a tunnel socket could not be set; a dead peer is noticed later");
    }
}

/// The ends of a connection, if it has any.
pub(crate) fn ends(io: &Io) -> Option<(SocketAddr, SocketAddr)> {
    io.local_addr().zip(io.peer_addr())
}

/// Ends a connection from the side, whoever holds it.
#[derive(Debug)]
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

/// Resolves when the peer is silently gone: within 6 s, idle or with bytes on their way. Never resolves for a
/// connection that the kernel cannot be asked about: there [`USER_TIMEOUT`] ends it.
pub(crate) async fn lost(ends: Option<(SocketAddr, SocketAddr)>) {
    let Some((local, peer)) = ends else { return std::future::pending().await };
    loop {
        sleep(LOOK).await;
        let mut suspected = 0;
        loop {
            match diagnose(local, peer) {
                Ok(diagnosis) if is_silent(diagnosis) => suspected += 1,
                Ok(_) => break,
                // Whoever reads the connection hears of its end.
                Err(error) => {
                    tracing::trace!(%peer, %error, "a tunnel's socket cannot be looked at");
                    return std::future::pending().await;
                }
            }
            // Once is not enough: a probe may have been sent just now, and its answer be on its way.
            if suspected > 1 {
                tracing::info!(%peer, "the other end of a tunnel is silently gone");
                return;
            }
            sleep(LOOK_AGAIN).await;
        }
    }
}

/// Something was asked of the peer's TCP, by a probe or by bytes sent once more, and it has not answered for long.
fn is_silent(diagnosis: Diagnosis) -> bool {
    diagnosis.unanswered > 0 && diagnosis.silence >= SILENCE
}

/// Probes when the tunnel is idle.
const KEEPALIVE: KeepAlive =
    KeepAlive { time: Some(Duration::from_secs(2)), interval: Some(Duration::from_secs(2)), probes: Some(3) };
/// Where the kernel cannot be asked. Also how long a peer's window may stay closed.
const USER_TIMEOUT: Duration = Duration::from_secs(60);
const SILENCE: Duration = Duration::from_millis(3500);
const LOOK: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;

    #[test]
    fn silence_counts_only_when_something_was_asked() {
        for (unanswered, silence, expected) in
            [(0, 0, false), (0, 3_600_000, false), (1, 3499, false), (1, 3500, true), (7, 60_000, true), (7, 10, false)]
        {
            let silence = Duration::from_millis(silence);
            let diagnosis = Diagnosis { unacknowledged: 0, unanswered, silence };
            assert_eq!(is_silent(diagnosis), expected, "{diagnosis:?}");
        }
    }

    async fn pair() -> (Io, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let reader = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let writer = Io::tcp(listener.accept().await.unwrap().0);
        enable(&writer);
        (writer, reader)
    }

    /// Fills the reader's buffers; how much it took.
    async fn fill(writer: &mut Io) -> usize {
        let mut filled = 0;
        while let Ok(Ok(written)) = timeout(Duration::from_millis(200), writer.write(&[0; 65_536])).await {
            filled += written;
        }
        filled
    }

    #[tokio::test]
    async fn an_idle_peer_is_not_lost() {
        let (writer, _reader) = pair().await;
        assert!(timeout(Duration::from_secs(9), lost(ends(&writer))).await.is_err(), "taken for lost");
    }

    /// For longer than a dead one would be given.
    #[tokio::test]
    async fn a_peer_that_does_not_read_is_not_lost() {
        let (mut writer, mut reader) = pair().await;
        let filled = fill(&mut writer).await;
        assert!(timeout(Duration::from_secs(9), lost(ends(&writer))).await.is_err(), "taken for lost");
        let mut all = vec![0; filled];
        reader.read_exact(&mut all).await.unwrap();
        assert!(writer.write_all(b"more").await.is_ok(), "ended while its peer did not read");
    }

    /// The cable is cut: no FIN, no RST, nothing.
    #[tokio::test]
    #[ignore = "takes the loopback away; run in a network namespace of its own: unshare -rn cargo test -- --ignored"]
    async fn a_peer_that_is_silently_gone_is_lost() {
        let run = |command: &str| {
            let mut words = command.split(' ');
            let status = std::process::Command::new(words.next().unwrap()).args(words).status().unwrap();
            assert!(status.success(), "{command}");
        };
        run("ip link set lo up");
        let (idle, _idle_reader) = pair().await;
        let (mut busy, _busy_reader) = pair().await;
        let (mut full, _full_reader) = pair().await;
        fill(&mut full).await;
        run("ip link set lo down");
        busy.write_all(b"request").await.unwrap();
        let cut = tokio::time::Instant::now();
        let noticed = async |name: &str, io: &Io| {
            let noticed = timeout(Duration::from_secs(20), lost(ends(io))).await;
            assert!(noticed.is_ok(), "{name}: not noticed");
            let after = cut.elapsed();
            assert!(after < Duration::from_secs(7), "{name}: noticed after {after:?}");
        };
        tokio::join!(noticed("busy", &busy), noticed("idle", &idle), noticed("with a closed window", &full));
    }

    #[tokio::test]
    async fn a_cord_ends_the_connection_whoever_holds_it() {
        let (writer, mut reader) = pair().await;
        let cord = Cord::of(&writer);
        let mut held = writer;
        cord.pull();
        assert_eq!(held.read(&mut [0]).await.unwrap(), 0, "read by the holder");
        assert!(held.write_all(b"x").await.is_err(), "written by the holder");
        assert_eq!(reader.read(&mut [0]).await.unwrap(), 0, "read by the peer");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_socket_is_never_lost() {
        assert!(timeout(Duration::from_secs(3600), lost(None)).await.is_err(), "lost");
        let nobody = Some(("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()));
        assert!(timeout(Duration::from_secs(3600), lost(nobody)).await.is_err(), "lost");
    }
}
