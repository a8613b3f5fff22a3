//! Whether the peer's TCP has acknowledged all that was sent: asked of the kernel through its socket diagnosis
//! (`NETLINK_SOCK_DIAG`), the same number that SIOCOUTQ gives.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use culvert_http::Io;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};
use tokio::time::{Instant, sleep};

/// Waits until the reply is with the peer's TCP and its reader has had a moment to take it.
///
/// MOSN's agent reads the reply into a buffer that it never clears: a byte of the application protocol that stands
/// beside the reply there breaks this handshake, and all later ones of that connection.
pub(super) async fn reply_read(io: &Io) {
    match io.local_addr().zip(io.peer_addr()) {
        Some((local, peer)) => match acknowledged(local, peer).await {
            Ok(()) => {}
            Err(error) => {
                tracing::debug!(%peer, %error, "cannot ask the kernel for the reply's acknowledgement, waiting a fixed time");
                sleep(UNKNOWN).await;
            }
        },
        None => sleep(UNKNOWN).await,
    }
    sleep(READER).await;
}

async fn acknowledged(local: SocketAddr, peer: SocketAddr) -> std::io::Result<()> {
    let probe = Probe::open(local, peer)?;
    let deadline = Instant::now() + LIMIT;
    let mut pause = Duration::from_millis(1);
    while probe.unacknowledged()? > 0 {
        if Instant::now() >= deadline {
            return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "no acknowledgement"));
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(())
}

/// Asks for one connection.
struct Probe {
    netlink: OwnedFd,
    request: Vec<u8>,
}

impl Probe {
    fn open(local: SocketAddr, peer: SocketAddr) -> std::io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let netlink = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::SOCK_DIAG))?;
        Ok(Self { netlink, request: request(local, peer) })
    }

    /// Bytes that were written and not acknowledged. The kernel answers while the request is being sent, so nothing
    /// here waits.
    fn unacknowledged(&self) -> std::io::Result<u32> {
        send(&self.netlink, &self.request, SendFlags::empty())?;
        let mut answer = [0; 512];
        let (_, length) = recv(&self.netlink, &mut answer[..], RecvFlags::DONTWAIT)?;
        parse(answer.get(..length).unwrap_or_default())
    }
}

/// `nlmsghdr` and `inet_diag_req_v2` (linux/inet_diag.h).
fn request(local: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    // A dual-stack socket shows IPv4 peers as mapped addresses; the kernel finds it by the IPv4 ones.
    let (from, to) = (local.ip().to_canonical(), peer.ip().to_canonical());
    let family = if from.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let mut body = vec![u8::try_from(family.as_raw()).unwrap_or_default(), IPPROTO_TCP, 0, 0];
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(local.port().to_be_bytes());
    body.extend(peer.port().to_be_bytes());
    body.extend(padded(from));
    body.extend(padded(to));
    body.extend(interface(peer).to_ne_bytes());
    body.extend([0xff; 8]);
    let mut message = Vec::with_capacity(NLMSGHDR + body.len());
    message.extend(u32::try_from(NLMSGHDR + body.len()).unwrap_or_default().to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn padded(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V6(ip) => ip.octets(),
        IpAddr::V4(ip) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&ip.octets());
            octets
        }
    }
}

/// Link-local connections are bound to an interface.
fn interface(peer: SocketAddr) -> u32 {
    match peer {
        SocketAddr::V6(peer) => peer.scope_id(),
        SocketAddr::V4(_) => 0,
    }
}

/// `nlmsghdr`, then `nlmsgerr` or `inet_diag_msg`, of which the send queue is wanted.
fn parse(answer: &[u8]) -> std::io::Result<u32> {
    let malformed = || std::io::Error::new(std::io::ErrorKind::InvalidData, "malformed answer of the socket diagnosis");
    let kind = answer.get(4..).and_then(|rest| rest.first_chunk()).map(|bytes| u16::from_ne_bytes(*bytes));
    let word = |at: usize| answer.get(at..).and_then(|rest| rest.first_chunk()).map(|bytes| u32::from_ne_bytes(*bytes));
    match kind {
        Some(SOCK_DIAG_BY_FAMILY) => word(NLMSGHDR + INET_DIAG_WQUEUE).ok_or_else(malformed),
        Some(NLMSG_ERROR) => {
            let errno = word(NLMSGHDR).ok_or_else(malformed)?.cast_signed();
            Err(std::io::Error::from_raw_os_error(errno.saturating_neg()))
        }
        _ => Err(malformed()),
    }
}

/// How long after the acknowledgement the peer's reader may take.
const READER: Duration = Duration::from_millis(20);
/// How long the acknowledgement is given where it cannot be seen.
const UNKNOWN: Duration = Duration::from_millis(100);
/// How long it is waited for where it can. TCP_USER_TIMEOUT ends the connection soon after.
const LIMIT: Duration = Duration::from_secs(5);

const NLMSGHDR: usize = 16;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const IPPROTO_TCP: u8 = 6;
/// Offset of `idiag_wqueue`.
const INET_DIAG_WQUEUE: usize = 60;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn the_kernel_says_when_bytes_are_acknowledged() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address).await else {
                assert!(address.starts_with('['), "IPv4 loopback is always there");
                continue;
            };
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (mut server, peer) = listener.accept().await.unwrap();
            let probe = Probe::open(server.local_addr().unwrap(), peer).unwrap();
            assert_eq!(probe.unacknowledged().unwrap(), 0, "{address}: nothing was sent");
            server.write_all(b"reply").await.unwrap();
            acknowledged(server.local_addr().unwrap(), peer).await.unwrap();
            // More than the peer's buffer takes stays unacknowledged while nobody reads.
            let mut filled = 0;
            while let Ok(Ok(written)) =
                tokio::time::timeout(Duration::from_millis(200), server.write(&[0; 65_536])).await
            {
                filled += written;
            }
            assert!(probe.unacknowledged().unwrap() > 0, "{address}: {filled} bytes were sent to nobody");
            let mut buffer = vec![0; filled + 5];
            client.read_exact(&mut buffer).await.unwrap();
            acknowledged(server.local_addr().unwrap(), peer).await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_unknown_connection_is_an_error() {
        let nobody = "127.0.0.1:1".parse().unwrap();
        let probe = Probe::open(nobody, nobody).unwrap();
        let error = probe.unacknowledged().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
    }

    #[test]
    fn answers_that_are_none_are_refused() {
        for answer in [&[][..], &[0; 15], &[0; 100], &[0, 0, 0, 0, 20, 0, 0, 0]] {
            assert!(parse(answer).is_err(), "{answer:?}");
        }
    }
}
