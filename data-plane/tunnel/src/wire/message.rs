//! The messages of the frames, and how they are written: in Go's order of fields.

mod read;

use std::fmt;
use std::time::Duration;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{Proof, Status};

pub(super) use self::read::{MAX_DEPTH, check_depth};

/// Announced in `extra.caps` of an init frame and in `caps` of the answer to it: bytes may follow the answer at once,
/// the answer names the connection, a graceful close names ids and is acknowledged. MOSN ignores both places.
pub const CAPABILITY: &str = "culvert/1";

/// Announced beside [`CAPABILITY`]: the connection may carry HTTP/2 as our two ends speak it (docs/tunnels.md). The agent
/// says in `extra.protocol` what it would like this connection to carry, the answer in `protocol` what it does carry.
pub const CAPABILITY_HTTP2: &str = "h2";

/// What a connection carries, as our peers name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// `http/1.1`
    Http1,
    /// `h2`
    Http2,
}

impl Carried {
    fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "h2",
        }
    }

    /// What a later version may name is as good as nothing.
    fn from_name(name: &str) -> Option<Self> {
        [Self::Http1, Self::Http2].into_iter().find(|carried| carried.name() == name)
    }
}

/// `ConnectionInitInfo`: an agent asks to join a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Init {
    pub cluster_name: String,
    /// As sent; see [`Self::clamped_weight`].
    pub weight: i64,
    pub host_name: String,
    pub credential_policy: String,
    pub credential: Secret,
    /// `extra.caps`: what the sender can do beyond MOSN. Empty: `extra` is sent as `null`, as MOSN does.
    pub caps: Vec<String>,
    /// `extra.protocol`: what the sender would like the connection to carry. Sent only beside `caps`.
    pub protocol: Option<Carried>,
    /// `extra.instance`: which process the agent is. Sent only beside `caps`.
    pub instance: Option<Instance>,
    /// `extra.proof`: that the sender has the credential, in its place. Sent only beside `caps`.
    pub proof: Option<Proof>,
}

/// One run of an agent, among all with its identity: when it began, and a number that tells two of one moment apart.
/// **The later one is greater.**
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance {
    /// Milliseconds since 1970.
    pub epoch: u64,
    pub nonce: u64,
}

impl Instance {
    /// 32 hexadecimal digits; anything else is as good as nothing.
    fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let (epoch, nonce) = text.split_at_checked(16).filter(|_| digits)?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(Self { epoch: number(epoch)?, nonce: number(nonce)? })
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.epoch, self.nonce)
    }
}

/// A string that `Debug` does not show.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

impl Init {
    /// The weight as a balancer takes it: 1 to 128 (MOSN's balancer clamps to the same).
    #[must_use]
    pub fn clamped_weight(&self) -> u32 {
        u32::try_from(self.weight.clamp(1, 128)).unwrap_or(1)
    }

    /// Whether the sender announced a capability.
    #[must_use]
    pub fn can(&self, capability: &str) -> bool {
        self.caps.iter().any(|cap| cap == capability)
    }
}

/// `ConnectionInitResponse`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Response {
    pub status: Status,
    /// What the server can do beyond MOSN. Sent only to agents that announced something themselves.
    pub caps: Vec<String>,
    /// The server's name for the connection; as `caps`.
    pub connection_id: Option<String>,
    /// What the connection carries; as `caps`.
    pub protocol: Option<Carried>,
    /// `retry_after_ms`, in whole milliseconds: when a refused agent may come back; as `caps`.
    pub retry_after: Option<Duration>,
}

/// `GracefulCloseOnewayRequest`: these connections of mine will close, send nothing new.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GracefulClose {
    /// The agent's own addresses, `ip:port`. `None` and empty differ on the wire only (`null`, `[]`).
    pub addresses: Option<Vec<String>>,
    pub cluster_name: String,
    /// Ours: the ids that the server gave. Left out when empty.
    pub connection_ids: Vec<String>,
}

/// Ours: a graceful close took effect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GracefulCloseAck {
    /// Connections that get nothing new from now on.
    pub closed: i64,
}

impl Serialize for Init {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(6))?;
        map.serialize_entry("cluster_name", &self.cluster_name)?;
        map.serialize_entry("weight", &self.weight)?;
        map.serialize_entry("host_name", &self.host_name)?;
        map.serialize_entry("credential_policy", &self.credential_policy)?;
        map.serialize_entry("credential", &self.credential.0)?;
        map.serialize_entry("extra", &(!self.caps.is_empty()).then_some(Extra(self)))?;
        map.end()
    }
}

struct Extra<'a>(&'a Init);

impl Serialize for Extra<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("caps", &self.0.caps)?;
        if let Some(protocol) = self.0.protocol {
            map.serialize_entry("protocol", protocol.name())?;
        }
        if let Some(instance) = self.0.instance {
            map.serialize_entry("instance", &instance.to_string())?;
        }
        if let Some(proof) = &self.0.proof {
            map.serialize_entry("proof", &proof.to_text())?;
        }
        map.end()
    }
}

impl Serialize for Response {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("status", &self.status.code())?;
        if !self.caps.is_empty() {
            map.serialize_entry("caps", &self.caps)?;
        }
        if let Some(id) = &self.connection_id {
            map.serialize_entry("connection_id", id)?;
        }
        if let Some(protocol) = self.protocol {
            map.serialize_entry("protocol", protocol.name())?;
        }
        if let Some(after) = self.retry_after {
            map.serialize_entry("retry_after_ms", &u64::try_from(after.as_millis()).unwrap_or(u64::MAX))?;
        }
        map.end()
    }
}

impl Serialize for GracefulClose {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("addresses", &self.addresses)?;
        map.serialize_entry("cluster_name", &self.cluster_name)?;
        if !self.connection_ids.is_empty() {
            map.serialize_entry("connection_ids", &self.connection_ids)?;
        }
        map.end()
    }
}

impl Serialize for GracefulCloseAck {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("closed", &self.closed)?;
        map.end()
    }
}
