//! From an accepted connection to its network filter.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use culvert_http::Io;

use super::{ListenerSlot, TlsDetails};
use crate::worker::Worker;

/// Accepts connections from `socket` on this worker and serves each as a local task. Returns when the listener has
/// been told to drain and what waited in the accept queue has been taken; the socket is closed then. Connections live on:
/// see [`ListenerSlot::drained`].
///
/// # Errors
/// The socket cannot be registered with this worker's reactor.
pub async fn serve_listener(
    worker: Rc<Worker>,
    socket: std::net::TcpListener,
    slot: Arc<ListenerSlot>,
) -> std::io::Result<()> {
    let _ = (worker, socket, slot);
    todo!()
}

/// Serves a connection that a tunnel brought.
pub(crate) async fn serve_hosted(
    worker: &Rc<Worker>,
    slot: &Arc<ListenerSlot>,
    io: Io,
    peer: SocketAddr,
    local: SocketAddr,
) {
    let _ = (worker, slot, io, peer, local);
    todo!()
}

/// Who is at the other end of a connection, for headers and logs.
#[derive(Debug)]
pub(crate) struct Downstream {
    pub(crate) id: u64,
    pub(crate) remote: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) tls: Option<TlsDetails>,
    pub(crate) chain: Arc<str>,
}
