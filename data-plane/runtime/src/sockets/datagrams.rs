//! Sockets of datagrams.

use std::net::{SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

/// A non-blocking socket for one peer beside those that share the address `local`: the kernel prefers it for what that peer
/// sends. Before it is connected it may get what was for the others.
///
/// # Errors
/// There is no socket left, or the address is not shared.
pub fn connected(local: SocketAddr, peer: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(local), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    // As those beside it.
    if local.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&local.into())?;
    socket.connect(&peer.into())?;
    Ok(socket.into())
}
