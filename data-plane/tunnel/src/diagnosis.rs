//! What the kernel knows of a TCP connection: asked through its socket diagnosis (`NETLINK_SOCK_DIAG`).
//!
//! The kernel answers while the request is being sent, so nothing here waits; a question costs some microseconds.

use std::cell::RefCell;
use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

/// One connection at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Diagnosis {
    /// Bytes that were written and that the peer's TCP has not acknowledged (what SIOCOUTQ tells).
    pub(crate) unacknowledged: u32,
    /// Retransmissions and probes since the last acknowledgement.
    pub(crate) unanswered: u32,
    /// Since the last acknowledgement.
    pub(crate) silence: Duration,
}

/// Looks at the connection with these ends.
///
/// # Errors
/// There is no such connection, or the kernel is not to be asked (no `NETLINK_SOCK_DIAG` here, or not for us).
pub(crate) fn diagnose(local: SocketAddr, peer: SocketAddr) -> Result<Diagnosis> {
    thread_local! {
        static NETLINK: RefCell<Option<Netlink>> = const { RefCell::new(None) };
    }
    NETLINK.with_borrow_mut(|slot| {
        let mut netlink = match slot.take() {
            Some(netlink) => netlink,
            None => Netlink::open()?,
        };
        let answer = netlink.ask(local, peer)?;
        // After an error that is none of the connection's the socket is not used again.
        *slot = Some(netlink);
        answer
    })
}

struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    fn open() -> Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::SOCK_DIAG))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The outer error is the socket's, the inner one the connection's.
    fn ask(&mut self, local: SocketAddr, peer: SocketAddr) -> Result<Result<Diagnosis>> {
        self.sequence = self.sequence.wrapping_add(1);
        send(&self.socket, &request(self.sequence, local, peer), SendFlags::empty())?;
        let mut answer = [0; 1024];
        let (_, length) = recv(&self.socket, &mut answer[..], RecvFlags::DONTWAIT)?;
        let answer = answer.get(..length).unwrap_or_default();
        if word(answer, 8) != Some(self.sequence) {
            return Err(malformed());
        }
        Ok(parse(answer))
    }
}

/// `nlmsghdr` and `inet_diag_req_v2` (linux/inet_diag.h).
fn request(sequence: u32, local: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    // A dual-stack socket shows IPv4 peers as mapped addresses; the kernel finds it by the IPv4 ones.
    let (from, to) = (local.ip().to_canonical(), peer.ip().to_canonical());
    let family = if from.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let mut body = vec![u8::try_from(family.as_raw()).unwrap_or_default(), IPPROTO_TCP, WITH_TCP_INFO, 0];
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(local.port().to_be_bytes());
    body.extend(peer.port().to_be_bytes());
    body.extend(padded(from));
    body.extend(padded(to));
    body.extend(interface(peer).to_ne_bytes());
    // No cookie.
    body.extend([0xff; 8]);
    let mut message = Vec::with_capacity(NLMSGHDR + body.len());
    message.extend(u32::try_from(NLMSGHDR + body.len()).unwrap_or_default().to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend([0; 4]);
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

/// `nlmsghdr`, then `nlmsgerr`, or `inet_diag_msg` with attributes.
fn parse(answer: &[u8]) -> Result<Diagnosis> {
    match half(answer, 4) {
        Some(SOCK_DIAG_BY_FAMILY) => {
            let unacknowledged = word(answer, NLMSGHDR + WQUEUE).ok_or_else(malformed)?;
            let info = attribute(answer.get(NLMSGHDR + INET_DIAG_MSG..).unwrap_or_default(), INET_DIAG_INFO);
            let info = info.ok_or_else(malformed)?;
            let (retransmits, probes) = info.get(2).zip(info.get(3)).ok_or_else(malformed)?;
            let silence = word(info, LAST_ACK_RECV).ok_or_else(malformed)?;
            Ok(Diagnosis {
                unacknowledged,
                unanswered: u32::from(*retransmits) + u32::from(*probes),
                silence: Duration::from_millis(silence.into()),
            })
        }
        Some(NLMSG_ERROR) => {
            let errno = word(answer, NLMSGHDR).ok_or_else(malformed)?.cast_signed();
            Err(Error::from_raw_os_error(errno.saturating_neg()))
        }
        _ => Err(malformed()),
    }
}

/// The payload of the first `nlattr` of a kind.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(half(attributes, 0)?);
        if half(attributes, 2)? == wanted {
            return attributes.get(NLATTR..length);
        }
        attributes = attributes.get(length.max(NLATTR).next_multiple_of(4)..)?;
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn malformed() -> Error {
    Error::new(ErrorKind::InvalidData, "malformed answer of the socket diagnosis")
}

const NLMSGHDR: usize = 16;
const NLATTR: usize = 4;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const IPPROTO_TCP: u8 = 6;
const INET_DIAG_INFO: u16 = 2;
/// `1 << (INET_DIAG_INFO - 1)`
const WITH_TCP_INFO: u8 = 2;
/// Length of `inet_diag_msg`, and the offset of its `idiag_wqueue`.
const INET_DIAG_MSG: usize = 72;
const WQUEUE: usize = 60;
/// Offset of `tcpi_last_ack_recv` in `tcp_info`; retransmits and probes are its bytes 2 and 3.
const LAST_ACK_RECV: usize = 56;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test]
    async fn the_kernel_says_what_is_acknowledged() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address).await else {
                assert!(address.starts_with('['), "IPv4 loopback is always there");
                continue;
            };
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (mut server, peer) = listener.accept().await.unwrap();
            let local = server.local_addr().unwrap();
            assert_eq!(diagnose(local, peer).unwrap().unacknowledged, 0, "{address}: nothing was sent");
            // More than the peer's buffer takes stays unacknowledged while nobody reads.
            let mut filled = 0;
            while let Ok(Ok(written)) = timeout(Duration::from_millis(200), server.write(&[0; 65_536])).await {
                filled += written;
            }
            let full = diagnose(local, peer).unwrap();
            assert!(full.unacknowledged > 0, "{address}: {filled} bytes were sent to nobody: {full:?}");
            let mut buffer = vec![0; filled];
            client.read_exact(&mut buffer).await.unwrap();
            let read = async {
                while diagnose(local, peer).unwrap().unacknowledged > 0 {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            timeout(Duration::from_secs(10), read).await.expect("all was read, and is not acknowledged");
            let silence = diagnose(local, peer).unwrap().silence;
            assert!(
                silence < Duration::from_secs(5),
                "{address}: an acknowledgement came just now, not {silence:?} ago"
            );
        }
    }

    #[test]
    fn an_unknown_connection_is_an_error_and_the_next_question_is_answered_all_the_same() {
        let nobody = "127.0.0.1:1".parse().unwrap();
        for _ in 0..3 {
            let error = diagnose(nobody, nobody).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        }
    }

    #[test]
    fn answers_that_are_none_are_refused() {
        for answer in [&[][..], &[0; 15], &[0; 100], &[0, 0, 0, 0, 20, 0, 0, 0]] {
            assert!(parse(answer).is_err(), "{answer:?}");
        }
        let mut without_info = vec![0; 16 + 72 + 8];
        without_info[4] = 20;
        assert!(parse(&without_info).is_err(), "attributes of no length");
    }
}
