//! Listening sockets for N workers, and the options of TCP connections.
//!
//! Every worker accepts from a socket of its own; the kernel spreads connections over them (SO_REUSEPORT). **A socket
//! that closes resets what waits in its accept queue**, so [`drain_accept_queue`] comes first.

mod datagrams;

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

pub use datagrams::connected;

/// How to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenOptions {
    /// Connections that may wait to be accepted, per socket; the kernel caps it at `net.core.somaxconn`.
    pub backlog: u32,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self { backlog: 4096 }
    }
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("address {0} is in use by another socket; stop its owner or choose another port")]
    InUse(SocketAddr),
    #[error("address {0} needs a privilege to bind; use a port from 1024 up or grant CAP_NET_BIND_SERVICE")]
    Denied(SocketAddr),
    #[error("address {0} belongs to no interface of this machine")]
    NotOurs(SocketAddr),
    #[error("address {address} cannot be listened on: {source}")]
    Other { address: SocketAddr, source: std::io::Error },
}

/// What comes to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    Connections,
    Datagrams,
}

/// What is to be bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub traffic: Traffic,
    pub address: SocketAddr,
    /// For `::`: whether it is IPv4's wildcard too, whose clients then have addresses that are mapped into IPv6.
    pub ipv4_too: bool,
}

/// A socket that is listened on.
#[derive(Debug)]
pub enum Listening {
    Connections(TcpListener),
    Datagrams(UdpSocket),
}

impl Listening {
    /// Another handle of the same socket.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(match self {
            Self::Connections(socket) => Self::Connections(socket.try_clone()?),
            Self::Datagrams(socket) => Self::Datagrams(socket.try_clone()?),
        })
    }

    /// With the port that was given for port 0.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        match self {
            Self::Connections(socket) => socket.local_addr(),
            Self::Datagrams(socket) => socket.local_addr(),
        }
    }
}

/// An address that is bound for `count` sockets and not listened on yet: nobody can connect. Datagrams wait in the sockets
/// from now on.
#[derive(Debug)]
pub struct Reserved {
    sockets: Vec<Socket>,
    /// With the port that was given for port 0.
    place: Place,
    /// Sockets of another process may be beside them.
    shared: bool,
}

/// Binds `count` non-blocking sockets to one address; with port 0 they share the port that the first gets.
///
/// # Errors
/// The address is in use, also when sockets of another process hold it that would share it, or cannot be bound.
pub fn reserve(place: Place, count: usize) -> Result<Reserved, BindError> {
    probe(place)?;
    bound(place, count, false)
}

/// [`reserve`] for a process that takes another one's place: the address may be held by sockets that share it, of the same
/// user. The kernel spreads connections over both until the other process closes its own.
///
/// # Errors
/// The address is in use by sockets that do not share it, or cannot be bound.
pub fn share(place: Place, count: usize) -> Result<Reserved, BindError> {
    bound(place, count, true)
}

fn bound(place: Place, count: usize, shared: bool) -> Result<Reserved, BindError> {
    let fail = |source| BindError::new(place.address, source);
    let first = socket(place, Share::Yes).map_err(fail)?;
    let address = first.local_addr().map_err(fail)?.as_socket().unwrap_or(place.address);
    let place = Place { address, ..place };
    let mut sockets = vec![first];
    for _ in 1..count {
        sockets.push(socket(place, Share::Yes).map_err(fail)?);
    }
    Ok(Reserved { sockets, place, shared })
}

/// Whether an address can be bound, by a socket that does not share: it is closed again without ever listening.
///
/// # Errors
/// Somebody listens there, sharing or not, or the address cannot be bound.
pub fn probe(place: Place) -> Result<(), BindError> {
    if place.address.port() == 0 {
        return Ok(());
    }
    socket(place, Share::No).map(drop).map_err(|source| BindError::new(place.address, source))
}

impl Reserved {
    /// With the port that was given for port 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.place.address
    }

    /// From now on connections are taken, and wait to be accepted.
    ///
    /// # Errors
    /// The kernel refuses, for instance because somebody else listens there by now.
    pub fn listen(self, options: ListenOptions) -> Result<Vec<Listening>, BindError> {
        if self.place.traffic == Traffic::Datagrams {
            return Ok(self.sockets.into_iter().map(|socket| Listening::Datagrams(socket.into())).collect());
        }
        // Somebody may have begun to listen since; ours do not yet, so they do not stand in their own way.
        if !self.shared {
            probe(self.place)?;
        }
        let backlog = i32::try_from(options.backlog).unwrap_or(i32::MAX);
        for socket in &self.sockets {
            socket.listen(backlog).map_err(|source| BindError::new(self.place.address, source))?;
        }
        Ok(self.sockets.into_iter().map(|socket| Listening::Connections(socket.into())).collect())
    }
}

/// [`reserve`] and [`Reserved::listen`], for connections.
///
/// # Errors
/// See both.
pub fn bind(address: SocketAddr, count: usize, options: ListenOptions) -> Result<Vec<TcpListener>, BindError> {
    let place = Place { traffic: Traffic::Connections, address, ipv4_too: false };
    let sockets = reserve(place, count)?.listen(options)?;
    let connections = |socket| match socket {
        Listening::Connections(socket) => Some(socket),
        Listening::Datagrams(_) => None,
    };
    Ok(sockets.into_iter().filter_map(connections).collect())
}

impl BindError {
    fn new(address: SocketAddr, source: std::io::Error) -> Self {
        match source.kind() {
            std::io::ErrorKind::AddrInUse => Self::InUse(address),
            std::io::ErrorKind::PermissionDenied => Self::Denied(address),
            std::io::ErrorKind::AddrNotAvailable => Self::NotOurs(address),
            _ => Self::Other { address, source },
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Share {
    Yes,
    No,
}

fn socket(place: Place, share: Share) -> std::io::Result<Socket> {
    let Place { traffic, address, ipv4_too } = place;
    let (kind, protocol) = match traffic {
        Traffic::Connections => (Type::STREAM, Protocol::TCP),
        Traffic::Datagrams => (Type::DGRAM, Protocol::UDP),
    };
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking(), Some(protocol))?;
    if traffic == Traffic::Connections {
        // A port whose connections are in TIME_WAIT can be bound; one that is listened on cannot. (With datagrams it would
        // mean to share.)
        socket.set_reuse_address(true)?;
    }
    if share == Share::Yes {
        socket.set_reuse_port(true)?;
    }
    // Whatever the system's default is: IPv4's wildcard may be another listener's.
    if address.is_ipv6() {
        socket.set_only_v6(!ipv4_too)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Takes what waits in the accept queue of a listening socket (std's or tokio's), up to `limit` connections. They are
/// non-blocking. To be called before the socket closes.
pub fn drain_accept_queue(listener: &impl AsFd, limit: usize) -> Vec<(TcpStream, SocketAddr)> {
    let listener = SockRef::from(listener);
    let mut accepted = Vec::new();
    while accepted.len() < limit {
        match listener.accept() {
            Ok((socket, peer)) => {
                if let Some(peer) = peer.as_socket()
                    && socket.set_nonblocking(true).is_ok()
                {
                    accepted.push((TcpStream::from(socket), peer));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            // Of one connection that is gone already.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept what waits before a listening socket closes");
                break;
            }
        }
    }
    accepted
}

/// Keep-alive probes; `None` leaves the kernel's setting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeepAlive {
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    pub interval: Option<Duration>,
    /// Unanswered probes until the connection is given up.
    pub probes: Option<u32>,
}

/// No waiting for more bytes before a segment is sent. Connections that a listening socket accepts inherit it.
///
/// # Errors
/// The socket is gone.
pub fn set_nodelay(stream: &impl AsFd) -> std::io::Result<()> {
    SockRef::from(stream).set_tcp_nodelay(true)
}

/// Turns keep-alive probes on.
///
/// # Errors
/// The kernel refuses a value or the socket is gone.
pub fn set_keepalive(stream: &impl AsFd, keepalive: KeepAlive) -> std::io::Result<()> {
    let mut options = TcpKeepalive::new();
    if let Some(time) = keepalive.time {
        options = options.with_time(time);
    }
    if let Some(interval) = keepalive.interval {
        options = options.with_interval(interval);
    }
    if let Some(probes) = keepalive.probes {
        options = options.with_retries(probes);
    }
    SockRef::from(stream).set_tcp_keepalive(&options)
}

/// How long sent bytes may stay unacknowledged before the connection is given up (TCP_USER_TIMEOUT).
///
/// # Errors
/// The socket is gone.
pub fn set_user_timeout(stream: &impl AsFd, timeout: Duration) -> std::io::Result<()> {
    SockRef::from(stream).set_tcp_user_timeout(Some(timeout))
}

#[cfg(test)]
mod tests;
