//! One attempt: connect, TLS, handshake. **Only an accepted handshake yields [`Established`].**

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_http::{Io, RoundTrip};
use culvert_model::tunnel::TunnelProtocol;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::credential::CredentialError;
use crate::binding::Binding;
use crate::envoy::wire::ResponseError;
use crate::history::EventKind;
use crate::keepalive;
use crate::wire::{
    CAPABILITY, Carried, DecodeError, Decoder, EncodeError, Frame, Init, Kind, MAX_PAYLOAD, Secret, Status,
};

/// Where to, and how.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) address: SocketAddr,
    pub(super) server_name: Arc<str>,
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
    /// How often TCP probes the server.
    pub(super) ping_interval: Duration,
}

/// Who is told how far an attempt has come.
pub(super) type Told<'a> = &'a dyn Fn(EventKind, String);

/// A tunnel: the server accepted the handshake.
#[derive(Debug)]
pub(super) struct Established {
    /// What the server sent behind its reply comes first.
    pub(super) io: Io,
    pub(super) local: SocketAddr,
    /// The server's id for the connection, if it gave one.
    pub(super) id: Option<String>,
    /// Whether the server is one of ours.
    pub(super) capable: bool,
    /// HTTP/2 was agreed on, as our two ends speak it: what its PINGs take.
    pub(super) round_trip: Option<RoundTrip>,
    /// What it was dialled with.
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
}

impl Established {
    /// As it was agreed on.
    pub(super) fn protocol(&self) -> TunnelProtocol {
        if self.round_trip.is_some() { TunnelProtocol::Http2 } else { TunnelProtocol::Http1 }
    }
}

/// Why an attempt failed. Whatever it was, the next one begins from nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("connect, TLS and handshake took longer than the connect timeout")]
    Timeout,
    #[error("connect: {0}")]
    Connect(std::io::Error),
    #[error("{0:?} is no server name for TLS; set sni or the endpoint's hostname")]
    ServerName(Arc<str>),
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error("bind_to_tls needs TLS 1.3, which the server did not agree to")]
    Unbound,
    #[error("the handshake cannot be sent: {0}")]
    Encode(#[from] EncodeError),
    #[error("handshake: {0}")]
    Handshake(std::io::Error),
    #[error("the server closed the connection instead of answering")]
    Closed,
    #[error("the answer is none: {0}")]
    Decode(#[from] DecodeError),
    #[error("the server answered with a frame of kind {0}")]
    Unexpected(Kind),
    #[error("the server refused with status {0}")]
    Refused(Status, Option<Duration>),
    #[error(transparent)]
    Envoy(#[from] ResponseError),
    #[error("the server goes on without TLS; set allow_envoy_to_leave_tls if its tunnels may carry plaintext")]
    LeavesTls,
}

/// When to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// With the usual back-off.
    Normal,
    /// When the server said.
    After(Duration),
    /// The credential must change first; it is read anew.
    Slow,
}

impl DialError {
    pub(super) fn retry(&self) -> Retry {
        match self {
            Self::Refused(Status::AuthFailed | Status::PolicyNotFound, _) | Self::LeavesTls | Self::Unbound => {
                Retry::Slow
            }
            Self::Refused(_, Some(after)) => Retry::After(*after),
            // A credential, or what the two configurations say: nothing that a moment changes.
            Self::Envoy(ResponseError::OtherMode { .. }) => Retry::Slow,
            Self::Envoy(ResponseError::Refused { status: 400..=428, .. }) => Retry::Slow,
            _ => Retry::Normal,
        }
    }

    /// Whether nobody was reached.
    pub(super) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Timeout | Self::Connect(_) | Self::Tls(_))
    }

    /// Whether the connection stood, and the handshake is what failed.
    pub(super) fn in_handshake(&self) -> bool {
        matches!(
            self,
            Self::Handshake(_)
                | Self::Closed
                | Self::Decode(_)
                | Self::Unexpected(_)
                | Self::Refused(..)
                | Self::Unbound
                | Self::Encode(_)
                | Self::Envoy(_)
                | Self::LeavesTls
        )
    }
}

/// A connection without a handshake, as aside connections are.
pub(super) async fn connect(target: &Target, told: Told<'_>) -> Result<Io, DialError> {
    connect_through(target, told, |io| io).await
}

/// The same; TLS reads through what `layer` makes of the connection.
pub(super) async fn connect_through(
    target: &Target,
    told: Told<'_>,
    layer: impl FnOnce(Io) -> Io,
) -> Result<Io, DialError> {
    let io = Io::tcp(TcpStream::connect(target.address).await.map_err(DialError::Connect)?);
    keepalive::enable(&io, target.ping_interval);
    told(EventKind::Connected, io.local_addr().map_or_else(String::new, |local| local.to_string()));
    let Some(config) = &target.tls else { return Ok(io) };
    let name = ServerName::try_from(target.server_name.to_string())
        .map_err(|_| DialError::ServerName(Arc::clone(&target.server_name)))?;
    let connector = TlsConnector::from(Arc::clone(config));
    let stream = connector.connect(name, Box::new(layer(io))).await.map_err(DialError::Tls)?;
    told(EventKind::Tls, agreed(stream.get_ref().1));
    Ok(Io::tls_client(stream))
}

/// `TLSv1.3 TLS_AES_256_GCM_SHA384`, as access logs have it.
fn agreed(connection: &rustls::ClientConnection) -> String {
    let version = match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "-",
    };
    let suite = connection.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()));
    // rustls marks the suites of TLS 1.3.
    format!("{version} {}", suite.unwrap_or_default().replacen("TLS13_", "TLS_", 1))
}

/// A tunnel connection. `bound`: the credential stays here, and a proof of it goes in its place.
pub(super) async fn establish(
    target: &Target,
    mut init: Init,
    bound: bool,
    told: Told<'_>,
) -> Result<Established, DialError> {
    let io = connect(target, told).await?;
    if bound {
        let Secret(token) = std::mem::take(&mut init.credential);
        init.proof = Some(Binding::of(&io).ok_or(DialError::Unbound)?.prove(token.as_bytes()));
    }
    let frame = Frame::Init(init).encode()?;
    let local = io.local_addr().unwrap_or(target.address);
    let established = handshake(io, &frame, local).await?;
    Ok(Established { tls: target.tls.clone(), ..established })
}

/// Sends the init frame and reads one frame.
pub(super) async fn handshake(mut io: Io, init: &[u8], local: SocketAddr) -> Result<Established, DialError> {
    io.write_all(init).await.map_err(DialError::Handshake)?;
    io.flush().await.map_err(DialError::Handshake)?;
    let mut decoder = Decoder::new(MAX_PAYLOAD);
    let frame = loop {
        if let Some(frame) = decoder.next_frame()? {
            break frame;
        }
        let buffer = decoder.buffer();
        buffer.reserve(READ);
        if io.read_buf(buffer).await.map_err(DialError::Handshake)? == 0 {
            return Err(DialError::Closed);
        }
    };
    let Frame::Response(response) = frame else { return Err(DialError::Unexpected(frame.kind())) };
    if response.status != Status::Success {
        return Err(DialError::Refused(response.status, response.retry_after));
    }
    Ok(Established {
        io: io.with_prefix(decoder.into_surplus()),
        local,
        id: response.connection_id,
        capable: response.caps.iter().any(|cap| cap == CAPABILITY),
        round_trip: (response.protocol == Some(Carried::Http2)).then(RoundTrip::default),
        tls: None,
    })
}

/// Bytes that are asked for at once.
const READ: usize = 1024;

#[cfg(test)]
mod tests;
