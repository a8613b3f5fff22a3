//! Reads the messages as Go's `encoding/json` does: keys match whatever their case, unknown ones are ignored, of duplicates
//! the last wins, `null` leaves a field at its zero value, numbers must be integers.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::super::{DecodeError, Proof, Status};
use super::{Carried, GracefulClose, GracefulCloseAck, Init, Instance, Response};

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
pub(in crate::wire) fn check_depth(payload: &[u8]) -> Result<(), DecodeError> {
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

/// Objects and arrays within each other; ours need 3.
pub(in crate::wire) const MAX_DEPTH: usize = 32;
