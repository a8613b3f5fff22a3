//! The messages of the frames, read as Go's `encoding/json` reads them: keys match whatever their case, unknown ones are
//! ignored, of duplicates the last wins, `null` leaves a field at its zero value, numbers must be integers.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{DecodeError, Proof, Status};

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

/// Objects and arrays within each other; ours need 3.
pub(super) const MAX_DEPTH: usize = 32;

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
    /// In Go's order of fields.
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

/// A message that is read field by field.
trait Fields: Default {
    /// Takes the value of the field `key` (in lower case) or leaves `map` to skip it.
    fn take<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error>;
}

impl Fields for Init {
    fn take<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "cluster_name" => set(&mut self.cluster_name, map),
            "weight" => set(&mut self.weight, map),
            "host_name" => set(&mut self.host_name, map),
            "credential_policy" => set(&mut self.credential_policy, map),
            "credential" => set(&mut self.credential.0, map),
            "extra" => {
                // Go's type is a map: an object or null. What we do not know in it is of any type.
                let extra = map.next_value::<Option<ObjectOf<Known>>>()?.map(|extra| extra.0).unwrap_or_default();
                (self.caps, self.protocol, self.instance) = (extra.caps, extra.protocol, extra.instance);
                self.proof = extra.proof;
                Ok(())
            }
            _ => skip(map),
        }
    }
}

impl Fields for Response {
    fn take<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "status" => {
                if let Some(code) = map.next_value::<Option<i64>>()? {
                    self.status = Status::from_code(code);
                }
                Ok(())
            }
            "caps" => {
                self.caps = map.next_value::<Strings>()?.0;
                Ok(())
            }
            "connection_id" => {
                self.connection_id = map.next_value::<Lenient>()?.0;
                Ok(())
            }
            "protocol" => {
                self.protocol = map.next_value::<Lenient>()?.carried();
                Ok(())
            }
            "retry_after_ms" => {
                // What is no number of milliseconds is as good as nothing.
                let after = serde_json::Value::as_u64(&map.next_value()?);
                self.retry_after = after.map(Duration::from_millis);
                Ok(())
            }
            _ => skip(map),
        }
    }
}

impl Fields for GracefulClose {
    fn take<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "addresses" => {
                // A null element is Go's empty string.
                let addresses = map.next_value::<Option<Vec<Option<String>>>>()?;
                self.addresses = addresses.map(|list| list.into_iter().map(Option::unwrap_or_default).collect());
                Ok(())
            }
            "cluster_name" => set(&mut self.cluster_name, map),
            "connection_ids" => {
                self.connection_ids = map.next_value::<Strings>()?.0;
                Ok(())
            }
            _ => skip(map),
        }
    }
}

impl Fields for GracefulCloseAck {
    fn take<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "closed" => set(&mut self.closed, map),
            _ => skip(map),
        }
    }
}

/// The part of `extra` that we know.
#[derive(Default)]
struct Known {
    caps: Vec<String>,
    protocol: Option<Carried>,
    instance: Option<Instance>,
    proof: Option<Proof>,
}

impl Fields for Known {
    fn take<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "caps" => self.caps = map.next_value::<Strings>()?.0,
            "protocol" => self.protocol = map.next_value::<Lenient>()?.carried(),
            "instance" => self.instance = map.next_value::<Lenient>()?.0.as_deref().and_then(Instance::parse),
            "proof" => self.proof = map.next_value::<Lenient>()?.0.as_deref().and_then(Proof::parse),
            _ => return skip(map),
        }
        Ok(())
    }
}

/// `null` has no effect, as in Go.
fn set<'de, T: Deserialize<'de>, A: MapAccess<'de>>(field: &mut T, map: &mut A) -> Result<(), A::Error> {
    if let Some(value) = map.next_value()? {
        *field = value;
    }
    Ok(())
}

fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(|_| ())
}

/// A field of ours in a place that others may use otherwise: whatever is no list of strings counts as empty.
struct Strings(Vec<String>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let strings = match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::Array(items) => items
                .into_iter()
                .filter_map(|item| match item {
                    serde_json::Value::String(string) => Some(string),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        };
        Ok(Self(strings))
    }
}

/// As [`Strings`], for one string.
struct Lenient(Option<String>);

impl Lenient {
    fn carried(self) -> Option<Carried> {
        Carried::from_name(self.0.as_deref()?)
    }
}

impl<'de> Deserialize<'de> for Lenient {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(string) => Some(string),
            _ => None,
        }))
    }
}

struct ObjectOf<T>(T);

impl<'de, T: Fields> Deserialize<'de> for ObjectOf<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<T>(std::marker::PhantomData<T>);
        impl<'de, T: Fields> Visitor<'de> for Object<T> {
            type Value = T;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
                let mut message = T::default();
                while let Some(key) = map.next_key::<String>()? {
                    message.take(&fold(&key), &mut map)?;
                }
                Ok(message)
            }
        }
        deserializer.deserialize_map(Object(std::marker::PhantomData)).map(Self)
    }
}

/// `null` as a whole message leaves every field at its zero value.
fn message<'de, T: Fields, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::<ObjectOf<T>>::deserialize(deserializer).map(|message| message.map(|object| object.0).unwrap_or_default())
}

impl<'de> Deserialize<'de> for Init {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        message(deserializer)
    }
}

impl<'de> Deserialize<'de> for Response {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        message(deserializer)
    }
}

impl<'de> Deserialize<'de> for GracefulClose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        message(deserializer)
    }
}

impl<'de> Deserialize<'de> for GracefulCloseAck {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        message(deserializer)
    }
}

/// A key as Go compares it: two letters outside ASCII fold to ones inside.
fn fold(key: &str) -> String {
    key.chars()
        .map(|c| match c {
            '\u{17f}' => 's',
            '\u{212a}' => 'k',
            c => c.to_ascii_lowercase(),
        })
        .collect()
}

/// Refuses deep nesting before the recursive parser sees it; a look at each byte.
pub(super) fn check_depth(payload: &[u8]) -> Result<(), DecodeError> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in payload {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(DecodeError::TooDeep);
                }
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}
