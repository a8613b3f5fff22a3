//! `culvert.tunnel.v1.TunnelControl`: what the two ends of a tunnel tell each other while it serves.

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use culvert_api::culvert::tunnel::v1 as api;
use prost::Message;

/// The method's path.
pub const PATH: &str = "/culvert.tunnel.v1.TunnelControl/Control";

/// From the tunnel server to its agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerNotice {
    Drain {
        /// At most [`MAX_WITHIN`].
        within: Duration,
    },
    Reconnect {
        /// At most [`MAX_DELAY`].
        delay: Duration,
        target: Option<SocketAddr>,
    },
    CloseAck {
        sequence: u64,
        closed: u64,
    },
    WeightAck {
        sequence: u64,
        changed: u64,
    },
}

/// From an agent to its tunnel server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentNotice {
    Close {
        sequence: u64,
        /// At most [`MAX_IDS`].
        connection_ids: Vec<String>,
    },
    Weight {
        sequence: u64,
        /// 1 to 128.
        weight: u32,
    },
}

/// Why a notice is none. The stream it came on is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoticeError {
    #[error("not a notice: {0}")]
    Decode(String),
    #[error("reconnect.target: {0:?} is not ip:port")]
    Target(String),
    #[error("close.connection_ids: {0} ids, at most {MAX_IDS} are taken")]
    TooManyIds(usize),
}

impl ServerNotice {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        use api::server_notice::{CloseAck, Drain, Notice, Reconnect, WeightAck};
        let notice = match self {
            Self::Drain { within } => Notice::Drain(Drain { within: duration(*within) }),
            Self::Reconnect { delay, target } => Notice::Reconnect(Reconnect {
                delay: duration(*delay),
                target: target.map(|target| target.to_string()).unwrap_or_default(),
            }),
            Self::CloseAck { sequence, closed } => Notice::CloseAck(CloseAck { sequence: *sequence, closed: *closed }),
            Self::WeightAck { sequence, changed } => {
                Notice::WeightAck(WeightAck { sequence: *sequence, changed: *changed })
            }
        };
        api::ServerNotice { notice: Some(notice) }.encode_to_vec()
    }

    /// `None`: a notice of a later version.
    ///
    /// # Errors
    /// See [`NoticeError`].
    pub fn decode(bytes: Bytes) -> Result<Option<Self>, NoticeError> {
        use api::server_notice::Notice;
        let message = api::ServerNotice::decode(bytes).map_err(|error| NoticeError::Decode(error.to_string()))?;
        let Some(notice) = message.notice else { return Ok(None) };
        Ok(Some(match notice {
            Notice::Drain(drain) => Self::Drain { within: time(drain.within).min(MAX_WITHIN) },
            Notice::Reconnect(reconnect) => Self::Reconnect {
                delay: time(reconnect.delay).min(MAX_DELAY),
                target: match reconnect.target.as_str() {
                    "" => None,
                    text => Some(text.parse().map_err(|_| NoticeError::Target(clipped(text)))?),
                },
            },
            Notice::CloseAck(ack) => Self::CloseAck { sequence: ack.sequence, closed: ack.closed },
            Notice::WeightAck(ack) => Self::WeightAck { sequence: ack.sequence, changed: ack.changed },
        }))
    }
}

impl AgentNotice {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        use api::agent_notice::{Close, Notice, Weight};
        let notice = match self {
            Self::Close { sequence, connection_ids } => {
                Notice::Close(Close { sequence: *sequence, connection_ids: connection_ids.clone() })
            }
            Self::Weight { sequence, weight } => Notice::Weight(Weight { sequence: *sequence, weight: *weight }),
        };
        api::AgentNotice { notice: Some(notice) }.encode_to_vec()
    }

    /// `None`: a notice of a later version.
    ///
    /// # Errors
    /// See [`NoticeError`].
    pub fn decode(bytes: Bytes) -> Result<Option<Self>, NoticeError> {
        use api::agent_notice::Notice;
        let message = api::AgentNotice::decode(bytes).map_err(|error| NoticeError::Decode(error.to_string()))?;
        Ok(match message.notice {
            None => None,
            Some(Notice::Close(close)) if close.connection_ids.len() > MAX_IDS => {
                return Err(NoticeError::TooManyIds(close.connection_ids.len()));
            }
            Some(Notice::Close(close)) => {
                Some(Self::Close { sequence: close.sequence, connection_ids: close.connection_ids })
            }
            // As in the handshake: what is out of range counts as the nearest that is not.
            Some(Notice::Weight(weight)) => {
                Some(Self::Weight { sequence: weight.sequence, weight: weight.weight.clamp(1, 128) })
            }
        })
    }
}

fn duration(time: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(time).ok()
}

/// Unset or negative is none.
fn time(duration: Option<prost_types::Duration>) -> Duration {
    duration.and_then(|duration| Duration::try_from(duration).ok()).unwrap_or_default()
}

fn clipped(text: &str) -> String {
    text.chars().take(64).collect()
}

/// A server that wants more patience than this is not heard.
pub const MAX_DELAY: Duration = Duration::from_secs(3600);
/// Nor is one that takes longer than this to end.
pub const MAX_WITHIN: Duration = Duration::from_secs(24 * 3600);
/// Connections that one notice closes.
pub const MAX_IDS: usize = 1024;
