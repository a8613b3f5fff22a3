//! The stages of an accepted connection before it is a tunnel. Each consumes the one before: what was not admitted
//! cannot be registered.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use culvert_http::Io;
use culvert_model::tunnel::TunnelServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::identity::{Bound, Denial, Shown};
use super::{Origin, Peer};
use crate::dialect::{Dialect, Sniff};
use crate::wire::{DecodeError, Decoder, Frame, GracefulClose, Init, Kind, Response};

/// Nothing is known of the connection yet.
#[derive(Debug)]
pub(super) struct Accepting {
    io: Io,
    decoder: Decoder,
    /// Whether frames are taken.
    mosn: bool,
    pub(super) peer: Peer,
    pub(super) origin: Origin,
}

/// What an accepted connection turned out to be.
#[derive(Debug)]
pub(super) enum Opening {
    /// An agent asks to join.
    Claimed(Claimed),
    /// A graceful close was read; more may follow.
    Close(Accepting, GracefulClose),
    /// The first bytes are those of an HTTP request; they stand in the buffer.
    Http(Io, Peer, BytesMut),
    /// The deadline passed, and not a byte of a frame was there: perhaps an aside connection.
    Silent(Accepting),
}

/// Why an accepted connection is closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpeningError {
    #[error("no whole handshake within the deadline")]
    Timeout,
    #[error("the peer left")]
    Left,
    #[error("the first bytes fit no tunnel protocol")]
    UnknownDialect,
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("an agent does not send {0} frames")]
    Unexpected(Kind),
    #[error("connection: {0}")]
    Io(#[from] std::io::Error),
}

impl Accepting {
    pub(super) fn new(io: Io, peer: Peer, config: &TunnelServer) -> Self {
        let origin = peer.origin();
        Self { io, decoder: Decoder::new(config.max_handshake_bytes), mosn: config.mosn, peer, origin }
    }

    /// Reads to the next frame.
    pub(super) async fn next(mut self, deadline: Instant) -> Result<Opening, OpeningError> {
        loop {
            // Which dialect it is decides who reads on.
            let frame = match Dialect::sniff(self.decoder.buffered()) {
                Sniff::NeedMore => None,
                Sniff::Unknown => return Err(OpeningError::UnknownDialect),
                Sniff::Is(Dialect::Mosn | Dialect::Culvert) if self.mosn => match self.decoder.next_frame() {
                    Ok(frame) => frame,
                    Err(error) => return Err(self.garbled(error, deadline).await),
                },
                Sniff::Is(Dialect::Mosn | Dialect::Culvert) => return Err(OpeningError::UnknownDialect),
                Sniff::Is(Dialect::Envoy) => {
                    let first = std::mem::take(self.decoder.buffer());
                    return Ok(Opening::Http(self.io, self.peer, first));
                }
            };
            match frame {
                Some(Frame::Init(init)) => {
                    let surplus = self.decoder.into_surplus();
                    let Self { io, peer, .. } = self;
                    return Ok(Opening::Claimed(Claimed { io, peer, surplus, init, dialect: Dialect::Mosn }));
                }
                Some(Frame::GracefulClose(request)) => return Ok(Opening::Close(self, request)),
                Some(frame) => return Err(OpeningError::Unexpected(frame.kind())),
                None => {}
            }
            let buffer = self.decoder.buffer();
            buffer.reserve(READ);
            let Ok(read) = timeout_at(deadline, self.io.read_buf(buffer)).await else {
                let silent = self.decoder.buffered().is_empty();
                return if silent { Ok(Opening::Silent(self)) } else { Err(OpeningError::Timeout) };
            };
            if read? == 0 {
                return Err(OpeningError::Left);
            }
        }
    }

    /// An init frame whose payload says nothing is answered before the connection is closed; what is no frame is not.
    async fn garbled(mut self, error: DecodeError, deadline: Instant) -> OpeningError {
        if matches!(error, DecodeError::Json { kind: Kind::Init, .. } | DecodeError::TooDeep) {
            match timeout_at(deadline, refuse(&mut self.io, Response::default())).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "the refusal was not written"),
                Err(_) => tracing::debug!("the refusal was not taken within the deadline"),
            }
        }
        error.into()
    }

    pub(super) async fn write(&mut self, frame: &[u8]) -> std::io::Result<()> {
        self.io.write_all(frame).await?;
        self.io.flush().await
    }
}

/// An agent asks to join; nothing has been checked.
#[derive(Debug)]
pub(super) struct Claimed {
    io: Io,
    pub(super) peer: Peer,
    pub(super) init: Init,
    pub(super) dialect: Dialect,
    /// Behind the init frame: belongs to the application protocol.
    surplus: Bytes,
}

impl Claimed {
    pub(super) fn is_tls(&self) -> bool {
        self.io.is_tls()
    }

    /// How the agent shows that it has its credential.
    pub(super) fn shown(&self) -> Result<Shown, Denial> {
        match &self.init.proof {
            None => Ok(Shown::Secret(self.init.credential.clone())),
            Some(proof) => Bound::new(&self.io, proof).map(Shown::Proof).ok_or(Denial::ProofWithoutTls),
        }
    }

    pub(super) async fn refuse(mut self, response: Response) -> Result<(), OpeningError> {
        Ok(refuse(&mut self.io, response).await?)
    }

    /// Writes the reply of success, alone. To be called when the host is published.
    pub(super) async fn accept(mut self, response: Response) -> Result<Io, OpeningError> {
        write_response(&mut self.io, response).await?;
        Ok(self.io.with_prefix(self.surplus))
    }
}

/// Answers, flushes, closes; takes back what the peer still sends for a moment, for a reset would overtake the answer.
async fn refuse(io: &mut Io, response: Response) -> std::io::Result<()> {
    write_response(io, response).await?;
    io.shutdown().await?;
    linger(io).await;
    Ok(())
}

/// Takes back what a refused peer still sends for a moment.
pub(super) async fn linger(io: &mut Io) {
    let deadline = Instant::now() + LINGER;
    let (mut rest, mut taken) = (BytesMut::with_capacity(READ), 0);
    while taken < LINGER_BYTES {
        rest.clear();
        match timeout_at(deadline, io.read_buf(&mut rest)).await {
            Ok(Ok(read)) if read > 0 => taken += read,
            _ => break,
        }
    }
}

async fn write_response(io: &mut Io, response: Response) -> std::io::Result<()> {
    let frame = Frame::Response(response).encode().map_err(std::io::Error::other)?;
    io.write_all(&frame).await?;
    io.flush().await
}

/// Bytes that are asked for at once.
const READ: usize = 1024;
/// How long, and how much, is still read from a refused peer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 16_384;
