//! One named resource, packed once and shared by every response that carries it.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use culvert_api::envoy::config::cluster::v3::{Cluster, cluster};
use culvert_api::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use culvert_api::envoy::config::route::v3::ScopedRouteConfiguration;
use culvert_api::{Any, type_url};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::Name;

/// A type URL, shared.
pub type TypeUrl = Arc<str>;

/// A version that follows from content alone: equal on every replica and after every restart, so that a failover
/// sends nothing twice. Shown as 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u64);

impl Version {
    /// The version of these bytes.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self::never_zero(xxh3_64(content))
    }

    /// The version of a resource: of its content alone where nothing else is said of it.
    #[must_use]
    pub fn of_all(content: &[u8], extras: &Extras) -> Self {
        if *extras == Extras::default() {
            return Self::of(content);
        }
        let mut hash = Xxh3::new();
        hash.update(content);
        hash.update(&extras.ttl.unwrap_or_default().as_millis().to_le_bytes());
        for alias in &*extras.aliases {
            hash.update(&(alias.len() as u64).to_le_bytes());
            hash.update(alias.as_bytes());
        }
        Self::never_zero(hash.digest())
    }

    /// The version of a set of resources, which depends on names and versions and not on what came before.
    pub(crate) fn of_set<'a>(resources: impl Iterator<Item = &'a Resource>) -> Self {
        Self::of_named(resources.map(|resource| (&resource.name, resource)))
    }

    /// The same, of resources under names that need not be their own.
    pub(crate) fn of_named<'a>(resources: impl Iterator<Item = (&'a Name, &'a Resource)>) -> Self {
        let mut hash = Xxh3::new();
        for (name, resource) in resources {
            hash.update(&(name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update(&resource.version.0.to_le_bytes());
        }
        Self::never_zero(hash.digest())
    }

    /// Reads what [`fmt::Display`] writes; [`Version::FOREIGN`] for anything else.
    pub(crate) fn parse(text: &str) -> Self {
        if text.len() == Self::TEXT_LEN {
            u64::from_str_radix(text, 16).map_or(Self::FOREIGN, Self)
        } else {
            Self::FOREIGN
        }
    }

    /// How long every version's text is.
    pub(crate) const TEXT_LEN: usize = 16;

    /// What [`fmt::Display`] writes.
    pub(crate) fn text(self) -> [u8; Self::TEXT_LEN] {
        std::array::from_fn(|at| {
            let digit = (self.0 >> (4 * (Self::TEXT_LEN - 1 - at))) & 0xf;
            b"0123456789abcdef".get(digit as usize).copied().unwrap_or_default()
        })
    }

    fn never_zero(hash: u64) -> Self {
        Self(hash.max(1))
    }

    /// A version that no content has: a client holds something that is not ours.
    pub(crate) const FOREIGN: Self = Self(0);
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// One named resource, immutable. Holds its own encoding, both as `discovery.v3.Resource` (what a delta response
/// carries) and, inside it, as `Any` (what a state-of-the-world response carries): a response copies bytes and encodes
/// nothing.
#[derive(Clone)]
pub struct Resource {
    name: Name,
    type_url: TypeUrl,
    version: Version,
    extras: Extras,
    /// `envoy.service.discovery.v3.Resource`, encoded.
    wire: Bytes,
    /// Where in `wire` the encoded `Any` stands.
    any: Range<usize>,
    /// Where in `wire` the message itself stands.
    value: Range<usize>,
    /// Found when first needed.
    referred: OnceLock<Option<Referred>>,
}

impl Resource {
    /// Packs an encoded message of type `type_url`.
    #[must_use]
    pub fn new(type_url: &TypeUrl, name: impl Into<Name>, value: &[u8]) -> Self {
        Self::with(type_url, name, value, Extras::default())
    }

    /// The same, with what is said beside it.
    #[must_use]
    pub fn with(type_url: &TypeUrl, name: impl Into<Name>, value: &[u8], extras: Extras) -> Self {
        let name = name.into();
        let version = Version::of_all(value, &extras);
        let text = version.to_string();
        let any_len = field_len(1, type_url.len()) + if value.is_empty() { 0 } else { field_len(2, value.len()) };
        let mut wire =
            BytesMut::with_capacity(field_len(1, text.len()) + field_len(2, any_len) + field_len(3, name.len()));
        put_field(&mut wire, 1, text.as_bytes());
        encode_key(2, WireType::LengthDelimited, &mut wire);
        encode_varint(any_len as u64, &mut wire);
        let any_start = wire.len();
        put_field(&mut wire, 1, type_url.as_bytes());
        if !value.is_empty() {
            put_field(&mut wire, 2, value);
        }
        let any = any_start..wire.len();
        let value = any.end - value.len()..any.end;
        put_field(&mut wire, 3, name.as_bytes());
        for alias in &*extras.aliases {
            put_field(&mut wire, 4, alias.as_bytes());
        }
        if let Some(ttl) = extras.ttl.and_then(|ttl| prost_types::Duration::try_from(ttl).ok()) {
            put_field(&mut wire, 6, &ttl.encode_to_vec());
        }
        Self {
            name,
            type_url: Arc::clone(type_url),
            version,
            extras,
            wire: wire.freeze(),
            any,
            value,
            referred: OnceLock::new(),
        }
    }

    /// Other names by which it may be asked for, in the delta variant.
    #[must_use]
    pub fn aliases(&self) -> &[Name] {
        &self.extras.aliases
    }

    /// For how long a client may use it without hearing of it.
    #[must_use]
    pub fn ttl(&self) -> Option<Duration> {
        self.extras.ttl
    }

    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    #[must_use]
    pub fn type_url(&self) -> &TypeUrl {
        &self.type_url
    }

    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    pub(crate) fn version_ref(&self) -> &Version {
        &self.version
    }

    /// The message, encoded.
    #[must_use]
    pub fn value(&self) -> Bytes {
        self.wire.slice(self.value.clone())
    }

    /// The message as an `Any` that shares its bytes.
    #[must_use]
    pub fn any(&self) -> Any {
        Any { type_url: self.type_url.to_string(), value: self.value() }
    }

    /// The resource of another type that a client takes anew when it takes this one: a cluster's assignment, a scope's routes.
    pub(crate) fn referred(&self) -> Option<&Name> {
        Some(&self.find_referred()?.name)
    }

    /// Whether a client may have that from another control plane.
    pub(crate) fn may_refer_elsewhere(&self) -> bool {
        self.find_referred().is_some_and(|referred| referred.elsewhere)
    }

    fn find_referred(&self) -> Option<&Referred> {
        let find = || match &*self.type_url {
            type_url::CLUSTER => assignment_of(self),
            type_url::SCOPED_ROUTE_CONFIGURATION => routes_of(self),
            _ => None,
        };
        self.referred.get_or_init(find).as_ref()
    }

    /// The encoded `Any`.
    pub(crate) fn any_wire(&self) -> &[u8] {
        self.wire.get(self.any.clone()).unwrap_or_default()
    }

    /// The encoded `Any`, shared.
    pub(crate) fn any_bytes(&self) -> Bytes {
        self.wire.slice(self.any.clone())
    }

    /// The encoded `discovery.v3.Resource`.
    pub(crate) fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// The encoded `discovery.v3.Resource`, shared.
    pub(crate) fn bytes(&self) -> Bytes {
        self.wire.clone()
    }
}

/// What is said of a resource beside its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extras {
    pub aliases: Arc<[Name]>,
    pub ttl: Option<Duration>,
}

impl fmt::Debug for Resource {
    /// Never the content: it may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

/// A resource of another type.
#[derive(Debug, Clone)]
struct Referred {
    name: Name,
    /// By a source of its own: this control plane, or another one.
    elsewhere: bool,
}

/// The assignment that a cluster of type EDS refers to, unless it is read from a file.
fn assignment_of(resource: &Resource) -> Option<Referred> {
    // A cluster that does not decode refers to nothing; whoever validates resources has said so before.
    let cluster = Cluster::decode(resource.value()).ok()?;
    let eds = cluster::DiscoveryType::Eds as i32;
    if cluster.cluster_discovery_type != Some(cluster::ClusterDiscoveryType::Type(eds)) {
        return None;
    }
    let config = cluster.eds_cluster_config.unwrap_or_default();
    let elsewhere = match config.eds_config.and_then(|source| source.config_source_specifier) {
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) | None => false,
        Some(ConfigSourceSpecifier::ApiConfigSource(_)) => true,
        // `path_config_source`, and `path` as it was spelled before.
        Some(_) => return None,
    };
    let service = config.service_name;
    let name = if service.is_empty() { cluster.name } else { service };
    Some(Referred { name: name.into(), elsewhere })
}

/// The routes that a scope refers to by name.
fn routes_of(resource: &Resource) -> Option<Referred> {
    let scope = ScopedRouteConfiguration::decode(resource.value()).ok()?;
    let name = Some(scope.route_configuration_name).filter(|name| !name.is_empty())?;
    Some(Referred { name: name.into(), elsewhere: false })
}

/// How many bytes a length-delimited field with a payload of `len` bytes takes.
pub(crate) fn field_len(tag: u32, len: usize) -> usize {
    prost::encoding::key_len(tag) + encoded_len_varint(len as u64) + len
}

/// Writes a length-delimited field.
pub(crate) fn put_field(buf: &mut impl BufMut, tag: u32, payload: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, buf);
    encode_varint(payload.len() as u64, buf);
    buf.put_slice(payload);
}

/// Whether an empty first request asks for all resources of the type. Not so for types that are always referred to by
/// name.
pub(crate) fn may_be_asked_for_without_names(type_url: &str) -> bool {
    !matches!(
        type_url,
        type_url::CLUSTER_LOAD_ASSIGNMENT
            | type_url::LOCALITY_ENDPOINT
            | type_url::ROUTE_CONFIGURATION
            | type_url::SECRET
            | type_url::EXTENSION_CONFIG
            | type_url::RUNTIME
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_api::envoy::service::discovery::v3 as discovery;

    #[test]
    fn packed_bytes_decode_as_resource_and_as_any() {
        for value in [&b""[..], &b"\x0a\x01a"[..], &[7u8; 300][..]] {
            let resource = Resource::new(&type_url::CLUSTER.into(), "a", value);
            let decoded = discovery::Resource::decode(resource.wire()).unwrap();
            assert_eq!(decoded.name, "a");
            assert_eq!(decoded.version, resource.version().to_string());
            let any = decoded.resource.unwrap();
            assert_eq!(any, resource.any());
            assert_eq!(Any::decode(resource.any_wire()).unwrap(), any);
            assert_eq!(&any.value[..], value);
        }
    }

    #[test]
    fn a_version_is_read_back_and_anything_else_is_foreign() {
        for version in [Version::of(b"content"), Version(1), Version(0xfeed << 48), Version(u64::MAX)] {
            assert_eq!(version.text(), version.to_string().as_bytes(), "{version}");
            assert_eq!(Version::parse(&version.to_string()), version);
        }
        for text in ["", "1", "v1", "zzzzzzzzzzzzzzzz", "00000000000000000"] {
            assert_eq!(Version::parse(text), Version::FOREIGN, "{text:?}");
        }
    }
}
