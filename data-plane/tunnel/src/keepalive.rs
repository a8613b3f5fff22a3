//! Liveness of tunnel sockets. A tunnel has no idle timeout: a dead peer is found by TCP, from both ends.

use std::time::Duration;

use culvert_http::Io;
use culvert_runtime::sockets::{KeepAlive, set_keepalive, set_nodelay, set_user_timeout};

/// A peer that is silently gone is noticed within 6 s when the tunnel is idle.
const KEEPALIVE: KeepAlive =
    KeepAlive { time: Some(Duration::from_secs(2)), interval: Some(Duration::from_secs(2)), probes: Some(2) };
/// Within 5 s when bytes are on their way.
const USER_TIMEOUT: Duration = Duration::from_secs(5);

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
