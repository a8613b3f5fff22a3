//! When a stock agent may get its first byte.

use std::net::SocketAddr;
use std::time::Duration;

use culvert_http::Io;
use tokio::time::{Instant, sleep};

use crate::diagnosis::diagnose;

/// Waits until the reply is with the peer's TCP and its reader has had a moment to take it.
///
/// MOSN's agent reads the reply into a buffer that it never clears: a byte of the application protocol that stands
/// beside the reply there breaks this handshake, and all later ones of that connection.
pub(super) async fn reply_read(io: &Io) {
    match io.local_addr().zip(io.peer_addr()) {
        Some((local, peer)) => {
            if let Err(error) = acknowledged(local, peer).await {
                tracing::debug!(%peer, %error, "the reply's acknowledgement cannot be seen, waiting a fixed time");
                sleep(UNKNOWN).await;
            }
        }
        None => sleep(UNKNOWN).await,
    }
    sleep(READER).await;
}

async fn acknowledged(local: SocketAddr, peer: SocketAddr) -> std::io::Result<()> {
    let deadline = Instant::now() + LIMIT;
    let mut pause = Duration::from_millis(1);
    while diagnose(local, peer)?.unacknowledged > 0 {
        if Instant::now() >= deadline {
            return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "no acknowledgement"));
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(())
}

/// How long after the acknowledgement the peer's reader may take.
const READER: Duration = Duration::from_millis(20);
/// How long the acknowledgement is given where it cannot be seen.
const UNKNOWN: Duration = Duration::from_millis(100);
/// How long it is waited for where it can. The connection is found dead soon after.
const LIMIT: Duration = Duration::from_secs(5);
